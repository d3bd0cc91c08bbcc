"""Reading, writing, merging and growing checkpoints on disk."""

from __future__ import annotations

import contextlib
import json
import shutil
import threading
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import orbax.checkpoint as ocp
import pytest
import safetensors.numpy
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from taskcond import MergeError, TaskVocabulary, merge_into
from taskcond.checkpoint import (
    Checkpoint,
    CheckpointError,
    TaskConditioning,
    change_tasks,
    diff_checkpoints,
    inspect_checkpoint,
    load_params,
    merge_checkpoint,
    open_checkpoint,
    save_params,
)
from taskcond.checkpoint.open import read_leaf
from taskcond.checkpoint.storage import leaf as pieces_module
from taskcond.checkpoint.storage.leaf import (
    Leaf,
    box_shape,
    concurrently,
    is_contiguous,
    overlap,
    relative,
    split,
)
from taskcond.checkpoint.storage.orbax import OrbaxStore
from taskcond.merging.merge import merge_params
from taskcond.trees import flatten, unwrap
from tests.support import FIXTURES

DATA = FIXTURES
TINY, TASKS = (DATA / "checkpoints" / name for name in ("pi05_tiny", "pi05_tasks_tiny"))
FORMATS = DATA / "formats"
TABLE = "task_embeddings/embedding"


def golden(name):
    with np.load(DATA / "golden" / f"{name}.npz") as file:
        prefix = "params/"
        return {key.removeprefix(prefix): file[key] for key in file if key.startswith(prefix)}


def small(rows=2, dtype=np.float32):
    rng = np.random.default_rng(0)
    return {
        "dense": {
            "kernel": rng.standard_normal((6, 4)).astype(dtype),
            "bias": np.zeros(4, dtype),
        },
        "task_embeddings": {"embedding": rng.standard_normal((rows, 4)).astype(dtype)},
    }


def assert_same(actual, expected):
    actual, expected = flatten(actual), flatten(expected)
    assert sorted(actual) == sorted(expected)
    for path in expected:
        a, b = np.asarray(actual[path]), np.asarray(expected[path])
        assert (a.dtype, a.shape) == (b.dtype, b.shape), path
        assert a.tobytes() == b.tobytes(), path


def with_orbax(path):
    """As a user of plain Orbax reads it, whatever the release."""
    with ocp.PyTreeCheckpointer() as checkpointer:
        return checkpointer.restore(path.resolve())


# Reading every layout.


@pytest.mark.parametrize(
    ("checkpoint", "layout", "weights"),
    [
        (TINY / "released", "released", "pi05_f32"),
        (TINY / "released" / "params", "released", "pi05_f32"),
        (TINY / "trained", "trained", "pi05_f32"),
        (TINY / "trained" / "1000", "trained", "pi05_f32"),
        (TINY / "trained" / "1000" / "params", "trained", "pi05_f32"),
        (TASKS / "released" / "params", "released", "pi05_tasks_f32"),
        (TASKS / "trained", "trained", "pi05_tasks_f32"),
    ],
)
def test_every_layout_gives_the_golden_weights(checkpoint, layout, weights):
    assert Checkpoint(checkpoint).layout == layout
    assert_same(load_params(checkpoint), golden(weights))


@pytest.mark.parametrize("name", sorted(path.name for path in FORMATS.iterdir() if path.is_dir()))
def test_reads_what_every_release_wrote(name):
    expected = {
        "dense/kernel": np.arange(12, dtype=np.float32).reshape(3, 4),
        "dense/bias": np.arange(4).astype(jnp.bfloat16),
        "norm/scale": np.arange(3, dtype=np.int32),
        TABLE: np.arange(8, dtype=np.float32).reshape(2, 4),
    }
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # one of them says that a task was never trained
        assert_same(load_params(FORMATS / name), expected)


def test_plain_orbax_of_this_release_reads_what_another_wrote_with_taskcond():
    restored = with_orbax(FORMATS / "taskcond_orbax")
    assert_same(restored["params"], load_ignoring_warnings(FORMATS / "taskcond_orbax"))


def load_ignoring_warnings(path):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return load_params(path)


def test_the_last_step_is_taken(tmp_path):
    for step in (5, 40, 100):
        save_params({"x": np.full(3, step, np.float32)}, tmp_path / str(step) / "params")
    (tmp_path / "notes").mkdir()
    assert load_params(tmp_path)["x"].tolist() == [100, 100, 100]


def test_steps_may_be_padded_with_zeros(tmp_path):
    for step in (100, 2000):
        save_params(small(), tmp_path / f"{step:08}" / "params")
    assert open_checkpoint(tmp_path).root.parent.name == "00002000"


def test_a_single_item_of_a_checkpoint_manager_is_found(tmp_path):
    with ocp.CheckpointManager(tmp_path.resolve()) as manager:
        manager.save(3, args=ocp.args.StandardSave({"x": jnp.arange(3.0)}))
    assert load_params(tmp_path)["x"].tolist() == [0, 1, 2]


def test_leaves_without_an_array_are_passed_over(tmp_path):
    with ocp.PyTreeCheckpointer() as checkpointer:
        checkpointer.save(tmp_path.resolve() / "x", {"a": np.ones(2), "empty": {}, "none": None})
    assert list(load_params(tmp_path / "x")) == ["a"]


# Pieces.


@given(data=st.data())
def test_pieces_cover_a_leaf_once_and_are_runs_of_every_chunk(data):
    shape = data.draw(st.lists(st.integers(0, 7), max_size=4).map(tuple))
    chunk = tuple(data.draw(st.integers(1, max(n, 1))) for n in shape)
    limit = data.draw(st.integers(4, 400))
    leaf = Leaf(shape, np.dtype(np.float32), chunk)
    order = np.arange(leaf.size).reshape(shape)
    seen = []
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pieces_module, "PIECE_BYTES", limit)
        for box in leaf.boxes():
            assert np.prod(box_shape(box)) * 4 <= limit
            assert is_contiguous(box, shape)
            seen += order[box].reshape(-1).tolist()
            parts = list(split(box, chunk))
            assert sum(np.prod(box_shape(part)) for part in parts) == np.prod(box_shape(box))
            for part in parts:
                start = tuple(p.start // k * k for p, k in zip(part, chunk, strict=True))
                stop = (min(i + k, n) for i, k, n in zip(start, chunk, shape, strict=True))
                place = tuple(slice(a, b) for a, b in zip(start, stop, strict=True))
                assert overlap(part, place) == part
                assert is_contiguous(relative(part, place), box_shape(place))
    assert seen == list(range(leaf.size))


@pytest.mark.parametrize("compressed", [True, False])
@pytest.mark.parametrize("chunk", [(12, 10, 8), (12, 10, 4), (6, 10, 4), (5, 10, 8)])
def test_large_chunks_are_decoded_in_pieces(
    tmp_path, monkeypatch, write_chunked, chunk, compressed
):
    monkeypatch.setattr("taskcond.checkpoint.storage.orbax.PIECE_BYTES", 300)
    monkeypatch.setattr(pieces_module, "PIECE_BYTES", 300)
    value = np.random.default_rng(0).standard_normal((12, 10, 8)).astype(np.float32)
    write_chunked(tmp_path / "x", {"a": value}, {"a": chunk}, compressed)
    checkpoint = Checkpoint(tmp_path / "x")
    boxes = [*checkpoint.leaves["a"].boxes()]
    assert len(boxes) > 3
    assert read_leaf(checkpoint, "a").tobytes() == value.tobytes()
    # Also out of order, and twice.
    for box in boxes[::-2] * 2:
        np.testing.assert_array_equal(checkpoint.read("a", box), value[box])
    for box in (np.s_[3:9, 3:9, 3:8], np.s_[0:12, 0:10, 4:8], np.s_[2:11, 0:10, 0:8]):
        np.testing.assert_array_equal(checkpoint.read("a", box), value[box])
        np.testing.assert_array_equal(read_leaf(checkpoint, "a", box), value[box])


def test_a_chunk_that_is_missing_is_found(tmp_path):
    shutil.copytree(FORMATS / "orbax_0_11_13_files", tmp_path / "x")
    (tmp_path / "x/params.dense.bias/0").unlink()
    with pytest.raises(CheckpointError, match="dense/bias is damaged"):
        load_params(tmp_path / "x")


def test_items_come_from_several_threads_and_so_do_errors():
    def part(number):
        for item in range(3):
            yield number, item
        if number == 4:
            raise ValueError("of a thread")

    made = list(concurrently([part(i) for i in range(4)], workers=3))
    assert sorted(made) == [(i, j) for i in range(4) for j in range(3)]
    assert [item for item in made if item[0] == 2] == [(2, 0), (2, 1), (2, 2)]
    with pytest.raises(ValueError, match="of a thread"):
        list(concurrently([part(i) for i in range(9)], workers=2))
    threads = threading.active_count()
    with contextlib.closing(concurrently([part(0), part(1)], workers=2)) as some:
        assert next(some) in ((0, 0), (1, 0))
    assert threading.active_count() == threads


# Loading into shardings and dtypes.


def test_like_gives_dtype_structure_and_kind():
    path = TINY / "released"
    shapes = {k: jax.ShapeDtypeStruct(v.shape, jnp.bfloat16) for k, v in golden("pi05_f32").items()}
    loaded = load_params(path, shapes)
    assert list(loaded) == list(shapes)
    assert all(isinstance(x, jax.Array) and x.dtype == jnp.bfloat16 for x in loaded.values())
    host = load_params(path, golden("pi05_f32"))
    assert all(type(x) is np.ndarray for x in host.values())


def test_a_sharding_for_all_or_for_each(tmp_path):
    tree = small()
    save_params(tree, tmp_path / "x")
    mesh = jax.make_mesh((1,), ("d",))
    sharding = jax.sharding.NamedSharding(mesh, jax.sharding.PartitionSpec("d"))
    for argument in (sharding, jax.tree.map(lambda _: sharding, tree)):
        loaded = load_params(tmp_path / "x", sharding=argument)
        assert_same(loaded, tree)
        assert all(x.sharding == sharding for x in jax.tree.leaves(loaded))


def test_nothing_is_cut_to_32_bits_in_silence(tmp_path):
    save_params({"a": np.array([2**40 + 5]), "b": np.array([1e300])}, tmp_path / "x")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(CheckpointError, match=r"'a': 'int64', 'b': 'float64'.*jax_enable_x64"):
        load_params(tmp_path / "x", sharding=device)
    assert load_params(tmp_path / "x")["a"] == 2**40 + 5


def test_a_sharding_of_no_leaf_is_refused(tmp_path):
    save_params({"a": np.ones(2)}, tmp_path / "x")
    device = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    with pytest.raises(CheckpointError, match=r"lack: \['b'\]"):
        load_params(tmp_path / "x", sharding={"b": device})


def test_an_nnx_state_can_be_the_model():
    class Model(nnx.Module):
        def __init__(self, rngs):
            self.dense = nnx.Linear(3, 4, rngs=rngs)
            self.norm = nnx.LayerNorm(3, use_bias=False, rngs=rngs)

    state = nnx.state(Model(nnx.Rngs(0)), nnx.Param)
    with pytest.raises(MergeError, match="unexpected in the checkpoint"):
        load_params(FORMATS / "orbax_0_11_13_ocdbt", state)


def test_all_that_does_not_fit_is_said_at_once(tmp_path):
    save_params(small(), tmp_path / "x")
    like = {"dense": {"kernel": np.zeros((6, 5), np.float32), "more": np.zeros(1)}}
    with pytest.raises(MergeError) as raised:
        load_params(tmp_path / "x", like)
    assert raised.value.missing == ("dense/more",)
    assert raised.value.mismatched == ("dense/kernel",)
    assert set(raised.value.unexpected) == {"dense/bias", TABLE}


# Writing.


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
@pytest.mark.parametrize("dtype", [np.float32, jnp.bfloat16, np.float16, np.int32, np.bool_])
def test_what_is_saved_is_loaded(tmp_path, format, dtype):
    rng = np.random.default_rng(1)
    tree = {
        "a": {"b": rng.integers(0, 2, (3, 5, 2)).astype(dtype)},
        "scalar": np.asarray(1).astype(dtype),
        "zeros": np.zeros((4, 4), dtype),
    }
    save_params(tree, tmp_path / "x", format=format)
    assert_same(load_params(tmp_path / "x"), tree)
    assert not [child for child in tmp_path.iterdir() if child.name != "x"]


@settings(max_examples=10, deadline=None)
@given(data=st.data())
def test_any_tree_survives_both_formats(tmp_path_factory, data):
    names = st.text("abcxyz_0123", min_size=1, max_size=5)
    arrays = st.lists(st.integers(1, 4), max_size=3).map(
        lambda shape: np.random.default_rng(len(shape)).standard_normal(shape)
    )
    tree = data.draw(
        st.dictionaries(names, st.one_of(arrays, st.dictionaries(names, arrays, min_size=1)),
                        min_size=1, max_size=3)
    )  # fmt: skip
    if "params" in tree or any("value" in x for x in tree.values() if isinstance(x, dict)):
        return
    folder = tmp_path_factory.mktemp("any")
    save_params(tree, folder / "a")
    save_params(load_params(folder / "a"), folder / "b", format="safetensors")
    assert_same(load_params(folder / "b"), tree)


def test_plain_orbax_restores_in_every_style(tmp_path):
    tree = small()
    path = (tmp_path / "x").resolve()
    save_params(tree, path, conditioning=TaskConditioning(2, 4))
    sharding = jax.sharding.SingleDeviceSharding(jax.devices()[0])
    specs = {"params": jax.tree.map(
        lambda x: jax.ShapeDtypeStruct(x.shape, x.dtype, sharding=sharding), tree
    )}  # fmt: skip
    host = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(restore_type=np.ndarray), specs)
    device = jax.tree.map(lambda _: ocp.ArrayRestoreArgs(sharding=sharding), specs)
    with ocp.PyTreeCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(path)["params"], tree)
        for restore_args in (host, device):
            args = ocp.args.PyTreeRestore(item=specs, restore_args=restore_args)
            assert_same(checkpointer.restore(path, args)["params"], tree)
    with ocp.StandardCheckpointer() as checkpointer:
        assert_same(checkpointer.restore(path, specs)["params"], tree)


def test_the_safetensors_library_reads_and_writes_what_we_do(tmp_path):
    tree = {path.replace("/", "."): x for path, x in golden("pi05_tasks_f32").items()}
    save_params(load_params(TASKS / "trained"), tmp_path / "x", format="safetensors")
    theirs = safetensors.numpy.load_file(tmp_path / "x" / "model.safetensors")
    assert_same({name.replace(".", "/"): x for name, x in theirs.items()}, golden("pi05_tasks_f32"))
    safetensors.numpy.save_file(tree, tmp_path / "theirs.safetensors")
    assert_same(load_params(tmp_path / "theirs.safetensors"), golden("pi05_tasks_f32"))


def test_safetensors_in_several_files(tmp_path, monkeypatch):
    monkeypatch.setattr("taskcond.checkpoint.storage.safetensors.SHARD_BYTES", 50_000)
    save_params(golden("pi05_f32"), tmp_path / "x", format="safetensors")
    index = json.loads((tmp_path / "x" / "model.safetensors.index.json").read_text())
    files = set(index["weight_map"].values())
    assert len(files) > 3
    assert index["metadata"]["total_size"] == sum(x.nbytes for x in golden("pi05_f32").values())
    merged = {}
    for name in files:
        merged |= safetensors.numpy.load_file(tmp_path / "x" / name)
    assert {name: index["weight_map"][name] for name in merged} == index["weight_map"]
    for path in ("x", "x/model.safetensors.index.json"):
        assert_same(load_params(tmp_path / path), golden("pi05_f32"))


def test_incomplete_safetensors_are_refused(tmp_path, monkeypatch):
    monkeypatch.setattr("taskcond.checkpoint.storage.safetensors.SHARD_BYTES", 20_000)
    save_params(golden("pi05_f32"), tmp_path / "x", format="safetensors")
    shard = next((tmp_path / "x").glob("model-00001-of-*.safetensors"))
    with pytest.raises(CheckpointError, match="is one of .* files; pass their index"):
        load_params(shard)
    index = tmp_path / "x/model.safetensors.index.json"
    content = json.loads(index.read_text())
    content["weight_map"]["lost"] = shard.name
    index.write_text(json.dumps(content))
    with pytest.raises(CheckpointError, match=r"lack \['lost'\]"):
        load_params(tmp_path / "x")
    safetensors.numpy.save_file({}, tmp_path / "empty.safetensors")
    with pytest.raises(CheckpointError, match="is empty"):
        load_params(tmp_path / "empty.safetensors")


def test_arrays_without_entries_survive_safetensors(tmp_path):
    tree = {"a": np.zeros((0, 3), np.float32), "b": np.float32(1).reshape(())}
    save_params(tree, tmp_path / "x", format="safetensors")
    assert_same(load_params(tmp_path / "x"), tree)


def test_the_table_of_a_pytorch_port_is_found(tmp_path):
    table = np.arange(12, dtype=np.float32).reshape(3, 4)
    safetensors.numpy.save_file({"task_embeddings.weight": table}, tmp_path / "x.safetensors")
    assert_same(load_params(tmp_path / "x.safetensors"), {TABLE: table})


def test_arrays_without_entries_and_ambiguous_names_are_refused(tmp_path):
    with pytest.raises(CheckpointError, match=r"without entries.*\['a'\]"):
        save_params({"a": np.zeros((0, 3))}, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"same name.*\['a\.b'\]"):
        save_params({"a": {"b": np.ones(1)}, "a.b": np.ones(1)}, tmp_path / "x")
    for strange in ({"a": np.ones(1), "a/b": np.ones(1)}, {"a/../b": np.ones(1)}, {}):
        with pytest.raises(CheckpointError, match="Orbax cannot hold these leaves"):
            save_params(strange, tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"no arrays: \['a'\]"):
        save_params({"a": 1.0}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="a dot cannot be told"):
        save_params({"a.b": np.ones(1)}, tmp_path / "x", format="safetensors")
    with pytest.raises(CheckpointError, match="no dtype for .*complex64"):
        save_params({"a": np.ones(1, np.complex64)}, tmp_path / "x", format="safetensors")
    with pytest.raises(CheckpointError, match="format must be"):
        save_params({"a": np.ones(1)}, tmp_path / "x", format="pickle")
    assert list(tmp_path.iterdir()) == []


def test_nothing_is_overwritten_unasked(tmp_path):
    save_params({"a": np.ones(1)}, tmp_path / "x")
    with pytest.raises(CheckpointError, match="overwrite=True"):
        save_params({"a": np.zeros(1)}, tmp_path / "x")
    assert load_params(tmp_path / "x")["a"] == 1
    save_params({"a": np.zeros(1)}, tmp_path / "x", overwrite=True)
    assert load_params(tmp_path / "x")["a"] == 0
    assert [child.name for child in tmp_path.iterdir()] == ["x"]


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_a_failed_write_leaves_no_file_and_no_thread(tmp_path, monkeypatch, format):
    writer = {"orbax": "orbax.OrbaxWriter", "safetensors": "safetensors.SafetensorsWriter"}[format]

    def fail(*_):
        raise CheckpointError("the disk is on fire")

    monkeypatch.setattr(f"taskcond.checkpoint.storage.{writer}.write", fail)
    threads = threading.active_count()
    with pytest.raises(CheckpointError, match="on fire"):
        save_params(golden("pi05_f32"), tmp_path / "x", format=format)
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


def test_what_is_no_checkpoint_is_never_overwritten(tmp_path):
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years")
    with pytest.raises(CheckpointError, match="no checkpoint, and will not be overwritten"):
        save_params({"a": np.ones(1)}, tmp_path / "home", overwrite=True)
    assert (tmp_path / "home" / "thesis.tex").read_text() == "years"


def test_files_that_are_no_checkpoints_are_not_lost(tmp_path):
    save_params(small(), tmp_path / "x", format="safetensors")
    (tmp_path / "x/thesis.tex").write_text("years of work")
    with pytest.raises(CheckpointError, match=r"also holds \['thesis.tex'\]"):
        save_params(small(), tmp_path / "x", overwrite=True)
    assert (tmp_path / "x/thesis.tex").read_text() == "years of work"


@pytest.mark.parametrize("before", [True, False])
def test_a_link_is_written_through(tmp_path, before):
    if before:
        save_params(small(3), tmp_path / "real")
    (tmp_path / "link").symlink_to(tmp_path / "real")
    save_params(small(2), tmp_path / "link", overwrite=True)
    assert (tmp_path / "link").is_symlink()
    assert_same(load_params(tmp_path / "real"), small(2))
    assert sorted(path.name for path in tmp_path.iterdir()) == ["link", "real"]


def test_where_directories_cannot_be_exchanged_they_are_renamed(tmp_path, monkeypatch):
    monkeypatch.setattr("taskcond.checkpoint.storage.atomic._exchange", lambda a, b: False)
    for value in (1, 2):
        save_params({"a": np.full(1, value)}, tmp_path / "x", overwrite=True)
    assert load_params(tmp_path / "x")["a"] == 2
    assert [child.name for child in tmp_path.iterdir()] == ["x"]


# Merging.


def target_with_tasks(num_tasks, features=16):
    shapes = {
        path: jax.ShapeDtypeStruct(x.shape, x.dtype) for path, x in golden("pi05_f32").items()
    }
    table = np.random.default_rng(3).standard_normal((num_tasks, features)).astype(np.float32)
    return {**shapes, TABLE: table}


@pytest.mark.parametrize("layout", ["released", "trained"])
@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_a_merge_on_disk_is_a_merge_in_memory(tmp_path, layout, format):
    target = target_with_tasks(50)
    expected, report = merge_params(target, load_params(TINY / layout), keep=TABLE)
    found = merge_checkpoint(TINY / layout, target, tmp_path / "x", keep=TABLE, format=format)
    assert str(found) == str(report)
    assert_same(load_ignoring_warnings(tmp_path / "x"), expected)


@pytest.mark.parametrize("new_rows", ["mean", "zeros", "target", 3])
def test_tables_are_remapped_as_in_memory(tmp_path, new_rows):
    target = {**golden("pi05_tasks_f32"), TABLE: np.ones((4, 16), np.float32)}
    arguments = {"task_rows": [6, -1, 0, 0], "new_rows": new_rows}
    expected, report = merge_params(target, golden("pi05_tasks_f32"), **arguments)
    found = merge_checkpoint(TASKS / "released", target, tmp_path / "x", **arguments)
    assert str(found) == str(report)
    assert_same(load_ignoring_warnings(tmp_path / "x"), expected)


def test_merges_rename_drop_and_cast(tmp_path):
    save_params(small(), tmp_path / "old")
    target = {"net": {"kernel": jax.ShapeDtypeStruct((6, 4), jnp.bfloat16)}}
    report = merge_checkpoint(
        tmp_path / "old", target, tmp_path / "new",
        rename={"dense/(.*)": r"net/\1"}, drop=["dense/bias", TABLE],
    )  # fmt: skip
    kernel = small()["dense"]["kernel"].astype(jnp.bfloat16)
    assert_same(load_params(tmp_path / "new"), {"net": {"kernel": kernel}})
    assert report.cast == {"net/kernel": ("float32", "bfloat16")}
    assert report.dropped == ["dense/bias", TABLE]


def test_a_refused_merge_lists_everything_and_writes_nothing(tmp_path):
    target = {**target_with_tasks(5), "extra": np.ones(2, np.float32)}
    target["time_mlp_in/bias"] = jax.ShapeDtypeStruct((3,), np.float32)
    with pytest.raises(MergeError) as raised:
        merge_checkpoint(TINY / "released", target, tmp_path / "x")
    assert set(raised.value.missing) == {TABLE, "extra"}
    assert raised.value.mismatched == ("time_mlp_in/bias",)
    assert list(tmp_path.iterdir()) == []


def test_kept_leaves_need_values(tmp_path):
    target = target_with_tasks(5)
    target[TABLE] = jax.ShapeDtypeStruct((5, 16), np.float32)
    with pytest.raises(CheckpointError, match=r"pass arrays.*new_rows='zeros'"):
        merge_checkpoint(TINY / "released", target, tmp_path / "x", keep=TABLE)
    merge_checkpoint(TINY / "released", target, tmp_path / "x", keep=TABLE, new_rows="zeros")
    assert not load_ignoring_warnings(tmp_path / "x")["task_embeddings"]["embedding"].any()


def test_a_dry_run_reports_and_writes_nothing(tmp_path):
    target = target_with_tasks(5)
    report = merge_checkpoint(TINY / "released", target, tmp_path / "x", keep=TABLE, dry_run=True)
    assert report.kept == [TABLE]
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"rows": [0, 1], "vocabulary": TaskVocabulary(["a"])}, "1 tasks, rows 2"),
        ({"rows": []}, "without entries"),
        ({"rows": [1, 0], "vocabulary": TaskVocabulary(["a", "b"])}, "another's name: {'b': 'a'"),
    ],
)
def test_a_dry_run_refuses_what_the_real_one_does(tmp_path, change, message):
    about = TaskConditioning(3, 4, vocabulary=TaskVocabulary(["a", "b", "c"]))
    save_params(small(3), tmp_path / "x", conditioning=about)
    for dry_run in (True, False):
        with pytest.raises(CheckpointError, match=message):
            change_tasks(tmp_path / "x", tmp_path / "y", dry_run=dry_run, **change)
    assert not (tmp_path / "y").exists()


def test_a_table_must_be_there_to_have_a_scale(tmp_path):
    tree = {"dense": np.ones((2, 2), np.float32)}
    save_params(tree, tmp_path / "x")
    with pytest.raises(CheckpointError, match="scale, vocabulary given, but the model has no task"):
        merge_checkpoint(
            tmp_path / "x", tree, tmp_path / "y", scale=2.0, vocabulary=TaskVocabulary(["a"])
        )


def test_names_of_tasks_go_before_numbers_and_words(tmp_path):
    about = TaskConditioning(3, 4, vocabulary=TaskVocabulary(["1", "0", "zeros"]))
    tree = small(3)
    save_params(tree, tmp_path / "x", conditioning=about)
    starts = {"like 0": "0", "like zeros": "zeros", "mean": "mean"}
    vocabulary = TaskVocabulary(["1", "0", "zeros", *starts])
    change_tasks(tmp_path / "x", tmp_path / "y", vocabulary, starts=starts)
    old, new = (flatten(load_params(tmp_path / name))[TABLE] for name in "xy")
    np.testing.assert_array_equal(new[:5], old[[0, 1, 2, 1, 2]])
    np.testing.assert_allclose(new[5], old.mean(0), rtol=1e-6)


def test_nan_and_inf_are_counted_and_warned_of(tmp_path):
    tree = small()
    tree["dense"]["kernel"][:2, 0] = np.nan, np.inf
    save_params(tree, tmp_path / "x")
    with pytest.warns(UserWarning, match=r"NaN or Inf in dense/kernel \(2\)"):
        report = merge_checkpoint(tmp_path / "x", tree, tmp_path / "y")
    assert report.nonfinite == {"dense/kernel": 2}
    assert inspect_checkpoint(tmp_path / "x").nonfinite == {"dense/kernel": 2}


def test_the_target_must_not_lie_in_the_source(tmp_path):
    shutil.copytree(TINY, tmp_path / "tiny")
    source, target = tmp_path / "tiny" / "released", target_with_tasks(5)
    (tmp_path / "link").symlink_to(source)
    for given_source, out in [
        (source, source),
        (source, source / "params"),
        (source, source / "new"),
        (source / "params", source / "params" / "new"),
        (source / "params", source),
        (source, tmp_path / "link" / "new"),
        (tmp_path / "link", source / "new"),
        (source, tmp_path / "tiny"),
    ]:
        with pytest.raises(CheckpointError, match="the same or within each other"):
            merge_checkpoint(given_source, target, out, keep=TABLE, overwrite=True)
    assert_same(load_params(source), golden("pi05_f32"))


def test_progress_reaches_the_total(tmp_path):
    calls = []
    save_params(small(), tmp_path / "x", progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1] == sum(x.nbytes for x in flatten(small()).values())
    assert calls == sorted(calls)


# What a table needs to be understood.

NAMES = TaskVocabulary(["pour", "wipe", "cut"])


def with_tasks(path, frames=(5, 7, 9), **about):
    conditioning = TaskConditioning(3, 4, vocabulary=NAMES, frames_seen=frames, **about)
    save_params(small(3), path, conditioning=conditioning)
    return small(3)["task_embeddings"]["embedding"]


def test_conditioning_survives_a_file(tmp_path):
    about = TaskConditioning(3, 4, 0.5, "add", NAMES, (5, 0, None))
    about.save(tmp_path)
    assert TaskConditioning.load(tmp_path) == about
    assert TaskConditioning.load(tmp_path / "task_conditioning.json") == about
    assert TaskVocabulary.load(tmp_path / "task_conditioning.json") == NAMES


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"tasks": ["a", "b"]}, "vocabulary has 2 tasks, the table 3"),
        ({"tasks": ["a", "a", "b"]}, "distinct"),
        ({"frames_seen": [1, 2]}, "frames_seen has 2 tasks"),
        ({"frames_seen": [1, 2, -3]}, "negative"),
        ({"frames_seen": [1, 2, 0.5]}, "no integer"),
        ({"scale": float("nan")}, "scale is nan"),
        ({"scale": "big"}, "malformed"),
        ({"num_tasks": -3}, "table of -3 x 4"),
        ({"num_tasks": True}, "no integer"),
    ],
)
def test_malformed_conditioning_is_refused(tmp_path, change, message):
    with_tasks(tmp_path / "x")
    file = tmp_path / "x" / "task_conditioning.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **change}))
    with pytest.raises(CheckpointError, match=message):
        open_checkpoint(tmp_path / "x")


@pytest.mark.parametrize("text", ["", "[]", "3", "{", '{"tasks": []}', '{"num_tasks": 3}'])
def test_garbage_for_conditioning_is_refused(tmp_path, text):
    with_tasks(tmp_path / "x")
    (tmp_path / "x" / "task_conditioning.json").write_text(text)
    with pytest.raises(CheckpointError, match=r"task_conditioning\.json is malformed"):
        load_params(tmp_path / "x")


def test_conditioning_that_disagrees_with_the_table_is_an_error(tmp_path):
    with_tasks(tmp_path / "x")
    TaskConditioning(4, 4).save(tmp_path / "x")
    with pytest.raises(CheckpointError, match=r"about a table of \[4, 4\].*has the shape \[3, 4\]"):
        load_params(tmp_path / "x")
    save_params({"a": np.ones(1)}, tmp_path / "y")
    TaskConditioning(4, 4).save(tmp_path / "y")
    with pytest.raises(CheckpointError, match="no task table"):
        load_params(tmp_path / "y")
    with pytest.raises(CheckpointError, match="about a table"):
        save_params(small(3), tmp_path / "z", conditioning=TaskConditioning(2, 4))


def test_another_scale_fusion_or_vocabulary_is_an_error(tmp_path):
    with_tasks(tmp_path / "x", scale=0.5, fusion="add")
    load_params(tmp_path / "x", scale=0.5, fusion="add", vocabulary=NAMES)
    with pytest.raises(CheckpointError) as raised:
        load_params(tmp_path / "x", scale=1.0, fusion="film", vocabulary=TaskVocabulary([]))
    for part in ("scale is 0.5 in the checkpoint, 1.0", "'film'", "has 3 tasks, the model 0"):
        assert part in str(raised.value)
    other = TaskVocabulary(["pour", "cut", "wipe"])
    with pytest.raises(CheckpointError, match="task 1 is 'wipe' in the checkpoint, 'cut'"):
        load_params(tmp_path / "x", vocabulary=other)


def test_tasks_that_were_never_trained_are_named(tmp_path):
    with_tasks(tmp_path / "x", frames=(5, 0, None))
    with pytest.warns(UserWarning, match=r"never trained: \['wipe'\]"):
        load_params(tmp_path / "x")


def test_without_the_file_everything_still_loads(tmp_path):
    save_params(small(), tmp_path / "x")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        load_params(tmp_path / "x", scale=3.0, vocabulary=NAMES)


def test_the_file_may_lie_beside_the_step_or_the_run(tmp_path):
    save_params(small(3), tmp_path / "7" / "params")
    for place in (tmp_path, tmp_path / "7", tmp_path / "7" / "params"):
        about = TaskConditioning(3, 4, scale=float(len(place.parts)))
        about.save(place)
        assert Checkpoint(tmp_path / "7" / "params").conditioning == about


def test_a_merge_carries_the_meaning_of_the_table(tmp_path):
    table = with_tasks(tmp_path / "x", scale=0.5, fusion="add")
    vocabulary = TaskVocabulary(["cut", "fold", "pour"])
    merge_checkpoint(
        tmp_path / "x", small(3), tmp_path / "y", vocabulary=vocabulary, new_rows="mean", scale=0.5
    )
    loaded = load_ignoring_warnings(tmp_path / "y")["task_embeddings"]["embedding"]
    np.testing.assert_array_equal(loaded[[0, 2]], table[[2, 0]])
    np.testing.assert_allclose(loaded[1], table.mean(0), rtol=1e-6)
    assert TaskConditioning.load(tmp_path / "y") == TaskConditioning(
        3, 4, 0.5, "add", vocabulary, (9, 0, 5)
    )
    with pytest.raises(CheckpointError, match=r"scale is 0\.5 in the checkpoint, 2\.0"):
        merge_checkpoint(tmp_path / "x", small(3), tmp_path / "z", scale=2.0)
    assert not (tmp_path / "z").exists()


def test_a_new_table_is_described(tmp_path):
    vocabulary = TaskVocabulary([*"abcde"])
    merge_checkpoint(
        TINY / "released", target_with_tasks(5), tmp_path / "x",
        keep=TABLE, vocabulary=vocabulary, scale=0.1, fusion="add",
    )  # fmt: skip
    about = TaskConditioning.load(tmp_path / "x")
    assert about == TaskConditioning(5, 16, 0.1, "add", vocabulary, (0,) * 5)


# Growing, shrinking, reordering.


def test_tasks_grow_shrink_and_reorder_by_name(tmp_path):
    table = with_tasks(tmp_path / "x", scale=0.5)
    vocabulary = TaskVocabulary(["fold", "cut", "stack", "pour", "sort"])
    change_tasks(
        tmp_path / "x", tmp_path / "y", vocabulary, starts={"stack": "wipe", "sort": "mean"}
    )
    loaded = load_ignoring_warnings(tmp_path / "y")
    expected = [np.zeros(4), table[2], table[1], table[0], table.mean(0)]
    np.testing.assert_allclose(loaded["task_embeddings"]["embedding"], expected, rtol=1e-6)
    assert_same(loaded["dense"], small()["dense"])
    about = TaskConditioning.load(tmp_path / "y")
    assert about == TaskConditioning(5, 4, 0.5, None, vocabulary, (0, 9, 0, 5, 0))
    change_tasks(tmp_path / "y", tmp_path / "z", TaskVocabulary(["cut"]))
    assert load_params(tmp_path / "z")["task_embeddings"]["embedding"].tolist() == [[*table[2]]]


def test_tasks_change_by_number_without_names(tmp_path):
    change_tasks(TASKS / "released", tmp_path / "x", rows=np.array([6, -1, 0]), new_rows=5)
    table = golden("pi05_tasks_f32")[TABLE]
    loaded = load_ignoring_warnings(tmp_path / "x")
    assert_same(loaded, {**golden("pi05_tasks_f32"), TABLE: table[[6, 5, 0]]})
    assert TaskConditioning.load(tmp_path / "x").frames_seen == (None, 0, None)


def test_from_22_to_50_tasks(tmp_path):
    old = TaskVocabulary(f"task {i}" for i in range(22))
    table = np.random.default_rng(0).standard_normal((22, 8)).astype(np.float32)
    save_params({"task_embeddings": {"embedding": table}}, tmp_path / "x")
    new = TaskVocabulary(f"task {i}" for i in reversed(range(50)))
    change_tasks(tmp_path / "x", tmp_path / "y", new, source_vocabulary=old, new_rows="mean")
    loaded = load_ignoring_warnings(tmp_path / "y")["task_embeddings"]["embedding"]
    np.testing.assert_array_equal(loaded[::-1][:22], table)
    np.testing.assert_allclose(loaded[:28], np.tile(table.mean(0), (28, 1)), rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({}, CheckpointError, "no names to go by"),
        ({"rows": [0, 9]}, ValueError, r"\[9\] out of range"),
        ({"rows": [0, -1], "new_rows": "ones"}, ValueError, "'ones' is none of"),
        ({"rows": [0, -1], "new_rows": 7}, ValueError, "7 is none of"),
        ({"rows": [0], "starts": {"x": 1}}, ValueError, r"\['x'\] are not"),
        ({"vocabulary": NAMES, "source_vocabulary": NAMES}, CheckpointError, "has 3 tasks"),
    ],
)
def test_impossible_tables_are_refused(tmp_path, arguments, error, message):
    with pytest.raises(error, match=message):
        change_tasks(TASKS / "released", tmp_path / "x", **arguments)
    assert list(tmp_path.iterdir()) == []


def test_contradicting_vocabularies_are_refused(tmp_path):
    with_tasks(tmp_path / "x")
    other = TaskVocabulary(["wipe", "pour", "cut"])
    with pytest.raises(CheckpointError, match="task 0 is 'pour' in the checkpoint, 'wipe'"):
        change_tasks(tmp_path / "x", tmp_path / "y", NAMES, source_vocabulary=other)
    with pytest.raises(CheckpointError, match="no task table"):
        change_tasks(TINY / "released", tmp_path / "y", rows=[0])


# Looking.


def test_inspect_says_what_is_there(tmp_path):
    table = with_tasks(tmp_path / "x", frames=(5, 0, None), scale=0.5, fusion="add")
    found = inspect_checkpoint(tmp_path / "x")
    assert (found.kind, found.layout, found.leaves) == ("Orbax", "released", 3)
    assert (found.parameters, found.bytes) == (40, 160)
    assert found.modules == {"dense": (28, 112), "task_embeddings": (12, 48)}
    assert found.dtypes == {"float32": 40}
    norms = [task["norm"] for task in found.tasks]
    np.testing.assert_allclose(norms, np.linalg.norm(table, axis=1), rtol=1e-6)
    text = str(found)
    for part in ("scale 0.5, fusion add", "never trained  wipe", "5 frames  pour", "NaN/Inf"):
        assert part in text


def test_diff_measures_relative_distance(tmp_path):
    tree = small()
    save_params(tree, tmp_path / "a")
    tree["dense"]["kernel"] = tree["dense"]["kernel"] * np.float32(1.5)
    tree["dense"]["bias"] = np.zeros(5, np.float32)
    tree["new"] = np.ones(1, np.float32)
    del tree["task_embeddings"]
    save_params(tree, tmp_path / "b", format="safetensors")
    found = diff_checkpoints(tmp_path / "a", tmp_path / "b")
    assert found.changed == {"dense/kernel": pytest.approx(0.5)}
    assert found.reshaped == {"dense/bias": ("[4] float32", "[5] float32")}
    assert (found.only_first, found.only_second) == ([TABLE], ["new"])
    assert not found.identical
    assert diff_checkpoints(TINY / "released", TINY / "trained").identical
    assert "by 50 %" in str(found)


def test_diff_tells_bits_not_values(tmp_path):
    for name, value in (("a", 0.0), ("b", -0.0), ("c", np.nan), ("d", np.nan)):
        save_params({"x": np.full(3, value)}, tmp_path / name)
    assert not diff_checkpoints(tmp_path / "a", tmp_path / "b").identical
    assert diff_checkpoints(tmp_path / "c", tmp_path / "d").identical


# From end to end.


def test_round_trip_of_a_policy(tmp_path):
    pi0 = pytest.importorskip("examples.pi0.model")
    with np.load(DATA / "golden" / "pi05_tasks_f32.npz") as file:
        config = json.loads(str(file["config"]))
        inputs = {key.removeprefix("in/"): file[key] for key in file if key.startswith("in/")}
    merge_checkpoint(
        TINY / "released", target_with_tasks(7), tmp_path / "merged" / "params", keep=TABLE
    )
    assert_same(
        {path: x for path, x in flatten(load_ignoring_warnings(tmp_path / "merged")).items()
         if path != TABLE},
        golden("pi05_f32"),
    )  # fmt: skip
    model = policy(pi0, {**config, "num_tasks": 7})
    merge_into(model, load_ignoring_warnings(tmp_path / "merged"))
    fine_tune(pi0, model, inputs, steps=2)
    tuned = {path: np.asarray(x) for path, x in flatten(nnx.state(model, nnx.Param)).items()}
    assert (tuned[TABLE] != load_ignoring_warnings(tmp_path / "merged")["task_embeddings"]["embedding"]).any()  # fmt: skip  # noqa: E501
    save_params(tuned, tmp_path / "tuned" / "params")
    assert_same(with_orbax(tmp_path / "tuned" / "params")["params"], nested(tuned))
    save_params(load_params(tmp_path / "tuned"), tmp_path / "safe", format="safetensors")
    save_params(load_params(tmp_path / "safe"), tmp_path / "back")
    assert_same(with_orbax(tmp_path / "back")["params"], nested(tuned))
    assert diff_checkpoints(tmp_path / "tuned", tmp_path / "back").identical


def nested(flat):
    tree = {}
    for path, value in flat.items():
        *parents, name = path.split("/")
        node = tree
        for key in parents:
            node = node.setdefault(key, {})
        node[name] = value
    return tree


def policy(pi0, config):
    names = ("action_dim", "action_horizon", "max_token_len", "vocab_size", "image_size")
    lora = config.get("lora")
    gemma = {} if lora is None else {"lora": pi0.LoRAConfig(**lora)}
    return pi0.Pi0(
        pi0.Pi0Config(
            dtype="float32",
            num_tasks=config["num_tasks"],
            paligemma=pi0.GemmaConfig(**config["paligemma"], **gemma),
            action_expert=pi0.GemmaConfig(**config["action_expert"], **gemma),
            siglip=pi0.SiglipConfig(**config["siglip"]),
            **{name: config[name] for name in names},
        ),
        rngs=nnx.Rngs(0),
    )


def observation(pi0, inputs):
    def group(prefix):
        return {k.removeprefix(prefix): v for k, v in inputs.items() if k.startswith(prefix)}

    names = ("state", "tokenized_prompt", "tokenized_prompt_mask", "task_id")
    return pi0.Observation(
        images=group("images/"),
        image_masks=group("image_masks/"),
        **{name: jnp.asarray(inputs[name]) for name in names if name in inputs},
    )


def fine_tune(pi0, model, inputs, steps):
    def loss(model, rng):
        seen = observation(pi0, inputs)
        return model.compute_loss(rng, seen, inputs["actions"]).mean()

    gradient = nnx.jit(nnx.grad(loss))
    for step in range(steps):
        grads = gradient(model, jax.random.key(step))
        state = nnx.state(model, nnx.Param)
        nnx.update(model, jax.tree.map(lambda x, g: x - 0.1 * g, state, grads))


def test_unwrap_knows_the_layouts_that_are_written(tmp_path):
    save_params(small(), tmp_path / "x")
    assert unwrap(OrbaxStore(Checkpoint(tmp_path / "x").root).leaves)["dense/bias"] == (
        "params/dense/bias"
    )
