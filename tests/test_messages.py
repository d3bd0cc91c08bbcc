"""Messages: aligned columns, and warnings that point at the caller's line."""

import html
import subprocess
import sys

import pytest

from taskcond import MergeReport
from taskcond.diagnostics import TableLearning
from taskcond.messages import columns

# A process of its own: the tests' check of types puts frames between a caller and the library.
SCRIPT = """
import sys, warnings
import numpy as np
from flax import nnx
import taskcond
from taskcond.checkpoint import load_params, merge_checkpoint, save_params

class Model(nnx.Module):
    def __init__(self):
        self.w = nnx.Param(np.zeros(2, np.float32))

folder, caller = sys.argv[1:]
params = {"w": np.array([np.nan, 1.0], np.float32)}
save_params(params, folder + "/nan")
table = {"task_embeddings": {"embedding": np.zeros((2, 3), np.float32)}}
conditioning = taskcond.checkpoint.TaskConditioning(2, 3, frames_seen=(1, 0))
save_params(table, folder + "/table", conditioning=conditioning)
calls = {
    "merge_params": lambda: taskcond.merge_params(params, params),
    "merge_into": lambda: taskcond.merge_into(Model(), params),
    "merge_checkpoint": lambda: merge_checkpoint(folder + "/nan", params, folder + "/out"),
    "load_params": lambda: load_params(folder + "/table"),
}
with warnings.catch_warnings(record=True) as caught:
    warnings.simplefilter("always")
    calls[caller]()
print([w.filename for w in caught if w.category is UserWarning])
"""


@pytest.mark.parametrize(
    "caller", ["merge_params", "merge_into", "merge_checkpoint", "load_params"]
)
def test_a_warning_names_the_callers_file(tmp_path, caller):
    script = tmp_path / "script.py"
    script.write_text(SCRIPT)
    command = [sys.executable, str(script), str(tmp_path), caller]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    assert done.stdout.strip() == str([str(script)])


def test_columns_are_as_wide_as_their_widest_cell():
    assert columns([("a", "bb", "c"), ("aaa", "b", "")]) == "a    bb  c\naaa  b"


def test_results_show_their_text_at_a_prompt_and_in_a_notebook():
    report = MergeReport(loaded=["a"], resized={"table": "2 -> <3> rows"})
    assert repr(report) == str(report)
    assert "loaded" in repr(report)
    assert report._repr_html_() == f"<pre>{html.escape(str(report))}</pre>"
    learning = TableLearning("change", 0.5, 0.25)
    assert repr(learning) == str(learning)
