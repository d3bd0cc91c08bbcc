"""Episodes: what a policy is told and does; a bad one stops with the step and the task."""

import dataclasses
import json
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from flax import nnx
from metaworld.policies import SawyerReachV3Policy

from examples.metaworld import report
from examples.metaworld.episodes import EXECUTED, Episode, Job, run_episode, run_jobs
from examples.metaworld.policy import Policy
from examples.metaworld.processes import Pool
from examples.metaworld.rollout import Args, main
from examples.metaworld.tasks import TEN, find_tasks, vocabulary_of
from examples.metaworld.train import load_actor, save, train
from examples.metaworld.world import World
from tests.support import assign


class Reacher:
    """An actor that moves the hand straight to the goal of the task that it is told."""

    def __init__(self):
        self.told = []

    def act(self, observation, task, seed):
        self.told.append((task, seed))
        goal = find_tasks([task])[0].goal if task else observation[:3]
        full = np.zeros(39)
        full[:7], full[-3:] = observation, goal
        return np.tile(SawyerReachV3Policy().get_action(full), (EXECUTED, 1))


@pytest.mark.filterwarnings("ignore:Constant")
def test_the_told_task_is_done_and_the_asked_one_counted():
    world, actor = World(), Reacher()
    left, right = TEN[:2]
    told_right = run_episode(world, actor, Job(left, left, 0))
    told_wrong = run_episode(world, actor, Job(left, right, 0))
    told_none = run_episode(world, actor, Job(left, None, 0))
    assert [e.done for e in (told_right, told_wrong, told_none)] == [left, right, None]
    assert {task for task, _ in actor.told} == {left.name, right.name, None}
    episodes = [told_right, told_wrong, told_none]
    assert report.asked_rate(episodes) == report.Rate(1, 3)
    assert report.told_rate(episodes) == report.Rate(2, 2)
    assert report.any_rate(episodes) == report.Rate(2, 3)
    counts = report.confusion(episodes, TEN)
    assert (counts[0, 0], counts[0, 1], counts[0, -1], counts.sum()) == (1, 1, 1, 3)
    np.testing.assert_array_equal(told_right.observations[0], told_wrong.observations[0])


@pytest.mark.parametrize(
    ("chunk", "message"),
    [
        (np.full((16, 4), np.nan), "NaN or Inf at step 0 of 'reach up'"),
        (np.zeros((16, 3)), r"shape \(16, 3\) at step 0 of 'reach up'.*\[8 or more, 4\]"),
        (np.zeros((4, 4)), r"shape \(4, 4\) at step 0"),
        (np.zeros(4), r"shape \(4,\) at step 0"),
    ],
)
def test_a_bad_policy_stops_with_the_step_and_the_task(chunk, message):
    class Bad:
        def act(self, observation, task, seed):
            return chunk

    with pytest.raises(ValueError, match=message):
        run_episode(World(), Bad(), Job(TEN[2], None, 0))


@pytest.fixture(scope="module")
def checkpoint(tmp_path_factory):
    """A policy of the first three tasks, trained for three steps."""
    rng = np.random.default_rng(0)
    frames = {
        "state": rng.normal(size=(64, 7)).astype(np.float32),
        "actions": rng.normal(size=(64, 16, 4)).astype(np.float32),
        "action_is_pad": np.zeros((64, 16), bool),
        "task_id": np.arange(64, dtype=np.int32) % 3,
    }
    policy = Policy(3, nnx.Rngs(0))
    train(policy, frames, 3, use_tasks=True)
    path = tmp_path_factory.mktemp("policy") / "params"
    save(policy, path, vocabulary_of(TEN[:3]), frames)
    return path


def test_a_saved_policy_acts_the_same_in_this_and_in_another_process(checkpoint):
    jobs = [Job(TEN[0], TEN[0], 1)]
    results = []
    for workers in (0, 1):
        with Pool(workers) as pool:
            results += run_jobs(jobs, load_actor, checkpoint, pool=pool)
    here, there = results
    assert isinstance(here, Episode)
    np.testing.assert_array_equal(here.observations, there.observations)
    assert here.done == there.done


def test_a_policy_that_was_saved_over_another_is_the_one_that_acts(checkpoint, tmp_path):
    path, jobs = tmp_path / "params", [Job(TEN[0], TEN[0], 1)]
    shutil.copytree(checkpoint, path)
    with Pool(0) as pool:
        (before,) = run_jobs(jobs, load_actor, path, pool=pool)
        policy = load_actor(path).policy
        assign(policy, action_out={"kernel": policy.action_out.kernel[...] + 0.5})
        save(policy, path, vocabulary_of(TEN[:3]), {"task_id": np.arange(3)})
        (after,) = run_jobs(jobs, load_actor, path, pool=pool)
    assert not np.array_equal(before.observations[-1], after.observations[-1])


def test_a_checkpoint_of_other_tasks_is_refused_by_name(checkpoint):
    with pytest.raises(SystemExit, match=r"not trained on \['push the puck forward'\]. Its tasks"):
        main(Args(checkpoint, tasks=("reach up", "push the puck forward")))
    with pytest.raises(ValueError, match="did you mean 'reach up'"):
        main(Args(checkpoint, tasks=("reach upp",)))


def load_reacher(path):
    return Reacher()


@pytest.mark.filterwarnings("ignore:Constant")
def test_another_policy_is_loaded_by_the_function_that_is_named(checkpoint, tmp_path):
    args = Args(checkpoint, f"{__name__}:load_reacher", ("reach up",), 1, workers=0)
    assert main(dataclasses.replace(args, json=tmp_path / "results.json")) == 0
    (results,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert results["asked"] == [1, 1]
    for name in ("nowhere:load", "json:nothing", "no name"):
        with pytest.raises(SystemExit, match=f"no function '{name}'.*module:function"):
            main(Args(checkpoint, name))


def test_ctrl_c_keeps_the_finished_episodes_and_shows_them_as_partial(checkpoint, tmp_path):
    out = tmp_path / "results.json"
    command = f"-m examples.metaworld.rollout {checkpoint} --episodes 300 --workers 1 --json {out}"
    process = subprocess.Popen(
        [sys.executable, *command.split(), "--tasks", "reach up"],
        # Progress and colors, as in a terminal that is wide enough not to break the name.
        env={**os.environ, "FORCE_COLOR": "1", "COLUMNS": "200", "PYTHONPATH": "src:."},
        cwd=Path(__file__).parents[3],
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        # What a shell runs in the background ignores Ctrl-C, and so would what that runs.
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.SIG_DFL),
    )
    assert process.stdout is not None
    seen = b""
    while b"10/300" not in seen and (byte := process.stdout.read(1)):
        seen += byte
    process.send_signal(signal.SIGINT)
    seen += process.communicate(timeout=120)[0]
    assert process.returncode == 130, seen.decode()
    assert "Traceback" not in seen.decode()
    assert "(interrupted: partial)" in seen.decode()
    ((name, results),) = json.loads(out.read_text()).items()
    assert name == "params, right id (interrupted: partial)"
    starts = [episode["start"] for episode in results["episodes"]]
    assert 10 <= len(starts) < 300
    assert starts == list(range(len(starts)))


def test_the_command_writes_its_results(checkpoint, tmp_path, capsys):
    out = Args(
        checkpoint, tasks=("reach up",), episodes=1, told="none", workers=0,
        json=tmp_path / "results.json", plot=tmp_path / "matrix.png",
    )  # fmt: skip
    assert main(out) == 0
    (results,) = json.loads((tmp_path / "results.json").read_text()).values()
    assert [e["asked"] for e in results["episodes"]] == ["reach up"]
    assert [e["told"] for e in results["episodes"]] == [None]
    assert results["asked"][1] == 1
    assert (tmp_path / "matrix.png").read_bytes().startswith(b"\x89PNG")
    assert "none id" in capsys.readouterr().out
