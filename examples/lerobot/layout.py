"""What a LeRobot dataset has on disk: versions v2.0, v2.1 and v3.0 as one list of episodes.

`info.json` gives the templates of the paths. v2.x has a Parquet file and, for each camera, a video
per episode; v3.0 puts many episodes into one file, and `meta/episodes` says where each begins.
"""

from __future__ import annotations

import dataclasses
import json
import re
import string
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

_SHOWN = 20  # problems listed of each kind

# Kinds of problem in the order in which they are reported, and what to do about each.
_FIXES = {
    "unreadable metadata": "restore the file from the dataset's source",
    "path outside the dataset's folder": (
        "correct the template in meta/info.json; paths must be relative and stay inside the folder"
    ),
    "missing file": (
        "download the rest, or pass episodes=[...] and cameras=[...] with what is there"
    ),
    "unreadable file": "it is damaged or truncated: download it again",
    "missing column": "name the dataset's own keys with state=..., action=... and cameras=...",
    "unsuitable column": "name keys of plain vectors with state=... and action=...",
    "frame-count mismatch": (
        "correct the length in meta/episodes, download the file again, or leave the episode out "
        "with episodes=[...]"
    ),
    "video shorter than its episode": (
        "download it again, or leave the episode out with episodes=[...]"
    ),
    "video that does not fit": "encode it again at the dataset's fps and one size per camera",
    "unlisted task_index": "add it to meta/tasks, or leave the episodes out with episodes=[...]",
    "ambiguous task": (
        "correct meta/tasks, or pass duplicate_tasks='merge': the ids of one name become one task, "
        "an id of two names gets the first"
    ),
    "value that is not finite": "repair the frames, or leave the episodes out with episodes=[...]",
    "statistics": "open it with preflight=True, which computes them",
}


class DatasetError(ValueError):
    """A dataset that must not be trained on: every problem found, by kind, each with its fix."""


class Problems:
    """Collects problems, so that all of them are reported at once."""

    def __init__(self, root: Path):
        self._root = root
        self._found: dict[str, dict[str, None]] = {kind: {} for kind in _FIXES}

    def add(self, kind: str, what: str) -> None:
        """Adds one problem; the same one twice counts once."""
        self._found[kind][what] = None

    def raise_if_any(self) -> None:
        """Raises `DatasetError` with everything that was added."""
        text = []
        for kind, found in self._found.items():
            if found:
                more = [f"... and {len(found) - _SHOWN} more"] if len(found) > _SHOWN else []
                lines = "".join(f"\n    {line}" for line in [*found][:_SHOWN] + more)
                text.append(f"\n  {kind} ({len(found)}):{lines}\n    Fix: {_FIXES[kind]}.")
        if text:
            raise DatasetError(f"{self._root} cannot be used:" + "".join(text))


@dataclasses.dataclass(frozen=True)
class Episode:
    """Where one episode is.

    Attributes:
        index: Its `episode_index`.
        length: Frames, as the metadata has it.
        data: Its Parquet file.
        videos: For each video camera the file and the time in it, in seconds, of the first frame.
    """

    index: int
    length: int
    data: Path
    videos: dict[str, tuple[Path, float]]


class Layout:
    """The metadata of a dataset: `info.json`, and its episodes with the paths of their files.

    Args:
        root: The dataset's folder, the one that holds `meta`.

    Raises:
        DatasetError: Metadata is missing or malformed, or a path leaves the folder.
    """

    def __init__(self, root: str | Path):
        self.root = Path(root)
        self.problems = Problems(self.root)
        self.info = self._read_info()
        self.version = str(self.info["codebase_version"])
        self.fps = float(self.info["fps"])
        self._allowed = _allowed_folders(self.root)
        kinds = {key: feature["dtype"] for key, feature in self.info["features"].items()}
        self.video_keys = tuple(key for key, kind in kinds.items() if kind == "video")
        self.image_keys = tuple(key for key, kind in kinds.items() if kind == "image")
        self.episodes = tuple(self._episodes())
        self.problems.raise_if_any()
        if not self.episodes:
            self.problems.add("unreadable metadata", "meta/episodes lists no episode")
            self.problems.raise_if_any()

    @property
    def is_v3(self) -> bool:
        """Many episodes in one file."""
        return self.version.startswith("v3")

    def name(self, path: Path) -> str:
        """`path` as it is named in messages: relative to the dataset's folder."""
        return str(path.relative_to(self.root)) if path.is_relative_to(self.root) else str(path)

    def _read_info(self) -> dict[str, Any]:
        path = self.root / "meta" / "info.json"
        needed = {"codebase_version": str, "fps": (int, float), "features": dict, "data_path": str}
        try:
            info = json.loads(path.read_text(encoding="utf-8"))
            wrong = [key for key, kind in needed.items() if not isinstance(info.get(key), kind)]
            wrong += [key for key, f in (info.get("features") or {}).items() if "dtype" not in f]
        except FileNotFoundError:
            raise DatasetError(
                f"{path} does not exist; pass the dataset's folder, the one that holds meta"
            ) from None
        except (OSError, ValueError, AttributeError, TypeError) as error:
            raise DatasetError(f"{path} is not readable as JSON ({error}); restore it") from error
        if wrong or not info["fps"] > 0:
            raise DatasetError(f"{path}: {wrong or ['fps']} missing or malformed; restore them")
        if not re.match(r"v(2\.[01]|3\.)", info["codebase_version"]):
            raise DatasetError(
                f"{path}: codebase_version {info['codebase_version']!r} is not supported; convert "
                "the dataset to v2.0, v2.1 or v3.0 with LeRobot's own scripts"
            )
        return info

    def _episodes(self) -> Iterator[Episode]:
        rows = self._read_episode_rows()
        seen: set[int] = set()
        for source, row in rows:
            try:
                index, length = int(row["episode_index"]), int(row["length"])
                where = self._places(row, index)
            except (KeyError, TypeError, ValueError) as error:
                self.problems.add(
                    "unreadable metadata", f"{source}: {type(error).__name__} {error}"
                )
                continue
            if index in seen or index < 0 or length < 1:
                self.problems.add(
                    "unreadable metadata", f"{source}: episode {index} of length {length}, or twice"
                )
                continue
            seen.add(index)
            data, videos = where
            yield Episode(index, length, self._path("data_path", **data), videos)

    def _places(self, row: dict[str, Any], index: int) -> tuple[dict[str, int], dict[str, Any]]:
        """The numbers in an episode's data path, and the places of its videos."""
        if self.is_v3:
            data = {"chunk_index": row["data/chunk_index"], "file_index": row["data/file_index"]}
        else:
            chunk = index // int(self.info.get("chunks_size") or 1000)
            data = {"episode_chunk": chunk, "episode_index": index}
        videos = {}
        for key in self.video_keys:
            numbers, begin = data, 0.0
            if self.is_v3:
                if row.get(f"videos/{key}/chunk_index") is None:
                    continue  # a camera that this episode lacks
                numbers = {n: row[f"videos/{key}/{n}"] for n in ("chunk_index", "file_index")}
                begin = float(row[f"videos/{key}/from_timestamp"])
            videos[key] = (self._path("video_path", video_key=key, **numbers), begin)
        return data, videos

    def _path(self, template_key: str, **numbers: Any) -> Path:
        """The path that a template of `info.json` gives; a problem where it leaves the folder."""
        template = self.info.get(template_key)
        try:
            path = self.root / _fill(template, numbers)
        except (ValueError, KeyError, IndexError, TypeError) as error:
            self.problems.add(
                "unreadable metadata", f"meta/info.json: {template_key} {template!r}: {error}"
            )
            return self.root
        # Resolved, so that neither "..", an absolute path nor a symbolic link leads out.
        if not any(path.resolve().is_relative_to(folder) for folder in self._allowed):
            self.problems.add(
                "path outside the dataset's folder",
                f"meta/info.json: {template_key} {template!r} gives {path.resolve()}",
            )
        return path

    def _read_episode_rows(self) -> list[tuple[str, dict[str, Any]]]:
        """The rows of `meta/episodes`, each with the name of its file and line."""
        meta = self.root / "meta"
        files = sorted(meta.glob("episodes/*/*.parquet")) if self.is_v3 else []
        if not self.is_v3 and (meta / "episodes.jsonl").exists():
            files = [meta / "episodes.jsonl"]
        if not files:
            expected = "episodes/chunk-000/file-000.parquet" if self.is_v3 else "episodes.jsonl"
            self.problems.add("missing file", f"meta/{expected}")
        rows = []
        for path in files:
            try:
                rows.extend(_parquet_rows(path) if self.is_v3 else _json_lines(path))
            except (OSError, ValueError, pa.ArrowException) as error:
                self.problems.add("unreadable metadata", f"{self.name(path)}: {error}")
        return sorted(
            ((f"{self.name(path)}, row {n}", row) for path, n, row in rows),
            key=lambda item: str(item[1].get("episode_index", "")).zfill(12),
        )

    def read_json_lines(self, name: str) -> list[dict[str, Any]]:
        """The rows of a file `meta/<name>`; none where it does not exist."""
        path = self.root / "meta" / name
        return [row for _, _, row in _json_lines(path)] if path.exists() else []

    def read_json(self, name: str) -> dict[str, Any]:
        """The content of a file `meta/<name>`; empty where it does not exist."""
        path = self.root / "meta" / name
        return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _json_lines(path: Path) -> list[tuple[Path, int, dict[str, Any]]]:
    lines = path.read_text(encoding="utf-8").splitlines()
    rows = [(path, n, json.loads(line)) for n, line in enumerate(lines, 1) if line.strip()]
    if not all(isinstance(row, dict) for _, _, row in rows):
        raise ValueError("every line must be a JSON object")
    return rows


def _parquet_rows(path: Path) -> list[tuple[Path, int, dict[str, Any]]]:
    # The stats/ columns are many and large, and the whole dataset's are in meta/stats.json.
    names = [name for name in pq.read_schema(path).names if not name.startswith("stats/")]
    rows = pq.read_table(path, columns=names).to_pylist()
    return [(path, number, row) for number, row in enumerate(rows)]


def _fill(template: Any, values: dict[str, Any]) -> str:
    """`template.format(**values)` for plain numbers and names only.

    `str.format` would also follow attributes and pad to any width: a template is somebody's data.
    """
    if not isinstance(template, str):
        raise TypeError("expected a string")
    for _, field, spec, conversion in string.Formatter().parse(template):
        if field is not None and (
            field not in values or conversion or not re.fullmatch(r"(0?\d?\dd?)?", spec or "")
        ):
            raise ValueError(f"unknown field {field!r}; there are {sorted(values)}")
    return template.format(**values)


def _allowed_folders(root: Path) -> Sequence[Path]:
    """Where the dataset's files may be: its folder."""
    allowed = [root.resolve()]
    # The Hugging Face cache holds snapshots/<revision> full of links into blobs.
    if allowed[0].parent.name == "snapshots":
        allowed.append(allowed[0].parent.parent / "blobs")
    return allowed
