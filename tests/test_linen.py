"""The Linen conditioner does what the NNX conditioner does."""

import flax.linen as nn
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import taskcond
import taskcond.linen
from tests.support.conditioner import FEATURES, make, time_emb


@pytest.mark.parametrize("kwargs", [{}, {"scale": 0.5}, {"dtype": jnp.bfloat16}])
def test_linen_equals_nnx_on_the_same_table(kwargs):
    conditioner = make(**kwargs)
    twin = taskcond.linen.TaskConditioner(5, FEATURES, **kwargs)
    variables = {"params": {"embedding": conditioner.embedding[...]}}
    emb, ids = time_emb(3), jnp.array([0, -1, 4])
    out = jax.jit(twin.apply)(variables, emb, ids)
    np.testing.assert_array_equal(out, nnx.jit(lambda c, e, i: c(e, i))(conditioner, emb, ids))
    np.testing.assert_array_equal(
        twin.apply(variables, ids, method="embed"), conditioner.embed(ids)
    )


def test_linen_has_the_same_parameter_path():
    class Model(nn.Module):
        @nn.compact
        def __call__(self, emb, ids):
            return taskcond.linen.TaskConditioner(5, FEATURES, name="task_embeddings")(emb, ids)

    variables = Model().init(jax.random.key(0), time_emb(2), jnp.array([0, 1]))
    assert variables["params"]["task_embeddings"]["embedding"].shape == (5, FEATURES)


def test_linen_drops_ids_in_training_alone():
    module = taskcond.linen.TaskConditioner(5, FEATURES, dropout_rate=1.0)
    emb, ids = time_emb(2), jnp.array([0, 1])
    variables = module.init(jax.random.key(0), emb, ids)
    rngs = {"dropout": jax.random.key(1)}
    out = module.apply(variables, emb, ids, deterministic=False, rngs=rngs)
    np.testing.assert_array_equal(out, emb)
    assert not np.array_equal(module.apply(variables, emb, ids), emb)


def test_linen_raises_the_same_errors():
    module = taskcond.linen.TaskConditioner(5, FEATURES)
    variables = module.init(jax.random.key(0), time_emb(1), jnp.array([0]))
    with pytest.raises(ValueError, match="out of range"):
        module.apply(variables, time_emb(1), jnp.array([5]))
    with pytest.raises(ValueError, match="task_id not found in batch"):
        module.apply(variables, time_emb(1))
    no_tasks = taskcond.linen.TaskConditioner(0, FEATURES)
    assert no_tasks.init(jax.random.key(0), time_emb(1)) == {}
