"""`TaskLoRA`: an update of low rank for each task, beside a layer that all tasks share."""

from __future__ import annotations

import dataclasses
import functools
import math
import string
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jax.typing import DTypeLike
from jaxtyping import Array, Float, Shaped

from taskcond.ids import NULL_TASK, TaskIds, check_ids, check_integer
from taskcond.nn.select import select
from taskcond.nn.signature import ConstructorSignature
from taskcond.params import TaskParam


@functools.partial(
    jax.tree_util.register_dataclass,
    data_fields=["down", "up", "is_null"],
    meta_fields=["equation", "factor", "dtype"],
)
@dataclasses.dataclass(frozen=True, eq=False)
class TaskUpdate:
    """Holds the factors of each example's task; `TaskLoRA.select` returns it.

    It is a pytree, so that a scan can give each of its layers its own.

    Attributes:
        down: `[*b, *inputs, rank]`; `None` if there are no tasks.
        up: `[*b, rank, *outputs]`; `None` if there are no tasks.
        is_null: `[*b]`, where the id is `NULL_TASK`; `None` if there are no tasks.
        equation: See `TaskLoRA`.
        factor: What the update is multiplied by.
        dtype: See `TaskLoRA`.

    >>> lora = TaskLoRA(50, (8, 4), rank=2, rngs=nnx.Rngs(0))
    >>> x, task_id = jnp.ones((3, 8)), jnp.array([0, 49, -1])
    >>> update = lora.select(task_id, x)
    >>> update.down.shape, update(x, jnp.zeros((3, 4))).shape
    ((3, 8, 2), (3, 4))
    """

    down: Any
    up: Any
    is_null: Any
    equation: str
    factor: float
    dtype: DTypeLike | None

    def __call__(self, x: Float[Array, "..."], y: Float[Array, "..."]) -> Float[Array, "..."]:
        """Adds the update of each task to the output of the layer.

        Args:
            x: The input of the layer, which begins with the axes of the ids.
            y: The output of the layer for `x`.

        Returns:
            The output, in the dtype of `y`.

        Raises:
            ValueError: The factors are those of many layers, or of another batch.
        """
        if self.down is None:
            return y
        if x.shape[: self.is_null.ndim] != self.is_null.shape:
            raise ValueError(
                f"x has the shape {x.shape}, but must begin with the axes of the ids, "
                f"{self.is_null.shape}; select the updates of this batch"
            )
        axes = _Axes.of(self.equation, x.ndim)
        if self.down.ndim != self.is_null.ndim + len(axes.down):
            raise ValueError(
                f"down has the shape {self.down.shape}, which holds many layers: scan over "
                ".by_layer(), and call what the scan takes of it"
            )
        batch = axes.x[: self.is_null.ndim]
        dtype = self.dtype or jnp.promote_types(x.dtype, self.down.dtype)
        down, up = self.down.astype(dtype), self.up.astype(dtype)
        hidden = jnp.einsum(f"{axes.x},{batch}{axes.down}->{axes.hidden}", x.astype(dtype), down)
        update = jnp.einsum(f"{axes.hidden},{batch}{axes.up}->{axes.y}", hidden, up)
        out = (y + update * self.factor).astype(y.dtype)
        order = [batch.index(axis) for axis in axes.y if axis in batch]
        shape = [size if axis in batch else 1 for axis, size in zip(axes.y, y.shape, strict=True)]
        return jnp.where(self.is_null.transpose(order).reshape(shape), y, out)

    def by_layer(self) -> TaskUpdate:
        """Puts the axis of layers first, where a scan or `jax.vmap` expects it.

        This is for a `TaskLoRA` of many layers, whose parameters are `[tasks, layers, ...]`. The
        part of the result that a scan takes is the update of one layer.

        Raises:
            ValueError: The factors are those of one layer.
        """
        if self.down is None:
            return self
        axis = self.is_null.ndim
        if self.down.ndim != axis + 1 + len(_Axes.of(self.equation, 0).down):
            raise ValueError(
                f"down has the shape {self.down.shape}, which holds one layer: call the update, or "
                "make the parameters of many layers with nnx.vmap(..., out_axes=1)"
            )
        layers = self.down.shape[axis]
        down, up = (jnp.moveaxis(x, axis, 0) for x in (self.down, self.up))
        is_null = jnp.broadcast_to(self.is_null, (layers, *self.is_null.shape))
        return dataclasses.replace(self, down=down, up=up, is_null=is_null)


class TaskLoRA(nnx.Module):
    """Gives each task its own update, of low rank, of a layer that all tasks share.

    `y = lora(x, task_id, layer(x))` is what a layer with the weight `kernel + factor * down[task] @
    up[task]` would return. No weight is made for an example: only its two factors are looked up.
    `up` starts as zeros, so that the layer starts as it is. With `NULL_TASK` the output is the
    layer's, bit for bit. A bad concrete id raises, and under `jit` its rows are NaN.

    The layer stays where it is, so that its weights load under the paths that they have.

    Attributes:
        down: A `TaskParam`, `[num_tasks, inputs, rank]`; `None` if `num_tasks=0`.
        up: A `TaskParam`, `[num_tasks, rank, outputs]`; `None` if `num_tasks=0`.

    Args:
        num_tasks: The number of tasks. 0 gives no parameters, and the layer's output as it is.
        shape: The shape of the layer's weight.
        rank: The inner dimension of the update.
        equation: What the layer does, as an einsum of input and weight.
        alpha: The update is multiplied by `alpha / rank`. By default that is 1.
        rank_stabilized: Whether to multiply by `alpha / sqrt(rank)` instead, with which the size of
            the update does not depend on the rank.
        dtype: Dtype of the computation; by default the one that input and factors promote to.
        param_dtype: Dtype of the factors.
        rngs: Its stream `params` draws `down`.

    Raises:
        ValueError: The rank exceeds that of the weight, a number is too small, or `shape` does not
            fit `equation`.
        TypeError: A number is not an integer.

    Sources: Hu et al., "LoRA: Low-Rank Adaptation of Large Language Models", 2021,
    https://arxiv.org/abs/2106.09685; Kalajdzievski, "A Rank Stabilization Scaling Factor for
    Fine-Tuning with LoRA", 2023, https://arxiv.org/abs/2312.03732.

    >>> layer = nnx.Linear(8, 4, rngs=nnx.Rngs(0))
    >>> lora = TaskLoRA.around(layer, num_tasks=50, rank=2, rngs=nnx.Rngs(1))
    >>> x = jnp.ones((3, 8))
    >>> bool((lora(x, jnp.array([0, 49, -1]), layer(x)) == layer(x)).all())
    True
    """

    __signature__ = ConstructorSignature()

    def __init__(
        self,
        num_tasks: int,
        shape: tuple[int, ...],
        rank: int,
        *,
        equation: str = "...i,io->...o",
        alpha: float | int | None = None,
        rank_stabilized: bool = False,
        dtype: DTypeLike | None = None,
        param_dtype: DTypeLike = jnp.float32,
        rngs: nnx.Rngs,
    ):
        self.num_tasks = check_integer("num_tasks", num_tasks, 0)
        self.rank = check_integer("rank", rank, 1)
        self.equation, self.shape = equation, tuple(shape)
        self.dtype = None if dtype is None else jnp.dtype(dtype)
        self.factor = (self.rank if alpha is None else alpha) / (
            math.sqrt(self.rank) if rank_stabilized else self.rank
        )
        axes = _Axes.of(equation, 0)
        sizes = axes.sizes(self.shape, equation)
        inputs = math.prod(sizes[axis] for axis in axes.contracted)
        outputs = math.prod(sizes[axis] for axis in axes.outputs)
        if self.rank > min(inputs, outputs):
            raise ValueError(
                f"rank={rank} exceeds the rank of the weight, which has {inputs} inputs and "
                f"{outputs} outputs; use at most {min(inputs, outputs)}"
            )
        sizes["r"] = self.rank
        down = (self.num_tasks, *(sizes[axis] for axis in axes.down))
        up = (self.num_tasks, *(sizes[axis] for axis in axes.up))
        random = nnx.initializers.normal(inputs**-0.5)
        has_tasks = self.num_tasks > 0
        self.down = TaskParam(random(rngs.params(), down, param_dtype)) if has_tasks else None
        self.up = TaskParam(jnp.zeros(up, param_dtype)) if has_tasks else None

    @classmethod
    def around(
        cls,
        layer: nnx.Linear | nnx.Einsum,
        num_tasks: int,
        rank: int,
        *,
        alpha: float | int | None = None,
        rank_stabilized: bool = False,
        rngs: nnx.Rngs,
    ) -> TaskLoRA:
        """Returns the updates of an `nnx.Linear` or `nnx.Einsum`, with its dtypes.

        The other arguments are those of the class, which takes the shape and the equation of any
        other layer.

        Raises:
            TypeError: It is a layer of another class.
        """
        if not isinstance(layer, (nnx.Linear, nnx.Einsum)):
            raise TypeError(
                f"the layer is a {type(layer).__name__}, whose computation is not known; use "
                "TaskLoRA(num_tasks, weight.shape, rank, equation=..., rngs=rngs)"
            )
        equation = layer.einsum_str if isinstance(layer, nnx.Einsum) else "...i,io->...o"
        return cls(
            num_tasks,
            layer.kernel.shape,
            rank,
            equation=equation,
            alpha=alpha,
            rank_stabilized=rank_stabilized,
            dtype=layer.dtype,
            param_dtype=layer.param_dtype,
            rngs=rngs,
        )

    def __call__(
        self, x: Float[Array, "..."], task_id: TaskIds | None, y: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """Adds the update of each task to the output of the layer.

        Args:
            x: The input of the layer, `[*b, ...]`.
            task_id: Integers `[*b]`; each is that of all that follows its axes. May be `None` only
                if `num_tasks=0`.
            y: The output of the layer for `x`.

        Returns:
            The output, in the dtype of `y`.

        Raises:
            ValueError: Ids are missing or out of range, or their shape does not begin that of `x`.
            TypeError: The ids are not integers.
        """
        return self.select(task_id, x)(x, y)

    def select(self, task_id: TaskIds | None, x: Shaped[Array, "..."]) -> TaskUpdate:
        """Looks up the factors of each task, to be used more than once or within a scan.

        `lora.select(task_id, x)(x, y)` is `lora(x, task_id, y)`. To scan over many layers, make one
        `TaskLoRA` whose parameters have the layers as their second axis, look up before the scan,
        and scan over `.by_layer()`:

        >>> @nnx.split_rngs(splits=18)
        ... @functools.partial(nnx.vmap, in_axes=0, out_axes=1)
        ... def make(rngs):
        ...     return TaskLoRA(50, (8, 8), rank=2, rngs=rngs)
        >>> loras, x, task_id = make(nnx.Rngs(0)), jnp.ones((3, 8)), jnp.array([0, 49, -1])
        >>> loras.down.shape
        (50, 18, 8, 2)
        >>> kernels = jnp.zeros((18, 8, 8))
        >>> def layer(x, inputs):
        ...     kernel, update = inputs
        ...     return x + update(x, x @ kernel), None
        >>> y, _ = jax.lax.scan(layer, x, (kernels, loras.select(task_id, x).by_layer()))
        >>> y.shape
        (3, 8)

        Args:
            task_id: Integers `[*b]`. May be `None` only if `num_tasks=0`.
            x: An array `[*b, ...]`, whose explicit sharding the factors get.

        Raises:
            ValueError: Ids are missing or out of range, or their shape does not begin that of `x`.
            TypeError: The ids are not integers.
        """
        down = up = is_null = None
        if self.down is not None and self.up is not None:
            parts, is_null = select([self.down[...], self.up[...]], task_id, x)
            # They are cast here, where they are small, and not in each layer or step.
            down, up = (part.astype(self.dtype or part.dtype) for part in parts)
        return TaskUpdate(down, up, is_null, self.equation, self.factor, self.dtype)

    def export(self, task: int, kernel: Float[Array, "..."]) -> Float[Array, "..."]:
        """Returns the weight of the layer for one task alone, for a model without tasks.

        Args:
            task: The id of the task. `NULL_TASK` returns the weight of the layer.
            kernel: The weight of the layer, or `[layers, ...]` those of many.

        Raises:
            ValueError: The id is out of range, or the weight has another shape.
        """
        task = check_integer("task", task, NULL_TASK)
        check_ids(np.asarray(task), self.num_tasks)
        axes = _Axes.of(self.equation, 0)
        layers = () if self.down is None else self.down.shape[1 : self.down.ndim - len(axes.down)]
        if kernel.shape != (*layers, *self.shape):
            raise ValueError(
                f"kernel has the shape {kernel.shape}, but the layer's is {(*layers, *self.shape)}"
            )
        if task == NULL_TASK or self.down is None or self.up is None:
            return kernel
        equation = f"...{axes.down},...{axes.up}->...{axes.w}"
        update = jnp.einsum(equation, self.down[task], self.up[task])
        return (kernel + update * self.factor).astype(kernel.dtype)


class _Axes(NamedTuple):
    """The axes of an einsum of input and weight, a letter each.

    Attributes:
        x: Those of the input.
        w: Those of the weight.
        y: Those of the output.
    """

    x: str
    w: str
    y: str

    @classmethod
    def of(cls, equation: str, ndim: int) -> _Axes:
        """Reads an equation; `...` becomes as many letters as an input of `ndim` axes needs."""
        try:
            inputs, y = equation.replace(" ", "").split("->")
            x, w = inputs.split(",")
        except ValueError:
            raise ValueError(
                f"equation must have the form 'input,weight->output', got {equation!r}"
            ) from None
        if "r" in equation:
            free = next(c for c in string.ascii_letters if c not in equation)
            x, w, y = (part.replace("r", free) for part in (x, w, y))
        taken = {*x, *w, *y, "r"}
        letters = (c for c in string.ascii_uppercase if c not in taken)
        more = "".join(next(letters) for _ in range(max(ndim - len(x.replace("...", "")), 0)))
        return cls(*(part.replace("...", more) for part in (x, w, y)))

    @property
    def contracted(self) -> str:
        """The axes that are summed over."""
        return "".join(axis for axis in self.w if axis in self.x and axis not in self.y)

    @property
    def shared(self) -> str:
        """The axes that input, weight and output have."""
        return "".join(axis for axis in self.w if axis in self.x and axis in self.y)

    @property
    def outputs(self) -> str:
        """The axes that the weight brings into the output."""
        return "".join(axis for axis in self.w if axis not in self.x)

    @property
    def down(self) -> str:
        """The axes of the factor that reads the input."""
        return f"{self.shared}{self.contracted}r"

    @property
    def up(self) -> str:
        """The axes of the factor that writes the output."""
        return f"{self.shared}r{self.outputs}"

    @property
    def hidden(self) -> str:
        """The axes between the two factors."""
        return "".join(axis for axis in self.x if axis not in self.contracted) + "r"

    def sizes(self, shape: tuple[int, ...], equation: str) -> dict[str, int]:
        """Returns the size of each axis of a weight of this shape."""
        if len(shape) != len(self.w) or not self.contracted:
            raise ValueError(
                f"a weight of the shape {shape} does not fit equation={equation!r}, which must "
                "name each axis of the weight and sum over at least one"
            )
        return dict(zip(self.w, shape, strict=True))
