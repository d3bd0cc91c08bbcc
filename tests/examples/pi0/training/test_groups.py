"""What is frozen, by names and by patterns, in a model of the released size."""

import dataclasses

import pytest

from examples.pi0.config import GEMMA_2B, LoRAConfig, Pi0Config
from examples.pi0.training.blueprint import Blueprint
from examples.pi0.training.groups import count_parts, frozen_paths, has_frozen_prefix, part_of

LORA = dataclasses.replace(GEMMA_2B, lora=LoRAConfig(32, 32.0))


@pytest.fixture(scope="module")
def shapes():
    return Blueprint(Pi0Config(paligemma=LORA, num_tasks=50)).shapes


def trained(shapes, *freeze):
    frozen = frozen_paths(shapes, freeze)
    return count_parts({path: x for path, x in shapes.items() if path not in frozen})


def test_nothing_is_frozen_by_default(shapes):
    assert frozen_paths(shapes, ()) == frozenset()


def test_the_recipe_trains_low_rank_updates_vision_expert_and_projections(shapes):
    left = trained(shapes, "lora")
    assert "language" not in left
    assert {"vision", "low-rank updates", "action expert", "projections", "task table"} == set(left)


def test_the_parts_of_a_vision_language_model_are_frozen_by_name(shapes):
    assert {"vision", "language", "low-rank updates"}.isdisjoint(trained(shapes, "vlm"))
    assert "vision" not in trained(shapes, "vision")
    assert "language" not in trained(shapes, "language")
    assert trained(shapes, "all_but_table") == {"task table": 50 * 1024}


def test_a_prefix_is_frozen_only_if_all_of_it_is(shapes):
    for freeze, expected in [(("vlm",), True), (("lora",), False), (("vision",), False)]:
        assert has_frozen_prefix(shapes, frozen_paths(shapes, freeze)) == expected
    assert has_frozen_prefix(shapes, frozen_paths(shapes, ("vision", "language")))


def test_patterns_match_whole_paths(shapes):
    assert frozen_paths(shapes, ("time_mlp_in/.*",)) == {"time_mlp_in/kernel", "time_mlp_in/bias"}


@pytest.mark.parametrize(
    ("freeze", "message"),
    [
        (("visoin",), "Did you mean vision"),
        (("time_mlp",), "matches no parameter"),
        (("(",), "not a regular expression"),
        ((".*",), "nothing to train"),
        (("all_but_table", "task_embeddings/.*"), "nothing to train"),
    ],
)
def test_what_freezes_nothing_or_everything_is_refused(shapes, freeze, message):
    with pytest.raises(ValueError, match=message):
        frozen_paths(shapes, freeze)


def test_low_rank_updates_are_missing_without_lora():
    shapes = Blueprint(Pi0Config()).shapes
    assert "low-rank updates" not in {part_of(path) for path in shapes}
