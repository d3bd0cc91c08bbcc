"""Ten robots side by side, one start, ten ids: what a policy does, as a GIF.

    python -m examples.metaworld.animate runs/metaworld/conditioned --out robots.gif

It needs no display: on Linux, MuJoCo draws with EGL, unless the variable MUJOCO_GL says otherwise.
The goals are not drawn, as the policy does not see them either.
"""

from __future__ import annotations

import dataclasses
import os
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated

import numpy as np
import tyro
from jaxtyping import UInt8
from PIL import Image, ImageDraw

if __name__ == "__main__" and sys.platform == "linux":
    os.environ.setdefault("MUJOCO_GL", "egl")  # MuJoCo reads it when it is imported
try:
    from examples.metaworld.film import EVERY, FilmedWorld
except Exception as error:  # of many kinds, when a library is missing
    raise (SystemExit if __name__ == "__main__" else ImportError)(
        f"MuJoCo cannot be imported for drawing: {error} "
        f"MUJOCO_GL is {os.environ.get('MUJOCO_GL')!r}. Install EGL, on Debian with "
        "apt install libegl1 libegl-mesa0 libgl1-mesa-dri, or set MUJOCO_GL to egl, osmesa or glfw."
    ) from error

from examples.metaworld.collect import FPS
from examples.metaworld.episodes import Episode, Job, run_episode
from examples.metaworld.rollout import find_function
from examples.metaworld.tasks import TEN, find_tasks

_COLUMNS = 5
_TITLE = 14  # pixels above a picture
_LAST = 20  # pictures at the end, in which all have stopped

Picture = UInt8[np.ndarray, "h w 3"]


@dataclasses.dataclass
class Args:
    """Films a policy while it is told one task after the other, from the same start.

    Attributes:
        checkpoint: The folder of the parameters.
        out: The GIF.
        tasks: Names of the tasks.
        actor: The function that loads the checkpoint, see `examples.metaworld.rollout`.
        start: The number of the start.
        seed: The seed of starts and noise; by default that of the demo's picture of paths.
        size: Pixels along the side of a picture.
    """

    checkpoint: Annotated[Path, tyro.conf.Positional]
    out: Path = Path("runs/metaworld/robots.gif")
    tasks: tuple[str, ...] = tuple(task.name for task in TEN)
    actor: str = "examples.metaworld.train:load_actor"
    start: int = 0
    seed: int = 100
    size: int = 160


def main(args: Args) -> list[Episode]:
    """Writes the GIF; returns the episodes."""
    tasks, actor = find_tasks(args.tasks), find_function(args.actor)(args.checkpoint)
    world = _open(args.size)
    episodes, films = [], []
    for task in tasks:
        episodes.append(run_episode(world, actor, Job(task, task, args.start), seed=args.seed))
        films.append(world.pictures)
        print(f"{task.name}: {'done' if episodes[-1].done == task else 'not done'}")
    world.close()
    titles = [_title(episode) for episode in episodes]
    length = max(map(len, films)) + _LAST
    frames = [
        _beside([film[min(i, len(film) - 1)] for film in films], titles) for i in range(length)
    ]
    args.out.parent.mkdir(parents=True, exist_ok=True)
    first, *rest = map(_palette, frames)
    pause = 1000 * EVERY // FPS  # milliseconds
    first.save(args.out, save_all=True, append_images=rest, duration=pause, loop=0)
    print(f"Look at {args.out}.")
    return episodes


def _open(size: int) -> FilmedWorld:
    try:
        return FilmedWorld(size)
    except RuntimeError as error:
        raise SystemExit(str(error)) from error


def _title(episode: Episode) -> str:
    mark = "" if episode.done == episode.job.asked else " (failed)"
    return episode.job.asked.name + mark


def _beside(
    pictures: Sequence[Picture], titles: Sequence[str]
) -> UInt8[np.ndarray, "page_h page_w 3"]:
    """Returns the pictures in rows, each with its title."""
    size = len(pictures[0])
    rows = -(-len(pictures) // _COLUMNS)
    page = Image.new("RGB", (_COLUMNS * size, rows * (size + _TITLE)), "white")
    draw = ImageDraw.Draw(page)
    for i, (picture, title) in enumerate(zip(pictures, titles, strict=True)):
        x, y = i % _COLUMNS * size, i // _COLUMNS * (size + _TITLE)
        draw.text((x + 2, y + 1), title, fill="black", font_size=10)
        page.paste(Image.fromarray(picture), (x, y + _TITLE))
    return np.asarray(page)


def _palette(frame: Picture) -> Image.Image:
    return Image.fromarray(frame).quantize(64, dither=Image.Dither.NONE)


if __name__ == "__main__":
    main(tyro.cli(Args))
