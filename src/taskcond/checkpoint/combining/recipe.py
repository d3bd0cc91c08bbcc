"""`Recipe`: how specialists become one; a small TOML file, or Python."""

from __future__ import annotations

import dataclasses
import json
import math
import os
import re
import tomllib
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

from taskcond.checkpoint.combining.methods import DENSITY, METHODS
from taskcond.checkpoint.open import StrPath
from taskcond.checkpoint.storage.errors import CheckpointError

RECORD = "recipe.json"
"""Where a combined checkpoint says what it is made of."""


@dataclasses.dataclass(frozen=True)
class Specialist:
    """A fine-tuned checkpoint.

    Args:
        path: See `Checkpoint`.
        weight: Its share in the shared weights; 0.0 for one that gives its task rows alone.
        tasks: The tasks it is good at, by name or number: its rows are taken for them. `None`
            for all that it was trained on, as far as its files say, or else all.
        lora_alpha: For a LoRA fine-tune: the `alpha` of its configuration, or `"rank"` where that
            is the rank, as in the published ones. It is folded into plain weights first.
    """

    path: str
    weight: float = 1.0
    tasks: tuple[str | int, ...] | None = None
    lora_alpha: float | str | None = None


@dataclasses.dataclass(frozen=True)
class Rule:
    """Another method for some leaves.

    Args:
        match: A regular expression that whole paths must match.
        method: As in `Recipe`.
        weights: One for each specialist, in place of theirs.
        scale: As in `Recipe`.
        density: As in `Recipe`.
    """

    match: str
    method: str
    weights: tuple[float, ...] | None = None
    scale: float = 1.0
    density: float | None = None


@dataclasses.dataclass(frozen=True)
class Recipe:
    """How specialists become one checkpoint.

    Args:
        specialists: Fine-tuned from one base.
        base: That base; every method but `"mean"` needs it.
        method: `"mean"` (model soups), `"task_arithmetic"`, `"ties"` or `"dare"`; see
            `taskcond.checkpoint.combining.methods`.
        scale: Factor on what is added to the base.
        density: Share of the differences that `"ties"` (0.2) and `"dare"` (0.1) keep.
        seed: For `"dare"`.
        rules: Other methods for some leaves; the first that matches counts.
        vocabulary: The tasks of the result, in order; by default all that the specialists have.
        check_base: Whether to refuse specialists whose weights are nothing alike.
        check_norm_stats: Whether to refuse specialists whose normalization statistics differ.

    Raises:
        CheckpointError: Something that cannot be; all of it at once.
    """

    specialists: tuple[Specialist, ...]
    base: str | None = None
    method: str = "mean"
    scale: float = 1.0
    density: float | None = None
    seed: int = 0
    rules: tuple[Rule, ...] = ()
    vocabulary: tuple[str, ...] | None = None
    check_base: bool = True
    check_norm_stats: bool = True

    def __post_init__(self):
        problems = [] if self.specialists else ["there are no specialists"]
        for one in (self, *self.specialists, *self.rules):
            problems += _mistyped(one)
        if not problems:  # the rest takes the types for granted
            problems += [p for rule in self.all_rules() for p in self._problems(rule)]
            problems += [
                f"lora_alpha of {s.path} is {s.lora_alpha!r}, not 'rank' or > 0"
                for s in self.specialists
                if s.lora_alpha not in (None, "rank") and not _is_positive(s.lora_alpha)
            ]
            names = self.vocabulary or ()
            if twice := sorted({name for name in names if names.count(name) > 1}):
                problems.append(f"the vocabulary has {twice} twice")
        if problems:
            raise CheckpointError("the recipe cannot be followed: " + "; ".join(problems))

    def absolute(self) -> Recipe:
        """The same, wherever it is read from."""
        here = Path.cwd()
        base = None if self.base is None else _place(self.base, here)
        specialists = (dataclasses.replace(s, path=_place(s.path, here)) for s in self.specialists)
        return dataclasses.replace(self, base=base, specialists=tuple(specialists))

    def rule(self, path: str) -> Rule:
        """How a leaf is combined."""
        return next(r for r in self.all_rules() if re.fullmatch(r.match, path, re.DOTALL))

    def check_rules(self, paths: Iterable[str]) -> None:
        """Raises `CheckpointError` for rules that match none of these leaves."""
        matches = {
            r.match: any(re.fullmatch(r.match, p, re.DOTALL) for p in paths) for r in self.rules
        }
        if idle := [match for match, is_used in matches.items() if not is_used]:
            raise CheckpointError(f"rules that match no leaf: {idle}; correct or remove them")

    def all_rules(self) -> tuple[Rule, ...]:
        """The rules, with that for everything else at the end."""
        rest = Rule(".*", self.method, None, self.scale, self.density)
        return tuple(
            dataclasses.replace(
                rule,
                weights=tuple(s.weight for s in self.specialists)
                if rule.weights is None
                else rule.weights,
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
        try:
            re.compile(rule.match)
        except re.error as error:
            problems.append(f"{rule.match!r} is not a regular expression: {error}")
        if len(weights) != len(self.specialists):
            problems.append(f"{len(weights)} weights {where}, {len(self.specialists)} specialists")
        if not all(map(math.isfinite, (*weights, rule.scale))):
            problems.append(f"weights or scale {where} are not finite")
        elif rule.method == "mean" and abs(sum(weights)) <= 1e-6 * sum(map(abs, weights)):
            problems.append(
                f"the weights {where} sum to zero, and a mean divides by that; "
                "for differences use method 'task_arithmetic' with a base"
            )
        if rule.method == "ties" and any(weight < 0 for weight in weights):
            problems.append(f"weights {where} are negative, and an election needs votes")
        if rule.method in METHODS[1:] and self.base is None:
            problems.append(f"method {rule.method!r} {where} needs a base")
        if rule.density is not None and not 0 < rule.density <= 1:
            problems.append(f"density {where} is {rule.density}, not in (0, 1]")
        return problems

    @classmethod
    def load(cls, path: StrPath) -> tuple[Recipe, dict[str, str] | None]:
        """Reads a TOML recipe, or the `recipe.json` beside a combined checkpoint.

        Paths are relative to the file.

        Returns:
            The recipe, and for a `recipe.json` the hashes that its inputs must have, else `None`.

        Raises:
            CheckpointError: Malformed; unknown keys.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            if path.suffix != ".json":
                return _parse(tomllib.loads(text), path.parent), None
            record = json.loads(text)
            return _parse(record["recipe"], path.parent), dict(record.get("inputs", {}))
        except CheckpointError:
            raise
        except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
            raise CheckpointError(f"{path} is no recipe: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return dataclasses.asdict(self)


def _parse(content: Mapping[str, Any], folder: Path) -> Recipe:
    content = _typed(content)
    problems: list[str] = []
    # In TOML, tables of an array have the name of one of them.
    parts = {}
    for one, kind in (("specialist", Specialist), ("rule", Rule)):
        found = [content.pop(name) for name in (one, f"{one}s") if name in content]
        if len(found) > 1:
            problems.append(f"there are both {one} and {one}s")
        parts[one] = [_typed(table) for table in (found or [()])[0]]
        for table in parts[one]:
            problems += _unknown(kind, table, one)
    problems += _unknown(Recipe, {**content, "specialists": ()}, "recipe")
    if problems:
        raise CheckpointError("the recipe cannot be followed: " + "; ".join(problems))
    if content.get("base") is not None:
        content["base"] = _place(content["base"], folder)
    return Recipe(
        specialists=tuple(
            Specialist(**{**s, "path": _place(s["path"], folder)}) for s in parts["specialist"]
        ),
        rules=tuple(Rule(**rule) for rule in parts["rule"]),
        **content,
    )


def _unknown(kind: type, table: Mapping[str, Any], where: str) -> list[str]:
    """Keys that are no fields, and fields that are missing."""
    fields = dataclasses.fields(kind)  # type: ignore[arg-type]
    names = [field.name for field in fields]
    needed = [field.name for field in fields if field.default is dataclasses.MISSING]
    problems = []
    if unknown := [key for key in table if key not in names]:
        problems.append(f"{where} has the unknown keys {unknown}; there are {names}")
    if missing := [name for name in needed if name not in table]:
        problems.append(f"{where} lacks {missing}")
    return problems


def _mistyped(one: Any) -> list[str]:
    """Fields whose value is of the wrong type; defaults are right."""
    return [
        f"{name} is {getattr(one, name)!r}, not {_TYPES[name][0]}"
        for name, default in ((field.name, field.default) for field in dataclasses.fields(one))
        if name in _TYPES
        and getattr(one, name) is not default
        and not _TYPES[name][1](getattr(one, name))
    ]


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_integer(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _is_positive(value: Any) -> bool:
    return _is_number(value) and 0 < value < math.inf


def _is_text(value: Any) -> bool:
    return isinstance(value, str)


def _is_path(value: Any) -> bool:
    return isinstance(value, (str, os.PathLike))


def _is_switch(value: Any) -> bool:
    return isinstance(value, bool)


def _each(check: Callable[[Any], bool]) -> Callable[[Any], bool]:
    return lambda value: isinstance(value, (list, tuple)) and all(map(check, value))


_TYPES: dict[str, tuple[str, Callable[[Any], bool]]] = {
    "path": ("a path", _is_path),
    "base": ("a path", _is_path),
    "match": ("a regular expression", _is_text),
    "method": ("a name", _is_text),
    "weight": ("a number", _is_number),
    "scale": ("a number", _is_number),
    "density": ("a number", _is_number),
    "weights": ("a list of numbers", _each(_is_number)),
    "tasks": ("a list of names or numbers", _each(lambda x: _is_text(x) or _is_integer(x))),
    "vocabulary": ("a list of names", _each(_is_text)),
    "seed": ("an integer", _is_integer),
    "check_base": ("true or false", _is_switch),
    "check_norm_stats": ("true or false", _is_switch),
}
_FLOATS = ("weight", "weights", "scale", "density", "lora_alpha")


def _typed(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML's lists as tuples, and 1 as 1.0 where a float is meant."""

    def convert(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(convert(key, x) for x in value)
        return float(value) if key in _FLOATS and _is_integer(value) else value

    return {key: convert(key, value) for key, value in table.items()}


def _place(path: StrPath, folder: Path) -> str:
    path = os.fspath(path)
    return path if "://" in path else str((folder / path).resolve())
