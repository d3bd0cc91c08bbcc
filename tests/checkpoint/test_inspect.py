"""Says what is in a checkpoint."""

from __future__ import annotations

import numpy as np
from flax import nnx

from taskcond import TaskLoRA
from taskcond.checkpoint import (
    TaskConditioning,
    inspect_checkpoint,
    save_params,
)
from tests.support.checkpoints import (
    with_tasks,
)


def test_inspect_says_what_is_there(tmp_path):
    table = with_tasks(tmp_path / "x", frames=(5, 0, None), scale=0.5, fusion="add")
    found = inspect_checkpoint(tmp_path / "x")
    assert (found.kind, found.layout, found.leaves) == ("Orbax", "released", 3)
    assert (found.parameters, found.bytes) == (40, 160)
    assert found.modules == {"dense": (28, 112), "task_embeddings": (12, 48)}
    assert found.dtypes == {"float32": 40}
    norms = [task.norm for task in found.tasks]
    np.testing.assert_allclose(norms, np.linalg.norm(table, axis=1), rtol=1e-6)
    text = str(found)
    for part in ("scale 0.5, fusion add", "never trained  wipe", "5 frames  pour", "NaN/Inf"):
        assert part in text


def test_the_norm_of_a_task_is_that_of_all_it_has_in_the_table(tmp_path):
    lora = TaskLoRA(3, (4, 6), 2, rngs=nnx.Rngs(0))
    save_params(nnx.state(lora), tmp_path / "x", conditioning=TaskConditioning.of(lora))
    norms = [task.norm for task in inspect_checkpoint(tmp_path / "x").tasks]
    expected = np.linalg.norm(lora.down[...].reshape(3, -1), axis=1)
    np.testing.assert_allclose(norms, expected, rtol=1e-6)
