"""`TaskParam`: the type of the parameters that belong to tasks."""

from __future__ import annotations

from flax import nnx


class TaskParam(nnx.Param):
    """A parameter that exists once per task.

    It selects what task conditioning adds to a model, as `nnx.LoRAParam` does for LoRA:

    >>> import taskcond
    >>> from flax import nnx
    >>> model = taskcond.TaskConditioner(3, 4, rngs=nnx.Rngs(0))
    >>> list(nnx.state(model, taskcond.TaskParam))
    ['embedding']
    """
