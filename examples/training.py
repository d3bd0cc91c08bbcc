"""A short training loop: a progress bar with loss and time left; Ctrl-C loses nothing."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import optax
from flax import nnx
from jaxtyping import Array, Float
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeElapsedColumn,
    TimeRemainingColumn,
)

_REPORT_EVERY = 10  # steps; reading the loss waits for the device


def fit(
    model: nnx.Module,
    loss_fn: Callable[[Any, Array, Any], Float[Array, ""]],
    batches: Iterator[Any],
    *,
    steps: int,
    learning_rate: float,
    seed: int = 0,
    label: str = "training",
) -> int:
    """Trains a module in place; returns the steps done, fewer than `steps` after a Ctrl-C.

    AdamW with a clipped gradient, a warm-up over a twentieth of the steps and a cosine decay to a
    tenth of the learning rate.

    Args:
        model: The module. It always holds the weights of the last finished step afterwards.
        loss_fn: `loss_fn(model, rng, batch)`, a scalar.
        batches: Yields what `loss_fn` takes.
        steps: How many steps.
        learning_rate: Its peak.
        seed: Of `rng`: step `i` gets the same one in every run.
        label: What the progress bar calls it.
    """
    schedule = optax.warmup_cosine_decay_schedule(
        0.0, learning_rate, max(steps // 20, 1), max(steps, 2), learning_rate / 10
    )
    optimizer = optax.chain(optax.clip_by_global_norm(1.0), optax.adamw(schedule, b2=0.95))
    graphdef, params, rest = nnx.split(model, nnx.Param, ...)

    @jax.jit
    def step(carry, batch, index):
        params, rest, optimizer_state = carry
        rng = jax.random.fold_in(jax.random.key(seed), index)

        def loss(params):
            merged = nnx.merge(graphdef, params, rest)
            value = loss_fn(merged, rng, batch)
            return value, nnx.split(merged, nnx.Param, ...)[2]

        (value, new_rest), grads = jax.value_and_grad(loss, has_aux=True)(params)
        updates, optimizer_state = optimizer.update(grads, optimizer_state, params)
        return (optax.apply_updates(params, updates), new_rest, optimizer_state), value

    carry = (params, rest, optimizer.init(params))
    done = 0
    with _progress() as progress:
        bar = progress.add_task(label, total=steps, loss=float("nan"))
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


def _progress() -> Progress:
    return Progress(
        TextColumn("{task.description:28}"),
        BarColumn(),
        MofNCompleteColumn(),
        TextColumn("loss {task.fields[loss]:.4f}"),
        TimeElapsedColumn(),
        TextColumn("left"),
        TimeRemainingColumn(),
    )
