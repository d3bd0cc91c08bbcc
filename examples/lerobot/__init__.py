"""LeRobot datasets (v2.0, v2.1, v3.0) from disk, with the task ids of a model, without torch.

`make_loader(LeRobotData("path/to/dataset"), batch_size=64)` gives batches for training.
"""

from .frames import Frames
from .loader import make_loader
from .mix import MixedData, mix
from .problems import DatasetError
from .report import Report
from .source import LeRobotData
from .stats import Stats, load_stats, normalize, save_stats, unnormalize
from .write import Recording, write_dataset

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
