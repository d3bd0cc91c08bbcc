"""Statistics are those of NumPy, and normalized values are bounded."""

import numpy as np
import pytest

from examples.lerobot import Stats, load_stats, normalize, save_stats, unnormalize
from examples.lerobot.stats import StatsBuilder, pool

MODES = ("quantile", "zscore")


@pytest.fixture
def values():
    rng = np.random.default_rng(0)
    result = rng.normal(size=(3000, 6)) * [1, 5, 0.2, 1, 0, 1e-4]
    result[:, 3] = rng.random(3000) < 0.003  # a gripper that is nearly always open
    result[:, 4] = 0.7  # never moves
    return result


def test_statistics_are_those_of_numpy(values):
    stats = Stats.of(values)
    np.testing.assert_allclose(stats.mean, values.mean(0))
    np.testing.assert_allclose(stats.std, values.std(0), atol=1e-12)
    np.testing.assert_array_equal(stats.min, values.min(0))
    np.testing.assert_array_equal(stats.max, values.max(0))
    np.testing.assert_allclose(stats.q01, np.quantile(values, 0.01, axis=0))
    assert stats.count == 3000


def test_statistics_of_pieces_are_those_of_the_whole(values):
    builder = StatsBuilder()
    for piece in np.array_split(values, 17):
        builder.add(piece)
    whole, pieces = Stats.of(values), builder.build()
    for name in ("mean", "std", "min", "max", "q01", "q99"):
        np.testing.assert_allclose(getattr(pieces, name), getattr(whole, name), atol=1e-9)


def test_quantiles_of_more_frames_than_are_kept_are_close():
    builder = StatsBuilder()
    ramp = np.linspace(0, 1, 450_000)[:, None]
    for piece in np.array_split(ramp, 100):
        builder.add(piece)
    stats = builder.build()
    np.testing.assert_allclose([stats.q01[0], stats.q99[0]], [0.01, 0.99], atol=1e-3)


def test_pooled_statistics_are_those_of_all_frames(values):
    pooled = pool([Stats.of(values[:700]), Stats.of(values[700:])])
    whole = Stats.of(values)
    for name in ("mean", "std", "min", "max"):
        np.testing.assert_allclose(getattr(pooled, name), getattr(whole, name), atol=1e-9)
    assert (pooled.q01 <= whole.q01 + 1e-12).all()
    assert (pooled.q99 >= whole.q99 - 1e-12).all()


def test_still_and_narrow_dimensions_are_found(values):
    stats = Stats.of(values)
    assert np.flatnonzero(stats.still).tolist() == [4]
    assert np.flatnonzero(stats.narrow()).tolist() == [3, 5]


@pytest.mark.parametrize("mode", MODES)
def test_normalizing_and_back_is_the_identity_on_the_data(values, mode):
    stats = Stats.of(values)
    back = unnormalize(normalize(values, stats, mode), stats, mode)
    np.testing.assert_allclose(back, values, atol=1e-9)


@pytest.mark.parametrize("mode", MODES)
def test_nothing_blows_up_on_the_data_or_far_away_from_it(values, mode):
    stats = Stats.of(values)
    for x in (values, values + 1.6, values * 1e6):
        assert np.abs(normalize(x, stats, mode)).max() <= 10


def test_a_range_of_a_thousandth_does_not_become_thousands():
    # Nearly all within 1e-3, and -1.6 once: dividing by the quantiles' range gives -3200.
    x = np.concatenate([np.linspace(0, 1e-3, 999), [-1.6]])[:, None]
    assert np.abs(normalize(x, Stats.of(x))).max() <= 10


@pytest.mark.parametrize("mode", MODES)
def test_a_dimension_that_never_moves_is_zero_and_comes_back_as_it_was(values, mode):
    stats = Stats.of(values)
    assert (normalize(values, stats, mode)[:, 4] == 0).all()
    assert (unnormalize(np.full((2, 6), 0.3), stats, mode)[:, 4] == 0.7).all()


def test_usual_dimensions_are_in_unit_range(values):
    stats = Stats.of(values)
    quantile = normalize(values, stats, "quantile")
    outer = np.quantile(quantile[:, :3], [0.01, 0.99], axis=0)
    np.testing.assert_allclose(outer, [[-1] * 3, [1] * 3])
    np.testing.assert_allclose(normalize(values, stats, "zscore")[:, :3].std(0), 1)


def test_float32_stays_float32(values):
    stats = Stats.of(values)
    x = values.astype(np.float32)
    assert normalize(x, stats).dtype == np.float32
    assert unnormalize(x, stats).dtype == np.float32


def test_an_unknown_mode_is_refused(values):
    with pytest.raises(Exception, match="mode"):
        normalize(values, Stats.of(values), "minmax")


def test_statistics_survive_saving(tmp_path, values):
    stats = Stats.of(values)
    save_stats(tmp_path / "stats.json", {"state": stats})
    loaded = load_stats(tmp_path / "stats.json")["state"]
    np.testing.assert_array_equal(loaded.q99, stats.q99)
    assert loaded.count == stats.count


def test_a_file_that_holds_no_statistics_is_refused(tmp_path):
    (tmp_path / "stats.json").write_text('{"norm_stats": {"state": {"mean": [0]}}}')
    with pytest.raises(ValueError, match="stats.json is not a file of save_stats"):
        load_stats(tmp_path / "stats.json")
