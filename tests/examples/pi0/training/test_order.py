"""The order of frames: weights, epochs, and strata."""

import pickle

import numpy as np
import pytest

from examples.pi0.training.order import WeightedOrder, stratified, task_weights


def test_equal_weights_show_each_frame_once_in_each_epoch():
    order = WeightedOrder(np.ones(97), seed=3)
    epochs = [[order[epoch * 97 + i] for i in range(97)] for epoch in range(3)]
    assert all(sorted(epoch) == list(range(97)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]


def test_frames_come_as_often_as_their_weights_say():
    weights = np.array([1.0, 2.0, 0.5, 0.5, 4.0])
    order = WeightedOrder(weights, seed=0)
    drawn = np.bincount([order[i] for i in range(5 * 1600)], minlength=5)
    np.testing.assert_allclose(drawn / drawn.sum(), weights / weights.sum(), atol=0.01)


def test_an_order_can_begin_anywhere_and_be_copied():
    order = WeightedOrder(np.ones(10), seed=1)
    late = [order[i] for i in range(25, 40)]
    fresh = pickle.loads(pickle.dumps(WeightedOrder(np.ones(10), seed=1)))
    assert [fresh[i] for i in range(25, 40)] == late


def test_temperature_balances_tasks():
    tasks, names = np.array([1] * 90 + [2] * 10), ["fold", "pour", "wipe"]
    by_frames = task_weights(tasks, names, 1.0, {})
    equal = task_weights(tasks, names, 0.0, {})
    assert by_frames[:90].sum() / by_frames.sum() == pytest.approx(0.9)
    assert equal[:90].sum() / equal.sum() == pytest.approx(0.5)
    by_hand = task_weights(tasks, names, 0.0, {"wipe": 3.0})
    assert by_hand[:90].sum() / by_hand.sum() == pytest.approx(0.25)


def test_wrong_factors_are_named():
    tasks, names = np.array([0]), ["pour", "fly"]
    with pytest.raises(ValueError, match="no frame has the tasks \\['fly'\\]"):
        task_weights(tasks, names, 1.0, {"fly": 2.0})
    with pytest.raises(ValueError, match="'pour': -1"):
        task_weights(tasks, names, 1.0, {"pour": -1.0})


def test_strata_take_from_each_task_in_turn():
    tasks = np.array([0] * 50 + [1] * 3 + [2] * 50)
    positions = stratified(tasks, 12, seed=0)
    assert tasks[positions].tolist() == [0, 1, 2] * 3 + [0, 2, 0]
    assert len(set(positions.tolist())) == 12
