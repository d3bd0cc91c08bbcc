"""A watchdog that shows where the program is, when nothing happens for long."""

from __future__ import annotations

import faulthandler
import sys
import threading


class Watchdog:
    """Prints the phase and the stacks of all threads, if no phase begins for a while.

    Args:
        seconds: How long a phase may take.
    """

    def __init__(self, seconds: float):
        self._seconds = seconds
        self._timer: threading.Timer | None = None

    def phase(self, name: str) -> None:
        """Begins a phase."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = threading.Timer(self._seconds, self._report, [name])
        self._timer.daemon = True
        self._timer.start()

    def __enter__(self) -> Watchdog:
        return self

    def __exit__(self, *_: object) -> None:
        if self._timer is not None:
            self._timer.cancel()

    def _report(self, name: str) -> None:
        print(
            f"The run is at {name} for {self._seconds:g} s. The stacks of its threads:",
            file=sys.stderr,
            flush=True,
        )
        faulthandler.dump_traceback(all_threads=True)
