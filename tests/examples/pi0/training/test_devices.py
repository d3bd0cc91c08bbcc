"""One device and four, as two of data times two of fsdp: the same training."""

import json
import os
import subprocess
import sys

import numpy as np

from examples.pi0.training.configs import to_json

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
