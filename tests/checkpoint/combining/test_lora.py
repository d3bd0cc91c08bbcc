"""A folded LoRA does what the adapted model does."""

from __future__ import annotations

import json

import numpy as np
import pytest

from taskcond.checkpoint import (
    Checkpoint,
    CheckpointError,
    Recipe,
    Specialist,
    combine_checkpoints,
    load_params,
    save_params,
)
from taskcond.checkpoint.combining.lora import FoldedLora
from taskcond.checkpoint.storage.leaf import read_leaf
from tests.support import FIXTURES


def close(actual, expected):
    np.testing.assert_allclose(actual, expected, rtol=1e-5, atol=1e-6)


def test_a_folded_lora_is_the_adapted_model(tmp_path):
    """Outputs of the plain model with folded weights, against the golden ones of the adapted."""
    pytest.importorskip("sentencepiece", reason="needs the extra examples")
    import jax
    from flax import nnx

    from examples.pi0.model import Observation, Pi0, Pi0Config
    from taskcond import merge_into

    with np.load(FIXTURES / "golden/pi05_lora_f32.npz") as file:
        arrays = {key: file[key] for key in file}
    config = json.loads(str(arrays["config"]))
    alpha = config.pop("lora")["alpha"]
    del config["num_steps"]
    params = {k.removeprefix("params/"): x for k, x in arrays.items() if k.startswith("params/")}
    save_params(params, tmp_path / "lora")
    with pytest.raises(CheckpointError, match=r"LoRA fine-tune; give its lora_alpha"):
        combine_checkpoints(Recipe((Specialist(str(tmp_path / "lora")),)), tmp_path / "out")
    folded = Recipe((Specialist(str(tmp_path / "lora"), lora_alpha=alpha),))
    combine_checkpoints(folded, tmp_path / "out")
    tiny = Pi0Config.from_dict({**config, "attention": "plain"})
    model = nnx.eval_shape(lambda: Pi0(tiny, rngs=nnx.Rngs(0)))  # every leaf is loaded
    assert not merge_into(model, load_params(tmp_path / "out")).kept

    def given(prefix):
        return {k.removeprefix(prefix): x for k, x in arrays.items() if k.startswith(prefix)}

    observation = Observation(
        given("in/images/"),
        given("in/image_masks/"),
        *(arrays[f"in/{x}"] for x in ("state", "tokenized_prompt", "tokenized_prompt_mask")),
    )
    noise, actions, time = (arrays[f"in/{x}"] for x in ("noise", "actions", "time"))
    x_t = time[:, None, None] * noise + (1 - time[:, None, None]) * actions
    with jax.default_matmul_precision("highest"):
        velocity = nnx.jit(lambda m: m.velocity(observation, x_t, time))(model)
    wanted = arrays["out/velocity"]
    assert np.abs(velocity - wanted).max() <= 2e-5 * np.abs(wanted).max()


def test_half_a_lora_is_refused(tmp_path):
    params = {"attn": {"w": np.ones((4, 4)), "lora_a": np.ones((4, 2))}}
    save_params(params, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"other half: \['attn/lora_a'\]"):
        FoldedLora(Checkpoint(tmp_path / "x"))


def test_a_lora_that_does_not_fit_its_weight_is_refused(tmp_path):
    params = {"attn": {"w": np.ones((4, 4)), "lora_a": np.ones((4, 2)), "lora_b": np.ones((2, 5))}}
    save_params(params, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"do not fit .*attn/w.*\[2, 5\]"):
        FoldedLora(Checkpoint(tmp_path / "x"))


def test_a_folded_leaf_reads_in_pieces(tmp_path):
    rng = np.random.default_rng(0)
    w, a, b = (rng.standard_normal(s).astype(np.float32) for s in ((6, 5), (6, 2), (2, 5)))
    save_params({"mlp": {"linear": w, "linear_lora_a": a, "linear_lora_b": b}}, tmp_path / "x")
    folded = FoldedLora(Checkpoint(tmp_path / "x"))
    assert list(folded.leaves) == ["mlp/linear"]
    close(read_leaf(folded, "mlp/linear"), w + a @ b)
    close(folded.read("mlp/linear", (slice(2, 4), slice(1, 3))), (w + a @ b)[2:4, 1:3])
