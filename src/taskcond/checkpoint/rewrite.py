"""`rewrite`: a planned merge is carried out on disk, in pieces."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from taskcond.checkpoint.conditioning import TaskConditioning
from taskcond.checkpoint.open import Checkpoint
from taskcond.checkpoint.output import write_checkpoint
from taskcond.checkpoint.storage.leaf import Leaf, Piece
from taskcond.checkpoint.storage.output import Output
from taskcond.merging.finite import cast_array, count_nonfinite, warn_nonfinite
from taskcond.merging.plan import LeafPlan
from taskcond.merging.report import MergeReport


def rewrite(
    checkpoint: Checkpoint,
    output: Output,
    plan: Mapping[str, LeafPlan],
    target: Mapping[str, Any],
    values: Mapping[str, Any],
    conditioning: TaskConditioning | None,
    report: MergeReport,
) -> None:
    """Writes a merged checkpoint.

    Args:
        checkpoint: Where leaves are read.
        output: Where and how they are written.
        plan: How each leaf is made.
        target: Leaves that have the new dtypes.
        values: Arrays for the leaves that are not copied from the checkpoint.
        conditioning: The meaning of the new task table.
        report: Gets the number of NaN and Inf.
    """
    leaves = {
        path: (
            Leaf.of(values[path]) if path in values else checkpoint.leaves[str(part.source)]
        ).rechunked(target[path].dtype)
        for path, part in plan.items()
    }

    def pieces(path: str) -> Iterator[Piece]:
        source, leaf = plan[path].source, leaves[path]
        for box in leaf.chunks():
            if path in values:
                value = np.asarray(values[path])[(*box, ...)]
            else:
                value = checkpoint.read(str(source), box)
            value = cast_array(value, leaf.dtype)
            bad = count_nonfinite(value)
            if bad and source is not None:
                report.nonfinite[path] = report.nonfinite.get(path, 0) + bad
            yield box, value

    write_checkpoint(output, leaves, pieces, conditioning)
    warn_nonfinite(report.nonfinite, report.cast)
