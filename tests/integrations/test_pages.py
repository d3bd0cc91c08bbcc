"""The Python of docs/integrations and docs/diagnostics.md runs as it stands, page by page."""

import re
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
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
    taskcond.merge_into(model, names["params"])
    trained, old = (nnx.state(m, nnx.Param) for m in (names["model"], model))
    jax.tree.map(np.testing.assert_array_equal, trained, old)
    with pytest.raises(ValueError, match="scale"):
        taskcond.checkpoint.load_params(tmp_path / "policy", scale=2.0)


def test_diagnostics(capsys):
    names = run("../diagnostics.md")
    assert capsys.readouterr().out.startswith("No fault was found")
    assert names["confusion"].accuracy == 1
    assert names["confusion"].names == names["names"]
