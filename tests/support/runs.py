"""Runs of the trainer, and what they leave."""

import numpy as np
from rich.console import Console

from examples.pi0.training.loop import train
from examples.pi0.training.plan import make_plan
from taskcond.checkpoint import load_params, open_checkpoint
from taskcond.trees import flatten


def run(config):
    return train(make_plan(config), Console(quiet=True))


def content(folder, step):
    """All arrays of a checkpoint: parameters, optimizer and average."""
    state = {
        f"state/{k}": v for k, v in flatten(load_params(folder / str(step) / "params")).items()
    }
    whole = open_checkpoint(folder / str(step) / "train_state")
    for path, full in whole.everything.items():
        leaf = whole.store.leaves[full]
        box = tuple(slice(0, n) for n in leaf.shape)
        state[path] = np.asarray(whole.store.read(full, box))
    return state
