"""From a LeRobot frame to what the model takes, and from its actions back to the robot's.

    transform = FrameTransform.for_dataset(data, config, tokenizer, {"base_0_rgb": "camera"})
    for batch in make_loader(data, batch_size=64, transform=transform):
        model.compute_loss(rng, batch["observation"], batch["actions"])

`make_loader` and `data` are those of `examples.lerobot.loader`.
"""

from __future__ import annotations

import dataclasses
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import ArrayLike, Float, UInt8
from PIL import Image

from examples.lerobot import LeRobotData, MixedData
from examples.lerobot.stats import Mode, Stats, load_stats, normalize, save_stats, unnormalize
from examples.pi0.config import Pi0Config
from examples.pi0.observation import Observation
from examples.pi0.tokenizer import StrPath, Tokenizer
from taskcond import ExtractTaskID

Cameras = Mapping[str, str | None]
"""For each of the model's cameras the dataset's, or `None` where the robot has none such."""


@dataclasses.dataclass(frozen=True)
class FrameTransform:
    """One frame of `examples.lerobot.loader`, or of a robot, as the model's input.

    For `make_loader(transform=...)`, and at inference: `observe(frame)`, then
    `unnormalize_actions(actions)`. It pickles, for worker processes.

    Args:
        config: The model's.
        tokenizer: `Tokenizer.for_config(config, path)`.
        cameras: `{the model's camera: the dataset's camera}`; those without one, by `None` or by
            absence, become a black picture with a false mask.
        stats: Of `state` and `actions`: π0.5 normalizes by quantiles, π0 by mean and standard
            deviation.
        id_map: `{task_index: the model's task id}`, see `TaskVocabulary.id_map`; `None` takes the
            frame's own `task_id`, which `LeRobotData` has mapped by name.
        min_range: See `normalize`.

    Raises:
        ValueError: Settings that do not fit together, all of them at once.
    """

    config: Pi0Config
    tokenizer: Tokenizer
    cameras: Cameras
    stats: Mapping[str, Stats]
    id_map: Mapping[int, int] | None = None
    min_range: float = 1e-2

    def __post_init__(self) -> None:
        _raise(_problems(self.config, self.tokenizer, self.cameras, self.stats))

    @classmethod
    def for_dataset(
        cls,
        data: LeRobotData | MixedData,
        config: Pi0Config,
        tokenizer: Tokenizer,
        cameras: Cameras,
    ) -> FrameTransform:
        """The transform of a dataset's frames, normalizing by its statistics.

        Raises:
            ValueError: The dataset does not fit the model: cameras, sizes, tasks; all at once.
        """
        _raise(
            _problems(config, tokenizer, cameras, data.norm_stats)
            + _dataset_problems(data, config, cameras)
        )
        return cls(config, tokenizer, dict(cameras), data.norm_stats)

    @classmethod
    def load(cls, folder: StrPath, tokenizer_path: StrPath) -> FrameTransform:
        """Reads what `save` wrote; the tokenizer's model is not among it.

        Raises:
            FileNotFoundError: A file is missing.
        """
        folder = Path(folder)
        config = load_config(folder / "config.json")
        inputs = json.loads((folder / "inputs.json").read_text())
        tokenizer = Tokenizer.for_config(config, tokenizer_path, **inputs["tokenizer"])
        return cls(
            config,
            tokenizer,
            inputs["cameras"],
            load_stats(folder / "norm_stats.json"),
            min_range=inputs["min_range"],
        )

    def save(self, folder: StrPath) -> None:
        """Writes what inference has to share with training, to keep beside a checkpoint.

        These are `config.json`, `norm_stats.json` and `inputs.json`: cameras and prompt format.
        """
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        settings = ("discrete_state", "task_prefix", "num_tasks")
        inputs = {
            "cameras": dict(self.cameras),
            "tokenizer": {name: getattr(self.tokenizer, name) for name in settings},
            "min_range": self.min_range,
        }
        for name, content in (
            ("config.json", dataclasses.asdict(self.config)),
            ("inputs.json", inputs),
        ):
            (folder / name).write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
        save_stats(folder / "norm_stats.json", self.stats)

    @property
    def mode(self) -> Mode:
        """How state and actions are normalized."""
        return "quantile" if self.config.pi05 else "zscore"

    def __call__(self, frame: Mapping[str, Any]) -> dict[str, Any]:
        """`observation`, `actions` float32 `[horizon, action_dim]`, `action_is_pad` `[horizon]`.

        Raises:
            KeyError: No task id in the frame.
            ValueError: A task id out of range, or sizes that are not those of the statistics.
        """
        return {
            "observation": self.observe(frame),
            "actions": self._pad(self._normalize("actions", frame["actions"])),
            "action_is_pad": frame["action_is_pad"],
        }

    def observe(self, frame: Mapping[str, Any]) -> Observation:
        """The observation of a frame, which needs no actions.

        Args:
            frame: `state` `[s]`, `images` `{camera: uint8 [h, w, 3]}`, `task` (the prompt), and
                `task_id`, or with an `id_map` `task_index`.

        Raises:
            KeyError: No task id in the frame, or no picture of a camera.
            ValueError: A task id out of range, or a state that is not that of the statistics.
        """
        state = self._normalize("state", frame["state"])
        task_id = self._task_id(frame)
        tokens, tokens_mask = self.tokenizer(frame["task"], state, task_id)
        keys = self.config.image_keys
        images = {key: self._picture(frame, self.cameras.get(key)) for key in keys}
        masks = {key: np.asarray(self.cameras.get(key) is not None) for key in keys}
        return Observation(images, masks, self._pad(state), tokens, tokens_mask, task_id)

    def unnormalize_actions(
        self, actions: Float[ArrayLike, "*b h action_dim"]
    ) -> Float[np.ndarray, "*b h a"]:
        """The model's actions in the dataset's units and size: the inverse of the transform."""
        stats = self.stats["actions"]
        values = np.asarray(actions)[..., : len(stats.mean)]
        return unnormalize(values, stats, self.mode, min_range=self.min_range)

    def _picture(
        self, frame: Mapping[str, Any], camera: str | None
    ) -> Float[np.ndarray, "size size 3"]:
        size = self.config.image_size
        if camera is None:
            return np.full((size, size, 3), -1, np.float32)  # black
        if camera not in frame["images"]:
            raise KeyError(
                f"no picture of camera {camera!r} in the frame, which has "
                f"{sorted(frame['images'])}; add it, or map the model's camera to None"
            )
        return resize_with_pad(frame["images"][camera], size)

    def _normalize(self, name: str, values: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b d"]:
        stats = self.stats[name]
        if values.shape[-1] != len(stats.mean):
            raise ValueError(
                f"{name} has {values.shape[-1]} dimensions, the statistics {len(stats.mean)}; "
                "give the frame of the robot that they are of"
            )
        normalized = normalize(values, stats, self.mode, min_range=self.min_range)
        return normalized.astype(np.float32, copy=False)

    def _pad(self, values: Float[np.ndarray, "*b d"]) -> Float[np.ndarray, "*b action_dim"]:
        padded = np.zeros((*values.shape[:-1], self.config.action_dim), np.float32)
        padded[..., : values.shape[-1]] = values
        return padded

    def _task_id(self, frame: Mapping[str, Any]) -> np.int32 | None:
        """The model's id; a dataset's number is not taken for one."""
        source = "task_id" if self.id_map is None else "task_index"
        # Without a table too: the id may be in the prompt, and measurements are by task.
        if source in frame or "task_id" in frame:
            num_tasks = self.config.num_tasks or None
            extract = ExtractTaskID(source=source, num_tasks=num_tasks, id_map=self.id_map)
            return extract(frame)["task_id"]
        if not self.config.num_tasks:
            return None
        raise KeyError(
            f"task_id not found in batch: the frame has the keys {sorted(frame)}; add the model's "
            "task_id, or map the dataset's task_index with "
            "FrameTransform(id_map=vocabulary.id_map(...))"
        )


def load_config(path: StrPath) -> Pi0Config:
    """Reads a `config.json`."""
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    return Pi0Config.from_dict({**content, "image_keys": tuple(content["image_keys"])})


def resize_with_pad(
    image: UInt8[np.ndarray, "h w 3"], size: int
) -> Float[np.ndarray, "{size} {size} 3"]:
    """Fits a picture into a square without distortion, black around it; floats in [-1, 1].

    >>> resize_with_pad(np.full((2, 4, 3), 255, np.uint8), 4)[:, 0, 0].tolist()
    [-1.0, 1.0, 1.0, -1.0]
    """
    if image.dtype != np.uint8:
        raise TypeError(f"pictures are uint8 [height, width, 3], got {image.dtype}; convert them")
    height, width = (max(side * size // max(image.shape[:2]), 1) for side in image.shape[:2])
    if (height, width) != image.shape[:2]:
        resized = Image.fromarray(image).resize((width, height), Image.Resampling.BILINEAR)
        image = np.asarray(resized)
    if height == width:
        result = image.astype(np.float32)
    else:
        top, left = (size - height) // 2, (size - width) // 2
        result = np.zeros((size, size, 3), np.float32)
        result[top : top + height, left : left + width] = image
    result /= 127.5
    result -= 1
    return result


def _problems(
    config: Pi0Config, tokenizer: Tokenizer, cameras: Cameras, stats: Mapping[str, Stats]
) -> list[str]:
    problems = []
    unknown = sorted(set(cameras) - set(config.image_keys))
    if unknown:
        problems.append(f"the model has no cameras {unknown}; it has {list(config.image_keys)}")
    for name in ("state", "actions"):
        if name not in stats:
            problems.append(f"no statistics of {name}, only of {sorted(stats)}; add them")
        elif len(stats[name].mean) > config.action_dim:
            problems.append(
                f"{name} has {len(stats[name].mean)} dimensions, the model action_dim="
                f"{config.action_dim}; raise that, or select fewer keys"
            )
    if tokenizer.vocab_size > config.vocab_size:
        problems.append(
            f"the tokenizer has {tokenizer.vocab_size} tokens, the model vocab_size="
            f"{config.vocab_size}; raise that, or take the tokenizer that it was trained with"
        )
    if tokenizer.max_token_len != config.max_token_len:
        problems.append(
            f"the tokenizer has max_token_len={tokenizer.max_token_len}, the model "
            f"{config.max_token_len}; use Tokenizer.for_config"
        )
    return problems


def _dataset_problems(
    data: LeRobotData | MixedData, config: Pi0Config, cameras: Cameras
) -> list[str]:
    problems = []
    parts = data.parts if isinstance(data, MixedData) else (data,)
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
            "open it with the model's, LeRobotData(vocabulary=...), or set num_tasks"
        )
    return problems


def _raise(problems: list[str]) -> None:
    if problems:
        lines = "".join(f"\n  - {problem}" for problem in problems)
        raise ValueError(f"the data does not fit the model; correct each of these:{lines}")
