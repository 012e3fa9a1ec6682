"""Reading and writing: videos, queries, tracks, and the synthetic video."""

import json
import math
from collections.abc import Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any

from dinotrack.data.synthetic import Clip, synthetic_clip
from dinotrack.data.video import load_masks, load_video
from dinotrack.errors import DinotrackError, reason_of
from dinotrack.structs import Video

__all__ = ["SYNTHETIC", "Clip", "load_video", "open_described", "open_synthetic", "open_video", "synthetic_clip"]

SYNTHETIC = "synthetic:"
"""A path of this kind names a synthetic video by its settings, so that it can be made again."""
MOST_PIXELS = 2**31
"""Of all frames of one: the path may come with a stranger's checkpoint."""


def open_synthetic(path: str, *, start: int = 0, stop: int | None = None) -> Clip:
    """Frames [start, stop) of the clip that `path`, "synthetic:" and JSON settings, stands for; its video bears that path.

    Raises:
        DinotrackError: for settings that are no such JSON, or that `synthetic_clip` refuses.
    """
    clip, part = _rendered(path), slice(start, stop)
    return replace(clip, video=clip.video[part], xy=clip.xy[:, part], visible=clip.visible[:, part])


@lru_cache(maxsize=1)
def _rendered(path: str) -> Clip:
    """The whole clip, kept until another is asked for: a run wants first its frames, then its tracks."""
    try:
        settings = dict(json.loads(path.removeprefix(SYNTHETIC) or "{}"))
        if "size" in settings:
            settings["size"] = tuple(settings["size"])
        asked = settings.get("frames", 1) * math.prod(settings.get("size", (1, 1)))
        if asked > MOST_PIXELS:
            raise ValueError(f"{asked} pixels in all; expected at most {MOST_PIXELS}")
        clip = synthetic_clip(**settings)
    except (TypeError, ValueError, OverflowError, RecursionError) as error:
        raise DinotrackError(f"{path[:200]!r} does not describe a synthetic video: {reason_of(error)}") from error
    return replace(clip, video=replace(clip.video, path=path))


def open_video(
    path: str,
    masks: str | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
    max_side: int | None = None,
    most: float | None = None,
) -> Video:
    """A video file, a folder of frames, or a synthetic video by its path; frames [start, stop), no larger than `max_side`.

    `most` bounds the bytes of a file's frames, as in `load_video`.

    Raises:
        DinotrackError: as `load_video` and `open_synthetic` do.
    """
    if not path.startswith(SYNTHETIC):
        return load_video(path, masks, start=start, stop=stop, max_side=max_side, most=most)
    video = open_synthetic(path, start=start, stop=stop).video
    return replace(video, masks=load_masks(masks, video, start=start, stop=stop)) if masks else video


def open_described(about: Mapping[str, Any]) -> Video:
    """The video that a checkpoint describes: the same frames of the same file.

    Raises:
        DinotrackError: when it has no path, or the video cannot be read there.
    """
    if not about["path"]:
        raise DinotrackError("the checkpoint was fitted to a video without a path; give the video")
    part = {"start": about["start"], "stop": about["start"] + about["frames"]}
    return open_video(about["path"], **part, max_side=about.get("max_side"))
