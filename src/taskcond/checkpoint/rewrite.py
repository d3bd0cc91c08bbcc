"""`rewrite`: a planned merge is carried out on disk, in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.output import write_checkpoint
from taskcond.checkpoint.storage.leaf import Leaf, Leaves, Piece
from taskcond.checkpoint.storage.output import Output
from taskcond.merging.finite import cast_array, count_nonfinite, warn_nonfinite
from taskcond.merging.plan import LeafPlan
from taskcond.merging.report import MergeReport


def rewrite(
    source: Leaves,
    output: Output,
    plan: Mapping[str, LeafPlan],
    target: Mapping[str, Any],
    values: Mapping[str, Any],
    conditioning: TaskConditioning | None,
    report: MergeReport,
    table: str | None = None,
) -> None:
    """Writes a merged checkpoint.

    Args:
        source: Where leaves are read.
        output: Where and how they are written.
        plan: How each leaf is made.
        target: Leaves that have the new dtypes.
        values: Arrays for the leaves that are not copied from the checkpoint.
        conditioning: The meaning of the new task table.
        report: Gets the number of NaN and Inf.
        table: The path of the new task table.
    """
    leaves = {
        path: (
            Leaf.of(values[path]) if path in values else source.leaves[str(part.source)]
        ).rechunked(target[path].dtype)
        for path, part in plan.items()
    }

    def pieces(path: str) -> Iterator[Piece]:
        origin, leaf = plan[path].source, leaves[path]
        for box in leaf.chunks():
            if path in values:
                value = np.asarray(values[path])[(*box, ...)]
            else:
                value = source.read(str(origin), box)
            value = cast_array(value, leaf.dtype)
            bad = count_nonfinite(value)
            if bad and origin is not None:
                report.nonfinite[path] = report.nonfinite.get(path, 0) + bad
            yield box, value

    write_checkpoint(output, leaves, pieces, conditioning, table)
    warn_nonfinite(report.nonfinite, report.cast)
