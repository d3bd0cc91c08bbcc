"""The checkpoints of a run: `RUN/STEP` with `params`, `train_state` and `assets`.

`params` has the layout of the released weights. Everything that inference needs besides them is in
`assets`, so that the folder of a step is all that a robot needs.
"""

from __future__ import annotations

import dataclasses
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import orbax.checkpoint as ocp

from examples.pi0.training.blueprint import Blueprint, nest
from examples.pi0.training.step import TrainState
from taskcond.checkpoint import Checkpoint, open_checkpoint
from taskcond.trees import flatten

STATE, PARAMS, ASSETS = "train_state", "params", "assets"


class AssetsHandler(ocp.CheckpointHandler):
    """Copies the files that inference needs into a checkpoint."""

    def save(self, directory: Any, args: SaveAssets) -> None:
        """Writes the files of `args`."""
        for name, content in args.files.items():
            Path(directory, name).write_bytes(content)

    def restore(self, directory: Any, args: RestoreAssets | None = None) -> dict[str, bytes]:
        """Reads all files."""
        return {path.name: path.read_bytes() for path in Path(directory).iterdir()}


@ocp.args.register_with_handler(AssetsHandler, for_save=True)
@dataclasses.dataclass
class SaveAssets(ocp.args.CheckpointArgs):
    """The files to write.

    Attributes:
        files: The content of each file by its name.
    """

    files: Mapping[str, bytes]


@ocp.args.register_with_handler(AssetsHandler, for_restore=True)
@dataclasses.dataclass
class RestoreAssets(ocp.args.CheckpointArgs):
    """Reads all files."""


class Checkpoints:
    """Saves and restores the state of a run.

    Saving goes on in the background. The state as a whole is kept of the last checkpoints only, and
    of those of `keep_period`.

    Args:
        folder: The folder of the run.
        blueprint: The model's.
        max_to_keep: How many checkpoints are kept.
        keep_period: Those of multiples of this are kept for good.
    """

    def __init__(
        self, folder: Path, blueprint: Blueprint, *, max_to_keep: int, keep_period: int | None
    ):
        self.folder = folder
        self._blueprint = blueprint
        self._manager = ocp.CheckpointManager(
            folder.absolute(),
            item_handlers={
                PARAMS: ocp.PyTreeCheckpointHandler(),
                STATE: ocp.PyTreeCheckpointHandler(),
                ASSETS: AssetsHandler(),
            },
            options=ocp.CheckpointManagerOptions(
                max_to_keep=max_to_keep, keep_period=keep_period, create=True
            ),
        )

    @property
    def last(self) -> int | None:
        """The step of the last complete checkpoint."""
        return self._manager.latest_step()

    def save(self, state: TrainState, assets: Mapping[str, bytes]) -> int:
        """Begins to save a state; returns its size in bytes.

        Raises:
            OSError: There is not enough space. Earlier checkpoints are as before.
        """
        # Of an earlier save: an error in the background shows here, and not never.
        self._manager.wait_until_finished()
        self._manager.check_for_errors()
        items = {
            PARAMS: {"params": nest({**flatten(state.best), **flatten(state.frozen)})},
            STATE: _saved_part(state),
        }
        size = sum(leaf.nbytes for leaf in jax.tree.leaves(items))
        free = shutil.disk_usage(self.folder).free
        if free < size:
            raise OSError(
                f"A checkpoint needs up to {size / 2**30:.1f} GiB, but {self.folder} has "
                f"{free / 2**30:.1f} GiB left. Free some space and resume with --resume. The last "
                f"checkpoint is that of step {self.last}."
            )
        items = _own(items)
        self._manager.save(
            int(state.step),
            args=ocp.args.Composite(
                **{name: ocp.args.PyTreeSave(tree) for name, tree in items.items()},
                **{ASSETS: SaveAssets(assets)},
            ),
        )
        return size

    def restore(self, shapes: TrainState, shardings: TrainState) -> TrainState:
        """Returns the state of the last checkpoint, each array in its shards."""
        step = self._manager.latest_step()
        assert step is not None
        target = _placed(shapes, shardings)
        params = nest({**flatten(target.best), **flatten(target.frozen)})
        result = self._manager.restore(
            step,
            args=ocp.args.Composite(
                **{
                    STATE: _restore_args(_saved_part(target)),
                    PARAMS: _restore_args({"params": params}),
                }
            ),
        )
        acting, frozen = self._blueprint.split(flatten(_own(result[PARAMS]["params"])))
        rest = _own(result[STATE])
        return TrainState(
            rest["step"],
            rest["params"] if shapes.average is not None else acting,
            rest["opt_state"],
            acting if shapes.average is not None else None,
            rest.get("seen", jnp.zeros(shapes.seen.shape, shapes.seen.dtype)),
            frozen,
        )

    def wait(self) -> None:
        """Waits until the last checkpoint is complete.

        Raises:
            Exception: Saving failed in the background.
        """
        self._manager.wait_until_finished()
        self._manager.check_for_errors()

    def close(self) -> None:
        """Waits, and frees the threads."""
        self._manager.close()


def _own(tree: Any) -> Any:
    """Copies arrays where the processor computes.

    There an array may share its memory with one of NumPy, which Orbax writes or has read, while the
    next step already reuses the memory of its arguments.
    """
    if jax.default_backend() != "cpu":
        return tree
    return jax.block_until_ready(jax.tree.map(jnp.copy, tree))


def open_last(folder: Path) -> Checkpoint | None:
    """Opens the parameters of the last complete checkpoint of a run, if there is one."""
    steps = ocp.utils.checkpoint_steps(folder) if folder.exists() else []
    return open_checkpoint(folder / str(max(steps)) / PARAMS) if steps else None


def _saved_part(state: TrainState) -> dict[str, Any]:
    """Returns what `params` does not have already. Nothing is written twice."""
    part: dict[str, Any] = {"step": state.step, "opt_state": state.opt_state}
    if state.seen.size:  # Orbax refuses arrays without elements
        part["seen"] = state.seen
    if state.average is not None:
        part["params"] = state.params
    return part


def _placed(shapes: TrainState, shardings: TrainState) -> TrainState:
    return jax.tree.map(
        lambda leaf, sharding: jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, sharding=sharding),
        shapes,
        shardings,
    )


def _restore_args(target: Any) -> Any:
    return ocp.args.PyTreeRestore(
        item=target, restore_args=ocp.checkpoint_utils.construct_restore_args(target)
    )
