"""extract_task_id: every container and integer dtype; nothing rounded, wrapped or mutated."""

import pickle

import hypothesis.extra.numpy as hnp
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from taskcond import NULL_TASK, ExtractTaskID, TaskVocabulary, extract_task_id
from tests.support import as_untyped_code, write_tasks

INTEGERS = [np.dtype(f"{kind}{size}") for kind in "iu" for size in (1, 2, 4, 8)]


class Tensor:
    """A stand-in for a torch tensor, of which NumPy sees only `__array__`."""

    def __init__(self, values):
        self._values = np.asarray(values)

    def __array__(self, dtype=None, copy=None):
        return self._values


CONTAINERS = [np.asarray, jnp.asarray, Tensor, np.ndarray.tolist]


@settings(deadline=None, max_examples=60)
@given(
    st.sampled_from(INTEGERS).flatmap(
        lambda dtype: hnp.arrays(dtype, hnp.array_shapes(min_dims=0), elements=st.integers(0, 127))
    ),
    st.sampled_from(CONTAINERS),
)
def test_ids_survive_every_dtype_and_container(ids, container):
    data = {"task_index": container(ids), "state": 1}
    out = extract_task_id(data, num_tasks=128)
    assert "task_id" not in data
    assert out["state"] == 1
    assert out["task_index"] is data["task_index"]
    assert out["task_id"].dtype == np.int32
    assert out["task_id"].shape == ids.shape
    np.testing.assert_array_equal(out["task_id"], ids.astype(np.int64))


@pytest.mark.parametrize("value", [3, np.int64(3), np.array(3), jnp.int32(3), Tensor(3)])
def test_a_scalar_stays_a_scalar(value):
    result = extract_task_id({"task_index": value})["task_id"]
    assert isinstance(result, np.int32)
    assert np.stack([result, result]).shape == (2,)


def test_null_task_passes():
    assert extract_task_id({"task_index": NULL_TASK}, num_tasks=1)["task_id"] == NULL_TASK
    assert extract_task_id({"task_index": [NULL_TASK]}, num_tasks=1)["task_id"] == [NULL_TASK]


@pytest.mark.parametrize("data", [{}, {"task_index": 99}, {"task_id": None}, {"state": 1}])
def test_without_tasks_every_frame_passes_unchanged(data):
    for result in (extract_task_id(data, num_tasks=0), ExtractTaskID(num_tasks=0)(data)):
        assert result == data
        assert result is not data


def test_none_counts_as_absent():
    assert extract_task_id({"task_index": None, "task_id": 2})["task_id"] == 2
    with pytest.raises(KeyError, match="task_id not found in batch"):
        extract_task_id({"task_index": None, "task_id": None})


def test_a_default_is_for_frames_that_name_no_task():
    transform = ExtractTaskID(num_tasks=3, default=NULL_TASK)
    assert transform({"task_id": None})["task_id"] == NULL_TASK
    assert transform({"state": 0})["task_id"].dtype == np.int32
    assert transform({"task_index": 2})["task_id"] == 2
    with pytest.raises(ValueError, match="out of range"):
        transform({"task_index": 3})


TASKS = TaskVocabulary(["pour", "wipe"])


@pytest.mark.parametrize("source", ["task", "task_index"])
def test_a_task_may_come_by_its_name(source):
    transform = ExtractTaskID(source=source, vocabulary=TASKS)
    assert transform({source: "wipe"})["task_id"] == 1
    assert transform({source: b"wipe"})["task_id"] == 1
    np.testing.assert_array_equal(transform({source: [["wipe"], ["pour"]]})["task_id"], [[1], [0]])
    assert transform({"task_id": "pour"})["task_id"] == 0
    assert transform({"task_id": 1})["task_id"] == 1
    with pytest.raises(ValueError, match=r"lacks 'wip' \(did you mean 'wipe'\?\)"):
        transform({source: "wip"})
    with pytest.raises(ValueError, match="num_tasks=2"):
        transform({"task_id": 2})
    with pytest.raises(TypeError, match="must hold integers or task names"):
        transform({source: np.array(["pour", None], object)})


def test_the_name_of_a_frame_decides_over_its_number():
    frame = {"task_index": 0, "task": "wipe"}
    assert extract_task_id(frame, vocabulary=TASKS)["task_id"] == 1
    assert extract_task_id(frame, vocabulary=TASKS, id_map={0: 0})["task_id"] == 0
    assert extract_task_id(frame)["task_id"] == 0


@pytest.mark.parametrize("index", [1, np.array([1, 0])])
def test_a_number_without_the_list_of_its_dataset_is_refused(index):
    with pytest.raises(ValueError, match="nothing says which task"):
        ExtractTaskID(vocabulary=TASKS)({"task_index": index})


def test_a_vocabulary_maps_the_indices_of_the_dataset_it_was_read_from(tmp_path):
    root = write_tasks(tmp_path, [(0, "pour"), (2, "wipe"), (3, "cut")])
    transform = ExtractTaskID(vocabulary=TaskVocabulary.from_lerobot(root))
    assert transform.num_tasks == 3
    assert transform({"task_index": 2})["task_id"] == 1
    assert transform({"task_index": NULL_TASK})["task_id"] == NULL_TASK
    ids = transform({"task_index": np.array([3, 2, 0, -1])})["task_id"]
    np.testing.assert_array_equal(ids, [2, 1, 0, -1])
    assert transform({"task_id": 2})["task_id"] == 2
    with pytest.raises(ValueError, match=r"task_index \[1\] is not in id_map, .* \[0, 2, 3\]"):
        transform({"task_index": 1})
    again = pickle.loads(pickle.dumps(transform))
    assert again({"task_index": 3})["task_id"] == 2
    assert hash(again) == hash(transform)


def test_ids_of_shape_one_keep_their_shape():
    assert extract_task_id({"task_index": np.array([3])})["task_id"].shape == (1,)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"num_tasks": 2.5}, TypeError, "num_tasks must be an integer, got 2.5"),
        ({"num_tasks": True}, TypeError, "num_tasks must be an integer, got True"),
        ({"num_tasks": -3}, ValueError, "num_tasks must be at least 0, got -3"),
        ({"num_tasks": "5"}, TypeError, "num_tasks must be an integer, got '5'"),
        ({"id_map": {0: 0.7}}, TypeError, r"id_map\[0\] must be an integer, got 0.7"),
        ({"id_map": {0: -2}}, ValueError, r"id_map\[0\] must be at least -1, got -2"),
        ({"id_map": {"0": 0}}, TypeError, r"keys \['0'\], but must have integers; JSON"),
        ({"default": 5, "num_tasks": 3}, ValueError, "num_tasks=6 would do"),
    ],
)
def test_arguments_are_checked_at_construction(arguments, error, message):
    with as_untyped_code(), pytest.raises(error, match=message):
        ExtractTaskID(**arguments)
    with as_untyped_code(), pytest.raises(error, match=message):
        extract_task_id({"task_index": 0}, **arguments)


def test_an_empty_batch_passes():
    ids = extract_task_id({"task_index": np.zeros((0,), np.int64)}, num_tasks=3)["task_id"]
    assert (ids.shape, ids.dtype) == ((0,), np.int32)


@pytest.mark.parametrize(
    "value",
    [5, -2, np.int64(5), np.uint8(255), [0, 5], np.array([2**40]), 2**31, np.uint64(2**64 - 1)],
)
def test_out_of_range_names_the_value_and_the_range(value):
    with pytest.raises(ValueError, match=r"out of range: got \[.+\]; allowed is -1") as error:
        extract_task_id({"task_index": value}, num_tasks=5)
    assert str(np.max(np.abs(np.asarray(value, object)))) in str(error.value)


@pytest.mark.parametrize("value", [-2, 2**31, np.array([2**32]), np.array([-5])])
def test_what_int32_cannot_hold_is_refused_without_num_tasks(value):
    with pytest.raises(ValueError, match="out of range"):
        extract_task_id({"task_index": value})


@pytest.mark.parametrize("value", [1.0, np.float32(1), [1.5], True, np.array([True]), "1"])
def test_what_is_no_integer_is_refused_with_the_value(value):
    with pytest.raises(TypeError, match="task_index must be an integer"):
        extract_task_id({"task_index": value})


def test_a_traced_value_is_refused():
    with pytest.raises(TypeError, match="belongs in the data pipeline"):
        jax.jit(lambda i: extract_task_id({"task_index": i})["task_id"])(jnp.int32(0))


def test_at_inference_the_target_is_checked_and_kept():
    assert extract_task_id({"task_id": np.int64(2)}, num_tasks=3)["task_id"] == 2
    with pytest.raises(ValueError, match="out of range"):
        extract_task_id({"task_id": 3}, num_tasks=3)


def test_the_source_wins_over_an_old_target():
    assert extract_task_id({"task_id": 0, "task_index": 2})["task_id"] == 2


def test_neither_key_says_what_is_there():
    with pytest.raises(KeyError, match=r"task_id not found in batch.*state.*source="):
        extract_task_id({"state": 0})


def test_other_keys():
    assert extract_task_id({"job": 1}, source="job", target="t") == {"job": 1, "t": 1}


def test_id_map_takes_the_datasets_ids_to_the_models():
    transform = ExtractTaskID(id_map={7: 0, 3: 1}, num_tasks=2)
    assert transform({"task_index": 7})["task_id"] == 0
    np.testing.assert_array_equal(transform({"task_index": [[3, 7, -1]]})["task_id"], [[1, 0, -1]])
    # At inference the id is the model's already.
    assert transform({"task_id": 1})["task_id"] == 1


def test_id_map_lists_every_id_that_it_lacks():
    with pytest.raises(ValueError, match=r"task_index \[4, 9\] is not in id_map.*\[3, 7\]"):
        extract_task_id({"task_index": [9, 3, 4]}, id_map={7: 0, 3: 1})


def test_id_map_beyond_the_table_is_refused():
    with pytest.raises(ValueError, match=r"got \[8\].*num_tasks=2"):
        extract_task_id({"task_index": 7}, id_map={7: 8}, num_tasks=2)


def test_the_dataclass_is_frozen_and_equal_by_value():
    assert ExtractTaskID(num_tasks=3) == ExtractTaskID(num_tasks=3)
    maps = [ExtractTaskID(id_map={7: 0, 3: 1}), ExtractTaskID(id_map={3: 1, 7: 0})]
    assert len({*maps}) == 1
    with pytest.raises(AttributeError):
        ExtractTaskID().num_tasks = 3
