"""Tables of tasks grow, shrink and are reordered."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

from taskcond import TaskConditioner, TaskLoRA, TaskVocabulary
from taskcond.checkpoint import (
    CheckpointError,
    TaskConditioning,
    change_tasks,
    load_into,
    load_params,
    save_params,
)
from taskcond.trees import flatten, to_dict
from tests.support.checkpoints import (
    NAMES,
    TABLE,
    TASKS,
    TINY,
    assert_same,
    golden,
    load_ignoring_warnings,
    small,
    with_tasks,
)


def test_names_of_tasks_go_before_numbers_and_words(tmp_path):
    about = TaskConditioning(3, 4, vocabulary=TaskVocabulary(["1", "0", "zeros"]))
    tree = small(3)
    save_params(tree, tmp_path / "x", conditioning=about)
    starts = {"like 0": "0", "like zeros": "zeros", "mean": "mean"}
    vocabulary = TaskVocabulary(["1", "0", "zeros", *starts])
    change_tasks(tmp_path / "x", tmp_path / "y", vocabulary, starts=starts)
    old, new = (flatten(load_params(tmp_path / name))[TABLE] for name in "xy")
    np.testing.assert_array_equal(new[:5], old[[0, 1, 2, 1, 2]])
    np.testing.assert_allclose(new[5], old.mean(0), rtol=1e-6)


def test_tasks_grow_shrink_and_reorder_by_name(tmp_path):
    table = with_tasks(tmp_path / "x", scale=0.5)
    vocabulary = TaskVocabulary(["fold", "cut", "stack", "pour", "sort"])
    change_tasks(
        tmp_path / "x", tmp_path / "y", vocabulary, starts={"stack": "wipe", "sort": "mean"}
    )
    loaded = load_ignoring_warnings(tmp_path / "y")
    expected = [np.zeros(4), table[2], table[1], table[0], table.mean(0)]
    np.testing.assert_allclose(loaded["task_embeddings"]["embedding"], expected, rtol=1e-6)
    assert_same(loaded["dense"], small()["dense"])
    about = TaskConditioning.load(tmp_path / "y")
    assert about == TaskConditioning(5, 4, 0.5, None, vocabulary, (0, 9, 0, 5, 0))
    change_tasks(tmp_path / "y", tmp_path / "z", TaskVocabulary(["cut"]))
    assert load_params(tmp_path / "z")["task_embeddings"]["embedding"].tolist() == [[*table[2]]]


def test_tasks_change_by_number_without_names(tmp_path):
    change_tasks(TASKS / "released", tmp_path / "x", rows=np.array([6, -1, 0]), new_rows=5)
    table = golden("pi05_tasks_f32")[TABLE]
    loaded = load_ignoring_warnings(tmp_path / "x")
    assert_same(loaded, {**golden("pi05_tasks_f32"), TABLE: table[[6, 5, 0]]})
    assert TaskConditioning.load(tmp_path / "x").frames_seen == (None, 0, None)


def test_from_22_to_50_tasks(tmp_path):
    old = TaskVocabulary(f"task {i}" for i in range(22))
    table = np.random.default_rng(0).standard_normal((22, 8)).astype(np.float32)
    save_params({"task_embeddings": {"embedding": table}}, tmp_path / "x")
    new = TaskVocabulary(f"task {i}" for i in reversed(range(50)))
    change_tasks(tmp_path / "x", tmp_path / "y", new, source_vocabulary=old, new_rows="mean")
    loaded = load_ignoring_warnings(tmp_path / "y")["task_embeddings"]["embedding"]
    np.testing.assert_array_equal(loaded[::-1][:22], table)
    np.testing.assert_allclose(loaded[:28], np.tile(table.mean(0), (28, 1)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, CheckpointError, "no names to go by"),
        ({"rows": [0, 9]}, ValueError, r"\[9\] out of range"),
        ({"rows": [0, -1], "new_rows": "ones"}, ValueError, "cannot start from 'ones'"),
        ({"rows": [0, -1], "new_rows": 7}, ValueError, "cannot start from 7"),
        (
            {"rows": [0], "starts": {"x": 1}},
            ValueError,
            r"starts has \['x'\], but may only",
        ),
        ({"vocabulary": NAMES, "source_vocabulary": NAMES}, CheckpointError, "has 3 tasks"),
    ],
)
def test_impossible_tables_are_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        change_tasks(TASKS / "released", tmp_path / "x", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_contradicting_vocabularies_are_refused(tmp_path):
    with_tasks(tmp_path / "x")
    other = TaskVocabulary(["wipe", "pour", "cut"])
    with pytest.raises(CheckpointError, match="task 0 is 'pour' in the checkpoint, 'wipe'"):
        change_tasks(tmp_path / "x", tmp_path / "y", NAMES, source_vocabulary=other)
    with pytest.raises(CheckpointError, match="no task table"):
        change_tasks(TINY / "released", tmp_path / "y", rows=[0])


class WithLoRA(nnx.Module):
    """A model with a table and factors for each task, and weights that all tasks share."""

    def __init__(self, num_tasks):
        rngs = nnx.Rngs(0)
        self.task_embeddings = TaskConditioner(num_tasks, 4, fusion="concat", rngs=rngs)
        self.dense = nnx.Linear(4, 6, rngs=rngs)
        self.lora = TaskLoRA.around(self.dense, num_tasks, 2, rngs=rngs)

    def __call__(self, x, ids):
        x = self.task_embeddings(x, ids)
        return self.lora(x, ids, self.dense(x))


def trained(num_tasks):
    model = WithLoRA(num_tasks)
    state = nnx.state(model, nnx.Param)
    drawn = jax.tree.map(lambda x: jax.random.normal(jax.random.key(x.size), x.shape), state)
    nnx.update(model, drawn)
    return model


def test_all_that_tasks_have_of_their_own_grows_with_the_table(tmp_path):
    old = trained(3)
    about = TaskConditioning.of(old, vocabulary=NAMES, frames_seen=(5, 0, 9))
    assert about.table is None
    assert set(about.more_tables) == {"lora/down", "lora/up"}
    save_params(nnx.state(old, nnx.Param), tmp_path / "old", conditioning=about)
    new = TaskVocabulary([NAMES.names[2], "sort", *NAMES.names[:2]])
    change_tasks(tmp_path / "old", tmp_path / "new", new, new_rows="mean")
    grown = WithLoRA(4)
    load_into(grown, tmp_path / "new", vocabulary=new)
    x, rows = jnp.ones((3, 4)), jnp.array([2, 3, 0])
    np.testing.assert_array_equal(grown(x, rows), old(x, jnp.arange(3)))
    assert TaskConditioning.load(tmp_path / "new").more_tables == about.more_tables
    factors = [
        leaf["lora"]["up"]
        for leaf in map(load_ignoring_warnings, (tmp_path / "old", tmp_path / "new"))
    ]
    np.testing.assert_allclose(factors[1][1], factors[0].mean(0), rtol=1e-6)


def test_zeros_that_never_learn_are_warned_of(tmp_path):
    old = trained(3)
    about = TaskConditioning.of(old, vocabulary=NAMES)
    save_params(nnx.state(old, nnx.Param), tmp_path / "old", conditioning=about)
    with pytest.warns(UserWarning, match="zeros are never learnt"):
        change_tasks(tmp_path / "old", tmp_path / "new", TaskVocabulary([*NAMES, "sort"]))


def test_the_moments_of_all_of_them_grow_too(tmp_path):
    old = trained(3)
    params = to_dict(nnx.state(old, nnx.Param))
    state = {"step": np.int32(7), "params": params, "opt_state": {"mu": params}}
    about = TaskConditioning.of(old, vocabulary=NAMES)
    save_params(params, tmp_path / "plain", conditioning=about)
    ocp.PyTreeCheckpointer().save(tmp_path / "state", state)
    (tmp_path / "state" / "task_conditioning.json").write_text(about.to_json())
    change_tasks(
        tmp_path / "state", tmp_path / "new", TaskVocabulary([*NAMES, "sort"]), new_rows="mean"
    )
    found = flatten(ocp.PyTreeCheckpointer().restore(tmp_path / "new"))
    for path in ("task_embeddings/embedding", *about.more_tables):
        assert found[f"opt_state/mu/{path}"].shape[0] == found[f"params/{path}"].shape[0] == 4
        assert not found[f"opt_state/mu/{path}"][3].any()
    assert found["params/task_embeddings/projection"].shape == (8, 4)


def test_more_tables_that_do_not_fit_are_refused(tmp_path):
    params = small(3)
    for wrong in ("dense/kernel", "nothing"):
        about = TaskConditioning(3, 4, more_tables=(wrong,))
        with pytest.raises(CheckpointError, match=f"must have 3 rows, but are .*{wrong}"):
            save_params(params, tmp_path / "x", conditioning=about)


def test_a_model_without_a_table_is_told_by_what_it_has():
    lora = TaskLoRA(3, (4, 6), 2, rngs=nnx.Rngs(0))
    about = TaskConditioning.of(lora)
    assert (about.num_tasks, about.features, about.table, about.more_tables) == (
        3,
        2,
        "down",
        ("up",),
    )
    assert TaskConditioning.of(nnx.Linear(2, 2, rngs=nnx.Rngs(0))) is None

    class Two(nnx.Module):
        def __init__(self):
            self.a, self.b = (TaskConditioner(n, 4, rngs=nnx.Rngs(0)) for n in (3, 5))

    with pytest.raises(CheckpointError, match="cannot say what these leaves mean"):
        TaskConditioning.of(Two())
