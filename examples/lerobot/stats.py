"""Statistics of states and actions, and a normalization by them whose result is bounded."""

from __future__ import annotations

import dataclasses
import json
import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import numpy as np
from jaxtyping import Bool, Float

Mode = Literal["quantile", "zscore"]

_BOUND = 10.0  # normalized values lie within +-_BOUND
_SAMPLE = 100_000  # frames kept for the quantiles, which are exact for up to so many frames


@dataclasses.dataclass(frozen=True)
class Stats:
    """The statistics of one key, each float64 of shape `[d]`; `count` is the number of frames.

    Those of chunks of actions may be of shape `[h, d]`, with a row for each step.
    """

    mean: Float[np.ndarray, "*h d"]
    std: Float[np.ndarray, "*h d"]
    min: Float[np.ndarray, "*h d"]
    max: Float[np.ndarray, "*h d"]
    q01: Float[np.ndarray, "*h d"]
    q99: Float[np.ndarray, "*h d"]
    count: int

    @classmethod
    def of(cls, values: Float[np.ndarray, "n d"]) -> Stats:
        """Returns the statistics of an array.

        >>> stats = Stats.of(np.array([[0.0, 5.0], [1.0, 5.0]]))
        >>> stats.mean.tolist(), stats.still.tolist()
        ([0.5, 5.0], [False, True])
        """
        builder = StatsBuilder()
        builder.add(values)
        return builder.build()

    @property
    def still(self) -> Bool[np.ndarray, "*h d"]:
        """Says for each dimension whether it is constant, except for rounding."""
        size = np.maximum(1.0, np.maximum(np.abs(self.min), np.abs(self.max)))
        return (self.max - self.min) <= 1e-6 * size

    def narrow(self, min_range: float = 1e-2) -> Bool[np.ndarray, "*h d"]:
        """Says for each dimension whether it moves, but over a range too small to divide by."""
        safe = np.maximum(min_range, (self.max - self.min) / _BOUND * 2)
        return ~self.still & (self.q99 - self.q01 < safe)


class StatsBuilder:
    """Computes statistics array by array, so that a dataset need not fit into memory."""

    def __init__(self):
        self._count = 0
        self._step = 1
        self._sample: list[np.ndarray] = []

    def add(self, values: Float[np.ndarray, "n d"]) -> None:
        """Adds `n` frames."""
        values = np.asarray(values, np.float64)
        if not len(values):
            return
        mean, square = values.mean(0), values.var(0) * len(values)
        low, high = values.min(0), values.max(0)
        if self._count:
            if len(mean) != len(self._mean):
                raise ValueError(f"{len(mean)} dimensions, but {len(self._mean)} in earlier frames")
            # The sum of squares around the common mean of both parts (Chan et al. 1979).
            total = self._count + len(values)
            shift = mean - self._mean
            square = square + self._square + shift**2 * self._count * len(values) / total
            mean = self._mean + shift * len(values) / total
            low, high = np.minimum(low, self._low), np.maximum(high, self._high)
        self._mean, self._square, self._low, self._high = mean, square, low, high
        # Keep every step-th frame, counted over all calls.
        self._sample.append(values[-self._count % self._step :: self._step])
        self._count += len(values)
        if sum(map(len, self._sample)) > _SAMPLE:
            self._sample = [np.concatenate(self._sample)[::2]]
            self._step *= 2

    def build(self) -> Stats:
        """Returns the statistics of all frames that were added.

        Raises:
            ValueError: No frame was added.
        """
        if not self._count:
            raise ValueError("There are no frames to compute statistics of. Add at least one.")
        q01, q99 = np.quantile(np.concatenate(self._sample), [0.01, 0.99], axis=0)
        std = np.sqrt(self._square / self._count)
        return Stats(self._mean, std, self._low, self._high, q01, q99, self._count)


def pool(parts: Sequence[Stats]) -> Stats:
    """Returns the statistics of several datasets together.

    The quantiles are the outermost ones of the parts, so that they enclose the 1-99 % range of each
    part.

    >>> both = pool([Stats.of(np.zeros((1, 1))), Stats.of(np.ones((3, 1)))])
    >>> both.mean.tolist(), both.count
    ([0.75], 4)
    """
    count = sum(part.count for part in parts)
    weight = np.array([[part.count / count] for part in parts])
    mean = (weight * [part.mean for part in parts]).sum(0)
    square = [part.std**2 + (part.mean - mean) ** 2 for part in parts]
    return Stats(
        mean=mean,
        std=np.sqrt((weight * square).sum(0)),
        min=np.min([part.min for part in parts], axis=0),
        max=np.max([part.max for part in parts], axis=0),
        q01=np.min([part.q01 for part in parts], axis=0),
        q99=np.max([part.q99 for part in parts], axis=0),
        count=count,
    )


def normalize(
    values: Float[np.ndarray, "*b d"],
    stats: Stats,
    mode: Mode = "quantile",
    *,
    min_range: float = 1e-2,
) -> Float[np.ndarray, "*b d"]:
    """Scales `values` to about [-1, 1] (`"quantile"`) or to unit variance (`"zscore"`).

    A constant dimension becomes 0. A dimension with a tiny range is divided by `min_range` instead.
    Results lie within +-10: the data behind the statistics does so anyway, and values that are
    farther away are clipped.

    Args:
        values: Raw states or actions.
        stats: The statistics of the data.
        mode: Whether to use the 1 % and 99 % quantiles, or mean and standard deviation.
        min_range: The smallest range that is stretched to [-1, 1], in the data's own unit.

    Raises:
        ValueError: `mode` is something else.

    >>> stats = Stats.of(np.array([[0.0], [1e-3]]))
    >>> bool(abs(normalize(np.array([[-1.6]]), stats)).max() <= 10)
    True
    """
    center, scale = _affine(stats, mode, min_range)
    safe = np.where(scale > 0, scale, 1)
    result = np.where(scale > 0, (values - center) / safe, 0)
    return np.clip(result, -_BOUND, _BOUND).astype(values.dtype)


def unnormalize(
    values: Float[np.ndarray, "*b d"],
    stats: Stats,
    mode: Mode = "quantile",
    *,
    min_range: float = 1e-2,
) -> Float[np.ndarray, "*b d"]:
    """Returns the inverse of `normalize`. A constant dimension gets its constant value.

    >>> stats = Stats.of(np.array([[0.0, 7.0], [1.0, 7.0]]))
    >>> unnormalize(np.array([[1.0, 0.3]]), stats).round(2).tolist()
    [[0.99, 7.0]]
    """
    center, scale = _affine(stats, mode, min_range)
    return (values * scale + center).astype(values.dtype)


def _affine(
    stats: Stats, mode: Mode, min_range: float
) -> tuple[Float[np.ndarray, "*h d"], Float[np.ndarray, "*h d"]]:
    """Returns center and scale; the scale of a constant dimension is 0."""
    if mode == "quantile":
        center, scale = (stats.q01 + stats.q99) / 2, (stats.q99 - stats.q01) / 2
    elif mode == "zscore":
        center, scale = stats.mean, stats.std
    else:
        raise ValueError(f"mode must be 'quantile' or 'zscore', got {mode!r}. Pass one of them.")
    # The second bound is for outliers: a gripper that moves in 1 % of the frames has a tiny 1-99 %
    # range and yet a large full range. Its normalized values must not be thousands.
    floor = np.maximum(min_range / 2, (stats.max - stats.min) / _BOUND)
    center = np.where(stats.still, (stats.min + stats.max) / 2, center)
    return center, np.where(stats.still, 0.0, np.maximum(scale, floor))


def save_stats(path: str | os.PathLike[str], stats: Mapping[str, Stats]) -> None:
    """Writes statistics as JSON. Keep the file beside a checkpoint, as inference needs it."""
    content = {
        key: {
            name: value.tolist() if isinstance(value, np.ndarray) else value
            for name, value in dataclasses.asdict(part).items()
        }
        for key, part in stats.items()
    }
    Path(path).write_text(json.dumps({"norm_stats": content}, indent=2), encoding="utf-8")


def load_stats(path: str | os.PathLike[str]) -> dict[str, Stats]:
    """Reads statistics that `save_stats` wrote.

    Raises:
        ValueError: The file holds something else.
    """
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))["norm_stats"]
        return {
            key: Stats(
                count=part["count"],
                **{n: np.array(v, np.float64) for n, v in part.items() if n != "count"},
            )
            for key, part in content.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"{path} is not a file of save_stats: {error!r}. Write it again with save_stats."
        ) from error
