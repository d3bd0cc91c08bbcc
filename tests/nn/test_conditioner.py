"""TaskConditioner: the contract, in NNX and in Linen."""

import chex
import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.experimental import checkify
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import taskcond
import taskcond.linen
from taskcond.nn.settings import ConditionerSettings
from tests.support import as_untyped_code
from tests.support.conditioner import FEATURES, make, table, time_emb


@pytest.mark.parametrize("jit", [False, True])
@pytest.mark.parametrize("batch", [(), (3,), (2, 3)])
def test_adds_the_scaled_row(batch, jit):
    conditioner = make(scale=2.5)
    emb = time_emb(*batch)
    ids = np.random.default_rng(1).integers(0, 5, batch)
    call = nnx.jit(lambda c, e, i: c(e, i)) if jit else (lambda c, e, i: c(e, i))
    expected = np.asarray(emb) + 2.5 * table(conditioner)[ids]
    np.testing.assert_allclose(call(conditioner, emb, jnp.asarray(ids)), expected, atol=1e-6)


@pytest.mark.parametrize("ids", [2, np.int64(2), np.uint8(2), jnp.int16(2)])
def test_takes_any_integer(ids):
    np.testing.assert_array_equal(make()(time_emb(), ids), make()(time_emb(), jnp.int32(2)))


def test_embed_is_the_scaled_row_and_zero_for_no_task():
    conditioner = make(scale=3.0)
    out = conditioner.embed(jnp.array([[4, -1]]))
    np.testing.assert_allclose(out[0, 0], 3 * table(conditioner)[4], rtol=1e-6)
    np.testing.assert_array_equal(out[0, 1], np.zeros(FEATURES))


@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("param_dtype", [jnp.float32, jnp.bfloat16])
def test_result_has_the_dtype_of_the_time_embedding(dtype, param_dtype):
    conditioner = make(param_dtype=param_dtype)
    assert conditioner.embedding.dtype == param_dtype
    assert conditioner(time_emb(2, dtype=dtype), jnp.array([0, 1])).dtype == dtype


def test_bfloat16_is_the_rounded_float32_result():
    emb = time_emb(2, dtype=jnp.bfloat16)
    conditioner = make()
    exact = np.asarray(emb, np.float32) + table(conditioner)[[0, 1]]
    np.testing.assert_array_equal(
        conditioner(emb, jnp.array([0, 1])), jnp.asarray(exact).astype(jnp.bfloat16)
    )


def test_default_table_is_that_of_nnx_embed():
    ours = make(num_tasks=50)
    embed = nnx.Embed(50, FEATURES, rngs=nnx.Rngs(0))
    np.testing.assert_array_equal(table(ours), np.asarray(embed.embedding[...]))


def test_zero_initialization_is_the_identity():
    conditioner = make(embedding_init=nnx.initializers.zeros)
    emb = time_emb(3)
    chex.assert_trees_all_equal(conditioner(emb, jnp.array([0, 3, 4])), emb)


def test_empty_batch():
    assert make()(time_emb(0), jnp.zeros((0,), jnp.int32)).shape == (0, FEATURES)


def test_no_tasks_is_the_identity_without_parameters():
    conditioner = make(num_tasks=0)
    emb = time_emb(2)
    for ids in (None, jnp.array([0, 99]), 5):
        assert conditioner(emb, ids) is emb
    assert not jax.tree.leaves(nnx.state(conditioner, nnx.Param))
    np.testing.assert_array_equal(conditioner.embed(jnp.array([1, 2])), np.zeros((2, FEATURES)))


def test_task_param_selects_the_table_alone():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(FEATURES, FEATURES, rngs=rngs)
            self.task_embeddings = taskcond.TaskConditioner(3, FEATURES, rngs=rngs)

    state = nnx.state(Model(nnx.Rngs(0)), taskcond.TaskParam)
    (leaf,) = jax.tree.leaves(state)
    assert leaf.shape == (3, FEATURES)
    assert list(state) == ["task_embeddings"]
    assert list(state["task_embeddings"]) == ["embedding"]


# --- properties ---------------------------------------------------------------------------------

ids_strategy = st.lists(st.integers(-1, 4), min_size=1, max_size=8).map(np.array)


@settings(deadline=None, max_examples=25)
@given(ids_strategy, st.randoms(use_true_random=False))
def test_equivariant_to_permuting_tasks_and_batch(ids, random):
    conditioner, emb = make(), time_emb(len(ids))
    tasks, batch = list(range(5)), list(range(len(ids)))
    random.shuffle(tasks)
    random.shuffle(batch)
    rows = table(conditioner)[np.argsort(tasks)]
    permuted = make(embedding_init=lambda *_: jnp.asarray(rows))
    new_ids = np.where(ids < 0, ids, np.array(tasks)[ids])
    np.testing.assert_array_equal(
        permuted(emb[np.array(batch)], new_ids[batch]), conditioner(emb, ids)[np.array(batch)]
    )


@settings(deadline=None, max_examples=50)
@given(hnp.arrays(np.float32, (3, FEATURES)), st.booleans())
def test_null_rows_are_the_input_to_the_bit(emb, jit):
    ids = jnp.array([-1, 2, -1])
    conditioner = make()
    call = nnx.jit(lambda c, e, i: c(e, i)) if jit else (lambda c, e, i: c(e, i))
    out = np.asarray(call(conditioner, jnp.asarray(emb), ids))
    # XLA on CPU flushes no denormals in a select: the bits pass through, -0.0 and NaN included.
    np.testing.assert_array_equal(out[[0, 2]].view(np.int32), emb[[0, 2]].view(np.int32))


def test_vmap_scan_and_grad_agree_with_a_loop():
    conditioner, emb, ids = make(), time_emb(4), jnp.array([0, -1, 4, 0])
    graphdef, state = nnx.split(conditioner)

    def call(state, e, i):
        return nnx.merge(graphdef, state)(e, i)

    rows = [call(state, e, i) for e, i in zip(emb, ids, strict=True)]
    np.testing.assert_array_equal(jax.vmap(call, (None, 0, 0))(state, emb, ids), jnp.stack(rows))
    _, scanned = jax.lax.scan(lambda c, x: (c, call(state, *x)), 0, (emb, ids))
    np.testing.assert_array_equal(scanned, jnp.stack(rows))
    grads = jax.tree.leaves(jax.grad(lambda s: call(s, emb, ids).sum())(state))[0]
    counts = np.array([2, 0, 0, 0, 1])  # how often each task occurs; no task has no gradient
    np.testing.assert_allclose(grads, np.tile(counts[:, None], FEATURES))


def test_table_is_replicated_over_a_mesh_unless_told_otherwise():
    mesh = Mesh(np.array(jax.devices()), ("data",))
    conditioner = make(num_tasks=50)
    graphdef, state = nnx.split(conditioner)
    n = 2 * len(jax.devices())
    emb = jax.device_put(time_emb(n), NamedSharding(mesh, PartitionSpec("data")))
    ids = jax.device_put(jnp.arange(n) % 50, NamedSharding(mesh, PartitionSpec("data")))
    state = jax.device_put(state, NamedSharding(mesh, PartitionSpec()))
    out = jax.jit(lambda s, e, i: nnx.merge(graphdef, s)(e, i))(state, emb, ids)
    np.testing.assert_allclose(out, conditioner(time_emb(n), jnp.arange(n) % 50), rtol=1e-6)
    assert out.sharding.is_equivalent_to(emb.sharding, out.ndim)
    leaf = jax.tree.leaves(state)[0]
    assert leaf.sharding.is_fully_replicated


@pytest.mark.parametrize("bad", [5, 99, -2, np.iinfo(np.int32).min])
@pytest.mark.parametrize("kind", [np.array, jnp.array, list])
def test_concrete_bad_ids_raise_with_the_fix(bad, kind):
    with pytest.raises(ValueError, match="task_id out of range") as error:
        make()(time_emb(2), kind([0, bad]))
    assert str(bad) in str(error.value)
    assert "num_tasks=5" in str(error.value)
    if bad > 0:
        assert f"num_tasks={bad + 1} would do" in str(error.value)


@pytest.mark.parametrize("bad", [2**32, 2**40, -(2**32)])
def test_a_wide_id_never_wraps_into_range(bad):
    with pytest.raises(ValueError, match="out of range"):
        make()(time_emb(1), np.array([bad], np.int64))


@pytest.mark.parametrize("num_tasks", [1, 2, 5, 300])
@pytest.mark.parametrize("dtype", [np.int8, np.uint8, np.int16, np.int32, np.uint32])
def test_traced_bad_ids_are_nan_and_only_theirs(num_tasks, dtype):
    info = np.iinfo(dtype)
    ids = np.array([0, info.max, info.min], dtype)
    out = nnx.jit(lambda c, e, i: c(e, i))(make(num_tasks), time_emb(3), ids)
    good = (ids.astype(np.int64) >= 0) & (ids.astype(np.int64) < num_tasks)
    np.testing.assert_array_equal(np.isnan(out).all(-1), ~good)
    np.testing.assert_array_equal(np.isnan(out).any(-1), ~good)


@pytest.mark.parametrize("num_tasks", [1, 5])
@pytest.mark.parametrize("bad", [5, -2])
def test_checkify_reports_bad_ids_under_jit(num_tasks, bad):
    graphdef, state = nnx.split(make(num_tasks, checkify=True))

    def call(state, emb, ids):
        return nnx.merge(graphdef, state)(emb, ids)

    checked = jax.jit(checkify.checkify(call))
    error, _ = checked(state, time_emb(2), jnp.array([0, bad]))
    message = rf"task_id out of range: got {bad}; allowed is -1 \(no task\) to {num_tasks - 1}"
    with pytest.raises(checkify.JaxRuntimeError, match=message):
        error.throw()
    error, _ = checked(state, time_emb(2), jnp.array([0, -1]))
    error.throw()


@pytest.mark.parametrize("report", [True, False])
@pytest.mark.parametrize("bad", [5, -2])
def test_checkify_reports_bad_ids_as_rows_out_of_bounds(report, bad):
    graphdef, state = nnx.split(make(5, checkify=report))

    def call(state, emb, ids):
        return nnx.merge(graphdef, state)(emb, ids)

    checked = jax.jit(checkify.checkify(call, errors=checkify.index_checks))
    error, _ = checked(state, time_emb(2), jnp.array([0, bad]))
    with pytest.raises(checkify.JaxRuntimeError, match="out-of-bounds"):
        error.throw()
    error, _ = checked(state, time_emb(2), jnp.array([4, -1]))
    error.throw()


def test_by_default_there_is_no_effect_and_rematerialization_works():
    graphdef, state = nnx.split(make(5))

    def loss(state, emb, ids):
        return nnx.merge(graphdef, state)(emb, ids).sum()

    arguments = state, time_emb(2), jnp.array([3, -1])
    assert not jax.make_jaxpr(loss)(*arguments).effects
    plain = jax.jit(jax.grad(loss))(*arguments)
    remat = jax.jit(jax.grad(jax.checkpoint(loss)))(*arguments)
    jax.tree.map(np.testing.assert_array_equal, plain, remat)
    assert np.isnan(jax.jit(loss)(*arguments[:2], jnp.array([0, 5])))


@pytest.mark.parametrize("ids", [[0.0, 1.0], [True, False], ["0", "1"]])
def test_ids_that_are_no_integers_are_refused(ids):
    with as_untyped_code(), pytest.raises(TypeError, match="task_id must be an integer"):
        make()(time_emb(2), ids)


def test_traced_floats_are_refused():
    with as_untyped_code(), pytest.raises(TypeError, match="task_id must be an integer"):
        nnx.jit(lambda c, e, i: c(e, i))(make(), time_emb(2), jnp.zeros(2))


@pytest.mark.parametrize("shape", [(2, 1), (1,), (), (3,), (2, 2)])
def test_ids_of_another_shape_are_refused(shape):
    with pytest.raises(ValueError, match="leading axes of time_emb"):
        make()(time_emb(2), jnp.zeros(shape, jnp.int32))


def test_missing_ids_say_what_to_do():
    with pytest.raises(ValueError, match="task_id not found in batch.*ExtractTaskID"):
        make()(time_emb(2), None)


def test_features_that_do_not_match_are_refused():
    with pytest.raises(ValueError, match=r"last axis must be features=6"):
        make()(jnp.zeros((2, 7)), jnp.zeros(2, jnp.int32))


@pytest.mark.parametrize(
    ("change", "error", "message"),
    [
        ({"num_tasks": -1}, ValueError, "num_tasks must be at least 0, got -1"),
        ({"num_tasks": 2.0}, TypeError, "num_tasks must be an integer, got 2.0"),
        ({"num_tasks": True}, TypeError, "num_tasks must be an integer, got True"),
        ({"num_tasks": None}, TypeError, "num_tasks must be an integer, got None"),
        ({"features": 0}, ValueError, "features must be at least 1, got 0"),
        ({"features": 1.5}, TypeError, "features must be an integer"),
        ({"fusion": "multiply"}, ValueError, r"one of \['add', 'film', 'gate', 'concat'\]"),
        ({"scale": float("nan")}, ValueError, "scale must be finite"),
        ({"dropout_rate": 1.5}, ValueError, r"dropout_rate must be in \[0, 1\]"),
    ],
)
def test_bad_settings_name_the_argument(change, error, message):
    good = {"num_tasks": 3, "features": 4, "scale": 1.0, "fusion": "add", "dropout_rate": 0.0}
    ConditionerSettings(**good)
    with as_untyped_code(), pytest.raises(error, match=message):
        ConditionerSettings(**{**good, **change})


def test_dropout_makes_some_ids_null_in_training_alone():
    conditioner = make(dropout_rate=0.3)
    emb, ids = time_emb(2000), jnp.ones(2000, jnp.int32)
    conditioner.train()
    rngs = nnx.Rngs(dropout=0)
    dropped = np.asarray((conditioner(emb, ids, rngs=rngs) == emb).all(-1))
    assert 0.25 < dropped.mean() < 0.35
    again = np.asarray((conditioner(emb, ids, rngs=rngs) == emb).all(-1))
    assert (dropped != again).any()
    conditioner.eval()
    assert not np.asarray((conditioner(emb, ids) == emb).all(-1)).any()


def test_dropout_repeats_with_the_seed_and_can_be_overridden():
    first = make(dropout_rate=0.5)
    emb, ids = time_emb(64), jnp.ones(64, jnp.int32)
    outs = [first(emb, ids, rngs=nnx.Rngs(dropout=7)) for _ in range(2)]
    np.testing.assert_array_equal(*outs)
    outs = [first(emb, ids, rngs=jax.random.key(7)) for _ in range(2)]
    np.testing.assert_array_equal(*outs)
    assert not np.asarray((first(emb, ids, deterministic=True) == emb).all(-1)).any()


def test_dropout_hides_no_bad_id():
    conditioner = make(dropout_rate=1.0)
    call = nnx.jit(lambda c, e, i: c(e, i, rngs=jax.random.key(0)))
    out = call(conditioner, time_emb(2), jnp.array([1, 9]))
    np.testing.assert_array_equal(np.isnan(out).all(-1), [False, True])


@pytest.mark.parametrize("rate", [0.0, 0.5])
def test_a_conditioners_state_is_its_table_and_nothing_else(rate):
    assert list(nnx.state(make(dropout_rate=rate))) == ["embedding"]


def test_dropout_without_a_key_says_how_to_give_one():
    with pytest.raises(ValueError, match=r"rngs=key or rngs=nnx\.Rngs\(dropout=0\)") as raised:
        make(dropout_rate=0.5)(time_emb(2), jnp.array([0, 1]))
    assert "model.eval()" in str(raised.value)


@pytest.mark.skipif(not hasattr(nnx, "view"), reason="nnx.view is newer than this flax")
def test_a_deterministic_view_drops_no_id():
    conditioner, emb = make(dropout_rate=1.0), time_emb(2)
    view = nnx.view(conditioner, deterministic=True)
    assert not np.asarray(view(emb, jnp.array([0, 1])) == emb).all(-1).any()


@pytest.mark.parametrize("wrap", ["remat", "scan", "shard_map"])
def test_gradients_pass_through_transformations_with_defaults(wrap):
    graphdef, state = nnx.split(make(5))
    emb, ids = time_emb(4), jnp.array([3, -1, 0, 3])

    def apply(state, emb, ids):
        return nnx.merge(graphdef, state)(emb, ids)

    def scanned(state, emb, ids):
        step = lambda carry, x: (carry, apply(state, *x))  # noqa: E731
        return jax.lax.scan(step, 0, (emb, ids))[1]

    def sharded(state, emb, ids):
        shard_map = getattr(jax, "shard_map", None)
        if shard_map is None:
            from jax.experimental.shard_map import shard_map
        mesh = Mesh(np.array(jax.devices()[:1]), ("data",))
        batch = PartitionSpec("data")
        specs = (PartitionSpec(), batch, batch)
        return shard_map(apply, mesh=mesh, in_specs=specs, out_specs=batch)(state, emb, ids)

    wrapped = {"remat": jax.checkpoint(apply), "scan": scanned, "shard_map": sharded}[wrap]
    loss = lambda function: lambda *x: (function(*x) ** 2).sum()  # noqa: E731
    plain = jax.jit(jax.grad(loss(apply)))(state, emb, ids)
    changed = jax.jit(jax.grad(loss(wrapped)))(state, emb, ids)
    jax.tree.map(lambda a, b: np.testing.assert_allclose(a, b, rtol=1e-6), plain, changed)


@pytest.mark.parametrize(
    ("emb", "error", "message"),
    [
        (
            np.zeros((2, FEATURES), np.int32),
            TypeError,
            "must be floating point, got int32",
        ),
        (np.zeros((2, FEATURES), np.complex64), TypeError, "must be floating point, got complex64"),
        ([[0.0] * FEATURES] * 2, TypeError, "time_emb must be an array, got list"),
    ],
)
def test_a_time_embedding_that_is_not_floating_point_is_refused(emb, error, message):
    with as_untyped_code(), pytest.raises(error, match=message):
        make()(emb, jnp.array([0, 1]))


@pytest.mark.parametrize("dtype", [jnp.int8, jnp.complex64, "float4_e2m1fn"])
def test_a_dtype_that_has_no_nan_is_refused(dtype):
    if isinstance(dtype, str):
        dtype = getattr(jnp, dtype, None) or pytest.skip("this jax has no 4-bit floats")
    with pytest.raises(TypeError, match="param_dtype must be a floating-point dtype that has NaN"):
        make(param_dtype=dtype)
    with pytest.raises(TypeError, match="dtype must be a floating-point dtype that has NaN"):
        make(dtype=dtype)


@pytest.mark.parametrize(
    ("scale", "error", "message"),
    [
        (None, TypeError, "scale must be a number, got None"),
        ("1", TypeError, "scale must be a number, got '1'"),
        (1e39, ValueError, "scale=1e\\+39 overflows param_dtype=float32"),
    ],
)
def test_a_scale_that_cannot_work_is_named(scale, error, message):
    with as_untyped_code(), pytest.raises(error, match=message):
        make(scale=scale)


def test_a_traced_scale_is_refused():
    with as_untyped_code(), pytest.raises(TypeError, match="scale is traced"):
        jax.jit(lambda scale: make(scale=scale)(time_emb(), 0))(2.0)


def test_odd_containers_of_ids_say_what_to_do():
    assert make()(time_emb(0), []).shape == (0, FEATURES)
    with pytest.raises(TypeError, match="different lengths; pad them with taskcond.NULL_TASK"):
        make()(time_emb(2, 2), [[1, 2], [3]])
    masked = np.ma.masked_array([1, 2], [False, True])
    with pytest.raises(TypeError, match=r"filled\(taskcond.NULL_TASK\)"):
        make()(time_emb(2), masked)


def test_advice_on_shapes_works_when_it_is_followed():
    emb, task_id = time_emb(2, 4), jnp.array([3, 1])
    with pytest.raises(ValueError, match="Use jnp.broadcast_to") as raised:
        make()(emb, task_id)
    advice = str(raised.value).split("Use ")[1].split(" if ")[0]
    out = make()(emb, eval(advice, {"jnp": jnp, "task_id": task_id}))
    np.testing.assert_array_equal(out[1], make()(emb[1], jnp.full(4, 1)))
    with pytest.raises(ValueError, match=r"Use task_id.reshape\(\(2,\)\)"):
        make()(time_emb(2), task_id[:, None])
