"""Short clips with tracked points, on which Chrono is trained (method §8): exported files, CoTracker's Kubric folders, our own."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, TypeGuard, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, Real, Shaped, UInt8
from safetensors import safe_open
from torch import Tensor

from dinotrack.data.arrays import MOST_BYTES, read_npz
from dinotrack.data.pickles import read_npy_dict
from dinotrack.data.pictures import natural, open_picture, pictures_of, rgb
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.errors import DinotrackError, reason_of
from dinotrack.tensor_struct import TensorStruct

SYNTHETIC = "synthetic"
ARRAYS = {"video": 4, "query_points": 2, "target_points": 3, "occluded": 2}
"""Names in an exported file, and their dimensions."""
KINDS = {"video": "u", "query_points": "iuf", "target_points": "iuf", "occluded": "biuf"}
"""NumPy's kinds of numbers that each may have."""
FARTHEST = 2**24
"""Pixels from the origin at which a position is none: float32 has no halves there."""


@dataclass(frozen=True)
class PointClip(TensorStruct):
    """Frames and the points that are tracked in them, as raster positions in their pixels."""

    frames: UInt8[Tensor, "t 3 h w"]
    xy: Float[Tensor, "n t 2"]
    occluded: Bool[Tensor, "n t"]
    query: Int[Tensor, " n"]
    """The frame in which each point is asked for; -1 for any in which it is visible."""

    def part(self, start: int, stop: int) -> "PointClip":
        """Frames [start, stop) of the clip; points that were asked for in another are asked for anywhere."""
        within = (self.query >= start) & (self.query < stop)
        query = torch.where(within, self.query - start, -1)
        return PointClip(self.frames[start:stop], self.xy[:, start:stop], self.occluded[:, start:stop], query)


@runtime_checkable
class PointClips(Protocol):
    """Clips by number; the number of endless ones is what counts an epoch."""

    def __len__(self) -> int: ...

    def __getitem__(self, number: int) -> PointClip: ...


class ExportedClips:
    """Files .npz or .safetensors with video (T, H, W, 3) of bytes, query_points (N, 3) as t, y, x, target_points (N, T, 2) as x, y
    and occluded (N, T); positions are raster. scripts/export_kubric.py writes them.
    """

    def __init__(self, paths: list[Path]) -> None:
        self.paths = paths

    def __len__(self) -> int:
        return len(self.paths)

    def __getitem__(self, number: int) -> PointClip:
        """Read a clip.

        Raises:
            DinotrackError: for a file that is unreadable or holds something else.
        """
        path = self.paths[number]
        arrays = checked(read_arrays(path), path)
        return PointClip(
            torch.from_numpy(arrays["video"]).permute(0, 3, 1, 2).contiguous(),
            torch.from_numpy(arrays["target_points"]),
            torch.from_numpy(arrays["occluded"]),
            torch.from_numpy(arrays["query_points"][:, 0] + 1e-3).floor().long(),  # t is exact to rounding
        )


class KubricClips:
    """Folders as CoTracker's Kubric has them: `<seq>/<seq>.npy`, a dict with coords (N, T, 2) and visibility (N, T), where true
    means occluded, and `<seq>/frames/` with a picture a frame.
    """

    def __init__(self, folders: list[Path]) -> None:
        self.folders = folders

    def __len__(self) -> int:
        return len(self.folders)

    def __getitem__(self, number: int) -> PointClip:
        """Read a clip.

        Raises:
            DinotrackError: for files that are unreadable or do not belong together.
        """
        folder = self.folders[number]
        truth = read_npy_dict(folder / f"{folder.name}.npy")
        xy, occluded = truth.get("coords"), truth.get("visibility")
        if not (numbers(xy, "iuf") and numbers(occluded, "biuf")):
            raise DinotrackError(
                f"{folder} is no clip of CoTracker's Kubric: its coords or visibility are no numbers; get it again"
            )
        if occluded.ndim == 3 and occluded.shape[2]:
            occluded = occluded[..., 0]
        files = pictures_of(folder / "frames")
        if not xy.size or xy.shape != (*occluded.shape, 2) or len(files) != xy.shape[1]:
            raise DinotrackError(
                f"{folder}: {len(files)} frames, coords {xy.shape}, visibility {occluded.shape} do not belong together; "
                "get it again"
            )
        xy, occluded = placed(xy, occluded)
        free = torch.full((len(xy),), -1)
        pictures = torch.from_numpy(read_frames(files)).permute(0, 3, 1, 2).contiguous()
        return PointClip(pictures, torch.from_numpy(xy), torch.from_numpy(occluded), free)


class SyntheticClips:
    """Clips of `synthetic_clip` without end: number n has the seed `first` + n."""

    def __init__(
        self,
        frames: int = 24,
        size: tuple[int, int] = (256, 256),
        points: int = 256,
        first: int = 10_000,
        length: int = 2**30,
    ) -> None:
        self.frames, self.size, self.points, self.first, self.length = frames, size, points, first, length

    def __len__(self) -> int:
        return self.length

    def __getitem__(self, number: int) -> PointClip:
        clip = synthetic_clip(self.first + number, self.frames, self.size, points=self.points)
        return PointClip(clip.video.frames, clip.xy, ~clip.visible, torch.full((len(clip.xy),), -1))


def read_arrays(path: Path) -> dict[str, Any]:
    """Named arrays of an .npz file without objects, or of a .safetensors file.

    Raises:
        DinotrackError: for a file that is neither.
    """
    if path.suffix == ".npz":
        return read_npz(path, list(ARRAYS), "clip", "export it again")
    try:
        with safe_open(path, framework="numpy") as file:
            return {name: file.get_tensor(name) for name in ARRAYS if name in file.keys()}  # noqa: SIM118  (it has no `in`)
    except Exception as error:  # a damaged head, and a type that NumPy does not have, can fail anywhere
        raise DinotrackError(f"cannot read clip {path} ({reason_of(error)}); export it again") from error


def read_frames(files: list[Path]) -> UInt8[np.ndarray, "t h w 3"]:
    """Pictures of one size.

    Raises:
        DinotrackError: for others, or where they take more than `MOST_BYTES`.
    """
    first = rgb(open_picture(files[0]))
    if first.nbytes * len(files) > MOST_BYTES:
        raise DinotrackError(
            f"{len(files)} frames like {files[0]} take more than {MOST_BYTES / 1e9:.0f} GB; shorten the clip"
        )
    frames = np.empty((len(files), *first.shape), np.uint8)
    for number, file in enumerate(files):
        frame = rgb(open_picture(file)) if number else first
        if frame.shape != first.shape:
            sizes = [f"{shape[1]}x{shape[0]}" for shape in (frame.shape, first.shape)]
            raise DinotrackError(f"{file} is {sizes[0]}, {files[0].name} is {sizes[1]}; get the clip again")
        frames[number] = frame
    return frames


def numbers(values: Any, kinds: str) -> TypeGuard[np.ndarray]:
    """Whether it is an array whose type is of these kinds."""
    return isinstance(values, np.ndarray) and values.dtype.kind in kinds


def placed(
    xy: Real[np.ndarray, "n t 2"], occluded: Shaped[np.ndarray, "n t"]
) -> tuple[Float[np.ndarray, "n t 2"], Bool[np.ndarray, "n t"]]:
    """Positions and what hides them; a point without a position is at 0 and occluded."""
    known = np.all(np.abs(xy.astype(np.float64)) < FARTHEST, -1)
    return np.where(known[..., None], xy, 0).astype(np.float32), occluded.astype(bool) | ~known


def checked(arrays: Mapping[str, Any], path: Path) -> dict[str, np.ndarray]:
    """The arrays of an exported clip that belong together, of this machine's types and finite; a query at no frame is at -1.

    Raises:
        DinotrackError: for others.
    """
    found = {name: arrays[name] for name in ARRAYS if name in arrays}
    shapes = {name: values.shape for name, values in found.items()}
    if {name: len(shape) for name, shape in shapes.items()} == ARRAYS and all(map(math.prod, shapes.values())):
        count, frames = shapes["occluded"]
        fits = shapes["query_points"] == (count, 3) and shapes["target_points"] == (count, frames, 2)
        fits &= (shapes["video"][0], shapes["video"][3]) == (frames, 3)
        if (
            fits
            and all(numbers(values, KINDS[name]) for name, values in found.items())
            and found["video"].itemsize == 1
        ):
            xy, occluded = placed(found["target_points"], found["occluded"])
            queries = found["query_points"].astype(np.float64)
            at = (queries[:, :1] > -0.5) & (queries[:, :1] < frames - 0.5)
            queries = np.where(at, np.where(np.abs(queries) < FARTHEST, queries, 0), -1).astype(np.float32)
            return {"video": found["video"], "query_points": queries, "target_points": xy, "occluded": occluded}
    wanted = (
        "video (T, H, W, 3) of bytes, query_points (N, 3), target_points (N, T, 2), occluded (N, T), all of numbers"
    )
    kinds = {name: f"{values.dtype}{list(values.shape)}" for name, values in found.items()}
    raise DinotrackError(f"{path} holds {str(kinds)[:400]}; expected {wanted}, and none empty; export it again")


def open_clips(data: str, synthetic: Mapping[str, Any]) -> PointClips:
    """The clips that `data` names: "synthetic", by these settings, or a folder of exported files or of CoTracker's sequences.

    Raises:
        DinotrackError: where there are none.
    """
    if data == SYNTHETIC:
        return SyntheticClips(**synthetic)
    folder = Path(data).expanduser()
    files = sorted((p for kind in ("*.npz", "*.safetensors") for p in folder.glob(kind)), key=natural)
    if files:
        return ExportedClips(files)
    folders = sorted((p.parent for p in folder.glob("*/*.npy") if p.stem == p.parent.name), key=natural)
    if folders:
        return KubricClips(folders)
    raise DinotrackError(
        f"data={data}: no clips there; expected synthetic, a folder of .npz or .safetensors files by scripts/export_kubric.py, "
        "or one with <seq>/<seq>.npy and <seq>/frames as CoTracker's Kubric has them"
    )
