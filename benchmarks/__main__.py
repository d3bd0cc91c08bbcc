"""Runs benchmarks and writes their tables into `benchmarks/RESULTS.md`.

python -m benchmarks                all but `methods`, which takes 50 minutes, `checkpoints`,
                                    which takes 60 GB of disk, and `gpu`, which needs one
python -m benchmarks checkpoints    only that; the sections of the others stay as they are
"""

from __future__ import annotations

import datetime
import importlib
import os
import platform
import re
from importlib.metadata import version
from pathlib import Path
from typing import Literal, get_args

import jax
import tyro

RESULTS = Path(__file__).with_name("RESULTS.md")
Name = Literal[
    "overhead",
    "train_step",
    "sampling",
    "diagnose",
    "rollout",
    "loader",
    "training",
    "stages",
    "methods",
    "checkpoints",
    "gpu",
]
NAMES: tuple[Name, ...] = get_args(Name)
_SECTION = re.compile(r"^## (\w+)\n(.*?)(?=^## |\Z)", re.MULTILINE | re.DOTALL)


def section(name: str) -> str:
    """Runs a benchmark; returns its question, where it ran, and its table."""
    print(f"--- {name}")
    module = importlib.import_module(f"benchmarks.{name}")
    question = f"{module.__doc__}".splitlines()[0]
    return f"{question}\n\n_{environment()}_\n\n{module.main()}"


def environment() -> str:
    """Returns date, versions and hardware, in one line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("jax", "flax", "numpy"))
    device = jax.devices()[0].device_kind
    return (
        f"{datetime.date.today()}; Python {platform.python_version()}, {versions}; "
        f"{device}, {platform.machine()}, {os.cpu_count()} cores"
    )


def main(names: tyro.conf.Positional[tuple[Name, ...]] = NAMES[:-3]) -> None:
    """Runs benchmarks and writes their tables into `benchmarks/RESULTS.md`.

    Args:
        names: The benchmarks; by default all but `methods`, `checkpoints` and `gpu`; see above.
    """
    old = RESULTS.read_text() if RESULTS.exists() else ""
    sections = {name: text.strip() for name, text in _SECTION.findall(old)}
    for name in names:
        sections[name] = section(name)
        text = "# Results\n\nWritten by `make bench`.\n"
        text += "".join(f"\n## {name}\n\n{sections[name]}\n" for name in NAMES if name in sections)
        partial = RESULTS.with_suffix(".partial")
        partial.write_text(text)
        partial.rename(RESULTS)


if __name__ == "__main__":
    tyro.cli(main)
