"""Pi0: the published parameters, the task's way in, sampling, and what it refuses."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
from flax import nnx

import taskcond
from examples.pi0.model import GemmaConfig, LoRAConfig, Observation, Pi0, Pi0Config, SiglipConfig
from taskcond import NULL_TASK, merge_into
from taskcond.trees import flatten, to_dict
from tests.support import FIXTURES

DATA = FIXTURES
TABLE = "task_embeddings/embedding"


def tiny(**changes) -> Pi0Config:
    heads = {"depth": 2, "num_heads": 4, "num_kv_heads": 1, "head_dim": 8}
    sizes = {
        "dtype": "float32",
        "action_dim": 5,
        "action_horizon": 4,
        "max_token_len": 6,
        "image_size": 28,
        "vocab_size": 64,
        "paligemma": GemmaConfig(width=32, mlp_dim=48, **heads),
        "action_expert": GemmaConfig(width=16, mlp_dim=24, **heads),
        "siglip": SiglipConfig(width=24, depth=1, mlp_dim=40, num_heads=2, patch_size=14),
    }
    return Pi0Config(**{**sizes, **changes})


def published(**changes) -> Pi0Config:
    """The config of `checkpoints/pi05_tiny`."""
    with np.load(DATA / "golden/pi05_f32.npz") as file:
        values = json.loads(str(file["config"]))
    del values["num_steps"]
    return Pi0Config.from_dict({**values, **changes})


def observe(config: Pi0Config, batch: tuple[int, ...] = (2,), task_id=None, seed=0) -> Observation:
    rng = np.random.default_rng(seed)
    picture = (*batch, config.image_size, config.image_size, 3)
    prompt = (*batch, config.max_token_len)
    mask = np.ones(prompt, bool)
    mask[..., -2:] = False
    return Observation(
        images={k: rng.uniform(-1, 1, picture).astype(np.float32) for k in config.image_keys},
        image_masks={k: np.ones(batch, bool) for k in config.image_keys},
        state=rng.normal(size=(*batch, config.action_dim)).astype(np.float32),
        tokenized_prompt=rng.integers(0, config.vocab_size, prompt, np.int32),
        tokenized_prompt_mask=mask,
        task_id=task_id,
    )


def chunk(config: Pi0Config, batch: tuple[int, ...] = (2,), seed=1) -> np.ndarray:
    shape = (*batch, config.action_horizon, config.action_dim)
    return np.random.default_rng(seed).normal(size=shape).astype(np.float32)


def shaken(model: Pi0) -> Pi0:
    """With random adaptive norms: at their start they are zero, and ignore time and task."""
    state = nnx.state(model, nnx.Param)
    for path, x in flatten(to_dict(state)).items():
        if "Dense_0/kernel" in path and "norm_1" in path:
            key = jax.random.key(sum(map(ord, path)))
            value = jax.random.normal(key, x.shape) * 0.1
            merge_into(model, {path: value}, keep=(".*",))
    return model


@pytest.fixture(scope="module", params=["pi05", "pi0"])
def policy(request) -> Pi0:
    config = tiny(pi05=request.param == "pi05", num_tasks=7, task_embedding_scale=3.0)
    return shaken(Pi0(config, rngs=nnx.Rngs(0)))


def sample(model: Pi0, observation: Observation, **kwargs) -> np.ndarray:
    """Under jit, as it is meant to run: eagerly, each of these takes seconds."""
    graph, state = nnx.split(model)
    rows = np.shape(observation.state)[:-1]
    kwargs.setdefault("noise", chunk(model.config, rows))
    run = jax.jit(lambda state, o: nnx.merge(graph, state).sample_actions(None, o, **kwargs))
    return np.asarray(run(state, observation))


def velocity(model: Pi0, observation: Observation) -> np.ndarray:
    graph, state = nnx.split(model)
    x, time = chunk(model.config), jnp.array([0.2, 0.7])
    run = jax.jit(lambda state, o: nnx.merge(graph, state).velocity(o, x, time))
    return np.asarray(run(state, observation))


def close(a, b, tolerance=2e-6):
    np.testing.assert_allclose(a, b, rtol=0, atol=tolerance * np.abs(b).max())


# --- parameters -----------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("tree", "pi05", "num_tasks"), [("pi0", False, 0), ("pi05", True, 0), ("pi05_b1k", True, 50)]
)
def test_full_size_parameters_are_the_published_ones(tree, pi05, num_tasks):
    wanted = json.loads((DATA / f"param_trees/{tree}.json").read_text())
    config = Pi0Config(pi05=pi05, num_tasks=num_tasks)
    model = nnx.eval_shape(lambda: Pi0(config, rngs=nnx.Rngs(0)))
    ours = {
        path: {"shape": list(x.shape), "dtype": str(x.dtype)}
        for path, x in flatten(to_dict(nnx.state(model, nnx.Param))).items()
    }
    assert ours == wanted


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


@pytest.mark.parametrize("layout", ["released/params", "trained/1000/params"])
def test_both_layouts_of_a_checkpoint_load(layout):
    source = ocp.PyTreeCheckpointer().restore(DATA / "checkpoints/pi05_tiny" / layout)
    model = Pi0(published(), rngs=nnx.Rngs(1))
    report = merge_into(model, source)
    assert not report.kept
    ours = flatten(to_dict(nnx.state(model, nnx.Param)))
    with np.load(DATA / "golden/pi05_f32.npz") as golden:
        for path, x in ours.items():
            np.testing.assert_array_equal(x, golden[f"params/{path}"])


def test_loading_into_a_model_of_fifty_tasks_keeps_the_table_alone_and_acts_as_before():
    source = ocp.PyTreeCheckpointer().restore(DATA / "checkpoints/pi05_tiny/released/params")
    before = Pi0(published(), rngs=nnx.Rngs(1))
    config = published(num_tasks=50, task_embedding_init="zeros")
    after = Pi0(config, rngs=nnx.Rngs(2))
    merge_into(before, source)
    assert merge_into(after, source).kept == [TABLE]
    observation = observe(config)
    tasks = observation.replace(task_id=np.array([0, 49]))
    np.testing.assert_array_equal(velocity(after, tasks), velocity(before, observation))
    close(sample(after, tasks), sample(before, observation))  # there, the base has one row for all


# --- the task -------------------------------------------------------------------------------------


def test_the_task_enters_at_the_timestep_embedding(policy):
    time = jnp.array([0.1, 0.9])
    plain = policy.time_embedding(time, np.array([NULL_TASK, NULL_TASK]))
    given = policy.time_embedding(time, np.array([3, NULL_TASK]))
    np.testing.assert_array_equal(given[1], plain[1])
    close(given[0] - plain[0], 3.0 * policy.task_embeddings.embedding[...][3], 1e-5)


def test_null_rows_are_those_of_a_model_without_tasks(policy):
    config = dataclasses.replace(policy.config, num_tasks=0)
    without = Pi0(config, rngs=nnx.Rngs(5))
    merge_into(without, nnx.state(policy, nnx.Param), drop=(TABLE,))
    observation = observe(config)
    with_null = sample(policy, observation.replace(task_id=np.array([NULL_TASK, 2])))
    base = sample(without, observation)
    close(with_null[0], base[0])
    assert np.abs(with_null[1] - base[1]).max() > 1e-3


def test_every_row_has_its_own_task(policy):
    observation = observe(policy.config, (3,))
    mixed = sample(policy, observation.replace(task_id=np.array([4, 0, 6])))
    for row, task in enumerate((4, 0, 6)):
        same = sample(policy, observation.replace(task_id=np.full(3, task)))
        close(mixed[row], same[row])


def test_only_the_rows_of_the_batch_get_a_gradient(policy):
    observation = observe(policy.config, task_id=np.array([1, 5]))
    graph, state = nnx.split(policy)

    def loss(state):
        model = nnx.merge(graph, state)
        actions = chunk(policy.config)
        return model.compute_loss(jax.random.key(0), observation, actions).mean()

    gradients = flatten(to_dict(jax.jit(jax.grad(loss))(state)))
    assert np.flatnonzero(np.abs(gradients[TABLE]).max(-1)).tolist() == [1, 5]


def test_task_dropout_of_one_acts_without_a_task_in_training_alone():
    config = tiny(num_tasks=3, task_dropout_rate=1.0, task_embedding_scale=5.0)
    model = shaken(Pi0(config, rngs=nnx.Rngs(0)))
    graph, state = nnx.split(model)

    @jax.jit
    def embeddings(state, task_id, rng):
        model = nnx.merge(graph, state)
        time = jnp.array([0.3, 0.7])
        return model.time_embedding(time, task_id), model.time_embedding(time, task_id, rng)

    kept, dropped = embeddings(state, np.array([0, 2]), jax.random.key(0))
    null, _ = embeddings(state, np.full(2, NULL_TASK), jax.random.key(0))
    np.testing.assert_array_equal(dropped, null)
    assert np.abs(kept - null).max() > 0.1


# --- the loss -------------------------------------------------------------------------------------


@pytest.mark.parametrize("batch", [(), (3,), (2, 2)])
def test_the_loss_has_the_leading_axes_and_the_horizon(policy, batch):
    observation = observe(policy.config, batch, task_id=np.zeros(batch, np.int32))
    graph, state = nnx.split(policy)

    @jax.jit
    def run(state, observation, actions):
        model = nnx.merge(graph, state)
        return (
            model.compute_loss(jax.random.key(0), observation, actions),
            model.compute_loss(jax.random.key(0), observation, actions, train=True),
            model.velocity(observation, actions, jnp.full(batch, 0.5)),
        )

    actions = chunk(policy.config, batch)
    loss, training, velocity = run(state, observation, actions)
    assert loss.shape == training.shape == (*batch, policy.config.action_horizon)
    assert velocity.shape == actions.shape
    np.testing.assert_array_equal(loss, run(state, observation, actions)[0])
    assert not np.array_equal(loss, training)  # pictures are augmented


def test_an_empty_batch_works(policy):
    observation = observe(policy.config, (0,), task_id=np.zeros(0, np.int32))
    shape = chunk(policy.config, (0,)).shape
    assert sample(policy, observation).shape == shape
    loss = policy.compute_loss(jax.random.key(0), observation, np.zeros(shape, np.float32))
    assert loss.shape == shape[:-1]


# --- sampling -------------------------------------------------------------------------------------


def test_precomputed_modulations_change_nothing(policy):
    observation = observe(policy.config, task_id=np.array([2, NULL_TASK]))
    plain = sample(policy, observation, precompute=False)
    close(sample(policy, observation), plain)
    for task_id in (np.array([2, NULL_TASK]), jnp.array([2, NULL_TASK])):
        kept = policy.modulations(task_id, num_steps=10)
        close(sample(policy, observation.replace(task_id=None), modulations=kept), plain)


def test_modulations_of_one_task_serve_any_batch(policy):
    kept = policy.modulations(4, num_steps=3)
    for rows in (1, 3):
        observation = observe(policy.config, (rows,), task_id=np.full(rows, 4))
        wanted = sample(policy, observation, num_steps=3)
        observation = observation.replace(task_id=None)
        close(sample(policy, observation, num_steps=3, modulations=kept), wanted)


def test_a_traced_number_of_steps_is_the_static_one(policy):
    observation = observe(policy.config, task_id=np.array([2, 3]))
    graph, state = nnx.split(policy)
    noise = chunk(policy.config)

    @jax.jit
    def traced(state, num_steps):
        model = nnx.merge(graph, state)
        return model.sample_actions(None, observation, num_steps=num_steps, noise=noise)

    for num_steps in (1, 7):
        close(traced(state, num_steps), sample(policy, observation, num_steps=num_steps))
    assert np.isnan(traced(state, 0)).all()


def test_a_key_draws_the_noise(policy):
    observation = observe(policy.config, task_id=np.array([2, 3]))
    shape = chunk(policy.config).shape
    graph, state = nnx.split(policy)

    @jax.jit
    def draw(state, seed):
        model = nnx.merge(graph, state)
        return model.sample_actions(jax.random.key(seed), observation, num_steps=2)

    assert draw(state, 0).shape == shape
    np.testing.assert_array_equal(draw(state, 0), draw(state, 0))
    assert not np.array_equal(draw(state, 0), draw(state, 1))


def test_a_masked_camera_and_padding_are_not_seen(policy):
    observation = observe(policy.config, task_id=np.array([0, 1]))
    key = policy.config.image_keys[1]
    masks = {**observation.image_masks, key: np.zeros(2, bool)}
    observation = observation.replace(image_masks=masks)
    tokens = observation.tokenized_prompt.copy()
    tokens[..., -2:] = 63  # where the mask is false
    other = observation.replace(
        images={**observation.images, key: -observation.images[key]}, tokenized_prompt=tokens
    )
    close(sample(policy, other, num_steps=2), sample(policy, observation, num_steps=2))


def test_the_fused_attention_agrees_in_bfloat16_too(policy):
    configs = [
        dataclasses.replace(policy.config, attention=attention, dtype="bfloat16")
        for attention in ("plain", "xla")
    ]
    observation = observe(policy.config, task_id=np.array([0, 1]))
    samples = []
    for config in configs:
        model = Pi0(config, rngs=nnx.Rngs(0))
        merge_into(model, nnx.state(policy, nnx.Param), keep=())
        samples.append(sample(model, observation, num_steps=4))
    close(samples[0], samples[1], 3e-2)


# --- LoRA -----------------------------------------------------------------------------------------


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


# --- what it refuses ------------------------------------------------------------------------------


def with_picture(observation, key, value):
    return observation.replace(images={**observation.images, key: value})


BAD_OBSERVATIONS = {
    "a [b, 1] id": (
        lambda o: o.replace(task_id=np.zeros((2, 1), int)),
        ValueError,
        r"task_id has shape \(2, 1\), expected \(2,\)",
    ),
    "no id": (lambda o: o.replace(task_id=None), ValueError, "task_id not found in batch"),
    "an id out of range": (
        lambda o: o.replace(task_id=np.array([0, 7])),
        ValueError,
        "task_id out of range",
    ),
    "a float id": (lambda o: o.replace(task_id=np.array([0.0, 1.0])), TypeError, "task_id"),
    "a missing camera": (
        lambda o: o.replace(images={k: v for k, v in o.images.items() if "left" not in k}),
        ValueError,
        r"missing: \['left_wrist_0_rgb'\].*black picture",
    ),
    "an unknown camera": (
        lambda o: with_picture(o, "side", o.images["base_0_rgb"]),
        ValueError,
        r"unknown: \['side'\]",
    ),
    "a picture of another size": (
        lambda o: with_picture(o, "base_0_rgb", np.zeros((2, 14, 28, 3), np.float32)),
        ValueError,
        r"images\['base_0_rgb'\] has shape \(2, 14, 28, 3\), expected \(2, 28, 28, 3\)",
    ),
    "a state of another width": (
        lambda o: o.replace(state=o.state[:, :3]),
        ValueError,
        r"state has shape \(2, 3\).*zero-pad",
    ),
    "another number of prompts": (
        lambda o: o.replace(tokenized_prompt=o.tokenized_prompt[:1]),
        ValueError,
        "tokenized_prompt has shape",
    ),
    "a prompt mask of another length": (
        lambda o: o.replace(tokenized_prompt_mask=o.tokenized_prompt_mask[:, 1:]),
        ValueError,
        "tokenized_prompt_mask has shape",
    ),
}


@pytest.mark.parametrize("case", BAD_OBSERVATIONS)
def test_a_bad_observation_is_refused(policy, case):
    change, error, message = BAD_OBSERVATIONS[case]
    observation = change(observe(policy.config, task_id=np.array([0, 1])))
    actions = chunk(policy.config)
    with pytest.raises(error, match=message):
        policy.velocity(observation, actions, np.ones(2, np.float32))
    with pytest.raises(error, match=message):
        policy.sample_actions(None, observation, noise=actions)
    with pytest.raises(error, match=message):
        policy.compute_loss(jax.random.key(0), observation, actions)


def test_pictures_of_bytes_are_refused(policy):
    observation = observe(policy.config, task_id=np.array([0, 1]))
    pictures = {k: np.zeros(v.shape, np.int32) for k, v in observation.images.items()}
    bad = jax.tree.map(lambda x: x, observation)  # past the check of types in __init__
    object.__setattr__(bad, "images", pictures)
    with pytest.raises(TypeError, match=r"must be float32 in \[-1, 1\], got int32.*127.5"):
        policy.sample_actions(None, bad, noise=chunk(policy.config))


BAD_SAMPLING = {
    "no steps": ({"num_steps": 0}, ValueError, "num_steps must be at least 1, got 0"),
    "half steps": ({"num_steps": 1.5}, TypeError, "num_steps must be an integer, got 1.5"),
    "a bool": ({"num_steps": True}, ValueError, "num_steps must be at least 1, got True"),
    "no noise and no key": ({"noise": None}, ValueError, "pass a key as rng, or the noise"),
    "noise of another shape": (
        {"noise": np.zeros((2, 3, 5), np.float32)},
        ValueError,
        r"noise has shape \(2, 3, 5\), expected \(2, 4, 5\)",
    ),
}


@pytest.mark.parametrize("case", BAD_SAMPLING)
def test_bad_arguments_of_sampling_are_refused(policy, case):
    kwargs, error, message = BAD_SAMPLING[case]
    observation = observe(policy.config, task_id=np.array([0, 1]))
    with pytest.raises(error, match=message):
        policy.sample_actions(None, observation, **{"noise": chunk(policy.config), **kwargs})


def test_kept_modulations_must_fit(policy):
    observation = observe(policy.config, (3,), task_id=np.array([0, 1, 2]))
    kept = policy.modulations(np.array([0, 1]), num_steps=5)
    noise = chunk(policy.config, (3,))

    def run(observation, num_steps):
        policy.sample_actions(None, observation, noise=noise, num_steps=num_steps, modulations=kept)

    with pytest.raises(ValueError, match="have their task already"):
        run(observation, 5)
    with pytest.raises(ValueError, match="are those of 5 steps"):
        run(observation.replace(task_id=None), 10)
    with pytest.raises(ValueError, match="are those of 2 tasks, but there are 3"):
        run(observation.replace(task_id=None), 5)
    with pytest.raises(ValueError, match="task_id out of range"):
        policy.modulations(7, num_steps=5)
    with pytest.raises(ValueError, match="num_steps must be at least 1"):
        policy.modulations(0, num_steps=0)


def test_kept_modulations_of_the_other_model_are_refused(policy):
    other = Pi0(tiny(num_tasks=3, pi05=not policy.config.pi05), rngs=nnx.Rngs(0))
    with pytest.raises(ValueError, match="of the other kind of model"):
        policy.sample_actions(
            None,
            observe(policy.config),
            noise=chunk(policy.config),
            num_steps=2,
            modulations=other.modulations(0, num_steps=2),
        )


def test_ids_may_be_a_list(policy):
    wanted = velocity(policy, observe(policy.config, task_id=np.array([0, 2])))
    close(velocity(policy, observe(policy.config, task_id=[0, 2])), wanted)


def test_pictures_of_another_batch_are_told_from_those_of_another_size(policy):
    observation = observe(policy.config, (3,), task_id=np.array([0, 1]))
    with pytest.raises(ValueError, match="its leading axes must be those of state"):
        policy.prefix_tokens(observation.replace(state=observation.state[:2]))


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
    "no width": (lambda: GemmaConfig(**{**GEMMA, "width": 0}), "GemmaConfig.width must be"),
    "a picture that patches do not tile": (lambda: tiny(image_size=30), "image_size=30 must be"),
    "heads that do not divide the image encoder": (
        lambda: SiglipConfig(width=24, depth=1, mlp_dim=40, num_heads=5, patch_size=14),
        "width=24 must be a multiple of num_heads=5",
    ),
    "no rank": (lambda: LoRAConfig(rank=0, alpha=1.0), "LoRAConfig.rank must be"),
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


def test_negative_num_tasks_is_refused():
    with pytest.raises(ValueError, match="num_tasks"):
        Pi0(tiny(num_tasks=-1), rngs=nnx.Rngs(0))


def test_ids_out_of_range_under_jit_give_nan_in_their_row_alone(policy):
    result = velocity(policy, observe(policy.config, task_id=jnp.array([0, 7])))
    assert np.isfinite(result[0]).all()
    assert np.isnan(result[1]).all()


def test_task_params_select_the_table():
    model = Pi0(tiny(num_tasks=3), rngs=nnx.Rngs(0))
    assert set(flatten(to_dict(nnx.state(model, taskcond.TaskParam)))) == {TABLE}
