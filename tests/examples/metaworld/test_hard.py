"""The hard set: experts solve it, and it is as uneven and as badly described as it says."""

from collections import Counter

import numpy as np

from examples.metaworld.collect import demonstrate
from examples.metaworld.hard import FIFTY, LATER
from examples.metaworld.tasks import done_task
from examples.metaworld.world import World


def test_experts_solve_every_task_and_no_other_by_the_way():
    world, tasks = World(), (*FIFTY, *LATER)
    wrong = []
    for task in tasks:
        seen = demonstrate(world, task, np.random.default_rng(0)).state
        done = {done_task(seen[: n + 1], tasks) for n in range(len(seen) - 1)}
        wrong += [(task.name, other) for other in done - {None, task}]
    assert not wrong


def test_the_set_is_uneven_and_badly_described():
    assert (len(FIFTY), len(LATER)) == (50, 5)
    counts = [task.demonstrations for task in FIFTY]
    assert (max(counts), min(counts)) == (60, 3)
    texts = Counter(task.text for task in FIFTY)
    says_the_goal = [task for task in FIFTY if " cm " in task.text]
    shared = [task for task in FIFTY if texts[task.text] > 1]
    assert len(says_the_goal) == 10
    assert len(shared) == 10
    assert {text for text, n in texts.items() if n > 1} == {
        "move the hand",
        "push the puck",
        "lift the puck",
    }
