"""The one error of this package."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class CheckpointError(ValueError):
    """A checkpoint cannot be read, or an operation on it is refused; nothing was changed."""


@contextlib.contextmanager
def explained(what: str) -> Iterator[None]:
    """Turns what libraries raise on damaged or unwritable files into a `CheckpointError`."""
    try:
        yield
    except CheckpointError:
        raise
    except PermissionError as error:
        raise CheckpointError(f"no permission for {error.filename}") from error
    except Exception as error:  # TensorStore raises bare ValueErrors and RuntimeErrors
        first_line = str(error).partition(" [")[0].strip() or type(error).__name__
        raise CheckpointError(f"{what}: {first_line}") from error
