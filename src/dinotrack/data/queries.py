"""Queries (t, x, y) from a grid, a file or a list, or of ground truth as TAP-Vid asks them."""

import csv
import math
import os
from collections.abc import Sequence
from itertools import count, takewhile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from dinotrack.data.arrays import read_npy, read_text
from dinotrack.errors import DinotrackError
from dinotrack.geometry import look_up
from dinotrack.structs import Video, check_mode
from dinotrack.trackers import check_queries

COLUMNS = ("t", "x", "y")
EXPECTED = "expected grid:STEP, an .npy or .csv file, or rows of (t, x, y) such as [[0,120,80],[5,33,40]]"

MOST = 3 * 10**7
"""Numbers in a file of queries: ten million points are those of a whole 4K frame."""

QuerySpec = str | os.PathLike[str] | Sequence[Any] | np.ndarray | Tensor


def read_queries(spec: QuerySpec, video: Video, *, frame: int = 0, masked: bool = False) -> Float[Tensor, "n 3"]:
    """Queries of `video`, checked: frame and raster position in pixels of the video as loaded (method §0).

    Args:
        spec: `"grid:30"` for a point every 30 pixels from (15, 15) on; an .npy (N, 3) or a .csv file of (t, x, y)
            rows, the latter with or without a line of column names; rows as text, `"0,10.5,20;5,30,40"`; or rows.
        video: what they are asked of.
        frame: the frame of a grid; of no meaning to the others, which name theirs.
        masked: keep a grid's points on the video's foreground only.

    Raises:
        DinotrackError: for a spec, file or row that is not as above, for no queries at all, for `masked` with a
            video without masks or without a grid, and where `check_queries` does.
    """
    text = spec.strip() if isinstance(spec, str) else ""
    if text.startswith("grid:"):
        return _grid(text, video, frame, masked)
    if masked:
        raise DinotrackError(f"masked queries need a grid, got {str(spec)[:80]}; choose grid:STEP or masked=false")
    queries = _given(text or spec)
    if queries.numel() == 0:
        raise DinotrackError(f"no queries in {str(spec)[:80]!r}; {EXPECTED}")
    check_queries(queries, len(video), video.size)
    return queries


def sample_queries(
    gt_xy: Float[Tensor, "n t 2"], gt_visible: Bool[Tensor, "n t"], mode: str = "strided", stride: int = 5
) -> tuple[Float[Tensor, "m 3"], Int[Tensor, " m"]]:
    """TAP-Vid's queries (t, x, y) and the track of each, ordered by frame (§7).

    `strided`: at frames 0, `stride`, 2 · `stride`, … for each track visible there; `first`: one a track, where it is
    first visible. Tracks that are not visible there, or never, have none.

    Raises:
        DinotrackError: for an unknown mode or a stride below 1.
    """
    check_mode(mode)
    if stride < 1:
        raise DinotrackError(f"stride={stride}; queries need a stride of 1 or more")
    asked = gt_visible.cumsum(1).eq(1) & gt_visible if mode == "first" else torch.zeros_like(gt_visible)
    if mode == "strided":
        asked[:, ::stride] = gt_visible[:, ::stride]
    frame, track = asked.T.nonzero().unbind(1)
    return torch.cat([frame[:, None].to(gt_xy), gt_xy[track, frame]], 1), track


def _grid(text: str, video: Video, frame: int, masked: bool) -> Float[Tensor, "n 3"]:
    """Points at step/2 + k·step, row by row."""
    try:
        step = float(text.removeprefix("grid:"))
    except ValueError:
        step = math.nan
    if not 1 <= step < math.inf:
        raise DinotrackError(f"{text!r} is no grid; expected grid:STEP with a step of at least 1 pixel")
    if not 0 <= frame < len(video):
        raise DinotrackError(f"a grid on frame {frame}; expected a frame in 0..{len(video) - 1}")
    x, y = (torch.tensor(_steps(step, side), dtype=torch.float32) for side in video.size)
    xy = torch.stack(torch.meshgrid(x, y, indexing="xy"), -1).reshape(-1, 2)
    if masked:
        xy = xy[_on_mask(video, frame, xy)]
    if len(xy) == 0:
        place = f"the foreground of frame {frame}" if masked else f"a {video.size[0]}x{video.size[1]} video"
        raise DinotrackError(f"{text} leaves no point on {place}; use a smaller step")
    return torch.cat([torch.full((len(xy), 1), float(frame)), xy], 1)


def _steps(step: float, side: int) -> list[float]:
    return list(takewhile(lambda position: position < side, (step / 2 + k * step for k in count())))


def _on_mask(video: Video, frame: int, xy: Float[Tensor, "n 2"]) -> Shaped[Tensor, " n"]:
    if len(video.masks) == 0:
        raise DinotrackError(
            f"masked queries, but {video.path or 'the video'} has no masks; give masks or masked=false"
        )
    return look_up(video.masks.to(xy.device), torch.full((len(xy),), frame), xy, video.size)


def _given(spec: QuerySpec) -> Float[Tensor, "..."]:
    """Rows as they are in a file, a text, a list or an array; their shape and values are still to be checked."""
    if isinstance(spec, Tensor):
        return spec.detach().to("cpu", torch.float32)
    if isinstance(spec, np.ndarray):
        return _from_array(spec, "the queries")
    if isinstance(spec, str | os.PathLike):
        ending = Path(spec).suffix.lower()
        if ending == ".npy":
            return _from_npy(Path(spec))
        if ending == ".csv":
            return _from_csv(Path(spec))
        rows = [row.split(",") for row in os.fspath(spec).split(";") if row.strip()]
        return _from_rows(rows, f"{os.fspath(spec)[:80]!r}, row")
    if not isinstance(spec, Sequence):
        raise DinotrackError(f"queries are a {type(spec).__name__}; {EXPECTED}")
    return _from_rows(spec, "queries, row")


def _from_array(array: np.ndarray, name: str) -> Float[Tensor, "..."]:
    if array.dtype.kind not in "iufb":
        raise DinotrackError(f"{name} are of type {array.dtype}; expected numbers (N, 3)")
    with np.errstate(over="ignore"):  # what is too large becomes infinite, and is refused as that
        return torch.from_numpy(np.array(array, np.float32))


def _from_npy(file: Path) -> Float[Tensor, "..."]:
    array = read_npy(file, "queries", EXPECTED)
    if array.size > MOST:
        raise DinotrackError(
            f"the queries in {file} have shape {array.shape}; expected at most {MOST // 3} rows (t, x, y)"
        )
    return _from_array(array, f"the queries in {file}")


def _from_csv(file: Path) -> Float[Tensor, "n 3"]:
    """Rows t, x, y; a first line that is no numbers names the columns, in any order and among others."""
    text = read_text(file, "queries", EXPECTED)
    try:
        lines = [line for line in csv.reader(text.splitlines()) if any(line)]
    except csv.Error as error:
        raise DinotrackError(f"cannot read the queries {file} ({error}); expected lines of t,x,y") from error
    if lines and not _is_number(lines[0][0]):
        names = [name.strip("# ").lower() for name in lines[0]]
        if not set(COLUMNS) <= set(names):
            raise DinotrackError(f"{file} has columns {','.join(lines[0])[:80]}; expected t,x,y")
        order = [names.index(name) for name in COLUMNS]
        lines = [[line[k] for k in order] if len(line) == len(names) else line for line in lines[1:]]
    return _from_rows(lines, f"{file}, row")


def _from_rows(rows: Sequence[Any], name: str) -> Float[Tensor, "n 3"]:
    return torch.tensor([_row(row, f"{name} {k}") for k, row in enumerate(rows)], dtype=torch.float32).reshape(-1, 3)


def _row(row: Any, name: str) -> list[float]:
    try:
        if isinstance(row, str | bytes | dict):  # whose parts are numbers by chance
            raise TypeError("no row")
        t, x, y = (float(value) for value in row)
    except (TypeError, ValueError, OverflowError) as error:
        raise DinotrackError(f"{name} is {repr(row)[:80]}; expected three numbers t, x, y") from error
    return [t, x, y]


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True
