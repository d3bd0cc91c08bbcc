"""A tiny π0.5 in Meta-World's scene, trained on the demo's dataset and rolled out as any policy.

    python -m examples.pi0.metaworld runs/metaworld/dataset runs/metaworld/pi0
    python -m examples.metaworld.rollout runs/metaworld/pi0 \
        --actor examples.pi0.metaworld:load_actor

It reads its state in the prompt, as π0.5 does, and sees no image. The prompt is the same for all
tasks, so that nothing but the id tells them apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated, Any

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Float

from examples.lerobot import LeRobotData
from examples.metaworld.tasks import TEN, vocabulary_of
from examples.pi0.beside import load_transform, save_transform
from examples.pi0.model import GemmaConfig, Observation, Pi0, Pi0Config, SiglipConfig
from examples.pi0.tokenizer import Tokenizer, train_tokenizer
from examples.pi0.transform import FrameTransform
from examples.training import fit
from taskcond import NULL_TASK, TaskVocabulary
from taskcond.checkpoint import TaskConditioning, load_into, open_checkpoint, save_params

PROMPT = "do the task"
_HEADS: dict[str, Any] = {"depth": 3, "num_heads": 4, "num_kv_heads": 1, "head_dim": 16}
CONFIG = Pi0Config(
    dtype="float32",
    action_dim=7,  # the state's size; actions have four numbers
    action_horizon=8,
    max_token_len=22,
    image_size=14,
    vocab_size=1024,
    paligemma=GemmaConfig(width=64, mlp_dim=128, **_HEADS),
    action_expert=GemmaConfig(width=64, mlp_dim=128, **_HEADS),
    siglip=SiglipConfig(width=16, depth=1, mlp_dim=16, num_heads=1, patch_size=14),
    image_keys=("base_0_rgb",),  # black, and masked
    num_tasks=len(TEN),
    task_dropout_rate=0.1,
)
_TOKENIZER, _PARAMS = "tokenizer.model", "params"

Batch = dict[str, Any]


@dataclasses.dataclass
class Args:
    """Trains a tiny π0.5 on demonstrations of the ten tasks.

    Attributes:
        dataset: A dataset of the ten tasks, as `make demo` leaves it.
        out: The folder for the parameters, the tokenizer and what belongs to them.
        steps: Training steps.
        batch_size: Frames of a step.
        learning_rate: The peak of the learning rate.
        seed: The seed of the parameters, the batches and the noise.
    """

    dataset: Annotated[Path, tyro.conf.Positional]
    out: Annotated[Path, tyro.conf.Positional]
    steps: int = 20_000
    batch_size: int = 64
    learning_rate: float = 2e-3
    seed: int = 0


def main(args: Args) -> None:
    """Trains and saves the policy."""
    data = LeRobotData(args.dataset, horizon=CONFIG.action_horizon, vocabulary=vocabulary_of(TEN))
    tokenizer = Tokenizer.for_config(CONFIG, train_tokenizer(args.out / _TOKENIZER, [PROMPT]))
    transform = FrameTransform.for_dataset(data, CONFIG, tokenizer, {})
    frames = [transform({**data[i], "task": PROMPT}) for i in range(len(data))]
    model = Pi0(CONFIG, rngs=nnx.Rngs(args.seed))
    fit(
        model,
        _loss,
        _batches(frames, args.batch_size, args.seed),
        steps=args.steps,
        learning_rate=args.learning_rate,
        seed=args.seed,
        label="a tiny π0.5",
    )
    save_transform(transform, args.out)
    table = model.task_embeddings
    about = TaskConditioning(
        table.num_tasks,
        CONFIG.action_expert.width,
        scale=table.scale,
        fusion=table.fusion,
        vocabulary=data.vocabulary,
        frames_seen=tuple(data.task_frames.get(name, 0) for name in data.vocabulary),
    )
    params = nnx.state(model, nnx.Param)
    save_params(params, args.out / _PARAMS, conditioning=about, overwrite=True)


def _loss(model: Pi0, key: Array, batch: Batch) -> Float[Array, ""]:
    """Returns the loss of a batch, without the padding at ends of episodes."""
    losses = model.compute_loss(key, batch["observation"], batch["actions"], train=True)
    counts = ~batch["action_is_pad"]
    return jnp.sum(losses * counts) / jnp.sum(counts)


def _batches(frames: list[Batch], batch_size: int, seed: int) -> Iterator[Batch]:
    rng = np.random.default_rng(seed)
    stacked = jax.tree.map(lambda *values: np.stack(values), *frames)
    while True:
        rows = rng.integers(len(frames), size=batch_size)
        yield jax.tree.map(lambda values, rows=rows: jnp.asarray(values[rows]), stacked)


@dataclasses.dataclass(frozen=True)
class Pi0Actor:
    """A π0.5 that is told tasks by name; see `examples.metaworld.episodes.Actor`.

    Attributes:
        model: The policy.
        transform: Makes its inputs, and the robot's actions.
        vocabulary: The names of the table's rows.
    """

    model: Pi0
    transform: FrameTransform
    vocabulary: TaskVocabulary

    def act(
        self, observation: Float[np.ndarray, "7"], task: str | None, seed: int
    ) -> Float[np.ndarray, "h 4"]:
        """Returns a chunk of actions."""
        task_id = NULL_TASK if task is None else self.vocabulary.id(task)
        frame = {"state": observation, "task": PROMPT, "task_id": task_id}
        batch = jax.tree.map(lambda value: jnp.asarray(value)[None], self.transform.observe(frame))
        actions = _sample(self.model, jax.random.key(seed), batch)
        return self.transform.unnormalize_actions(actions)[0]


@nnx.jit
def _sample(model: Pi0, key: Array, observation: Observation) -> Float[Array, "b h d"]:
    return model.sample_actions(key, observation)


def load_actor(folder: Path) -> Pi0Actor:
    """Loads what `main` saved."""
    transform = load_transform(folder, folder / _TOKENIZER)
    about = open_checkpoint(folder / _PARAMS).conditioning
    assert about is not None
    assert about.vocabulary is not None
    model = Pi0(transform.config, rngs=nnx.Rngs(0))
    load_into(model, folder / _PARAMS)
    return Pi0Actor(model, transform, about.vocabulary)


if __name__ == "__main__":
    main(tyro.cli(Args))
