"""A merge on disk does what a merge in memory does."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskcond import MergeError, TaskVocabulary
from taskcond.checkpoint import (
    CheckpointError,
    TaskConditioning,
    change_tasks,
    inspect_checkpoint,
    load_params,
    merge_checkpoint,
    save_params,
)
from taskcond.merging.merge import merge_params
from tests.support.checkpoints import (
    TABLE,
    TASKS,
    TINY,
    assert_same,
    golden,
    load_ignoring_warnings,
    small,
    target_with_tasks,
    with_tasks,
)


@pytest.mark.parametrize("layout", ["released", "trained"])
@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_a_merge_on_disk_is_a_merge_in_memory(tmp_path, layout, format):
    target = target_with_tasks(50)
    expected, report = merge_params(target, load_params(TINY / layout), keep=TABLE)
    found = merge_checkpoint(TINY / layout, target, tmp_path / "x", keep=TABLE, format=format)
    assert str(found) == str(report)
    assert_same(load_ignoring_warnings(tmp_path / "x"), expected)


@pytest.mark.parametrize("new_rows", ["mean", "zeros", "target", 3])
def test_tables_are_remapped_as_in_memory(tmp_path, new_rows):
    target = {**golden("pi05_tasks_f32"), TABLE: np.ones((4, 16), np.float32)}
    arguments = {"task_rows": [6, -1, 0, 0], "new_rows": new_rows}
    expected, report = merge_params(target, golden("pi05_tasks_f32"), **arguments)
    found = merge_checkpoint(TASKS / "released", target, tmp_path / "x", **arguments)
    assert str(found) == str(report)
    assert_same(load_ignoring_warnings(tmp_path / "x"), expected)


def test_merges_rename_drop_and_cast(tmp_path):
    save_params(small(), tmp_path / "old")
    target = {"net": {"kernel": jax.ShapeDtypeStruct((6, 4), jnp.bfloat16)}}
    report = merge_checkpoint(
        tmp_path / "old", target, tmp_path / "new",
        rename={"dense/(.*)": r"net/\1"}, drop=["dense/bias", TABLE],
    )  # fmt: skip
    kernel = small()["dense"]["kernel"].astype(jnp.bfloat16)
    assert_same(load_params(tmp_path / "new"), {"net": {"kernel": kernel}})
    assert report.cast == {"net/kernel": ("float32", "bfloat16")}
    assert report.dropped == ["dense/bias", TABLE]


def test_a_refused_merge_lists_everything_and_writes_nothing(tmp_path):
    target = {**target_with_tasks(5), "extra": np.ones(2, np.float32)}
    target["time_mlp_in/bias"] = jax.ShapeDtypeStruct((3,), np.float32)
    with pytest.raises(MergeError) as raised:
        merge_checkpoint(TINY / "released", target, tmp_path / "x")
    assert set(raised.value.missing) == {TABLE, "extra"}
    assert raised.value.mismatched == ("time_mlp_in/bias",)
    assert list(tmp_path.iterdir()) == []


def test_kept_leaves_need_values(tmp_path):
    target = target_with_tasks(5)
    target[TABLE] = jax.ShapeDtypeStruct((5, 16), np.float32)
    with pytest.raises(CheckpointError, match=r"pass arrays.*new_rows='zeros'"):
        merge_checkpoint(TINY / "released", target, tmp_path / "x", keep=TABLE)
    merge_checkpoint(TINY / "released", target, tmp_path / "x", keep=TABLE, new_rows="zeros")
    assert not load_ignoring_warnings(tmp_path / "x")["task_embeddings"]["embedding"].any()


def test_a_dry_run_reports_and_writes_nothing(tmp_path):
    target = target_with_tasks(5)
    report = merge_checkpoint(TINY / "released", target, tmp_path / "x", keep=TABLE, dry_run=True)
    assert report.kept == [TABLE]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [0, 1], "vocabulary": TaskVocabulary(["a"])}, "1 tasks, rows 2"),
        ({"rows": []}, "without entries"),
        (
            {"rows": [1, 0], "vocabulary": TaskVocabulary(["a", "b"])},
            "of another task: {'b': 'a'",
        ),
    ],
)
def test_a_dry_run_refuses_what_the_real_one_does(tmp_path, change, message):
    about = TaskConditioning(3, 4, vocabulary=TaskVocabulary(["a", "b", "c"]))
    save_params(small(3), tmp_path / "x", conditioning=about)
    for dry_run in (True, False):
        with pytest.raises(CheckpointError, match=message):
            change_tasks(tmp_path / "x", tmp_path / "y", dry_run=dry_run, **change)
    assert not (tmp_path / "y").exists()


def test_a_table_must_be_there_to_have_a_scale(tmp_path):
    tree = {"dense": np.ones((2, 2), np.float32)}
    save_params(tree, tmp_path / "x")
    with pytest.raises(CheckpointError, match="scale, vocabulary given, but the model has no task"):
        merge_checkpoint(
            tmp_path / "x", tree, tmp_path / "y", scale=2.0, vocabulary=TaskVocabulary(["a"])
        )


def test_nan_and_inf_are_counted_and_warned_of(tmp_path):
    tree = small()
    tree["dense"]["kernel"][:2, 0] = np.nan, np.inf
    save_params(tree, tmp_path / "x")
    with pytest.warns(UserWarning, match=r"NaN or Inf in dense/kernel \(2\)"):
        report = merge_checkpoint(tmp_path / "x", tree, tmp_path / "y")
    assert report.nonfinite == {"dense/kernel": 2}
    assert inspect_checkpoint(tmp_path / "x").nonfinite == {"dense/kernel": 2}


def test_a_merge_carries_the_meaning_of_the_table(tmp_path):
    table = with_tasks(tmp_path / "x", scale=0.5, fusion="add")
    vocabulary = TaskVocabulary(["cut", "fold", "pour"])
    merge_checkpoint(
        tmp_path / "x", small(3), tmp_path / "y", vocabulary=vocabulary, new_rows="mean", scale=0.5
    )
    loaded = load_ignoring_warnings(tmp_path / "y")["task_embeddings"]["embedding"]
    np.testing.assert_array_equal(loaded[[0, 2]], table[[2, 0]])
    np.testing.assert_allclose(loaded[1], table.mean(0), rtol=1e-6)
    assert TaskConditioning.load(tmp_path / "y") == TaskConditioning(
        3, 4, 0.5, "add", vocabulary, (9, 0, 5)
    )
    with pytest.raises(CheckpointError, match=r"scale is 0\.5 in the checkpoint, 2\.0"):
        merge_checkpoint(tmp_path / "x", small(3), tmp_path / "z", scale=2.0)
    assert not (tmp_path / "z").exists()


def test_a_new_table_is_described(tmp_path):
    vocabulary = TaskVocabulary([*"abcde"])
    merge_checkpoint(
        TINY / "released", target_with_tasks(5), tmp_path / "x",
        keep=TABLE, vocabulary=vocabulary, scale=0.1, fusion="add",
    )  # fmt: skip
    about = TaskConditioning.load(tmp_path / "x")
    assert about == TaskConditioning(5, 16, 0.1, "add", vocabulary, (0,) * 5)


@pytest.mark.parametrize(
    ("dtype", "counts"),
    [("float16", 3), (jnp.float8_e4m3fn, 4), (jnp.bfloat16, 2)],
)
def test_what_overflows_in_a_cast_is_counted(tmp_path, dtype, counts):
    values = np.array([np.nan, np.inf, 1e5, 1e3, 1.0], np.float32)
    save_params({"w": values, "x": np.ones(2, np.float32)}, tmp_path / "x")
    shapes = {name: jax.ShapeDtypeStruct((n,), dtype) for name, n in (("w", 5), ("x", 2))}
    message = rf"NaN or Inf in w \({counts}, cast from float32 to {jnp.dtype(dtype)}\)"
    with pytest.warns(UserWarning, match=message):
        report = merge_checkpoint(tmp_path / "x", shapes, tmp_path / "y")
    assert report.nonfinite == {"w": counts}
    with pytest.warns(UserWarning, match=message):
        load_params(tmp_path / "x", like=shapes)
    assert inspect_checkpoint(tmp_path / "y").nonfinite == {"w": counts}
