"""The task list of a LeRobot dataset, in files of every version."""

import json

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from taskcond.data.lerobot_tasks import ambiguous_tasks, read_json_lines, read_lerobot_tasks

TASKS = [(0, "pick up the radio"), (1, "wasche ab äöü"), (2, "turn on")]


def write_jsonl(root, rows):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    lines = [json.dumps({"task_index": i, "task": name}) for i, name in rows]
    (root / "meta" / "tasks.jsonl").write_text("\n".join(lines) + "\n", encoding="utf-8")


def write_parquet(root, rows, name="__index_level_0__"):
    (root / "meta").mkdir(parents=True, exist_ok=True)
    columns = {"task_index": [i for i, _ in rows], name: [name for _, name in rows]}
    pq.write_table(pa.table(columns), root / "meta" / "tasks.parquet")


@pytest.mark.parametrize(
    "write", [write_jsonl, write_parquet, lambda r, t: write_parquet(r, t, "task")]
)
def test_rows_are_sorted_by_their_index(tmp_path, write):
    write(tmp_path, TASKS[::-1])
    assert read_lerobot_tasks(tmp_path) == TASKS


@pytest.mark.parametrize("write", [write_jsonl, write_parquet])
@pytest.mark.parametrize(
    ("rows", "problems"),
    [
        (
            [(0, "a"), (1, "a"), (2, "b"), (3, "b")],
            ["'a' is task_index [0, 1]", "'b' is task_index [2, 3]"],
        ),
        ([(0, "a"), (0, "b")], ["task_index 0 is ['a', 'b']"]),
        ([(0, "a"), (2, "b")], []),
    ],
)
def test_ambiguous_rows_are_kept_and_described(tmp_path, write, rows, problems):
    write(tmp_path, rows)
    assert read_lerobot_tasks(tmp_path) == sorted(rows)
    assert ambiguous_tasks(rows) == problems


def test_no_metadata_says_which_folder_is_meant(tmp_path):
    with pytest.raises(FileNotFoundError, match="neither tasks.jsonl.*the one that holds meta"):
        read_lerobot_tasks(tmp_path)


@pytest.mark.parametrize("line", ["{", '{"task": "a"}', '{"task_index": "0", "task": "a"}', "[]"])
def test_a_malformed_line_is_named(tmp_path, line):
    write_jsonl(tmp_path, TASKS)
    with (tmp_path / "meta" / "tasks.jsonl").open("a") as file:
        file.write(line + "\n")
    with pytest.raises(ValueError, match=r"tasks.jsonl, line 4"):
        read_lerobot_tasks(tmp_path)


def test_a_truncated_parquet_file_is_named(tmp_path):
    write_parquet(tmp_path, TASKS)
    path = tmp_path / "meta" / "tasks.parquet"
    path.write_bytes(path.read_bytes()[:-20])
    with pytest.raises(ValueError, match=r"tasks.parquet cannot be read"):
        read_lerobot_tasks(tmp_path)


def test_a_malformed_row_of_parquet_is_named(tmp_path):
    write_parquet(tmp_path, [(0, "a"), (-2, "b")])
    with pytest.raises(ValueError, match=r"tasks.parquet, row 1 is .*'task_index': -2"):
        read_lerobot_tasks(tmp_path)


def test_parquet_without_the_columns_is_refused_with_those_that_are_there(tmp_path):
    write_parquet(tmp_path, TASKS, "title")
    with pytest.raises(ValueError, match=r"columns \['task_index', 'title'\]"):
        read_lerobot_tasks(tmp_path)


@pytest.mark.parametrize("separator", ["\u2028", "\u0085", "\x0b", "\x0c"])
def test_a_line_separator_within_a_name_does_not_end_the_line(tmp_path, separator):
    name = f"pour{separator}wipe"
    row = json.dumps({"task_index": 0, "task": name}, ensure_ascii=separator < " ")
    path = tmp_path / "rows.jsonl"
    path.write_text(row + "\n" + row + "\n", encoding="utf-8")
    assert [(n, row["task"]) for n, row in read_json_lines(path)] == [(1, name), (2, name)]


def test_a_byte_order_mark_and_carriage_returns_are_accepted(tmp_path):
    (tmp_path / "meta").mkdir()
    rows = b'\xef\xbb\xbf{"task_index": 0, "task": "a"}\r\n{"task_index": 1, "task": "b"}\r\n'
    (tmp_path / "meta" / "tasks.jsonl").write_bytes(rows)
    assert read_lerobot_tasks(tmp_path) == [(0, "a"), (1, "b")]


def test_empty_lines_are_skipped_and_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("1\n\n  \n2")
    assert list(read_json_lines(path)) == [(1, 1), (4, 2)]


def test_bytes_that_are_not_utf_8_are_named(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_bytes(b'"a"\n"\xe4"\n')
    with pytest.raises(ValueError, match=r"rows.jsonl, line 2 is not JSON in UTF-8"):
        list(read_json_lines(path))
