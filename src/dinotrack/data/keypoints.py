"""Tracks as JSON keypoints, one list [x, y, v] a frame as COCO has them, and back; docs/exports.md has the schema."""

import json
import math
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dinotrack.data.arrays import read_json
from dinotrack.data.export import point_ids, size_and_rate
from dinotrack.errors import DinotrackError, reason_of
from dinotrack.files import write_atomically
from dinotrack.structs import Tracks

FORMAT, VERSION = "dinotrack-keypoints", 1
NO_POSITION, OCCLUDED, VISIBLE = 0, 1, 2
"""COCO's third number of a keypoint."""


def save_json(
    tracks: Tracks, path: str | os.PathLike[str], ids: Sequence[int] = (), *, first_frame: int = 0, digits: int = 4
) -> None:
    """Write raster positions (method §0) to `digits` places; `first_frame` is the number of the first frame.

    Raises:
        DinotrackError: for a frame rate that is no number, or when the file cannot be written; nothing half-written stays.
    """
    if not math.isfinite(tracks.fps):
        raise DinotrackError(f"the tracks are of {tracks.fps} frames per second, which JSON has not; expected a number")
    content = {
        "format": FORMAT,
        "version": VERSION,
        "width": tracks.size[0],
        "height": tracks.size[1],
        "fps": tracks.fps,
        "frames": tracks.xy.shape[1],
        "first_frame": first_frame,
        "points": [
            _point(tracks, row, number, first_frame, digits) for row, number in enumerate(point_ids(tracks, ids))
        ],
    }
    text = json.dumps(content, allow_nan=False)
    write_atomically(Path(path), lambda name: name.write_text(text, encoding="utf-8"))


def _point(tracks: Tracks, row: int, number: int, first_frame: int, digits: int) -> dict[str, Any]:
    t, x, y = _rounded(tracks.queries[row], digits)
    known, visible = tracks.xy[row].isfinite().all(-1).tolist(), tracks.visible[row].tolist()
    positions = tracks.xy[row].double().nan_to_num(0.0, 0.0, 0.0).tolist()
    flags = [
        (VISIBLE if seen else OCCLUDED) if there else NO_POSITION for there, seen in zip(known, visible, strict=True)
    ]
    rows = [
        [round(x, digits), round(y, digits), flag] if flag else [0, 0, NO_POSITION]
        for (x, y), flag in zip(positions, flags, strict=True)
    ]
    asked = None if None in (t, x, y) else {"frame": int(t or 0) + first_frame, "x": x, "y": y}
    return {"id": number, "query": asked, "keypoints": rows, "confidence": _rounded(tracks.confidence[row], digits)}


def _rounded(values: Float[Tensor, " n"], digits: int) -> list[float | None]:
    """Numbers to so many places; JSON has no nan."""
    return [round(value, digits) if math.isfinite(value) else None for value in values.double().tolist()]


def load_json(path: str | os.PathLike[str]) -> Tracks:
    """Read what `save_json` wrote; frames without a position are nan and not visible.

    Raises:
        DinotrackError: when there is no such file, or it is not of this format and version.
    """
    return load_numbered_json(path)[0]


def load_numbered_json(path: str | os.PathLike[str]) -> tuple[Tracks, list[int], int]:
    """The tracks as `load_json` reads them, the points' numbers, and the number of the first frame.

    Raises:
        DinotrackError: as `load_json` does, and for numbers that do not tell points apart.
    """
    content = read_json(path, "keypoints", "expected a JSON file that save_json wrote")
    found = (content.get("format"), content.get("version")) if isinstance(content, dict) else (None, None)
    if found != (FORMAT, VERSION):
        about = " version ".join(repr(each)[:40] for each in found)
        raise DinotrackError(f"{path} is {about}; expected {FORMAT} version {VERSION}")
    try:
        tracks, numbers = _tracks(content, path), [_whole(point["id"]) for point in content["points"]]
        if len(set(numbers)) < len(numbers) or min(numbers, default=0) < 0:
            raise DinotrackError(f"{path} has points {numbers[:8]}; expected a different number from 0 for each")
        return tracks, numbers, _whole(content["first_frame"])
    except DinotrackError:
        raise
    except (KeyError, TypeError, ValueError, RuntimeError, OverflowError, AttributeError) as error:
        raise DinotrackError(f"{path} is damaged ({reason_of(error)}); expected what save_json writes") from error


def _tracks(content: dict[str, Any], path: str | os.PathLike[str]) -> Tracks:
    points, frames = content["points"], int(content["frames"])
    keypoints = torch.tensor([point["keypoints"] for point in points], dtype=torch.float32).reshape(
        len(points), frames, 3
    )
    trust = [[math.nan if value is None else value for value in point["confidence"]] for point in points]
    confidence = torch.tensor(trust, dtype=torch.float32).reshape(len(points), frames)
    asked = [_query(point["query"], int(content["first_frame"])) for point in points]
    flag = keypoints[..., 2]
    return Tracks(
        torch.tensor(asked, dtype=torch.float32).reshape(len(points), 3),
        torch.where((flag == NO_POSITION)[..., None], torch.nan, keypoints[..., :2]),
        flag == VISIBLE,
        confidence,
        *size_and_rate(content["width"], content["height"], content["fps"], path),
    )


def _whole(number: Any) -> int:
    if not isinstance(number, int):
        raise TypeError(f"{number!r} is no whole number")
    return number


def _query(asked: dict[str, Any] | None, first_frame: int) -> list[float]:
    return [math.nan] * 3 if asked is None else [asked["frame"] - first_frame, asked["x"], asked["y"]]
