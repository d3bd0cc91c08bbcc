"""How many milliseconds of a processor does a frame of two videos take, read in random order?"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from benchmarks.measuring.processes import peak_resident, run_python
from examples.lerobot import LeRobotData
from examples.lerobot.write import Recording, write_dataset

SIZES = ((224, 240), (96, 112))
EPISODES, FRAMES, READS = 8, 300, 500
CAMERAS = ("observation.images.left", "observation.images.right")


def write(root: Path, height: int, width: int) -> Path:
    """Writes a dataset of two cameras, as LeRobot does: v3.0, AV1, a key frame every second one."""
    rng = np.random.default_rng(0)
    recordings = [
        Recording(
            rng.normal(size=(FRAMES, 7)).astype(np.float32),
            rng.normal(size=(FRAMES, 7)).astype(np.float32),
            "move",
            {camera: _film(rng, height, width) for camera in CAMERAS},
        )
        for _ in range(EPISODES)
    ]
    return write_dataset(
        root, recordings, version="v3.0", codec="libsvtav1", keyframe_every=2, fps=30
    )


def _film(rng: np.random.Generator, height: int, width: int) -> np.ndarray:
    """Returns pictures of a smooth scene that moves."""
    y, x = np.mgrid[:height, :width] / 40
    phase = rng.uniform(0, 6, 3)
    steps = np.arange(FRAMES)[:, None, None, None] / 10
    waves = np.sin(x[None, :, :, None] + phase + steps) * np.cos(y[None, :, :, None] + phase)
    return (127 * waves + 128).astype(np.uint8)


def measure(root: Path) -> dict[str, float]:
    """Returns milliseconds of processor and of time for each frame, and the peak of memory."""
    data = LeRobotData(root, horizon=16)
    order = np.random.default_rng(1).integers(len(data), size=READS).tolist()
    for index in order[:20]:
        data[index]
    cpu, wall = time.process_time(), time.perf_counter()
    for index in order:
        data[index]
    cpu, wall = time.process_time() - cpu, time.perf_counter() - wall
    return {"cpu": 1e3 * cpu / READS, "wall": 1e3 * wall / READS, "peak": peak_resident()}


def main() -> str:
    """Prints and returns the table."""
    lines = [
        f"`LeRobotData` on {EPISODES} episodes of {FRAMES} frames, two cameras, AV1 with a key "
        f"frame every second one; {READS} frames in random order, in a fresh process.",
        "",
        "| pictures | processor, ms per frame | time, ms per frame | peak memory, GiB |",
        "|---|---:|---:|---:|",
    ]
    for height, width in SIZES:
        with tempfile.TemporaryDirectory() as folder:
            root = write(Path(folder) / "dataset", height, width)
            found = json.loads(run_python("-m", "benchmarks.loader", str(root)))
        lines.append(
            f"| {height}x{width} | {found['cpu']:.2f} | {found['wall']:.2f} | "
            f"{found['peak'] / 2**30:.2f} |"
        )
    table = "\n".join(lines)
    print(table)
    return table


if __name__ == "__main__":
    print(json.dumps(measure(Path(sys.argv[1]))) if len(sys.argv) > 1 else main())
