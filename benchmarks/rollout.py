"""How many steps of Meta-World does a policy act in a second, in one process and in two?"""

from __future__ import annotations

import statistics
import tempfile
import time
from pathlib import Path

import numpy as np
from flax import nnx

from examples.metaworld.episodes import Job, run_jobs
from examples.metaworld.policy import Policy
from examples.metaworld.processes import Pool
from examples.metaworld.tasks import TEN, vocabulary_of
from examples.metaworld.train import load_actor, save

ROUNDS, EPISODES, WORKERS = 5, 40, (1, 2)


def steps_per_second(pool: Pool, checkpoint: Path, episodes: int) -> float:
    """Returns the number of steps of all processes together, divided by the time."""
    jobs = [Job(TEN[0], TEN[0], start) for start in range(episodes)]
    began = time.perf_counter()
    results = run_jobs(jobs, load_actor, checkpoint, pool=pool)
    seconds = time.perf_counter() - began
    return sum(len(result.observations) - 1 for result in results) / seconds


def measure(checkpoint: Path) -> dict[int, float]:
    """Returns the median of rounds for each number of processes, without compiling."""
    rates: dict[int, list[float]] = {workers: [] for workers in WORKERS}
    with Pool(1) as one, Pool(2) as two:
        for pool in (one, two):
            steps_per_second(pool, checkpoint, EPISODES)
        # The two alternate, so that other load on the machine slows both equally.
        for _ in range(ROUNDS):
            for workers, pool in zip(WORKERS, (one, two), strict=True):
                rates[workers].append(steps_per_second(pool, checkpoint, EPISODES))
    return {workers: statistics.median(rates[workers]) for workers in WORKERS}


def main() -> str:
    """Prints and returns the table."""
    policy = Policy(len(TEN), nnx.Rngs(0))
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "params"
        save(policy, path, vocabulary_of(TEN), {"task_id": np.arange(len(TEN))})
        rates = measure(path)
    lines = [
        f"An untrained policy of the demo's size, {EPISODES} episodes of up to 200 steps; the "
        f"median of {ROUNDS} rounds:",
        "",
        "| processes | steps per second | ratio to one |",
        "|---:|---:|---:|",
    ]
    lines += [f"| {n} | {rate:,.0f} | {rate / rates[1]:.2f} |" for n, rate in rates.items()]
    table = "\n".join(lines)
    print(table)
    return table


if __name__ == "__main__":
    main()
