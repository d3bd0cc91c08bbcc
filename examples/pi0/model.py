"""π0 and π0.5: vision-language-action models that make actions by flow matching.

Images and prompt become the prefix, noisy actions become the suffix, both attend in `Gemma`, and
the suffix comes out as the velocity of the actions. The flow-matching time reaches the suffix by
one embedding, and **that is where the task enters: see `TimeAndTask.time_embedding`**.

Sources: Black et al., "π0: A Vision-Language-Action Flow Model for General Robot Control", 2024;
Physical Intelligence, "π0.5: a Vision-Language-Action Model with Open-World Generalization", 2025.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, ArrayLike, Bool, Float

from examples.pi0.augment import augment
from examples.pi0.condition import Condition, TimeAndTask, with_none
from examples.pi0.config import GemmaConfig, LoRAConfig, Pi0Config, SiglipConfig
from examples.pi0.gemma import Cache, Expert, Gemma, Modulations, Tokens
from examples.pi0.masks import block_mask, positions, suffix_mask, suffix_positions
from examples.pi0.observation import Observation, check_observation, check_shape
from examples.pi0.sampling import check_num_steps, integrate, step_times
from examples.pi0.siglip import Siglip
from taskcond import drop_ids
from taskcond.ids import check_integer
from taskcond.nn.guidance import blend, check_weight, twice

__all__ = [
    "Condition",
    "GemmaConfig",
    "LoRAConfig",
    "Modulations",
    "Observation",
    "Pi0",
    "Pi0Config",
    "SiglipConfig",
]


class Pi0(TimeAndTask):
    """The policy. Its parameter paths are those of the published weights.

    `taskcond.merge_into(model, params)` loads a checkpoint's parameters, nested or as a flat
    `{"action_in_proj/kernel": array, ...}`.

    Args:
        config: Sizes and choices.
        rngs: Draws the parameters.

    >>> model = nnx.eval_shape(lambda: Pi0(Pi0Config(num_tasks=50), rngs=nnx.Rngs(0)))
    >>> model.task_embeddings.embedding.shape
    (50, 1024)
    """

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        width = config.action_expert.width
        self.PaliGemma = PaliGemma(config, rngs=rngs)
        self.action_in_proj = nnx.Linear(config.action_dim, width, rngs=rngs)
        self.action_out_proj = nnx.Linear(width, config.action_dim, rngs=rngs)
        if not config.pi05:
            self.state_proj = nnx.Linear(config.action_dim, width, rngs=rngs)
            self.action_time_mlp_in = nnx.Linear(2 * width, width, rngs=rngs)
            self.action_time_mlp_out = nnx.Linear(width, width, rngs=rngs)
        super().__init__(config, rngs=rngs)

    def velocity(
        self,
        observation: Observation,
        x_t: Float[ArrayLike, "*b h d"],
        time: Float[ArrayLike, "*b"],
    ) -> Float[Array, "*b h d"]:
        """Returns the velocity of noisy actions, which points from the actions to the noise.

        Args:
            observation: What the policy sees.
            x_t: `time * noise + (1 - time) * actions`.
            time: 0 for the actions, 1 for the noise.

        Raises:
            ValueError: Shapes or cameras do not fit the config, or task ids are out of range.
            TypeError: Images are not floating point.
        """
        batch = self._check(observation, x_t=x_t)
        check_shape("time", time, batch, "one time for each observation")
        observation, x, t = self._flatten(batch, observation, x_t, time)
        return self._velocity(observation, x, t)[0].reshape(*batch, *x.shape[1:])

    def compute_loss(
        self,
        rng: Array,
        observation: Observation,
        actions: Float[ArrayLike, "*b h d"],
        *,
        train: bool = False,
    ) -> Float[Array, "*b h"]:
        """Returns the flow-matching loss of each action: `mean((velocity - (noise - actions))**2)`.

        Args:
            rng: Draws noise and time; with `train`, also how images change and ids are dropped.
            observation: What the policy sees.
            actions: `[*b, action_horizon, action_dim]`, normalized.
            train: Whether to augment images, and to drop task ids at the config's
                `task_dropout_rate`.

        Raises:
            ValueError, TypeError: See `velocity`.
        """
        batch = self._check(observation, actions=actions)
        observation, target = self._flatten(batch, observation, actions)
        augment_rng, noise_rng, time_rng, dropout_rng = jax.random.split(rng, 4)
        if train:
            observation = observation.replace(images=augment(augment_rng, observation.images))
            observation = self._drop_ids(dropout_rng, observation)
        noise = jax.random.normal(noise_rng, target.shape)
        # More often near the noise than near the actions: there it is decided what to do.
        time = jax.random.beta(time_rng, 1.5, 1.0, target.shape[:1]) * 0.999 + 0.001
        x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * target
        velocity, _ = self._velocity(observation, x_t, time)
        loss = jnp.mean(jnp.square(velocity - (noise - target)), axis=-1)
        return loss.reshape(*batch, loss.shape[-1])

    def errors_and_stage_loss(
        self,
        observation: Observation,
        actions: Float[ArrayLike, "b h d"],
        noise: Float[ArrayLike, "b h d"],
        time: Float[ArrayLike, " b"],
        *,
        frozen_prefix: bool = False,
    ) -> tuple[Float[Array, "b h d"], Float[Array, " b"]]:
        """Returns the parts of the loss, for training loops.

        Args:
            observation: A batch with one leading axis.
            actions: Normalized.
            noise: Normal noise.
            time: 0 for the actions, 1 for the noise.
            frozen_prefix: Whether nothing that encodes images and prompt is trained. The prefix is
                then computed forwards only, and nothing of it is kept for the gradient.

        Returns:
            The square of each number of `velocity - (noise - actions)`; and the cross-entropy of
            each stage, which is 0 where no stage is known, and in a model without stages.

        Raises:
            ValueError, TypeError: See `velocity`.
        """
        batch = self._check(observation, actions=actions, noise=noise)
        observation, target, noise, t = self._flatten(batch, observation, actions, noise, time)
        x_t = t[:, None, None] * noise + (1 - t[:, None, None]) * target
        if frozen_prefix:
            # The prefix does not see the suffix, so that it can be computed before it.
            condition = self.condition(t, observation.task_id, observation.stage)
            llm = self.PaliGemma.llm.for_sampling(unroll=False)
            seen = self._encode(observation, llm)
            denoise = self._denoiser(observation.state, observation.task_id, seen, llm)
            velocity = denoise(x_t, condition)
            features = seen.features
        else:
            velocity, features = self._velocity(observation, x_t, t)
        errors = jnp.square(velocity - (noise - target))
        if self.task_stage_head is None or observation.stage is None:
            return errors, jnp.zeros(len(errors))
        stage, ids = observation.stage, observation.task_id
        return errors, self.task_stage_head.loss(features, ids, jnp.asarray(stage))

    def stage_logits(self, observation: Observation) -> Float[Array, "*b stages"]:
        """Predicts the stage of the task, for a `taskcond.StageTracker`.

        Args:
            observation: What the policy sees; its own stage is not looked at.

        Returns:
            A logit for each stage, `-inf` for those that the task does not have.

        Raises:
            ValueError: The model has no stages; or see `velocity`.
            TypeError: See `velocity`.
        """
        if self.task_stage_head is None:
            raise ValueError("this model has no stages; train one with Pi0Config.task_stages")
        batch = self._check(observation)
        (observation,) = self._flatten(batch, observation)
        seen = self._encode(observation, self.PaliGemma.llm)
        logits = self.task_stage_head(seen.features, observation.task_id)
        return logits.reshape(*batch, logits.shape[-1])

    def _velocity(self, observation: Observation, x_t: Array, time: Array) -> tuple[Array, Array]:
        """Returns the velocity, and the features of the prefix; see `Prefix`."""
        condition = self.condition(time, observation.task_id, observation.stage)
        prefix, prefix_valid = self._embed_prefix(observation)
        suffix, blocks = self._embed_suffix(observation.state, x_t, condition)
        valid = jnp.pad(prefix_valid, ((0, 0), (0, len(blocks))), constant_values=True)
        mask = block_mask(np.pad(blocks, (prefix.shape[1], 0)), valid)
        tokens = {Expert.PALIGEMMA: prefix, Expert.ACTION: suffix}
        updates = self.task_updates.of_layers(observation.task_id, x_t)
        tokens, _ = self.PaliGemma.llm(
            tokens, positions(valid), mask, condition=condition.norms, updates=updates
        )
        features = masked_mean(tokens[Expert.PALIGEMMA], prefix_valid)
        return self._unembed(tokens, condition), features

    def sample_actions(
        self,
        rng: Array | None,
        observation: Observation,
        *,
        num_steps: Any = 10,
        noise: Float[ArrayLike, "*b h d"] | None = None,
        modulations: Condition | None = None,
        guidance: float | int | Float[Array, ""] = 1.0,
    ) -> Float[Array, "*b h d"]:
        """Makes actions: Euler steps from noise along the velocity.

        The prefix is computed once. The modulations of all adaptive norms in all steps are computed
        before the first step: they depend on nothing but the step and the task.

        Args:
            rng: Draws the noise; may be `None` if `noise` is given.
            observation: What the policy sees.
            num_steps: The number of steps. A traced number works too; but modulations are then
                computed in each step, because their shape has to be static, and a number below 1
                gives NaN.
            noise: Where to start.
            modulations: `self.modulations(task_id, num_steps=num_steps)`, kept from an earlier
                call. They hold the task and the stage, which must then be `None` in the
                observation. With a guidance, `task_id` is that of the task followed by `NULL_TASK`:
                `[task, -1]`.
            guidance: The weight of the task against none; see `taskcond.guide`. 1 acts as trained.

        Raises:
            ValueError: See `velocity`; or `num_steps` is below 1; or `modulations` are those of
                another number of steps or rows, or of another kind of model.
            TypeError: See `velocity`; or `num_steps` is not an integer.
        """
        num_steps = check_num_steps(num_steps)
        batch = self._check(observation, noise=noise)
        if noise is None:
            if rng is None:
                raise ValueError(
                    "neither a key nor noise is given: pass a key as rng, or the noise itself"
                )
            shape = (*batch, self.config.action_horizon, self.config.action_dim)
            noise = jax.random.normal(rng, shape)
        observation, x = self._flatten(batch, observation, noise)
        guided = self._is_guided(guidance)
        observation, kept = self._with_condition(observation, modulations, num_steps, guided)
        denoise = self.denoiser(observation)

        def velocity(x: Array, step: ArrayLike, time: Array) -> Array:
            if kept is None:
                condition = self.condition_at(time, observation.task_id, observation.stage)
            else:
                condition = jax.tree.map(lambda of_all_steps: of_all_steps[step], kept)
            if not guided:
                return denoise(x, condition)
            return blend(denoise(twice(x), condition), guidance)

        return integrate(velocity, x, num_steps).reshape(*batch, *x.shape[1:])

    def _with_condition(
        self, observation: Observation, kept: Condition | None, num_steps: Any, guided: bool
    ) -> tuple[Observation, Condition | None]:
        """Returns the observation with the ids of both branches of a guidance, and modulations.

        Modulations are `None` if the number of steps is traced.
        """
        if kept is not None:
            count = len(observation.state)
            rows = self._check_kept(kept, observation, num_steps, guided)
            if guided and rows == 2:
                kept = kept.repeated(count)
            first = jax.tree.map(lambda of_all_steps: of_all_steps[0], kept)
            ids = first.ids_of(2 * count if guided else count)
            return observation.replace(task_id=ids), kept
        if guided:
            observation = observation.replace(
                task_id=with_none(observation.task_id), stage=twice(observation.stage)
            )
        if isinstance(num_steps, int):
            kept = self.modulations(
                observation.task_id, stage=observation.stage, num_steps=num_steps
            )
        return observation, kept

    def modulations(
        self, task_id: Any = None, *, stage: Any = None, num_steps: int = 10
    ) -> Condition:
        """Computes what time and task do in each step of `sample_actions`, in one batched product.

        The result can be kept between calls, because a robot does one task for minutes. π0 has no
        adaptive norms; its result holds the time embeddings.

        Args:
            task_id: One id for a whole batch, or one for each row; `None` if `num_tasks=0`.
            stage: A stage for each id; `None` for no stage.
            num_steps: The number of steps, which must be static.

        Returns:
            Arrays that begin with the axis of the steps: `[num_steps, depth, rows, 3 * width]`,
            `[num_steps, rows, 3 * width]`.

        Raises:
            TypeError: `num_steps` is not a static integer.
            ValueError: `num_steps` is below 1, or ids are out of range.
        """
        times = step_times(check_integer("num_steps", num_steps, low=1))
        ids, stages = (None if x is None else _rows(x, np.ndim(x)) for x in (task_id, stage))

        def at(time: Array) -> Condition:
            condition = self.condition_at(time, ids, stages)
            norms = condition.norms
            if norms is None or isinstance(norms, Modulations):
                return condition
            return Condition(None, self.PaliGemma.llm.modulations(norms), condition.task_id)

        return jax.vmap(at)(jnp.asarray(times))

    def denoiser(self, observation: Observation) -> Callable[[Array, Condition], Array]:
        """Encodes the prefix, and returns the velocity as a function of the rest.

        Args:
            observation: A batch with one leading axis. With twice as many task ids, for guidance,
                the velocity is that of the batch with the first ids, followed by the batch with
                the others.

        Returns:
            `denoise(x_t, condition)`, where `x_t` are noisy actions `[b, horizon, action_dim]` and
            `condition` is `self.condition_at(time, task_id)` or one step of `self.modulations`. Its
            ids must be those of the observation.
        """
        ids, state = observation.task_id, jnp.asarray(observation.state)
        guided = ids is not None and len(ids) == 2 * len(state)
        observation = observation.replace(stage=None)  # which the prefix does not know
        if guided and self.config.num_task_tokens:
            # The prefix knows the task, and so there are two of it.
            observation = twice(observation.replace(task_id=None)).replace(task_id=ids)
        # Unrolled layers are faster on a GPU, and compile longer.
        llm = self.PaliGemma.llm.for_sampling(unroll=jax.default_backend() != "cpu")
        seen = self._encode(observation, llm)
        return self._denoiser(twice(state) if guided else state, ids, seen, llm)

    def _encode(self, observation: Observation, llm: Gemma) -> Prefix:
        prefix, valid = self._embed_prefix(observation)
        mask = block_mask(np.zeros(prefix.shape[1]), valid)
        tokens, cache = llm({Expert.PALIGEMMA: prefix}, positions(valid), mask)
        return Prefix(valid, cache, masked_mean(tokens[Expert.PALIGEMMA], valid))

    def _denoiser(
        self, state: Array | np.ndarray, task_id: Any, seen: Prefix, llm: Gemma
    ) -> Callable[[Array, Condition], Array]:
        valid, cache = seen.valid, seen.cache
        if len(valid) < len(state):  # guided
            valid = twice(valid)
            cache = jax.tree.map(lambda x: jnp.concatenate([x, x], axis=1), cache)
        updates = self.task_updates.of_layers(task_id, valid)

        def denoise(x_t: Array, condition: Condition) -> Array:
            suffix, blocks = self._embed_suffix(state, x_t, condition)
            tokens, _ = llm(
                {Expert.ACTION: suffix},
                suffix_positions(len(blocks), valid),
                suffix_mask(blocks, valid),
                condition=condition.norms,
                cache=cache,
                updates=updates,
            )
            return self._unembed(tokens, condition)

        return denoise

    def prefix_tokens(self, observation: Observation) -> Float[Array, "*b s d"]:
        """Returns the tokens of the images, camera by camera, then those of the prompt."""
        batch = self._check(observation)
        (observation,) = self._flatten(batch, observation)
        tokens, _ = self._embed_observation(observation)
        return tokens.reshape(*batch, *tokens.shape[1:])

    def _embed_prefix(self, observation: Observation) -> tuple[Array, Array]:
        """Returns the prefix tokens `[b, s, d]`, and which of them are valid `[b, s]`."""
        tokens, valid = self._embed_observation(observation)
        return self.task_tokens(tokens, valid, observation.task_id)

    def _embed_observation(self, observation: Observation) -> tuple[Array, Array]:
        """Returns what `_embed_prefix` does, without the tokens of the task."""
        keys = self.config.image_keys
        images = jnp.stack([observation.images[key] for key in keys], axis=1)
        masks = jnp.stack([observation.image_masks[key] for key in keys], axis=1)
        b, cameras, *image = images.shape
        image_tokens = self.PaliGemma.img(images.reshape(b * cameras, *image))
        patches, width = image_tokens.shape[1:]
        image_tokens = image_tokens.reshape(b, cameras * patches, width)
        image_valid = jnp.repeat(masks, patches, axis=1)
        text_tokens = self.PaliGemma.llm.embedder(jnp.asarray(observation.tokenized_prompt))
        tokens = jnp.concatenate([image_tokens, text_tokens], axis=1)
        text_valid = jnp.asarray(observation.tokenized_prompt_mask)
        return tokens, jnp.concatenate([image_valid, text_valid], axis=1).astype(bool)

    def _embed_suffix(
        self, state: Array | np.ndarray, x_t: Array, condition: Condition
    ) -> tuple[Array, np.ndarray]:
        """Returns the suffix tokens `[b, t, d]`, and their blocks `[t]`, see `block_mask`."""
        ids, own = condition.ids_of(len(x_t)), self.task_updates
        tokens = own.action_in(x_t, ids, self.action_in_proj(x_t))
        if condition.tokens is None:  # π0.5: the norms know the time, the prompt knows the state
            return tokens, np.ones(x_t.shape[1])
        time = jnp.broadcast_to(condition.tokens[:, None], tokens.shape)
        both = jnp.concatenate([tokens, time], axis=-1)
        hidden = jax.nn.swish(own.time_in(both, ids, self.action_time_mlp_in(both)))
        tokens = own.time_out(hidden, ids, self.action_time_mlp_out(hidden))
        tokens = jnp.concatenate([self.state_proj(jnp.asarray(state))[:, None], tokens], axis=1)
        return tokens, np.array([1] + [2] * x_t.shape[1])

    def _unembed(self, tokens: Tokens, condition: Condition) -> Array:
        x = tokens[Expert.ACTION][:, -self.config.action_horizon :].astype(jnp.float32)
        ids = condition.ids_of(len(x))
        actions = self.task_updates.action_out(x, ids, self.action_out_proj(x))
        return self.task_heads(x, ids, actions)

    def _drop_ids(self, rng: Array, observation: Observation) -> Observation:
        rate, ids = self.config.task_dropout_rate, observation.task_id
        if not rate or ids is None:
            return observation
        return observation.replace(task_id=drop_ids(rng, ids, rate, self.config.num_tasks))

    def _is_guided(self, guidance: Any) -> bool:
        rate = self.config.task_dropout_rate if self.config.num_tasks else None
        if check_weight(guidance, rate) == 1:
            return False
        if not self.config.num_tasks:
            raise ValueError(f"guidance={guidance} needs tasks, but the model has num_tasks=0")
        return True

    def _check(self, observation: Observation, **actions: Any) -> tuple[int, ...]:
        batch = check_observation(self.config, observation)
        chunk = (*batch, self.config.action_horizon, self.config.action_dim)
        for name, array in actions.items():
            if array is not None:
                check_shape(name, array, chunk, "the axes are [*b, action_horizon, action_dim]")
        return batch

    def _check_kept(
        self, kept: Condition, observation: Observation, num_steps: Any, guided: bool
    ) -> int:
        """Returns the number of rows of modulations; raises `ValueError` if they do not fit."""
        if observation.task_id is not None or observation.stage is not None:
            raise ValueError(
                "modulations have their task already, and observation.task_id could be another: "
                "pass observation.replace(task_id=None, stage=None)"
            )
        names = {True: "π0.5", False: "π0"}
        if (kept.norms is not None) != self.config.pi05:
            raise ValueError(
                f"modulations are those of {names[not self.config.pi05]}, but the model is "
                f"{names[self.config.pi05]}: make them with this model's modulations()"
            )
        steps, rows = jax.tree.leaves(kept)[-1].shape[:2]
        if not isinstance(num_steps, int) or steps != num_steps:
            raise ValueError(
                f"modulations are those of {steps} steps, but num_steps={num_steps}: pass "
                f"num_steps={steps}, as a static number, or make the modulations anew"
            )
        count, factor = len(observation.state), 2 if guided else 1
        if rows not in (factor, factor * count):
            more = ", and as many of NULL_TASK after them, as there is a guidance" if guided else ""
            raise ValueError(
                f"modulations are those of {rows} tasks, but there are {count} observations: make "
                f"them with one task_id, or with one for each observation{more}"
            )
        return rows

    def _flatten(self, batch: tuple[int, ...], observation: Observation, *arrays: Any) -> Any:
        """Merges the leading axes `*b` into one; drops task ids if the model has no tasks."""
        if not self.config.num_tasks:
            observation = observation.replace(task_id=None)
        if not self.config.task_stages:
            observation = observation.replace(stage=None)
        floats = (jnp.asarray(array, jnp.float32) for array in arrays)
        return jax.tree.map(lambda x: _rows(x, len(batch)), (observation, *floats))


class Prefix(NamedTuple):
    """Images and prompt, encoded.

    Attributes:
        valid: `[b, s]`, which tokens there are.
        cache: The keys and values of all layers.
        features: `[b, width]`, the mean of the last layer's tokens, in float32.
    """

    valid: Bool[Array, "b s"]
    cache: Cache | None
    features: Float[Array, "b d"]


class PaliGemma(nnx.Module):
    """The image encoder, and the language model with the action expert beside it."""

    def __init__(self, config: Pi0Config, *, rngs: nnx.Rngs):
        self.llm = Gemma(config, rngs=rngs)
        self.img = Siglip(config, rngs=rngs)


def masked_mean(tokens: Float[Array, "b s d"], valid: Bool[Array, "b s"]) -> Float[Array, "b d"]:
    """Returns the mean of the valid tokens, in float32; zeros if there are none.

    >>> masked_mean(jnp.array([[[2.0], [4.0], [9.0]]]), jnp.array([[True, True, False]])).tolist()
    [[3.0]]
    """
    weights = valid.astype(jnp.float32)[..., None]
    return (tokens * weights).sum(1) / jnp.maximum(weights.sum(1), 1)


def _rows(x: Any, leading: int) -> Any:
    """Merges the first `leading` axes of `x` into one. A NumPy array stays one, and so concrete."""
    x = x if isinstance(x, jax.Array) else np.asarray(x)
    return x.reshape(math.prod(x.shape[:leading]), *x.shape[leading:])
