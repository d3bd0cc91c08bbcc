"""A failed write leaves nothing behind; progress is reported."""

from __future__ import annotations

import threading

import pytest

from taskcond.checkpoint import (
    CheckpointError,
    save_params,
)
from taskcond.trees import flatten
from tests.support.checkpoints import (
    golden,
    small,
)


@pytest.mark.parametrize("format", ["orbax", "safetensors"])
def test_a_failed_write_leaves_no_file_and_no_thread(tmp_path, monkeypatch, format):
    writer = {"orbax": "orbax.OrbaxWriter", "safetensors": "safetensors.SafetensorsWriter"}[format]

    def fail(*_):
        raise CheckpointError("the disk is on fire")

    monkeypatch.setattr(f"taskcond.checkpoint.storage.{writer}.write", fail)
    threads = threading.active_count()
    with pytest.raises(CheckpointError, match="on fire"):
        save_params(golden("pi05_f32"), tmp_path / "x", format=format)
    assert threading.active_count() == threads
    assert list(tmp_path.iterdir()) == []


def test_progress_reaches_the_total(tmp_path):
    calls = []
    save_params(small(), tmp_path / "x", progress=lambda *call: calls.append(call))
    assert calls[-1][0] == calls[-1][1] == sum(x.nbytes for x in flatten(small()).values())
    assert calls == sorted(calls)
