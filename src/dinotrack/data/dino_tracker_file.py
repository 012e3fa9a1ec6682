"""The published DINO-Tracker benchmark file: queries and targets of TAP-Vid-DAVIS and BADJA videos, beside folders of frames."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinotrack.data.badja import foreground_areas
from dinotrack.data.benchmarks import (
    BenchmarkClip,
    check_positions,
    choose,
    flags,
    in_frame,
    numbers,
    plain_name,
    resized,
    tracked_size,
)
from dinotrack.data.pickles import read_pickle
from dinotrack.data.video import load_video
from dinotrack.errors import DinotrackError
from dinotrack.geometry import rescale
from dinotrack.structs import PointTruth, check_mode

WEIGHTS = Path("models") / "dino_tracker"
"""Where the published weights of a video lie in its folder."""


class DinoTrackerFile:
    """{"videos": [...]} in a pickle; frames lie in `videos`/<video_idx>/video, published weights in .../models/dino_tracker.

    Each video has `video_idx`, `h`, `w`, and by query frame: `query_points` [[x, y], ...], `target_points` (N, T, 2), both in
    pixels of (w, h), and `occluded` (N, T). With `segmentations` (T, H, W) it is scored as BADJA, else as TAP-Vid, whose
    queries were chosen by `mode`. `resolution` is that of `tracked_size`; null takes the frames as they are.
    """

    def __init__(
        self,
        path: str | Path,
        videos: str | Path | None = None,
        *,
        resolution: int | None = None,
        mode: str = "strided",
    ) -> None:
        check_mode(mode)
        self.path, self.resolution, self.mode = Path(path), resolution, mode
        self.videos = Path(videos) if videos else self.path.parent

    def names(self) -> list[str]:
        return list(self._content())

    def open(self, name: str) -> BenchmarkClip:
        content = self._content()
        entry = content[choose(name, list(content), str(self.path))]
        where, folder = f"{self.path}, video {name}", self.videos / name
        video = load_video(folder / "video")
        stored = (whole(entry, "w", where), whole(entry, "h", where))
        queries, xy, visible = self._tracks(entry, stored, len(video), where)
        size = tracked_size(video.size, self.resolution)
        queries = torch.cat([queries[:, :1], in_frame(queries[:, 1:], stored)], 1)
        everywhere, areas = torch.arange(len(video)), torch.zeros(0)
        if "segmentations" in entry:  # BADJA's thresholds are in pixels of (w, h)
            masks = flags_or_labels(entry["segmentations"], len(video), where)
            areas = foreground_areas(masks, everywhere, size=stored)
        truth = PointTruth(queries, xy, visible, everywhere, areas, stored, self.mode)
        weights = folder / WEIGHTS
        return BenchmarkClip(name, resized(video, size), truth, str(weights) if weights.is_dir() else "")

    def _content(self) -> dict[str, dict[str, Any]]:
        """The videos by their number."""
        content = read_pickle(self.path)
        entries = content.get("videos") if isinstance(content, dict) else None
        if not isinstance(entries, list) or not all(isinstance(entry, dict) for entry in entries):
            raise DinotrackError(f"{self.path} has no list of videos; expected the published benchmark file")
        named = {plain_name(entry.get("video_idx"), str(self.path)): entry for entry in entries}
        if len(named) < len(entries):
            raise DinotrackError(f"{self.path} has two videos of one video_idx")
        return named

    def _tracks(
        self, entry: dict[str, Any], size: tuple[int, int], frames: int, where: str
    ) -> tuple[Float[Tensor, "n 3"], Float[Tensor, "n t 2"], Bool[Tensor, "n t"]]:
        """Queries and their answers of all query frames, one after the other."""
        asked = by_frame(entry, "query_points", where)
        targets, occluded = by_frame(entry, "target_points", where), by_frame(entry, "occluded", where)
        queries, xy, visible = [torch.zeros(0, 3).double()], [torch.zeros(0, frames, 2).double()], [empty(frames)]
        for frame in sorted(asked):
            if not 0 <= frame < frames or not asked.keys() == targets.keys() == occluded.keys():
                raise DinotrackError(
                    f"{where}: query_points name frame {frame} of {frames}; expected frames of the video, and the same in "
                    "target_points and occluded"
                )
            if not len(asked[frame]):
                continue
            points = torch.from_numpy(numbers(asked[frame], (None, 2), "query_points", where).astype(np.float64))
            shape = (len(points), frames)
            answers = torch.from_numpy(numbers(targets[frame], (*shape, 2), "target_points", where).astype(np.float64))
            seen = ~flags(occluded[frame], shape, "occluded", where)
            check_positions(rescale(answers, size, (1, 1)), seen, "target_points", where)
            check_positions(
                rescale(points[:, None], size, (1, 1)), torch.ones(len(points), 1) > 0, "query_points", where
            )
            queries.append(torch.cat([torch.full((len(points), 1), frame).double(), points], 1))
            xy.append(answers)
            visible.append(seen)
        return torch.cat(queries), torch.cat(xy), torch.cat(visible)


def empty(frames: int) -> Bool[Tensor, "0 t"]:
    return torch.zeros(0, frames, dtype=torch.bool)


def by_frame(entry: dict[str, Any], field: str, where: str) -> dict[int, Any]:
    """A field that has something for each query frame.

    Raises:
        DinotrackError: when it is no dict of frame numbers.
    """
    try:
        return {int(frame): value for frame, value in entry[field].items()}
    except (KeyError, AttributeError, TypeError, ValueError) as error:
        raise DinotrackError(f"{where}: {field} is no dict of query frames") from error


def whole(entry: dict[str, Any], field: str, where: str) -> int:
    """A length in pixels.

    Raises:
        DinotrackError: when it is none.
    """
    value = entry.get(field)
    if not isinstance(value, int | float) or not 1 <= value < 2**16 or value != int(value):
        raise DinotrackError(f"{where}: {field} is {value!r}; expected a number of pixels")
    return int(value)


def flags_or_labels(value: Any, frames: int, where: str) -> Bool[Tensor, "t h w"]:
    """Masks: anything but 0 is foreground."""
    return torch.from_numpy(numbers(value, (frames, None, None), "segmentations", where) != 0)
