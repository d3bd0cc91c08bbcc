"""Pi0Config: what it refuses."""

import json

import numpy as np
import pytest

from examples.pi0.model import GemmaConfig, LoRAConfig, SiglipConfig
from tests.support.tiny_pi0 import tiny

GEMMA = {"width": 16, "depth": 2, "mlp_dim": 24, "num_heads": 4, "num_kv_heads": 1, "head_dim": 8}
BAD_CONFIGS = {
    "other depths": (
        lambda: tiny(action_expert=GemmaConfig(**{**GEMMA, "depth": 3})),
        "paligemma.depth=2 and action_expert.depth=3",
    ),
    "heads that do not divide": (
        lambda: GemmaConfig(**{**GEMMA, "num_kv_heads": 3}),
        "num_heads=4 must be a multiple of num_kv_heads=3",
    ),
    "an odd head": (lambda: GemmaConfig(**{**GEMMA, "head_dim": 7}), "head_dim must be even"),
    "no width": (
        lambda: GemmaConfig(**{**GEMMA, "width": 0}),
        "GemmaConfig.width must be at least 1, got 0",
    ),
    "an image that patches do not tile": (lambda: tiny(image_size=30), "image_size=30 must be"),
    "heads that do not divide the image encoder": (
        lambda: SiglipConfig(width=24, depth=1, mlp_dim=40, num_heads=5, patch_size=14),
        "width=24 must be a multiple of num_heads=5",
    ),
    "no rank": (lambda: LoRAConfig(rank=0, alpha=1.0), "LoRAConfig.rank must be at least 1, got 0"),
}


@pytest.mark.parametrize("case", BAD_CONFIGS)
def test_a_bad_config_is_refused(case):
    make, message = BAD_CONFIGS[case]
    with pytest.raises(ValueError, match=message):
        make()


def test_an_unknown_attention_is_refused():
    config = tiny()
    object.__setattr__(config, "attention", "fast")  # past the tests' own check of types
    with pytest.raises(ValueError, match=r"attention must be one of \['auto'.*got 'fast'"):
        config.__post_init__()


@pytest.mark.parametrize("width", [16.0, "16", True])
def test_a_size_that_is_no_integer_is_refused(width):
    config = GemmaConfig(**GEMMA)
    object.__setattr__(config, "width", width)  # past the tests' own check of types
    with pytest.raises(TypeError, match=f"GemmaConfig.width must be an integer, got {width!r}"):
        config.__post_init__()


def test_sizes_of_numpy_are_those_of_python():
    config = LoRAConfig(rank=3, alpha=1.0)
    object.__setattr__(config, "rank", np.int64(3))
    config.__post_init__()
    assert json.dumps(config.rank) == "3"
