"""What inference shares with training, kept beside a checkpoint.

`config.json` has the model's config, `norm_stats.json` the statistics, and `inputs.json` the
cameras and the format of the prompt.
"""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import Any, NamedTuple

from examples.lerobot.stats import Mode, load_stats, save_stats
from examples.pi0.config import Pi0Config
from examples.pi0.tokenizer import StrPath, Tokenizer
from examples.pi0.transform import FrameTransform, Place


def save_transform(transform: FrameTransform, folder: StrPath) -> None:
    """Writes the config, the statistics and the settings of a transform into a folder."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = transform.tokenizer
    inputs = {
        "cameras": dict(transform.cameras),
        "tokenizer": {
            "discrete_state": tokenizer.discrete_state,
            "task_prefix": tokenizer.task_prefix,
            "num_tasks": tokenizer.num_tasks,
        },
        "min_range": transform.min_range,
        "norm": transform.mode,
        "places": transform.places,
        "delta": transform.delta,
    }
    _write_json(folder / "config.json", dataclasses.asdict(transform.config))
    _write_json(folder / "inputs.json", inputs)
    save_stats(folder / "norm_stats.json", transform.stats)


class Inputs(NamedTuple):
    """The format of the model's inputs, as `inputs.json` has it.

    Attributes:
        cameras: The dataset's camera for each of the model's.
        tokenizer: Arguments of `Tokenizer.for_config`.
        min_range: See `FrameTransform`.
        norm: See `FrameTransform`.
        places: See `FrameTransform`.
        delta: See `FrameTransform`.
    """

    cameras: dict[str, str | None]
    tokenizer: dict[str, Any]
    min_range: float
    norm: Mode | None
    places: tuple[Place, ...]
    delta: tuple[bool, ...]


def load_inputs(folder: Path) -> Inputs:
    """Reads an `inputs.json`."""
    inputs = json.loads((folder / "inputs.json").read_text(encoding="utf-8"))
    return Inputs(
        inputs["cameras"],
        inputs["tokenizer"],
        inputs["min_range"],
        inputs.get("norm"),
        tuple(Place(*place) for place in inputs.get("places", ())),
        tuple(inputs.get("delta", ())),
    )


def load_transform(folder: StrPath, tokenizer_path: StrPath) -> FrameTransform:
    """Reads what `save_transform` wrote.

    Args:
        folder: Where the files are.
        tokenizer_path: The SentencePiece model, which is not one of the files.

    Raises:
        FileNotFoundError: A file is missing.
    """
    folder = Path(folder)
    config = load_config(folder / "config.json")
    inputs = load_inputs(folder)
    return FrameTransform(
        config,
        Tokenizer.for_config(config, tokenizer_path, **inputs.tokenizer),
        inputs.cameras,
        load_stats(folder / "norm_stats.json"),
        min_range=inputs.min_range,
        norm=inputs.norm,
        places=inputs.places,
        delta=inputs.delta,
    )


def load_config(path: StrPath) -> Pi0Config:
    """Reads a `config.json`."""
    return Pi0Config.from_dict(json.loads(Path(path).read_text(encoding="utf-8")))


def find_beside(checkpoint: Path, name: str) -> Path | None:
    """Returns the folder of a file that lies in the checkpoint or in one of three folders above.

    These are its step, its run and the experiment. It may also lie in `assets` of one of them. The
    nearest file is taken.
    """
    path = checkpoint.absolute()
    places = [place / part for place in (path, *path.parents[:3]) for part in ("", "assets")]
    return next((place for place in places if (place / name).exists()), None)


def _write_json(path: Path, content: object) -> None:
    path.write_text(json.dumps(content, indent=2) + "\n", encoding="utf-8")
