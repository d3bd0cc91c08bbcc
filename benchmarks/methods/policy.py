"""A policy that reads a text and a task id, with each method of telling tasks apart."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import zlib
from collections.abc import Sequence
from typing import Literal

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from examples.metaworld.policy import (
    EULER_STEPS,
    HORIZON,
    WIDTH,
    AdaptiveBlock,
    normalize,
    sincos,
)
from examples.metaworld.world import ACTION_SIZE, STATE_SIZE
from taskcond import TaskConditioner, TaskLinear, TaskLoRA, TaskTokens, drop_ids, guide

Batch = dict[str, Array]

TEXT_WIDTH = 512
DROPOUT = 0.1
_HEADS = 4


@dataclasses.dataclass(frozen=True)
class Method:
    """A way to tell tasks apart, beside their texts.

    Attributes:
        name: The name in the table.
        fusion: The fusion of a table, or `None` for no table.
        scale: The factor on its rows.
        tokens: The number of tokens of a task.
        rank: The rank of a task's updates of all layers of the blocks; 0 means none.
        heads: Whether each task has a head of its own.
        prefix: Whether the text begins with the number of the task.
        learning_rate: The learning rate on the fifty tasks, found by `benchmarks.methods.tune`.
        later_rate: The learning rate of what later tasks have of their own.
    """

    name: str
    fusion: Literal["add", "film", "gate", "concat"] | None = None
    scale: float = 1.0
    tokens: int = 0
    rank: int = 0
    heads: bool = False
    prefix: bool = False
    learning_rate: float = 4e-3
    later_rate: float = 1e-2

    @property
    def folder(self) -> str:
        """Returns the name of its folder."""
        return self.name.replace(" ", "_")

    @property
    def reads_ids(self) -> bool:
        """Returns whether there are parameters for tasks."""
        return bool(self.fusion or self.tokens or self.rank or self.heads)


ADD = Method("add", "add")
METHODS = (
    Method("text alone"),
    Method("text prefix", prefix=True),
    ADD,
    Method("add, scale 0.25", "add", scale=0.25),
    Method("add, scale 2", "add", scale=2.0),
    Method("add, scale 4", "add", scale=4.0),
    Method("film", "film"),
    Method("gate", "gate", learning_rate=8e-3),
    Method("concat", "concat"),
    Method("tokens", tokens=2, learning_rate=8e-3),
    Method("LoRA", rank=8, learning_rate=2e-3),
    Method("heads", heads=True),
)
WITHOUT_SCALES = tuple(method for method in METHODS if "scale" not in method.name)
"""The methods, with `add` at one scale alone."""


class MethodPolicy(nnx.Module):
    """Predicts a velocity as `examples.metaworld.policy.Policy` does, and also reads a text.

    The text is a token that every block reads by attention; with `TaskTokens`, those of the task
    stand in front of it.

    Args:
        method: The method.
        num_tasks: The number of tasks.
        rngs: Its stream `params` draws the weights.
    """

    def __init__(self, method: Method, num_tasks: int, rngs: nnx.Rngs):
        self.method = method
        # The weights that all methods share are drawn first, so that they start alike.
        self.time_in = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.time_out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.text_in = nnx.Linear(TEXT_WIDTH, WIDTH, rngs=rngs)
        self.state_in = nnx.Linear(STATE_SIZE, WIDTH, rngs=rngs)
        self.action_in = nnx.Linear(HORIZON * ACTION_SIZE, WIDTH, rngs=rngs)
        self.block_0, self.block_1, self.block_2 = (ReadingBlock(rngs) for _ in range(3))
        self.action_out = nnx.Linear(WIDTH, HORIZON * ACTION_SIZE, rngs=rngs)
        self.task_embeddings = TaskConditioner(
            num_tasks if method.fusion else 0,
            WIDTH,
            scale=method.scale,
            fusion=method.fusion or "add",
            rngs=rngs,
        )
        self.task_tokens = TaskTokens(
            num_tasks if method.tokens else 0, WIDTH, max(method.tokens, 1), rngs=rngs
        )
        updated = num_tasks if method.rank else 0
        self.updates_0, self.updates_1, self.updates_2 = (
            BlockUpdates(block, updated, method.rank, rngs)
            for block in (self.block_0, self.block_1, self.block_2)
        )
        self.task_heads = TaskLinear(
            num_tasks if method.heads else 0, WIDTH, HORIZON * ACTION_SIZE, rngs=rngs
        )

    def velocity(
        self,
        task_id: Int[Array, " b"],
        text: Float[Array, "b t"],
        state: Float[Array, "b s"],
        noisy: Float[Array, "b h a"],
        time: Float[Array, " b"],
    ) -> Float[Array, "b h a"]:
        """Returns the velocity at `noisy` and `time`."""
        time_emb = self.task_embeddings(sincos(time), task_id, deterministic=True)
        condition = nnx.swish(self.time_out(nnx.swish(self.time_in(time_emb))))
        context, mask = self.task_tokens(self.text_in(text)[:, None], None, task_id)
        x = self.state_in(normalize(state)) + self.action_in(noisy.reshape(len(noisy), -1))
        for block, updates in (
            (self.block_0, self.updates_0),
            (self.block_1, self.updates_1),
            (self.block_2, self.updates_2),
        ):
            x = block(x, condition, context, mask, updates, task_id)
        return self.task_heads(x, task_id, self.action_out(x)).reshape(noisy.shape)

    def frame_losses(
        self, key: Array, batch: Batch, task_id: Int[Array, " b"], texts: Float[Array, "n t"]
    ) -> Float[Array, " b"]:
        """Returns the flow-matching loss of each frame; the text is that of its own task."""
        noise_key, time_key = jax.random.split(key)
        actions = batch["actions"]
        noise = jax.random.normal(noise_key, actions.shape)
        time = jax.random.beta(time_key, 1.5, 1, (len(actions),)) * 0.999 + 0.001
        t = time[:, None, None]
        text = texts[batch["task_id"]]
        found = self.velocity(task_id, text, batch["state"], t * noise + (1 - t) * actions, time)
        errors = jnp.square(found - (noise - actions)).mean(-1)
        counts = ~batch["action_is_pad"]
        return jnp.sum(errors * counts, axis=-1) / jnp.sum(counts, axis=-1)

    def loss(self, key: Array, batch: Batch, texts: Float[Array, "n t"]) -> Float[Array, ""]:
        """Returns the loss of a batch for training, in which some ids are dropped."""
        drop_key, key = jax.random.split(key)
        ids = drop_ids(drop_key, batch["task_id"], DROPOUT)
        return self.frame_losses(key, batch, ids, texts).mean()


class ReadingBlock(nnx.Module):
    """An adaptive block that first reads the context by attention."""

    def __init__(self, rngs: nnx.Rngs):
        self.query = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.key_value = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.read = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.mlp = AdaptiveBlock(rngs)

    def __call__(
        self,
        x: Float[Array, "b d"],
        condition: Float[Array, "b d"],
        context: Float[Array, "b n d"],
        mask: Array,
        updates: BlockUpdates,
        task_id: Int[Array, " b"],
    ) -> Float[Array, "b d"]:
        """Returns `[b, d]`."""
        key, value = jnp.split(self.key_value(context), 2, axis=-1)
        query = updates.query(x, task_id, self.query(x))
        q, k, v = (y.reshape(*y.shape[:-1], _HEADS, -1) for y in (query, key, value))
        logits = jnp.einsum("bhd,bnhd->bhn", q, k) / q.shape[-1] ** 0.5
        weights = jax.nn.softmax(jnp.where(mask[:, None], logits, -jnp.inf))
        found = jnp.einsum("bhn,bnhd->bhd", weights, v).reshape(x.shape)
        x = x + updates.read(found, task_id, self.read(found))
        # The block's own layers, with the task's update beside each of them.
        scale, shift, gate = jnp.split(self.mlp.modulation(condition), 3, axis=-1)
        y = self.mlp.norm(x) * (1 + scale) + shift
        hidden = nnx.swish(updates.hidden(y, task_id, self.mlp.hidden(y)))
        return x + gate * updates.out(hidden, task_id, self.mlp.out(hidden))


class BlockUpdates(nnx.Module):
    """The updates of low rank that each task has of the layers of one block."""

    def __init__(self, block: ReadingBlock, num_tasks: int, rank: int, rngs: nnx.Rngs):
        def around(layer: nnx.Linear) -> TaskLoRA:
            return TaskLoRA.around(layer, num_tasks, rank or 1, rngs=rngs)

        self.query, self.read = around(block.query), around(block.read)
        self.hidden, self.out = around(block.mlp.hidden), around(block.mlp.out)


@functools.partial(nnx.jit, static_argnames="weight")
def sample(
    policy: MethodPolicy,
    key: Array,
    state: Float[Array, "b s"],
    text: Float[Array, "b t"],
    task_id: Int[Array, " b"],
    weight: float = 1.0,
) -> Float[Array, "b h a"]:
    """Returns a chunk of actions for each state, by Euler steps, guided with a weight."""
    velocity = guide(policy.velocity, weight, dropout_rate=DROPOUT)
    x = jax.random.normal(key, (len(state), HORIZON, ACTION_SIZE))
    for i in range(EULER_STEPS):
        time = jnp.full(len(state), 1 - i / EULER_STEPS)
        x -= velocity(task_id, text, state, x, time) / EULER_STEPS
    return x


def embed_texts(texts: Sequence[str]) -> Float[np.ndarray, "n t"]:
    """Returns vectors of texts: hashed words and pairs of words, of length 1.

    It stands for a text encoder: equal texts have equal vectors, and texts with common words have
    similar ones.
    """
    vectors = np.zeros((len(texts), TEXT_WIDTH), np.float32)
    for vector, text in zip(vectors, texts, strict=True):
        words = text.split()
        for feature in (*words, *map(" ".join, itertools.pairwise(words))):
            hashed = zlib.crc32(feature.encode())
            vector[hashed % TEXT_WIDTH] += 1 if hashed >> 31 else -1
        vector /= max(np.linalg.norm(vector), 1e-6)
    return vectors
