"""LeRobot datasets (v2.0, v2.1, v3.0) from disk as a Grain data source, with the model's task ids.

    dataset = LeRobotData("path/to/dataset", horizon=16)
    print(dataset.report)                       # what was found, what was skipped, what is odd
    train, val = dataset.split(val_fraction=0.1)
    for batch in make_loader(train, batch_size=64, normalize_by="quantile"):
        ...                                     # batch["state"], batch["actions"], batch["task_id"]

A frame is a dict: `state` float32 `[s]`, `actions` float32 `[horizon, a]`, `action_is_pad` bool
`[horizon]`, `images` `{camera: uint8 [h, w, 3]}`, `task` (its name), `task_index` (the dataset's
number), `task_id` (the model's, int32), `episode_index`, `frame_index`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import grain
import jax
from absl import flags

from examples.lerobot.layout import DatasetError
from examples.lerobot.mix import MixedData, mix
from examples.lerobot.report import Report
from examples.lerobot.source import LeRobotData
from examples.lerobot.stats import Mode, Stats, load_stats, normalize, save_stats, unnormalize

__all__ = [
    "DatasetError",
    "LeRobotData",
    "MixedData",
    "Report",
    "Stats",
    "load_stats",
    "make_loader",
    "mix",
    "normalize",
    "save_stats",
    "unnormalize",
]


def make_loader(
    data: LeRobotData | MixedData,
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
    """Batches of `data`, as Grain's dataset: this process's share of them, in a fixed order.

    `iter(loader)` resumes: keep `iterator.get_state()` with the checkpoint, and give it to
    `set_state` of a new iterator.

    Args:
        data: The source.
        batch_size: Frames in a batch of this process; what is left over of the data is dropped.
        transform: What to make of each frame, before batching; with it, `normalize_by` must be
            `None`.
        normalize_by: How to normalize `state` and `actions`; `None` leaves them raw.
        min_range: The smallest range that is stretched to [-1, 1], see `normalize`.
        shuffle: Every epoch anew.
        seed: Of the order.
        num_epochs: `None` goes on for ever.
        num_workers: Worker processes; 0 reads in threads of this one.
        process_index: Which share; `None` asks JAX.
        process_count: How many shares; `None` asks JAX.

    Raises:
        ValueError: A share is smaller than one batch, or both `transform` and `normalize_by`.
    """
    if transform is not None and normalize_by is not None:
        raise ValueError("normalize in transform, or with normalize_by, not in both; pass one")
    index = jax.process_index() if process_index is None else process_index
    count = jax.process_count() if process_count is None else process_count
    share = len(data) // count  # the same for all, so that none waits for a batch of another
    if share < batch_size:
        raise ValueError(f"{share} frames a process are less than one batch of {batch_size}")
    dataset = grain.MapDataset.source(data).seed(seed)[index : share * count : count]
    if shuffle:
        dataset = dataset.shuffle()
    dataset = dataset.repeat(num_epochs)
    if transform is not None:
        dataset = dataset.map(transform)
    dataset = dataset.batch(batch_size, drop_remainder=True)
    if normalize_by is not None:
        dataset = dataset.map(_Normalize(data.norm_stats, normalize_by, min_range))
    threads = 1 if num_workers else 4
    loader = dataset.to_iter_dataset(grain.ReadOptions(threads, prefetch_buffer_size=2 * threads))
    if num_workers:
        # Grain's workers read absl's flags, which a program without absl.app.run never parses.
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
