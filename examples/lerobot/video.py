"""Single frames of a video, by time: seek to the keyframe before the time, then decode forward."""

from __future__ import annotations

import dataclasses
import threading
from collections import deque
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path

import av
import numpy as np
from av.container import InputContainer
from av.error import FFmpegError
from jaxtyping import UInt8, UInt16

Image = UInt8[np.ndarray, "height width 3"] | UInt16[np.ndarray, "height width 1"]

_NEAR = 32  # frames; up to here, decoding forward is cheaper than seeking


@dataclasses.dataclass(frozen=True)
class VideoInfo:
    """The properties of a video that its packets state. No frame is decoded for them.

    Attributes:
        end: The time of the last frame, in seconds; the first frame is at 0.
        fps: Frames per second.
        size: Height and width.
        codec: The name of the codec, for instance `h264` or `av1`.
        pixels: The name of the format of its pixels, for instance `yuv420p`.
        deep_gray: Whether the frames are gray of more than 8 bits.
    """

    end: float
    fps: float
    size: tuple[int, int]
    codec: str
    pixels: str
    deep_gray: bool


def probe(path: Path) -> VideoInfo:
    """Reads the end of a video, so that a truncated file is found before training.

    Raises:
        ValueError: The file is not a video, or its end is missing.
        OSError: The file cannot be opened.
    """
    with av.open(str(path)) as container:
        stream, time_base, first = _video_stream(container)
        if stream.duration is not None:
            # Go to the last keyframe: the header alone may promise more than the file holds.
            container.seek(first + stream.duration, stream=stream, backward=True)
        # With B-frames, pts is not in order. An empty packet marks the end.
        times = [p.pts for p in container.demux(stream) if p.pts is not None and p.size]
        if not times:
            raise ValueError("the file ends before its last keyframe")
        rate = stream.average_rate or stream.guessed_rate
        return VideoInfo(
            end=float((max(times) - first) * time_base),
            fps=float(rate) if rate else 0.0,
            size=(stream.codec_context.height, stream.codec_context.width),
            codec=stream.codec_context.name,
            pixels=str(stream.codec_context.pix_fmt),
            deep_gray=is_deep_gray(stream.codec_context.format),
        )


class VideoReader:
    """An open video. Several threads may call `read`.

    Args:
        path: A file of any container and codec that FFmpeg reads.
        fps: The dataset's frames per second. A frame is read if it is within half a step of the
            requested time.
        keep: The number of frames, the last ones decoded, that can be read again without decoding.

    Attributes:
        decoded: The number of frames that were decoded so far.
    """

    def __init__(self, path: Path, fps: float | int, keep: int = 1):
        self.decoded = 0
        self._keep = keep
        self._path = path
        self._step = 1 / fps
        self._lock = threading.Lock()
        self._open()

    def read(self, seconds: float | int) -> Image:
        """Returns the frame that is shown `seconds` after the first frame, in RGB.

        Gray of more than 8 bits, in which depth is stored, is returned as it is.

        Raises:
            ValueError: There is no frame at that time, or it cannot be decoded.
        """
        return self.read_all([seconds])[0]

    def read_all(self, times: Sequence[float | int]) -> list[Image]:
        """Returns the frames at several times, in ascending order; see `read`.

        No other thread reads in between, as it would move the place from which decoding goes on.
        """
        with self._lock:
            return [self._read(seconds) for seconds in times]

    def _read(self, seconds: float | int) -> Image:
        try:
            frame = self._find(seconds)
        except FFmpegError as error:
            raise ValueError(
                f"{self._path} cannot be decoded at {seconds:.3f} s: {error}. Download it again."
            ) from error
        if is_deep_gray(frame.format):
            return frame.to_ndarray()[..., None]
        return frame.reformat(format="rgb24", threads=1).to_ndarray()

    def _open(self) -> None:
        """Opens the file, so that the next frame is the first one."""
        self._container = av.open(str(self._path))
        self._stream, self._time_base, self._first = _video_stream(self._container)
        # The loader's workers run in parallel. Threads of the decoder would cost memory in each.
        self._stream.codec_context.thread_count = 1
        self._frames = self._container.decode(self._stream)
        self._kept: deque[av.VideoFrame] = deque(maxlen=self._keep)

    def _find(self, seconds: float | int) -> av.VideoFrame:
        half = self._step / 2  # times are rounded to ticks, so the nearest frame counts
        # After an error, nothing is kept, so that the next call must seek.
        kept, self._kept = self._kept, deque(maxlen=self._keep)
        shown = next((f for f in kept if abs(self._time(f) - seconds) <= half), None)
        if shown is None:
            if not kept or not -half <= seconds - self._time(kept[-1]) < _NEAR * self._step:
                kept.clear()
                kept.append(self._jump(seconds))
            while self._time(kept[-1]) < seconds - half:
                kept.append(self._next(seconds))
            shown = kept[-1]
        if self._time(shown) > seconds + half:
            raise ValueError(
                f"{self._path} has no frame at {seconds:.3f} s: the next frame is at "
                f"{self._time(shown):.3f} s. Encode the video again without gaps."
            )
        self._kept = kept
        return shown

    def _jump(self, seconds: float | int) -> av.VideoFrame:
        """Returns a frame that is not after `seconds`, or the video's first one.

        The first frame after a seek may be later than the time that was asked for: in an open group
        of pictures, the frames shown before the keyframe also need those of the group before it.
        """
        back = 0.0
        while seconds - back > 0:
            self._seek(seconds - back)
            frame = next(self._frames, None)
            if frame is not None and frame.pts is not None:
                self.decoded += 1
                if self._time(frame) < seconds + self._step / 2:
                    return frame
            back = 2 * back + self._step
        self._container.close()
        self._open()
        return self._next(seconds)

    def _next(self, seconds: float | int) -> av.VideoFrame:
        frame = next(self._frames, None)
        if frame is None or frame.pts is None:
            raise ValueError(
                f"{self._path} has no frame at {seconds:.3f} s: the video is shorter than its "
                "episode. Download it again."
            )
        self.decoded += 1
        return frame

    def _seek(self, seconds: float | int) -> None:
        target = self._first + round(seconds / self._time_base)
        self._container.seek(target, stream=self._stream, backward=True)
        self._frames = self._container.decode(self._stream)

    def _time(self, frame: av.VideoFrame) -> float:
        return float(((frame.pts or 0) - self._first) * self._time_base)


def is_deep_gray(pixels: av.VideoFormat | None) -> bool:
    """Says whether pixels have one number of more than 8 bits."""
    return pixels is not None and len(pixels.components) == 1 and pixels.components[0].bits > 8


def _video_stream(container: InputContainer) -> tuple[av.VideoStream, Fraction, int]:
    """Returns the stream, the length of its tick in seconds, and the tick of its first frame."""
    if not container.streams.video or container.streams.video[0].codec_context is None:
        raise ValueError("the file has no video stream of a known codec")
    stream = container.streams.video[0]
    tick = stream.time_base or Fraction(1, av.time_base)
    # Newer releases of PyAV have a type of their own, with which one cannot calculate.
    return stream, Fraction(tick.numerator, tick.denominator), stream.start_time or 0
