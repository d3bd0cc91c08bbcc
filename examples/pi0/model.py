"""π0 and π0.5: vision-language-action models that make actions by flow matching.

The way of the data: pictures and prompt become the prefix (`prefix_tokens`), noisy actions become
the suffix, both attend in `Gemma`, and the suffix comes out as the velocity of the actions. The
flow-matching time reaches the suffix by one embedding, and **that is where the task enters: see
`Pi0.time_embedding`**.

Sources: Black et al., "π0: A Vision-Language-Action Flow Model for General Robot Control", 2024;
Physical Intelligence, "π0.5: a Vision-Language-Action Model with Open-World Generalization", 2025.
"""

from __future__ import annotations

import math
import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.core import Tracer
from jaxtyping import Array, ArrayLike, Bool, Float

import taskcond
from examples.pi0.augment import augment
from examples.pi0.config import GemmaConfig, LoRAConfig, Pi0Config, SiglipConfig
from examples.pi0.gemma import ACTION_EXPERT, PALIGEMMA, Cache, Gemma, Modulations
from examples.pi0.observation import Observation, check_observation, check_shape
from examples.pi0.siglip import Siglip
from taskcond.nn.fusion import Add

__all__ = [
    "GemmaConfig",
    "LoRAConfig",
    "Modulations",
    "Observation",
    "Pi0",
    "Pi0Config",
    "SiglipConfig",
]

Signal = Modulations | Float[Array, "..."]
"""Time and task, as the suffix meets them: as `Pi0.condition`, or as modulations made from that."""


TASK_INITS = {
    "normal": Add.embedding_init,
    "zeros": nnx.initializers.zeros_init(),
}


class Pi0(nnx.Module):
    """The policy. Its parameter paths are those of the published weights.

    `taskcond.merge_into(model, params)` loads a checkpoint's parameters, nested or as a flat
    `{"action_in_proj/kernel": array, ...}`.

    Args:
        config: Sizes and choices.
        rngs: For the parameters.

    >>> model = nnx.eval_shape(lambda: Pi0(Pi0Config(num_tasks=50), rngs=nnx.Rngs(0)))
    >>> model.task_embeddings.embedding.shape
    (50, 1024)
    """

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        width = config.action_expert.width
        self.config = config
        self.PaliGemma = PaliGemma(config, rngs=rngs)
        self.action_in_proj = nnx.Linear(config.action_dim, width, rngs=rngs)
        self.action_out_proj = nnx.Linear(width, config.action_dim, rngs=rngs)
        if config.pi05:
            self.time_mlp_in = nnx.Linear(width, width, rngs=rngs)
            self.time_mlp_out = nnx.Linear(width, width, rngs=rngs)
        else:
            self.state_proj = nnx.Linear(config.action_dim, width, rngs=rngs)
            self.action_time_mlp_in = nnx.Linear(2 * width, width, rngs=rngs)
            self.action_time_mlp_out = nnx.Linear(width, width, rngs=rngs)
        self.task_embeddings = taskcond.TaskConditioner(
            config.num_tasks,
            width,
            scale=config.task_embedding_scale,
            dropout_rate=config.task_dropout_rate,
            embedding_init=TASK_INITS[config.task_embedding_init],
            checkify=False,  # so that jit dispatches as fast as without tasks
            rngs=rngs,
        )

    # Where time and task come in.

    def time_embedding(
        self, time: Float[ArrayLike, "*b"], task_id: Any = None, dropout_rng: Array | None = None
    ) -> Float[Array, "*b d"]:
        """Embeds the flow-matching time and adds the task.

        **The task enters here**, before any MLP, and nowhere else. From here it reaches every
        action token: in π0.5 by all adaptive norms, in π0 by `action_time_mlp_in`.
        """
        time_emb = sincos(jnp.asarray(time), self.config.action_expert.width)
        rngs = None if dropout_rng is None else nnx.Rngs(dropout=dropout_rng)
        return self.task_embeddings(time_emb, task_id, deterministic=rngs is None, rngs=rngs)

    def adarms_cond(
        self, time: Float[ArrayLike, "*b"], task_id: Any = None, dropout_rng: Array | None = None
    ) -> Float[Array, "*b d"]:
        """The condition of π0.5's adaptive norms: the time embedding through two dense layers."""
        time_emb = self.time_embedding(time, task_id, dropout_rng)
        return jax.nn.swish(self.time_mlp_out(jax.nn.swish(self.time_mlp_in(time_emb))))

    def _condition(self, time: Array, task_id: Any, dropout_rng: Array | None = None) -> Array:
        condition = self.adarms_cond if self.config.pi05 else self.time_embedding
        return condition(time, task_id, dropout_rng)

    # Training.

    def velocity(
        self,
        observation: Observation,
        x_t: Float[ArrayLike, "*b h d"],
        time: Float[ArrayLike, "*b"],
    ) -> Float[Array, "*b h d"]:
        """The velocity of noisy actions, which points from the actions to the noise.

        Args:
            observation: What the policy sees.
            x_t: `time * noise + (1 - time) * actions`.
            time: 0 for the actions, 1 for the noise.

        Raises:
            ValueError: Shapes or cameras that do not fit the config, or task ids out of range.
            TypeError: Pictures that are not floating point.
        """
        batch = self._check(observation, x_t=x_t)
        check_shape("time", time, batch, "one time for each observation")
        observation, x, t = self._flatten(batch, observation, x_t, time)
        return self._velocity(observation, x, t).reshape(*batch, *x.shape[1:])

    def compute_loss(
        self,
        rng: Array,
        observation: Observation,
        actions: Float[ArrayLike, "*b h d"],
        *,
        train: bool = False,
    ) -> Float[Array, "*b h"]:
        """The flow-matching loss of each action: `mean((velocity - (noise - actions))**2)`.

        Args:
            rng: Draws noise and time; with `train`, also how pictures change and ids are dropped.
            observation: What the policy sees.
            actions: `[*b, action_horizon, action_dim]`, normalized.
            train: Augment pictures, and drop task ids at the config's `task_dropout_rate`.

        Raises:
            ValueError, TypeError: As `velocity`.
        """
        batch = self._check(observation, actions=actions)
        observation, target = self._flatten(batch, observation, actions)
        augment_rng, noise_rng, time_rng, dropout_rng = jax.random.split(rng, 4)
        if train:
            observation = observation.replace(images=augment(augment_rng, observation.images))
        noise = jax.random.normal(noise_rng, target.shape)
        # More often noisy than not: what to do is decided there.
        time = jax.random.beta(time_rng, 1.5, 1.0, target.shape[:1]) * 0.999 + 0.001
        x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * target
        velocity = self._velocity(observation, x_t, time, dropout_rng if train else None)
        loss = jnp.mean(jnp.square(velocity - (noise - target)), axis=-1)
        return loss.reshape(*batch, loss.shape[-1])

    def _velocity(
        self, observation: Observation, x_t: Array, time: Array, dropout_rng: Array | None = None
    ) -> Array:
        condition = self._condition(time, observation.task_id, dropout_rng)
        prefix, prefix_valid = self._embed_prefix(observation)
        suffix, blocks = self._embed_suffix(observation.state, x_t, condition)
        valid = jnp.pad(prefix_valid, ((0, 0), (0, len(blocks))), constant_values=True)
        mask = block_mask(np.pad(blocks, (prefix.shape[1], 0)), valid)
        positions = jnp.cumsum(valid, axis=-1) - 1
        tokens = {PALIGEMMA: prefix, ACTION_EXPERT: suffix}
        tokens, _ = self.PaliGemma.llm(tokens, positions, mask, **self._adaptive(condition))
        return self._unembed(tokens)

    # Sampling.

    def sample_actions(
        self,
        rng: Array | None,
        observation: Observation,
        *,
        num_steps: Any = 10,
        noise: Float[ArrayLike, "*b h d"] | None = None,
        modulations: Signal | None = None,
        precompute: bool = True,
    ) -> Float[Array, "*b h d"]:
        """Makes actions: Euler steps from noise along the velocity.

        The prefix is computed once. So are the modulations of all adaptive norms in all steps: they
        depend on nothing but the step and the task.

        Args:
            rng: Draws the noise; may be `None` where that is given.
            observation: What the policy sees.
            num_steps: How many steps. A traced number works too; but modulations are then computed
                in each step, for want of a static shape, and fewer than 1 gives NaN.
            noise: Where to start.
            modulations: `self.modulations(task_id, num_steps=num_steps)`, kept from an earlier
                call. It knows the task: `observation.task_id` must then be `None`.
            precompute: False computes the modulations in each step, to see what that costs.

        Raises:
            ValueError: As `velocity`; `num_steps` below 1; `modulations` of other steps or rows.
            TypeError: As `velocity`; a `num_steps` that is no integer.
        """
        num_steps = check_num_steps(num_steps)
        batch = self._check(observation, noise=noise)
        if noise is None:
            if rng is None:
                raise ValueError("pass a key as rng, or the noise itself")
            shape = (*batch, self.config.action_horizon, self.config.action_dim)
            noise = jax.random.normal(rng, shape)
        observation, x = self._flatten(batch, observation, noise)
        table = modulations
        if table is not None:
            self._check_kept(table, observation, num_steps)
        elif precompute and isinstance(num_steps, int):
            table = self.modulations(observation.task_id, num_steps=num_steps)
        x = self._integrate(observation, x, num_steps, table, self._prefill(observation))
        return x.reshape(*batch, *x.shape[1:])

    def modulations(self, task_id: Any = None, *, num_steps: int = 10) -> Signal:
        """What time and task do in each step of `sample_actions`, in one batched product.

        To keep between calls: a robot does one task for minutes. For π0, which has no adaptive
        norms, these are the time embeddings.

        Args:
            task_id: One id for a whole batch, or one for each row; `None` where `num_tasks=0`.
            num_steps: A static number.

        Returns:
            Arrays that begin with the axis of the steps: `[num_steps, depth, rows, 3 * width]`,
            `[num_steps, rows, 3 * width]`.

        Raises:
            ValueError: `num_steps` below 1, or ids out of range.
        """
        times = step_times(check_num_steps(num_steps))
        ids = None if task_id is None else _rows(task_id, np.ndim(task_id))
        llm = self.PaliGemma.llm

        def at(time: Array) -> Signal:
            condition = self._condition_at(time, ids)
            return llm.modulations(condition) if self.config.pi05 else condition

        return jax.vmap(at)(jnp.asarray(times))

    def _condition_at(self, time: Array, task_id: Any) -> Array:
        """The condition of all rows at one time; without tasks, one row stands for all."""
        ids = task_id if self.config.num_tasks else None
        return self._condition(jnp.full(1 if ids is None else len(ids), time), ids)

    def _prefill(self, observation: Observation) -> Prefix:
        prefix, valid = self._embed_prefix(observation)
        mask = block_mask(np.zeros(prefix.shape[1]), valid)
        positions = jnp.cumsum(valid, axis=-1) - 1
        _, cache = self.PaliGemma.llm({PALIGEMMA: prefix}, positions, mask)
        return Prefix(cache, valid)

    def _integrate(
        self,
        observation: Observation,
        x: Array,
        num_steps: Any,
        table: Signal | None,
        prefix: Prefix,
    ) -> Array:
        """All Euler steps; without a `table`, each layer of each step makes its modulations."""
        llm = self.PaliGemma.llm.for_sampling()
        dt = jnp.float32(-1.0) / num_steps

        def step(i: Array, carry: tuple[Array, Array]) -> tuple[Array, Array]:
            x, time = carry
            if table is None:
                signal = self._condition_at(time, observation.task_id)
            else:
                signal = jax.tree.map(lambda of_all_steps: of_all_steps[i], table)
            velocity = self._denoise(llm, observation.state, x, signal, prefix)
            return x + dt * velocity, time + dt

        x, _ = jax.lax.fori_loop(0, num_steps, step, (x, jnp.float32(1.0)))
        return jnp.where(jnp.asarray(num_steps) >= 1, x, jnp.nan)

    def _denoise(self, llm: Gemma, state: Any, x_t: Array, signal: Signal, prefix: Prefix) -> Array:
        """The velocity, from the suffix alone and the cached prefix."""
        suffix, blocks = self._embed_suffix(state, x_t, signal)
        b, t = suffix.shape[:2]
        sees_prefix = jnp.broadcast_to(prefix.valid[:, None], (b, t, prefix.valid.shape[1]))
        sees_suffix = block_mask(blocks, jnp.ones((b, t), bool))
        mask = jnp.concatenate([sees_prefix, sees_suffix], axis=-1)
        positions = prefix.valid.sum(axis=-1, keepdims=True) + jnp.arange(t)
        tokens = {ACTION_EXPERT: suffix}
        tokens, _ = llm(tokens, positions, mask, cache=prefix.cache, **self._adaptive(signal))
        return self._unembed(tokens)

    # The parts.

    def prefix_tokens(self, observation: Observation) -> Float[Array, "*b s d"]:
        """Tokens of the pictures, camera by camera, then those of the prompt."""
        batch = self._check(observation)
        (observation,) = self._flatten(batch, observation)
        tokens, _ = self._embed_prefix(observation)
        return tokens.reshape(*batch, *tokens.shape[1:])

    def _embed_prefix(self, observation: Observation) -> tuple[Array, Array]:
        """Prefix tokens `[b, s, d]`, and which of them are valid `[b, s]`."""
        keys = self.config.image_keys
        images = jnp.stack([observation.images[key] for key in keys], axis=1)
        masks = jnp.stack([observation.image_masks[key] for key in keys], axis=1)
        b, cameras, *picture = images.shape
        image_tokens = self.PaliGemma.img(images.reshape(b * cameras, *picture))
        patches, width = image_tokens.shape[1:]
        image_tokens = image_tokens.reshape(b, cameras * patches, width)
        image_valid = jnp.repeat(masks, patches, axis=1)
        text_tokens = self.PaliGemma.llm.embedder(jnp.asarray(observation.tokenized_prompt))
        tokens = jnp.concatenate([image_tokens, text_tokens], axis=1)
        text_valid = jnp.asarray(observation.tokenized_prompt_mask)
        return tokens, jnp.concatenate([image_valid, text_valid], axis=1).astype(bool)

    def _embed_suffix(self, state: Any, x_t: Array, signal: Signal) -> tuple[Array, np.ndarray]:
        """Suffix tokens `[b, t, d]`, and their blocks `[t]`, see `block_mask`."""
        tokens = self.action_in_proj(x_t)
        if self.config.pi05:  # the norms know the time, the prompt knows the state
            return tokens, np.ones(x_t.shape[1])
        assert not isinstance(signal, Modulations)
        time = jnp.broadcast_to(signal[:, None], tokens.shape)
        hidden = self.action_time_mlp_in(jnp.concatenate([tokens, time], axis=-1))
        tokens = self.action_time_mlp_out(jax.nn.swish(hidden))
        tokens = jnp.concatenate([self.state_proj(state)[:, None], tokens], axis=1)
        return tokens, np.array([1] + [2] * x_t.shape[1])

    def _unembed(self, tokens: dict[str, Array]) -> Array:
        actions = tokens[ACTION_EXPERT][:, -self.config.action_horizon :]
        return self.action_out_proj(actions.astype(jnp.float32))

    def _adaptive(self, signal: Signal) -> dict[str, Any]:
        """Arguments of `Gemma` for its adaptive norms; π0 has none."""
        if isinstance(signal, Modulations):
            return {"modulations": signal}
        return {"condition": signal if self.config.pi05 else None}

    def _check(self, observation: Observation, **actions: Any) -> tuple[int, ...]:
        batch = check_observation(self.config, observation)
        chunk = (*batch, self.config.action_horizon, self.config.action_dim)
        for name, array in actions.items():
            if array is not None:
                check_shape(name, array, chunk, "[*b, action_horizon, action_dim]")
        return batch

    def _check_kept(self, table: Signal, observation: Observation, num_steps: Any) -> None:
        if observation.task_id is not None:
            raise ValueError(
                "modulations have their task already, and observation.task_id could be another: "
                "pass observation.replace(task_id=None)"
            )
        if isinstance(table, Modulations) != self.config.pi05:
            raise ValueError(
                "modulations are those of the other kind of model, π0 or π0.5: make them with "
                "this model's modulations()"
            )
        steps, rows = (of := jax.tree.leaves(table)[-1]).shape[0], of.shape[1]
        if not isinstance(num_steps, int) or steps != num_steps:
            raise ValueError(
                f"modulations are those of {steps} steps: pass num_steps={steps}, as a static "
                "number, or make them anew"
            )
        if rows not in (1, len(observation.state)):
            raise ValueError(
                f"modulations are those of {rows} tasks, but there are {len(observation.state)} "
                "observations: make them with one task_id, or with one for each observation"
            )

    def _flatten(self, batch: tuple[int, ...], observation: Observation, *arrays: Any) -> Any:
        """Leading axes `*b` as one; task ids only where they mean something."""
        if not self.config.num_tasks:
            observation = observation.replace(task_id=None)
        floats = (jnp.asarray(array, jnp.float32) for array in arrays)
        return jax.tree.map(lambda x: _rows(x, len(batch)), (observation, *floats))


class Prefix(NamedTuple):
    """What the suffix sees of the prefix: its keys and values, and which tokens are valid."""

    cache: Cache | None
    valid: Bool[Array, "b s"]


class PaliGemma(nnx.Module):
    """The image encoder, and the language model with the action expert beside it."""

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        self.llm = Gemma(
            config.paligemma,
            config.action_expert,
            vocab_size=config.vocab_size,
            adaptive=config.pi05,
            dtype=jnp.dtype(config.dtype),
            attention=config.attention,
            rngs=rngs,
        )
        self.img = Siglip(
            config.siglip,
            image_size=config.image_size,
            features=config.paligemma.width,
            dtype=jnp.dtype(config.dtype),
            attention=config.attention,
            rngs=rngs,
        )


def sincos(
    time: Float[Array, "*b"], width: int, min_period: float = 4e-3, max_period: float = 4.0
) -> Float[Array, "*b d"]:
    """Sines, then cosines, of `2π time / period` for `width / 2` periods in geometric steps."""
    fraction = jnp.linspace(0.0, 1.0, width // 2)
    period = min_period * (max_period / min_period) ** fraction
    angle = time[..., None] * (1.0 / period * 2 * math.pi)
    return jnp.concatenate([jnp.sin(angle), jnp.cos(angle)], axis=-1)


def block_mask(blocks: np.ndarray, valid: Bool[Array, "b t"]) -> Bool[Array, "b t t"]:
    """Which tokens each token sees: valid ones of its own block and of those before.

    >>> block_mask(np.array([0, 1]), jnp.ones((1, 2), bool)).astype(int).tolist()
    [[[1, 0], [1, 1]]]
    """
    before = jnp.asarray(blocks[None, :] <= blocks[:, None])
    return before & valid[:, None, :] & valid[:, :, None]


def step_times(num_steps: int) -> Float[np.ndarray, "num_steps"]:
    """The times of the Euler steps: 1, 1 - 1/n, ..., 1/n.

    >>> step_times(4).tolist()
    [1.0, 0.75, 0.5, 0.25]
    """
    steps = np.full(num_steps, np.float32(-1.0) / np.float32(num_steps), np.float32)
    steps[0] = 1.0
    # Added up one by one, rounding as the loop does: the fastest sine turns 250 times in [0, 1].
    return np.add.accumulate(steps, dtype=np.float32)


def check_num_steps(num_steps: Any) -> Any:
    """Returns a static number as an `int`, and a traced one as it is.

    Raises:
        TypeError: Not an integer.
        ValueError: Below 1.
    """
    if isinstance(num_steps, Tracer) and jnp.issubdtype(num_steps.dtype, jnp.integer):
        return num_steps
    try:
        count = operator.index(num_steps)
    except TypeError:
        raise TypeError(f"num_steps must be an integer, got {num_steps!r}") from None
    if count < 1 or isinstance(num_steps, bool):
        raise ValueError(f"num_steps must be at least 1, got {num_steps!r}")
    return count


def _rows(x: Any, leading: int) -> Any:
    """`x` with its `leading` first axes as one. What is NumPy stays NumPy, and so concrete."""
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    return x.reshape(math.prod(x.shape[:leading]), *x.shape[leading:])
