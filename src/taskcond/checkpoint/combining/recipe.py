"""`Recipe`: how specialists become one checkpoint; a small TOML file, or Python."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tomllib
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import pydantic

from taskcond.checkpoint.combining.methods import DENSITY, METHODS, NEEDS_BASE
from taskcond.checkpoint.storage.errors import CheckpointError
from taskcond.checkpoint.storage.leaf import StrPath
from taskcond.checkpoint.validation import CONFIG, Integer, Number, Switch, refuses

Dtype = Literal["float64", "float32", "bfloat16", "float16", "float8_e4m3fn", "float8_e5m2"]
Density = Annotated[Number, pydantic.Field(gt=0, le=1)]


@refuses("the specialist is invalid")
@pydantic.dataclasses.dataclass(frozen=True, config=CONFIG)
class Specialist:
    """A fine-tuned checkpoint.

    Args:
        path: See `Checkpoint`.
        weight: Its share in the shared weights; 0.0 for a specialist that gives only its task rows.
        tasks: Tasks whose rows come from this specialist, by name or number. By default these are
            the tasks that its checkpoint says it was trained on; if it does not say, all tasks.
        lora_alpha: For a LoRA fine-tune the `alpha` of its configuration, or `"rank"` if `alpha`
            is the rank, as in the published configurations. The low-rank weights are folded into
            plain weights first.
    """

    path: StrPath
    weight: Number = 1.0
    tasks: tuple[str | Integer, ...] | None = None
    lora_alpha: Annotated[Number, pydantic.Field(gt=0)] | Literal["rank"] | None = None


@refuses("the rule is invalid")
@pydantic.dataclasses.dataclass(frozen=True, config=CONFIG)
class Rule:
    """A method for some leaves.

    Args:
        match: A regular expression that must match a whole path.
        method: See `Recipe`.
        weights: One weight for each specialist, which replace their own.
        scale: See `Recipe`.
        density: See `Recipe`.
    """

    match: str
    method: str
    weights: tuple[Number, ...] | None = None
    scale: Number = 1.0
    density: Density | None = None


@refuses("the recipe cannot be followed")
@pydantic.dataclasses.dataclass(frozen=True, config=CONFIG)
class Recipe:
    """A description of how specialists become one checkpoint.

    Args:
        specialists: Checkpoints that were fine-tuned from one base.
        base: That base; every method except `"mean"` needs it.
        method: `"mean"` (model soups), `"task_arithmetic"`, `"ties"` or `"dare"`; see
            `taskcond.checkpoint.combining.methods`.
        scale: Factor on what is added to the base.
        density: Share of the differences that `"ties"` (0.2) and `"dare"` (0.1) keep.
        seed: Seed of the random choice in `"dare"`.
        rules: Other methods for some leaves; the first rule that matches counts.
        vocabulary: The tasks of the result, in order; by default all tasks of the specialists.
        check_base: Whether to refuse specialists whose weights have nothing in common.
        check_norm_stats: Whether to refuse specialists whose normalization statistics differ.
        dtype: The dtype of the floating-point leaves beside the task table; by default that of the
            base, or without one the smallest that holds all specialists' values.

    Raises:
        CheckpointError: The recipe is invalid. The message lists every problem.
    """

    specialists: tuple[Specialist, ...]
    base: StrPath | None = None
    method: str = "mean"
    scale: Number = 1.0
    density: Density | None = None
    seed: Integer = 0
    rules: tuple[Rule, ...] = ()
    vocabulary: tuple[str, ...] | None = None
    check_base: Switch = True
    check_norm_stats: Switch = True
    dtype: Dtype | None = None

    def __post_init__(self) -> None:
        problems = [] if self.specialists else ["there are no specialists"]
        problems += [problem for rule in self.all_rules() for problem in self._problems(rule)]
        names = self.vocabulary or ()
        if twice := sorted({name for name in names if names.count(name) > 1}):
            problems.append(f"the vocabulary has {twice} twice")
        if problems:
            raise ValueError("; ".join(problems))

    def absolute(self, folder: Path | None = None) -> Recipe:
        """Returns the same recipe with absolute paths, which were relative to `folder`."""
        folder = folder or Path.cwd()
        base = None if self.base is None else _absolute(self.base, folder)
        specialists = tuple(
            dataclasses.replace(s, path=_absolute(s.path, folder)) for s in self.specialists
        )
        return dataclasses.replace(self, base=base, specialists=specialists)

    def rule(self, path: str) -> Rule:
        """Returns how a leaf is combined."""
        return next(r for r in self.all_rules() if re.fullmatch(r.match, path, re.DOTALL))

    def check_rules(self, paths: Iterable[str]) -> None:
        """Raises `CheckpointError` for rules that match none of these leaves."""
        paths = list(paths)
        idle = [
            rule.match
            for rule in self.rules
            if not any(re.fullmatch(rule.match, path, re.DOTALL) for path in paths)
        ]
        if idle:
            raise CheckpointError(f"rules that match no leaf: {idle}; correct or remove them")

    def all_rules(self) -> tuple[Rule, ...]:
        """Returns the rules, completed, and at the end the rule for all other leaves."""
        rest = Rule(".*", self.method, None, self.scale, self.density)
        weights = tuple(specialist.weight for specialist in self.specialists)
        return tuple(
            dataclasses.replace(
                rule,
                weights=weights if rule.weights is None else rule.weights,
                density=rule.density if rule.density is not None else DENSITY.get(rule.method),
            )
            for rule in (*self.rules, rest)
        )

    def _problems(self, rule: Rule) -> list[str]:
        weights = rule.weights or ()
        where = f"for {rule.match!r}"
        problems = []
        if rule.method not in METHODS:
            problems.append(f"method {where} is {rule.method!r}, not one of {list(METHODS)}")
        elif rule.method in NEEDS_BASE and self.base is None:
            problems.append(f"method {rule.method!r} {where} needs a base")
        try:
            re.compile(rule.match)
        except re.error as error:
            problems.append(f"{rule.match!r} is not a regular expression: {error}")
        if len(weights) != len(self.specialists):
            problems.append(f"{len(weights)} weights {where}, {len(self.specialists)} specialists")
        if rule.method == "mean" and math.isclose(
            sum(weights), 0, abs_tol=1e-6 * sum(map(abs, weights))
        ):
            problems.append(
                f"the weights {where} sum to zero, and a mean divides by that; "
                "for differences use method 'task_arithmetic' with a base"
            )
        if rule.method == "ties" and any(weight < 0 for weight in weights):
            problems.append(f"weights {where} are negative, but an election needs votes")
        return problems

    @classmethod
    def load(cls, path: StrPath) -> tuple[Recipe, dict[str, str] | None]:
        """Reads a TOML recipe, or the `recipe.json` beside a combined checkpoint.

        Paths are relative to the file.

        Returns:
            The recipe. For a `recipe.json` also the hashes that its inputs must have, else `None`.

        Raises:
            CheckpointError: The file is malformed.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix != ".json":
                return _parse(tomllib.loads(text)).absolute(path.parent), None
            record = json.loads(text)
            recipe = _parse(record["recipe"]).absolute(path.parent)
            return recipe, dict(record.get("inputs", {}))
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is not a recipe: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """Returns the recipe as plain data."""
        return dataclasses.asdict(self)


def _parse(content: Mapping[str, Any]) -> Recipe:
    fields = dict(content)
    # In TOML, an array of tables has the name of one table: [[specialist]].
    for table, field in (("specialist", "specialists"), ("rule", "rules")):
        if table in fields and field in fields:
            raise CheckpointError(f"the recipe has both {table} and {field}; use one of them")
        if table in fields:
            fields[field] = fields.pop(table)
    return Recipe(**fields)


def _absolute(path: StrPath, folder: Path) -> str:
    path = os.fspath(path)
    return path if "://" in path else str((folder / path).resolve())
