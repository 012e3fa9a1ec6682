"""What every benchmark is to `dinotrack evaluate`: names of clips, and each clip opened when it is its turn."""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.geometry import rescale, resize_frames
from dinotrack.structs import PointTruth, Video


@dataclass(frozen=True)
class BenchmarkClip:
    """One clip with its ground truth, in pixels of the video as it is tracked."""

    name: str
    video: Video
    truth: PointTruth
    weights: str = ""
    """Folder of the weights that were published for this video; empty where there are none."""


@runtime_checkable
class Benchmark(Protocol):
    """Clips by name; nothing of a clip is in memory before it is opened."""

    def names(self) -> list[str]:
        """The clips' names, in the benchmark's order; each is good for the name of a folder."""
        ...

    def open(self, name: str) -> BenchmarkClip:
        """Read one clip.

        Raises:
            DinotrackError: when there is none of that name, or its values are not what they should be.
        """
        ...


def plain_name(name: Any, where: str) -> str:
    """A clip's name that is good for the name of a folder, so that no file can write outside the results.

    Raises:
        DinotrackError: for one that is not.
    """
    text = str(name)
    reserved = text in ("scores.csv", "scores.md", "multirun.yaml", "jobs")  # the evaluation's own
    if not isinstance(name, str | int) or not re.fullmatch(r"\w[\w.\- ]{0,199}", text) or reserved:
        raise DinotrackError(
            f"{where} has a clip named {text[:80]!r}; expected at most 200 letters, digits, '-', '_' and '.'"
        )
    return text


def choose(name: str, names: list[str], where: str) -> str:
    """`name` if it is among `names`.

    Raises:
        DinotrackError: when it is not.
    """
    if name not in names:
        some = ", ".join(names[:8]) + (", ..." if len(names) > 8 else "")
        raise DinotrackError(f"{where} has no clip {name!r}; it has {some or 'none'}")
    return name


def tracked_size(stored: tuple[int, int], resolution: int | None) -> tuple[int, int]:
    """(W, H) at which a clip of `stored` size is tracked (method §7).

    256 means 256x256 whatever the aspect, as TAP-Vid resizes; any other number is the short side, aspect kept and nothing
    enlarged; None keeps the size.

    Raises:
        DinotrackError: for a resolution below 16.
    """
    if resolution is None:
        return stored
    if resolution < 16:
        raise DinotrackError(f"benchmark.resolution={resolution}; expected 16 or more, or null for the stored size")
    if resolution == 256:
        return 256, 256
    factor = min(1.0, resolution / min(stored))
    return round(stored[0] * factor), round(stored[1] * factor)


def resized(video: Video, size: tuple[int, int]) -> Video:
    """The video at (W, H) `size`; it loses its masks, which no benchmark lets a tracker see."""
    return Video(resize_frames(video.frames, size), video.fps, path=video.path)


def numbers(value: Any, shape: tuple[int | None, ...], what: str, where: str) -> np.ndarray:
    """An array of numbers of that shape, where None is any length.

    Raises:
        DinotrackError: for anything else, with the clip and the field.
    """
    try:
        array = np.asarray(value)
    except ValueError:  # rows of different lengths
        array = np.asarray(None)
    fits = array.ndim == len(shape) and all(want in (None, have) for want, have in zip(shape, array.shape, strict=True))
    if array.dtype.kind not in "biuf" or not fits:
        wanted = "(" + ", ".join("any" if side is None else str(side) for side in shape) + ")"
        raise DinotrackError(f"{where}: {what} is {array.dtype} {array.shape}; expected numbers of shape {wanted}")
    return array


def flags(value: Any, shape: tuple[int | None, ...], what: str, where: str) -> Bool[Tensor, "..."]:
    """An array of booleans, or of the numbers 0 and 1.

    Raises:
        DinotrackError: for other values, or another shape.
    """
    array = numbers(value, shape, what, where)
    if array.dtype.kind != "b" and not np.isin(array, (0, 1)).all():
        raise DinotrackError(f"{where}: {what} has values other than true and false")
    return torch.from_numpy(array.astype(bool))


def check_positions(
    xy: Float[Tensor, "n t 2"], visible: Bool[Tensor, "n t"], what: str, where: str, slack: float = 0.1
) -> None:
    """Let pass positions in shares of the frame, 0 to 1 and 10 % beyond, where they are visible; others may be anything.

    Raises:
        DinotrackError: naming the first visible position that is NaN or outside.
    """
    wrong = visible & ~((xy >= -slack) & (xy <= 1 + slack)).all(-1)
    if wrong.any():
        row, column = (int(index) for index in wrong.nonzero()[0])
        x, y = xy[row, column].tolist()
        raise DinotrackError(
            f"{where}: {what} has visible track {row} at ({x:g}, {y:g}) of the frame's width and height in frame {column}; "
            "expected 0 to 1 from its left and upper edge"
        )


def in_frame(xy: Float[Tensor, "n 2"], size: tuple[int, int]) -> Float[Tensor, "n 2"]:
    """Positions of queries on the frame: annotations may lie a little outside, where nothing can be looked up."""
    return torch.minimum(xy.clamp(min=0), xy.new_tensor([float(side) for side in size]))


def in_pixels(shares: Float[Tensor, "*n 2"], size: tuple[int, int]) -> Float[Tensor, "*n 2"]:
    """Shares of the frame as raster positions."""
    return rescale(shares, (1, 1), size)


def files_of(path: str | Path, pattern: str, what: str) -> list[Path]:
    """The files that match, sorted.

    Raises:
        DinotrackError: when there is no such folder, or none in it.
    """
    if not Path(path).is_dir():
        raise DinotrackError(f"no folder {path}; give benchmark.path={what}")
    found = sorted(file for file in Path(path).glob(pattern) if not file.name.startswith("."))
    if not found:
        raise DinotrackError(f"{path} has no {pattern}; give benchmark.path={what}")
    return found
