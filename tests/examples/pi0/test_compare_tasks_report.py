"""The table and the plot of chunks under several tasks."""

import numpy as np
from PIL import Image
from rich.console import Console

from examples.lerobot.stats import Stats
from examples.pi0.compare_tasks_report import Chunks, plot, table


def make_chunks(dimensions):
    """Tasks that are `i` ranges apart in dimension `i`; the last dimension never moves."""
    high = np.linspace(1, 100, dimensions)
    high[-1] = 0
    stats = Stats(
        mean=high / 2, std=high / 4, min=0 * high, max=high, q01=0 * high, q99=high, count=9
    )
    apart = np.arange(dimensions) * high
    sampled = np.stack([np.zeros((5, dimensions)), np.tile(apart, (5, 1))])
    return Chunks(("one", "two"), sampled, np.zeros((5, dimensions)), stats, fps=10.0)


def test_of_many_dimensions_those_are_shown_in_which_tasks_differ():
    assert make_chunks(20).shown.tolist() == list(range(7, 19))
    assert make_chunks(5).shown.tolist() == [0, 1, 2, 3]


def test_error_is_in_standard_deviations():
    chunks = make_chunks(3)  # 1 moves by its range, which is 4 standard deviations; 0 not at all
    np.testing.assert_allclose(chunks.errors, [0, np.sqrt((0 + 4**2) / 2)])


def test_table_has_a_column_for_each_task():
    text = _render(table(make_chunks(5), "title"))
    for part in ("recorded", "one", "two", "apart", "226", "error"):
        assert part in text


def _render(renderable):
    console = Console(width=100)
    with console.capture() as capture:
        console.print(renderable)
    return capture.get()


def test_plots_of_any_number_of_dimensions(tmp_path):
    for dimensions in (2, 6, 20):
        plot(make_chunks(dimensions), "title", tmp_path / "new" / f"{dimensions}.png")
        with Image.open(tmp_path / "new" / f"{dimensions}.png") as image:
            assert image.width > 800
