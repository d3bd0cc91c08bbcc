"""Two experts: the parameters of their attention, LoRA, and the copy for sampling."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from examples.pi0.gemma import Expert, Gemma
from examples.pi0.model import GemmaConfig, LoRAConfig, Pi0, Pi0Config
from taskcond import merge_into
from taskcond.trees import flatten, to_dict
from tests.support.tiny_pi0 import close, observe, sample, tiny


def test_as_many_key_value_heads_as_query_heads_take_one_einsum():
    heads = {"depth": 1, "num_heads": 2, "num_kv_heads": 2, "head_dim": 8}
    config = tiny(
        paligemma=GemmaConfig(width=32, mlp_dim=48, **heads),
        action_expert=GemmaConfig(width=16, mlp_dim=24, **heads),
    )
    model = nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0)))
    shapes = {k: v.shape for k, v in flatten(to_dict(nnx.state(model, nnx.Param))).items()}
    attention = "PaliGemma/llm/layers/attn"
    assert shapes[f"{attention}/qkv_einsum/w"] == (1, 3, 2, 32, 8)
    assert shapes[f"{attention}/qkv_einsum_1/w"] == (1, 3, 2, 16, 8)
    assert not any("/kv_einsum" in path or "/q_einsum" in path for path in shapes)


def test_lora_starts_as_the_identity():
    config = tiny()
    lora = {"lora": LoRAConfig(rank=3, alpha=6.0)}
    adapted = dataclasses.replace(
        config,
        paligemma=dataclasses.replace(config.paligemma, **lora),
        action_expert=dataclasses.replace(config.action_expert, **lora),
    )
    assert Pi0Config.from_dict(json.loads(json.dumps(dataclasses.asdict(adapted)))) == adapted
    base, model = (Pi0(c, rngs=nnx.Rngs(0)) for c in (config, adapted))
    report = merge_into(model, nnx.state(base, nnx.Param), keep=(".*lora_[ab]",))
    assert len(report.kept) == 20  # two factors of five weights in each of two experts
    assert set(flatten(to_dict(nnx.state(model, nnx.LoRAParam)))) == set(report.kept)
    np.testing.assert_array_equal(
        sample(model, observe(config), num_steps=2), sample(base, observe(config), num_steps=2)
    )


def test_the_copy_for_sampling_casts_the_matrices_of_the_action_expert_alone():
    for pi05, adapted in ((True, False), (False, True)):
        lora = LoRAConfig(rank=2, alpha=1.0) if adapted else None
        config = tiny(pi05=pi05, dtype="bfloat16")
        config = dataclasses.replace(
            config,
            paligemma=dataclasses.replace(config.paligemma, lora=lora),
            action_expert=dataclasses.replace(config.action_expert, lora=lora),
        )
        model = nnx.eval_shape(lambda config=config: Gemma(config, rngs=nnx.Rngs(0)))
        before = flatten(to_dict(nnx.state(model)))
        copy = nnx.eval_shape(
            lambda config=config: Gemma(config, rngs=nnx.Rngs(0)).for_sampling(unroll=True)
        )
        after = flatten(to_dict(nnx.state(copy)))
        assert before.keys() == after.keys()
        cast = {path for path in before if after[path].dtype != before[path].dtype}
        assert {after[path].dtype for path in cast} == {jnp.dtype("bfloat16")}
        # The norms of π0 have a scale, with which they compute in float32.
        action = {path for path in before if any(name.endswith("_1") for name in path.split("/"))}
        assert cast == {path for path in action if not path.endswith("/scale")}


def test_unrolled_layers_compute_what_a_loop_over_them_does():
    gemma = Gemma(tiny(), rngs=nnx.Rngs(0))
    tokens = {Expert.PALIGEMMA: jax.random.normal(jax.random.key(0), (2, 5, 32))}
    where, mask = jnp.broadcast_to(jnp.arange(5), (2, 5)), jnp.ones((2, 5, 5), bool)
    found = []
    for unroll in (False, True):
        copy = gemma.for_sampling(unroll=unroll)
        out, cache = copy(tokens, where, mask)
        found.append((out[Expert.PALIGEMMA], cache))
    jax.tree.map(close, *found)


def test_modulations_computed_before_are_those_of_each_layer():
    gemma = Gemma(tiny(), rngs=nnx.Rngs(0))
    rng = np.random.default_rng(0)
    for norm in (gemma.layers.pre_attention_norm_1, gemma.layers.pre_ffw_norm_1):
        values = rng.normal(size=norm.Dense_0.kernel.shape)
        norm.Dense_0.kernel = nnx.Param(jnp.asarray(values, jnp.float32))
    condition = jnp.asarray(rng.normal(size=(2, 16)), jnp.float32)
    tokens = {Expert.ACTION: jnp.asarray(rng.normal(size=(2, 3, 16)), jnp.float32)}
    positions, mask = jnp.tile(jnp.arange(3), (2, 1)), jnp.ones((2, 3, 3), bool)
    wanted, _ = gemma(tokens, positions, mask, condition=condition)
    ours, _ = gemma(tokens, positions, mask, condition=gemma.modulations(condition))
    close(ours[Expert.ACTION], wanted[Expert.ACTION])
    other, _ = gemma(tokens, positions, mask, condition=-condition)
    assert np.abs(other[Expert.ACTION] - wanted[Expert.ACTION]).max() > 0.1
