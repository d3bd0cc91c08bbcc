"""A LeRobot frame becomes the model's input, and the model's actions become the robot's.

    transform = FrameTransform.for_dataset(data, config, tokenizer, {"base_0_rgb": "camera"})
    for batch in make_loader(data, batch_size=64, transform=transform):
        model.compute_loss(rng, batch["observation"], batch["actions"])

`make_loader` and `data` are those of `examples.lerobot.loader`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import numpy as np
from jaxtyping import ArrayLike, Float, UInt8

from examples.lerobot import Frames
from examples.lerobot.stats import Mode, Stats, normalize, unnormalize
from examples.pi0.config import Pi0Config
from examples.pi0.images import black_image, resize_with_pad, to_floats
from examples.pi0.observation import Observation
from examples.pi0.tokenizer import Tokenizer
from taskcond import ExtractTaskID

Cameras = Mapping[str, str | None]
"""The dataset's camera for each of the model's, or `None` if the robot has no such camera."""


class Place(NamedTuple):
    """A part of the dataset's state that the model sees.

    Attributes:
        first: The first dimension.
        stop: The dimension after the last.
        is_sum: Whether the model sees the sum of the dimensions, such as the width of a gripper
            with two fingers.
    """

    first: int
    stop: int
    is_sum: bool = False


@dataclasses.dataclass(frozen=True)
class FrameTransform:
    """A function from a frame of `examples.lerobot.loader`, or of a robot, to the model's input.

    Training passes it to `make_loader(transform=...)`. Inference calls `observe(frame)`, then
    `unnormalize_actions(actions)`. A transform can be pickled, for worker processes.

    Args:
        config: The model's.
        tokenizer: `Tokenizer.for_config(config, path)`.
        cameras: `{the model's camera: the dataset's camera}`. A camera of the model that is absent
            here, or `None`, gets a black image with a false mask.
        stats: The statistics of `state` and `actions`. π0.5 normalizes by quantiles, π0 by mean and
            standard deviation.
        id_map: `{task_index: the model's task id}`, see `TaskVocabulary.id_map`. With `None`, the
            frame's own `task_id` is taken, which `LeRobotData` has mapped by name.
        min_range: See `normalize`.
        norm: How to normalize; `None` takes quantiles for π0.5, and mean and standard deviation for
            π0.
        places: The parts of the dataset's state that make the model's, in order; empty for all.
        delta: For each dimension of the actions, whether the model's are relative to the state;
            empty for none. The statistics must be those of the relative actions.

    Raises:
        ValueError: Settings do not fit together. The message lists every problem.
    """

    config: Pi0Config
    tokenizer: Tokenizer
    cameras: Cameras
    stats: Mapping[str, Stats]
    id_map: Mapping[int, int] | None = None
    min_range: float = 1e-2
    norm: Mode | None = None
    places: tuple[Place, ...] = ()
    delta: tuple[bool, ...] = ()

    def __post_init__(self) -> None:
        _raise(
            _problems(self.config, self.tokenizer, self.cameras, self.stats)
            + _delta_problems(self.delta, self.stats)
        )

    @classmethod
    def for_dataset(
        cls,
        data: Frames,
        config: Pi0Config,
        tokenizer: Tokenizer,
        cameras: Cameras,
    ) -> FrameTransform:
        """Returns the transform of a dataset's frames, which normalizes by its statistics.

        Raises:
            ValueError: The dataset does not fit the model. The message lists every problem.
        """
        _raise(
            _problems(config, tokenizer, cameras, data.norm_stats)
            + _dataset_problems(data, config, cameras)
        )
        return cls(config, tokenizer, dict(cameras), data.norm_stats)

    @property
    def mode(self) -> Mode:
        """The way in which state and actions are normalized."""
        return self.norm or ("quantile" if self.config.pi05 else "zscore")

    def __call__(self, frame: Mapping[str, Any]) -> dict[str, Any]:
        """Returns an example for training.

        Returns:
            `observation`, `actions` float32 `[horizon, action_dim]`, `action_is_pad` `[horizon]`.

        Raises:
            KeyError: See `observe`.
            ValueError: See `observe`; or the actions have another size than the statistics.
        """
        return {
            "observation": self.observe(frame),
            "actions": self.actions(frame),
            "action_is_pad": frame["action_is_pad"],
        }

    def actions(self, frame: Mapping[str, Any]) -> Float[np.ndarray, "h action_dim"]:
        """Returns the model's actions of a frame: relative, normalized and zero-padded.

        Raises:
            ValueError: The actions have another size than the statistics.
        """
        actions = frame["actions"]
        if any(self.delta):
            actions = actions - _offset(self.delta, pick(frame["state"], self.places))
        return self._pad(self._normalize("actions", actions))

    def observe(self, frame: Mapping[str, Any]) -> Observation:
        """Returns the observation of a frame, which needs no actions.

        Args:
            frame: `state` `[s]`, `images` `{camera: uint8 [h, w, 3]}`, `task` (the prompt), and
                `task_id`, or `task_index` if there is an `id_map`.

        Raises:
            KeyError: The frame has no task id, or no image of a camera.
            ValueError: The task id is out of range, or the state has another size than the
                statistics.
        """
        inputs = self.inputs(frame)
        images = {key: to_floats(image) for key, image in inputs.pop("images").items()}
        return Observation(images=images, **inputs)

    def inputs(self, frame: Mapping[str, Any], *, hide_state: bool = False) -> dict[str, Any]:
        """Returns the fields of the observation of a frame; the images are bytes.

        Args:
            frame: See `observe`.
            hide_state: Whether the model sees zeros in place of the state.

        Raises:
            KeyError, ValueError: See `observe`.
        """
        state = self._normalize("state", pick(frame["state"], self.places))
        shown = np.full_like(state, np.nan) if hide_state else state
        task_id = self._task_id(frame)
        tokens, tokens_mask = self.tokenizer(frame["task"], shown, task_id)
        keys = self.config.image_keys
        return {
            "images": {key: self._image(frame, self.cameras.get(key)) for key in keys},
            "image_masks": {key: np.asarray(self.cameras.get(key) is not None) for key in keys},
            "state": self._pad(np.zeros_like(state) if hide_state else state),
            "tokenized_prompt": tokens,
            "tokenized_prompt_mask": tokens_mask,
            "task_id": task_id,
        }

    def unnormalize_actions(
        self,
        actions: Float[ArrayLike, "*b h action_dim"],
        state: Float[np.ndarray, "*b s"] | None = None,
    ) -> Float[np.ndarray, "*b h a"]:
        """Returns the model's actions in the units and the size of the dataset's.

        Args:
            actions: The model's.
            state: The frame's, not normalized; only needed if actions are relative to it.

        Raises:
            ValueError: The state is needed and missing.
        """
        stats = self.stats["actions"]
        values = np.asarray(actions)[..., : stats.mean.shape[-1]]
        result = unnormalize(values, stats, self.mode, min_range=self.min_range)
        if not any(self.delta):
            return result
        if state is None:
            raise ValueError(
                "no state is given, but these actions are relative to it; pass the frame's state"
            )
        return result + _offset(self.delta, pick(np.asarray(state), self.places))[..., None, :]

    def _image(
        self, frame: Mapping[str, Any], camera: str | None
    ) -> UInt8[np.ndarray, "size size 3"]:
        if camera is None:
            return black_image(self.config.image_size)
        if camera not in frame["images"]:
            raise KeyError(
                f"the frame has no image of camera {camera!r}, only of {sorted(frame['images'])}; "
                "add it, or map the model's camera to None"
            )
        return resize_with_pad(frame["images"][camera], self.config.image_size)

    def _normalize(self, name: str, values: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b d"]:
        stats = self.stats[name]
        if values.shape[-1] != stats.mean.shape[-1]:
            raise ValueError(
                f"{name} has {values.shape[-1]} dimensions, but the statistics have "
                f"{stats.mean.shape[-1]}; pass a frame of the robot that the statistics are of"
            )
        normalized = normalize(values, stats, self.mode, min_range=self.min_range)
        return normalized.astype(np.float32, copy=False)

    def _pad(self, values: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b action_dim"]:
        padded = np.zeros((*values.shape[:-1], self.config.action_dim), np.float32)
        padded[..., : values.shape[-1]] = values
        return padded

    def _task_id(self, frame: Mapping[str, Any]) -> np.int32 | None:
        """Returns the model's task id. The dataset's number is never taken for one."""
        source = "task_id" if self.id_map is None else "task_index"
        # A model without a table gets the id too: it may be in the prompt, or tell results apart.
        if source in frame or "task_id" in frame:
            num_tasks = self.config.num_tasks or None
            extract = ExtractTaskID(source=source, num_tasks=num_tasks, id_map=self.id_map)
            return extract(frame)["task_id"]
        if not self.config.num_tasks:
            return None
        raise KeyError(
            f"task_id not found in batch: the frame has only the keys {sorted(frame)}; add the "
            "model's task_id, or map the dataset's task_index with "
            "FrameTransform(id_map=vocabulary.id_map(...))"
        )


def pick(state: Float[np.ndarray, "*b s"], places: Sequence[Place]) -> Float[np.ndarray, "*b n"]:
    """Returns the parts of states that the model sees.

    >>> pick(np.arange(6.0), [Place(4, 6, is_sum=True), Place(0, 2)]).tolist()
    [9.0, 0.0, 1.0]
    """
    if not places:
        return state
    parts = [state[..., place.first : place.stop] for place in places]
    summed = [
        part.sum(-1, keepdims=True) if place.is_sum else part
        for part, place in zip(parts, places, strict=True)
    ]
    return np.concatenate(summed, axis=-1)


def _offset(delta: Sequence[bool], state: Float[np.ndarray, "*b s"]) -> Float[np.ndarray, "*b a"]:
    """Returns what relative actions are relative to; zero for the absolute ones."""
    return np.where(delta, state[..., : len(delta)], 0).astype(state.dtype)


def _delta_problems(delta: Sequence[bool], stats: Mapping[str, Stats]) -> list[str]:
    if not delta or {"state", "actions"} - set(stats):
        return []
    sizes = {name: stats[name].mean.shape[-1] for name in ("state", "actions")}
    if len(delta) != sizes["actions"] or (any(delta) and sizes["state"] < len(delta)):
        return [
            f"delta says of {len(delta)} dimensions whether they are relative to the state, but "
            f"actions have {sizes['actions']} and the state {sizes['state']}; give one for each "
            "dimension of the actions, whose order must be that of the state"
        ]
    return []


def _problems(
    config: Pi0Config, tokenizer: Tokenizer, cameras: Cameras, stats: Mapping[str, Stats]
) -> list[str]:
    problems = []
    unknown = sorted(set(cameras) - set(config.image_keys))
    if unknown:
        problems.append(f"the model has no cameras {unknown}; it has {list(config.image_keys)}")
    for name in ("state", "actions"):
        if name not in stats:
            problems.append(f"no statistics of {name} are given, only of {sorted(stats)}; add them")
        elif stats[name].mean.shape[-1] > config.action_dim:
            problems.append(
                f"{name} has {stats[name].mean.shape[-1]} dimensions, the model action_dim="
                f"{config.action_dim}; raise action_dim, or select fewer keys"
            )
    if tokenizer.vocab_size > config.vocab_size:
        problems.append(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model vocab_size="
            f"{config.vocab_size}; raise vocab_size, or take the tokenizer that the model was "
            "trained with"
        )
    if tokenizer.max_token_len != config.max_token_len:
        problems.append(
            f"the tokenizer has max_token_len={tokenizer.max_token_len}, the model "
            f"max_token_len={config.max_token_len}; use Tokenizer.for_config"
        )
    return problems


def _dataset_problems(data: Frames, config: Pi0Config, cameras: Cameras) -> list[str]:
    problems = []
    parts = data.parts
    for part in parts:
        missing = sorted({c for c in cameras.values() if c is not None} - set(part.cameras))
        if missing:
            problems.append(
                f"dataset {part.root.name} has no cameras {missing}; it has {list(part.cameras)}"
            )
    if parts[0].horizon != config.action_horizon:
        problems.append(
            f"the dataset's chunks have {parts[0].horizon} actions, the model's "
            f"{config.action_horizon}; open it with LeRobotData(horizon={config.action_horizon})"
        )
    names = len(data.vocabulary)
    if config.num_tasks and names != config.num_tasks:
        problems.append(
            f"the dataset's vocabulary has {names} tasks, the model num_tasks={config.num_tasks}; "
            "open it with the model's vocabulary, LeRobotData(vocabulary=...), or set num_tasks"
        )
    return problems


def _raise(problems: list[str]) -> None:
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ValueError(f"the data does not fit the model; correct each of these:{lines}")
