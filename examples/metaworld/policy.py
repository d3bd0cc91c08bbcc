"""The policy: a flow-matching MLP with adaptive norms, which the task reaches through the time."""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float, Int

from examples.metaworld.world import ACTION_SIZE, STATE_SIZE
from taskcond import TaskConditioner, TaskParam, functional

HORIZON = 16
WIDTH = 128
_BLOCKS = 3
_RANK = 8  # of the adapters that tasks may have of their own
EULER_STEPS = 10
# Centre and half range of hand (3), gripper (1) and puck (3), so that the inputs are near [-1, 1].
_CENTRE = np.array([0.0, 0.75, 0.2, 0.5, 0.0, 0.75, 0.15], np.float32)
_RANGE = np.array([0.3, 0.2, 0.15, 0.5, 0.3, 0.2, 0.15], np.float32)


class OwnOfBlock(NamedTuple):
    """The parameters of tasks in one block: a modulation, and an adapter of low rank."""

    modulation: Float[Array, "b three_d"]
    down: Float[Array, "b d r"]
    up: Float[Array, "b r d"]


class AdaptiveBlock(nnx.Module):
    """A residual MLP; a condition scales and shifts its norm and gates its output."""

    def __init__(self, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros  # the gate starts at 0, so that the block is the identity
        self.norm = nnx.LayerNorm(WIDTH, use_scale=False, use_bias=False, rngs=rngs)
        self.modulation = nnx.Linear(WIDTH, 3 * WIDTH, kernel_init=zeros, rngs=rngs)
        self.hidden = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b d"],
        condition: Float[Array, "b d"],
        own: OwnOfBlock | None = None,
    ) -> Float[Array, "b d"]:
        """Returns `[b, d]`; `own` is what the task has of its own in this block."""
        modulation = self.modulation(condition)
        if own is not None:
            modulation += own.modulation
        scale, shift, gate = jnp.split(modulation, 3, axis=-1)
        x_in = self.norm(x) * (1 + scale) + shift
        out = self.out(nnx.swish(self.hidden(x_in)))
        if own is not None:
            out += jnp.einsum("br,brd->bd", jnp.einsum("bd,bdr->br", x_in, own.down), own.up)
        return x + gate * out


class OwnOfTasks(nnx.Module):
    """Parameters that each task has of its own in every block: a small low-rank adapter.

    They start such that they change nothing. A task that is added trains its rows alone, so that
    the other tasks stay as they are, bit for bit.
    """

    def __init__(self, num_tasks: int, rngs: nnx.Rngs):
        self.modulation = TaskParam(jnp.zeros((num_tasks, _BLOCKS * 3 * WIDTH)))
        random = jax.random.normal(rngs.params(), (num_tasks, _BLOCKS * WIDTH * _RANK))
        self.down = TaskParam(random / WIDTH**0.5)
        self.up = TaskParam(jnp.zeros((num_tasks, _BLOCKS * _RANK * WIDTH)))

    def __call__(self, task_id: Int[Array, " b"]) -> list[OwnOfBlock]:
        """Returns the rows of tasks, block by block; zeros for `NULL_TASK`."""
        rows = (len(task_id), _BLOCKS)
        modulation = functional.embed(self.modulation[...], task_id).reshape(*rows, -1)
        down = functional.embed(self.down[...], task_id).reshape(*rows, WIDTH, _RANK)
        up = functional.embed(self.up[...], task_id).reshape(*rows, _RANK, WIDTH)
        return [OwnOfBlock(modulation[:, i], down[:, i], up[:, i]) for i in range(_BLOCKS)]


class Policy(nnx.Module):
    """Predicts the velocity from actions (time 0) to noise (time 1), given what the robot sees.

    Args:
        num_tasks: The number of tasks; 0 makes a policy without conditioning.
        rngs: Its stream `params` draws the weights.
        own: Whether each task also has parameters of its own in every block. With them a task can
            be added without touching the others.
    """

    def __init__(self, num_tasks: int, rngs: nnx.Rngs, *, own: bool = False):
        self.task_embeddings = TaskConditioner(
            num_tasks,
            WIDTH,
            dropout_rate=0.1,
            embedding_init=nnx.initializers.zeros,
            rngs=rngs,
        )
        self.own = OwnOfTasks(num_tasks, rngs) if own else None
        self.time_in = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.time_out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.state_in = nnx.Linear(STATE_SIZE, WIDTH, rngs=rngs)
        self.action_in = nnx.Linear(HORIZON * ACTION_SIZE, WIDTH, rngs=rngs)
        self.block_0 = AdaptiveBlock(rngs)
        self.block_1 = AdaptiveBlock(rngs)
        self.block_2 = AdaptiveBlock(rngs)
        self.action_out = nnx.Linear(WIDTH, HORIZON * ACTION_SIZE, rngs=rngs)

    def velocity(
        self,
        state: Float[Array, "b s"],
        noisy: Float[Array, "b h a"],
        time: Float[Array, " b"],
        task_id: Int[Array, " b"] | None,
        key: Array | None = None,
    ) -> Float[Array, "b h a"]:
        """Returns the velocity at `noisy` and `time`; `key` draws which ids are dropped."""
        time_emb = self.task_embeddings(sincos(time), task_id, rngs=key)
        condition = nnx.swish(self.time_out(nnx.swish(self.time_in(time_emb))))
        x = self.state_in(normalize(state))
        x += self.action_in(noisy.reshape(len(noisy), -1))
        own = [None] * _BLOCKS if self.own is None or task_id is None else self.own(task_id)
        for block, part in zip((self.block_0, self.block_1, self.block_2), own, strict=True):
            x = block(x, condition, part)
        return self.action_out(x).reshape(noisy.shape)

    def loss(
        self, key: Array, batch: dict[str, Array], task_id: Int[Array, " b"] | None
    ) -> Float[Array, ""]:
        """Returns the flow-matching loss of a batch, without the padding at ends of episodes."""
        errors = self.errors(key, batch, task_id)
        counts = ~batch["action_is_pad"]
        return jnp.sum(errors * counts) / jnp.sum(counts)

    def frame_losses(
        self, key: Array, batch: dict[str, Array], task_id: Int[Array, " b"] | None
    ) -> Float[Array, " b"]:
        """Returns the same for each frame."""
        errors = self.errors(key, batch, task_id)
        counts = ~batch["action_is_pad"]
        return jnp.sum(errors * counts, axis=-1) / jnp.sum(counts, axis=-1)

    def errors(
        self, key: Array, batch: dict[str, Array], task_id: Int[Array, " b"] | None
    ) -> Float[Array, "b h"]:
        """Returns the mean square error of each velocity, padding included."""
        noise_key, time_key, drop_key = jax.random.split(key, 3)
        actions = batch["actions"]
        noise = jax.random.normal(noise_key, actions.shape)
        # More weight on noisy times, as in π0.
        time = jax.random.beta(time_key, 1.5, 1, (len(actions),)) * 0.999 + 0.001
        t = time[:, None, None]
        velocity = self.velocity(
            batch["state"], t * noise + (1 - t) * actions, time, task_id, drop_key
        )
        return jnp.square(velocity - (noise - actions)).mean(-1)


@nnx.jit
def sample(
    policy: Policy, key: Array, state: Float[Array, "b s"], task_id: Int[Array, " b"] | None
) -> Float[Array, "b h a"]:
    """Returns a chunk of actions for each state, by Euler steps from noise."""
    x = jax.random.normal(key, (len(state), HORIZON, ACTION_SIZE))
    for i in range(EULER_STEPS):
        time = jnp.full(len(state), 1 - i / EULER_STEPS)
        x -= policy.velocity(state, x, time, task_id) / EULER_STEPS
    return x


def normalize(state: Float[Array, "b s"]) -> Float[Array, "b s"]:
    """Returns states with numbers near [-1, 1]."""
    return (state - _CENTRE) / _RANGE


def sincos(time: Float[Array, " b"]) -> Float[Array, "b d"]:
    """Returns the sine-cosine embedding of times."""
    periods = 4e-3 * 1e3 ** jnp.linspace(0.0, 1.0, WIDTH // 2)
    angles = 2 * jnp.pi * time[:, None] / periods
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
