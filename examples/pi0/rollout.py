"""Lets a trained π0 or π0.5 act in Meta-World's scene.

    MUJOCO_GL=egl python -m examples.pi0.rollout runs/pi0/metaworld/first --episodes 5

The options are those of `examples.metaworld.rollout`. A policy with a camera sees the scene on
pictures; one without reads where the puck is.
"""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import tyro
from jaxtyping import Float, UInt8

from examples.metaworld.episodes import Actor, SeeingActor
from examples.metaworld.rollout import Args
from examples.metaworld.rollout import main as roll_out
from examples.pi0.policy import Policy, load_policy
from taskcond import TaskVocabulary


@dataclasses.dataclass(frozen=True)
class PolicyActor:
    """A policy that reads its state."""

    policy: Policy

    @property
    def vocabulary(self) -> TaskVocabulary:
        """The tasks that it knows."""
        return self.policy.vocabulary

    def act(
        self, observation: Float[np.ndarray, "7"], task: str | None, seed: int
    ) -> Float[np.ndarray, "h 4"]:
        """Returns a chunk of actions."""
        return self.policy.act({"state": observation, "images": {}}, task, seed)


@dataclasses.dataclass(frozen=True)
class SeeingPolicyActor:
    """A policy that sees the scene.

    Attributes:
        policy: The policy.
        camera: The dataset's name of its camera.
        picture_size: Pixels along the side of a picture.
    """

    policy: Policy
    camera: str
    picture_size: int

    @property
    def vocabulary(self) -> TaskVocabulary:
        """The tasks that it knows."""
        return self.policy.vocabulary

    def act_on(
        self,
        picture: UInt8[np.ndarray, "size size 3"],
        hand: Float[np.ndarray, "4"],
        task: str | None,
        seed: int,
    ) -> Float[np.ndarray, "h 4"]:
        """Returns a chunk of actions."""
        return self.policy.act({"state": hand, "images": {self.camera: picture}}, task, seed)


def load_actor(path: Path) -> Actor | SeeingActor:
    """Loads a run of `examples.pi0.train`."""
    policy = load_policy(path)
    cameras = [name for name in policy.transform.cameras.values() if name is not None]
    if not cameras:
        return PolicyActor(policy)
    return SeeingPolicyActor(policy, cameras[0], policy.transform.config.image_size)


def main(args: Args) -> int:
    """Runs the episodes; returns the exit code."""
    return roll_out(dataclasses.replace(args, actor="examples.pi0.rollout:load_actor"))


if __name__ == "__main__":
    raise SystemExit(main(tyro.cli(Args)))
