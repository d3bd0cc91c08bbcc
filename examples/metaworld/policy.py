"""The policy: a flow-matching MLP with adaptive norms, which the task reaches through the time."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from examples.metaworld.world import ACTION_SIZE, STATE_SIZE
from taskcond import TaskConditioner

HORIZON = 16
WIDTH = 128
_BLOCKS = 3
EULER_STEPS = 10
# Centre and half range of hand (3), gripper (1) and puck (3), so that the inputs are near [-1, 1].
_CENTRE = jnp.array([0.0, 0.75, 0.2, 0.5, 0.0, 0.75, 0.15])
_RANGE = jnp.array([0.3, 0.2, 0.15, 0.5, 0.3, 0.2, 0.15])


class AdaptiveBlock(nnx.Module):
    """A residual MLP; a condition scales and shifts its norm and gates its output."""

    def __init__(self, rngs: nnx.Rngs):
        zeros = nnx.initializers.zeros  # the gate starts at 0, so that the block is the identity
        self.norm = nnx.LayerNorm(WIDTH, use_scale=False, use_bias=False, rngs=rngs)
        self.modulation = nnx.Linear(WIDTH, 3 * WIDTH, kernel_init=zeros, rngs=rngs)
        self.hidden = nnx.Linear(WIDTH, 2 * WIDTH, rngs=rngs)
        self.out = nnx.Linear(2 * WIDTH, WIDTH, rngs=rngs)

    def __call__(self, x: Float[Array, "b d"], condition: Float[Array, "b d"]) -> Array:
        """Returns `[b, d]`."""
        scale, shift, gate = jnp.split(self.modulation(condition), 3, axis=-1)
        hidden = self.hidden(self.norm(x) * (1 + scale) + shift)
        return x + gate * self.out(nnx.swish(hidden))


class Policy(nnx.Module):
    """Predicts the velocity from actions (time 0) to noise (time 1), given what the robot sees.

    Args:
        num_tasks: The number of tasks; 0 makes a policy without conditioning.
        rngs: Its stream `params` draws the weights.
    """

    def __init__(self, num_tasks: int, rngs: nnx.Rngs):
        self.task_embeddings = TaskConditioner(
            num_tasks,
            WIDTH,
            dropout_rate=0.1,
            embedding_init=nnx.initializers.zeros,
            rngs=rngs,
        )
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
        time_emb = self.task_embeddings(_sincos(time), task_id, rngs=key)
        condition = nnx.swish(self.time_out(nnx.swish(self.time_in(time_emb))))
        x = self.state_in((state - _CENTRE) / _RANGE)
        x += self.action_in(noisy.reshape(len(noisy), -1))
        for block in (self.block_0, self.block_1, self.block_2):
            x = block(x, condition)
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


def _sincos(time: Float[Array, " b"]) -> Float[Array, "b d"]:
    periods = 4e-3 * 1e3 ** jnp.linspace(0.0, 1.0, WIDTH // 2)
    angles = 2 * jnp.pi * time[:, None] / periods
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=-1)
