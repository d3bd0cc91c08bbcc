"""The model against numbers of the published architecture: `tests/fixtures/golden`."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from taskcond.trees import flatten
from tests.support.golden import Golden, load_golden

FLOAT32 = ("pi05_f32", "pi05_tasks_f32", "pi0_f32", "pi0_tasks_f32", "pi05_lora_f32")
CASES = [(name, attention) for name in (*FLOAT32, "pi05_bf16") for attention in ("plain", "xla")]


@dataclasses.dataclass
class Result:
    """A golden file, and what our model makes of its inputs."""

    golden: Golden
    dtype: str
    outputs: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]


@pytest.fixture(scope="module", params=CASES, ids="-".join)
def result(request: pytest.FixtureRequest) -> Result:
    name, attention = request.param
    golden = load_golden(name)
    observation, x_t = golden.observation(), golden.x_t()
    given = golden.inputs
    graph, state = nnx.split(golden.model(attention=attention))

    def loss(state: Any) -> tuple[Any, dict[str, Any]]:
        model = nnx.merge(graph, state)
        noise, actions, time = given["noise"], given["actions"], given["time"]
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
    return Result(
        golden=golden,
        dtype=golden.config().dtype,
        outputs={**outputs, "loss": np.asarray(value)},
        gradients={path: np.asarray(x) for path, x in flatten(gradients).items()},
    )


def error(ours: np.ndarray, wanted: np.ndarray, scale: np.ndarray | None = None) -> float:
    """The largest difference, relative to the largest magnitude of `scale` (`wanted`)."""
    assert ours.shape == wanted.shape
    largest = np.abs(wanted if scale is None else scale).max()
    return float(np.abs(ours - wanted).max() / max(largest, 1e-30))


def test_outputs_are_the_published_ones(result: Result):
    wanted = result.golden.outputs
    assert set(wanted) == set(result.outputs)
    errors = {name: error(result.outputs[name], wanted[name]) for name in wanted}
    tolerance = 3e-2 if result.dtype == "bfloat16" else 2e-5
    assert max(errors.values()) <= tolerance, errors


def test_every_gradient_is_the_published_one(result: Result):
    wanted = result.golden.gradients
    assert set(wanted) == set(result.gradients)
    # The image encoder's key bias moves all logits of a query alike, which softmax does not see:
    # its gradient is zero, up to rounding, and is compared on the scale of the query's.
    scales = {path: wanted[path.replace("/key/bias", "/query/bias")] for path in wanted}
    errors = {path: error(result.gradients[path], x, scales[path]) for path, x in wanted.items()}
    worst = max(errors, key=errors.__getitem__)
    tolerance = 3e-2 if result.dtype == "bfloat16" else 1e-4
    assert errors[worst] <= tolerance, f"{worst}: {errors[worst]:.1e}"
