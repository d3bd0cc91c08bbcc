"""The table and the plot show the tasks that have frames."""

import numpy as np
import pytest
from rich.console import Console

from examples.comparison.report import plot, table
from taskcond import TaskVocabulary
from taskcond.diagnostics.confusion import TaskConfusion

VOCABULARY = TaskVocabulary(["pour", "wipe", "never", "a name of more than twenty-six letters"])


@pytest.fixture
def confusions():
    half = np.array([[2, 2, 0, 0], [2, 2, 0, 0], [0, 0, 0, 0], [0, 0, 0, 4]], float)
    whole = np.diag([4.0, 4.0, 0.0, 4.0])
    losses = (np.array([0.5, 0.25, np.nan, 1.0]), np.array([0.125, 0.25, np.nan, 0.5]))
    return TaskConfusion(half, losses[0]), TaskConfusion(whole, losses[1])


def test_the_table_has_a_row_for_each_task_with_frames(confusions):
    console = Console(width=120)
    with console.capture() as capture:
        console.print(table(*confusions, VOCABULARY))
    lines = [line.strip("│ ") for line in capture.get().splitlines() if line.startswith("│")]
    cells = [[cell.strip() for cell in line.split("│")] for line in lines]
    assert cells == [
        ["pour", "4", "0.5000", "0.1250", "50.0%", "100.0%"],
        ["wipe", "4", "0.2500", "0.2500", "50.0%", "100.0%"],
        ["a name of more than twent…", "4", "1.0000", "0.5000", "100.0%", "100.0%"],
        ["all tasks", "12", "0.5833", "0.2917", "66.7%", "100.0%"],
    ]


def test_the_plot_is_written(confusions, tmp_path):
    plot(*confusions, VOCABULARY, tmp_path / "a.png")
    assert (tmp_path / "a.png").stat().st_size > 10_000
