"""Checks: which measured values are faults, what they mean, and what to change."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sized

import numpy as np

from taskcond.diagnostics.confusion import TaskConfusion
from taskcond.diagnostics.effect import ActionEffect
from taskcond.diagnostics.findings import Finding, Kind, Measurements, Passed
from taskcond.diagnostics.learning import TableLearning
from taskcond.diagnostics.numbers import change
from taskcond.diagnostics.probe import ObservationProbe
from taskcond.diagnostics.table import TableReport
from taskcond.diagnostics.thresholds import (
    MAX_HARM,
    MAX_PROBE,
    MAX_ROW,
    MIN_ACTION_EFFECT,
    MIN_GAP,
    MIN_LEARNING,
    MIN_LOSS_EFFECT,
    MIN_PAIR_EFFECT,
    MIN_ROW,
)
from taskcond.messages import shorten

Result = Finding | Passed


def check(measured: Measurements) -> list[Result]:
    """Returns what each measurement says, faults and what is right."""
    results: list[Result] = []
    if measured.confusion is not None:
        untrained = [] if measured.table is None else measured.table.untrained
        results += _check_losses(measured.confusion, untrained)
    if measured.actions is not None:
        results.append(_check_actions(measured.actions))
    if measured.prompts is not None:
        results.append(_check_prompts(measured.prompts))
    if measured.table is not None:
        results += _check_table(measured.table)
    if measured.learning is not None:
        results.append(_check_learning(measured.learning))
    if measured.probe is not None:
        results.append(_check_probe(measured.probe))
    return results


def _judge(kind: Kind, sentence: str, measured: float, fix: str, *, least: float) -> Result:
    """Returns a fault if a value is below the least one, or is no number."""
    if not measured >= least:
        return Finding(
            kind, f"{sentence} The least that counts is {least:g}.", measured, least, fix
        )
    times = measured / least
    digits = f"{times:.0f}" if times >= 10 else f"{times:.2g}"
    margin = f"That is {digits} times the least that counts, {least:g}."
    return Passed(kind, f"{sentence} {margin}", measured, least)


def _check_losses(confusion: TaskConfusion, untrained: list[str]) -> Iterator[Result]:
    low, high = confusion.interval
    overall = _judge(
        "id ignored",
        f"A wrong id changes the loss by {change(confusion.effect)}, from {confusion.right:.4g} to "
        f"{confusion.wrong:.4g}. The id with the smallest loss is the right one for "
        f"{confusion.accuracy:.1%} of the samples ({low:.1%} to {high:.1%}); chance is "
        f"{confusion.chance:.1%}.",
        confusion.effect,
        "Check that the batches of training hold the right task_id, that the model passes it on, "
        "that the optimizer updates the table, and that a row is not far smaller than the time "
        "embedding; then train longer with ids, and without another input that tells the "
        "task.",
        least=MIN_LOSS_EFFECT,
    )
    results = [overall]
    if not math.isnan(confusion.effect_without):
        results.append(_check_harm(confusion))
    yield from results
    if all(isinstance(result, Passed) for result in results):  # else pairs say nothing new
        yield from _check_pairs(confusion, untrained)


def _check_harm(confusion: TaskConfusion) -> Result:
    kind: Kind = "id harms"
    harm = -confusion.effect_without
    sentence = (
        f"No id changes the loss by {change(confusion.effect_without)}, from "
        f"{confusion.right:.4g} under the right id to {confusion.without:.4g}."
    )
    if harm <= MAX_HARM:
        return Passed(kind, sentence, harm, MAX_HARM)
    return Finding(
        kind,
        f"{sentence} The policy is better without its task.",
        harm,
        MAX_HARM,
        "Check that the scale and the order of the tasks are those of training, and that each "
        "frame has the id of its task; then lower the learning rate of the table or its scale.",
    )


def _check_pairs(confusion: TaskConfusion, untrained: list[str]) -> Iterator[Result]:
    rise = confusion.rises
    if rise is None:
        return
    effects = {
        (a, b): max(float(rise[a, b]), float(rise[b, a]))
        for a, b in zip(*np.triu_indices_from(rise, 1), strict=True)
        if not {confusion.name(a), confusion.name(b)} & set(untrained)
        and not math.isnan(rise[a, b] + rise[b, a])
    }
    if not effects:
        return
    (a, b), least = min(effects.items(), key=lambda item: item[1])
    pairs = [pair for pair, effect in effects.items() if not effect >= MIN_PAIR_EFFECT]
    named = shorten([f"{confusion.name(a)} / {confusion.name(b)}" for a, b in pairs])
    found = (
        f"The policy never tells {_count(pairs)} of tasks apart: {named}. "
        if pairs
        else f"The tasks most alike are {confusion.name(a)!r} and {confusion.name(b)!r}. "
    )
    yield _judge(
        "tasks not told apart",
        f"{found}The id of the other one changes the loss by at most {change(least)}.",
        least,
        "If two names mean one task, give both the same id; otherwise check that the frames of "
        "each have the right id, and collect frames in which the tasks differ.",
        least=MIN_PAIR_EFFECT,
    )


def _check_actions(effect: ActionEffect) -> Result:
    return _judge(
        "id ignored",
        f"Another id moves the action by {effect.between_tasks:.4g}, another observation by "
        f"{effect.between_observations:.4g}: a ratio of {effect.ratio:.4g}.",
        effect.ratio,
        "Check that the actions are sampled with the id of the task, and that training had ids; "
        "then train longer with ids, and without another input that tells the task.",
        least=MIN_ACTION_EFFECT,
    )


def _check_prompts(effect: ActionEffect) -> Result:
    return _judge(
        "prompt ignored",
        f"Another prompt moves the action by {effect.between_tasks:.4g}, another observation by "
        f"{effect.between_observations:.4g}: a ratio of {effect.ratio:.4g}.",
        effect.ratio,
        "Check that the tokens of the prompt reach the model and are not masked or cut off, and "
        "that the prompts of training differ; otherwise tell tasks by id with TaskConditioner.",
        least=MIN_ACTION_EFFECT,
    )


def _check_table(table: TableReport) -> Iterator[Result]:
    if table.untrained or table.knows_training:
        yield _check_untrained(table)
    used = np.array([name not in table.untrained for name in table.names])
    if not used.any():
        return
    ratios, names = table.ratios[used], np.array(table.names)[used].tolist()
    yield from _check_scale(ratios, names)
    if used.sum() > 1:
        yield _check_gaps(table.gaps[np.ix_(used, used)], names)


def _check_untrained(table: TableReport) -> Result:
    count, total = len(table.untrained), len(table.names)
    if not count:
        sentence = f"All {total} rows of the table were trained."
        return Passed("row untrained", sentence, 0.0, 0.0)
    return Finding(
        "row untrained",
        f"{count} of {total} rows of the table saw no frame, or are as they were before training: "
        f"{shorten(table.untrained)}.",
        float(count),
        0.0,
        "Train on frames of these tasks, or take their rows out with `taskcond tasks --remove`, so "
        "that nobody asks for them.",
    )


def _check_scale(ratios: np.ndarray, names: list[str]) -> Iterator[Result]:
    low, high = int(ratios.argmin()), int(ratios.argmax())
    yield _judge(
        "scale too small",
        f"The shortest row, of {names[low]!r}, has {ratios[low]:.3g} times the norm of the time "
        "embedding.",
        float(ratios[low]),
        "Raise the scale of the conditioner or the start of the table so that rows have at least "
        "a tenth of that norm, and train again; weights belong to the scale of their training.",
        least=MIN_ROW,
    )
    sentence = (
        f"The longest row, of {names[high]!r}, has {ratios[high]:.3g} times the norm of the time "
        f"embedding. The most that leaves the time visible is {MAX_ROW:g} times."
    )
    if ratios[high] <= MAX_ROW:
        yield Passed("scale too large", sentence, float(ratios[high]), MAX_ROW)
        return
    yield Finding(
        "scale too large",
        sentence,
        float(ratios[high]),
        MAX_ROW,
        "Lower the scale of the conditioner or the start of the table so that rows are no longer "
        "than the time embedding, and train again.",
    )


def _check_gaps(gaps: np.ndarray, names: list[str]) -> Result:
    pairs = list(zip(*np.triu_indices_from(gaps, 1), strict=True))
    least = min(pairs, key=lambda pair: gaps[pair])
    shared = [f"{names[a]} / {names[b]}" for a, b in pairs if gaps[a, b] < MIN_GAP]
    nearest = f"{names[least[0]]!r} and {names[least[1]]!r}"
    found = f"The tasks of {_count(shared)} share a row: {shorten(shared)}. " if shared else ""
    return _judge(
        "tasks not told apart",
        f"{found}The rows most alike, of {nearest}, differ by {gaps[least]:.3g} of their norm.",
        float(gaps[least]),
        "Check the ids of both tasks in the dataset and in the vocabulary. If the rows began as "
        "copies, train them on frames of their own tasks.",
        least=MIN_GAP,
    )


def _check_learning(learning: TableLearning) -> Result:
    return _judge(
        "table does not learn",
        f"The {learning.kind} of the table is {learning.ratio:.3g} times that of the other "
        f"parameters ({learning.table:.3g} and {learning.rest:.3g}, root mean square).",
        learning.ratio,
        "Check that the filter of trained parameters includes the table (TaskParam) and that "
        "batches hold ids, and give the table the learning rate of the rest or a higher one.",
        least=MIN_LEARNING,
    )


def _check_probe(probe: ObservationProbe) -> Result:
    sentence = (
        f"The nearest observation of another episode tells the task of {probe.accuracy:.1%} of "
        f"{probe.samples} samples; a guess, of {probe.chance:.1%}. It corrects "
        f"{probe.skill:.1%} of the mistakes of a guess; above {MAX_PROBE:.0%}, ids add next to "
        "nothing."
    )
    kind: Kind = "observation tells the task"
    if probe.skill <= MAX_PROBE:
        return Passed(kind, sentence, probe.skill, MAX_PROBE)
    return Finding(
        kind,
        sentence,
        probe.skill,
        MAX_PROBE,
        "Record the tasks in scenes that they share, with the same starts, so that only the id "
        "tells them apart; a policy of these data follows the scene, whatever the id says.",
    )


def _count(pairs: Sized) -> str:
    return "1 pair" if len(pairs) == 1 else f"{len(pairs)} pairs"
