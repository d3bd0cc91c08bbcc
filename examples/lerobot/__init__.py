"""LeRobot datasets (v2.0, v2.1, v3.0) from disk, with the task ids of a model, without torch.

`make_loader(LeRobotData("path/to/dataset"), batch_size=64)` gives batches for training.
"""

from examples.lerobot.frames import Frames
from examples.lerobot.loader import make_loader
from examples.lerobot.mix import MixedData, mix
from examples.lerobot.problems import DatasetError
from examples.lerobot.report import Report
from examples.lerobot.source import LeRobotData
from examples.lerobot.stats import Stats, load_stats, normalize, save_stats, unnormalize
from examples.lerobot.write import Recording, write_dataset

__all__ = [
    "DatasetError",
    "Frames",
    "LeRobotData",
    "MixedData",
    "Recording",
    "Report",
    "Stats",
    "load_stats",
    "make_loader",
    "mix",
    "normalize",
    "save_stats",
    "unnormalize",
    "write_dataset",
]
