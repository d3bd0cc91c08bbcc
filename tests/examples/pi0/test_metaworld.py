"""A tiny π0.5 of Meta-World's scene is trained, saved, and rolled out as any policy."""

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from examples.lerobot import Recording, write_dataset
from examples.metaworld.rollout import Args as RolloutArgs
from examples.metaworld.rollout import main as roll_out
from examples.metaworld.tasks import TEN
from examples.pi0.metaworld import CONFIG, PROMPT, Args, load_actor, main
from taskcond import NULL_TASK

TOLD, OTHER = TEN[1].name, TEN[4].name
SEEN = np.array([0.0, 0.6, 0.2, 1.0, 0.0, 0.65, 0.02], np.float32)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    rng = np.random.default_rng(0)
    recordings = [
        Recording(
            SEEN + rng.normal(0, 0.1, (12, 7)).astype(np.float32),
            rng.uniform(-1, 1, (12, 4)).astype(np.float32),
            task.name,
        )
        for task in TEN
    ]
    root = tmp_path_factory.mktemp("pi0")
    dataset = write_dataset(root / "dataset", recordings, version="v3.0")
    main(Args(dataset, root / "out", steps=2, batch_size=4))
    return root / "out"


@pytest.fixture(scope="module")
def actor(folder):
    return load_actor(folder)


def test_nothing_but_the_id_tells_the_tasks_apart(actor):
    frame = {"state": SEEN, "task": PROMPT}
    one, two = (actor.transform.observe({**frame, "task_id": n}) for n in (0, 1))
    same = jax.tree.map(np.array_equal, one.replace(task_id=None), two.replace(task_id=None))
    assert all(jax.tree.leaves(same))
    assert not one.image_masks["base_0_rgb"]
    assert one.tokenized_prompt_mask.sum() == CONFIG.max_token_len  # the whole prompt, no padding


def test_the_task_is_the_row_of_its_name(actor):
    for task in (TOLD, OTHER, None):
        task_id = NULL_TASK if task is None else [t.name for t in TEN].index(task)
        frame = {"state": SEEN, "task": PROMPT, "task_id": task_id}
        batch = jax.tree.map(lambda x: jnp.asarray(x)[None], actor.transform.observe(frame))
        expected = actor.model.sample_actions(jax.random.key(3), batch)
        expected = actor.transform.unnormalize_actions(expected)[0]
        np.testing.assert_allclose(actor.act(SEEN, task, 3), expected, rtol=1e-4, atol=1e-5)
    assert np.abs(actor.act(SEEN, TOLD, 3) - actor.act(SEEN, OTHER, 3)).max() > 1e-3


def test_it_is_rolled_out_as_any_policy(folder, tmp_path):
    out, loader = tmp_path / "results.json", "examples.pi0.metaworld:load_actor"
    args = RolloutArgs(folder, loader, (TOLD,), episodes=1, workers=0, json=out)
    assert roll_out(args) == 0
    (results,) = json.loads(out.read_text()).values()
    assert [episode["told"] for episode in results["episodes"]] == [TOLD]
