"""Leaves out the tests that need an extra which is not installed, and says so at the end."""

import importlib.util
from pathlib import Path

ROOT = Path(__file__).parent
EXTRAS = {
    "examples": (
        "av",
        "examples",
        "tests/examples",
        "tests/checkpoint/test_round_trip.py",
        "tests/data/test_lerobot_tasks.py",
        "tests/integrations/test_pages.py",
        *(f"tests/support/{name}.py" for name in ("golden", "lerobot", "policies", "tiny_pi0")),
    ),
    "metaworld": (
        "metaworld",
        "benchmarks/methods",
        "examples/metaworld",
        "examples/pi0/metaworld.py",
        "examples/pi0/rollout.py",
        "tests/benchmarks",
        "tests/examples/metaworld",
        "tests/examples/pi0/test_metaworld.py",
        "tests/examples/pi0/test_rollout.py",
    ),
    "training": (
        "tensorboardX",
        "examples/pi0/train.py",
        "examples/pi0/training",
        "tests/examples/pi0/training",
        *(f"tests/support/{name}.py" for name in ("b1k", "runs")),
    ),
    "checkpoint": ("zstandard", "tests/checkpoint"),
}
"""For each extra a module that it installs, and what needs it."""

MISSING = {
    extra: paths
    for extra, (module, *paths) in EXTRAS.items()
    if importlib.util.find_spec(module) is None
}
collect_ignore_glob = [
    f"{ROOT / path}{end}" for paths in MISSING.values() for path in paths for end in ("", "/*")
]


def pytest_terminal_summary(terminalreporter):
    """Lists what was left out."""
    for extra, paths in MISSING.items():
        terminalreporter.write_line(
            f"Left out without the extra {extra}: {', '.join(paths)}. "
            f"Install it with pip install -e '.[{extra}]'."
        )
