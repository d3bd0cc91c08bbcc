"""The places of a dataset's data on disk: versions v2.0, v2.1 and v3.0 as one list of episodes.

`info.json` holds templates of the paths. v2.x has one Parquet file per episode, and one video per
episode and camera. v3.0 puts many episodes into one file; `meta/episodes` says where each begins.
"""

from __future__ import annotations

import dataclasses
import json
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import pyarrow as pa
import pyarrow.parquet as pq

from taskcond.data.lerobot_tasks import read_json_lines

from .problems import DatasetError, Problem, Problems

Row = dict[str, Any]
Numbers = dict[str, Any]
"""The values that a path template takes."""


class Clip(NamedTuple):
    """The part of a video that shows an episode.

    Attributes:
        path: The file.
        begin: The time of the episode's first frame, in seconds.
        end: The time after its last frame, if the metadata states it.
    """

    path: Path
    begin: float
    end: float | None


@dataclasses.dataclass(frozen=True)
class Episode:
    """The files of one episode.

    Attributes:
        index: The `episode_index`.
        length: The number of frames, according to the metadata.
        data: The Parquet file.
        videos: For each video camera, where the episode is.
        tasks: The names of its tasks according to the metadata, if it lists them.
    """

    index: int
    length: int
    data: Path
    videos: dict[str, Clip]
    tasks: tuple[str, ...] | None = None


class Layout:
    """The metadata of a dataset: `info.json`, and the episodes with the paths of their files.

    Args:
        root: The dataset's folder, the one that holds `meta`.

    Raises:
        DatasetError: Metadata is missing or malformed, or a path leaves the folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.problems = Problems(self.root)
        self.info = _read_info(self.root / "meta" / "info.json")
        self.version = str(self.info["codebase_version"])
        self.fps = float(self.info["fps"])
        self._allowed = _allowed_folders(self.root)
        kinds = {key: feature["dtype"] for key, feature in self.info["features"].items()}
        self.video_keys = tuple(key for key, kind in kinds.items() if kind == "video")
        self.image_keys = tuple(key for key, kind in kinds.items() if kind == "image")
        self.episodes = tuple(self._episodes())
        self.problems.raise_if_any()
        if not self.episodes:
            self.problems.add(Problem.UNREADABLE_METADATA, "meta/episodes lists no episode")
            self.problems.raise_if_any()

    @property
    def is_v3(self) -> bool:
        """Says whether a file holds many episodes."""
        return self.version.startswith("v3")

    def name(self, path: Path) -> str:
        """Returns a path as messages name it: relative to the dataset's folder."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def is_inside(self, path: Path) -> bool:
        """Says whether a path is in the dataset's folder."""
        # Resolved, so that neither "..", an absolute path nor a symbolic link leads outside.
        return any(path.resolve().is_relative_to(folder) for folder in self._allowed)

    def meta_rows(self, name: str) -> list[Row]:
        """Returns the rows of the JSON-lines file `meta/<name>`; none if it does not exist."""
        path = self.root / "meta" / name
        return [row for _, row in _json_rows(path)] if path.exists() else []

    def meta_json(self, name: str) -> Row:
        """Returns the content of the JSON file `meta/<name>`; empty if it does not exist."""
        path = self.root / "meta" / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}

    def _episodes(self) -> Iterator[Episode]:
        seen: set[int] = set()
        for place, row in self._read_episode_rows():
            try:
                index, length = int(row["episode_index"]), int(row["length"])
                data, videos = self._numbers(row, index)
            except (KeyError, TypeError, ValueError) as error:
                self.problems.add(Problem.UNREADABLE_METADATA, f"{place}: {error!r}")
                continue
            if index in seen or index < 0 or length < 1:
                self.problems.add(
                    Problem.UNREADABLE_METADATA,
                    f"{place}: episode {index} has length {length}, or is listed twice",
                )
                continue
            seen.add(index)
            paths = {
                key: Clip(self._path("video_path", video_key=key, **numbers), begin, end)
                for key, (numbers, begin, end) in videos.items()
            }
            tasks = tuple(row["tasks"]) if isinstance(row.get("tasks"), list) else None
            yield Episode(index, length, self._path("data_path", **data), paths, tasks)

    def _numbers(
        self, row: Row, index: int
    ) -> tuple[Numbers, dict[str, tuple[Numbers, float, float | None]]]:
        """Returns the numbers of an episode's data path, and of each video path with its times."""
        if not self.is_v3:
            chunk = index // int(self.info.get("chunks_size") or 1000)
            numbers = {"episode_chunk": chunk, "episode_index": index}
            return numbers, dict.fromkeys(self.video_keys, (numbers, 0.0, None))
        videos = {
            key: (_file_numbers(row, f"videos/{key}"), *_times(row, f"videos/{key}"))
            for key in self.video_keys
            # An episode may lack a camera.
            if row.get(f"videos/{key}/chunk_index") is not None
        }
        return _file_numbers(row, "data"), videos

    def _path(self, template_key: str, **numbers: Any) -> Path:
        """Returns the path that a template of `info.json` gives; adds a problem if it is bad."""
        template = self.info.get(template_key)
        try:
            path = self.root / _fill(template, numbers)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self.problems.add(
                Problem.UNREADABLE_METADATA, f"meta/info.json: {template_key} {template!r}: {error}"
            )
            return self.root
        if not self.is_inside(path):
            self.problems.add(
                Problem.PATH_OUTSIDE,
                f"meta/info.json: {template_key} {template!r} gives {path.resolve()}",
            )
        return path

    def _read_episode_rows(self) -> list[tuple[str, Row]]:
        """Returns the rows of `meta/episodes`, each with the name of its file and line."""
        pattern = "episodes/*/*.parquet" if self.is_v3 else "episodes.jsonl"
        files = sorted((self.root / "meta").glob(pattern))
        if not files:
            expected = pattern.replace("*/*", "chunk-000/file-000")
            self.problems.add(Problem.MISSING_FILE, f"meta/{expected}")
        rows: list[tuple[str, Row]] = []
        for path in files:
            try:
                numbered = _parquet_rows(path) if self.is_v3 else _json_rows(path)
            except (OSError, ValueError) as error:
                self.problems.add(Problem.UNREADABLE_METADATA, str(error))
            else:
                rows += [(f"{self.name(path)}, row {number}", row) for number, row in numbered]
        return sorted(rows, key=lambda item: str(item[1].get("episode_index", "")).zfill(12))


def _read_info(path: Path) -> Row:
    needed = {"codebase_version": str, "fps": (int, float), "features": dict, "data_path": str}
    try:
        info = json.loads(path.read_text(encoding="utf-8"))
        wrong = [key for key, kind in needed.items() if not isinstance(info.get(key), kind)]
        wrong += [key for key, f in (info.get("features") or {}).items() if "dtype" not in f]
    except FileNotFoundError:
        raise DatasetError(
            f"{path} does not exist. Pass the dataset's folder, the one that holds meta."
        ) from None
    except (OSError, ValueError, AttributeError, TypeError) as error:
        raise DatasetError(
            f"{path} cannot be read as JSON: {error}. Restore it from the dataset's source."
        ) from error
    if wrong or not info["fps"] > 0:
        raise DatasetError(
            f"{path}: these entries are missing or malformed: {wrong or ['fps']}. "
            "Restore them from the dataset's source."
        )
    if not re.match(r"v(2\.[01]|3\.)", info["codebase_version"]):
        raise DatasetError(
            f"{path}: codebase_version {info['codebase_version']!r} is not supported. Convert the "
            "dataset to v2.0, v2.1 or v3.0 with LeRobot's own scripts."
        )
    return info


def _json_rows(path: Path) -> list[tuple[int, Row]]:
    rows = list(read_json_lines(path))
    for number, row in rows:
        if not isinstance(row, dict):
            raise ValueError(f"{path}, line {number} is {row!r}, but must be a JSON object")
    return rows


def _parquet_rows(path: Path) -> list[tuple[int, Row]]:
    try:
        # The stats/ columns are many and large, and meta/stats.json has those of the whole dataset.
        names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
        return list(enumerate(pq.read_table(path, columns=names).to_pylist()))
    except pa.ArrowException as error:
        raise ValueError(f"{path} cannot be read as Parquet: {error}") from error


def _file_numbers(row: Row, prefix: str) -> Numbers:
    return {name: row[f"{prefix}/{name}"] for name in ("chunk_index", "file_index")}


def _times(row: Row, prefix: str) -> tuple[float, float | None]:
    end = row.get(f"{prefix}/to_timestamp")
    return float(row[f"{prefix}/from_timestamp"]), None if end is None else float(end)


def _fill(template: Any, values: Numbers) -> str:
    """Returns `template.format(**values)`, for plain numbers and names only.

    `str.format` would also follow attributes and pad to any width, and a template is foreign data.
    """
    if not isinstance(template, str):
        raise TypeError("expected a string")
    for _, field, spec, conversion in string.Formatter().parse(template):
        if field is not None and (
            field not in values or conversion or not re.fullmatch(r"(0?\d?\dd?)?", spec or "")
        ):
            raise ValueError(f"unknown field {field!r}; the fields are {sorted(values)}")
    return template.format(**values)


def _allowed_folders(root: Path) -> Sequence[Path]:
    """Returns the folders that may hold the dataset's files."""
    allowed = [root.resolve()]
    # The Hugging Face cache has folders snapshots/<revision> full of links into blobs.
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    return allowed
