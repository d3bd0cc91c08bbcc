"""The policy of the quickstart."""

import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.quickstart import Policy
from taskcond import merge_into


def test_the_policy_equals_its_base_where_the_table_is_zero():
    base, model = (Policy(4, 4, 8, n, nnx.Rngs(n)) for n in (0, 3))
    merge_into(model, nnx.state(base, nnx.Param))
    table = {"task_embeddings": {"embedding": jnp.zeros((3, 96))}}
    merge_into(model, table, keep=".*")
    state, x_t, t = jnp.ones((2, 4)), jnp.ones((2, 8, 4)), jnp.array([0.2, 0.9])
    velocity = nnx.jit(lambda model, task_id: model.velocity(state, x_t, t, task_id))
    np.testing.assert_array_equal(velocity(model, jnp.array([0, 2])), velocity(base, None))
