"""Batches of frames, as a Grain dataset that can be resumed."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import jax
from absl import flags

from .frames import Frames
from .stats import Mode, Stats, normalize


def make_loader(
    data: Frames,
    *,
    batch_size: int,
    transform: Callable[[dict[str, Any]], Any] | None = None,
    normalize_by: Mode | None = None,
    min_range: float = 1e-2,
    shuffle: bool = True,
    seed: int = 0,
    num_epochs: int | None = None,
    num_workers: int = 0,
    process_index: int | None = None,
    process_count: int | None = None,
) -> grain.IterDataset:
    """Returns this process's share of `data` in batches, in an order that the seed determines.

    This trains on nine tenths of the episodes::

        data = LeRobotData("path/to/dataset", horizon=16)
        print(data.report)  # what was found, what was skipped, what is odd
        train, val = data.split(val_fraction=0.1)
        for batch in make_loader(train, batch_size=64, normalize_by="quantile"):
            ...  # batch["state"], batch["actions"], batch["task_id"]

    `iter(loader)` can be resumed: store `iterator.get_state()` with a checkpoint, and pass it to
    `set_state` of a new iterator.

    Args:
        data: A dataset, or a mix of several.
        batch_size: The number of frames in a batch of this process. An incomplete last batch is
            dropped.
        transform: Is applied to each frame before batching. With it, `normalize_by` must be `None`.
        normalize_by: How to normalize `state` and `actions`; `None` leaves them as they are.
        min_range: The smallest range that is stretched to [-1, 1], see `normalize`.
        shuffle: Whether to shuffle, differently in every epoch.
        seed: The seed of the order.
        num_epochs: The number of epochs; `None` never ends.
        num_workers: The number of worker processes; 0 reads in threads of this process.
        process_index: The number of this process's share; `None` asks JAX.
        process_count: The number of shares; `None` asks JAX.

    Raises:
        ValueError: A share is smaller than one batch, or both `transform` and `normalize_by` are
            given.
    """
    if transform is not None and normalize_by is not None:
        raise ValueError(
            "transform and normalize_by are both given. Normalize in transform or with "
            "normalize_by, not in both. Pass one of them."
        )
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    share = len(data) // count  # the same size for all, so that no process waits for a batch
    if share < batch_size:
        raise ValueError(
            f"Each process has {share} frames, which is less than one batch of {batch_size}. "
            "Pass a smaller batch_size, or use fewer processes."
        )
    dataset = grain.MapDataset.source(data).seed(seed)[index : share * count : count]
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.repeat(num_epochs)
    if transform is not None:
        dataset = dataset.map(transform)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if normalize_by is not None:
        dataset = dataset.map(_Normalize(data.norm_stats, normalize_by, min_range))
    return read_ahead(dataset, num_workers)


def read_ahead(dataset: grain.MapDataset[Any], num_workers: int) -> grain.IterDataset[Any]:
    """Returns a dataset that reads ahead, in so many processes, or in threads for 0.

    The result is the same for any number.
    """
    threads = 1 if num_workers else 4
    loader = dataset.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=2 * threads))
    if num_workers:
        # Grain's workers read absl's flags, which only absl.app.run would parse.
        if not flags.FLAGS.is_parsed():
            flags.FLAGS.mark_as_parsed()
        loader = loader.mp_prefetch(grain.MultiprocessingOptions(num_workers=num_workers))
    return loader


@dataclasses.dataclass(frozen=True)
class _Normalize:
    stats: dict[str, Stats]
    mode: Mode
    min_range: float

    def __call__(self, batch: dict[str, Any]) -> dict[str, Any]:
        changed = {
            name: normalize(batch[name], stats, self.mode, min_range=self.min_range)
            for name, stats in self.stats.items()
        }
        return {**batch, **changed}
