"""The frames that a run began with, so that it does not go on with others."""

from __future__ import annotations

import json
import zlib
from pathlib import Path

import numpy as np

from examples.lerobot import Frames

FINGERPRINT_FILE = "data.json"


def fingerprint(data: Frames) -> dict[str, int]:
    """Returns the number of frames, and a checksum of their episodes, places and tasks."""
    checksum = 0
    for part in data.parts:
        checksum = zlib.crc32(np.ascontiguousarray(part.places(), np.int64).tobytes(), checksum)
    return {"frames": len(data), "checksum": checksum}


def check_same_frames(data: Frames, folder: Path) -> None:
    """Raises `ValueError` if a run that saved its fingerprint in a folder had other frames."""
    old = json.loads((folder / FINGERPRINT_FILE).read_text(encoding="utf-8"))
    new = fingerprint(data)
    if old != new:
        raise ValueError(
            f"the run began with {old['frames']} frames, and the dataset now gives {new['frames']} "
            "or others. Its order could not go on. Restore the dataset, or begin a new run from "
            "these weights with --weight_loader.params_path and another --exp_name."
        )
