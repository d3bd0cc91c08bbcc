"""Progress of long commands, on stderr."""

from __future__ import annotations

import sys
import time


class ByteProgress:
    """Shows bytes, share and speed: on one line of a terminal, or on lines of a log.

    Args:
        verb: Begins the line, for example "reading".
    """

    def __init__(self, verb: str):
        self._verb = verb
        self._pause, self._end = (0.5, "\r") if sys.stderr.isatty() else (10.0, "\n")
        self._start = self._shown = time.monotonic()
        self._wrote = False

    def __enter__(self) -> ByteProgress:
        return self

    def __call__(self, done: int, total: int) -> None:
        """Shows the progress, unless it was shown a moment ago."""
        now = time.monotonic()
        if now - self._shown < self._pause:
            return
        self._shown, self._wrote = now, True
        speed = done / (now - self._start)
        text = (
            f"{self._verb} {done / 1e9:.2f} of {total / 1e9:.2f} GB ({100 * done / total:.0f} %), "
            f"{speed / 1e6:.0f} MB/s, {(total - done) / speed:.0f} s left "
        )
        print(text, end=self._end, file=sys.stderr, flush=True)

    def __exit__(self, *_: object) -> None:
        if self._wrote and self._end == "\r":
            print(file=sys.stderr)
