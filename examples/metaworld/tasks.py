"""The tasks: what is to be where. A new task is one line in `TEN`.

All tasks share one scene and its starts. A policy sees neither the goal nor the kind of task, so
that nothing but the id tells tasks apart.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import numpy as np
from jaxtyping import Float

from taskcond import TaskVocabulary
from taskcond.messages import describe_unknown

HOLD_STEPS = 15
"""A task is done when its condition has held for so many steps: passing by is not enough."""

Observations = Float[np.ndarray, "t 7"]
"""Position of the hand (metres), opening of the gripper (0 to 1), position of the puck (metres)."""


@dataclasses.dataclass(frozen=True)
class Kind:
    """A kind of task, with Meta-World's rule of success.

    Attributes:
        watched: The columns of an observation that must come near the goal.
        radius: How near, in metres.
    """

    watched: slice
    radius: float


KINDS = {
    "reach": Kind(slice(0, 3), 0.05),
    "push": Kind(slice(4, 7), 0.05),
    "pick-place": Kind(slice(4, 7), 0.07),
}


@dataclasses.dataclass(frozen=True)
class Task:
    """A task.

    Attributes:
        name: What the robot is asked to do.
        kind: A key of `KINDS`.
        goal: The place, in metres: right, forward, up.
    """

    name: str
    kind: str
    goal: tuple[float, float, float]

    def distance(self, observations: Observations) -> Float[np.ndarray, " t"]:
        """Returns how far the hand or the puck is from the goal, in metres."""
        watched = observations[:, KINDS[self.kind].watched]
        return np.linalg.norm(watched - np.asarray(self.goal), axis=1)

    def is_done(self, observations: Observations) -> bool:
        """Returns whether the condition has held for the last `HOLD_STEPS` observations."""
        last = observations[-HOLD_STEPS:]
        return len(last) == HOLD_STEPS and bool(
            (self.distance(last) <= KINDS[self.kind].radius).all()
        )


TEN = (
    Task("reach to the left", "reach", (-0.3, 0.7, 0.25)),
    Task("reach to the right", "reach", (0.3, 0.7, 0.25)),
    Task("reach up", "reach", (0.0, 0.85, 0.4)),
    Task("push the puck to the left", "push", (-0.2, 0.8, 0.02)),
    Task("push the puck to the right", "push", (0.2, 0.8, 0.02)),
    Task("push the puck forward", "push", (0.0, 0.88, 0.02)),
    Task("lift the puck to the far left", "pick-place", (-0.25, 0.85, 0.2)),
    Task("lift the puck to the far right", "pick-place", (0.25, 0.85, 0.2)),
    Task("lift the puck high to the left", "pick-place", (-0.12, 0.75, 0.3)),
    Task("lift the puck high to the right", "pick-place", (0.12, 0.75, 0.3)),
)


def vocabulary_of(tasks: Sequence[Task]) -> TaskVocabulary:
    """Returns the names of tasks, in their order."""
    return TaskVocabulary(task.name for task in tasks)


def find_tasks(names: Sequence[str], tasks: Sequence[Task] = TEN) -> tuple[Task, ...]:
    """Returns the tasks of these names.

    Raises:
        ValueError: There is no such task. The message names the nearest.
    """
    known = {task.name: task for task in tasks}
    if unknown := [name for name in names if name not in known]:
        raise ValueError(
            f"there is no task {describe_unknown(unknown, list(known))}. "
            f"The tasks are {list(known)}."
        )
    return tuple(known[name] for name in names)


def done_task(observations: Observations, tasks: Sequence[Task]) -> Task | None:
    """Returns the task that is done at the last observation, if any is."""
    return next((task for task in tasks if task.is_done(observations)), None)
