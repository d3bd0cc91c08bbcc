"""What the tests of checkpoints share."""

from __future__ import annotations

import warnings

import jax
import numpy as np
import orbax.checkpoint as ocp

from taskcond import TaskVocabulary
from taskcond.checkpoint import (
    TaskConditioning,
    load_params,
    save_params,
)
from taskcond.trees import flatten
from tests.support import FIXTURES

CHECKPOINTS = FIXTURES / "checkpoints"
TINY, TASKS = CHECKPOINTS / "pi05_tiny", CHECKPOINTS / "pi05_tasks_tiny"
FORMATS = FIXTURES / "formats"
TABLE = "task_embeddings/embedding"
NAMES = TaskVocabulary(["pour", "wipe", "cut"])


def golden(name):
    with np.load(FIXTURES / "golden" / f"{name}.npz") as file:
        prefix = "params/"
        return {key.removeprefix(prefix): file[key] for key in file if key.startswith(prefix)}


def small(rows=2, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        "dense": {
            "kernel": rng.standard_normal((6, 4)).astype(dtype),
            "bias": np.zeros(4, dtype),
        },
        "task_embeddings": {"embedding": rng.standard_normal((rows, 4)).astype(dtype)},
    }


def assert_same(actual, expected):
    actual, expected = flatten(actual), flatten(expected)
    assert sorted(actual) == sorted(expected)
    for path in expected:
        a, b = np.asarray(actual[path]), np.asarray(expected[path])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.tobytes() == b.tobytes(), path


def with_orbax(path):
    """Reads a checkpoint as a user of plain Orbax does, in any release."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path.resolve())


def with_tasks(path, frames=(5, 7, 9), **about):
    conditioning = TaskConditioning(3, 4, vocabulary=NAMES, frames_seen=frames, **about)
    save_params(small(3), path, conditioning=conditioning)
    return small(3)["task_embeddings"]["embedding"]


def load_ignoring_warnings(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_params(path)


def target_with_tasks(num_tasks, features=16):
    shapes = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in golden("pi05_f32").items()
    }
    table = np.random.default_rng(3).standard_normal((num_tasks, features)).astype(np.float32)
    return {**shapes, TABLE: table}


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = value
    return tree
