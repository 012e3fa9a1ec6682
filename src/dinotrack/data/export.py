"""Tracks to files that other programs read (.npz, .csv), and back."""

import io
import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinotrack.data.arrays import read_npz, read_text
from dinotrack.errors import DinotrackError, reason_of
from dinotrack.files import write_atomically
from dinotrack.structs import Tracks

KEYS = ("queries", "tracks", "visible", "confidence", "size", "fps")
"""Of an .npz file: (N, 3), (N, T, 2), (N, T) bool, (N, T), (W, H), a number."""
COLUMNS = ("point", "t", "x", "y", "visible", "confidence")
"""Of a .csv file."""


def save_npz(tracks: Tracks, path: str | os.PathLike[str]) -> None:
    """Write the arrays `KEYS`: positions raster, in pixels of the video as loaded (method §0), frames per second.

    Raises:
        DinotrackError: when the file cannot be written; nothing half-written stays.
    """
    values = (tracks.queries, tracks.xy, tracks.visible, tracks.confidence)
    arrays = [value.float().numpy(force=True) for value in values] + [np.array(tracks.size), np.array(tracks.fps)]
    arrays[2] = arrays[2].astype(bool)
    named = dict(zip(KEYS, arrays, strict=True))

    def write(name: Path) -> None:
        with name.open("wb") as file:  # given a name, NumPy would add its own ending
            np.savez_compressed(file, **named)

    write_atomically(Path(path), write)


def load_npz(path: str | os.PathLike[str]) -> Tracks:
    """Read what `save_npz` wrote.

    Raises:
        DinotrackError: when there is no such file, or it is no .npz file with these keys and fitting shapes.
    """
    arrays = read_npz(path, KEYS, "tracks", "expected what save_npz writes")
    _check_shapes(arrays, path)
    queries, xy, confidence = (
        torch.from_numpy(arrays[k].astype(np.float32)) for k in ("queries", "tracks", "confidence")
    )
    visible = torch.from_numpy(arrays["visible"].astype(bool))
    width, height = arrays["size"].tolist()
    size, fps = size_and_rate(width, height, arrays["fps"].item(), path)
    return Tracks(queries, xy, visible, confidence, size, fps)


def size_and_rate(width: Any, height: Any, fps: Any, path: str | os.PathLike[str]) -> tuple[tuple[int, int], float]:
    """(W, H) in whole pixels and frames per second, as a file of tracks says them.

    Raises:
        DinotrackError: for what no video has.
    """
    known = all(isinstance(value, int | float) and math.isfinite(value) for value in (width, height, fps))
    if not known or not (1 <= width < 2**20 and 1 <= height < 2**20 and fps > 0):
        found = f"{width!r}x{height!r} at {fps!r}"[:80]
        raise DinotrackError(
            f"{path} is of a video of {found} frames per second; expected whole pixels and a rate above 0"
        )
    return (int(width), int(height)), float(fps)


def _check_shapes(arrays: dict[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    n, t = (*arrays["queries"].shape, 0)[0], (*arrays["tracks"].shape, 0, 0)[1]
    expected = dict(zip(KEYS, [(n, 3), (n, t, 2), (n, t), (n, t), (2,), ()], strict=True))
    for key, shape in expected.items():
        if arrays[key].shape != shape or arrays[key].dtype.kind not in "bfiu":
            found = f"{arrays[key].dtype} {arrays[key].shape}"
            raise DinotrackError(f"{path}: {key} is {found}; expected numbers of shape {shape}")


def point_ids(tracks: Tracks, ids: Sequence[int] = ()) -> list[int]:
    """The number that each track bears in a file: `ids`, or its row.

    Raises:
        DinotrackError: for another count of numbers than of tracks, one below 0 or one that is given twice.
    """
    chosen = [int(number) for number in ids] or list(range(len(tracks)))
    if len(chosen) != len(tracks) or len(set(chosen)) < len(chosen) or min(chosen, default=0) < 0:
        raise DinotrackError(f"ids {list(ids)} for {len(tracks)} tracks; expected a different number from 0 for each")
    return chosen


def save_csv(tracks: Tracks, path: str | os.PathLike[str], ids: Sequence[int] = ()) -> None:
    """Write one line per point and frame: point,t,x,y,visible,confidence; raster pixels (method §0), visible 0 or 1.

    `ids` are the points' numbers, else their rows; a position that is no number is written as nan.

    Raises:
        DinotrackError: when the file cannot be written; nothing half-written stays.
    """
    row, t = (index.reshape(-1) for index in np.indices(tracks.visible.shape))
    point = np.array(point_ids(tracks, ids), dtype=np.int64)[row]
    x, y = tracks.xy.double().numpy(force=True).reshape(-1, 2).T
    visible, confidence = (v.double().numpy(force=True).reshape(-1) for v in (tracks.visible, tracks.confidence))
    table = np.stack([point, t, x, y, visible, confidence], 1)
    formats = ["%d", "%d", "%.4f", "%.4f", "%d", "%.4f"]

    def write(name: Path) -> None:
        np.savetxt(name, table, fmt=formats, delimiter=",", header=",".join(COLUMNS), comments="", encoding="utf-8")

    write_atomically(Path(path), write)


def load_csv(
    path: str | os.PathLike[str], size: tuple[int, int], fps: float = 25.0, *, most: int = 100_000_000
) -> Tracks:
    """Read what `save_csv` wrote of a video of (W, H) `size`; points in the order of their numbers.

    The file holds no queries: the first of each point's most trusted visible positions stands for its query. Frames without a line
    have no position (nan), are not visible and have confidence 0. `most` bounds points times frames.

    Raises:
        DinotrackError: when there is no such file, or its lines are not those of `save_csv`.
    """
    return load_numbered_csv(path, size, fps, most=most)[0]


def load_numbered_csv(
    path: str | os.PathLike[str], size: tuple[int, int], fps: float = 25.0, *, most: int = 100_000_000
) -> tuple[Tracks, list[int]]:
    """The tracks as `load_csv` reads them, and the points' numbers.

    Raises:
        DinotrackError: as `load_csv` does.
    """
    table = _read_table(path)
    point, t = table[:, 0].astype(np.int64), table[:, 1].astype(np.int64)
    numbers, row = np.unique(point, return_inverse=True)
    shape = (len(numbers), int(t.max(initial=-1)) + 1)
    if shape[0] * shape[1] > most:
        raise DinotrackError(f"{path} is of {shape[0]} points and {shape[1]} frames; expected at most {most} positions")
    if len(np.unique(row * shape[1] + t)) < len(t):
        raise DinotrackError(f"{path} has two lines of one point and frame; expected one")
    xy, visible, confidence = (
        np.full((*shape, 2), np.nan, np.float32),
        np.zeros(shape, bool),
        np.zeros(shape, np.float32),
    )
    xy[row, t], visible[row, t], confidence[row, t] = table[:, 2:4], table[:, 4] == 1, table[:, 5]
    positions, seen, trust = torch.from_numpy(xy), torch.from_numpy(visible), torch.from_numpy(confidence)
    tracks = Tracks(likely_queries(positions, seen, trust), positions, seen, trust, size, fps)
    return tracks, [int(number) for number in numbers]


def _read_table(path: str | os.PathLike[str]) -> Float[np.ndarray, "rows 6"]:
    lines = io.StringIO(read_text(path, "tracks", "expected what save_csv writes"), newline=None)
    header = lines.readline().strip()
    if tuple(header.split(",")) != COLUMNS:
        raise DinotrackError(f"{path} begins with {header[:80]!r}; expected {','.join(COLUMNS)}")
    try:
        rest = lines.read()
        table = np.loadtxt(io.StringIO(rest), delimiter=",", ndmin=2) if rest.strip() else np.zeros((0, len(COLUMNS)))
    except ValueError as error:
        reason = reason_of(error)
        raise DinotrackError(f"{path} is no .csv file of tracks ({reason}); expected what save_csv writes") from error
    if table.shape[1] != len(COLUMNS):
        raise DinotrackError(f"{path} has {table.shape[1]} columns; expected {','.join(COLUMNS)}")
    whole, flag = table[:, :2], table[:, 4]
    if not ((whole >= 0) & (whole < 2**31) & (whole == whole.round())).all() or not np.isin(flag, (0, 1)).all():
        raise DinotrackError(f"{path}: expected whole numbers from 0 for point and t, and 0 or 1 for visible")
    return table


def likely_queries(
    xy: Float[Tensor, "n t 2"], visible: Bool[Tensor, "n t"], confidence: Float[Tensor, "n t"]
) -> Float[Tensor, "n 3"]:
    """Of each track the first visible position of highest confidence as (t, x, y); a tracker gives its query 1."""
    if not xy.shape[1]:
        return torch.full((len(xy), 3), torch.nan)
    known = xy.isfinite().all(-1)
    order = torch.where(known, confidence.nan_to_num(0.0) + 1, -1.0) + 2 * (known & visible)
    t = order.argmax(1)
    return torch.cat([t[:, None].float(), xy[torch.arange(len(xy)), t]], 1)


def visible_only(tracks: Tracks) -> Tracks:
    """The tracks without the positions at which they are not visible: these become nan."""
    return replace(tracks, xy=torch.where(tracks.visible[..., None], tracks.xy, torch.nan))
