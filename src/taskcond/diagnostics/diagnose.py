"""A diagnosis: what is wrong with a policy, with what was measured and what to change."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Generic, TypeVar

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from taskcond.diagnostics.checks import check
from taskcond.diagnostics.confusion import TaskConfusion, task_confusion
from taskcond.diagnostics.effect import ActionEffect, Actions, action_effect, prompt_effect
from taskcond.diagnostics.findings import Diagnosis, Finding, Measurements, Passed
from taskcond.diagnostics.learning import TableLearning
from taskcond.diagnostics.losses import losses_by_task
from taskcond.diagnostics.probe import ObservationProbe, observation_probe
from taskcond.diagnostics.table import TableReport
from taskcond.ids import check_integer

B = TypeVar("B", bound=Mapping[str, object])
Ids = Int[Array, " b"]


@dataclasses.dataclass(frozen=True)
class PolicyFunctions(Generic[B]):
    """A policy as functions of a batch. Each one that is given is examined.

    Functions that take a key must draw noise, time and dropout from it alone: the same key, the
    same draws. Switch the dropout of ids off. A compiled function is welcome.

    Attributes:
        names: The names of the tasks, or their prompts; the position of a name is its id.
        loss: `loss(key, batch, task_id)` gives the loss of each sample.
        actions: `actions(key, batch, task_id)` gives the action of each sample.
        prompted: `prompted(key, batch, prompt)` gives the action of each sample for a prompt.
        prompts: The prompts to try; by default the names.
        observe: `observe(batch)` gives what the policy sees besides the task, `[b, k]`: states,
            or features of images.
        table: What `table_report` gives.
        learning: What `table_change` or `table_gradient` gives.
        without: Whether `loss` also takes `NULL_TASK`.
    """

    names: Sequence[str]
    loss: Callable[[Array, B, Ids], Float[Array, " b"]] | None = None
    actions: Callable[[Array, B, Ids], Actions] | None = None
    prompted: Callable[[Array, B, str], Actions] | None = None
    prompts: Sequence[str] = ()
    observe: Callable[[B], Float[Array, "b k"] | Float[np.ndarray, "b k"]] | None = None
    table: TableReport | None = None
    learning: TableLearning | None = None
    without: bool = True


def diagnose(
    policy: PolicyFunctions[B],
    batches: Iterable[B],
    *,
    draws: int = 4,
    seed: int = 0,
    ids_at_once: int | None = None,
) -> Diagnosis:
    """Says in sentences whether a policy uses its task, and if not, why and what to change.

    Args:
        policy: The policy.
        batches: Frames of many episodes of all tasks, best of such that training did not see. Each
            batch has the id of each sample as `task_id`, and if samples are frames of episodes,
            `episode_index`, without which `observe` compares frames with their neighbours.
        draws: The number of draws of noise and time for each sample's loss.
        seed: The seed of the draws.
        ids_at_once: Number of ids in one pass of the loss, if there is no memory for all of them.

    Raises:
        ValueError: There are fewer than two tasks, no or empty batches, nothing to measure, or a
            result that is NaN, Inf or of a wrong shape.
        TypeError: `batches` is a single batch.

    >>> import jax.numpy as jnp
    >>> batch = {"task_id": np.arange(4) % 2, "x": np.arange(4.0)}
    >>> def loss(key, batch, task_id):
    ...     return jnp.asarray(batch["x"])
    >>> print(diagnose(PolicyFunctions(["pour", "wipe"], loss), [batch]))
    The policy has 1 fault.
    - id ignored: A wrong id changes the loss by +0%, from 1.5 to 1.5. ...
    """
    if isinstance(batches, Mapping):
        raise TypeError("batches is one batch, but must be a list of them; pass [batch]")
    kept = list(batches)
    _check_input(policy.names, kept, draws)
    ids = [_task_ids(batch, index) for index, batch in enumerate(kept)]
    keys = jax.random.split(jax.random.key(seed), len(kept))
    measured = Measurements(
        _confusion(policy, kept, ids, keys, draws, ids_at_once),
        _actions(policy, kept, ids, keys),
        _prompts(policy, kept, keys),
        policy.table,
        policy.learning,
        _probe(policy, kept, ids),
    )
    results = check(measured)
    if not results:
        raise ValueError(
            "the policy offers nothing to measure; pass a loss, actions, prompted, observe, table "
            "or learning"
        )
    return Diagnosis(
        tuple(result for result in results if isinstance(result, Finding)),
        tuple(result for result in results if isinstance(result, Passed)),
        measured,
    )


def _check_input(names: Sequence[str], batches: Sequence[B], draws: int) -> None:
    if len(names) < 2:
        raise ValueError(
            f"a policy of {len(names)} tasks {list(names)} has no other task to be compared with; "
            "pass the names of two or more"
        )
    if not batches:
        raise ValueError("there are no batches; pass one or more, with frames of all tasks")
    check_integer("draws", draws, 1)


def _task_ids(batch: Mapping[str, object], index: int) -> Int[np.ndarray, " b"]:
    if "task_id" not in batch:
        raise ValueError(
            f"batch {index} has no task_id, but {list(batch)}; add the id of each sample with "
            "taskcond.ExtractTaskID"
        )
    ids = np.asarray(batch["task_id"])
    if ids.ndim != 1 or not len(ids):
        raise ValueError(
            f"task_id of batch {index} has shape {list(ids.shape)}, but must be [b] with one id or "
            "more; pass batches that are not empty"
        )
    return ids


def _confusion(
    policy: PolicyFunctions[B],
    batches: Sequence[B],
    ids: Sequence[Int[np.ndarray, "_"]],
    keys: Array,
    draws: int,
    ids_at_once: int | None,
) -> TaskConfusion | None:
    if policy.loss is None:
        return None
    loss, num_tasks, parts = policy.loss, len(policy.names), []
    for batch, task_id, key in zip(batches, ids, keys, strict=True):
        drawn = [
            losses_by_task(
                lambda told, draw=draw, batch=batch: loss(draw, batch, told),
                len(task_id),
                num_tasks,
                null=policy.without,
                ids_at_once=ids_at_once,
            )
            for draw in jax.random.split(key, draws)
        ]
        losses = np.mean([np.asarray(each, np.float64) for each in drawn], axis=0)
        without = losses[:, num_tasks] if policy.without else None
        parts.append(
            task_confusion(losses[:, :num_tasks], task_id, names=policy.names, without=without)
        )
    return sum(parts[1:], start=parts[0])


def _actions(
    policy: PolicyFunctions[B],
    batches: Sequence[B],
    ids: Sequence[Int[np.ndarray, "_"]],
    keys: Array,
) -> ActionEffect | None:
    if policy.actions is None:
        return None
    act = policy.actions
    sampled = [
        np.concatenate(
            [
                np.asarray(act(key, batch, jnp.full(len(known), task, jnp.int32)))
                for batch, known, key in zip(batches, ids, keys, strict=True)
            ]
        )
        for task in range(len(policy.names))
    ]
    return action_effect(np.stack(sampled), policy.names)


def _prompts(policy: PolicyFunctions[B], batches: Sequence[B], keys: Array) -> ActionEffect | None:
    if policy.prompted is None:
        return None
    act = policy.prompted
    return prompt_effect(
        lambda prompt: np.concatenate(
            [np.asarray(act(key, batch, prompt)) for batch, key in zip(batches, keys, strict=True)]
        ),
        policy.prompts or policy.names,
    )


def _probe(
    policy: PolicyFunctions[B], batches: Sequence[B], ids: Sequence[Int[np.ndarray, "_"]]
) -> ObservationProbe | None:
    if policy.observe is None:
        return None
    seen = np.concatenate([np.asarray(policy.observe(batch)) for batch in batches])
    groups = None
    if all("episode_index" in batch for batch in batches):
        groups = np.concatenate([np.asarray(batch["episode_index"]) for batch in batches])
    return observation_probe(seen, np.concatenate(ids), groups)
