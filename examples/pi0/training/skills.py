"""What annotated skills change in training: which frames are drawn more often, and prompts."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jaxtyping import Bool, Float

from examples.lerobot import Frames
from examples.pi0.training import b1k


def boundary_weights(data: Frames, factor: float, window: int) -> Float[np.ndarray, " n"]:
    """Returns the weight of each frame: `factor` near the end of a skill, and otherwise 1.

    In the recipe this doubles whole pieces of an episode that are near an end. Here each frame has
    its own weight, and a batch is mixed over tasks.

    Raises:
        ValueError: An episode has no annotations, or damaged ones.
    """
    if factor == 1:
        return np.ones(len(data))
    weights = []
    for part in data.parts:
        near: dict[int, Bool[np.ndarray, " t"]] = {}
        for episode in part.episode_indices:
            length = len(part.vectors(episode)["actions"])
            skills = b1k.skills(part.root, episode)
            near[episode] = b1k.boundary_frames(skills, length, window)
        episodes, frames, _ = part.places().T
        first = np.zeros(max(near) + 1, int)  # where each episode begins in the flags of all
        first[list(near)] = np.cumsum([0, *map(len, near.values())])[:-1]
        is_near = np.concatenate(list(near.values()))[first[episodes] + frames]
        weights.append(np.where(is_near, factor, 1.0))
    return np.concatenate(weights)


@dataclasses.dataclass(frozen=True)
class SkillPrompt:
    """The annotated skill of a frame as its prompt, at a rate; otherwise the name of the task.

    Attributes:
        skills: The skills of each episode.
        rate: How often the skill is the prompt.
    """

    skills: Mapping[int, Sequence[b1k.Skill]]
    rate: float

    @classmethod
    def of(cls, data: Frames, rate: float) -> SkillPrompt:
        """Reads the annotations of a dataset.

        Raises:
            ValueError: An episode has no annotations, or there are several datasets.
        """
        part, *others = data.parts
        if others:
            raise ValueError(
                "data.skill_prompt_rate is for a single dataset, as episodes are found by number; "
                "pass one root, or set the rate to 0"
            )
        return cls({e: b1k.skills(part.root, e) for e in part.episode_indices}, rate)

    def __call__(self, frame: Mapping[str, Any], rng: np.random.Generator) -> str:
        """Returns the prompt."""
        if rng.random() >= self.rate:
            return frame["task"]
        skill = b1k.skill_at(self.skills[int(frame["episode_index"])], int(frame["frame_index"]))
        return frame["task"] if skill is None else skill.text
