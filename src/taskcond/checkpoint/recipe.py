"""`Recipe`: how specialists become one; a small TOML file, or Python."""

from __future__ import annotations

import dataclasses
import json
import math
import re
import tomllib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from taskcond.checkpoint.arithmetic import DENSITY, METHODS
from taskcond.checkpoint.errors import CheckpointError
from taskcond.checkpoint.reading import StrPath


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
            `taskcond.checkpoint.arithmetic`.
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
        for rule in self.all_rules():
            problems += self._problems(rule)
        if problems:
            raise CheckpointError("the recipe cannot be followed: " + "; ".join(problems))

    def rule(self, path: str) -> Rule:
        """How a leaf is combined."""
        return next(rule for rule in self.all_rules() if re.fullmatch(rule.match, path))

    def all_rules(self) -> tuple[Rule, ...]:
        """The rules, with that for everything else at the end."""
        rest = Rule(".*", self.method, None, self.scale, self.density)
        return tuple(
            dataclasses.replace(
                rule,
                weights=rule.weights or tuple(s.weight for s in self.specialists),
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
        if rule.method != "mean" and self.base is None:
            problems.append(f"method {rule.method!r} {where} needs a base")
        if rule.density is not None and not 0 < rule.density <= 1:
            problems.append(f"density {where} is {rule.density}, not in (0, 1]")
        return problems

    @classmethod
    def load(cls, path: StrPath) -> tuple[Recipe, dict[str, str]]:
        """Reads a TOML recipe, or the `recipe.json` beside a combined checkpoint.

        Paths are relative to the file.

        Returns:
            The recipe, and for a `recipe.json` the hashes that its inputs must have.

        Raises:
            CheckpointError: Malformed; unknown keys.
        """
        path = Path(path)
        try:
            text = path.read_text(encoding="utf-8")
            record = json.loads(text) if path.suffix == ".json" else {}
            content = record["recipe"] if record else tomllib.loads(text)
            return _parse(content, path.parent), record.get("inputs", {})
        except (ValueError, KeyError, TypeError, AttributeError) as error:
            if isinstance(error, CheckpointError):
                raise
            raise CheckpointError(f"{path} is no recipe: {error}") from error

    def to_dict(self) -> dict[str, Any]:
        """The recipe as plain data."""
        return dataclasses.asdict(self)


def _parse(content: Mapping[str, Any], folder: Path) -> Recipe:
    content = _typed(content)
    # In TOML, tables of an array have the name of one of them.
    specialists = content.pop("specialist", content.pop("specialists", ()))
    rules = content.pop("rule", content.pop("rules", ()))
    if content.get("base") is not None:
        content["base"] = _place(content["base"], folder)
    return Recipe(
        specialists=tuple(
            Specialist(**{**_typed(s), "path": _place(s["path"], folder)}) for s in specialists
        ),
        rules=tuple(Rule(**_typed(rule)) for rule in rules),
        **content,
    )


_FLOATS = ("weight", "weights", "scale", "density", "lora_alpha")


def _typed(table: Mapping[str, Any]) -> dict[str, Any]:
    """TOML's lists as tuples, and 1 as 1.0 where a float is meant."""

    def convert(key: str, value: Any) -> Any:
        if isinstance(value, list):
            return tuple(convert(key, x) for x in value)
        return float(value) if key in _FLOATS and isinstance(value, int) else value

    return {key: convert(key, value) for key, value in table.items()}


def _place(path: str, folder: Path) -> str:
    return path if "://" in path else str((folder / path).resolve())
