"""The signature of a module, which the metaclass of `nnx.Module` hides."""

from __future__ import annotations

import inspect
from typing import Any


class ConstructorSignature:
    """A class attribute `__signature__`: `inspect.signature` of a class is that of its `__init__`.

    `help`, IPython and Sphinx then show the arguments of the class. The signature of an instance is
    that of its `__call__`, as usual.
    """

    def __get__(self, instance: object | None, owner: type[Any]) -> inspect.Signature:
        if instance is not None:
            raise AttributeError("__signature__")
        whole = inspect.signature(owner.__init__)
        return whole.replace(parameters=list(whole.parameters.values())[1:])
