"""One device and four, as two of data times two of fsdp: the same training."""

import json
import os
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest

from examples.pi0.training.configs import to_json
from examples.pi0.training.devices import make_mesh
from examples.pi0.training.plan import make_plan, memory_per_device


def on_four_devices(code: str, file: Path) -> str:
    """Runs code in a process with four devices; returns the last line that it prints."""
    flags = "--xla_force_host_platform_device_count=4 " + os.environ.get("XLA_FLAGS", "")
    done = subprocess.run(
        [sys.executable, "-c", code, str(file)],
        env={**os.environ, "XLA_FLAGS": flags},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    return done.stdout.splitlines()[-1]


BATCH = 20  # no parameter has this size

SETUP = """
import json, re, sys
import jax
import numpy as np
from examples.pi0.training import devices
from examples.pi0.training.configs import from_json
from examples.pi0.training.evaluation import Evaluation
from examples.pi0.training.plan import make_plan
from examples.pi0.training.step import Trainer

plan = make_plan(from_json(open(sys.argv[1]).read()))
config = plan.config
batches = [*plan.data.train_batches(config.batch_size, first=0, last=4)]

def on_devices(count, fsdp):
    mesh = devices.make_mesh(config.batch_size, fsdp, count)
    rows = devices.batch_sharding(mesh)
    trainer = Trainer(config, plan.blueprint, None, rows)
    shardings = devices.state_shardings(mesh, trainer.shapes, min_bytes=0)  # small ones, too
    rng = np.random.default_rng(0)
    state = jax.tree.map(
        lambda leaf, place: jax.device_put(
            np.asarray(rng.uniform(0, 0.1, leaf.shape) * (leaf.dtype != np.int32), leaf.dtype),
            place,
        ),
        trainer.shapes,
        shardings,
    )
    return trainer, state, shardings, rows
"""

TRAIN = """
def train(trainer, state, shardings, rows):
    step = jax.jit(trainer.step, donate_argnums=0, out_shardings=(shardings, None))
    step = step.lower(state, jax.device_put(batches[0], rows)).compile()
    lines = [line.split(" all-reduce(") for line in step.as_text().splitlines()]
    lines = [line for line, *rest in lines if rest]
    sums = [shape for line in lines for shape in re.findall(r"f32\\[([\\d,]+)\\]", line)]
    losses = []
    for batch in batches:
        state, metrics = step(state, jax.device_put(batch, rows))
        losses.append(float(metrics["loss"]))
    leaf = max(jax.tree.leaves(state.params), key=lambda x: x.size)
    share = leaf.addressable_shards[0].data.size / leaf.size
    return {"losses": losses, "share": share, "sums": sums}

print(json.dumps([train(*on_devices(1, 1)), train(*on_devices(4, 2))]))
"""

MEASURE = """
def measure(trainer, state, shardings, rows):
    evaluation = Evaluation(trainer.blueprint, batches, plan.vocabulary.names, 0, rows)
    found = evaluation.losses(state.params, {}), evaluation.action_errors(state.params, {})
    few = [jax.tree.map(lambda x: x[:3], batches[0])]
    confusion = evaluation.diagnose(state.params, {}, None, few).measurements.confusion
    return [*found[0].values(), *found[1].values(), *confusion.loss_under.ravel().tolist()]

print(json.dumps([measure(*on_devices(1, 1)), measure(*on_devices(4, 2))]))
"""


def test_losses_do_not_depend_on_the_devices(make_config, tmp_path):
    file = tmp_path / "config.json"
    config = make_config(
        "devices",
        devices=1,
        batch_size=BATCH,
        runs_dir=str(tmp_path),
        model={"task_lora_rank": 2},  # whose factors are looked up, too
    )
    file.write_text(to_json(config))
    one, grid = json.loads(on_four_devices(SETUP + TRAIN, file))
    np.testing.assert_allclose(grid["losses"], one["losses"], rtol=1e-5)
    assert len(set(one["losses"])) == 4
    assert (one["share"], grid["share"]) == (1, 0.5)  # the largest array is split in two
    # Gradients are summed over devices, and never the activations of the whole batch.
    assert grid["sums"]
    shapes = [tuple(map(int, shape.split(","))) for shape in grid["sums"]]
    prompt = (config.model.max_token_len, config.model.paligemma.width)  # looked up in shards
    whole = {s for s in shapes if len(s) > 2 and s[0] in (BATCH, BATCH // 2)}
    assert not {s for s in whole if s[1:] != prompt}


def test_measurements_do_not_depend_on_the_devices(make_config, tmp_path):
    file = tmp_path / "config.json"
    config = make_config("devices", devices=1, batch_size=BATCH, runs_dir=str(tmp_path))
    file.write_text(to_json(config))
    one, grid = json.loads(on_four_devices(SETUP + MEASURE, file))
    np.testing.assert_allclose(grid, one, rtol=1e-3)


RESTORE = """
import dataclasses, sys
import jax
import numpy as np
from examples.pi0.training import devices
from examples.pi0.training.configs import from_json
from examples.pi0.training.loop import open_checkpoints
from examples.pi0.training.plan import make_plan
from examples.pi0.training.step import Trainer
from taskcond.checkpoint import load_params
from taskcond.trees import flatten

config = dataclasses.replace(from_json(open(sys.argv[1]).read()), resume=True)
plan = make_plan(config)
trainer = Trainer(plan.config, plan.blueprint, None)
mesh = devices.make_mesh(config.batch_size, 2, 4)
shardings = devices.state_shardings(mesh, trainer.shapes, min_bytes=0)
with open_checkpoints(config.folder, plan) as checkpoints:
    state = checkpoints.restore(trainer.shapes, shardings)
assert int(state.step) == 6
saved, found = flatten(load_params(config.folder / "6/params")), flatten(state.average)
for path, value in saved.items():
    np.testing.assert_array_equal(value, found[path], err_msg=path)
largest = max(found.values(), key=lambda x: x.size)
assert largest.addressable_shards[0].data.size == largest.size // 2
print("ok")
"""


def test_a_checkpoint_is_restored_on_other_devices(finished, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(to_json(finished))
    assert on_four_devices(RESTORE, file) == "ok"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 1, None), r"batch_size=6 does not divide by the 4 devices; the nearest .* 4 and 8"),
        ((3, 1, None), r"the nearest that do are 4$"),
        ((8, 3, None), r"fsdp_devices=3 does not divide the 4 devices; pass one of \[1, 2, 4\]"),
        ((8, 1, 5), r"devices=5, but this machine has 4"),
        ((8, 1, None, 4), r"is 2 frames a part, .*a batch_size of 16 or a multiple does"),
    ],
)
def test_numbers_that_do_not_divide_are_answered_with_those_that_do(
    arguments, message, monkeypatch
):
    monkeypatch.setattr(jax, "local_devices", lambda: jax.devices() * 4)
    with pytest.raises(ValueError, match=message):
        make_mesh(*arguments)


def test_the_memory_of_a_device_is_known_before_anything_is_made(make_config):
    plan = make_plan(make_config("planned", ema_decay=0.9))
    size = 4 * sum(leaf.size for leaf in plan.blueprint.shapes.values())
    found = memory_per_device(plan)
    assert {found[name] for name in ("params", "average", "gradients")} == {size}
    assert 2 * size <= found["opt_state"] < 2 * size + 100  # two moments, and counters
    assert found["frozen"] == 0
