"""Adding a task: the ways that train what belongs to tasks leave the others as they are."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from examples.metaworld import add_task
from examples.metaworld.add_task import WAYS, Args, _mix, main
from examples.metaworld.policy import Policy, sample
from examples.metaworld.tasks import TEN, vocabulary_of
from examples.metaworld.train import load_actor, save, train
from taskcond import NULL_TASK, TaskParam
from taskcond.checkpoint import load_into

OLD, ALL = vocabulary_of(TEN[:3]), vocabulary_of(TEN[:4])


def frames(tasks):
    rng = np.random.default_rng(0)
    return {
        "state": rng.normal(size=(64, 7)).astype(np.float32),
        "actions": rng.normal(size=(64, 16, 4)).astype(np.float32),
        "action_is_pad": np.zeros((64, 16), bool),
        "task_id": np.asarray(tasks, np.int32)[np.arange(64) % len(tasks)],
    }


@pytest.fixture(scope="module")
def old(tmp_path_factory):
    policy = Policy(3, nnx.Rngs(0))
    train(policy, frames([0, 1, 2]), 5, use_tasks=True)
    path = tmp_path_factory.mktemp("old") / "params"
    save(policy, path, OLD, frames([0, 1, 2]))
    return policy, path


def act(policy, ids):
    states = jnp.asarray(frames([0])["state"][: len(ids)])
    return np.asarray(sample(policy, jax.random.key(1), states, jnp.array(ids)))


@pytest.mark.parametrize("name", WAYS)
def test_old_tasks_change_only_if_their_weights_are_trained(old, name, tmp_path):
    way = WAYS[name]
    before = act(old[0], [0, 1, 2, NULL_TASK])
    policy = Policy(4, nnx.Rngs(5), own=way.own)
    report = load_into(policy, old[1], vocabulary=ALL, new_rows="mean")
    policy.eval()
    assert {path.split("/")[0] for path in report.kept} == ({"own"} if way.own else set())
    np.testing.assert_array_equal(act(policy, [0, 1, 2, NULL_TASK]), before)
    fresh = act(policy, [3])
    train(policy, frames([3]), 5, use_tasks=True, trainable=way.trainable)
    assert not np.array_equal(act(policy, [3]), fresh)
    unchanged = np.array_equal(act(policy, [0, 1, 2, NULL_TASK]), before)
    assert unchanged == (way.trainable is TaskParam)
    save(policy, tmp_path / "params", ALL, frames([3]))
    loaded = load_actor(tmp_path / "params").policy
    np.testing.assert_array_equal(act(loaded, [0, 3]), act(policy, [0, 3]))


def test_old_frames_are_mixed_in_by_their_share():
    is_new = np.arange(64) < 10
    mixed = _mix(frames([0, 1]) | {"task_id": np.arange(64)}, is_new, 0.8, seed=0)
    assert len(mixed["task_id"]) == 50
    assert (mixed["task_id"] < 10).sum() == 10
    assert len(set(mixed["task_id"].tolist())) == 50
    assert len(_mix(frames([0]), is_new, 0.0, seed=0)["task_id"]) == 10


def test_what_is_finished_is_not_done_again(tmp_path, monkeypatch):
    monkeypatch.setattr(add_task, "_train_nine", None)  # would fail if it were called
    args = Args(new=("all",), seeds=(0, 1), out=tmp_path, data=tmp_path, workers=0, episodes=2)
    for seed in args.seeds:
        for task in TEN:
            file = tmp_path / f"seed_{seed}" / task.name.replace(" ", "_") / "results.json"
            file.parent.mkdir(parents=True)
            counts = {name: [1, 9, 8] for name in ("before", *WAYS)}
            settings = [args.base_steps, args.steps, args.episodes]
            file.write_text(json.dumps({"settings": settings, "counts": counts}))
    totals = main(args)
    assert totals["the new row alone"] == (20, 180, 160)


def test_a_case_that_ctrl_c_ends_is_not_kept(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr(add_task, "read", lambda data, vocabulary: frames(range(10)))
    monkeypatch.setattr(add_task, "train", lambda *args, **kwargs: 7)  # of 4000 steps
    assert main(Args(out=tmp_path, data=tmp_path, workers=0)) == {}
    assert "(partial)" in " ".join(capsys.readouterr().out.split())
    assert not list(tmp_path.iterdir())
