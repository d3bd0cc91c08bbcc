"""The golden files: parameters, inputs, outputs and gradients of the published architecture.

golden = load_golden("pi05_tasks_f32")
model = golden.model(attention="plain")
model.velocity(golden.observation(), x_t, golden.inputs["time"])
"""

import dataclasses
import json
from typing import Any

import numpy as np
from flax import nnx

from examples.pi0.model import Observation, Pi0, Pi0Config
from taskcond import merge_into
from tests.support import FIXTURES


@dataclasses.dataclass(frozen=True)
class Golden:
    """The content of a golden file; parameters and gradients by their paths."""

    content: dict[str, Any]
    params: dict[str, np.ndarray]
    inputs: dict[str, np.ndarray]
    outputs: dict[str, np.ndarray]
    gradients: dict[str, np.ndarray]

    def config(self, **changes: Any) -> Pi0Config:
        """Returns the config of the model, with some fields changed."""
        values = {key: x for key, x in self.content.items() if key not in ("num_steps", "lora")}
        for expert in ("paligemma", "action_expert"):
            values[expert] = {**values[expert], "lora": self.content.get("lora")}
        return Pi0Config.from_dict({**values, **changes})

    def model(self, **changes: Any) -> Pi0:
        """Returns the model with the parameters of the file."""
        config = self.config(**changes)
        model = nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0)))  # no value is made in vain
        assert not merge_into(model, self.params).without_value
        return model

    def observation(self) -> Observation:
        """Returns the observation among the inputs."""
        names = ("state", "tokenized_prompt", "tokenized_prompt_mask")
        return Observation(
            images=part(self.inputs, "images/"),
            image_masks=part(self.inputs, "image_masks/"),
            task_id=self.inputs.get("task_id"),
            **{name: self.inputs[name] for name in names},
        )

    def x_t(self) -> np.ndarray:
        """Returns the noisy actions."""
        time = self.inputs["time"][:, None, None]
        return time * self.inputs["noise"] + (1 - time) * self.inputs["actions"]


def load_golden(name: str) -> Golden:
    """Reads `tests/fixtures/golden/{name}.npz`."""
    with np.load(FIXTURES / "golden" / f"{name}.npz") as file:
        arrays = {key: file[key] for key in file.files}
    content = json.loads(str(arrays.pop("config")))
    prefixes = ("params/", "in/", "out/", "grads/")
    return Golden(content, *(part(arrays, prefix) for prefix in prefixes))


def part(arrays: dict[str, np.ndarray], prefix: str) -> dict[str, np.ndarray]:
    """Returns the arrays whose names begin with a prefix, by the rest of the name."""
    return {key.removeprefix(prefix): x for key, x in arrays.items() if key.startswith(prefix)}
