"""XLA's counts."""

import jax
import jax.numpy as jnp
import pytest

from benchmarks.measuring.counting import cost


@pytest.mark.parametrize("unroll", [False, 2])
def test_each_pass_of_a_loop_counts(unroll):
    x = jnp.ones((8, 8))

    def scan(x):
        return jax.lax.scan(lambda x, _: (x @ x, None), x, length=5, unroll=unroll)[0]

    def fori(x):
        return jax.lax.fori_loop(0, 5, lambda _, x: x @ x, x, unroll=unroll)

    assert cost(scan, x).flops == cost(fori, x).flops == 5 * cost(lambda x: x @ x, x).flops
