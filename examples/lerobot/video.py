"""Single frames of a video, by time: seek to the keyframe before, then decode forward."""

from __future__ import annotations

import dataclasses
import threading
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import UInt8

_NEAR = 32  # frames: decoding on is cheaper than seeking


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """What the packets of a video say, without decoding one.

    Attributes:
        end: Time of the last frame in seconds; the first is at 0.
        fps: Frames a second.
        size: Height and width.
        codec: For instance `h264` or `av1`.
    """

    end: float
    fps: float
    size: tuple[int, int]
    codec: str


def probe(path: Path) -> VideoInfo:
    """Reads the end of a video, so that a truncated one is found before it is trained on.

    Raises:
        ValueError: Not a video, or no packet at its end.
        OSError: Cannot be opened.
    """
    with av.open(str(path)) as container:
        stream, time_base, first = _video_stream(container)
        if stream.duration is not None:
            # Lands on the last keyframe; the header alone may promise more than the file holds.
            container.seek(first + stream.duration, stream=stream, backward=True)
        # pts is not in order where there are B-frames. An empty packet marks the end.
        times = [p.pts for p in container.demux(stream) if p.pts is not None and p.size]
        if not times:
            raise ValueError("the file ends before its last keyframe")
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(
            end=float((max(times) - first) * time_base),
            fps=float(rate) if rate else 0.0,
            size=(stream.codec_context.height, stream.codec_context.width),
            codec=stream.codec_context.name,
        )


class VideoReader:
    """An open video; `read` may be called from several threads.

    Args:
        path: Any container and codec that FFmpeg reads.
        fps: The dataset's; a frame is taken where it is within half a step of the time asked for.
    """

    def __init__(self, path: Path, fps: float | int):
        self._path = path
        self._step = 1 / fps
        self._lock = threading.Lock()
        self._container = av.open(str(path))
        self._stream, self._time_base, self._first = _video_stream(self._container)
        # Parallelism comes from the loader's workers; decoder threads would cost memory in each.
        self._stream.codec_context.thread_count = 1
        self._frames = self._container.decode(self._stream)
        self._last: av.VideoFrame | None = None

    def read(self, seconds: float | int) -> UInt8[np.ndarray, "height width 3"]:
        """The frame that is shown at `seconds` after the first one, in RGB.

        Raises:
            ValueError: No frame there, or it cannot be decoded.
        """
        with self._lock:
            try:
                frame = self._find(seconds)
            except FFmpegError as error:
                raise ValueError(
                    f"{self._path}: {error}, at {seconds:.3f} s; download it again"
                ) from error
            return frame.to_ndarray(format="rgb24")

    def _find(self, seconds: float | int) -> av.VideoFrame:
        half = self._step / 2  # a frame counts where it is nearest: times are rounded to ticks
        last, self._last = self._last, None  # nothing to go on from where this fails
        if last is None or not -half <= seconds - self._time(last) < _NEAR * self._step:
            self._seek(seconds)
            last = None
        while last is None or self._time(last) < seconds - half:
            last = next(self._frames, None)
            if last is None or last.pts is None:
                raise ValueError(
                    f"{self._path}: no frame at {seconds:.3f} s; the video is shorter than its "
                    "episode: download it again"
                )
        if self._time(last) > seconds + half:
            raise ValueError(
                f"{self._path}: no frame at {seconds:.3f} s, the next is at {self._time(last):.3f}"
                " s; encode it again without gaps"
            )
        self._last = last
        return last

    def _seek(self, seconds: float | int) -> None:
        target = self._first + round(max(seconds, 0.0) / self._time_base)
        self._container.seek(target, stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)

    def _time(self, frame: av.VideoFrame) -> float:
        return float(((frame.pts or 0) - self._first) * self._time_base)


def _video_stream(
    container: InputContainer,
) -> tuple[av.VideoStream, Fraction, int]:
    """The stream, the length of its tick in seconds, and the tick of its first frame."""
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise ValueError("no video stream of a known codec")
    stream = container.streams.video[0]
    return stream, stream.time_base or Fraction(1, av.time_base), stream.start_time or 0
