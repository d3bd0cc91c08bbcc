"""What do stages bring where the same place asks for different things? Tours in a closed loop.

All loops of the hand begin with the same way, to the same fork. A tour is two loops, and at the
fork a policy cannot see which is next. Six tasks are all ordered pairs of three loops.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np
import tyro
from flax import nnx
from jaxtyping import Array, Float, Int

from examples.metaworld.policy import (
    EULER_STEPS,
    HORIZON,
    WIDTH,
    AdaptiveBlock,
    normalize,
    sincos,
)
from examples.metaworld.report import Rate
from examples.metaworld.train import Batch, batches
from examples.metaworld.world import ACTION_SIZE, STATE_SIZE, World, draw_start
from examples.training import fit
from taskcond import (
    StageConditioner,
    StageHead,
    StageTracker,
    StageVocabulary,
    TaskConditioner,
)

START, FORK = np.array([0.0, 0.6, 0.2]), np.array([0.0, 0.72, 0.2])
LOOPS = {
    "left": np.array([[-0.1, 0.76, 0.2], [-0.2, 0.7, 0.2], [-0.2, 0.58, 0.2], [-0.1, 0.52, 0.2]]),
    "right": np.array([[0.1, 0.76, 0.2], [0.2, 0.7, 0.2], [0.2, 0.58, 0.2], [0.1, 0.52, 0.2]]),
    "over": np.array([[0.0, 0.79, 0.27], [0.0, 0.76, 0.38], [0.0, 0.64, 0.4], [0.0, 0.55, 0.3]]),
}
"""The places of each loop after the fork; then it goes back to the start."""

TOURS = tuple(itertools.permutations(LOOPS, 2))
STAGES = StageVocabulary((3,) * len(TOURS))
"""The second of three stages begins in the first loop and ends in the second."""

DEMONSTRATIONS, EPISODES, MAX_STEPS, EXECUTED = 20, 20, 300, 8
_NEAR, _SWITCH = 0.04, 0.025  # metres: a place was visited; the demonstrator goes on
_STAGE_WEIGHT = 0.1


class TourPolicy(nnx.Module):
    """The policy of `make demo`, with a table over tasks and stages, and a head.

    Args:
        stages: The stages; `StageVocabulary(())` for none.
        rngs: Its stream `params` draws the weights.
    """

    def __init__(self, stages: StageVocabulary, rngs: nnx.Rngs):
        self.time_in = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.time_out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.state_in = nnx.Linear(STATE_SIZE, WIDTH, rngs=rngs)
        self.action_in = nnx.Linear(HORIZON * ACTION_SIZE, WIDTH, rngs=rngs)
        self.block_0, self.block_1, self.block_2 = (AdaptiveBlock(rngs) for _ in range(3))
        self.action_out = nnx.Linear(WIDTH, HORIZON * ACTION_SIZE, rngs=rngs)
        self.task_embeddings = TaskConditioner(len(TOURS), WIDTH, rngs=rngs)
        self.task_stages = StageConditioner(stages, WIDTH, rngs=rngs)
        self.seen_in = nnx.Linear(STATE_SIZE, WIDTH, rngs=rngs)
        self.seen_out = nnx.Linear(WIDTH, WIDTH, rngs=rngs)
        self.stage_head = StageHead(STAGES, WIDTH, rngs=rngs)

    def velocity(
        self,
        state: Float[Array, "b s"],
        noisy: Float[Array, "b h a"],
        time: Float[Array, " b"],
        task_id: Int[Array, " b"],
        stage: Int[Array, " b"],
    ) -> Float[Array, "b h a"]:
        """Returns the velocity from actions to noise."""
        time_emb = self.task_embeddings(sincos(time), task_id)
        time_emb = self.task_stages(time_emb, task_id, stage)
        condition = nnx.swish(self.time_out(nnx.swish(self.time_in(time_emb))))
        x = self.state_in(normalize(state)) + self.action_in(noisy.reshape(len(noisy), -1))
        for block in (self.block_0, self.block_1, self.block_2):
            x = block(x, condition)
        return self.action_out(x).reshape(noisy.shape)

    def features(
        self, state: Float[Array, "b s"], task_id: Int[Array, " b"]
    ) -> Float[Array, "b d"]:
        """Returns what the head reads: state and task, and no stage."""
        seen = self.seen_in(normalize(state))
        return nnx.swish(self.seen_out(nnx.swish(self.task_embeddings(seen, task_id))))

    def loss(self, key: Array, batch: Batch) -> Float[Array, ""]:
        """Returns the flow-matching loss, and that of the prediction of the stage."""
        noise_key, time_key = jax.random.split(key)
        actions, ids, stage = batch["actions"], batch["task_id"], batch["stage"]
        noise = jax.random.normal(noise_key, actions.shape)
        time = jax.random.beta(time_key, 1.5, 1, (len(actions),)) * 0.999 + 0.001
        t = time[:, None, None]
        noisy = t * noise + (1 - t) * actions
        velocity = self.velocity(batch["state"], noisy, time, ids, stage)
        of_stage = self.stage_head.loss(self.features(batch["state"], ids), ids, stage)
        return jnp.square(velocity - (noise - actions)).mean() + _STAGE_WEIGHT * of_stage.mean()


@nnx.jit
def act(
    policy: TourPolicy,
    key: Array,
    state: Float[Array, "b s"],
    task_id: Int[Array, " b"],
    stage: Int[Array, " b"],
) -> Float[Array, "b h a"]:
    """Returns a chunk of actions for each state."""
    x = jax.random.normal(key, (len(state), HORIZON, ACTION_SIZE))
    for i in range(EULER_STEPS):
        time = jnp.full(len(state), 1 - i / EULER_STEPS)
        x -= policy.velocity(state, x, time, task_id, stage) / EULER_STEPS
    return x


@nnx.jit
def predict(
    policy: TourPolicy, state: Float[Array, "b s"], task_id: Int[Array, " b"]
) -> Int[Array, " b"]:
    """Returns the likeliest stage of each state."""
    return policy.stage_head(policy.features(state, task_id), task_id).argmax(-1)


def places(*loops: str) -> Float[np.ndarray, "n 3"]:
    """Returns the places of loops, in order."""
    return np.concatenate([[FORK, *LOOPS[name], START] for name in loops])


def demonstrate(world: World, task: int, rng: np.random.Generator) -> dict[str, np.ndarray]:
    """Returns the frames of a demonstration, whose executed actions are noisy."""
    states, actions = [world.reset(draw_start(rng))], []
    for place in places(*TOURS[task]):
        while np.linalg.norm(place - states[-1][:3]) > _SWITCH:
            motion = np.clip(15 * (place - states[-1][:3]), -1, 1)
            actions.append(np.append(motion, -1.0))
            noise = np.append(rng.normal(scale=0.3, size=3), 0.0)
            states.append(world.step(actions[-1] + noise))
    count = len(actions)
    chunks = np.minimum(np.arange(count)[:, None] + np.arange(HORIZON), count - 1)
    return {
        "state": np.stack(states[:-1]),
        "actions": np.stack(actions).astype(np.float32)[chunks],
        "task_id": np.full(count, task, np.int32),
        "stage": STAGES.label(np.full(count, task), np.arange(count), count),
    }


class Progress:
    """Watches which loops the hand does, and how far it is in the asked tour.

    Args:
        tour: The asked tour.

    Attributes:
        loops: The finished loops, in order.
    """

    def __init__(self, tour: tuple[str, str]):
        self.loops: list[str] = []
        self._tour, self._visited = places(*tour), 0
        self._of_loop = dict.fromkeys(LOOPS, 0)

    def see(self, hand: Float[np.ndarray, "3"]) -> None:
        """Takes the next position of the hand."""
        if self._visited < len(self._tour) and _near(hand, self._tour[self._visited]):
            self._visited += 1
        for name in LOOPS:
            if _near(hand, places(name)[self._of_loop[name]]):
                self._of_loop[name] += 1
            if self._of_loop[name] == len(places(name)):
                self.loops.append(name)
                self._of_loop = dict.fromkeys(LOOPS, 0)

    @property
    def stage(self) -> int:
        """Returns the true stage, of as many places each."""
        return min(3 * self._visited // len(self._tour), 2)


def _near(hand: Float[np.ndarray, "3"], place: Float[np.ndarray, "3"]) -> bool:
    return bool(np.linalg.norm(hand - place) < _NEAR)


def run_episode(
    world: World, policy: TourPolicy, task: int, start: int, source: str
) -> tuple[str, ...]:
    """Returns the first two loops that the hand does.

    Args:
        world: The world.
        policy: The policy.
        task: The task.
        start: The number of the start.
        source: Where the stage comes from: `tracker`, `last prediction`, `truth` or `none`.
    """
    rng = np.random.default_rng([1, start])
    state, progress = world.reset(draw_start(rng)), Progress(TOURS[task])
    tracker, ids = StageTracker(3), jnp.array([task])
    for step in range(0, MAX_STEPS, EXECUTED):
        predicted = int(predict(policy, jnp.asarray(state)[None], ids)[0])
        stage = {
            "tracker": tracker.update(predicted),
            "last prediction": predicted,
            "truth": progress.stage,
            "none": -1,
        }[source]
        key = jax.random.key(1000 * start + step)
        chunk = np.asarray(act(policy, key, jnp.asarray(state)[None], ids, jnp.array([stage]))[0])
        for action in chunk[:EXECUTED]:
            state = world.step(action)
            progress.see(state[:3])
        if len(progress.loops) >= 2:
            break
    return tuple(progress.loops[:2])


def train(stages: StageVocabulary, frames: dict[str, np.ndarray], steps: int) -> TourPolicy:
    """Returns a trained policy.

    Raises:
        KeyboardInterrupt: Ctrl-C was pressed.
    """
    policy = TourPolicy(stages, nnx.Rngs(0))
    label = "with stages" if stages.counts else "without stages"
    loss: Callable[..., Array] = lambda model, key, batch: model.loss(key, batch)  # noqa: E731
    if fit(policy, loss, batches(frames, 0), steps=steps, learning_rate=2e-3, label=label) < steps:
        raise KeyboardInterrupt
    return policy


def main(steps: int = 4000, episodes: int = EPISODES) -> str:
    """Prints and returns the table.

    Args:
        steps: The number of training steps.
        episodes: The number of episodes of each task.
    """
    world, rng = World(), np.random.default_rng(0)
    shown = [demonstrate(world, t, rng) for t in range(len(TOURS)) for _ in range(DEMONSTRATIONS)]
    frames = {name: np.concatenate([one[name] for one in shown]) for name in shown[0]}
    lines = [
        f"{len(TOURS)} tours, {DEMONSTRATIONS} demonstrations of about "
        f"{len(frames['state']) // len(shown)} steps each, {steps} training steps, "
        f"{len(TOURS) * episodes} episodes:",
        "",
        "| the policy is told | did the tour, % | did its first loop twice |",
        "|---|---:|---:|",
    ]
    cases = {
        "the task": (StageVocabulary(()), "none"),
        "task and stage, the last prediction": (STAGES, "last prediction"),
        "task and stage, by `StageTracker`": (STAGES, "tracker"),
        "task and stage, the true one": (STAGES, "truth"),
    }
    policies = {stages: train(stages, frames, steps) for stages in (StageVocabulary(()), STAGES)}
    for name, (stages, source) in cases.items():
        done = [
            (TOURS[task], run_episode(world, policies[stages], task, start, source))
            for task in range(len(TOURS))
            for start in range(episodes)
        ]
        right = Rate(sum(tour == loops for tour, loops in done), len(done))
        twice = Rate(sum(loops == (tour[0],) * 2 for tour, loops in done), len(done))
        lines.append(f"| {name} | {right} | {twice} |")
        print(lines[-1], flush=True)
    table = "\n".join(lines)
    print(table)
    return table


if __name__ == "__main__":
    tyro.cli(main, description=__doc__)
