"""losses_by_task: all ids in one pass, what they share computed once."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskcond.diagnostics import losses_by_task
from tests.support import as_untyped_code


@pytest.mark.parametrize("ids_at_once", [None, 1, 2, 3, 4, 9])
def test_every_sample_has_its_loss_under_every_id_and_under_none(ids_at_once):
    offset = jnp.array([10.0, 20.0])
    losses = losses_by_task(lambda ids: offset + ids, 2, 3, null=True, ids_at_once=ids_at_once)
    assert losses.tolist() == [[10, 11, 12, 9], [20, 21, 22, 19]]


def test_the_prefix_is_computed_once_and_given_to_the_loss():
    calls = []

    def prefix():
        calls.append(None)
        return jnp.array([1.0, 2.0])

    losses = losses_by_task(lambda ids, x: x * ids, 2, 3, prefix=prefix)
    assert losses.tolist() == [[0, 1, 2], [0, 2, 4]]
    assert len(calls) == 1


def test_what_does_not_depend_on_the_id_is_computed_once():
    a = jnp.ones((4, 4))

    def loss(ids):
        return (a @ a)[:, 0] + jnp.sin(ids * 1.0)

    program = str(jax.make_jaxpr(lambda: losses_by_task(loss, 4, 5))())
    assert program.count("dot_general") == 1
    assert "f32[5,4] = sin" in program  # all ids together
    assert "f32[5,4] = dot_general" not in program


def test_a_loss_of_another_shape_and_a_pass_of_no_id_are_refused():
    with (
        as_untyped_code(),
        pytest.raises(ValueError, match=r"shape \(\), but must be \[2\].*not over samples"),
    ):
        losses_by_task(lambda ids: jnp.sum(ids * 1.0), 2, 3)
    with pytest.raises(ValueError, match="ids_at_once must be at least 1, got 0"):
        losses_by_task(lambda ids: ids * 1.0, 2, 3, ids_at_once=0)


def test_one_pass_gives_what_single_calls_give():
    x = jax.random.normal(jax.random.key(0), (7, 16))
    table = jax.random.normal(jax.random.key(1), (5, 16))

    def loss(ids):
        return jnp.square(x - table[ids]).mean(-1)

    single = np.stack([loss(jnp.full(7, i)) for i in range(5)], axis=1)
    np.testing.assert_allclose(losses_by_task(loss, 7, 5), single, rtol=1e-6)


def test_few_ids_at_once_bound_the_memory():
    def loss(ids):
        return jnp.sin(ids * 1.0)

    program = str(jax.make_jaxpr(lambda: losses_by_task(loss, 4, 6, ids_at_once=2))())
    assert "f32[2,4] = sin" in program
    assert "f32[6,4] = sin" not in program
