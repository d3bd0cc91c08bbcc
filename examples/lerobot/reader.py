"""The frames of episodes, read from Parquet files and videos that are kept open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped

from . import columns
from .cache import Cache
from .layout import Episode, Layout
from .pictures import decode_picture
from .problems import DatasetError
from .scan import Vectors
from .video import Image, VideoReader

_OPEN_VIDEOS = 16  # per worker
_TABLE_BYTES = 256 * 2**20  # of states, actions and images in Parquet, per worker


class EpisodeReader:
    """Reads frames of episodes. It pickles without its caches.

    Args:
        layout: The dataset.
        episodes: The episodes to read.
        first_row: For each episode index, its first row in its Parquet file.
        vectors: The keys of states and actions.
        cameras: The cameras to read.
        extra: The keys of further columns.
        history: The number of frames before a frame that are read with it.
    """

    def __init__(
        self,
        layout: Layout,
        episodes: Iterable[Episode],
        first_row: Mapping[int, int],
        vectors: Vectors,
        cameras: Sequence[str],
        extra: Sequence[str],
        history: int,
    ):
        self._fps = layout.fps
        self._episodes = {episode.index: episode for episode in episodes}
        self._first_row = first_row
        self._vectors = vectors
        self._extra = extra
        self._cameras = cameras
        self._history = history
        self._image_keys = tuple(key for key in layout.image_keys if key in cameras)
        self._tables: Cache[dict[str, Any]] = Cache(_TABLE_BYTES)
        self._videos: Cache[VideoReader] = Cache(_OPEN_VIDEOS)

    def table(self, episode: int) -> dict[str, Any]:
        """Returns vectors, encoded images, `timestamp` and extra columns, one row for each frame.

        Raises:
            DatasetError: A state or an action is not finite, or an extra column cannot be read.
        """
        return self._tables.get(episode, lambda: self._load(episode))

    def observation(self, episode: int, frame: int) -> dict[str, Any]:
        """Returns state and images of a frame, and those of the frames of `history` before it.

        Raises:
            DatasetError: An image is missing or cannot be decoded.
        """
        first = max(0, frame - self._history)
        state = self.table(episode)["state"][first : frame + 1]
        images = {
            camera: self._images(episode, range(first, frame + 1), camera)
            for camera in self._cameras
        }
        if not self._history:
            return {
                "state": state[0].copy(),
                "images": {camera: shown[0] for camera, shown in images.items()},
            }
        steps = np.arange(frame - self._history, frame + 1)
        places = np.maximum(steps, 0) - first
        return {
            "state": state[places],
            "images": {c: np.stack([shown[i] for i in places]) for c, shown in images.items()},
            "history_is_pad": steps < 0,
        }

    def _images(self, episode: int, frames: Sequence[int], camera: str) -> list[Image]:
        """Returns the images of a camera at several frames, in ascending order."""
        if camera in self._image_keys:
            return [self._picture(episode, frame, camera) for frame in frames]
        path, begin, _ = self._episodes[episode].videos[camera]
        # Kept, so that reading in order decodes each frame once.
        keep = self._history + 1
        reader = self._videos.get(path, lambda: (VideoReader(path, self._fps, keep), 1))
        try:
            return reader.read_all([begin + frame / self._fps for frame in frames])
        except ValueError as error:
            raise DatasetError(f"episode {episode}, frame {frames[-1]}: {error}") from error

    def _picture(self, episode: int, frame: int, camera: str) -> Image:
        content = self.table(episode)[camera][frame]
        if not content:
            raise DatasetError(
                f"{self._episodes[episode].data}: {camera} of frame {frame} holds no image. "
                "Embed the images in the Parquet files, or leave the camera out with cameras=."
            )
        try:
            return decode_picture(content)
        except ValueError as error:
            raise DatasetError(f"{camera} of episode {episode}, frame {frame}: {error}") from error

    def _load(self, episode: int) -> tuple[dict[str, Any], int]:
        """Returns the table of one episode, and its size in bytes."""
        place = self._episodes[episode]
        keys = {key for keys in self._vectors.values() for key in keys}
        keys |= {*self._image_keys, *self._extra, "timestamp"}
        rows = columns.read_rows(place.data, self._first_row[episode], place.length, sorted(keys))
        table: dict[str, Any] = {
            name: columns.vectors(rows, keys) for name, keys in self._vectors.items()
        }
        for name, values in table.items():
            if not np.isfinite(values).all():
                frame, dimension = np.argwhere(~np.isfinite(values))[0]
                raise DatasetError(
                    f"{place.data}: {name} of episode {episode}, frame {frame}, dimension "
                    f"{dimension} is not finite. Repair the frame, or leave the episode out with "
                    "episodes=[...]."
                )
        size = sum(values.nbytes for values in table.values())
        for camera in self._image_keys:
            # Copied, as a slice would keep its whole row group in memory.
            cells = rows.column(camera).to_pylist()
            table[camera] = [(cell or {}).get("bytes") for cell in cells]
            size += sum(len(content or b"") for content in table[camera])
        table.update(self._columns(rows, place))
        return table, size + rows.select([*self._extra]).nbytes

    def _columns(self, rows: pa.Table, place: Episode) -> dict[str, Shaped[np.ndarray, "n ..."]]:
        """Returns `timestamp` and the extra columns."""
        result: dict[str, np.ndarray] = {}
        try:
            if "timestamp" in rows.column_names:
                result["timestamp"] = columns.vectors(rows, ["timestamp"])[:, 0]
            else:
                result["timestamp"] = (np.arange(place.length) / self._fps).astype(np.float32)
            for key in self._extra:
                result[key] = columns.stored(rows, key)
        except ValueError as error:
            raise DatasetError(
                f"{place.data}: episode {place.index}: {error} Repair the column, leave it out of "
                "extra=[...], or leave the episode out with episodes=[...]."
            ) from error
        return result
