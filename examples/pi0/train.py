"""The command that trains π0 or π0.5.

    python -m examples.pi0.train debug --exp_name first
    python -m examples.pi0.train pi05_lerobot --data.root FOLDER --exp_name mine --dry_run
    python -m examples.pi0.train --config runs/pi0/pi05_lerobot/mine/train_config.json --resume

A preset is where the settings begin; `python -m examples.pi0.train PRESET --help` lists all of
them.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from pathlib import Path

import jax
import tyro
from rich.console import Console

from examples.pi0.training.configs import TrainConfig, from_json, nearest
from examples.pi0.training.loader_speed import measure_loader
from examples.pi0.training.loop import train
from examples.pi0.training.plan import make_plan, show_plan
from examples.pi0.training.presets import presets


def parse(arguments: Sequence[str]) -> TrainConfig:
    """Returns the settings of a command line.

    Raises:
        ValueError: There is no such preset, or settings contradict each other.
        SystemExit: A flag is wrong; the message is printed.
    """
    known = presets()
    name, *rest = [*arguments, ""][: len(arguments) or 1]
    if name == "--config":
        if not rest:
            raise ValueError("--config needs a file; pass the train_config.json of a run")
        return _override(from_json(Path(rest[0]).read_text(encoding="utf-8"), rest[0]), rest[1:])
    if name in ("-h", "--help", ""):
        raise SystemExit(_overview())
    if name not in known:
        raise ValueError(f"there is no preset {name!r}. {nearest(name, list(known))}")
    return _override(known[name][1], rest)


def _override(config: TrainConfig, arguments: Sequence[str]) -> TrainConfig:
    return tyro.cli(
        TrainConfig,
        default=config,
        args=list(arguments),
        use_underscores=True,
        config=(tyro.conf.AvoidSubcommands,),
    )


def _overview() -> str:
    lines = [__doc__ or "", "Presets:"]
    lines += [f"  {name}\n      {text}" for name, (text, _) in presets().items()]
    return "\n".join(lines)


def main(arguments: Sequence[str]) -> int:
    """Runs the command; returns the exit code."""
    console = Console()
    # As in openpi, so that a run that is started again does not compile again.
    # Older releases of jax compute something else with what they read from it.
    if "JAX_COMPILATION_CACHE_DIR" not in os.environ and jax.__version_info__ >= (0, 6):
        jax.config.update("jax_compilation_cache_dir", str(Path("~/.cache/jax").expanduser()))
    try:
        config = parse(arguments)
        plan = make_plan(config)
        console.print(show_plan(plan))
        if config.bench_loader:
            console.print(measure_loader(plan))
        elif not config.dry_run:
            train(plan, console)
    except (ValueError, OSError, RuntimeError, ImportError) as error:
        console.print(f"[red]{type(error).__name__}:[/] {error}", soft_wrap=True, highlight=False)
        return 1
    return 0


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
