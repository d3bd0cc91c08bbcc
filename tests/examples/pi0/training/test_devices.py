"""One device and four, as two of data times two of fsdp: the same training."""

import json
import os
import subprocess
import sys

import jax
import numpy as np
import pytest

from examples.pi0.training.configs import to_json
from examples.pi0.training.devices import make_mesh
from examples.pi0.training.plan import make_plan, memory_per_device

CODE = """
import dataclasses, json, sys
import jax
from examples.pi0.training import devices
from examples.pi0.training.configs import from_json
from examples.pi0.training.plan import make_plan
from examples.pi0.training.step import Trainer
from examples.pi0.training.weights import load_weights

devices._MIN_BYTES = 0  # so that small arrays are split, too
config = from_json(open(sys.argv[1]).read())
results = []
for changes in json.loads(sys.argv[2]):
    plan = make_plan(dataclasses.replace(config, **changes))
    blueprint = plan.blueprint
    places = devices.state_shardings(plan.mesh, blueprint.shapes, 0)
    flat = load_weights(None, blueprint, places, plan.vocabulary, jax.random.key(0))
    trainer = Trainer(plan.config, blueprint, None)
    shardings = devices.state_shardings(plan.mesh, trainer.shapes, 0)
    state = jax.jit(trainer.start, out_shardings=shardings)(*blueprint.split(flat))
    step = jax.jit(trainer.step, donate_argnums=0, out_shardings=(shardings, None))
    rows = devices.batch_sharding(plan.mesh)
    losses = []
    for batch, _ in zip(plan.data.train_batches(config.batch_size, first=0, last=6), range(4)):
        state, metrics = step(state, jax.device_put(batch, rows))
        losses.append(float(metrics["loss"]))
    leaf = max(jax.tree.leaves(state.params), key=lambda x: x.size)
    share = leaf.addressable_shards[0].data.size / leaf.size
    results.append({"losses": losses, "share": share})
print(json.dumps(results))
"""


def test_losses_do_not_depend_on_the_devices(make_config, tmp_path):
    file = tmp_path / "config.json"
    file.write_text(to_json(make_config("devices", runs_dir=str(tmp_path))))
    grids = [{"devices": 1}, {"devices": 4, "fsdp_devices": 2}]
    flags = "--xla_force_host_platform_device_count=4 --xla_backend_optimization_level=0"
    done = subprocess.run(
        [sys.executable, "-c", CODE, str(file), json.dumps(grids)],
        env={**os.environ, "XLA_FLAGS": flags},
        check=True,
        stdout=subprocess.PIPE,
        text=True,
    )
    one, grid = json.loads(done.stdout.splitlines()[-1])
    np.testing.assert_allclose(grid["losses"], one["losses"], rtol=1e-5)
    assert len(set(one["losses"])) == 4
    assert (one["share"], grid["share"]) == (1, 0.5)  # the largest array is split in two


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((6, 1, None), r"batch_size=6 does not divide by the 4 devices; the nearest .* 4 and 8"),
        ((3, 1, None), r"the nearest that do are 4$"),
        ((8, 3, None), r"fsdp_devices=3 does not divide the 4 devices; pass one of \[1, 2, 4\]"),
        ((8, 1, 5), r"devices=5, but this machine has 4"),
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
