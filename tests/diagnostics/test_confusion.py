"""task_confusion: predicted by the smallest loss, ties shared; what a person reads of it."""

import json
import sys

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from taskcond import NULL_TASK
from taskcond.diagnostics import losses_by_task, task_confusion
from tests.support import as_untyped_code


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
    with pytest.raises(ValueError, match="the loss of 1 samples is NaN or Inf"):
        task_confusion(np.array([[0.0, np.nan]]), np.array([0]))


NAMES = ("pour", "wipe", "never")


@pytest.fixture
def confusion():
    losses = np.array([[1.0, 2.0, 4.0], [3.0, 1.0, 5.0], [1.0, 2.0, 3.0], [4.0, 4.0, 8.0]])
    without = np.array([2.0, 4.0, 2.0, 6.0])
    return task_confusion(losses, np.array([0, 0, 1, 1]), names=NAMES, without=without)


def test_effect_sizes_are_means_over_samples(confusion):
    assert (confusion.right, confusion.without) == (10 / 4, 14 / 4)
    assert confusion.wrong == (2 + 4 + 1 + 5 + 1 + 3 + 4 + 8) / 8
    assert confusion.effect == confusion.effect_without == (3.5 - 2.5) / 2.5
    assert confusion.rises[:2].tolist() == [[0, -0.25, 1.25], [-0.5 / 3, 0, 2.5 / 3]]
    assert confusion.loss_under[:2].tolist() == [[2, 1.5, 4.5], [2.5, 3, 5.5]]
    assert confusion.loss_without[:2].tolist() == [3, 4]


def test_the_worst_pairs_come_first(confusion):
    assert confusion.worst_pairs() == [("wipe", "pour", 0.75), ("pour", "wipe", 0.5)]
    assert confusion.worst_pairs(1) == [("wipe", "pour", 0.75)]


def test_the_interval_is_wilsons(confusion):
    assert confusion.accuracy == 0.375
    # The roots of (p - 0.375)^2 = 1.96^2 p (1 - p) / 4.
    square = 1.96**2 / 4
    roots = np.roots([1 + square, -(2 * 0.375 + square), 0.375**2])
    np.testing.assert_allclose(confusion.interval, sorted(roots))
    assert confusion.chance == 1 / 3


def test_print_shows_a_table(confusion):
    assert str(confusion).splitlines() == [
        "task       samples  told right  loss  wrong id  no id",
        "pour       2        50.0%       2     3         3",
        "wipe       2        25.0%       3     4         4",
        "all tasks  4        37.5%       2.5   3.5       3.5",
        "",
        "told right: 37.5% (95 % interval 9.2% to 78.1%); chance is 33.3%",
        "a wrong id changes the loss by +40%",
        "no id changes the loss by +40%",
        "taken for another task: 'wipe' for 'pour', 75.0%",
        "taken for another task: 'pour' for 'wipe', 50.0%",
    ]
    html = confusion._repr_html_()
    assert "<tr><td>pour</td><td>2</td><td>50.0%</td><td>2</td><td>3</td><td>3</td></tr>" in html
    assert "<p>taken for another task: &#x27;wipe&#x27; for" in html


def test_the_numbers_go_to_json_and_unknown_ones_are_null(confusion):
    content = json.loads(json.dumps(confusion.to_dict()))
    assert content["names"] == ["pour", "wipe", "never"]
    assert content["matrix"] == [[1, 1, 0], [1.5, 0.5, 0], [0, 0, 0]]
    assert content["loss"] == [2, 3, None]
    assert (content["effect"], content["accuracy"]) == (confusion.effect, 0.375)
    few = task_confusion(np.array([[1.0, 2.0]]), np.array([0])).to_dict()
    assert (few["without"], few["loss_without"], few["names"]) == (None, None, ["0", "1"])


def test_the_plot_shows_the_matrix_and_the_losses(confusion):
    pytest.importorskip("matplotlib", reason="needs the extra examples")
    left, right = confusion.plot().axes[:2]
    assert left.get_images()[0].get_array().tolist() == [[50, 50, 0], [75, 25, 0]]
    assert [line.get_xdata().tolist() for line in right.lines[:2]] == [[2, 3], [3, 4]]


def test_a_plot_without_matplotlib_says_how_to_get_it(confusion, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    with pytest.raises(ImportError, match="pip install matplotlib"):
        confusion.plot()


def test_batches_with_all_their_losses_add_up(confusion):
    rng = np.random.default_rng(0)
    losses, ids, without = rng.random((30, 3)), rng.integers(0, 2, 30), rng.random(30)
    parts = [
        task_confusion(losses[part], ids[part], names=NAMES, without=without[part])
        for part in (slice(11), slice(11, None))
    ]
    whole, added = task_confusion(losses, ids, names=NAMES, without=without), parts[0] + parts[1]
    np.testing.assert_allclose(added.loss_under, whole.loss_under)
    np.testing.assert_allclose(added.loss_without, whole.loss_without)
    np.testing.assert_allclose(added.effect, whole.effect)
    with pytest.raises(ValueError, match=r"\['pour', 'wipe', 'never'\] and 3 tasks \[\]"):
        confusion + task_confusion(losses, ids)


def test_losses_of_zero_and_below_have_effects():
    zero = task_confusion(np.array([[0.0, 1.0], [0.0, 0.0]]), np.array([0, 1]))
    assert (zero.effect, zero.rises.tolist()) == (np.inf, [[0, np.inf], [0, 0]])
    assert task_confusion(np.array([[-2.0, -1.0]]), np.array([0])).effect == 0.5


def test_losses_that_differ_by_rounding_alone_share_the_sample():
    losses = np.array([[1.0, np.nextafter(np.float32(1), np.float32(0))]])
    assert task_confusion(losses, np.array([0])).accuracy == 0.5


def test_bad_losses_and_lengths_are_named():
    losses = np.array([[1.0, np.inf], [np.nan, 2.0], [1.0, 2.0]])
    with pytest.raises(ValueError, match=r"of 2 samples .* every id; .* the tasks \['a', 'b'\]"):
        task_confusion(losses, np.array([0, 1, 1]), names=["a", "b"])
    with pytest.raises(ValueError, match=r"under the ids \[1\]; .* the tasks \[0\]"):
        task_confusion(losses[:1], np.array([0]))
    with (
        as_untyped_code(),
        pytest.raises(ValueError, match="losses has 3 samples, but without has 1"),
    ):
        task_confusion(losses, np.array([0, 1, 1]), without=np.zeros(1))
    with pytest.raises(ValueError, match="2 ids, but there are 1 names"):
        task_confusion(losses[2:], np.array([0]), names=["a"])
