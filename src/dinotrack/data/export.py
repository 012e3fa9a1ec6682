"""Tracks to files that other programs read (.npz, .csv), and the .npz back."""

import os
import zipfile
from pathlib import Path

import numpy as np
import torch

from dinotrack.errors import DinotrackError
from dinotrack.structs import Tracks, write_atomically

KEYS = ("queries", "tracks", "visible", "confidence", "size", "fps")
"""Of an .npz file: (N, 3), (N, T, 2), (N, T) bool, (N, T), (W, H), a number."""


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
    try:
        with np.load(path, allow_pickle=False) as file:
            arrays = {key: np.asarray(file[key]) for key in KEYS}
    except FileNotFoundError as error:
        raise DinotrackError(f"no such tracks: {path}; expected an .npz file") from error
    except KeyError as error:
        raise DinotrackError(f"{path} holds no tracks ({error.args[0]}); expected {', '.join(KEYS)}") from error
    except (OSError, ValueError, TypeError, EOFError, zipfile.BadZipFile) as error:
        raise DinotrackError(f"{path} is no .npz file of tracks ({error}); expected what save_npz writes") from error
    _check_shapes(arrays, path)
    queries, xy, confidence = (
        torch.from_numpy(arrays[k].astype(np.float32)) for k in ("queries", "tracks", "confidence")
    )
    visible = torch.from_numpy(arrays["visible"].astype(bool))
    width, height = arrays["size"].tolist()
    return Tracks(queries, xy, visible, confidence, (int(width), int(height)), float(arrays["fps"]))


def _check_shapes(arrays: dict[str, np.ndarray], path: str | os.PathLike[str]) -> None:
    n, t = (*arrays["queries"].shape, 0)[0], (*arrays["tracks"].shape, 0, 0)[1]
    expected = dict(zip(KEYS, [(n, 3), (n, t, 2), (n, t), (n, t), (2,), ()], strict=True))
    for key, shape in expected.items():
        if arrays[key].shape != shape or arrays[key].dtype.kind not in "bfiu":
            found = f"{arrays[key].dtype} {arrays[key].shape}"
            raise DinotrackError(f"{path}: {key} is {found}; expected numbers of shape {shape}")


def save_csv(tracks: Tracks, path: str | os.PathLike[str]) -> None:
    """Write one line per point and frame: point,t,x,y,visible,confidence; raster pixels (method §0), visible 0 or 1.

    Raises:
        DinotrackError: when the file cannot be written; nothing half-written stays.
    """
    point, t = (index.reshape(-1) for index in np.indices(tracks.visible.shape))
    x, y = tracks.xy.double().numpy(force=True).reshape(-1, 2).T
    visible, confidence = (v.double().numpy(force=True).reshape(-1) for v in (tracks.visible, tracks.confidence))
    table = np.stack([point, t, x, y, visible, confidence], 1)
    header, formats = "point,t,x,y,visible,confidence", ["%d", "%d", "%.4f", "%.4f", "%d", "%.4f"]

    def write(name: Path) -> None:
        np.savetxt(name, table, fmt=formats, delimiter=",", header=header, comments="", encoding="utf-8")

    write_atomically(Path(path), write)
