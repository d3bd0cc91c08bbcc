"""The loss of every sample under every task id, in one batched pass."""

from __future__ import annotations

from collections.abc import Callable
from typing import TypeVar, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from taskcond.ids import NULL_TASK, check_integer

P = TypeVar("P")


@overload
def losses_by_task(
    loss_fn: Callable[[Int[Array, " b"]], Float[Array, " b"]],
    batch_size: int,
    num_tasks: int,
    *,
    null: bool = False,
    ids_at_once: int | None = None,
) -> Float[Array, "b ids"]: ...


@overload
def losses_by_task(
    loss_fn: Callable[[Int[Array, " b"], P], Float[Array, " b"]],
    batch_size: int,
    num_tasks: int,
    *,
    prefix: Callable[[], P],
    null: bool = False,
    ids_at_once: int | None = None,
) -> Float[Array, "b ids"]: ...


def losses_by_task(
    loss_fn: Callable[..., Float[Array, " b"]],
    batch_size: int,
    num_tasks: int,
    *,
    prefix: Callable[[], object] | None = None,
    null: bool = False,
    ids_at_once: int | None = None,
) -> Float[Array, "b ids"]:
    """Returns the loss of every sample under every task id; can be jitted.

    All ids go through `jax.vmap` together, so that what does not depend on the id is computed
    once, and the rest in one pass of `batch_size` times the number of ids.

    Args:
        loss_fn: Gives the loss of each sample for one id per sample. It must use the same noise
            and time in every call, because losses under different noise cannot be compared.
        batch_size: Number of samples.
        num_tasks: Number of ids to try.
        prefix: Computes what all ids share, such as the tokens of images; `loss_fn` then takes
            its result as second argument. It is called once.
        null: Whether a last column has the loss under `NULL_TASK`.
        ids_at_once: Number of ids in one pass, if there is no memory for all of them.

    Raises:
        ValueError: The loss does not have the shape `[batch_size]`, or `ids_at_once` is below 1.

    >>> losses_by_task(lambda task_id: abs(task_id - 1.0), 2, 3).tolist()
    [[1.0, 0.0, 1.0], [1.0, 0.0, 1.0]]
    >>> losses_by_task(lambda task_id, x: x - task_id, 1, 2, prefix=lambda: 5.0, null=True).tolist()
    [[5.0, 4.0, 6.0]]
    """
    shared = () if prefix is None else (prefix(),)

    def loss_under(task: Int[Array, ""]) -> Float[Array, " b"]:
        loss = loss_fn(jnp.full((batch_size,), task, jnp.int32), *shared)
        if jnp.shape(loss) != (batch_size,):
            raise ValueError(
                f"the loss has shape {jnp.shape(loss)}, but must be [{batch_size}], one number "
                "for each sample; take the mean over the axes of a sample, and not over samples"
            )
        return loss

    ids = jnp.arange(num_tasks)
    if null:
        ids = jnp.append(ids, NULL_TASK)
    limit = len(ids) if ids_at_once is None else check_integer("ids_at_once", ids_at_once, 1)
    if limit >= len(ids):
        return jax.vmap(loss_under, out_axes=1)(ids)
    return jax.lax.map(loss_under, ids, batch_size=limit).T
