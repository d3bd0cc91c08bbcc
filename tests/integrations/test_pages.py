"""The Python of these pages of docs runs as it stands, page by page."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

import taskcond

PAGES = Path(__file__).parents[2] / "docs/integrations"


def run(page: str) -> dict:
    """Runs the page's blocks as one script, and returns its names."""
    blocks = re.findall(r"```python\n(.*?)```", (PAGES / page).read_text(), re.DOTALL)
    names: dict = {}
    exec(compile("\n".join(blocks), page, "exec"), names)
    return names


def test_linen(capsys):
    names = run("linen.md")
    assert capsys.readouterr().out.startswith("(50, 32)\nloaded")
    model, inputs = names["model"], names["inputs"]
    base = names["ScoreNetwork"]().apply({"params": names["released"]}, *inputs)
    told = model.apply({"params": names["merged"]}, *inputs, jnp.array([3, -1]))
    np.testing.assert_array_equal(told[:, 1], base[:, 1])
    assert not np.array_equal(told[:, 0], base[:, 0])
    grads = jax.grad(lambda p: model.apply({"params": p}, *inputs, jnp.array([3, -1])).sum())
    table = grads(names["merged"])["task_embeddings"]["embedding"]
    assert np.flatnonzero(np.abs(table).sum(1)).tolist() == [3]


def test_custom(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    names = run("custom.md")
    assert names["batch"]["task_id"].tolist() == [1, 0]
    model = names["Policy"](3, nnx.Rngs(5))
    taskcond.checkpoint.load_into(model, tmp_path / "policy")
    trained, old = (nnx.state(m, nnx.Param) for m in (names["model"], model))
    jax.tree.map(np.testing.assert_array_equal, trained, old)


def test_diagnostics(capsys):
    names = run("../diagnostics.md")
    assert capsys.readouterr().out.startswith("No fault was found")
    assert names["confusion"].accuracy == 1
    assert names["confusion"].names == names["names"]


def test_methods():
    names = run("../methods.md")
    assert names["tokens"].shape == (2, 14, 64)
    np.testing.assert_array_equal(names["y"], names["layer"](names["x"]))
    assert names["frame"]["prompt"] == "[07] wipe the table"
    assert names["rows"].tolist() == [25, -1]
    assert names["row"].shape == (1, 128)
