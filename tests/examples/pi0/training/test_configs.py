"""Settings: what is wrong is listed at once, and JSON keeps them."""

import dataclasses
import json

import pytest

from examples.pi0.model import LoRAConfig
from examples.pi0.training.configs import (
    ActionGroup,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
    differences,
    from_json,
    to_json,
)
from examples.pi0.training.presets import presets


@pytest.mark.parametrize("name", presets())
def test_json_keeps_all_settings_of_a_preset(name):
    config = presets()[name][1]
    assert from_json(to_json(config)) == config


def test_all_problems_are_listed_at_once():
    with pytest.raises(ValueError, match="correct each of these") as caught:
        TrainConfig(
            batch_size=6,
            grad_accum=4,
            num_train_steps=10,
            optimizer=OptimizerConfig(warmup_steps=10),
            ema_decay=1.0,
            exp_name="a/b",
            loss=LossConfig(groups=(ActionGroup("arm", 0, 99, 1.0),)),
        )
    for part in ("grad_accum=4", "warmup_steps=10", "ema_decay", "exp_name", "arm has"):
        assert part in str(caught.value)


def test_low_rank_updates_of_nothing_frozen_are_refused():
    expert = dataclasses.replace(TrainConfig().model.paligemma, lora=LoRAConfig(4, 4.0))
    model = dataclasses.replace(TrainConfig().model, paligemma=expert)
    with pytest.raises(ValueError, match=r"model.paligemma has low-rank .*Pass --freeze lora"):
        TrainConfig(model=model)
    assert TrainConfig(model=model, freeze=("lora",)).freeze == ("lora",)


def test_unknown_settings_are_named_with_their_path():
    content = json.loads(to_json(TrainConfig()))
    content["optimizer"]["learning_rat"] = 1.0
    content["modl"] = {}
    with pytest.raises(ValueError, match=r"'modl', 'optimizer.learning_rat'"):
        from_json(json.dumps(content))


@pytest.mark.parametrize("text", ["", "[]", '{"batch_size": "many"}', '{"batch_size": 0}'])
def test_a_damaged_file_is_refused(text):
    with pytest.raises(ValueError, match=r"old.json holds no settings"):
        from_json(text, "old.json")


def test_differences_have_paths_and_both_values():
    old = TrainConfig()
    new = dataclasses.replace(old, seed=7, optimizer=OptimizerConfig(clip=2.0))
    assert differences(old, new) == {"optimizer.clip": (1.0, 2.0), "seed": (42, 7)}
