"""Which object each point is on, and what the objects are called."""

import csv
import io
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Int
from torch import Tensor

from dinotrack.data.arrays import read_npy, read_text
from dinotrack.data.video import load_masks
from dinotrack.errors import DinotrackError
from dinotrack.geometry import resize_masks
from dinotrack.grouping import labels_of
from dinotrack.structs import Tracks, Video

COLUMNS = ("point", "object")
EXPECTED = "expected an .npy file of labels (N,) or label maps (T, H, W), a folder of masks, or a .csv of point,object"


@dataclass(frozen=True)
class Objects:
    """Names of objects, and the number of each point's own, -1 for none."""

    names: tuple[str, ...]
    of: Int[Tensor, " n"]


NO_OBJECTS = Objects((), torch.zeros(0, dtype=torch.long))


def read_objects(path: Path, tracks: Tracks, video: Video) -> Objects:
    """Objects of tracks from a file: labels or label maps as `grouping.group` takes them, masks, or names.

    Args:
        path: an .npy file of whole numbers, (N,) one a point, or bool masks or label maps (T, H, W) of the tracked frames; a
            folder of mask pictures, one for every frame of the whole video; or a .csv file with the columns point (its row
            in the tracks) and object (any name; points that are left out, or have none, are on no object).
        tracks: whose points they are.
        video: what was tracked.

    Raises:
        DinotrackError: where there is no such file, or it does not fit the tracks.
    """
    if path.suffix.lower() == ".csv":
        return _named(_from_csv(path, len(tracks)))
    if path.is_dir():
        masks = load_masks(path, video, start=video.start, stop=video.start + len(video))
        objects = resize_masks(masks, tracks.size)
    else:
        objects = torch.from_numpy(_from_npy(path))
    labels = labels_of(tracks, objects)
    return _named([str(label) if label >= 0 else "" for label in labels.tolist()])


def _named(names: list[str]) -> Objects:
    """Objects in the order of their names, numbers by value."""
    found = sorted(set(names) - {""}, key=lambda name: (not name.isdecimal(), name.zfill(20)))
    number = {name: index for index, name in enumerate(found)} | {"": -1}
    return Objects(tuple(found), torch.tensor([number[name] for name in names], dtype=torch.long))


def _from_npy(path: Path) -> np.ndarray:
    array = read_npy(path, "objects", EXPECTED)
    if array.dtype.kind not in "iub":
        raise DinotrackError(f"the objects {path} are {array.dtype}; {EXPECTED}")
    return np.array(array, bool if array.dtype.kind == "b" else np.int64)


def _from_csv(path: Path, count: int) -> list[str]:
    names = [""] * count
    text = read_text(path, "objects", EXPECTED)
    try:
        rows = list(csv.DictReader(io.StringIO(text, newline="")))
    except csv.Error as error:
        raise DinotrackError(f"cannot read the objects {path} ({error}); {EXPECTED}") from error
    for number, row in enumerate(rows, 2):
        point, name = (str(row.get(column) or "").strip() for column in COLUMNS)
        if not point.isdecimal() or int(point) >= count:
            raise DinotrackError(
                f"{path}, line {number}: point is {point!r}; expected a row 0..{count - 1} of the tracks"
            )
        names[int(point)] = name
    return names
