"""The world: experts solve every task, and nothing of a start depends on the task."""

import numpy as np
import pytest

from examples.lerobot import LeRobotData
from examples.metaworld.collect import collect, demonstrate, episode_rng
from examples.metaworld.processes import Pool
from examples.metaworld.tasks import HOLD_STEPS, KINDS, TEN, done_task, find_tasks, vocabulary_of
from examples.metaworld.world import World, draw_start


@pytest.fixture(scope="module")
def world():
    world = World()
    yield world
    world.close()


@pytest.mark.parametrize("task", TEN, ids=lambda task: task.name)
def test_an_expert_solves_the_task_and_no_other(world, task):
    recording = demonstrate(world, task, np.random.default_rng(0))
    assert recording.state.shape == (len(recording.actions), 7)
    assert (np.abs(recording.actions) <= 1).all()
    done = [done_task(recording.state[: n + 1], TEN) for n in range(len(recording.state))]
    assert set(done[:-1]) <= {None, task}


def test_an_episode_depends_on_its_start_and_its_actions_alone(world):
    start = draw_start(np.random.default_rng(3))
    actions = np.random.default_rng(4).uniform(-1, 1, (20, 4))

    def run(world):
        return np.stack([world.reset(start), *(world.step(action) for action in actions)])

    first = run(world)
    demonstrate(world, TEN[4], np.random.default_rng(5))
    np.testing.assert_array_equal(run(world), first)
    np.testing.assert_array_equal(run(World()), first)
    np.testing.assert_allclose(first[0, 4:6], start, atol=1e-3)


def test_the_first_frame_does_not_tell_the_task():
    # The observation of a start is a function of it (above), so the starts are classified.
    starts = np.array([[draw_start(episode_rng(t, 0, e)) for e in range(100)] for t in TEN])
    tasks = np.repeat(np.arange(len(TEN)), 100)
    points = starts.reshape(-1, 2)
    distances = np.linalg.norm(points[:, None] - points, axis=-1)
    np.fill_diagonal(distances, np.inf)
    accuracy = np.mean(tasks[distances.argmin(1)] == tasks)
    assert abs(accuracy - 0.1) < 0.03  # three standard deviations of 1000 guesses


def test_a_task_is_done_when_its_condition_has_held():
    task = TEN[0]
    near, far = np.zeros(7), np.zeros(7)
    near[:3] = task.goal
    near[0] += KINDS["reach"].radius - 1e-3
    far[:3] = task.goal
    far[0] += KINDS["reach"].radius + 1e-3
    assert not task.is_done(np.stack([near] * (HOLD_STEPS - 1)))
    assert task.is_done(np.stack([far] + [near] * HOLD_STEPS))
    assert not task.is_done(np.stack([near] * HOLD_STEPS + [far]))


def test_goals_of_one_kind_are_apart():
    for task in TEN:
        for other in TEN:
            if other is not task and KINDS[other.kind].watched == KINDS[task.kind].watched:
                gap = np.linalg.norm(np.subtract(task.goal, other.goal))
                assert gap > KINDS[task.kind].radius + KINDS[other.kind].radius


def test_an_unknown_task_names_the_nearest():
    assert find_tasks(["reach up"]) == (TEN[2],)
    with pytest.raises(ValueError, match=r"no task 'reach upp' \(did you mean 'reach up'\?\)"):
        find_tasks(["reach upp"])


def test_demonstrations_become_a_dataset_that_does_not_depend_on_processes(tmp_path):
    tasks = TEN[2], TEN[4]
    for workers in (0, 2):
        with Pool(workers) as pool:
            collect(tmp_path / str(workers), tasks, 2, seed=1, pool=pool)
    one, two = (LeRobotData(tmp_path / str(n), vocabulary=vocabulary_of(TEN)) for n in (0, 2))
    assert len(one) == len(two)
    assert set(one.task_frames) == {"reach up", "push the puck to the right"}
    for i in range(len(one)):
        assert one[i]["task"] == TEN[one[i]["task_id"]].name
        for key in ("state", "actions", "task_id"):
            np.testing.assert_array_equal(one[i][key], two[i][key])
    first_frames = [one[i]["state"] for i in range(len(one)) if one[i]["frame_index"] == 0]
    assert len({tuple(state[:3]) for state in first_frames}) == 1
