"""STUB until merged."""

from pathlib import Path


def fetch(path):
    return Path(path)
