"""Frames of a dataset as training examples, in the order of the run."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, SupportsIndex

import grain
import numpy as np
from jaxtyping import Int

from examples.lerobot import Frames
from examples.lerobot.loader import read_ahead
from examples.pi0.training.order import WeightedOrder
from examples.pi0.transform import FrameTransform

Order = WeightedOrder | Int[np.ndarray, " n"]
"""Says of each example which frame it is of."""

Prompts = Callable[[Mapping[str, Any], np.random.Generator], str]
"""Says what the prompt of a frame is."""


@dataclasses.dataclass(frozen=True)
class TaskPrompt:
    """The name of the task, or one prompt for all.

    Attributes:
        text: The prompt of all frames; `None` for the name of the task.
    """

    text: str | None = None

    def __call__(self, frame: Mapping[str, Any], rng: np.random.Generator) -> str:
        """Returns the prompt."""
        return frame["task"] if self.text is None else self.text


@dataclasses.dataclass(frozen=True)
class WrongPrompt:
    """The name of the next task, in order to see whether the prompt matters.

    Attributes:
        names: The names of all tasks.

    >>> WrongPrompt(("pour", "wipe"))({"task": "wipe"}, np.random.default_rng(0))
    'pour'
    """

    names: tuple[str, ...]

    def __call__(self, frame: Mapping[str, Any], rng: np.random.Generator) -> str:
        """Returns the prompt."""
        return self.names[(self.names.index(frame["task"]) + 1) % len(self.names)]


@dataclasses.dataclass(frozen=True)
class Examples:
    """A source of training examples for Grain, which can be read from any number on.

    Attributes:
        data: The frames.
        transform: Makes the model's input.
        order: The order of the frames.
        count: The number of examples.
        prompts: The prompts.
        state_dropout: How often the state is hidden.
        stages: The stage of each frame of `data`; `None` for a model without stages.
        seed: The seed of what is drawn for each example.
    """

    data: Frames
    transform: FrameTransform
    order: Order
    count: int
    prompts: Prompts = TaskPrompt()
    state_dropout: float = 0.0
    stages: Int[np.ndarray, " frames"] | None = None
    seed: int = 0

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: SupportsIndex) -> dict[str, Any]:
        """Returns an example, as the loss wants it; images are bytes."""
        number = index.__index__()
        position = int(self.order[number])
        rng = np.random.default_rng([self.seed, number])
        frame = self.data[position]
        frame["task"] = self.prompts(frame, rng)
        hidden = bool(rng.random() < self.state_dropout)
        stage = {} if self.stages is None else {"stage": self.stages[position]}
        return {
            **self.transform.inputs(frame, hide_state=hidden),
            **stage,
            "actions": self.transform.actions(frame),
            "action_is_pad": frame["action_is_pad"],
            "action_dims": np.int32(frame["actions"].shape[-1]),
            "position": np.int64(position),
            "episode_index": frame["episode_index"],
            "frame_index": frame["frame_index"],
        }

    def __repr__(self) -> str:
        return f"Examples({self.data!r}, {self.count}, seed={self.seed})"


def batches(
    examples: Examples, batch_size: int, *, first: int = 0, num_workers: int = 0
) -> grain.DatasetIterator[dict[str, Any]]:
    """Returns the batches of a run from number `first` on. Close the iterator after use.

    Args:
        examples: The examples.
        batch_size: The number of examples in a batch.
        first: The number of batches that are left out.
        num_workers: The number of processes; 0 reads in threads. The batches are the same.
    """
    source = grain.MapDataset.source(examples)[first * batch_size :]
    return iter(read_ahead(source.batch(batch_size, drop_remainder=True), num_workers))
