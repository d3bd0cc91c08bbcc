"""Recipes are read, recorded, and refused with every problem."""

from __future__ import annotations

import json

import pytest

from taskcond.checkpoint import (
    CheckpointError,
    Recipe,
    Rule,
    Specialist,
    combine_checkpoints,
    diff_checkpoints,
    save_params,
)
from tests.support import as_untyped_code
from tests.support.specialists import (
    about,
    recipe,
    tree,
)


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"weights": (1.0, -1.0)}, "sum to zero"),
        ({"weights": (0.0, 0.0)}, "sum to zero"),
        ({"weights": (float("nan"), 1.0)}, "weight is nan, but must be a finite number"),
        ({"method": "average"}, r"'average', not one of \['mean'"),
        ({"method": "ties", "density": 1.5}, "density"),
        ({"rules": (Rule("(", "mean"),)}, "not a regular expression"),
        ({"rules": (Rule(".*", "mean", (1.0,)),)}, "1 weights .*2 specialists"),
        ({"rules": (Rule(".*", "mean", ()),)}, "0 weights .*2 specialists"),
        ({"method": "ties", "weights": (1.0, -1.0)}, "negative"),
        ({"vocabulary": ("pour", "pour")}, "'pour'. twice"),
    ],
)
def test_recipes_that_cannot_be_followed_are_refused(saved, kwargs, message):
    with pytest.raises(CheckpointError, match=message):
        recipe(saved, **kwargs)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"vocabulary": "abc"}, "vocabulary is 'abc', but must be a valid list"),
        ({"dtype": "float7"}, "dtype is 'float7', but must be 'float64', "),
        ({"vocabulary": 5}, "vocabulary is 5, but must be a valid list"),
        ({"seed": 1.5, "check_base": "no"}, "seed is 1.5, .*check_base is 'no', "),
    ],
)
def test_values_of_another_type_are_refused(saved, change, message):
    with as_untyped_code(), pytest.raises(CheckpointError, match=message):
        recipe(saved, **change)


@pytest.mark.parametrize("alpha", [float("nan"), 0.0, -1.0, "foo"])
def test_a_lora_alpha_must_be_one(alpha):
    with pytest.raises(
        CheckpointError,
        match="lora_alpha is .*, but must be a (finite|valid) number|greater than 0 or 'rank'",
    ):
        Recipe((Specialist("x", lora_alpha=alpha),))


def test_rules_that_match_nothing_are_refused(saved, tmp_path):
    rules = (Rule("dnse/.*", "mean"), Rule("dense/.*", "mean"))
    with pytest.raises(CheckpointError, match=r"match no leaf: \['dnse/\.\*'\]"):
        combine_checkpoints(recipe(saved, rules=rules), tmp_path / "out")


def test_differences_need_a_base(saved):
    with pytest.raises(CheckpointError, match="base"):
        Recipe((Specialist(saved["a"]),), method="task_arithmetic")


def test_a_recipe_in_toml_and_its_record(saved, tmp_path):
    (tmp_path / "recipe.toml").write_text(
        'base = "base"\nmethod = "ties"\nscale = 1\n'
        '[[specialist]]\npath = "a"\nweight = 2\n[[specialist]]\npath = "b"\n'
        '[[rule]]\nmatch = "norm/.*"\nmethod = "mean"\nweights = [1, 0]\n'
    )
    combine_checkpoints(tmp_path / "recipe.toml", tmp_path / "first")
    record = json.loads((tmp_path / "first" / "recipe.json").read_text())
    assert set(record) == {"recipe", "versions", "inputs"}
    assert set(record["inputs"]) == set(saved.values())
    combine_checkpoints(tmp_path / "first" / "recipe.json", tmp_path / "again")
    assert diff_checkpoints(tmp_path / "first", tmp_path / "again").identical
    save_params(tree(3), saved["a"], conditioning=about((9, 0, 0)), overwrite=True)
    with pytest.raises(CheckpointError, match=r"have changed"):
        combine_checkpoints(tmp_path / "first" / "recipe.json", tmp_path / "third")
    assert not (tmp_path / "third").exists()


def test_a_record_holds_wherever_it_is_read(saved, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    combine_checkpoints(Recipe((Specialist("a"), Specialist("b")), base="base"), "out")
    monkeypatch.chdir("/")
    combine_checkpoints(tmp_path / "out/recipe.json", tmp_path / "again")
    assert diff_checkpoints(tmp_path / "out", tmp_path / "again").identical
    record = json.loads((tmp_path / "out/recipe.json").read_text())
    del record["inputs"][saved["b"]]
    (tmp_path / "cut.json").write_text(json.dumps(record))
    with pytest.raises(CheckpointError, match="not in the record"):
        combine_checkpoints(tmp_path / "cut.json", tmp_path / "third")


def test_typing_errors_in_a_recipe_are_all_named(tmp_path):
    (tmp_path / "recipe.toml").write_text('metod = "mean"\n[[specialist]]\npth = "a"\n')
    message = r"0\.path is missing; .*0\.pth is not a known.*metod is not"
    with pytest.raises(CheckpointError, match=message):
        combine_checkpoints(tmp_path / "recipe.toml", tmp_path / "out")


@pytest.mark.parametrize("text", ["[", "specialist = 3", 'colour = "red"', "[[specialist]]\n"])
def test_what_is_no_recipe_is_refused(tmp_path, text):
    (tmp_path / "recipe.toml").write_text(text)
    with pytest.raises(CheckpointError):
        combine_checkpoints(tmp_path / "recipe.toml", tmp_path / "out")
