"""Values that come from files and users: checked by pydantic, refused as `CheckpointError`."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Annotated, Any, TypeVar

from pydantic import ConfigDict, Field, Strict, ValidationError

from taskcond.checkpoint.storage.errors import CheckpointError

CONFIG = ConfigDict(extra="forbid")

Number = Annotated[float, Strict(), Field(allow_inf_nan=False)]
Integer = Annotated[int, Strict()]
Count = Annotated[int, Strict(), Field(ge=0)]
Switch = Annotated[bool, Strict()]

Class = TypeVar("Class", bound=type)


def refuses(what: str) -> Callable[[Class], Class]:
    """Makes the constructor of a pydantic dataclass raise `CheckpointError`.

    The error lists every problem of every field.

    Args:
        what: Begins the message, for example "the recipe cannot be followed".
    """

    def decorate(cls: Class) -> Class:
        validate = cls.__init__
        names = [field.name for field in dataclasses.fields(cls)]

        @functools.wraps(validate)
        def init(self: Any, *args: Any, **kwargs: Any) -> None:
            try:
                validate(self, *args, **kwargs)
            except ValidationError as error:
                raise CheckpointError(f"{what}: {_describe(error, names)}") from None

        cls.__init__ = init
        return cls

    return decorate


def _describe(error: ValidationError, names: list[str]) -> str:
    found: dict[str, list[str]] = {}  # what is allowed, by what was found
    for problem in error.errors():
        where = _location(problem["loc"], names)
        if problem["type"] == "value_error":  # raised by a `__post_init__`
            found[str(problem.get("ctx", {}).get("error"))] = []
        elif problem["type"] == "unexpected_keyword_argument":
            found[f"{where} is not a known field"] = []
        elif problem["type"] == "missing":
            found[f"{where} is missing"] = []
        else:
            allowed = problem["msg"].removeprefix("Input should be ").replace("tuple", "list")
            found.setdefault(f"{where} is {problem['input']!r}", []).append(allowed)
    return "; ".join(
        f"{text}, but must be {' or '.join(allowed)}" if allowed else text
        for text, allowed in found.items()
    )


def _location(parts: tuple[int | str, ...], names: list[str]) -> str:
    """Returns the path of a field, such as `specialists.0.weight`."""
    if parts and isinstance(parts[0], int):  # a positional argument
        parts = (names[parts[0]], *parts[1:])
    # pydantic also names the member of a union, as in ("tasks", 1, "str").
    names_and_indices = [
        str(part)
        for part in parts
        if isinstance(part, int) or (part.isidentifier() and part not in ("str", "int", "float"))
    ]
    return ".".join(names_and_indices)
