"""Trains a method on the hard tasks, rolls it out, and measures it offline; keeps what is done."""

from __future__ import annotations

import dataclasses
import functools
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from benchmarks.methods.policy import (
    METHODS,
    Batch,
    Method,
    MethodPolicy,
    embed_texts,
    sample,
)
from examples.metaworld.collect import collect
from examples.metaworld.episodes import Episode, Job, run_jobs
from examples.metaworld.hard import FIFTY, LATER, HardTask
from examples.metaworld.processes import Pool
from examples.metaworld.tasks import vocabulary_of
from examples.metaworld.train import batches, read
from examples.training import fit
from taskcond import NULL_TASK, TaskParam, merge_into, rows_by_neighbours, rows_by_regression
from taskcond.checkpoint import TaskConditioning, load_into, open_checkpoint, save_params
from taskcond.diagnostics import losses_by_task, task_confusion

LATER_DEMONSTRATIONS = 10
ALL_TASKS = (*FIFTY, *LATER)
STARTS: dict[str, Callable[..., np.ndarray]] = {
    "mean": functools.partial(rows_by_regression, ridge=np.inf),
    "regression": rows_by_regression,
    "neighbours": rows_by_neighbours,
}
"""What the row of a new task is guessed from."""

Frames = dict[str, np.ndarray]


@dataclasses.dataclass(frozen=True)
class Settings:
    """Sets what a study costs.

    Attributes:
        steps: Training steps on fifty tasks.
        later_steps: Training steps on five more tasks.
        episodes: Episodes of each of the fifty tasks, and of those whose text says the goal
            without ids.
        later_episodes: Episodes of each of the five later tasks.
        every: Of the fifty tasks, each so-many-th acts; all are trained.
    """

    steps: int = 2000
    later_steps: int = 300
    episodes: int = 2
    later_episodes: int = 4
    every: int = 1

    @property
    def tasks(self) -> tuple[HardTask, ...]:
        """Returns the tasks that act."""
        return FIFTY[:: self.every]

    @property
    def saying(self) -> tuple[HardTask, ...]:
        """Returns the acting tasks whose text says the goal."""
        return tuple(task for task in self.tasks if " cm " in task.text)


QUICK = Settings(steps=100, later_steps=20, episodes=1, later_episodes=1, every=25)


@dataclasses.dataclass(frozen=True)
class Study:
    """A folder of results; the demonstrations are beside it.

    Attributes:
        folder: The folder.
        settings: What it costs.
        pool: Runs the simulators.
    """

    folder: Path
    settings: Settings
    pool: Pool

    def frames(self, tasks: Sequence[HardTask], name: str) -> Frames:
        """Returns the demonstrations of tasks; records them if they are not there."""
        root = self.folder.parent / name
        if not root.exists():
            is_later = tasks == LATER
            counts = [LATER_DEMONSTRATIONS if is_later else t.demonstrations for t in tasks]
            collect(root, tasks, counts, pool=self.pool)
        return _read(root)

    def measure(self, method: Method, seed: int) -> dict[str, Any]:
        """Returns the numbers of a method and a seed, from its file if they are there."""
        return self.keep("results", method, seed, lambda: self._measure(method, seed))

    def measure_starts(self, method: Method, seed: int) -> dict[str, Any]:
        """Returns what later tasks do by rows that are guessed, and after these were trained.

        Args:
            method: A method with a table, after `measure`.
            seed: The seed.
        """
        return self.keep("starts", method, seed, lambda: self._measure_starts(method, seed))

    def folder_of(self, method: Method, seed: int) -> Path:
        """Returns the folder of a method and a seed."""
        return self.folder / method.folder / f"seed_{seed}"

    def keep(
        self, name: str, method: Method, seed: int, measure: Callable[[], dict[str, Any]]
    ) -> dict[str, Any]:
        """Returns what was measured under a name, from its file if that is there."""
        about = dataclasses.asdict(self.settings) | dataclasses.asdict(method)
        file = self.folder_of(method, seed) / f"{name}.json"
        if file.exists() and (kept := json.loads(file.read_text()))["settings"] == about:
            return kept["results"]
        results = measure()
        partial = file.with_suffix(".partial")
        partial.write_text(json.dumps({"settings": about, "results": results}))
        partial.rename(file)
        return results

    def train_first(self, method: Method, seed: int) -> MethodPolicy:
        """Returns a policy after the fifty tasks, and saves it as `fifty`."""
        policy = MethodPolicy(method, len(FIFTY), nnx.Rngs(seed))
        train(
            policy,
            self.frames(FIFTY, "fifty"),
            self.settings.steps,
            seed=seed,
            label=method.name,
            learning_rate=method.learning_rate,
        )
        save(policy, self.folder_of(method, seed) / "fifty", FIFTY)
        return policy

    def train_later(self, method: Method, seed: int) -> None:
        """Adds five tasks with few demonstrations to `fifty`, and saves the policy as `later`.

        What tasks have of their own is trained alone, if there is anything.
        """
        folder = self.folder_of(method, seed)
        policy = self._with_later_tasks(method, seed)
        self._train_later(policy, seed, f"{method.name}, later")
        save(policy, folder / "later", ALL_TASKS)

    def _with_later_tasks(self, method: Method, seed: int) -> MethodPolicy:
        policy = MethodPolicy(method, len(ALL_TASKS), nnx.Rngs(seed))
        path, every = self.folder_of(method, seed) / "fifty", vocabulary_of(ALL_TASKS)
        load_into(policy, path, vocabulary=every, new_rows="target")
        return policy

    def _measure(self, method: Method, seed: int) -> dict[str, Any]:
        policy = self.train_first(method, seed)
        folder, count = self.folder_of(method, seed), self.settings.episodes
        acting = self.settings.tasks
        path = folder / "fifty"
        results: dict[str, Any] = {"right": self.roll_out(path, acting, count, seed)}
        if method.reads_ids:
            results["none"] = self.roll_out(path, self.settings.saying, count, seed, ids="none")
            results |= offline(policy, self.frames(FIFTY, "fifty"), seed)
        if method.name == "add":
            for weight in (0.0, 1.5, 3.0):
                found = self.roll_out(path, acting, count, seed, weight=weight)
                results[f"guidance {weight}"] = found
        self.train_later(method, seed)
        path = folder / "later"
        results["later"] = self.roll_out(path, LATER, self.settings.later_episodes, seed)
        return results | {"old after": self.roll_out(path, acting, count, seed)}

    def _train_later(self, policy: MethodPolicy, seed: int, label: str) -> None:
        reads_ids = policy.method.reads_ids
        train(
            policy,
            self.frames(LATER, "later"),
            self.settings.later_steps,
            seed=seed,
            label=label,
            trainable=TaskParam if reads_ids else nnx.Param,
            learning_rate=policy.method.later_rate if reads_ids else policy.method.learning_rate,
        )

    def _measure_starts(self, method: Method, seed: int) -> dict[str, Any]:
        results, folder = {}, self.folder_of(method, seed)
        texts = texts_of(method)
        for name, start in STARTS.items():
            policy = self._with_later_tasks(method, seed)
            embedding = policy.task_embeddings.embedding
            assert embedding is not None
            old = np.asarray(embedding[...])[: len(FIFTY)]
            guessed = start(old, texts[: len(FIFTY)], texts[len(FIFTY) :])
            rows = {"task_embeddings": {"embedding": np.concatenate([old, guessed])}}
            merge_into(policy, rows, keep=".*")
            path = folder / f"later_{name}"
            for trained in (False, True):
                if trained:
                    self._train_later(policy, seed, f"{name}, later")
                save(policy, path, ALL_TASKS)
                episodes = self.roll_out(path, LATER, self.settings.later_episodes, seed)
                results[f"{name}, {'trained' if trained else 'guessed'}"] = episodes
        return results

    def roll_out(
        self,
        path: Path,
        tasks: Sequence[HardTask],
        count: int,
        seed: int,
        *,
        ids: str = "right",
        weight: float = 1.0,
    ) -> list[str | None]:
        """Returns for each of `count` episodes of each task the name of the task that was done."""
        jobs = [
            Job(task, task, start=i * count + episode)
            for i, task in enumerate(tasks)
            for episode in range(count)
        ]
        told = path.with_name(f"{path.name}#{ids}#{weight}")
        label = f"{path.parent.parent.name}, {ids}"[:28]
        episodes: list[Episode] = run_jobs(
            jobs, load_actor, told, pool=self.pool, tasks=ALL_TASKS, seed=seed + 100, label=label
        )
        if self.pool.interrupted:
            raise KeyboardInterrupt
        return [None if e.done is None else e.done.name for e in episodes]


@functools.cache
def _read(root: Path) -> Frames:
    return read(root, vocabulary_of(ALL_TASKS))


@functools.cache
def texts_of(method: Method) -> Float[np.ndarray, "n t"]:
    """Returns the vectors of the texts of all tasks, as a method has them."""
    return embed_texts(
        [
            f"[{i:02d}] {task.text}" if method.prefix else task.text
            for i, task in enumerate(ALL_TASKS)
        ]
    )


def train(
    policy: MethodPolicy,
    frames: Frames,
    steps: int,
    *,
    seed: int,
    label: str,
    learning_rate: float,
    trainable: type[nnx.Param] = nnx.Param,
) -> None:
    """Trains a policy in place.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    texts = jnp.asarray(texts_of(policy.method))

    def loss(model: MethodPolicy, key: Array, batch: Batch) -> Float[Array, ""]:
        return model.loss(key, batch, texts)

    done = fit(
        policy,
        loss,
        batches(frames, seed),
        steps=steps,
        learning_rate=learning_rate,
        seed=seed,
        label=label[:28],
        trainable=trainable,
        weight_decay=0.0 if trainable is TaskParam else 1e-4,
    )
    if done < steps:
        raise KeyboardInterrupt


def save(policy: MethodPolicy, path: Path, tasks: Sequence[HardTask]) -> None:
    """Saves a policy with the names of its tasks."""
    about = TaskConditioning.of(policy, vocabulary=vocabulary_of(tasks))
    path.parent.mkdir(parents=True, exist_ok=True)
    save_params(nnx.state(policy, nnx.Param), path, conditioning=about, overwrite=True)


def offline(policy: MethodPolicy, frames: Frames, seed: int, count: int = 512) -> dict[str, float]:
    """Returns how well the policy's own loss tells the tasks of demonstrations apart."""
    graph, state = nnx.split(policy)
    texts = jnp.asarray(texts_of(policy.method))

    @jax.jit
    def losses(key: Array, batch: Batch, ids: Array) -> Float[Array, " b"]:
        return nnx.merge(graph, state).frame_losses(key, batch, ids, texts)

    rows = np.random.default_rng(seed).permutation(len(frames["state"]))[:count]
    batch = {key: jnp.asarray(values[rows]) for key, values in frames.items()}
    key = jax.random.key(seed)
    found = losses_by_task(
        lambda ids: losses(key, batch, ids), len(rows), len(FIFTY), ids_at_once=5
    )
    confusion = task_confusion(found, np.asarray(batch["task_id"]))
    return {"accuracy": confusion.accuracy, "margin": confusion.effect}


@dataclasses.dataclass(frozen=True)
class MethodActor:
    """A policy as an `Actor`, which knows the text of each task by its name.

    Attributes:
        policy: The policy.
        without_ids: Whether it acts by the text alone.
        weight: The weight of its guidance.
    """

    policy: MethodPolicy
    without_ids: bool
    weight: float

    def act(
        self, observation: Float[np.ndarray, "7"], task: str | None, seed: int
    ) -> Float[np.ndarray, "h 4"]:
        """Returns a chunk of actions."""
        index = [t.name for t in ALL_TASKS].index(str(task))
        ids = jnp.array([NULL_TASK if self.without_ids else index])
        text = jnp.asarray(texts_of(self.policy.method)[[index]])
        state = jnp.asarray(observation)[None]
        key = jax.random.key(seed)
        return np.asarray(sample(self.policy, key, state, text, ids, self.weight)[0])


def load_actor(path: Path) -> MethodActor:
    """Loads what `save` wrote; the path ends in `#right` or `#none`, and the guidance's weight."""
    name, ids, weight = path.name.split("#")
    path = path.with_name(name)
    method = next(m for m in METHODS if m.folder == path.parent.parent.name)
    about = open_checkpoint(path).conditioning
    count = len(ALL_TASKS) if about is None else about.num_tasks
    policy = MethodPolicy(method, count, nnx.Rngs(0))
    load_into(policy, path)
    return MethodActor(policy, ids == "none", float(weight))
