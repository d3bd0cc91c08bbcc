"""The folder of a run: who may write to it."""

from __future__ import annotations

import contextlib
import fcntl
import shutil
from collections.abc import Iterator
from pathlib import Path

from examples.pi0.training.configs import CONFIG_FILE, TrainConfig, differences, from_json, to_json

_LOCK = ".lock"
_MAY_DIFFER = {
    "resume", "overwrite", "dry_run", "bench_loader", "log_interval", "val_log_interval",
    "val_num_batches", "diagnose_share", "save_interval", "keep_period", "max_to_keep", "wandb",
    "stall_seconds", "devices", "fsdp_devices", "runs_dir", "data.num_workers",
}  # fmt: skip


@contextlib.contextmanager
def run_folder(config: TrainConfig) -> Iterator[Path]:
    """Gives the folder of a run to this process alone, and writes its settings into it.

    An existing run is deleted if `overwrite` is set, and goes on if `resume` is.

    Raises:
        ValueError: The run exists and neither is set, or it cannot go on with these settings. The
            message lists the settings that differ.
        RuntimeError: A living process uses the folder.
    """
    folder = config.folder
    check_folder(config)
    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / _LOCK, "a") as lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except OSError as error:
            raise RuntimeError(
                f"{folder} is in use by another process. Wait until it ends, or pass another "
                "--exp_name."
            ) from error
        if config.overwrite:
            for path in folder.iterdir():
                if path.name != _LOCK:
                    shutil.rmtree(path) if path.is_dir() else path.unlink()
        (folder / CONFIG_FILE).write_text(to_json(config), encoding="utf-8")
        yield folder


def check_folder(config: TrainConfig, *, is_resolved: bool = True) -> None:
    """Raises `ValueError` if the folder of a run must not be written to; writes nothing.

    Args:
        config: The settings.
        is_resolved: Whether the settings are those that a run would write. Otherwise they are not
            compared with those of an existing run.
    """
    folder, file = config.folder, config.folder / CONFIG_FILE
    used = folder.exists() and any(path.name != _LOCK for path in folder.iterdir())
    if not used:
        if config.resume:
            raise ValueError(
                f"--resume is set, but there is no run in {folder}. Remove --resume to begin one, "
                "or correct --exp_name."
            )
        return
    if not file.exists():
        raise ValueError(
            f"{folder} holds files that are not of a run. Pass another --exp_name, or move them."
        )
    if config.overwrite:
        return
    if not config.resume:
        raise ValueError(
            f"there is a run in {folder}. Pass --resume to go on with it, --overwrite to delete it "
            "and begin anew, or another --exp_name."
        )
    if not is_resolved:
        return
    changed = differences(from_json(file.read_text(encoding="utf-8"), str(file)), config)
    found = {name: pair for name, pair in changed.items() if name not in _MAY_DIFFER}
    if found:
        lines = "".join(f"\n  - {name} was {a!r}, and is {b!r}" for name, (a, b) in found.items())
        raise ValueError(
            f"the run in {folder} cannot go on with other settings:{lines}\nResume with "
            f"--config {file}, or begin a new run with another --exp_name."
        )
