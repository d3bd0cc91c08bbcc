"""A policy survives every step from merging to loading."""

from __future__ import annotations

import json
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from taskcond import merge_into
from taskcond.checkpoint import (
    diff_checkpoints,
    load_params,
    merge_checkpoint,
    save_params,
)
from taskcond.trees import flatten
from tests.support import FIXTURES
from tests.support.checkpoints import (
    TABLE,
    TINY,
    assert_same,
    golden,
    with_orbax,
)


def load_ignoring_warnings(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_params(path)


def target_with_tasks(num_tasks, features=16):
    shapes = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in golden("pi05_f32").items()
    }
    table = np.random.default_rng(3).standard_normal((num_tasks, features)).astype(np.float32)
    return {**shapes, TABLE: table}


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = value
    return tree


def policy(pi0, config):
    names = ("action_dim", "action_horizon", "max_token_len", "vocab_size", "image_size")
    lora = config.get("lora")
    gemma = {} if lora is None else {"lora": pi0.LoRAConfig(**lora)}
    return pi0.Pi0(
        pi0.Pi0Config(
            dtype="float32",
            num_tasks=config["num_tasks"],
            paligemma=pi0.GemmaConfig(**config["paligemma"], **gemma),
            action_expert=pi0.GemmaConfig(**config["action_expert"], **gemma),
            siglip=pi0.SiglipConfig(**config["siglip"]),
            **{name: config[name] for name in names},
        ),
        rngs=nnx.Rngs(0),
    )


def observation(pi0, inputs):
    def group(prefix):
        return {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}

    names = ("state", "tokenized_prompt", "tokenized_prompt_mask", "task_id")
    return pi0.Observation(
        images=group("images/"),
        image_masks=group("image_masks/"),
        **{name: jnp.asarray(inputs[name]) for name in names if name in inputs},
    )


def fine_tune(pi0, model, inputs, steps):
    def loss(model, rng):
        seen = observation(pi0, inputs)
        return model.compute_loss(rng, seen, inputs["actions"]).mean()

    gradient = nnx.jit(nnx.grad(loss))
    for step in range(steps):
        grads = gradient(model, jax.random.key(step))
        state = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda x, g: x - 0.1 * g, state, grads))


def test_round_trip_of_a_policy(tmp_path):
    pi0 = pytest.importorskip("examples.pi0.model")
    with np.load(FIXTURES / "golden" / "pi05_tasks_f32.npz") as file:
        config = json.loads(str(file["config"]))
        inputs = {key.removeprefix("in/"): file[key] for key in file if key.startswith("in/")}
    merge_checkpoint(
        TINY / "released", target_with_tasks(7), tmp_path / "merged" / "params", keep=TABLE
    )
    assert_same(
        {path: x for path, x in flatten(load_ignoring_warnings(tmp_path / "merged")).items()
         if path != TABLE},
        golden("pi05_f32"),
    )  # fmt: skip
    model = policy(pi0, {**config, "num_tasks": 7})
    merge_into(model, load_ignoring_warnings(tmp_path / "merged"))
    fine_tune(pi0, model, inputs, steps=2)
    tuned = {path: np.asarray(x) for path, x in flatten(nnx.state(model, nnx.Param)).items()}
    assert (tuned[TABLE] != load_ignoring_warnings(tmp_path / "merged")["task_embeddings"]["embedding"]).any()  # fmt: skip  # noqa: E501
    save_params(tuned, tmp_path / "tuned" / "params")
    assert_same(with_orbax(tmp_path / "tuned" / "params")["params"], nested(tuned))
    save_params(load_params(tmp_path / "tuned"), tmp_path / "safe", format="safetensors")
    save_params(load_params(tmp_path / "safe"), tmp_path / "back")
    assert_same(with_orbax(tmp_path / "back")["params"], nested(tuned))
    assert diff_checkpoints(tmp_path / "tuned", tmp_path / "back").identical
