"""A base and its fine-tunes, for tests of combining."""

from __future__ import annotations

import numpy as np

from taskcond import TaskVocabulary
from taskcond.checkpoint import (
    Recipe,
    Specialist,
    TaskConditioning,
    combine_checkpoints,
    load_params,
)
from taskcond.trees import flatten

KERNEL, BIAS, TABLE = "dense/kernel", "norm/scale", "task_embeddings/embedding"
NAMES = TaskVocabulary(["pour", "wipe", "cut"])


def tree(seed: int | None = None, rows: int = 3) -> dict:
    """The base, or a fine-tune of it."""
    rng = np.random.default_rng(0)
    base = {
        "dense": {"kernel": rng.standard_normal((30, 20)).astype(np.float32)},
        "norm": {"scale": rng.standard_normal(20).astype(np.float32)},
        "task_embeddings": {"embedding": rng.standard_normal((rows, 4)).astype(np.float32)},
    }
    if seed is not None:
        rng = np.random.default_rng(seed)
        for module in base.values():
            for name, x in module.items():
                module[name] = x + 0.1 * rng.standard_normal(x.shape).astype(np.float32)
    return base


def about(frames=None, **changes) -> TaskConditioning:
    return TaskConditioning(3, 4, vocabulary=NAMES, frames_seen=frames, **changes)


def recipe(saved, *, weights=(1.0, 1.0), **kwargs) -> Recipe:
    specialists = (Specialist(saved["a"], weights[0]), Specialist(saved["b"], weights[1]))
    return Recipe(specialists, base=saved["base"], **kwargs)


def combine(saved, tmp_path, **kwargs) -> dict[str, np.ndarray]:
    combine_checkpoints(recipe(saved, **kwargs), tmp_path / "out", overwrite=True)
    return flatten(load_params(tmp_path / "out"))


def parts(path: str) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """A leaf of the base, and the differences of both specialists."""
    base, a, b = (flatten(tree(seed))[path] for seed in (None, 1, 2))
    return base, a - base, b - base
