"""`TaskLinear`: a linear layer for each task, such as a head of its own."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Bool, Float

from taskcond.ids import TaskIds, check_integer
from taskcond.nn.lookup import require_task_id
from taskcond.nn.select import keep_null, select
from taskcond.nn.signature import ConstructorSignature
from taskcond.params import SharedTaskParam, TaskParam


class TaskLinear(nnx.Module):
    """Gives each task a linear layer of its own, alone or on top of one that all tasks share.

    `head(x, task_id)` is `x @ kernel[task] + bias[task]`, and `head(x, task_id, layer(x))` adds
    that to the output of a shared layer. Kernels start as zeros, so that a shared layer starts as
    it is.
    With `NULL_TASK` nothing is added: the output is the shared layer's, bit for bit, or zeros.
    A bad concrete id raises, and under `jit` its rows are NaN.

    The kernel of each example is looked up, which takes the memory of a weight per example. That
    is little for a head, and much for a wide layer: there `TaskLoRA` needs less.

    Attributes:
        kernel: A `TaskParam`, `[num_tasks, in_features, out_features]`; `None` if `num_tasks=0`.
        bias: A `TaskParam`, `[num_tasks, out_features]`; a `SharedTaskParam`, `[out_features]`; or
            `None`.

    Args:
        num_tasks: The number of tasks. 0 gives no parameters, and the shared layer's output as it
            is.
        in_features: The width of the input.
        out_features: The width of the output, that of the widest task.
        out_sizes: For each task the number of outputs that it has; those beyond are zero. `None`
            gives all tasks all outputs.
        bias: `"task"` for a bias of each task, `"shared"` for one that all tasks share, or
            `None`.
        kernel_init: Initializer of the kernels, which it gets as `[in, out]` of one task; by
            default zeros.
        dtype: Dtype of the computation; by default the one that input and kernel promote to.
        param_dtype: Dtype of the parameters.
        rngs: Its stream `params` draws the kernels.

    Raises:
        ValueError: A number is too small, or `out_sizes` does not fit the others.
        TypeError: A number is not an integer.

    >>> head = TaskLinear(3, 8, 4, out_sizes=[4, 2, 3], rngs=nnx.Rngs(0))
    >>> head.mask(jnp.array([1])).tolist()
    [[True, True, False, False]]
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        num_tasks: int,
        in_features: int,
        out_features: int,
        *,
        out_sizes: Sequence[int] | None = None,
        bias: Literal["task", "shared"] | None = "task",
        kernel_init: nnx.Initializer = nnx.initializers.zeros,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_tasks = check_integer("num_tasks", num_tasks, 0)
        self.in_features = check_integer("in_features", in_features, 1)
        self.out_features = check_integer("out_features", out_features, 1)
        self.out_sizes = None if out_sizes is None else self._sizes(out_sizes)
        self.dtype = dtype
        if bias not in ("task", "shared", None):
            raise ValueError(f"bias must be 'task', 'shared' or None, got {bias!r}")
        self.kernel = (
            TaskParam(self._kernels(kernel_init, param_dtype, rngs)) if num_tasks else None
        )
        zeros = jnp.zeros((self.num_tasks, self.out_features), param_dtype)
        if bias is None or not num_tasks:
            self.bias = None
        else:
            self.bias = TaskParam(zeros) if bias == "task" else SharedTaskParam(zeros[0])

    def __call__(
        self,
        x: Float[Array, "... i"],
        task_id: TaskIds | None = None,
        y: Float[Array, "... o"] | None = None,
    ) -> Float[Array, "... o"]:
        """Applies the layer of each task.

        Args:
            x: `[*b, ..., in_features]`.
            task_id: Integers `[*b]`; each is that of all that follows its axes. May be `None` only
                if `num_tasks=0`.
            y: The output of a layer that all tasks share, `[*b, ..., out_features]`.

        Returns:
            `[*b, ..., out_features]`, in the dtype of `y` if there is one.

        Raises:
            ValueError: Ids are missing or out of range, their shape does not begin that of `x`, or
                a width is another.
            TypeError: The ids are not integers.
        """
        if x.ndim < 1 or x.shape[-1] != self.in_features:
            raise ValueError(
                f"x has the shape {x.shape}, but its last axis must be in_features="
                f"{self.in_features}; build TaskLinear with the width of x"
            )
        shape = (*x.shape[:-1], self.out_features)
        if y is not None and y.shape != shape:
            raise ValueError(
                f"y has the shape {y.shape}, but must be {shape}: the output of a shared "
                f"layer of out_features={self.out_features}"
            )
        if self.kernel is None:
            return jnp.zeros(shape, self.dtype or x.dtype) if y is None else y
        own = [self.kernel[...]]
        if isinstance(self.bias, TaskParam) and not isinstance(self.bias, SharedTaskParam):
            own.append(self.bias[...])
        parts, is_null = select(own, task_id, x)
        dtype = self.dtype or jnp.promote_types(x.dtype, self.kernel.dtype)
        axes = x.ndim - 1 - is_null.ndim
        flat = x.reshape(*is_null.shape, -1, x.shape[-1]).astype(dtype)
        update = jnp.matmul(flat, parts[0].astype(dtype)).reshape(shape)
        if self.bias is not None:
            bias = parts[1] if len(parts) == 2 else self.bias[...]
            bias = bias.reshape(*bias.shape[:-1], *[1] * axes, bias.shape[-1])
            update += bias.astype(dtype)
        base = jnp.zeros_like(update) if y is None else y
        out = keep_null(is_null, base, (base + update).astype(base.dtype))
        if self.out_sizes is None:
            return out
        mask = self.mask(require_task_id(task_id))
        return jnp.where(mask.reshape(*is_null.shape, *[1] * axes, -1), out, 0)

    def mask(self, task_id: TaskIds) -> Bool[Array, "*b o"]:
        """Returns which outputs each task has; `NULL_TASK` has all.

        Args:
            task_id: Integers `[*b]`.

        Raises:
            ValueError: A concrete id is out of range.
        """
        sizes = self.out_sizes or (self.out_features,) * self.num_tasks
        table = jnp.arange(self.out_features) < jnp.array(sizes)[:, None]
        ids = jnp.asarray(task_id)
        (rows,), is_null = select([table.astype(jnp.float32)], task_id, ids, ids.ndim)
        return (rows != 0) | is_null[..., None]  # NaN, of a bad id, is not zero

    def _kernels(
        self, init: nnx.Initializer, dtype: DTypeLike, rngs: nnx.Rngs
    ) -> Float[Array, "tasks i o"]:
        shape = self.in_features, self.out_features
        return jnp.stack([init(rngs.params(), shape, dtype) for _ in range(self.num_tasks)])

    def _sizes(self, out_sizes: Sequence[int]) -> tuple[int, ...]:
        sizes = tuple(
            check_integer("out_sizes", size, 1) for size in np.asarray(out_sizes).tolist()
        )
        if len(sizes) != self.num_tasks or max(sizes, default=0) > self.out_features:
            raise ValueError(
                f"out_sizes is {list(sizes)}, but needs {self.num_tasks} numbers, one for each "
                f"task, of at most out_features={self.out_features}"
            )
        return sizes
