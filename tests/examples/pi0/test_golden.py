"""The model against numbers of the published architecture: `tests/fixtures/golden`."""

import dataclasses
import json
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import taskcond
from examples.pi0.model import Observation, Pi0, Pi0Config
from taskcond.trees import flatten
from tests.support import FIXTURES

GOLDEN = FIXTURES / "golden"
FLOAT32 = ("pi05_f32", "pi05_tasks_f32", "pi0_f32", "pi0_tasks_f32", "pi05_lora_f32")
CASES = [(name, attention) for name in (*FLOAT32, "pi05_bf16") for attention in ("plain", "xla")]


@dataclasses.dataclass
class Golden:
    """A file of golden numbers, and what our model makes of its inputs."""

    dtype: str
    wanted: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


def load(name: str, attention: str) -> tuple[Pi0, Observation, dict[str, np.ndarray]]:
    with np.load(GOLDEN / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    values = json.loads(str(arrays.pop("config")))
    del values["num_steps"]
    if lora := values.pop("lora", None):
        for expert in ("paligemma", "action_expert"):
            values[expert]["lora"] = lora
    config = Pi0Config.from_dict({**values, "attention": attention})
    model = Pi0(config, rngs=nnx.Rngs(0))
    taskcond.merge_into(model, part(arrays, "params/"))
    fields: dict[str, Any] = {
        "images": part(arrays, "in/images/"),
        "image_masks": part(arrays, "in/image_masks/"),
        "task_id": arrays.get("in/task_id"),
    }
    for field in ("state", "tokenized_prompt", "tokenized_prompt_mask"):
        fields[field] = arrays[f"in/{field}"]
    return model, Observation(**fields), arrays


def part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    return {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def golden(request: pytest.FixtureRequest) -> Golden:
    name, attention = request.param
    model, observation, arrays = load(name, attention)
    given = part(arrays, "in/")
    graph, state = nnx.split(model)

    def loss(state: Any) -> tuple[Any, dict[str, Any]]:
        model = nnx.merge(graph, state)
        noise, actions, time = given["noise"], given["actions"], given["time"]
        x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
        velocity = model.velocity(observation, x_t, time)
        return jnp.mean((velocity - (noise - actions)) ** 2), {
            "velocity": velocity,
            "prefix_tokens": model.prefix_tokens(observation),
            "adarms_cond": model.adarms_cond(time, observation.task_id)
            if model.config.pi05
            else None,
            "sampled_actions": model.sample_actions(None, observation, noise=noise),
        }

    with jax.default_matmul_precision("highest"):
        (value, outputs), gradients = jax.jit(jax.value_and_grad(loss, has_aux=True))(state)
    outputs = {key: np.asarray(x) for key, x in outputs.items() if x is not None}
    wanted = {
        key.removeprefix("out/"): x for key, x in arrays.items() if key.startswith(("out/", "grad"))
    }
    return Golden(
        dtype=model.config.dtype,
        wanted=wanted,
        outputs={**outputs, "loss": np.asarray(value)},
        gradients={path: np.asarray(x) for path, x in flatten(gradients).items()},
    )


def error(ours: np.ndarray, wanted: np.ndarray, scale: np.ndarray | None = None) -> float:
    """The largest difference, relative to the largest magnitude of `scale` (`wanted`)."""
    assert ours.shape == wanted.shape
    largest = np.abs(wanted if scale is None else scale).max()
    return float(np.abs(ours - wanted).max() / max(largest, 1e-30))


def test_outputs_are_the_published_ones(golden: Golden):
    names = {name for name in golden.wanted if not name.startswith("grads/")}
    assert names == set(golden.outputs)
    errors = {name: error(golden.outputs[name], golden.wanted[name]) for name in names}
    tolerance = 3e-2 if golden.dtype == "bfloat16" else 2e-5
    assert max(errors.values()) <= tolerance, errors


def test_every_gradient_is_the_published_one(golden: Golden):
    wanted = part(golden.wanted, "grads/")
    assert set(wanted) == set(golden.gradients)
    # The image encoder's key bias moves all logits of a query alike, which softmax does not see:
    # its gradient is zero, up to rounding, and is compared on the scale of the query's.
    scales = {path: wanted[path.replace("/key/bias", "/query/bias")] for path in wanted}
    errors = {path: error(golden.gradients[path], x, scales[path]) for path, x in wanted.items()}
    worst = max(errors, key=errors.__getitem__)
    tolerance = 3e-2 if golden.dtype == "bfloat16" else 1e-4
    assert errors[worst] <= tolerance, f"{worst}: {errors[worst]:.1e}"
