"""Each task's row comes from its owner."""

from __future__ import annotations

import numpy as np
import pytest

from taskcond.checkpoint import (
    Checkpoint,
    CheckpointError,
    Recipe,
    Specialist,
    TaskConditioning,
    combine_checkpoints,
    load_params,
    save_params,
)
from taskcond.trees import flatten
from tests.support.specialists import (
    KERNEL,
    NAMES,
    TABLE,
    about,
    recipe,
    tree,
)


def test_each_row_is_its_owners_exactly(saved, tmp_path):
    report = combine_checkpoints(recipe(saved), tmp_path / "out")
    assert report.owners == {"pour": saved["a"], "wipe": saved["b"], "cut": saved["base"]}
    table = flatten(load_params(tmp_path / "out"))[TABLE]
    for row, seed in enumerate((1, 2, None)):
        assert table[row].tobytes() == flatten(tree(seed))[TABLE][row].tobytes()
    conditioning = Checkpoint(tmp_path / "out").conditioning
    assert conditioning is not None
    assert conditioning.frames_seen == (9, 7, 0)
    assert conditioning.vocabulary == NAMES


def test_a_recipe_says_whose_tasks_are_whose(saved, tmp_path):
    specialists = (
        Specialist(saved["a"], tasks=("cut", 0)),
        Specialist(saved["b"], weight=0.0, tasks=("wipe",)),
    )
    combine_checkpoints(Recipe(specialists, vocabulary=("wipe", "cut")), tmp_path / "out")
    result = flatten(load_params(tmp_path / "out"))
    a, b = flatten(tree(1)), flatten(tree(2))
    np.testing.assert_array_equal(result[TABLE], np.stack([b[TABLE][1], a[TABLE][2]]))
    # A weight of zero gives rows and nothing else, to the bit.
    assert result[KERNEL].tobytes() == a[KERNEL].tobytes()


def test_two_owners_of_one_task_are_refused_by_name(saved, tmp_path):
    specialists = tuple(Specialist(saved[name], tasks=("pour", "wipe")) for name in "ab")
    with pytest.raises(CheckpointError, match=r"claim the same tasks: .*'pour'.*'wipe'"):
        combine_checkpoints(Recipe(specialists), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_tasks_without_owner_and_unknown_tasks_are_refused(saved, tmp_path):
    specialists = (Specialist(saved["a"]), Specialist(saved["b"]))
    with pytest.raises(CheckpointError, match=r"nobody claims \['cut'\]"):
        combine_checkpoints(Recipe(specialists), tmp_path / "out")
    unknown = Recipe((Specialist(saved["a"], tasks=("fly", 3)),))
    message = r"not in the table of their specialist: .* has no 'fly', '3'; it has"
    with pytest.raises(CheckpointError, match=message):
        combine_checkpoints(unknown, tmp_path / "out")


@pytest.mark.parametrize(
    ("change", "message"),
    [({"scale": 2.0}, "scale: .*1.0.*2.0"), ({"fusion": "film"}, "fusion: .*'add'.*'film'")],
)
def test_tables_of_other_meaning_are_refused(saved, tmp_path, change, message):
    known = {"scale": 1.0, "fusion": "add"}
    save_params(tree(1), saved["a"], conditioning=about((9, 0, 0), **known), overwrite=True)
    save_params(
        tree(2), saved["b"], conditioning=about((0, 7, 0), **{**known, **change}), overwrite=True
    )
    with pytest.raises(CheckpointError, match=message):
        combine_checkpoints(recipe(saved), tmp_path / "out")


def test_tables_of_other_width_are_refused(saved, tmp_path):
    wide = tree(2)
    wide["task_embeddings"]["embedding"] = np.ones((3, 5), np.float32)
    conditioning = TaskConditioning(3, 5, vocabulary=NAMES)
    save_params(wide, saved["b"], conditioning=conditioning, overwrite=True)
    with pytest.raises(CheckpointError, match=r"width: .*4.*5"):
        combine_checkpoints(recipe(saved), tmp_path / "out")


def test_a_recorded_path_says_which_leaf_is_the_table(saved, tmp_path):
    for name, seed, frames in (("a", 1, (9, 0, 9)), ("b", 2, (0, 7, 0))):
        moved = tree(seed)
        moved["cond"] = moved.pop("task_embeddings")
        save_params(
            moved,
            saved[name],
            conditioning=about(frames, table="cond/embedding"),
            overwrite=True,
        )
    both = (Specialist(saved["a"]), Specialist(saved["b"]))
    combine_checkpoints(Recipe(both), tmp_path / "out")
    assert Checkpoint(tmp_path / "out").table == "cond/embedding"
    a, b = (flatten(tree(seed))[TABLE] for seed in (1, 2))
    rows = flatten(load_params(tmp_path / "out"))["cond/embedding"]
    np.testing.assert_array_equal(rows, np.stack([a[0], b[1], a[2]]))


def test_all_that_a_task_has_of_its_own_comes_from_its_owner(tmp_path):
    saved = {}
    for seed, name in enumerate("ab"):
        params = {**tree(seed + 1), "lora": {"up": np.full((3, 2, 5), seed, np.float32)}}
        conditioning = about((9, 0, 0) if name == "a" else (0, 9, 9), more_tables=("lora/up",))
        save_params(params, tmp_path / name, conditioning=conditioning)
        saved[name] = tmp_path / name
    recipe = Recipe(tuple(Specialist(path) for path in saved.values()))
    combine_checkpoints(recipe, tmp_path / "out")
    found = flatten(load_params(tmp_path / "out"))
    assert found["lora/up"][:, 0, 0].tolist() == [0, 1, 1]
    rows = [flatten(tree(seed))[TABLE][task] for task, seed in enumerate((1, 2, 2))]
    np.testing.assert_array_equal(found[TABLE], rows)
    assert TaskConditioning.load(tmp_path / "out").more_tables == ("lora/up",)
