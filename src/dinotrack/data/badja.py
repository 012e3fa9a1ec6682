"""BADJA's annotated animal joints: its JSON file to raster positions, queries and foreground areas (method §7)."""

import logging
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.data.arrays import read_json
from dinotrack.data.benchmarks import BenchmarkClip, check_positions, choose, files_of, in_frame, plain_name, resized
from dinotrack.data.pictures import frame_numbers
from dinotrack.data.video import load_video
from dinotrack.errors import DinotrackError, reason_of
from dinotrack.geometry import rescale
from dinotrack.structs import PointTruth

log = logging.getLogger(__name__)

BADJA_SIZE = (854, 480)
"""(W, H) at which BADJA is scored (§7)."""

SCORED_JOINTS = (8, 9, 10, 12, 13, 14, 15, 18, 19, 20, 22, 23, 24, 25, 28, 31, 32, 33, 35, 36)
"""The 20 of a file's 37 joints, numbered from 0, that the benchmark scores."""


@dataclass(frozen=True)
class BadjaJoints:
    """The joints of one video in its annotated frames, in the order of the frames."""

    frames: Int[Tensor, " f"]
    """Numbers of the annotated frames."""
    xy: Float[Tensor, "n f 2"]
    """Raster positions in the video's pixels; without meaning where not visible."""
    visible: Bool[Tensor, "n f"]


def read_badja(
    json_path: str | os.PathLike[str],
    size: tuple[int, int] = BADJA_SIZE,
    source_size: tuple[int, int] = (1920, 1080),
    joints: Sequence[int] = SCORED_JOINTS,
    offset: float = 0.0,
) -> BadjaJoints:
    """Read the `joints` of a BADJA file, (row, column) at `source_size`, as positions in a video of (W, H) `size` (§7).

    A joint is visible where the file says so and it is not at (0, 0), which stands for not annotated. `offset`, in source
    pixels, is added to what is stored: 0 as published [C], 0.5 to read it as the index of a pixel.

    Raises:
        DinotrackError: for a file that cannot be read or is not laid out like BADJA's, or a joint that it has not.
    """
    entries = sorted((_read_entry(entry, json_path) for entry in _read_list(json_path)), key=lambda entry: entry[0])
    frames, places, flags = zip(*entries, strict=True)
    counts = {len(place) for place in places}
    if len(set(frames)) < len(frames) or len(counts) > 1:
        raise DinotrackError(f"{json_path} has frames {frames} of {sorted(counts)} joints; expected each once, alike")
    if any(not 0 <= joint < len(places[0]) for joint in joints):
        raise DinotrackError(f"{json_path} has {len(places[0])} joints; joints={tuple(joints)} asks for others")
    stored = torch.tensor(places, dtype=torch.float64).transpose(0, 1)[list(joints)]
    visible = torch.tensor(flags).T[list(joints)] & (stored != 0).any(-1)
    check_positions(rescale(stored.flip(-1), source_size, (1, 1)), visible, "joints", str(json_path))
    xy = rescale(stored.flip(-1) + offset, source_size, size)
    return BadjaJoints(torch.tensor(frames), xy.float(), visible)


def badja_queries(joints: BadjaJoints) -> tuple[Float[Tensor, "m 3"], Int[Tensor, " m"]]:
    """Queries (t, x, y) where joints are first visible, and the row of each; joints never visible have none (§7)."""
    index = joints.visible.any(1).nonzero()[:, 0]
    first = joints.visible[index].int().argmax(1)
    return torch.cat([joints.frames[first, None].float(), joints.xy[index, first]], 1), index


def foreground_areas(
    masks: Bool[Tensor, "t h w"], frames: Int[Tensor, " f"], size: tuple[int, int] = (854, 480)
) -> Float[Tensor, " f"]:
    """Foreground of `frames` in square pixels of a video of (W, H) `size`, whatever the size of the masks.

    Raises:
        DinotrackError: when there is no mask of one of the frames.
    """
    if len(frames) and not 0 <= int(frames.min()) <= int(frames.max()) < len(masks):
        raise DinotrackError(
            f"{len(masks)} masks, but frames {int(frames.min())} to {int(frames.max())} are annotated; "
            "give a video with a mask of each frame"
        )
    height, width = masks.shape[1:]
    return masks[frames].sum((1, 2)).double() * (size[0] * size[1] / max(height * width, 1))


def _read_list(json_path: str | os.PathLike[str]) -> list[Any]:
    entries = read_json(json_path, "joints", "expected a JSON file of BADJA")
    if not isinstance(entries, list) or not entries:
        raise DinotrackError(f"{json_path} holds no list of annotated frames; expected a JSON file of BADJA")
    return entries


def _read_entry(entry: Any, json_path: str | os.PathLike[str]) -> tuple[int, list[list[float]], list[bool]]:
    """Number of an annotated frame, (row, column) and visibility of its joints."""
    try:
        name = Path(entry["image_path"]).stem
        places = [[float(row), float(column)] for row, column in entry["joints"]]
        flags = [bool(flag) for flag in entry["visibility"]]
    except (KeyError, TypeError, ValueError, OverflowError) as error:
        raise DinotrackError(
            f"{json_path} has a frame without readable image_path, joints and visibility "
            f"({type(error).__name__}: {reason_of(error)}); expected them as BADJA has them"
        ) from error
    number = re.search(r"\d{1,9}$", name)
    if number is None or len(places) != len(flags):
        raise DinotrackError(
            f"{json_path} has {name[:80]!r} with {len(places)} joints and {len(flags)} visibilities; "
            "expected a name that ends in the frame's number, and one visibility a joint"
        )
    return int(number[0]), places, flags


class Badja:
    """BADJA (Biggs et al., ACCV 2018): annotation files beside folders of frames and masks, found by patterns with {name}.

    The patterns are relative to `path`. Joints are stored at `source_size`; videos are tracked at (W, H) `size`, and scored at
    854×480 whatever that is (§7). Annotations without a folder of frames, as those of BADJA's extra videos, are left out.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        joints: str = "joint_annotations/{name}.json",
        frames: str = "DAVIS/JPEGImages/Full-Resolution/{name}",
        masks: str = "DAVIS/Annotations/Full-Resolution/{name}",
        size: Sequence[int] = (854, 480),
        source_size: Sequence[int] = (1920, 1080),
    ) -> None:
        for what, pattern in (("joints", joints), ("frames", frames), ("masks", masks)):
            if pattern.count("{name}") != 1 or Path(pattern).is_absolute():
                raise DinotrackError(
                    f"benchmark.{what}={pattern}; expected a path below benchmark.path with {{name}} in it once"
                )
        self.path, self.joints, self.frames, self.masks = Path(path), joints, frames, masks
        self.size, self.source_size = (int(size[0]), int(size[1])), (int(source_size[0]), int(source_size[1]))

    def names(self) -> list[str]:
        before, after = self.joints.split("{name}")
        found = files_of(self.path, self.joints.replace("{name}", "*"), "the folder of BADJA")
        texts = [file.relative_to(self.path).as_posix() for file in found]
        annotated = [plain_name(text[len(before) : len(text) - len(after)], str(self.path)) for text in texts]
        names = [name for name in annotated if (self.path / self.frames.replace("{name}", name)).is_dir()]
        if len(names) < len(annotated):
            absent = ", ".join(sorted(set(annotated) - set(names)))
            log.warning("%s: no frames of %s (%s); left out", self.path, absent, self.frames)
        if not names:
            raise DinotrackError(
                f"{self.path} has no frames of any annotated video at {self.frames}; see benchmark.frames"
            )
        return names

    def open(self, name: str) -> BenchmarkClip:
        choose(name, self.names(), str(self.path))
        joints_file, frames, masks = (
            self.path / pattern.replace("{name}", name) for pattern in (self.joints, self.frames, self.masks)
        )
        video = load_video(frames, masks)
        joints = read_badja(joints_file, BADJA_SIZE, self.source_size)
        truth = badja_truth(renumbered(joints, frame_numbers(frames), joints_file), video.masks, BADJA_SIZE)
        return BenchmarkClip(name, resized(video, self.size), truth)


def badja_truth(joints: BadjaJoints, masks: Bool[Tensor, "t h w"], size: tuple[int, int]) -> PointTruth:
    """Queries where joints are first visible and their positions in the annotated frames; frame numbers are rows of `masks`.

    Raises:
        DinotrackError: for a frame without a mask.
    """
    queries, rows = badja_queries(joints)
    areas = foreground_areas(masks, joints.frames, size=size)
    on_frame = torch.cat([queries[:, :1], in_frame(queries[:, 1:], size)], 1)
    return PointTruth(on_frame, joints.xy[rows], joints.visible[rows], joints.frames, areas, size, "first")


def renumbered(joints: BadjaJoints, numbers: Sequence[int], json_path: str | os.PathLike[str]) -> BadjaJoints:
    """The joints with their frames counted from 0, of a video whose frames' files bear these numbers.

    Raises:
        DinotrackError: for an annotated frame that the video does not have.
    """
    place = {number: index for index, number in enumerate(numbers)}
    missing = [number for number in joints.frames.tolist() if number not in place]
    if missing:
        raise DinotrackError(
            f"{json_path} annotates frame {missing[0]}; the video has {len(numbers)}, {numbers[0]} to {numbers[-1]}"
        )
    return replace(joints, frames=torch.tensor([place[number] for number in joints.frames.tolist()]))
