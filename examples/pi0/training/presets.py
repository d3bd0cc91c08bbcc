"""The presets: settings that a run begins with."""

from __future__ import annotations

import dataclasses

from examples.pi0.config import GEMMA_2B, GemmaConfig, LoRAConfig, Pi0Config, SiglipConfig
from examples.pi0.training import b1k
from examples.pi0.training.configs import (
    DataConfig,
    LossConfig,
    OptimizerConfig,
    TrainConfig,
    WeightLoaderConfig,
)

_RELEASED = "gs://openpi-assets/checkpoints"


def presets() -> dict[str, tuple[str, TrainConfig]]:
    """Returns `{name: (what it is for, settings)}`."""
    found = {
        "pi05_b1k_22_TASKS_oversample": (
            "Stage 1 on 22 tasks of BEHAVIOR-1K with a table of 50 tasks. The guide's peak of the "
            "learning rate is the default; the code that it describes has 5e-6.",
            _b1k_foundation(),
        ),
        "pi05_b1k_single_task": (
            "Stage 2 on one task of BEHAVIOR-1K, from the weights of stage 1.",
            _b1k_single(),
        ),
        "pi05_lerobot": ("Full fine-tuning of π0.5 on any LeRobot dataset.", _lerobot(pi05=True)),
        "pi0_lerobot": ("Full fine-tuning of π0 on any LeRobot dataset.", _lerobot(pi05=False)),
        "pi05_lora": (
            "π0.5 on any LeRobot dataset, with low-rank updates.",
            _lora(),
        ),
        "metaworld": (
            "A small π0.5 that learns the ten tasks of examples.metaworld from pictures, on a CPU.",
            _metaworld(),
        ),
        "debug": ("A minute on a CPU: a tiny π0.5 on a dataset that it generates.", _debug()),
    }
    return {
        name: (text, dataclasses.replace(config, preset=name))
        for name, (text, config) in found.items()
    }


def _b1k_foundation() -> TrainConfig:
    language = dataclasses.replace(GEMMA_2B, lora=LoRAConfig(rank=32, alpha=32.0))
    return TrainConfig(
        model=Pi0Config(
            paligemma=language, action_horizon=128, num_tasks=50, task_embedding_scale=1.5
        ),
        data=DataConfig(
            cameras=dict(b1k.CAMERAS),
            layout="b1k",
            tasks=b1k.RECIPE_TASKS,
            boundary_factor=2.0,
            boundary_window=30,
            skill_prompt_rate=0.3,
            task_prefix=True,
            state_dropout=0.1,
            augmentation="b1k",
            val_fraction=0.05,
        ),
        weight_loader=WeightLoaderConfig(f"{_RELEASED}/pi05_base/params"),
        optimizer=OptimizerConfig(learning_rate=5e-5, warmup_steps=5000),
        loss=LossConfig(mask_padding=False, groups=b1k.ACTION_GROUPS, by_motion=True),
        freeze=("lora",),
        batch_size=256,
        num_train_steps=100_000,
        val_log_interval=3000,
    )


def _b1k_single() -> TrainConfig:
    stage_1 = _b1k_foundation()
    return dataclasses.replace(
        stage_1,
        data=dataclasses.replace(
            stage_1.data,
            tasks=(b1k.TASKS[1],),
            boundary_factor=4.0,
            boundary_window=50,
            skill_prompt_rate=0.0,
            state_dropout=0.0,
        ),
        model=dataclasses.replace(stage_1.model, action_horizon=256),
        weight_loader=WeightLoaderConfig(None),
        optimizer=OptimizerConfig(learning_rate=5e-6, warmup_steps=500),
        batch_size=128,
        num_train_steps=10_000,
        val_log_interval=1000,
    )


def _lerobot(*, pi05: bool) -> TrainConfig:
    name = "pi05_base" if pi05 else "pi0_base"
    return TrainConfig(
        model=Pi0Config(pi05=pi05),
        weight_loader=WeightLoaderConfig(f"{_RELEASED}/{name}/params"),
        ema_decay=0.99,
    )


def _lora() -> TrainConfig:
    config = _lerobot(pi05=True)
    model = config.model
    return dataclasses.replace(
        config,
        model=dataclasses.replace(
            model,
            paligemma=dataclasses.replace(model.paligemma, lora=LoRAConfig(16, 16.0)),
            action_expert=dataclasses.replace(model.action_expert, lora=LoRAConfig(32, 32.0)),
        ),
        freeze=("lora", "action_lora"),
        ema_decay=None,
    )


def _metaworld() -> TrainConfig:
    expert = GemmaConfig(width=64, depth=4, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16)
    return TrainConfig(
        model=Pi0Config.small(
            action_dim=4,
            action_horizon=8,
            max_token_len=20,
            image_size=64,
            vocab_size=1024,
            paligemma=expert,
            action_expert=expert,
            siglip=SiglipConfig(width=96, depth=2, mlp_dim=192, num_heads=4, patch_size=16),
            image_keys=("base_0_rgb",),
            task_dropout_rate=0.1,
        ),
        data=DataConfig(
            root=("runs/metaworld/pictures",),
            prompt="do the task",
            augmentation="none",
            val_fraction=0.05,
            num_workers=1,
        ),
        optimizer=OptimizerConfig(learning_rate=1e-3),
        ema_decay=0.999,
        batch_size=64,
        num_train_steps=8000,
        val_log_interval=2000,
        save_interval=2000,
    )


def _debug() -> TrainConfig:
    expert = GemmaConfig(width=64, depth=2, mlp_dim=128, num_heads=4, num_kv_heads=1, head_dim=16)
    return TrainConfig(
        model=Pi0Config.small(
            action_dim=8,
            action_horizon=8,
            max_token_len=40,
            image_size=28,
            vocab_size=1024,
            paligemma=expert,
            action_expert=expert,
            siglip=SiglipConfig(width=48, depth=1, mlp_dim=96, num_heads=4, patch_size=14),
            image_keys=("base_0_rgb",),
        ),
        data=DataConfig(root=("generated",), prompt="do the task", num_workers=0),
        optimizer=OptimizerConfig(learning_rate=3e-3),
        ema_decay=0.99,
        num_train_steps=600,
        log_interval=20,
        val_log_interval=200,
        val_num_batches=4,
        save_interval=200,
    )
