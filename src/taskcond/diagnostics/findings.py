"""Findings: what is wrong with a policy, as values and as sentences."""

from __future__ import annotations

import dataclasses
from typing import Literal

from taskcond.diagnostics.confusion import TaskConfusion
from taskcond.diagnostics.effect import ActionEffect
from taskcond.diagnostics.html import html_table
from taskcond.diagnostics.learning import TableLearning
from taskcond.diagnostics.numbers import known
from taskcond.diagnostics.probe import ObservationProbe
from taskcond.diagnostics.table import TableReport
from taskcond.messages import Readable

Kind = Literal[
    "id ignored",
    "id harms",
    "prompt ignored",
    "tasks not told apart",
    "scale too small",
    "scale too large",
    "row untrained",
    "table does not learn",
    "observation tells the task",
]
"""The kind of a finding."""

_HEADER = ("finding", "what was measured", "what to change")


@dataclasses.dataclass(frozen=True)
class Finding:
    """A fault of a policy, its table or its data.

    Attributes:
        kind: The kind of fault.
        sentence: What was measured, in complete sentences.
        measured: The measured value.
        threshold: The value that separates the fault from health.
        fix: What to change, in complete sentences.
    """

    kind: Kind
    sentence: str
    measured: float
    threshold: float
    fix: str

    def __str__(self) -> str:
        return f"{self.kind}: {self.sentence} {self.fix}"


@dataclasses.dataclass(frozen=True)
class Passed:
    """A measurement that found no fault.

    Attributes:
        kind: The kind of fault that was looked for.
        sentence: What was measured, with the margin to the threshold.
        measured: The measured value.
        threshold: The value that separates the fault from health.
    """

    kind: Kind
    sentence: str
    measured: float
    threshold: float

    def __str__(self) -> str:
        return f"no fault ({self.kind}): {self.sentence}"


@dataclasses.dataclass(frozen=True)
class Measurements:
    """The measurements of `diagnose`; `None` for what the policy did not offer.

    Attributes:
        confusion: The losses under every id.
        actions: The actions under every id.
        prompts: The actions under every prompt.
        table: The rows of the table.
        learning: The change or the gradient of the table.
        probe: What the observations tell of the task.
    """

    confusion: TaskConfusion | None = None
    actions: ActionEffect | None = None
    prompts: ActionEffect | None = None
    table: TableReport | None = None
    learning: TableLearning | None = None
    probe: ObservationProbe | None = None

    def to_dict(self) -> dict[str, object]:
        """Returns the numbers for JSON, without what was not measured."""
        parts = {f.name: getattr(self, f.name) for f in dataclasses.fields(self)}
        return {name: part.to_dict() for name, part in parts.items() if part is not None}


@dataclasses.dataclass(frozen=True, repr=False)
class Diagnosis(Readable):
    """The faults of a policy, and what was found to be right. `print` shows sentences.

    Attributes:
        findings: The faults; empty for a healthy policy.
        passed: The measurements without fault.
        measurements: The numbers behind both.
    """

    findings: tuple[Finding, ...]
    passed: tuple[Passed, ...]
    measurements: Measurements

    @property
    def is_healthy(self) -> bool:
        """Returns whether no fault was found."""
        return not self.findings

    def to_dict(self) -> dict[str, object]:
        """Returns everything for JSON."""
        return {
            "is_healthy": self.is_healthy,
            "findings": [_fields(finding) for finding in self.findings],
            "passed": [_fields(passed) for passed in self.passed],
            "measurements": self.measurements.to_dict(),
        }

    def __str__(self) -> str:
        return "\n".join([self._head(), *(f"- {line}" for line in (*self.findings, *self.passed))])

    def _repr_html_(self) -> str:
        rows = [(each.kind, each.sentence, each.fix) for each in self.findings]
        rows += [(f"no fault ({each.kind})", each.sentence, "") for each in self.passed]
        return f"<p>{self._head()}</p>{html_table(_HEADER, rows)}"

    def _head(self) -> str:
        count = len(self.findings)
        if not count:
            return "No fault was found: the policy is healthy in all that was measured."
        return f"The policy has {count} fault{'s' if count > 1 else ''}."


def _fields(result: Finding | Passed) -> dict[str, object]:
    return {**dataclasses.asdict(result), "measured": known(result.measured)}
