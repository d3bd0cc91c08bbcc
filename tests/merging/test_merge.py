"""merge_params and merge_into: nothing lost, nothing in silence."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.sharding import Mesh, NamedSharding, PartitionSpec

import taskcond
from taskcond import MergeError, TaskVocabulary, merge_into, merge_params
from taskcond.trees import to_dict

TABLE = "task_embeddings/embedding"


def tree(seed=0, tasks=None, dtype=np.float32):
    rng = np.random.default_rng(seed)
    result = {
        "encoder": {"kernel": rng.normal(size=(3, 4)).astype(dtype), "bias": np.zeros(4, dtype)},
        "layers": {0: {"w": rng.normal(size=(2, 2)).astype(dtype)}},
    }
    if tasks:
        result["task_embeddings"] = {"embedding": rng.normal(size=(tasks, 4)).astype(dtype)}
    return result


def equal(a, b):
    assert jax.tree.structure(a) == jax.tree.structure(b)
    jax.tree.map(np.testing.assert_array_equal, a, b)


# --- loading ------------------------------------------------------------------------------------

leaves = st.builds(
    lambda shape, dtype: np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype),
    st.lists(st.integers(0, 3), max_size=3).map(tuple),
    st.sampled_from(["float32", "int32", "float16", jnp.bfloat16, "bool"]),
)
names = st.text("abcdefg_0", min_size=1, max_size=3)
trees = st.recursive(
    leaves, lambda inner: st.dictionaries(names, inner, min_size=1, max_size=3), max_leaves=8
).filter(lambda node: isinstance(node, dict))


@settings(deadline=None)
@given(trees)
def test_merging_a_tree_into_itself_is_the_identity(params):
    merged, report = merge_params(params, params)
    equal(merged, params)
    assert len(report.loaded) == len(jax.tree.leaves(params))
    assert not report.kept
    assert not report.dropped


@settings(deadline=None)
@given(trees, trees)
def test_a_merge_never_changes_a_leaf_that_it_reports_as_kept(target, source):
    try:
        merged, report = merge_params(target, source, keep=".*", drop=".*")
    except MergeError as error:
        assert error.uncastable  # the one thing that keep and drop cannot excuse
        return
    flat_old, flat_new = (dict(jax.tree_util.tree_leaves_with_path(x)) for x in (target, merged))
    kept = set(report.kept)
    for path, leaf in flat_old.items():
        if "/".join(key.key for key in path) in kept:
            assert flat_new[path] is leaf
    assert jax.tree.structure(merged) == jax.tree.structure(target)
    assert [x.dtype for x in jax.tree.leaves(merged)] == [x.dtype for x in jax.tree.leaves(target)]


@pytest.mark.parametrize(
    "layout",
    [
        lambda p: {"params": p},
        lambda p: jax.tree.map(lambda x: {"value": x}, p),
        lambda p: {"params": jax.tree.map(lambda x: {"value": x}, p)},
        lambda p: (
            {"encoder/kernel": p["encoder"]["kernel"], "encoder/bias": p["encoder"]["bias"]}
            | {"layers/0/w": p["layers"][0]["w"]}
        ),
    ],
)
def test_reads_every_layout(layout):
    merged, report = merge_params(tree(1), layout(tree(0)))
    equal(merged, tree(0))
    assert sorted(report.loaded) == ["encoder/bias", "encoder/kernel", "layers/0/w"]


def test_released_weights_into_a_conditioned_model_keep_only_the_table():
    target = tree(1, tasks=5)
    merged, report = merge_params(target, tree(0), keep=["task_embeddings/.*"])
    assert report.kept == [TABLE]
    equal(merged, {**tree(0), "task_embeddings": target["task_embeddings"]})


def test_keep_allows_absence_and_discards_nothing():
    merged, report = merge_params(tree(1, 5), tree(0, 5), keep="task_embeddings/.*")
    equal(merged, tree(0, 5))
    assert not report.kept


def test_drop_and_rename():
    source = {**tree(0), "head": {"w": np.ones(2)}}
    source["body"] = source.pop("encoder")
    merged, report = merge_params(
        tree(1), source, drop="head/.*", rename={r"body/(.*)": r"encoder/\1"}
    )
    equal(merged, tree(0))
    assert report.dropped == ["head/w"]
    assert report.renamed == {"body/kernel": "encoder/kernel", "body/bias": "encoder/bias"}


def test_values_are_cast_to_the_targets_dtype_and_it_is_said():
    merged, report = merge_params(tree(1, dtype=jnp.bfloat16), tree(0))
    assert {x.dtype for x in jax.tree.leaves(merged)} == {jnp.dtype(jnp.bfloat16)}
    assert report.cast["encoder/kernel"] == ("float32", "bfloat16")


def test_shapes_are_enough_for_a_target_and_say_where_values_go():
    sharding = NamedSharding(Mesh(np.array(jax.devices()[:1]), ("x",)), PartitionSpec())
    shapes = jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, jnp.bfloat16, sharding=sharding), tree(0)
    )
    merged, _ = merge_params(shapes, tree(0))
    assert all(x.sharding == sharding for x in jax.tree.leaves(merged))


def test_none_is_no_leaf():
    merged, report = merge_params({"a": np.ones(1), "bias": None}, {"a": np.zeros(1), "b": None})
    assert merged == {"a": np.zeros(1), "bias": None}
    assert report.loaded == ["a"]


def test_neither_argument_is_changed():
    target, source = tree(1, 5), tree(0, 3)
    merge_params(target, source, task_rows=[0, 1, 2, -1, -1], new_rows="mean")
    equal(target, tree(1, 5))
    equal(source, tree(0, 3))


def test_one_error_lists_every_problem_and_the_arguments_that_accept_it():
    source = {**tree(0), "old": {"w": np.ones(3)}}
    source["encoder"]["kernel"] = np.ones((3, 5), np.float32)
    target = tree(1, 5)
    with pytest.raises(MergeError) as caught:
        merge_params(target, source)
    error = caught.value
    assert error.missing == (TABLE,)
    assert error.unexpected == ("old/w",)
    assert error.mismatched == ("encoder/kernel",)
    for text in (TABLE, "old/w", "[3, 5] float32, [3, 4] float32", "1 missing, 1 unexpected"):
        assert text in str(error)
    accept = str(error).split("to accept this: ")[1].splitlines()[0]
    arguments = eval(f"dict({accept})")  # what is printed is what works
    _, report = merge_params(target, source, **arguments)
    assert report.kept == ["encoder/kernel", TABLE]
    assert report.dropped == ["encoder/kernel", "old/w"]


@pytest.mark.parametrize(
    ("wrap", "rename"),
    [
        (lambda p: {"net": p}, {"net/(.*)": r"\1"}),
        (lambda p: {"a": {"b": p}}, {"a/b/(.*)": r"\1"}),
    ],
)
def test_where_only_the_beginning_differs_one_rename_is_the_advice(wrap, rename):
    target = tree(1, 5)
    for source, model, expected in (
        (wrap(tree(0)), target, rename),
        (tree(0), wrap(target), None),
    ):
        with pytest.raises(MergeError) as caught:
            merge_params(model, source)
        accept = str(caught.value).split("to accept this: ")[1].splitlines()[0]
        arguments = eval(f"dict({accept})")
        assert expected in (None, arguments["rename"])
        assert [key.endswith(TABLE) for key in arguments["keep"]] == [True]
        _, report = merge_params(model, source, **arguments)
        assert [path.endswith(TABLE) for path in report.kept] == [True]
        assert (len(report.loaded), report.dropped) == (3, [])


def test_a_rename_that_breaks_what_fits_is_no_advice():
    target = {"a": {"x": np.ones(1)}, "net": {"a": {"y": np.ones(1)}}}
    with pytest.raises(MergeError, match=r"to accept this: keep=\['net/a/y'\], drop=\['a/y'\]"):
        merge_params(target, {"a": {"x": np.ones(1), "y": np.ones(1)}})


def test_after_a_rename_the_advice_names_the_checkpoints_paths():
    source = {"old": {"w": np.ones(3), "b": np.ones(2)}}
    target = {"new": {"w": np.ones(4)}}
    rename = {"old/(.*)": r"new/\1"}
    with pytest.raises(MergeError) as caught:
        merge_params(target, source, rename=rename)
    accept = str(caught.value).split("to accept this: ")[1].splitlines()[0]
    _, report = merge_params(target, source, **{"rename": rename, **eval(f"dict({accept})")})
    assert (report.kept, report.dropped) == (["new/w"], ["old/w", "old/b"])


def test_what_is_no_array_is_named():
    arrays = {"a": [np.ones(1)], "b": {"c": 1.0, "d": (np.ones(1),)}, "e": np.ones(1)}
    message = r"not arrays: \{'checkpoint': \{'a': 'list', 'b/c': 'float', 'b/d': 'tuple'\}\}"
    with pytest.raises(TypeError, match=message):
        merge_params({"e": np.ones(1)}, arrays)
    with pytest.raises(TypeError, match=r"not arrays: \{'model': \{'a': 'list'"):
        merge_params(arrays, {"e": np.ones(1)})


def test_rows_without_a_table_are_reported_and_the_error_names_the_argument():
    def cond(rows):
        return {"cond": {"embedding": np.ones((rows, 2))}}

    _, report = merge_params(cond(2), cond(2), task_rows=[1, 0])
    assert report.unused == ["task_rows"]
    assert "unused  task_rows  no leaf of both has the path of a task table" in str(report)
    with pytest.raises(MergeError, match=r"task_rows was not used: .* task_tables=\.\.\."):
        merge_params(cond(3), cond(2), task_rows=[1, 0, 0])
    merged, report = merge_params(
        cond(3), cond(2), task_rows=[1, 0, 0], task_tables="cond/embedding"
    )
    assert (merged["cond"]["embedding"].shape, report.unused) == ((3, 2), [])


def test_another_models_checkpoint_is_refused_whole():
    with pytest.raises(MergeError, match="3 missing, 2 unexpected"):
        merge_params(tree(0), {"a": np.ones(1), "b": {"c": np.ones(1)}})


@pytest.mark.parametrize(("old", "new"), [("float32", "int32"), ("int64", "int32"), ("int8", "f4")])
def test_a_cast_to_another_kind_of_number_is_refused(old, new):
    with pytest.raises(MergeError, match="refused casts") as caught:
        merge_params({"a": np.zeros(1, new)}, {"a": np.zeros(1, old)}, keep=".*", drop=".*")
    assert caught.value.uncastable == ("a",)


def test_nan_is_counted_and_warned_of():
    source = tree(0)
    source["encoder"]["kernel"][0, :2] = [np.nan, np.inf]
    with pytest.warns(UserWarning, match=r"NaN or Inf in encoder/kernel \(2\)"):
        _, report = merge_params(tree(1), source)
    assert report.nonfinite == {"encoder/kernel": 2}


@pytest.mark.parametrize("library", [np, jnp])
def test_what_overflows_in_a_cast_is_counted_and_named(library):
    source = {"a": library.asarray([1.0, 1e5, -1e5], np.float32)}
    target = {"a": np.zeros(3, np.float16)}
    with pytest.warns(UserWarning, match=r"a \(2, cast from float32 to float16\)"):
        merged, report = merge_params(target, source)
    assert report.nonfinite == {"a": 2}
    np.testing.assert_array_equal(merged["a"], np.array([1, np.inf, -np.inf], np.float16))


def test_patterns_that_match_nothing_are_reported():
    _, report = merge_params(tree(1), tree(0), keep="lora.*", drop=["x", "y"], rename={"z": "w"})
    assert report.unused == ["keep='lora.*'", "drop='x'", "drop='y'", "rename='z'"]
    assert "keep='lora.*'" in str(report)


def test_a_pattern_must_match_the_whole_path():
    with pytest.raises(MergeError):
        merge_params(tree(1, 5), tree(0), keep="task_embeddings")


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"keep": "("}, "'\\(' is not a regular expression"),
        ({"rename": {"encoder/.*": "x"}}, "the same path 'x'"),
    ],
)
def test_malformed_arguments_are_named(kwargs, message):
    with pytest.raises(ValueError, match=message):
        merge_params(tree(1), tree(0), **kwargs)


def test_a_module_in_place_of_a_tree_says_what_to_pass():
    with pytest.raises(TypeError, match=r"nnx.state\(model, nnx.Param\)"):
        to_dict(nnx.Linear(2, 2, rngs=nnx.Rngs(0)))


@given(st.permutations(range(5)))
def test_a_permutation_and_back_is_the_identity(order):
    there, _ = merge_params(tree(1, 5), tree(0, 5), task_rows=order)
    back, _ = merge_params(tree(1, 5), there, task_rows=np.argsort(order))
    equal(back, tree(0, 5))


def test_a_table_of_another_height_is_never_cut_or_padded_in_silence():
    with pytest.raises(MergeError, match=r"task_rows=.*rows_from") as caught:
        merge_params(tree(1, 5), tree(0, 3))
    assert caught.value.mismatched == (TABLE,)


@pytest.mark.parametrize("new_rows", ["target", "zeros", "mean", 2])
def test_rows_are_matched_by_name_and_new_ones_start_as_told(new_rows):
    old, new = TaskVocabulary(["a", "b", "c"]), TaskVocabulary(["c", "x", "a", "y"])
    target, source = tree(1, 4), tree(0, 3)
    merged, report = merge_params(target, source, task_rows=new.rows_from(old), new_rows=new_rows)
    out, before = merged["task_embeddings"]["embedding"], source["task_embeddings"]["embedding"]
    np.testing.assert_array_equal(out[[0, 2]], before[[2, 0]])
    start = {
        "target": target["task_embeddings"]["embedding"][[1, 3]],
        "zeros": np.zeros((2, 4)),
        "mean": np.tile(before.mean(0), (2, 1)),
        2: before[[2, 2]],
    }[new_rows]
    np.testing.assert_allclose(out[[1, 3]], start, rtol=1e-6)
    assert "3 -> 4 rows, 2 from the checkpoint, 2 new" in report.resized[TABLE]
    assert "old rows [1] left out" in report.resized[TABLE]


@pytest.mark.parametrize(
    ("kwargs", "message"),
    [
        ({"task_rows": [0, 1]}, "task_rows has 2 entries; the model has num_tasks=4"),
        ({"task_rows": [0, 1, 3, -2]}, r"task_rows \[-2, 3\] out of range: old rows are 0 to 2"),
        ({"task_rows": [0, 1, 2, -1], "new_rows": 3}, "an old row from 0 to 2, got 3"),
        ({"task_rows": [0, 1, 2, -1], "new_rows": "copy"}, "new_rows must be 'target'"),
    ],
)
def test_malformed_rows_are_refused(kwargs, message):
    with pytest.raises(ValueError, match=message):
        merge_params(tree(1, 4), tree(0, 3), **kwargs)


def test_new_rows_from_a_target_without_values_are_refused():
    shapes = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), tree(1, 4))
    with pytest.raises(ValueError, match="needs the model's values"):
        merge_params(shapes, tree(0, 3), task_rows=[0, 1, 2, -1])


def test_rows_of_another_width_are_refused():
    source = tree(0, 3)
    source["task_embeddings"]["embedding"] = np.ones((3, 7), np.float32)
    with pytest.raises(ValueError, match=r"rows have the shape \(7,\)"):
        merge_params(tree(1, 3), source, task_rows=[0, 1, 2])


class Policy(nnx.Module):
    """A dense layer on a conditioned time embedding."""

    def __init__(self, num_tasks, rngs, **kwargs):
        self.dense = nnx.Linear(4, 2, rngs=rngs)
        self.task_embeddings = taskcond.TaskConditioner(num_tasks, 4, rngs=rngs, **kwargs)

    def __call__(self, emb, task_id=None):
        return self.dense(self.task_embeddings(emb, task_id))


def test_merge_into_a_module_keeps_its_new_table_by_itself():
    base, model = Policy(0, nnx.Rngs(0)), Policy(3, nnx.Rngs(1))
    before = np.asarray(model.task_embeddings.embedding[...])
    report = merge_into(model, nnx.state(base, nnx.Param))
    assert report.kept == [TABLE]
    assert not report.unused
    np.testing.assert_array_equal(model.dense.kernel[...], base.dense.kernel[...])
    np.testing.assert_array_equal(model.task_embeddings.embedding[...], before)
    assert isinstance(model.task_embeddings.embedding, taskcond.TaskParam)


@pytest.mark.parametrize("jit", [False, True])
def test_a_merged_model_starts_from_the_identity_where_the_table_is_zero(jit):
    base = Policy(0, nnx.Rngs(0))
    zeros = Policy(3, nnx.Rngs(1), embedding_init=nnx.initializers.zeros)
    default = Policy(3, nnx.Rngs(1))
    emb, ids = jnp.linspace(-1, 1, 12).reshape(3, 4), jnp.array([0, 2, 1])
    call = nnx.jit(lambda m, e, i: m(e, i)) if jit else (lambda m, e, i: m(e, i))
    for model in (zeros, default):
        merge_into(model, nnx.state(base, nnx.Param))
    np.testing.assert_array_equal(call(zeros, emb, ids), call(base, emb, None))
    assert not np.array_equal(call(default, emb, ids), call(base, emb, None))


def test_merge_into_remaps_the_table_and_gives_jax_arrays():
    old, model = Policy(2, nnx.Rngs(0)), Policy(3, nnx.Rngs(1))
    source = jax.tree.map(np.asarray, to_dict(nnx.state(old, nnx.Param)))
    merge_into(model, {"params": source}, task_rows=[1, -1, 0], new_rows="zeros")
    rows = np.asarray(old.task_embeddings.embedding[...])
    new = model.task_embeddings.embedding[...]
    assert isinstance(new, jax.Array)
    np.testing.assert_array_equal(new, [rows[1], np.zeros(4), rows[0]])


@pytest.mark.parametrize("new_rows", ["zeros", "mean", 1])
def test_a_model_of_shapes_alone_gets_the_same_values(new_rows):
    source = nnx.state(Policy(2, nnx.Rngs(0)), nnx.Param)
    model, shapes = Policy(3, nnx.Rngs(1)), nnx.eval_shape(lambda: Policy(3, nnx.Rngs(1)))
    for target in (model, shapes):
        report = merge_into(target, source, task_rows=[1, -1, 0], new_rows=new_rows)
        assert not report.without_value
    jax.tree.map(np.testing.assert_array_equal, nnx.state(shapes), nnx.state(model))
    assert isinstance(shapes.dense.kernel[...], jax.Array)
    trees = to_dict(nnx.state(Policy(3, nnx.Rngs(1)), nnx.Param))
    trees = jax.tree.map(lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype), trees)
    merged, _ = merge_params(trees, source, task_rows=[1, -1, 0], new_rows=new_rows)
    jax.tree.map(np.testing.assert_array_equal, merged, to_dict(nnx.state(model, nnx.Param)))


def test_what_a_model_of_shapes_lacks_a_value_for_is_said():
    model = nnx.eval_shape(lambda: Policy(3, nnx.Rngs(1)))
    report = merge_into(model, nnx.state(Policy(0, nnx.Rngs(0)), nnx.Param))
    assert report.kept == report.without_value == [TABLE]
    assert f"kept    {TABLE}  without a value" in str(report)
    values = to_dict(nnx.state(model, nnx.Param))
    assert isinstance(values["task_embeddings"]["embedding"], jax.ShapeDtypeStruct)
    assert isinstance(values["dense"]["kernel"], jax.Array)
    old = nnx.state(Policy(2, nnx.Rngs(0)), nnx.Param)
    with pytest.raises(ValueError, match="needs the model's values"):
        merge_into(model, old, task_rows=[1, -1, 0])


def test_after_an_error_the_module_is_as_it_was():
    model = Policy(3, nnx.Rngs(0))
    before = jax.tree.map(np.asarray, nnx.state(model))
    with pytest.raises(MergeError):
        merge_into(model, {"dense": {"kernel": np.ones((4, 2), np.float32)}})
    jax.tree.map(np.testing.assert_array_equal, nnx.state(model), before)


def test_a_plain_nnx_embed_of_that_name_loads_as_it_is():
    class Original(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(4, 2, rngs=rngs)
            self.task_embeddings = nnx.Embed(3, 4, rngs=rngs)

    original, model = Original(nnx.Rngs(0)), Policy(3, nnx.Rngs(1))
    report = merge_into(model, nnx.state(original, nnx.Param))
    assert not report.kept
    np.testing.assert_array_equal(
        model.task_embeddings.embedding[...], original.task_embeddings.embedding[...]
    )
