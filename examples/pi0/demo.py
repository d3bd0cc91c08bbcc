"""The command that compares a tiny π0.5 before and after task conditioning.

    python -m examples.pi0.demo            (or `make demo-pi0`)

runs `examples.comparison.run` with the model of this folder, on images, text and state. On two
cores it takes three minutes. All tasks have the same prompt, so that only the task id tells them
apart.
"""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import grain
from flax import nnx
from jaxtyping import Array, Float

from examples.comparison.experiment import Batch, Experiment
from examples.comparison.run import main
from examples.lerobot import LeRobotData
from examples.pi0.beside import save_transform
from examples.pi0.model import GemmaConfig, Pi0, Pi0Config, SiglipConfig
from examples.pi0.tokenizer import Tokenizer, train_tokenizer
from examples.pi0.transform import FrameTransform

PROMPT = "do the task"
HORIZON = 16


def make_config(data: LeRobotData, num_tasks: int) -> Pi0Config:
    """Returns a tiny π0.5 that fits the frames of a dataset."""
    frame = data[0]
    return tiny_config(
        action_dim=max(len(frame["state"]), frame["actions"].shape[-1]),
        max_token_len=len(frame["state"]) + 20,  # a token for each number, and some for the words
        num_tasks=num_tasks,
    )


def tiny_config(*, action_dim: int, max_token_len: int, num_tasks: int) -> Pi0Config:
    """Returns a π0.5 of about 200 000 parameters that sees one camera; see `Pi0Config`."""
    heads: dict[str, Any] = {"depth": 2, "num_heads": 4, "num_kv_heads": 1, "head_dim": 16}
    return Pi0Config(
        dtype="float32",
        action_dim=action_dim,
        action_horizon=HORIZON,
        max_token_len=max_token_len,
        image_size=28,
        vocab_size=1024,
        paligemma=GemmaConfig(width=64, mlp_dim=128, **heads),
        action_expert=GemmaConfig(width=64, mlp_dim=128, **heads),
        siglip=SiglipConfig(width=48, depth=1, mlp_dim=96, num_heads=4, patch_size=14),
        image_keys=("base_0_rgb",),
        num_tasks=num_tasks,
    )


def make_experiment(data: LeRobotData, out: Path) -> Experiment:
    """Returns the experiment on a dataset."""
    config = make_config(data, len(data.vocabulary))
    path = train_tokenizer(out / "tokenizer.model", [PROMPT])
    tokenizer = Tokenizer.for_config(config, path)
    cameras = dict(zip(config.image_keys, data.cameras, strict=False))
    transform = FrameTransform.for_dataset(data, config, tokenizer, cameras)
    save_transform(transform, out)
    frames = FramesInMemory(transform)

    def make_policy(num_tasks: int, rngs: nnx.Rngs) -> Pi0:
        return Pi0(make_config(data, num_tasks), rngs=rngs)

    return Experiment(
        make_policy,
        compute_loss,
        batch_size=32,
        base_steps=300,
        task_steps=900,
        learning_rate=3e-3,
        draws=16,
        make_loader=frames.loader,
    )


def compute_loss(model: Pi0, rng: Array, batch: Batch, task_id: Any) -> Float[Array, "b h"]:
    """Returns the loss of a batch under these task ids."""
    return model.compute_loss(rng, batch["observation"].replace(task_id=task_id), batch["actions"])


class FramesInMemory:
    """Transformed frames that are kept, because a demo reads each many times and video is slow."""

    def __init__(self, transform: FrameTransform):
        self._transform = transform
        self._frames: dict[LeRobotData, list[dict[str, Any]]] = {}

    def loader(
        self, data: LeRobotData, batch_size: int, num_epochs: int | None = None
    ) -> Iterator[Batch]:
        """Yields shuffled batches of `observation`, `actions`, `action_is_pad` and `task_id`."""
        if data not in self._frames:
            frames = (data[i] for i in range(len(data)))
            self._frames[data] = [self._transform({**frame, "task": PROMPT}) for frame in frames]
        source = grain.MapDataset.source(self._frames[data]).seed(0).shuffle().repeat(num_epochs)
        for batch in source.batch(batch_size, drop_remainder=True):
            yield {**batch, "task_id": batch["observation"].task_id}


if __name__ == "__main__":
    main(make_experiment, name="demo", horizon=HORIZON, cameras=None)
