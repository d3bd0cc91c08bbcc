"""Pictures of a run: the first batch, and the loss by task."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import matplotlib.pyplot as plt

_SHOWN = 8  # frames


def draw_batch(batch: Mapping[str, Any], path: Path) -> None:
    """Draws what each camera shows in the first frames of a batch."""
    cameras = list(batch["images"])
    count = min(_SHOWN, len(batch["state"]))
    size = (1.6 * count, 1.8 * len(cameras))
    figure, axes = plt.subplots(len(cameras), count, figsize=size, squeeze=False)
    for row, camera in zip(axes, cameras, strict=True):
        for frame, axis in enumerate(row):
            axis.imshow(batch["images"][camera][frame])
            axis.set_xticks([])
            axis.set_yticks([])
            if not batch["image_masks"][camera][frame]:
                axis.set_xlabel("no camera", fontsize=6)
        row[0].set_ylabel(camera, fontsize=7)
    for frame, axis in enumerate(axes[0]):
        axis.set_title(f"task {batch['task_id'][frame]}", fontsize=7)
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)


def draw_losses(rows: Sequence[Mapping[str, Any]], path: Path) -> None:
    """Draws the loss of training, and that of validation by task.

    Args:
        rows: The lines of the log.
        path: Where the picture goes.
    """
    figure, (left, right) = plt.subplots(1, 2, figsize=(11, 4))
    losses = [(row["step"], row["loss"]) for row in rows if "loss" in row]
    if losses:
        left.plot(*zip(*losses, strict=True))
    left.set(title="loss of training", xlabel="step", yscale="log")
    found = [(row["step"], row.get("val_ema", row["val"])) for row in rows if "val" in row]
    names = found[-1][1] if found else {}
    for name in names:
        points = [(step, values[name]) for step, values in found if name in values]
        style = {"linewidth": 3, "color": "black"} if name == "all" else {"linewidth": 1}
        right.plot(*zip(*points, strict=True), label=name, marker=".", **style)
    right.set(title="loss of validation, by task", xlabel="step", yscale="log")
    if 0 < len(names) <= 12:
        right.legend(fontsize=7, loc="upper left", bbox_to_anchor=(1, 1))
    figure.tight_layout()
    figure.savefig(path, dpi=120, bbox_inches="tight")
    plt.close(figure)
