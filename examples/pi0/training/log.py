"""The log of a run: a progress bar, JSON lines, TensorBoard, and Weights & Biases if asked for."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import psutil
from rich.console import Console
from rich.progress import TextColumn
from tensorboardX import SummaryWriter

from examples.pi0.training.configs import TrainConfig, to_json
from examples.training import training_progress

METRICS = "metrics.jsonl"


class RunLog:
    """Writes what a run measures.

    The JSON lines are the truth. A resumed run removes the lines after the step that it begins
    with, so that each step is there once.

    Args:
        folder: The folder of the run.
        config: The run's settings.
        first: The number of steps that are done.
        console: Where people look.
    """

    def __init__(self, folder: Path, config: TrainConfig, first: int, console: Console):
        self._file = folder / METRICS
        kept = [row for row in read_metrics(folder) if row["step"] <= first]
        text = "".join(json.dumps(row) + "\n" for row in kept)
        self._file.write_text(text, encoding="utf-8")
        # Weights & Biases drops steps that it has seen, so that its own count is not used.
        self._board = SummaryWriter(str(folder / "tensorboard"), purge_step=first)
        self._wandb = _start_wandb(folder, config) if config.wandb else None
        self.console = console
        self._progress = training_progress(
            TextColumn("{task.fields[rate]:.2f} steps/s"),
            TextColumn("data {task.fields[wait]:.0%}"),
            console=console,
        )
        self._bar = self._progress.add_task(
            "training",
            total=config.num_train_steps,
            completed=first,
            loss=math.nan,
            rate=math.nan,
            wait=math.nan,
        )

    def write(self, step: int, values: Mapping[str, Any]) -> None:
        """Writes what was measured after a number of steps."""
        row = {"step": step, "time": time.time(), **values}
        with open(self._file, "a", encoding="utf-8") as file:
            file.write(json.dumps(row) + "\n")
        for name, value in _numbers(values).items():
            self._board.add_scalar(name, value, step)
        if self._wandb is not None:
            self._wandb.log({"step": step, **_numbers(values)})

    def show(self, step: int, loss: float, rate: float, wait: float) -> None:
        """Moves the progress bar."""
        self._progress.update(self._bar, completed=step, loss=loss, rate=rate, wait=wait)

    def say(self, text: Any) -> None:
        """Prints above the progress bar."""
        self._progress.console.print(text)

    def __enter__(self) -> RunLog:
        self._progress.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._progress.stop()
        self._board.close()
        if self._wandb is not None:
            self._wandb.finish()


def read_metrics(folder: Path) -> list[dict[str, Any]]:
    """Returns the lines of a run's log; a last line that was cut off is left out."""
    path = folder / METRICS
    if not path.exists():
        return []
    rows = []
    for line in path.read_text(encoding="utf-8").split("\n"):
        try:
            rows.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return rows


def memory() -> dict[str, float]:
    """Returns the memory of this process, and the peak of each device that knows it, in GiB."""
    import jax

    found = {"memory/host_gib": psutil.Process().memory_info().rss / 2**30}
    for device in jax.local_devices():
        about = device.memory_stats() or {}
        if "peak_bytes_in_use" in about:
            found[f"memory/device_{device.id}_peak_gib"] = about["peak_bytes_in_use"] / 2**30
    return found


def _numbers(values: Mapping[str, Any], prefix: str = "") -> dict[str, float]:
    flat: dict[str, float] = {}
    for name, value in values.items():
        if isinstance(value, Mapping):
            flat.update(_numbers(value, f"{prefix}{name}/"))
        elif isinstance(value, int | float):
            flat[prefix + name] = value
    return flat


def _start_wandb(folder: Path, config: TrainConfig) -> Any:
    try:
        import wandb  # pyright: ignore[reportMissingImports]
    except ImportError as error:
        raise ImportError(
            "--wandb is set, but wandb is not installed. Run pip install wandb, or leave the flag "
            "out."
        ) from error
    name = folder / "wandb_id.txt"
    known = name.read_text().strip() if name.exists() else None
    run = wandb.init(
        project="taskcond",
        name=config.exp_name,
        id=known,
        resume="allow",
        config=json.loads(to_json(config)),
    )
    name.write_text(run.id)
    run.define_metric("*", step_metric="step")
    return run
