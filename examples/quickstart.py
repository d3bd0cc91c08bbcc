"""Your own model, on one page: a small flow-matching policy, and the three lines that condition it.

    python -m examples.quickstart          (or `make quickstart`)

trains the policy without task ids on a generated dataset of eight tasks that look alike, merges its
weights into a conditioned policy, fine-tunes that one, and shows how often each policy confuses the
tasks. `--data path/to/dataset` does the same with the states and actions of a LeRobot dataset.
"""

from __future__ import annotations

from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from examples.comparison.experiment import Experiment
from examples.comparison.run import main
from examples.lerobot import LeRobotData
from taskcond import TaskConditioner  # 1 of 3


class AdaptiveBlock(nnx.Module):
    """A transformer block whose norms are scaled, shifted and gated by a condition."""

    def __init__(self, width: int, rngs: nnx.Rngs):
        self.norm = nnx.LayerNorm(width, use_scale=False, use_bias=False, rngs=rngs)
        zeros = nnx.initializers.zeros  # all gates start at 0, so that the block is the identity
        self.modulation = nnx.Linear(width, 6 * width, kernel_init=zeros, rngs=rngs)
        self.attention = nnx.MultiHeadAttention(4, width, decode=False, rngs=rngs)
        self.hidden = nnx.Linear(width, 2 * width, rngs=rngs)
        self.out = nnx.Linear(2 * width, width, rngs=rngs)

    def __call__(
        self, x: Float[Array, "b h d"], condition: Float[Array, "b d"]
    ) -> Float[Array, "b h d"]:
        """Attends over the steps of the chunk, then transforms each step."""
        scale_1, shift_1, gate_1, scale_2, shift_2, gate_2 = jnp.split(
            self.modulation(condition)[:, None], 6, axis=-1
        )
        x += gate_1 * self.attention(self.norm(x) * (1 + scale_1) + shift_1)
        hidden = self.hidden(self.norm(x) * (1 + scale_2) + shift_2)
        return x + gate_2 * self.out(nnx.gelu(hidden))


class Policy(nnx.Module):
    """Predicts the velocity from actions (t = 0) to noise (t = 1), given the state."""

    def __init__(
        self, state_dim: int, action_dim: int, horizon: int, num_tasks: int, rngs: nnx.Rngs
    ):
        width = 96
        self.task_embeddings = TaskConditioner(num_tasks, width, rngs=rngs)  # 2 of 3
        self.time_in = nnx.Linear(width, width, rngs=rngs)
        self.time_out = nnx.Linear(width, width, rngs=rngs)
        self.state_in = nnx.Linear(state_dim, width, rngs=rngs)
        self.action_in = nnx.Linear(action_dim, width, rngs=rngs)
        self.position = nnx.Embed(horizon, width, rngs=rngs)
        self.block_0 = AdaptiveBlock(width, rngs)
        self.block_1 = AdaptiveBlock(width, rngs)
        self.action_out = nnx.Linear(width, action_dim, rngs=rngs)

    def velocity(
        self,
        state: Float[Array, "b s"],
        x_t: Float[Array, "b h a"],
        time: Float[Array, " b"],
        task_id: Int[Array, " b"] | None,
    ) -> Float[Array, "b h a"]:
        """Returns the velocity at `x_t` and `time`."""
        time_emb = sincos(time, self.time_in.in_features)
        time_emb = self.task_embeddings(time_emb, task_id)  # 3 of 3
        condition = nnx.swish(self.time_out(nnx.swish(self.time_in(time_emb))))
        position = self.position(jnp.arange(x_t.shape[1]))
        x = self.action_in(x_t) + self.state_in(state)[:, None] + position
        x = self.block_1(self.block_0(x, condition), condition)
        return self.action_out(x)

    def compute_loss(
        self, rng: Array, batch: dict[str, Array], task_id: Int[Array, " b"] | None
    ) -> Float[Array, "b h"]:
        """Returns the flow-matching loss of each step of each chunk."""
        noise_rng, time_rng = jax.random.split(rng)
        actions = batch["actions"]
        noise = jax.random.normal(noise_rng, actions.shape)
        time = jax.random.beta(time_rng, 1.5, 1.0, actions.shape[:1]) * 0.999 + 0.001
        t = time[:, None, None]
        x_t = t * noise + (1 - t) * actions
        velocity = self.velocity(batch["state"], x_t, time, task_id)
        return jnp.mean((velocity - (noise - actions)) ** 2, axis=-1)


def sincos(time: Float[Array, " b"], width: int) -> Float[Array, "b d"]:
    """Returns the sine-cosine embedding of a time in [0, 1], with periods from 4e-3 to 4."""
    period = jnp.geomspace(4e-3, 4.0, width // 2)
    angle = 2 * jnp.pi * time[:, None] / period
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def make_experiment(data: LeRobotData, _: Path) -> Experiment[Policy]:
    """Returns the experiment that trains this policy on a dataset's states and actions."""
    frame = data[0]
    horizon, action_dim = frame["actions"].shape
    make_policy = partial(Policy, len(frame["state"]), action_dim, horizon)
    return Experiment(make_policy, Policy.compute_loss)


if __name__ == "__main__":
    main(make_experiment, name="quickstart")
