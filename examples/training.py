"""A short training loop with a progress bar; Ctrl-C ends it and keeps the weights."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from flax.nnx import filterlib
from jaxtyping import Array, Float
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_REPORT_EVERY = 10  # steps; reading the loss waits for the device

M = TypeVar("M", bound=nnx.Module)


def fit(
    model: M,
    loss_fn: Callable[[M, Array, Any], Float[Array, ""]],
    batches: Iterator[Any],
    *,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    label: str = "training",
    trainable: filterlib.Filter = nnx.Param,
    weight_decay: float = 1e-4,
) -> int:
    """Trains a module in place; returns the number of steps, fewer than `steps` after Ctrl-C.

    The optimizer is AdamW with a clipped gradient. The learning rate warms up over a twentieth of
    the steps, and decays by a cosine to a tenth of its peak.

    Args:
        model: The module. Afterwards it holds the weights of the last finished step.
        loss_fn: `loss_fn(model, rng, batch)` returns a scalar.
        batches: Yields the batches for `loss_fn`.
        steps: The number of steps.
        learning_rate: The peak of the learning rate.
        seed: The seed of `rng`: step `i` gets the same `rng` in every run.
        label: The name of the training in the progress bar.
        trainable: Which parameters are trained, such as `TaskParam`.
        weight_decay: The decay of these parameters. Rows of tasks that have no data decay, too.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(steps // 20, 1), max(steps, 2), learning_rate / 10
    )
    optimizer = optax.chain(
        optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95, weight_decay=weight_decay)
    )
    graphdef, params, rest = nnx.split(model, trainable, ...)

    @jax.jit
    def step(carry, batch, index):
        params, rest, optimizer_state = carry
        rng = jax.random.fold_in(jax.random.key(seed), index)

        def loss(params):
            merged = nnx.merge(graphdef, params, rest)
            value = loss_fn(merged, rng, batch)
            return value, nnx.split(merged, trainable, ...)[2]

        (value, new_rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return (optax.apply_updates(params, updates), new_rest, optimizer_state), value

    carry = (params, rest, optimizer.init(params))
    done = 0
    with training_progress() as progress:
        bar = progress.add_task(f"{label:28}", total=steps, loss=float("nan"))
        try:
            for index in range(steps):
                batch = next(batches)
                carry, value = step(carry, batch, jnp.int32(index))
                done = index + 1
                if done % _REPORT_EVERY == 0 or done == steps:
                    progress.update(bar, completed=done, loss=float(value))
        except KeyboardInterrupt:
            progress.console.print(f"[yellow]interrupted after {done} steps of {label}")
    nnx.update(model, *carry[:2])
    return done


def training_progress(*more: TextColumn, console: Console | None = None) -> Progress:
    """Returns a progress bar of steps, whose tasks have the field `loss`.

    Args:
        more: Columns behind the loss.
        console: Where it is shown.
    """
    return Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        *more,
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
        console=console,
    )
