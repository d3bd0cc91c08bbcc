"""A run that hangs says where."""

import threading
import time

from examples.pi0.training.watchdog import Watchdog


def test_a_phase_that_takes_too_long_is_shown_with_the_threads(capfd):
    done = threading.Event()
    waiting = threading.Thread(target=done.wait, name="the one that hangs")
    waiting.start()
    with Watchdog(0.2) as watchdog:
        watchdog.phase("reading batch 7")
        time.sleep(1.0)
    done.set()
    waiting.join()
    text = capfd.readouterr().err
    assert "The run is at reading batch 7 for 0.2 s" in text
    assert "test_watchdog.py" in text  # where this thread sleeps


def test_phases_that_end_in_time_are_not_shown(capfd):
    with Watchdog(0.5) as watchdog:
        for number in range(5):
            watchdog.phase(f"step {number}")
            time.sleep(0.02)
    time.sleep(0.7)
    assert capfd.readouterr().err == ""
