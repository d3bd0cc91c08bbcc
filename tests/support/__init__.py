"""What several tests share."""

import contextlib
from collections.abc import Iterator
from pathlib import Path

import jaxtyping

FIXTURES = Path(__file__).parents[1] / "fixtures"


@contextlib.contextmanager
def as_untyped_code() -> Iterator[None]:
    """Switches off the tests' own check of types, to see what wrong types meet without it."""
    jaxtyping.config.update("jaxtyping_disable", True)
    try:
        yield
    finally:
        jaxtyping.config.update("jaxtyping_disable", False)
