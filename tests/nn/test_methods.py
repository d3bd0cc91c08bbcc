"""What all methods promise: ids, identity at the start, mixed batches, transformations."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import taskcond
from taskcond.nn.fusion import FUSIONS
from taskcond.trees import flatten
from tests.support import as_untyped_code

TASKS, WIDTH, OUT = 4, 6, 5


def random_like(x, seed=0, scale=1.0):
    return scale * jax.random.normal(jax.random.key(seed), x.shape, x.dtype)


class OfFusion(nnx.Module):
    """A fusion between a time embedding and a layer."""

    starts_as_identity = True

    def __init__(self, num_tasks, fusion):
        zeros = nnx.initializers.zeros if fusion == "add" else None
        self.task_embeddings = taskcond.TaskConditioner(
            num_tasks, WIDTH, fusion=fusion, embedding_init=zeros, rngs=nnx.Rngs(0)
        )
        self.layer = nnx.Linear(WIDTH, OUT, rngs=nnx.Rngs(1))

    def __call__(self, x, task_id):
        return self.layer(self.task_embeddings(x, task_id))


class OfLoRA(nnx.Module):
    starts_as_identity = True

    def __init__(self, num_tasks):
        self.layer = nnx.Linear(WIDTH, OUT, rngs=nnx.Rngs(1))
        self.lora = taskcond.TaskLoRA.around(self.layer, num_tasks, 2, rngs=nnx.Rngs(0))

    def __call__(self, x, task_id):
        return self.lora(x, task_id, self.layer(x))


class OfLinear(nnx.Module):
    starts_as_identity = True

    def __init__(self, num_tasks, bias):
        self.layer = nnx.Linear(WIDTH, OUT, rngs=nnx.Rngs(1))
        self.head = taskcond.TaskLinear(num_tasks, WIDTH, OUT, bias=bias, rngs=nnx.Rngs(0))

    def __call__(self, x, task_id):
        return self.head(x, task_id, self.layer(x))


class OfTokens(nnx.Module):
    """A masked mean over the layer's input and the task's tokens."""

    starts_as_identity = False

    def __init__(self, num_tasks):
        self.layer = nnx.Linear(WIDTH, OUT, rngs=nnx.Rngs(1))
        self.task_tokens = taskcond.TaskTokens(num_tasks, WIDTH, 2, rngs=nnx.Rngs(0))

    def __call__(self, x, task_id):
        tokens, mask = self.task_tokens(x[..., None, :], None, task_id)
        total = jnp.sum(jnp.where(mask[..., None], tokens, 0), axis=-2)
        return self.layer(total / mask.sum(-1, keepdims=True))


class OfStages(nnx.Module):
    """The second stage of each task, in front of a layer."""

    starts_as_identity = True

    def __init__(self, num_tasks):
        stages = taskcond.StageVocabulary((2,) * num_tasks)
        self.layer = nnx.Linear(WIDTH, OUT, rngs=nnx.Rngs(1))
        self.stages = taskcond.StageConditioner(stages, WIDTH, rngs=nnx.Rngs(0))

    def __call__(self, x, task_id):
        return self.layer(self.stages(x, task_id, 1))


METHODS = {
    **{name: lambda n, name=name: OfFusion(n, name) for name in FUSIONS},
    "lora": OfLoRA,
    "head, bias of each task": lambda n: OfLinear(n, "task"),
    "head, shared bias": lambda n: OfLinear(n, "shared"),
    "tokens": OfTokens,
    "stages": OfStages,
}


@pytest.fixture(params=METHODS)
def make(request):
    return METHODS[request.param]


@pytest.fixture
def model(make):
    """A model whose task parameters are not those of the start."""
    model = make(TASKS)
    state = nnx.state(model, taskcond.TaskParam)
    nnx.update(model, jax.tree.map(lambda x: random_like(x, x.size), state))
    return model


def inputs(*batch):
    return random_like(jnp.zeros((*batch, WIDTH)))


def run(model, x, ids):
    graph, state = nnx.split(model)
    return jax.jit(lambda state, x, ids: nnx.merge(graph, state)(x, ids))(state, x, ids)


IDS = jnp.array([3, -1, 0, 3, 1])


def test_a_mixed_batch_equals_one_task_at_a_time(model):
    x = inputs(5)
    mixed = run(model, x, IDS)
    alone = jnp.stack([model(x[i], int(task)) for i, task in enumerate(IDS)])
    np.testing.assert_allclose(mixed, alone, rtol=1e-5, atol=1e-5)
    assert len(np.unique(np.asarray(model(x[:1].repeat(5, 0), IDS)).round(4), axis=0)) == 4


def test_no_task_is_the_layer_to_the_bit(model, make):
    x, none = inputs(3), jnp.full(3, -1)
    base = make(0)
    np.testing.assert_array_equal(run(model, x, none), run(base, x, none))


def test_a_merged_model_starts_as_the_base(make):
    base, model, x = make(0), make(TASKS), inputs(5)
    report = taskcond.merge_into(model, nnx.state(base, nnx.Param))
    assert len(report.loaded) == len(flatten(nnx.state(base, nnx.Param)))
    same = np.array_equal(run(model, x, IDS), run(base, x, IDS))
    assert same == model.starts_as_identity


def test_all_that_is_added_is_a_task_parameter(make):
    base, model = make(0), make(TASKS)
    added = {*flatten(nnx.state(model, nnx.Param))} - {*flatten(nnx.state(base, nnx.Param))}
    assert added == {*flatten(nnx.state(model, taskcond.TaskParam))}
    assert added


def test_bad_ids_raise_and_are_nan_under_jit(model):
    x = inputs(2)
    with pytest.raises(ValueError, match=r"task_id out of range: got \[4\].*num_tasks=5 would do"):
        model(x, jnp.array([0, 4]))
    for bad in (4, -2, 2**31 - 1):
        out = run(model, x, jnp.array([0, bad]))
        assert np.isfinite(out[0]).all()
        assert np.isnan(out[1]).all()


def test_ids_of_another_shape_or_kind_raise(model):
    with pytest.raises(ValueError, match="task_id has shape"):
        model(inputs(2), jnp.array([0, 1, 2]))
    with as_untyped_code(), pytest.raises(TypeError, match="must be an integer"):
        model(inputs(2), jnp.array([0.0, 1.0]))
    with pytest.raises(ValueError, match="task_id not found in batch"):
        model(inputs(2), None)


def test_only_the_rows_of_the_batch_learn(model):
    x, ids = inputs(2), jnp.array([2, 0])
    graph, own, rest = nnx.split(model, taskcond.TaskParam, ...)
    grads = jax.grad(lambda own: (nnx.merge(graph, own, rest)(x, ids) ** 2).sum())(own)
    shared = {*flatten(nnx.state(model, taskcond.SharedTaskParam))}
    for path, leaf in flatten(grads).items():
        if path not in shared:
            moved = (np.asarray(leaf) != 0).reshape(TASKS, -1).any(1)
            assert moved.tolist() == [True, False, True, False], path


def test_vmap_scan_and_remat_give_the_same(model):
    x = inputs(5)
    graph, state = nnx.split(model)

    def call(x, ids):
        return nnx.merge(graph, state)(x, ids)

    expected = run(model, x, IDS)
    _, scanned = jax.lax.scan(lambda carry, xs: (carry, call(*xs)), 0, (x, IDS))
    for out in (jax.vmap(call)(x, IDS), scanned, jax.jit(jax.checkpoint(call))(x, IDS)):
        np.testing.assert_allclose(out, expected, rtol=1e-5, atol=1e-5)
    slopes = [jax.jit(jax.grad(lambda x, f=f: f(x, IDS).sum()))(x) for f in (call, jax.remat(call))]
    np.testing.assert_allclose(*slopes, rtol=1e-5, atol=1e-6)


def test_tables_grow_by_rows_and_what_is_shared_stays(model, make):
    grown, x = make(TASKS + 1), inputs(5)
    rows = [1, 0, 2, 3, -1]
    taskcond.merge_into(grown, nnx.state(model, nnx.Param), task_rows=rows, new_rows="mean")
    at = jnp.array([3, -1, 1, 3, 0])  # where the tasks of IDS are now
    np.testing.assert_array_equal(run(grown, x, at), run(model, x, IDS))


def test_a_model_without_tasks_ignores_ids(make):
    model, x = make(0), inputs(2)
    np.testing.assert_array_equal(model(x, None), model(x, jnp.array([7, 9])))
    assert not flatten(nnx.state(model, taskcond.TaskParam))


def test_bfloat16_inputs_work(model):
    out = run(model, inputs(5).astype(jnp.bfloat16), IDS)
    exact = np.asarray(run(model, inputs(5), IDS))
    assert np.abs(np.asarray(out, np.float32) - exact).max() < 0.05 * np.abs(exact).max()
