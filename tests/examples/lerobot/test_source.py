import json
import pickle

import grain
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from examples.lerobot import DatasetError, LeRobotData, make_loader, mix
from examples.lerobot.write import Recording, write_dataset
from taskcond import TaskVocabulary

VERSIONS = ("v2.0", "v2.1", "v3.0")
CAMERA = "observation.images.front"


def gray(levels):
    """One 32x32 picture for each level, so that a decoded frame tells which one it is."""
    return np.repeat(levels, 32 * 32 * 3).reshape(-1, 32, 32, 3).astype(np.uint8)


def recordings(lengths=(7, 5, 6, 9, 8), tasks=("pour", "wipe"), video=False):
    """Episodes whose every number says where it is from: state 100 * episode + frame."""
    result = []
    for episode, length in enumerate(lengths):
        frame = np.arange(length)
        state = np.stack([100 * episode + frame, np.sin(frame)], axis=1).astype(np.float32)
        actions = np.stack([state[:, 0], -state[:, 0], np.cos(frame)], axis=1).astype(np.float32)
        images = {CAMERA: gray(20 + 40 * episode + 4 * frame)} if video else {}
        result.append(Recording(state, actions, tasks[episode % len(tasks)], images))
    return result


@pytest.fixture
def root(tmp_path):
    return write_dataset(tmp_path / "data", recordings())


def names_and_numbers(data):
    keys = ("task", "task_index", "task_id")
    return {tuple(data[i][key] for key in keys) for i in range(len(data))}


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("version", VERSIONS)
def test_frames_of_every_version_are_those_that_were_written(tmp_path, version):
    written = recordings(video=True)
    root = write_dataset(tmp_path / "data", written, version=version, episodes_per_file=2)
    data = LeRobotData(root, horizon=3)
    index = 0
    for episode, recording in enumerate(written):
        for frame in range(len(recording.state)):
            item = data[index]
            assert (item["episode_index"], item["frame_index"]) == (episode, frame)
            assert item["task"] == recording.task
            assert data.vocabulary.names[item["task_id"]] == recording.task
            np.testing.assert_array_equal(item["state"], recording.state[frame])
            np.testing.assert_array_equal(item["actions"][0], recording.actions[frame])
            level = recording.images[CAMERA][frame].mean()
            assert abs(item["images"][CAMERA].mean() - level) < 2
            index += 1
    assert len(data) == index


def test_the_dtypes_of_a_frame_are_those_of_the_contract(root):
    item = LeRobotData(root, horizon=4)[0]
    assert item["state"].dtype == np.float32
    assert item["actions"].dtype == np.float32
    assert item["actions"].shape == (4, 3)
    assert item["action_is_pad"].dtype == bool
    assert item["task_id"].dtype == np.int32
    assert item["task_id"].shape == ()


def test_a_chunk_past_the_end_repeats_the_last_action_and_says_so(root):
    data = LeRobotData(root, horizon=4)
    item = data[5]  # the last but one of episode 0
    np.testing.assert_array_equal(item["actions"][:, 0], [5, 6, 6, 6])
    np.testing.assert_array_equal(item["action_is_pad"], [False, False, True, True])


def test_a_chunk_longer_than_the_episode_is_padded(root):
    item = LeRobotData(root, horizon=50)[0]
    assert item["action_is_pad"].sum() == 50 - 7


@pytest.mark.parametrize("index", [-1, 35, 10**9])
def test_an_index_outside_raises_index_error(root, index):
    with pytest.raises(IndexError):
        LeRobotData(root)[index]


def test_several_keys_are_concatenated(root):
    item = LeRobotData(root, state=("observation.state", "action"))[1]
    np.testing.assert_allclose(item["state"], [1, np.sin(1), 1, -1, np.cos(1)], rtol=1e-6)


def test_paths_by_task_as_in_behavior_1k(tmp_path):
    root = write_dataset(
        tmp_path / "data",
        recordings(),
        chunks_size=2,
        info={"data_path": "data/task-{episode_chunk:04d}/episode_{episode_index:08d}.parquet"},
    )
    assert (root / "data/task-0002/episode_00000004.parquet").exists()
    assert len(LeRobotData(root)) == 35


def test_selected_episodes_need_no_other_files(root):
    for path in (root / "data/chunk-000").glob("*00[0124].parquet"):
        path.unlink()
    data = LeRobotData(root, episodes=[3])
    assert len(data) == 9
    assert data.episode_indices == (3,)


def test_a_task_within_an_episode_is_read_by_frame(tmp_path):
    state = np.arange(6, dtype=np.float32)[:, None]
    tasks = ["reach"] * 2 + ["lift"] * 3 + ["reach"]
    root = write_dataset(tmp_path / "data", [Recording(state, state, tasks)])
    data = LeRobotData(root, horizon=2)
    assert [data[i]["task"] for i in range(6)] == tasks
    lift = LeRobotData(root, horizon=2, tasks=["lift"])
    assert [int(lift[i]["frame_index"]) for i in range(len(lift))] == [2, 3, 4]


def test_selecting_tasks_keeps_their_ids(root):
    data = LeRobotData(root, tasks=["wipe"])
    assert {int(data[i]["task_id"]) for i in range(len(data))} == {1}
    assert len(data.vocabulary) == 2
    assert "task 0 'pour': not selected" in data.report.skipped


def test_an_unknown_task_is_refused_with_the_nearest_name(root):
    with pytest.raises(ValueError, match="the task 'wip'. Did you mean one of \\['wipe'\\]"):
        LeRobotData(root, tasks=["wip"])


@pytest.mark.parametrize(("factor", "frames"), [(3, 42), (0.5, 7), (1.5, 21)])
def test_a_weight_shows_a_task_so_many_times_and_all_of_its_frames_alike(root, factor, frames):
    data = LeRobotData(root, weights={"wipe": factor})
    assert data.task_frames == {"pour": 21, "wipe": pytest.approx(frames, abs=1)}
    shown = [data[i] for i in range(len(data))]
    wipe = [(int(f["episode_index"]), int(f["frame_index"])) for f in shown if f["task"] == "wipe"]
    counts = np.unique(wipe, axis=0, return_counts=True)[1]
    assert counts.max() - counts.min() <= 1
    assert len(counts) == min(14, len(wipe))


@pytest.mark.parametrize("factor", [0, -1, float("nan"), float("inf")])
def test_a_weight_that_is_not_positive_is_refused(root, factor):
    with pytest.raises(ValueError, match="weights must be positive"):
        LeRobotData(root, weights={"wipe": factor})


def test_ids_follow_the_models_vocabulary_by_name(root):
    model = TaskVocabulary(["fold", "wipe", "pour"])
    data = LeRobotData(root, vocabulary=model)
    assert names_and_numbers(data) == {("pour", 0, 2), ("wipe", 1, 1)}


def test_a_task_that_the_models_vocabulary_lacks_is_refused(root):
    with pytest.raises(ValueError, match="lacks \\['wipe'\\]"):
        LeRobotData(root, vocabulary=TaskVocabulary(["pour"]))
    with pytest.raises(ValueError, match="lacks \\['pour', 'wipe'\\]"):
        LeRobotData(root, vocabulary=TaskVocabulary([]))


def test_stale_statistics_do_not_change_the_number_of_tasks(root):
    path = root / "meta/episodes_stats.jsonl"
    row = json.loads(path.read_text().splitlines()[0])
    row["stats"]["task_index"] = {"min": [0], "max": [48], "mean": [9], "std": [1], "count": [7]}
    path.write_text(json.dumps(row) + "\n")
    assert len(LeRobotData(root).vocabulary) == 2


# --- splits


def test_a_split_is_by_episode_and_the_same_for_the_same_seed(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(lengths=[4] * 20))
    data = LeRobotData(root)
    train, val = data.split(val_fraction=0.2, seed=1)
    assert set(train.episode_indices) | set(val.episode_indices) == set(range(20))
    assert not set(train.episode_indices) & set(val.episode_indices)
    assert val.task_frames == {"pour": 8, "wipe": 8}
    assert data.split(0.2, seed=1)[1].episode_indices == val.episode_indices
    assert any(data.split(0.2, s)[1].episode_indices != val.episode_indices for s in range(2, 6))


def test_a_split_without_a_second_episode_says_what_to_do(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(lengths=(4, 5)))
    with pytest.raises(ValueError, match="Validate on the training frames"):
        LeRobotData(root).split()


# --- mixing


def mixed_pair(tmp_path):
    first = write_dataset(tmp_path / "a", recordings(tasks=("pour", "wipe")))
    second = write_dataset(tmp_path / "b", recordings(tasks=("fold", "pour")), version="v3.0")
    return LeRobotData(first, horizon=2), LeRobotData(second, horizon=2)


def test_mixing_matches_tasks_by_name_not_by_number(tmp_path):
    mixed = mix(mixed_pair(tmp_path))
    assert mixed.vocabulary.names == ("pour", "wipe", "fold")
    assert names_and_numbers(mixed) == {
        ("pour", 0, 0),
        ("wipe", 1, 1),
        ("fold", 0, 2),
        ("pour", 1, 0),
    }


def test_mixing_weights_datasets(tmp_path):
    mixed = mix(mixed_pair(tmp_path), weights=[1, 2])
    assert len(mixed) == 35 + 70
    assert mixed.task_frames == {"pour": 21 + 28, "wipe": 14, "fold": 42}


def test_mixing_pools_the_statistics(tmp_path):
    first, second = mixed_pair(tmp_path)
    stats = mix([first, second]).norm_stats["state"]
    states = [part[i]["state"] for part in (first, second) for i in range(35)]
    np.testing.assert_allclose(stats.mean, np.mean(states, axis=0), rtol=1e-5)
    np.testing.assert_allclose(stats.std, np.std(states, axis=0), rtol=1e-5)


def test_mixing_names_tasks_that_look_alike(tmp_path):
    first = write_dataset(tmp_path / "a", recordings(tasks=("Pour tea.",)))
    second = write_dataset(tmp_path / "b", recordings(tasks=("pour tea",)))
    report = mix([LeRobotData(first), LeRobotData(second)]).report
    assert "tasks look alike, but stay apart: ['Pour tea.', 'pour tea']" in report.warnings


def test_mixing_refuses_frames_that_do_not_fit_into_one_batch(tmp_path):
    root = write_dataset(tmp_path / "a", recordings())
    with pytest.raises(ValueError, match="'horizon': 2(.|\n)*'horizon': 3"):
        mix([LeRobotData(root, horizon=2), LeRobotData(root, horizon=3)])


def test_a_mix_splits_each_dataset_and_keeps_the_statistics(tmp_path):
    mixed = mix(mixed_pair(tmp_path))
    train, val = mixed.split(0.3)
    assert len(train) + len(val) == len(mixed)
    assert all(part.episode_indices for part in val.parts)
    assert val.norm_stats is mixed.norm_stats


# --- task names


def test_two_indices_of_one_name_are_refused_and_both_named(root):
    rows = [{"task_index": 0, "task": "pour"}, {"task_index": 1, "task": "pour"}]
    (root / "meta/tasks.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    with pytest.raises(DatasetError, match="'pour' is task_index \\[0, 1\\](.|\n)*duplicate_tasks"):
        LeRobotData(root)
    data = LeRobotData(root, duplicate_tasks="merge")
    assert {int(data[i]["task_id"]) for i in range(len(data))} == {0}
    assert {int(data[i]["task_index"]) for i in range(len(data))} == {0, 1}
    assert "ambiguous task, merged: 'pour' is task_index [0, 1]" in data.report.warnings


def test_two_names_of_one_index_are_refused_and_both_named(root):
    with (root / "meta/tasks.jsonl").open("a") as file:
        file.write(json.dumps({"task_index": 1, "task": "dust"}) + "\n")
    with pytest.raises(DatasetError, match="task_index 1 is \\['dust', 'wipe'\\]"):
        LeRobotData(root)
    data = LeRobotData(root, duplicate_tasks="merge")
    assert data.vocabulary.names == ("pour", "dust")


# --- cameras


def test_a_declared_camera_without_files_is_skipped_and_named(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(video=True))
    info = json.loads((root / "meta/info.json").read_text())
    info["features"]["observation.images.lost"] = info["features"][CAMERA]
    edit_json(root / "meta/info.json", features=info["features"])
    data = LeRobotData(root)
    assert data.cameras == (CAMERA,)
    assert any("observation.images.lost: declared" in line for line in data.report.skipped)
    with pytest.raises(DatasetError, match="observation.images.lost/episode_000000.mp4"):
        LeRobotData(root, cameras=["observation.images.lost"])


def test_without_cameras_no_video_is_opened(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(video=True))
    for path in root.rglob("*.mp4"):
        path.write_bytes(b"")
    assert LeRobotData(root, cameras=[])[0]["images"] == {}


def test_pictures_inside_parquet_are_read(tmp_path, root):
    Image = pytest.importorskip("PIL.Image")  # noqa: N806
    import io

    def png(level):
        buffer = io.BytesIO()
        Image.fromarray(gray([level])[0]).save(buffer, "PNG")
        return {"bytes": buffer.getvalue(), "path": None}

    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        pictures = pa.array([png(10 * i) for i in range(len(table))])
        pq.write_table(table.append_column("image", pictures), path)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features["image"] = {"dtype": "image", "shape": [32, 32, 3]}
    edit_json(root / "meta/info.json", features=features)
    data = LeRobotData(root)
    np.testing.assert_array_equal(data[4]["images"]["image"], gray([40])[0])


# --- loading


def test_a_loader_gives_batches_that_normalize(root):
    data = LeRobotData(root, horizon=4)
    batch = next(iter(make_loader(data, batch_size=8, normalize_by="quantile")))
    assert batch["actions"].shape == (8, 4, 3)
    assert batch["task_id"].shape == (8,)
    assert batch["task_id"].dtype == np.int32
    assert np.abs(batch["state"]).max() < 1.2


def test_a_loader_is_the_same_for_the_same_seed_and_new_each_epoch(root):
    data = LeRobotData(root)

    def epochs(seed):
        loader = make_loader(data, batch_size=35, seed=seed, num_epochs=2)
        return [batch["state"][:, 0].tolist() for batch in loader]

    first = epochs(0)
    assert first == epochs(0)
    assert first != epochs(1)
    assert first[0] != first[1]
    assert sorted(first[0]) == sorted(first[1]) == sorted(data[i]["state"][0] for i in range(35))


def test_a_loader_resumes_where_it_stood(root):
    loader = make_loader(LeRobotData(root), batch_size=4, seed=3)
    iterator = iter(loader)
    for _ in range(3):
        next(iterator)
    state = json.loads(json.dumps(iterator.get_state()))
    expected = [next(iterator)["state"].tolist() for _ in range(12)]
    resumed = iter(loader)
    resumed.set_state(state)
    assert [next(resumed)["state"].tolist() for _ in range(12)] == expected


def test_processes_get_disjoint_shares_of_one_size(root):
    data = LeRobotData(root)
    shares = [
        np.concatenate(
            [
                batch["state"][:, 0]
                for batch in make_loader(
                    data, batch_size=1, num_epochs=1, process_index=i, process_count=3
                )
            ]
        )
        for i in range(3)
    ]
    assert [len(share) for share in shares] == [11, 11, 11]
    assert len(np.unique(np.concatenate(shares))) == 33


def test_a_loader_transforms_each_frame(root):
    data = LeRobotData(root)
    loader = make_loader(data, batch_size=5, transform=lambda frame: {"x": frame["state"] + 1})
    batch = next(iter(loader))
    assert batch.keys() == {"x"}
    assert batch["x"].shape == (5, 2)
    with pytest.raises(ValueError, match="Pass one of them"):
        make_loader(data, batch_size=5, transform=dict, normalize_by="zscore")


def test_a_share_smaller_than_a_batch_is_refused(root):
    with pytest.raises(ValueError, match="35 frames, which is less than one batch of 64"):
        make_loader(LeRobotData(root), batch_size=64)


def test_it_is_a_source_for_grains_data_loader(root):
    data = LeRobotData(root)
    sampler = grain.samplers.IndexSampler(len(data), num_epochs=1, shuffle=False)
    items = list(grain.DataLoader(data_source=data, sampler=sampler, worker_count=0))
    assert [int(item["task_id"]) for item in items] == [int(data[i]["task_id"]) for i in range(35)]


def test_grains_data_loader_resumes_with_the_dataset_opened_anew(root):
    def loader():
        data = LeRobotData(root)
        sampler = grain.samplers.IndexSampler(len(data), shuffle=True, seed=0)
        return iter(grain.DataLoader(data_source=data, sampler=sampler, worker_count=0))

    iterator = loader()
    for _ in range(5):
        next(iterator)
    state, expected = iterator.get_state(), next(iterator)["state"].tolist()
    resumed = loader()
    resumed.set_state(state)
    assert next(resumed)["state"].tolist() == expected


def test_changing_a_frame_does_not_change_the_next_reading(root):
    data = LeRobotData(root)
    data[3]["state"][:] = data[3]["actions"][:] = 99
    assert data[3]["state"][0] == 3
    assert data[3]["actions"][0, 0] == 3


def test_a_forked_process_opens_its_own_files(tmp_path, monkeypatch):
    data = LeRobotData(write_dataset(tmp_path / "data", recordings(video=True)))
    data[0]
    opened = [reader for reader, _ in data._videos._values.values()]
    monkeypatch.setattr("os.getpid", lambda: 1)
    data[0]
    again = [reader for reader, _ in data._videos._values.values()]
    assert len(opened) == 1
    assert len(again) == 2


def test_a_picture_that_is_not_in_the_file_is_refused(root):
    for path in root.glob("data/*/*.parquet"):
        table = pq.read_table(path)
        pictures = pa.array([{"bytes": None, "path": "a.png"}] * len(table))
        pq.write_table(table.append_column("image", pictures), path)
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features["image"] = {"dtype": "image", "shape": [32, 32, 3]}
    edit_json(root / "meta/info.json", features=features)
    with pytest.raises(DatasetError, match="image of frame 0 holds no image. Embed"):
        LeRobotData(root)[0]


@pytest.mark.parametrize("version", VERSIONS)
def test_episodes_of_one_and_two_frames_are_read(tmp_path, version):
    root = write_dataset(
        tmp_path / "data", recordings(lengths=(1, 2, 1), video=True), version=version
    )
    data = LeRobotData(root, horizon=2)
    levels = [round(data[i]["images"][CAMERA].mean()) for i in range(4)]
    np.testing.assert_allclose(levels, [20, 60, 64, 100], atol=2)
    assert [data[i]["action_is_pad"].tolist()[1] for i in range(4)] == [True, False, True, True]


def test_a_copy_by_pickle_reads_the_same_and_carries_no_open_files(tmp_path):
    root = write_dataset(tmp_path / "data", recordings(video=True))
    data = LeRobotData(root)
    item = data[9]
    copied = pickle.loads(pickle.dumps(data))[9]
    np.testing.assert_array_equal(item["images"][CAMERA], copied["images"][CAMERA])
    np.testing.assert_array_equal(item["actions"], copied["actions"])


def test_worker_processes_read_the_same_batches(tmp_path):
    data = LeRobotData(write_dataset(tmp_path / "data", recordings(video=True)))
    loaders = [make_loader(data, batch_size=7, num_epochs=1, num_workers=n) for n in (0, 1)]
    here, there = ([batch["images"][CAMERA] for batch in loader] for loader in loaders)
    np.testing.assert_array_equal(here, there)
    assert len(there) == 5
