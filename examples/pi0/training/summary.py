"""The summary of a run, which a person can send to a colleague."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import jax

from examples.pi0.training.log import METRICS, read_metrics
from examples.pi0.training.pictures import draw_losses
from examples.pi0.training.plan import Plan

_PACKAGES = ("jax", "flax", "optax", "orbax-checkpoint", "taskcond")


def write_summary(folder: Path, plan: Plan, done: int) -> None:
    """Writes `README.md` and `losses.png` into the folder of a run."""
    rows = read_metrics(folder)
    draw_losses(rows, folder / "losses.png")
    config = plan.config
    validations = [row for row in rows if "val" in row]
    lines = [
        f"# {config.exp_name}",
        "",
        f"{done:,} of {config.num_train_steps:,} steps of {config.batch_size} frames, preset "
        f"`{config.preset}`, from {config.weight_loader.params_path or 'random weights'}.",
        "",
        *(_table(validations) if validations else ["There was no validation."]),
        "",
        "![losses](losses.png)",
        "",
    ]
    findings = next((row["findings"] for row in reversed(rows) if "findings" in row), None)
    if findings is not None:
        lines += ["## Are the ids used?", ""]
        lines += [f"- {finding}" for finding in findings] or ["Nothing is wrong."]
        lines += [""]
    if validations and "prompts" in validations[-1]:
        losses = validations[-1]["prompts"]
        lines += [
            f"The loss is {losses['right']:.4f} with the prompt of each frame, and "
            f"{losses['wrong']:.4f} with the prompt of another task.",
            "",
        ]
    rates = [row for row in rows if "steps_per_second" in row]
    if rates:
        lines += [
            f"Speed: {rates[-1]['steps_per_second']:.3g} steps per second; "
            f"{rates[-1]['data_wait_share']:.0%} of the time was spent waiting for data.",
            "",
        ]
    lines += [
        f"{', '.join(f'{name} {_version(name)}' for name in _PACKAGES)}, Python "
        f"{platform.python_version()}, {jax.local_device_count()} x "
        f"{jax.local_devices()[0].device_kind}. All numbers are in `{METRICS}`.",
        "",
    ]
    (folder / "README.md").write_text("\n".join(lines), encoding="utf-8")


def _version(name: str) -> str:
    try:
        return version(name)
    except PackageNotFoundError:  # on the path, and not installed
        return "of unknown version"


def _table(validations: list[dict[str, Any]]) -> list[str]:
    first, last = (row.get("val_ema", row["val"]) for row in (validations[0], validations[-1]))
    begin, end = validations[0]["step"], validations[-1]["step"]
    lines = [f"| task | loss after {begin} steps | after {end} steps |", "|---|---:|---:|"]
    for name, value in last.items():
        lines.append(f"| {name} | {first.get(name, float('nan')):.4f} | {value:.4f} |")
    return lines
