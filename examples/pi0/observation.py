"""What the policy sees, as a pytree, and the check that it fits a config."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float, Int

from examples.pi0.config import Pi0Config


@dataclasses.dataclass(frozen=True)
class Observation:
    """An observation, or a batch of them: every array starts with the same axes `*b`.

    Attributes:
        images: For each camera, float32 `[*b, image_size, image_size, 3]` in `[-1, 1]`.
        image_masks: For each camera, bool `[*b]`, false where there is no image.
        state: `[*b, action_dim]`, normalized and zero-padded.
        tokenized_prompt: Token ids `[*b, max_token_len]`.
        tokenized_prompt_mask: Bool of the same shape, false on padding.
        task_id: `[*b]`, each `taskcond.NULL_TASK` or in `[0, num_tasks)`; a list works too. May be
            `None` if `num_tasks=0`.
        stage: `[*b]`, each `taskcond.NULL_TASK` or a stage of the task, for a model with
            `task_stages`; `None` for none.
    """

    # The axes are "..." and not "*b", because `check_observation` compares them and names a fix.
    images: Mapping[str, Float[Array | np.ndarray, "... _height _width _rgb"]]
    image_masks: Mapping[str, Bool[Array | np.ndarray, "..."]]
    state: Float[Array | np.ndarray, "... action_dim"]
    tokenized_prompt: Int[Array | np.ndarray, "... _length"]
    tokenized_prompt_mask: Bool[Array | np.ndarray, "... _length"]
    task_id: Any = None
    stage: Any = None

    def __post_init__(self) -> None:
        for name in ("task_id", "stage"):
            value = getattr(self, name)
            if isinstance(value, (list, tuple)):  # which JAX would take for a pytree
                object.__setattr__(self, name, np.asarray(value))

    def replace(self, **changes: Any) -> Observation:
        """Returns a copy with some fields changed."""
        return dataclasses.replace(self, **changes)


_RESIZE = "resize with padding to image_size, and put the channels last"
_FIELDS = tuple(field.name for field in dataclasses.fields(Observation))


def _unflatten(_: None, children: Any) -> Observation:
    # This avoids __init__ and the check of its types, because JAX also puts other leaves in here.
    observation = object.__new__(Observation)
    observation.__dict__.update(zip(_FIELDS, children, strict=True))
    return observation


jax.tree_util.register_pytree_with_keys(
    Observation,
    lambda o: ([(jax.tree_util.GetAttrKey(name), getattr(o, name)) for name in _FIELDS], None),
    _unflatten,
)


def check_observation(config: Pi0Config, observation: Observation) -> tuple[int, ...]:
    """Checks that an observation fits `config`, and returns its leading axes `*b`.

    Raises:
        ValueError: Cameras, shapes or leading axes do not fit. The message says what would.
        TypeError: Images are not floating point.
    """
    batch = jnp.shape(observation.state)[:-1]
    for name in ("images", "image_masks"):
        _check_cameras(name, getattr(observation, name), config.image_keys)
    expected = (*batch, config.image_size, config.image_size, 3)
    for key in config.image_keys:
        image = observation.images[key]
        fits = jnp.shape(image)[-3:] == expected[-3:]
        fix = "its leading axes must be those of state" if fits else _RESIZE
        check_shape(f"images[{key!r}]", image, expected, fix)
        if not jnp.issubdtype(image.dtype, jnp.floating):
            raise TypeError(
                f"images[{key!r}] must be float32 in [-1, 1], got {image.dtype}; "
                "convert bytes with image / 127.5 - 1"
            )
        check_shape(f"image_masks[{key!r}]", observation.image_masks[key], batch, "one flag each")
    check_shape("state", observation.state, (*batch, config.action_dim), "zero-pad to action_dim")
    length = jnp.shape(observation.tokenized_prompt)[-1:]
    for name in ("tokenized_prompt", "tokenized_prompt_mask"):
        fix = "the leading axes must be those of state, and prompt and mask equally long"
        check_shape(name, getattr(observation, name), (*batch, *length), fix)
    # Checked before anything is reshaped: later, ids [b, 1] would look like ids [b].
    if config.num_tasks and observation.task_id is not None:
        check_shape("task_id", observation.task_id, batch, "one id for each observation")
    if config.task_stages and observation.stage is not None:
        check_shape("stage", observation.stage, batch, "one stage for each observation")
    return batch


def check_shape(name: str, array: Any, shape: tuple[int, ...], fix: str) -> None:
    """Raises a `ValueError` that names the fix, unless `array` has this shape.

    >>> check_shape("state", jnp.zeros((2, 7)), (2, 32), "zero-pad to action_dim")
    Traceback (most recent call last):
    ...
    ValueError: state has shape (2, 7), expected (2, 32): zero-pad to action_dim
    """
    if jnp.shape(array) != shape:
        raise ValueError(f"{name} has shape {jnp.shape(array)}, expected {shape}: {fix}")


def _check_cameras(name: str, given: Mapping[str, Any], wanted: tuple[str, ...]) -> None:
    missing, extra = sorted(set(wanted) - set(given)), sorted(set(given) - set(wanted))
    if missing or extra:
        raise ValueError(
            f"{name} has missing: {missing}, unknown: {extra}; the keys must be {list(wanted)}. "
            "Give a camera that the robot does not have a black image and a false mask, or set "
            "Pi0Config.image_keys"
        )
