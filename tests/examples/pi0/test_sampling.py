"""Euler steps: the times, the result, and numbers of steps that are refused or traced."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.pi0.sampling import check_num_steps, integrate, step_times


@pytest.mark.parametrize("num_steps", [1, 3, 10])
def test_the_loop_has_the_times_of_step_times_to_the_bit(num_steps):
    seen = []

    def velocity(x, step, time):
        seen.append((int(step), float(time)))
        return x

    with jax.disable_jit():
        integrate(velocity, jnp.zeros(2), num_steps)
    times = step_times(num_steps)
    assert times.dtype == np.float32
    assert seen == list(enumerate(times.tolist()))
    np.testing.assert_allclose(times, 1 - np.arange(num_steps) / num_steps, rtol=1e-5)


def test_euler_steps_are_those_of_numpy():
    x = wanted = np.array([0.5, -2.0], np.float32)
    for time in step_times(7):
        wanted = wanted - (wanted * time + 1) / np.float32(7)
    ours = integrate(lambda x, step, time: x * time + 1, jnp.asarray(x), 7)
    np.testing.assert_allclose(ours, wanted, rtol=1e-5)


def test_a_traced_number_of_steps_is_the_static_one():
    def run(num_steps):
        return integrate(
            lambda x, step, time: x * time + 1, jnp.ones(3), check_num_steps(num_steps)
        )

    for num_steps in (1, 7):
        np.testing.assert_allclose(jax.jit(run)(num_steps), run(num_steps), rtol=1e-6)
    assert np.isnan(jax.jit(run)(0)).all()


@pytest.mark.parametrize(
    ("num_steps", "error", "message"),
    [
        (0, ValueError, "num_steps must be at least 1, got 0"),
        (1.5, TypeError, "num_steps must be an integer, got 1.5"),
        (True, TypeError, "num_steps must be an integer, got True"),
    ],
)
def test_bad_numbers_of_steps_are_refused(num_steps, error, message):
    with pytest.raises(error, match=message):
        check_num_steps(num_steps)


def test_a_number_of_numpy_becomes_a_python_int():
    assert type(check_num_steps(np.int64(3))) is int
