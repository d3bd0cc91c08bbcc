"""`TaskParam`: the type of the parameters that task conditioning adds to a model."""

from __future__ import annotations

from flax import nnx


class TaskParam(nnx.Param):
    """A parameter that task conditioning adds; its first axis is that of the tasks.

    It selects what task conditioning adds to a model, as `nnx.LoRAParam` does for LoRA:

    >>> import taskcond
    >>> from flax import nnx
    >>> model = taskcond.TaskConditioner(3, 4, rngs=nnx.Rngs(0))
    >>> list(nnx.state(model, taskcond.TaskParam))
    ['embedding']
    """


class SharedTaskParam(TaskParam):
    """A `TaskParam` that all tasks share: it has no axis of tasks, so that it never grows."""
