"""The animation shows what the policy does, and says what is missing where nothing can be drawn."""

import os
import subprocess
import sys
from pathlib import Path

import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from PIL import Image

from examples.metaworld.animate import _beside
from examples.metaworld.policy import Policy
from examples.metaworld.tasks import TEN, vocabulary_of
from examples.metaworld.train import save

TASKS = [task.name for task in TEN[:2]]


def animate(*args, **env):
    # A process of its own, because MuJoCo chooses how it draws when it is imported.
    return subprocess.run(
        [sys.executable, "-m", "examples.metaworld.animate", *map(str, args)],
        env={**os.environ, "PYTHONPATH": "src:.", **env},
        cwd=Path(__file__).parents[3],
        capture_output=True,
        text=True,
        check=False,
    )


@pytest.fixture(scope="module")
def drawing():
    """Skips where MuJoCo itself cannot draw; our code has no part in finding that out."""
    model = "mujoco.MjModel.from_xml_string('<mujoco/>')"
    code = f"import mujoco; mujoco.Renderer({model}, 8, 8).close()"
    env = {"MUJOCO_GL": "egl", **os.environ}
    tried = subprocess.run([sys.executable, "-c", code], env=env, capture_output=True, check=False)
    if tried.returncode:
        pytest.skip("MuJoCo itself cannot draw on this machine, as it has no EGL")


def test_pictures_stand_in_rows_below_their_titles():
    pictures = [np.full((20, 20, 3), 10 * i, np.uint8) for i in range(7)]
    page = _beside(pictures, [f"task {i}" for i in range(7)])
    assert page.shape == (2 * (20 + 14), 5 * 20, 3)
    for i in range(7):
        top, left = i // 5 * 34 + 14, i % 5 * 20
        assert (page[top : top + 20, left : left + 20] == 10 * i).all()
        assert page[top - 14 : top, left : left + 20].min() < 100  # the title is there
    assert (page[34 + 14 :, 40:] == 255).all()


@pytest.mark.usefixtures("drawing")
def test_robots_start_alike_and_stand_side_by_side(tmp_path):
    frames = {"task_id": np.zeros(1, np.int32)}
    policy = Policy(2, nnx.Rngs(0))
    policy.action_out.bias = nnx.Param(jnp.ones(64))  # so that it moves
    save(policy, tmp_path / "params", vocabulary_of(TEN[:2]), frames)
    out = tmp_path / "new" / "robots.gif"
    done = animate(tmp_path / "params", "--out", out, "--size", 48, "--tasks", *TASKS)
    assert done.returncode == 0, done.stderr
    assert [line.split(":")[0] for line in done.stdout.splitlines()[:2]] == TASKS
    with Image.open(out) as film:
        assert film.size == (5 * 48, 48 + 14)
        pictures = []
        for index in (0, film.n_frames - 1):
            film.seek(index)
            pictures.append(np.asarray(film.convert("RGB"))[14:])
    first, last = pictures
    np.testing.assert_array_equal(first[:, :48], first[:, 48:96])
    assert np.abs(first[:, :48].astype(int) - last[:, :48]).max() > 50
    assert (first[:, 96:] == 255).all()


def test_what_is_missing_is_said(tmp_path):
    done = animate(tmp_path, MUJOCO_GL="nonsense")
    assert done.returncode == 1
    (line,) = done.stderr.splitlines()
    assert line.startswith("MuJoCo cannot be imported for drawing: ")
    assert "MUJOCO_GL is 'nonsense'. Install EGL" in line
