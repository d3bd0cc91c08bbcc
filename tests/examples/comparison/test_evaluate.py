"""The confusion of a policy on validation data."""

import numpy as np
import pytest
from flax import nnx

from examples.comparison.evaluate import evaluate
from tests.support.policies import TINY, Tiny


def test_a_policy_without_ids_is_at_chance(data):
    confusion = evaluate(TINY, Tiny(0, nnx.Rngs(0)), data, 3)
    assert confusion.accuracy == pytest.approx(1 / 3)
    np.testing.assert_allclose(
        confusion.matrix, confusion.matrix.mean(1, keepdims=True).repeat(3, 1)
    )


def test_no_more_frames_than_asked_for_are_used_and_the_result_repeats(data):
    policy = Tiny(3, nnx.Rngs(0))
    first, again = (evaluate(TINY, policy, data, 3, max_frames=128) for _ in range(2))
    assert first.matrix.sum() == pytest.approx(128)
    np.testing.assert_array_equal(first.matrix, again.matrix)
    np.testing.assert_array_equal(first.loss, again.loss)
