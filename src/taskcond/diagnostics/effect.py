"""Effects on actions: how far a task or a prompt moves them, and how far an observation does."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence

import numpy as np
from jaxtyping import Array, Float

from taskcond.diagnostics.html import html_table
from taskcond.diagnostics.numbers import known
from taskcond.messages import Readable, columns

Actions = Float[Array, "b ..."] | Float[np.ndarray, "b ..."]
"""The action, or chunk of actions, of each observation."""

_HEADER = ("the action differs by", "root mean square")


@dataclasses.dataclass(frozen=True, repr=False)
class ActionEffect(Readable):
    """A comparison of the actions under several tasks or prompts.

    Distances are root mean squares over the numbers of an action, in the unit of actions.

    Attributes:
        distances: `[tasks, tasks]`, the distance between the actions of two tasks at the same
            observation and noise.
        between_observations: The distance between the actions at two observations, for the same
            task.
        names: The names of the tasks, or the prompts.
    """

    distances: Float[np.ndarray, "tasks tasks"]
    between_observations: float
    names: tuple[str, ...]

    @property
    def between_tasks(self) -> float:
        """The distance between the actions of two tasks, over all pairs."""
        pairs = self.distances[np.triu_indices_from(self.distances, 1)]
        return float(np.sqrt(np.mean(np.square(pairs))))

    @property
    def ratio(self) -> float:
        """How far tasks move actions, with the distance between observations as unit.

        It is infinite if only the task moves actions, and NaN if nothing does.
        """
        if not self.between_observations:
            return float("inf") if self.between_tasks else float("nan")
        return self.between_tasks / self.between_observations

    def nearest_pairs(self, limit: int = 5) -> list[tuple[str, str, float]]:
        """Returns `(task, task, distance)` of the tasks whose actions are most alike.

        Args:
            limit: The number of pairs at most.
        """
        pairs = [
            (self.names[a], self.names[b], float(self.distances[a, b]))
            for a, b in zip(*np.triu_indices_from(self.distances, 1), strict=True)
        ]
        return sorted(pairs, key=lambda pair: pair[2])[:limit]

    def to_dict(self) -> dict[str, object]:
        """Returns the numbers for JSON; a ratio that is no number is `None`."""
        return {
            "names": list(self.names),
            "between_tasks": self.between_tasks,
            "between_observations": self.between_observations,
            "ratio": known(self.ratio),
            "distances": self.distances.tolist(),
        }

    def __str__(self) -> str:
        return columns([_HEADER, *self._rows()])

    def _repr_html_(self) -> str:
        return html_table(_HEADER, self._rows())

    def _rows(self) -> list[tuple[str, str]]:
        return [
            ("between tasks", f"{self.between_tasks:.4g}"),
            ("between observations", f"{self.between_observations:.4g}"),
            ("ratio", f"{self.ratio:.4g}"),
            *((f"{a!r} and {b!r}", f"{distance:.4g}") for a, b, distance in self.nearest_pairs()),
        ]


def action_effect(
    actions: Float[Array, "tasks b ..."] | Float[np.ndarray, "tasks b ..."],
    names: Sequence[str] = (),
) -> ActionEffect:
    """Compares the actions of several tasks at the same observations.

    Args:
        actions: `[tasks, b, ...]`, the actions of each task at each observation, from the same
            noise for all tasks.
        names: The names of the tasks; by default their numbers.

    Raises:
        ValueError: There are fewer than two tasks or observations, or an action is NaN or Inf.

    >>> effect = action_effect(np.array([[[0.0], [4.0]], [[2.0], [6.0]]]))
    >>> effect.between_tasks, effect.between_observations, effect.ratio
    (2.0, 4.0, 0.5)
    """
    values = np.asarray(actions, np.float64)
    names = tuple(names) or tuple(map(str, range(len(values))))
    if values.ndim < 2 or min(values.shape[:2]) < 2 or not values.size:
        raise ValueError(
            f"actions has shape {list(values.shape)}, but must be [tasks, observations, ...] with "
            "two or more of each; pass the actions of more tasks, or of more observations"
        )
    if len(names) != len(values):
        raise ValueError(
            f"actions has {len(values)} tasks, but there are {len(names)} names; pass one for each"
        )
    values = values.reshape(*values.shape[:2], -1)
    bad = np.flatnonzero(~np.isfinite(values).all((1, 2)))
    if len(bad):
        raise ValueError(
            f"the actions of {[names[task] for task in bad]} hold NaN or Inf; correct the policy "
            "or the data first"
        )
    distances = np.stack([np.sqrt(np.square(row - values).mean((1, 2))) for row in values])
    # The mean square difference of all pairs is twice the variance.
    between = float(np.sqrt(2 * values.var(axis=1, ddof=1).mean()))
    return ActionEffect(distances, between, names)


def prompt_effect(act: Callable[[str], Actions], prompts: Sequence[str]) -> ActionEffect:
    """Compares the actions under several prompts: does another prompt change the action?

    Args:
        act: Gives the actions at two or more fixed observations, from fixed noise, for a prompt.
        prompts: Two or more prompts, such as those of all tasks.

    Raises:
        ValueError: Prompts are missing or equal, or an action is NaN or Inf.

    >>> observations = np.array([[0.0], [4.0]])
    >>> print(prompt_effect(lambda prompt: observations, ["pour", "wipe"]))
    the action differs by  root mean square
    between tasks          0
    between observations   4
    ratio                  0
    'pour' and 'wipe'      0
    """
    if len(set(prompts)) < 2 or len(set(prompts)) < len(prompts):
        raise ValueError(
            f"prompts must be two or more that differ, got {list(prompts)}; pass the prompt of "
            "each task once"
        )
    return action_effect(np.stack([np.asarray(act(prompt)) for prompt in prompts]), prompts)
