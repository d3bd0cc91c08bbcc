"""The preflight of videos: each must hold its episodes, where `meta/episodes` says, and no others.

The end of each video is read, and a few frames of a few videos, by random access.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

from av.error import FFmpegError

from .layout import Episode, Layout
from .problems import Problem
from .report import Notes
from .video import VideoInfo, VideoReader, probe

_SAMPLED = 4  # videos of a camera from which frames are read
_DEPTH_KEYS = (
    "depth_unit",
    "video.pix_fmt",
    "video.depth_min",
    "video.depth_max",
    "video.shift",
    "video.use_log",
)
_SHOWN = 5  # gaps that a warning lists


def scan_videos(
    layout: Layout, episodes: Sequence[Episode], cameras: Sequence[str], notes: Notes
) -> dict[str, tuple[int, int]]:
    """Returns the size of each video camera's images; adds a problem for each unusable video.

    Args:
        layout: The dataset. Problems are added to its `problems`; none is raised.
        episodes: The episodes to read.
        cameras: The cameras to read.
        notes: Lines for the report.
    """
    sizes = {}
    for camera in cameras:
        if camera not in layout.video_keys:
            continue
        videos = _probe_all(layout, episodes, camera)
        _check_lengths(layout, episodes, camera, videos)
        _check_neighbours(layout, episodes, camera, videos, notes)
        _check_access(layout, episodes, camera, videos)
        _check_depth(layout, camera, videos, notes)
        size = _common_size(layout, camera, videos, notes)
        if size is not None:
            sizes[camera] = size
    return sizes


def _common_size(
    layout: Layout, camera: str, videos: dict[Path, VideoInfo], notes: Notes
) -> tuple[int, int] | None:
    """Returns height and width of a camera's videos, if all have the same."""
    names: dict[tuple[int, int], str] = {}
    for path, video in videos.items():
        names.setdefault(video.size, layout.name(path))
    if len(names) != 1:
        if names:
            several = ", ".join(f"{h}x{w} in {name}" for (h, w), name in names.items())
            layout.problems.add(Problem.VIDEO_MISFIT, f"{camera}: several sizes: {several}")
        return None
    height, width = next(iter(names))
    codecs = ", ".join(sorted({video.codec for video in videos.values()}))
    notes.found.append(f"camera {camera}: {height}x{width}, {codecs}")
    declared = layout.info["features"][camera].get("shape") or []
    if not {height, width} <= set(declared):
        notes.warnings.append(
            f"camera {camera}: info.json declares {declared}, the images are {height}x{width}"
        )
    return height, width


def _probe_all(layout: Layout, episodes: Sequence[Episode], camera: str) -> dict[Path, VideoInfo]:
    """Returns what the readable videos of a camera say."""
    videos: dict[Path, VideoInfo | None] = {}
    for episode in episodes:
        if camera not in episode.videos:
            layout.problems.add(
                Problem.MISSING_FILE, f"no video of {camera} for episode {episode.index}"
            )
            continue
        path = episode.videos[camera].path
        if path not in videos:
            videos[path] = _probe(layout, path)
    return {path: video for path, video in videos.items() if video is not None}


def _probe(layout: Layout, path: Path) -> VideoInfo | None:
    name = layout.name(path)
    try:
        video = probe(path)
    except FileNotFoundError:
        layout.problems.add(Problem.MISSING_FILE, name)
        return None
    except (OSError, ValueError, FFmpegError) as error:
        layout.problems.add(Problem.UNREADABLE_FILE, f"{name}: {error}")
        return None
    if abs(video.fps - layout.fps) > 0.01 * layout.fps:
        layout.problems.add(
            Problem.VIDEO_MISFIT, f"{name}: {video.fps:g} fps, but the data {layout.fps:g}"
        )
    return video


def _check_depth(layout: Layout, camera: str, videos: dict[Path, VideoInfo], notes: Notes) -> None:
    """Adds a problem for each depth video that is not gray of more than 8 bits."""
    facts = layout.info["features"][camera].get("info") or {}
    is_depth = any(facts.get(key) for key in ("is_depth_map", "video.is_depth_map"))
    for path, video in videos.items() if is_depth else ():
        if not video.deep_gray:
            layout.problems.add(
                Problem.DEPTH, f"{layout.name(path)}: {video.codec}, {video.pixels}"
            )
    if any(video.deep_gray for video in videos.values()):
        scale = {key: facts[key] for key in _DEPTH_KEYS if key in facts}
        notes.warnings.append(
            f"camera {camera}: depth is given as the stored integers, uint16, not as a length; "
            f"info.json says of their scale: {scale or 'nothing'}"
        )


def _check_lengths(
    layout: Layout, episodes: Sequence[Episode], camera: str, videos: dict[Path, VideoInfo]
) -> None:
    """Adds a problem for each clip that has not as many frames as its episode."""
    for episode in episodes:
        clip = episode.videos.get(camera)
        if clip is None or clip.path not in videos:
            continue
        name = layout.name(clip.path)
        frames = max(0, round((videos[clip.path].end - clip.begin) * layout.fps) + 1)
        if frames < episode.length:
            layout.problems.add(
                Problem.VIDEO_TOO_SHORT,
                f"{name}: {frames} frames of episode {episode.index}, which has {episode.length}",
            )
        stated = None if clip.end is None else round((clip.end - clip.begin) * layout.fps)
        if stated not in (None, episode.length):
            layout.problems.add(
                Problem.VIDEO_PLACE,
                f"{name}: episode {episode.index} has {episode.length} frames, but from_timestamp "
                f"{clip.begin:.3f} and to_timestamp {clip.end:.3f} span {stated}",
            )


def _check_neighbours(
    layout: Layout,
    episodes: Sequence[Episode],
    camera: str,
    videos: dict[Path, VideoInfo],
    notes: Notes,
) -> None:
    """Adds a problem for frames that two episodes share, and a warning for those of no episode."""
    selected = {episode.index for episode in episodes}
    clips: dict[Path, list[tuple[int, int, str]]] = defaultdict(list)
    shared = []
    unused = []
    for episode in layout.episodes:  # also those that are not selected: they explain gaps
        clip = episode.videos.get(camera)
        if clip is not None and clip.path in videos:
            first = round(clip.begin * layout.fps)
            span = first, first + episode.length, f"episode {episode.index}"
            clips[clip.path].append(span)
    for path, spans in clips.items():
        total = round(videos[path].end * layout.fps) + 1
        ends = [(0, 0, "the start"), *sorted(spans), (total, total, "the end")]
        for (_, end, before), (begin, _, after) in pairwise(ends):
            between = f"{layout.name(path)}: {abs(begin - end)} frames between {before} and {after}"
            if begin > end:
                unused.append(between)
            elif begin < end and after != "the end":  # else it is too short, and a problem already
                shared.append((before, after, f"{between} belong to both"))
    for before, after, line in shared:
        if {before, after} <= {f"episode {index}" for index in selected}:
            layout.problems.add(Problem.VIDEO_PLACE, line)
        else:
            notes.warnings.append(f"camera {camera}: {line}; one of them is not selected")
    if unused:
        more = f"; and {len(unused) - _SHOWN} more" if len(unused) > _SHOWN else ""
        notes.warnings.append(
            f"camera {camera}: videos hold frames of no episode, so that images may be of another "
            f"moment; compare some with their episodes: {'; '.join(unused[:_SHOWN])}{more}"
        )


def _check_access(
    layout: Layout, episodes: Sequence[Episode], camera: str, videos: dict[Path, VideoInfo]
) -> None:
    """Adds a problem unless some frames of some videos can be read in any order."""
    whole = {}
    for episode in episodes:
        clip = episode.videos.get(camera)
        if clip is not None and clip.path in videos:
            last = clip.begin + (episode.length - 1) / layout.fps
            if last <= videos[clip.path].end + 0.5 / layout.fps:
                whole[clip.path] = episode.length, clip
    paths = list(whole)
    for path in paths[:: -(-len(paths) // _SAMPLED) or 1]:
        length, clip = whole[path]
        try:
            reader = VideoReader(path, layout.fps)
            for frame in (length - 1, 0, length // 2):
                reader.read(clip.begin + frame / layout.fps)
        except (OSError, ValueError, FFmpegError) as error:
            layout.problems.add(Problem.UNREADABLE_FILE, f"{layout.name(path)}: {error}")
