"""A tiny dataset with the names, widths and annotations of BEHAVIOR-1K."""

import json

import numpy as np

from examples.lerobot import Recording, write_dataset
from examples.pi0.training import b1k

FRAMES = 12
SKILLS = (("move to", 0, 4), ("pick up from", 4, 9), ("place in", 9, FRAMES))


def write_b1k(root, tasks=b1k.TASKS[:2], episodes_per_task=2):
    """Writes episodes of random numbers, and returns the folder."""
    rng = np.random.default_rng(0)
    recordings = [
        Recording(
            rng.normal(size=(FRAMES, b1k.STATE_SIZE)).astype(np.float32),
            rng.uniform(-1, 1, (FRAMES, b1k.ACTION_SIZE)).astype(np.float32),
            task,
            {
                camera: rng.integers(0, 255, (FRAMES, 32, 32, 3), np.uint8)
                for camera in b1k.CAMERAS.values()
            },
        )
        for task in tasks
        for _ in range(episodes_per_task)
    ]
    write_dataset(root, recordings, fps=30, keyframe_every=2)
    for episode in range(len(recordings)):
        task = episode // b1k.EPISODES_PER_TASK
        path = root / f"annotations/task-{task:04d}/episode_{episode:08d}.json"
        path.parent.mkdir(parents=True, exist_ok=True)
        rows = [
            {"skill_description": [text], "frame_duration": [start, end]}
            for text, start, end in SKILLS
        ]
        path.write_text(json.dumps({"skill_annotation": rows}))
    return root
