"""`CheckpointError`, and how other errors become one."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator


class CheckpointError(ValueError):
    """Raised when a checkpoint cannot be read or an operation on it is refused.

    No file has been changed when this is raised.
    """


@contextlib.contextmanager
def as_checkpoint_error(what: str) -> Iterator[None]:
    """Turns the errors that libraries raise on damaged or unwritable files into `CheckpointError`.

    Args:
        what: Begins the message, for example "model.safetensors is damaged".
    """
    try:
        yield
    except CheckpointError:
        raise
    except PermissionError as error:
        raise CheckpointError(
            f"there is no permission to access {error.filename}; change the permission, or use "
            "another path"
        ) from error
    except Exception as error:  # TensorStore raises bare ValueErrors and RuntimeErrors
        first_line = str(error).partition(" [")[0].strip() or type(error).__name__
        raise CheckpointError(f"{what}: {first_line}") from error
