"""A harder set of tasks for comparisons: many, near to each other, and unevenly shown.

Fifty tasks in the scene of `tasks.TEN`, and five more to add later. Goals of one kind are 10 to 15
cm apart, in families of neighbours. The commonest task has twenty times the demonstrations of the
rarest. Of every five tasks, one has a text that says its goal, one has a text that it shares with
others, and three have a text that says nothing but a number.
"""

from __future__ import annotations

import dataclasses
import itertools

from examples.metaworld.tasks import Task

_MOST, _FEWEST = 60, 3  # demonstrations
_STRIDE = 17  # has no common divisor with the number of tasks


@dataclasses.dataclass(frozen=True)
class HardTask(Task):
    """A task with a text and a number of demonstrations.

    Attributes:
        text: What a policy that reads is told.
        demonstrations: How often the task is shown.
    """

    text: str = ""
    demonstrations: int = 0


def _grid(kind: str, *axes: tuple[float, ...]) -> list[tuple[str, tuple[float, ...]]]:
    return [(kind, goal) for goal in itertools.product(*axes)]


# Left out: what experts pass for long on their way to another goal, such as the place above the
# puck's starts, where they wait before they grasp.
_GOALS = [
    *_grid("reach", (-0.33, 0.33), (0.65, 0.76, 0.87), (0.12, 0.36)),
    *_grid("reach", (-0.22, 0.22), (0.65, 0.76, 0.87), (0.24, 0.36)),
    *_grid("reach", (-0.22, 0.22), (0.76,), (0.12,)),
    *_grid("reach", (-0.11, 0.0, 0.11), (0.76,), (0.36,)),
    *_grid("push", (-0.27, -0.16, 0.16, 0.27), (0.78, 0.885), (0.02,)),
    *_grid("pick-place", (-0.3, 0.0, 0.3), (0.72, 0.87), (0.17, 0.32)),
    *_grid("pick-place", (-0.15, 0.15), (0.72, 0.87), (0.17,)),
    *_grid("pick-place", (-0.15, 0.15), (0.87,), (0.32,)),
]
_VERBS = {"reach": "move the hand", "push": "push the puck", "pick-place": "lift the puck"}


def _task(number: int) -> HardTask:
    kind, (x, y, z) = _GOALS[number]
    right, forward, up = (round(100 * metres) for metres in (x, y, z))
    side = f"{abs(right)} cm {'left' if right < 0 else 'right'}"
    texts = [f"{_VERBS[kind]} to {side}, {forward} cm forward, {up} cm up", _VERBS[kind]]
    name = f"task {number}"
    text = texts[number % 5] if number % 5 < len(texts) else name
    rank = number * _STRIDE % len(_GOALS) / (len(_GOALS) - 1)  # neighbours get unequal shares
    demonstrations = round(_MOST * (_FEWEST / _MOST) ** rank)
    return HardTask(name, kind, (x, y, z), text, demonstrations)


_ALL = tuple(map(_task, range(len(_GOALS))))
LATER = _ALL[5::11]
"""Five tasks to add to a policy that knows `FIFTY`."""

FIFTY = tuple(task for task in _ALL if task not in LATER)
"""Fifty tasks."""
