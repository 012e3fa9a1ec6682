"""Reading and writing: videos, queries, tracks, and the synthetic video."""

import json
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from dinotrack.data.synthetic import Clip, synthetic_clip
from dinotrack.data.video import load_video
from dinotrack.errors import DinotrackError
from dinotrack.structs import Video

__all__ = ["SYNTHETIC", "Clip", "load_video", "open_described", "open_synthetic", "open_video", "synthetic_clip"]

SYNTHETIC = "synthetic:"
"""A path of this kind names a synthetic video by its settings, so that it can be made again."""


def open_synthetic(path: str) -> Clip:
    """The clip that `path`, "synthetic:" and JSON settings, stands for; its video bears that path.

    Raises:
        DinotrackError: for settings that are no such JSON, or that `synthetic_clip` refuses.
    """
    try:
        settings = dict(json.loads(path.removeprefix(SYNTHETIC) or "{}"))
        if "size" in settings:
            settings["size"] = tuple(settings["size"])
        clip = synthetic_clip(**settings)
        return replace(clip, video=replace(clip.video, path=path))
    except (TypeError, ValueError) as error:
        raise DinotrackError(f"{path!r} does not describe a synthetic video: {error}") from error


def open_video(path: str, masks: str | None = None, *, start: int = 0, stop: int | None = None) -> Video:
    """A video file, a folder of frames, or a synthetic video by its path.

    Raises:
        DinotrackError: as `load_video` and `open_synthetic` do.
    """
    if path.startswith(SYNTHETIC):
        return open_synthetic(path).video[slice(start, stop)]
    return load_video(path, masks, start=start, stop=stop)


def open_described(about: Mapping[str, Any]) -> Video:
    """The video that a checkpoint describes: the same frames of the same file.

    Raises:
        DinotrackError: when it has no path, or the video cannot be read there.
    """
    if not about["path"]:
        raise DinotrackError("the checkpoint was fitted to a video without a path; give the video")
    return open_video(about["path"], start=about["start"], stop=about["start"] + about["frames"])
