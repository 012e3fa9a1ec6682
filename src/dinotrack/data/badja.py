"""BADJA's annotated animal joints: its JSON file to raster positions, queries and foreground areas (method §7)."""

import json
import os
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.geometry import rescale

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
    size: tuple[int, int] = (854, 480),
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
    try:
        entries = json.loads(Path(json_path).read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, json.JSONDecodeError) as error:
        raise DinotrackError(f"cannot read {json_path} ({error}); expected a JSON file of BADJA") from error
    if not isinstance(entries, list) or not entries:
        raise DinotrackError(f"{json_path} holds no list of annotated frames; expected a JSON file of BADJA")
    return entries


def _read_entry(entry: Any, json_path: str | os.PathLike[str]) -> tuple[int, list[list[float]], list[bool]]:
    """Number of an annotated frame, (row, column) and visibility of its joints."""
    try:
        name = Path(entry["image_path"]).stem
        places = [[float(row), float(column)] for row, column in entry["joints"]]
        flags = [bool(flag) for flag in entry["visibility"]]
    except (KeyError, TypeError, ValueError) as error:
        raise DinotrackError(
            f"{json_path} has a frame without readable image_path, joints and visibility "
            f"({type(error).__name__}: {error}); expected them as BADJA has them"
        ) from error
    number = re.search(r"\d+$", name)
    if number is None or len(places) != len(flags):
        raise DinotrackError(
            f"{json_path} has {name!r} with {len(places)} joints and {len(flags)} visibilities; "
            "expected a name that ends in the frame's number, and one visibility a joint"
        )
    return int(number[0]), places, flags
