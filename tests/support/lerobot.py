"""Small LeRobot datasets, and ways to damage them."""

import io
import json
import os
from pathlib import Path

import av
import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from examples.lerobot import DatasetError, LeRobotData, Recording

FOLDER = Path(os.environ.get("TASKCOND_DATA", Path(__file__).parents[2] / "../shared/data"))
VERSIONS = ("v2.0", "v2.1", "v3.0")
CAMERA = "observation.images.front"


def given(name):
    """Returns the folder of a dataset that LeRobot wrote; excuses the test where it is absent."""
    path = FOLDER / "lerobot" / name
    if not path.exists():
        pytest.skip(f"{path} is not there; set TASKCOND_DATA")
    return path


def gray(levels):
    """One 32x32 image for each level, so that a decoded frame tells which one it is."""
    return np.repeat(levels, 32 * 32 * 3).reshape(-1, 32, 32, 3).astype(np.uint8)


def png(level):
    """Returns the cell of a Parquet file that holds a 32x32 gray image."""
    buffer = io.BytesIO()
    Image.fromarray(gray([level])[0]).save(buffer, "PNG")
    return {"bytes": buffer.getvalue(), "path": None}


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


def edit_json(path, **changes):
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def edit_info(root, **changes):
    edit_json(root / "meta/info.json", **changes)


def add_feature(root, key, feature):
    """Declares a column or a camera in `info.json`; a string names the feature to copy."""
    features = json.loads((root / "meta/info.json").read_text())["features"]
    features[key] = features[feature] if isinstance(feature, str) else feature
    edit_info(root, features=features)


def edit_column(path, key, change):
    """Replaces a column by `change` of its list of values."""
    table = pq.read_table(path)
    index = table.column_names.index(key)
    values = pa.array(change(table.column(key).to_pylist()), table.schema.field(key).type)
    pq.write_table(table.set_column(index, key, values), path)


def replace_column(path, key, make):
    """Replaces a column by `make(number of rows)`, which may have another type."""
    table = pq.read_table(path)
    values = pa.array(make(len(table)))
    pq.write_table(table.set_column(table.column_names.index(key), key, values), path)


def add_columns(root, **make):
    """Adds columns to each Parquet file; `make` returns the values of a file's table."""
    for path in sorted(root.glob("data/*/*.parquet")):
        table = pq.read_table(path)
        for key, values in make.items():
            table = table.append_column(key, pa.array(values(table)))
        pq.write_table(table, path)


def episode_file(root, episode):
    return root / f"data/chunk-000/episode_{episode:06d}.parquet"


def video_file(root, episode):
    return root / f"videos/chunk-000/{CAMERA}/episode_{episode:06d}.mp4"


def move_index_to_the_start(path):
    """Rewrites an MP4 file so that its header, not its end, lists the frames."""
    source = path.with_suffix(".source.mp4")
    path.rename(source)
    with (
        av.open(str(source)) as read,
        av.open(str(path), "w", options={"movflags": "faststart"}) as write,
    ):
        stream = write.add_stream_from_template(read.streams.video[0])
        for packet in read.demux(video=0):
            if packet.dts is not None:
                packet.stream = stream
                write.mux(packet)


def refusal(root, **arguments):
    """Returns the message with which a dataset is refused."""
    with pytest.raises(DatasetError) as error:
        LeRobotData(root, **arguments)
    message = str(error.value)
    assert "Fix: " in message
    return message


def names_and_numbers(data):
    """Returns the distinct `(task, task_index, task_id)` of all frames."""
    keys = ("task", "task_index", "task_id")
    return {tuple(data[i][key] for key in keys) for i in range(len(data))}


def edit_episodes(root, change):
    """Applies `change` to each row of `meta/episodes` of a v3.0 dataset."""
    path = root / "meta/episodes/chunk-000/file-000.parquet"
    rows = pq.read_table(path).to_pylist()
    for row in rows:
        change(row)
    pq.write_table(pa.Table.from_pylist(rows), path)


def edit_episode_lines(root, change):
    """Applies `change` to each row of `meta/episodes` of a v2.0 or v2.1 dataset."""
    path = root / "meta/episodes.jsonl"
    rows = [json.loads(line) for line in path.read_text().splitlines()]
    for row in rows:
        change(row)
    path.write_text("".join(json.dumps(row) + "\n" for row in rows))


def number_in(image, rows=slice(0, 8)):
    """Returns the number that a picture of a given dataset shows: the frame's, or the episode's."""
    blocks = image[rows, :64].mean(axis=(0, 2)).reshape(8, 8).mean(axis=1)
    return sum(1 << bit for bit, level in enumerate(blocks) if level > 128)
