"""task_confusion: predicted by the smallest loss, ties shared."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskcond import NULL_TASK
from taskcond.diagnostics.confusion import losses_by_task, task_confusion


def test_a_policy_that_does_not_see_the_id_is_at_chance():
    ids = np.arange(40) % 8
    losses = losses_by_task(lambda _: jnp.linspace(0, 1, 40), 40, 8)
    result = task_confusion(losses, ids)
    assert result.accuracy == pytest.approx(1 / 8)
    np.testing.assert_allclose(result.matrix, np.full((8, 8), 5 / 8))


@pytest.mark.parametrize("jit", [False, True])
def test_the_smallest_loss_predicts_the_task(jit):
    target = jnp.array([0, 2, 1, 1])

    def run():
        return losses_by_task(lambda ids: (ids - target) ** 2.0, 4, 3)

    losses = (jax.jit(run) if jit else run)()
    result = task_confusion(losses, np.array([0, 2, 1, 0]))
    assert result.matrix.tolist() == [[1, 1, 0], [0, 1, 0], [0, 0, 1]]
    assert result.accuracy == 0.75
    assert result.loss.tolist() == [0.5, 0.0, 0.0]


def test_batches_add_up():
    rng = np.random.default_rng(0)
    losses, ids = rng.random((30, 4)), rng.integers(0, 3, 30)  # task 3 has no sample
    whole = task_confusion(losses, ids)
    parts = task_confusion(losses[:9], ids[:9]) + task_confusion(losses[9:], ids[9:])
    np.testing.assert_array_equal(parts.matrix, whole.matrix)
    np.testing.assert_allclose(parts.loss, whole.loss)
    assert np.isnan(whole.loss[3])


def test_bad_ids_and_losses_are_refused():
    with pytest.raises(ValueError, match="out of range"):
        task_confusion(np.zeros((1, 2)), np.array([2]))
    with pytest.raises(ValueError, match="NULL_TASK"):
        task_confusion(np.zeros((1, 2)), np.array([NULL_TASK]))
    with pytest.raises(ValueError, match="the loss of 1 samples is NaN"):
        task_confusion(np.array([[0.0, np.nan]]), np.array([0]))
