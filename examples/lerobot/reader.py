"""The frames of episodes, read from Parquet files and videos that are kept open."""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import pyarrow as pa
from jaxtyping import Shaped, UInt8, UInt16

from examples.lerobot import columns
from examples.lerobot.cache import Cache
from examples.lerobot.layout import Episode, Layout
from examples.lerobot.pictures import decode_picture
from examples.lerobot.problems import DatasetError
from examples.lerobot.scan import Vectors
from examples.lerobot.video import VideoReader

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
    """

    def __init__(
        self,
        layout: Layout,
        episodes: Iterable[Episode],
        first_row: Mapping[int, int],
        vectors: Vectors,
        cameras: Sequence[str],
        extra: Sequence[str],
    ):
        self._fps = layout.fps
        self._episodes = {episode.index: episode for episode in episodes}
        self._first_row = first_row
        self._vectors = vectors
        self._extra = extra
        self._image_keys = tuple(key for key in layout.image_keys if key in cameras)
        self._tables: Cache[dict[str, Any]] = Cache(_TABLE_BYTES)
        self._videos: Cache[VideoReader] = Cache(_OPEN_VIDEOS)

    def table(self, episode: int) -> dict[str, Any]:
        """Returns vectors, encoded images, `timestamp` and extra columns, one row for each frame.

        Raises:
            DatasetError: A state or an action is not finite, or an extra column cannot be read.
        """
        return self._tables.get(episode, lambda: self._load(episode))

    def image(
        self, episode: int, frame: int, camera: str
    ) -> UInt8[np.ndarray, "h w 3"] | UInt16[np.ndarray, "h w 1"]:
        """Returns the image of a camera at a frame.

        Raises:
            DatasetError: It is missing or cannot be decoded.
        """
        if camera in self._image_keys:
            content = self.table(episode)[camera][frame]
            if not content:
                raise DatasetError(
                    f"{self._episodes[episode].data}: {camera} of frame {frame} holds no image. "
                    "Embed the images in the Parquet files, or leave the camera out with cameras=."
                )
            try:
                return decode_picture(content)
            except ValueError as error:
                raise DatasetError(
                    f"{camera} of episode {episode}, frame {frame}: {error}"
                ) from error
        path, begin, _ = self._episodes[episode].videos[camera]
        reader = self._videos.get(path, lambda: (VideoReader(path, self._fps), 1))
        try:
            return reader.read(begin + frame / self._fps)
        except ValueError as error:
            raise DatasetError(f"episode {episode}, frame {frame}: {error}") from error

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
