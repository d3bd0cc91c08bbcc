"""The training loop: from a plan to a run's folder."""

from __future__ import annotations

import collections
import contextlib
import dataclasses
import json
import signal
import tempfile
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np
from jaxtyping import Int
from rich.console import Console
from rich.text import Text

from examples.lerobot.stats import save_stats
from examples.pi0.augment import RECIPES
from examples.pi0.beside import save_transform
from examples.pi0.training.checkpoints import Checkpoints
from examples.pi0.training.configs import CONFIG_FILE, to_json
from examples.pi0.training.data import RunData
from examples.pi0.training.devices import batch_sharding, state_shardings
from examples.pi0.training.fingerprint import FINGERPRINT_FILE, fingerprint
from examples.pi0.training.folder import run_folder
from examples.pi0.training.log import RunLog, memory
from examples.pi0.training.pictures import draw_batch
from examples.pi0.training.plan import Plan
from examples.pi0.training.step import Metrics, Trainer, TrainState
from examples.pi0.training.summary import write_summary
from examples.pi0.training.validation import Validation
from examples.pi0.training.watchdog import Watchdog
from examples.pi0.training.weights import load_weights

_SLOW_DATA = 0.2
_SHOWN = 3  # prompts
_BOUND = 20.0  # of normalized numbers; larger ones mean statistics of other data


class DivergedError(RuntimeError):
    """Raised when the loss is NaN or Inf. The message names step and frames."""


@dataclasses.dataclass(frozen=True)
class Run:
    """Holds what the parts of the loop share.

    Attributes:
        plan: The plan.
        trainer: The step.
        shardings: Where the arrays of the state are.
        checkpoints: The checkpoints.
        log: The log.
        data: The data.
    """

    plan: Plan
    trainer: Trainer
    shardings: TrainState
    checkpoints: Checkpoints
    log: RunLog
    data: RunData


def train(plan: Plan, console: Console) -> int:
    """Runs a plan; returns the number of finished steps.

    After SIGTERM or Ctrl-C the state is saved.

    Raises:
        DivergedError: The loss is NaN or Inf. The last checkpoint is as before.
    """
    config = plan.config
    rows = batch_sharding(plan.mesh) if plan.mesh.size > 1 else None
    trainer = Trainer(config, plan.blueprint, RECIPES[config.data.augmentation], rows)
    shardings = state_shardings(plan.mesh, trainer.shapes)
    assert plan.data is not None
    with run_folder(config) as folder, Watchdog(config.stall_seconds) as watchdog:
        with open_checkpoints(folder, plan) as checkpoints:
            watchdog.phase("loading the weights")
            state = _begin(plan, trainer, shardings, checkpoints)
            with RunLog(folder, config, int(state.step), console) as log:
                run = Run(plan, trainer, shardings, checkpoints, log, plan.data)
                state = _loop(run, state, watchdog)
                watchdog.phase("waiting for the last checkpoint")
        write_summary(folder, plan, int(state.step))
        return int(state.step)


@contextlib.contextmanager
def open_checkpoints(folder: Path, plan: Plan) -> Iterator[Checkpoints]:
    """Gives the checkpoints of a run; afterwards all that was saved is complete."""
    config = plan.config
    checkpoints = Checkpoints(
        folder, plan.blueprint, max_to_keep=config.max_to_keep, keep_period=config.keep_period
    )
    try:
        yield checkpoints
        checkpoints.wait()
    finally:
        checkpoints.close()


def _begin(
    plan: Plan, trainer: Trainer, shardings: TrainState, checkpoints: Checkpoints
) -> TrainState:
    """Returns the first state: that of the last checkpoint, or that of the weights."""
    config = plan.config
    if config.resume and checkpoints.last is not None:
        return checkpoints.restore(trainer.shapes, shardings)
    trained, frozen = plan.blueprint.split(plan.blueprint.shapes)
    places = state_shardings(plan.mesh, plan.blueprint.shapes)
    flat = load_weights(
        plan.checkpoint, plan.blueprint, places, plan.vocabulary, jax.random.key(config.seed)
    )
    trained, frozen = plan.blueprint.split(flat)
    state = jax.jit(trainer.start, out_shardings=shardings)(trained, frozen)
    return state._replace(seen=jax.device_put(_frames_seen(plan), shardings.seen))


def _frames_seen(plan: Plan) -> Int[np.ndarray, " tasks"]:
    """Returns the number of frames of each task in the training of the weights, 0 if unknown."""
    about = None if plan.checkpoint is None else plan.checkpoint.conditioning
    names = plan.vocabulary if plan.config.model.num_tasks else ()
    if about is None or about.vocabulary is None or about.frames_seen is None:
        return np.zeros(len(names), np.int32)
    counts = dict(zip(about.vocabulary, about.frames_seen, strict=True))
    return np.array([counts.get(name) or 0 for name in names], np.int32)


def _loop(run: Run, state: TrainState, watchdog: Watchdog) -> TrainState:
    config, first = run.plan.config, int(state.step)
    step = jax.jit(run.trainer.step, donate_argnums=0, out_shardings=(run.shardings, None))
    validation = Validation(run.trainer, run.data, list(run.plan.vocabulary))
    batches = run.data.train_batches(config.batch_size, first=first, last=config.num_train_steps)
    meter = _Meter(run)
    place = batch_sharding(run.plan.mesh)
    with _stop_signal() as stopped, contextlib.closing(batches):
        if first == 0:
            watchdog.phase("validation before the first step")
            _validate(run, validation, state, 0, is_last=False)
        for number in range(first, config.num_train_steps):
            watchdog.phase(f"reading batch {number}")
            with meter.waiting():
                batch = next(batches)
            if number == first:
                _look_at(run, batch)
            arrays = jax.device_put(batch, place)
            watchdog.phase(f"step {number}{' (compiling)' if number == first else ''}")
            state, metrics = step(state, arrays)
            meter.add(number, metrics, batch)
            done = number + 1
            is_last = done == config.num_train_steps or bool(stopped)
            if done % config.val_log_interval == 0 or is_last:
                watchdog.phase(f"validation after {done} steps")
                meter.finish()
                _validate(run, validation, state, done, is_last=is_last)
            if done % config.save_interval == 0 or is_last:
                watchdog.phase(f"saving step {done}")
                meter.finish()
                _save(run, state, done)
            if stopped:
                run.log.say(f"[yellow]stopped by a signal after {done} steps; saved")
                break
    return state


class _Meter:
    """Reads what steps measured, one step late, so that the device never waits for it."""

    def __init__(self, run: Run):
        self._run = run
        self._pending: collections.deque[tuple[int, Metrics, Mapping[str, Any]]] = (
            collections.deque()
        )
        self._losses: list[float] = []
        self._began = time.monotonic()
        self._waited = 0.0

    @contextlib.contextmanager
    def waiting(self) -> Iterator[None]:
        """Counts the time in which the loop waits for data."""
        begin = time.monotonic()
        yield
        self._waited += time.monotonic() - begin

    def add(self, number: int, metrics: Metrics, batch: Mapping[str, Any]) -> None:
        """Takes what a step measured."""
        places = {key: batch[key] for key in ("position", "episode_index", "frame_index")}
        self._pending.append((number, metrics, places))
        if len(self._pending) > 1:
            self._read()

    def finish(self) -> None:
        """Reads all that is pending. Afterwards the state is known to be finite."""
        while self._pending:
            self._read()

    def _read(self) -> None:
        number, metrics, places = self._pending.popleft()
        values = {name: float(value) for name, value in metrics.items()}
        if not np.isfinite([values["loss"], values["grad_norm"]]).all():
            raise DivergedError(_explain(self._run, number, values, places))
        self._losses.append(values["loss"])
        done, config = number + 1, self._run.plan.config
        if done % config.log_interval and done != config.num_train_steps:
            return
        elapsed, count = time.monotonic() - self._began, len(self._losses)
        mean, wait = float(np.mean(self._losses)), self._waited / max(elapsed, 1e-9)
        rate = count / max(elapsed, 1e-9)
        timing = {"steps_per_second": rate, "data_wait_share": wait}
        timing["frames_per_second"] = rate * config.batch_size
        self._run.log.write(done, {**values, "loss": mean, **timing, **memory()})
        self._run.log.show(done, mean, rate, wait)
        if wait > _SLOW_DATA and done > config.log_interval:
            self._run.log.say(
                f"[yellow]Training waits for data in {wait:.0%} of the time. Raise "
                "--data.num_workers, or store smaller images."
            )
        self._losses.clear()
        self._began, self._waited = time.monotonic(), 0.0


def _explain(run: Run, number: int, values: Mapping[str, float], places: Mapping[str, Any]) -> str:
    frames = list(
        zip(places["episode_index"].tolist(), places["frame_index"].tolist(), strict=True)
    )
    return (
        f"step {number} has loss {values['loss']} and gradient norm {values['grad_norm']}. Nothing "
        f"of it was saved; the last checkpoint is that of step {run.checkpoints.last}. The frames "
        f"of the batch are (episode, frame): {frames}. Look for broken numbers in them; otherwise "
        "lower --optimizer.learning_rate, and resume with --resume."
    )


def _look_at(run: Run, batch: Mapping[str, Any]) -> None:
    """Refuses numbers that do not fit the statistics; shows prompts and pictures of the batch."""
    for name in ("state", "actions"):
        largest = float(np.abs(batch[name]).max())
        if not largest <= _BOUND:
            raise ValueError(
                f"the first batch has normalized {name} of {largest:.0f}. The statistics are those "
                "of other data, or a few numbers of the data are broken. Look at the dataset, or "
                "normalize by its own statistics with --data.stats dataset."
            )
    draw_batch(batch, run.plan.config.folder / "first_batch.png")
    tokenizer, names = run.data.transform.tokenizer, list(run.plan.vocabulary)
    ids, rows = np.unique(batch["task_id"], return_index=True)
    for task, row in list(zip(ids.tolist(), rows.tolist(), strict=True))[:_SHOWN]:
        tokens, mask = batch["tokenized_prompt"][row], batch["tokenized_prompt_mask"][row]
        run.log.say(Text(f"prompt of {names[task]!r}: {tokenizer.decode(tokens, mask)!r}"))


def _validate(
    run: Run, validation: Validation, state: TrainState, done: int, *, is_last: bool
) -> None:
    values = validation.measure(state)
    # Before the first step a fresh table is not used, which is no finding.
    diagnosis = validation.diagnose(state, at_once=is_last) if done else None
    if diagnosis is not None:
        confusion = diagnosis.measurements.confusion
        if confusion is not None:
            values["ids"] = {
                "right_loss": confusion.right,
                "wrong_loss": confusion.wrong,
                "accuracy": confusion.accuracy,
            }
        values["findings"] = [str(finding) for finding in diagnosis.findings]
    run.log.write(done, values)
    best = values.get("val_ema", values["val"])
    run.log.say(f"validation after {done} steps: loss {best['all']:.4f}")
    for finding in values.get("findings", []):
        run.log.say(f"[yellow]{finding}")


def _save(run: Run, state: TrainState, done: int) -> None:
    begin = time.monotonic()
    if run.checkpoints.last == done:
        return
    size = run.checkpoints.save(state, assets(run, state))
    seconds = time.monotonic() - begin
    run.log.write(done, {"save_seconds": seconds, "save_gib": size / 2**30})


def assets(run: Run, state: TrainState) -> dict[str, bytes]:
    """Returns the files that inference needs besides the parameters."""
    plan, transform = run.plan, run.data.transform
    seen = np.asarray(state.seen).tolist()
    about = run.trainer.blueprint.conditioning(plan.vocabulary, seen) if seen else None
    with tempfile.TemporaryDirectory() as folder:
        save_transform(transform, folder)
        save_stats(Path(folder, "norm_stats.json"), transform.stats)
        if about is not None:
            about.save(folder)
        files = {path.name: path.read_bytes() for path in Path(folder).iterdir()}
    files[CONFIG_FILE] = to_json(plan.config).encode()
    files["tokenizer.model"] = Path(transform.tokenizer.path).read_bytes()
    files[FINGERPRINT_FILE] = json.dumps(fingerprint(run.data.train)).encode()
    return files


@contextlib.contextmanager
def _stop_signal() -> Iterator[list[int]]:
    """Gives a list that is not empty once SIGTERM or Ctrl-C came."""
    came: list[int] = []

    def note(number: int, _: Any) -> None:
        if came:  # the second one ends the program at once
            raise KeyboardInterrupt
        came.append(number)

    old = {number: signal.signal(number, note) for number in (signal.SIGTERM, signal.SIGINT)}
    try:
        yield came
    finally:
        for number, handler in old.items():
            signal.signal(number, handler)
