"""Short clips with tracked points, on which Chrono is trained (method §8): exported files, CoTracker's Kubric folders, our own."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from safetensors import SafetensorError
from safetensors.numpy import load_file
from torch import Tensor

from dinotrack.data.arrays import read_npz
from dinotrack.data.pickles import read_npy_dict
from dinotrack.data.pictures import PICTURES, natural
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.errors import DinotrackError
from dinotrack.tensor_struct import TensorStruct

SYNTHETIC = "synthetic"
ARRAYS = {"video": 4, "query_points": 2, "target_points": 3, "occluded": 2}
"""Names in an exported file, and their dimensions."""


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
            torch.from_numpy(arrays["target_points"]).float(),
            torch.from_numpy(arrays["occluded"]).bool(),
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
        path = folder / f"{folder.name}.npy"
        truth = read_npy_dict(path)
        names = sorted((p for p in (folder / "frames").glob("*") if p.suffix.lower() in PICTURES), key=natural)
        try:
            frames = np.stack([np.asarray(Image.open(name).convert("RGB")) for name in names])
            xy, occluded = np.array(truth["coords"], np.float32), np.array(truth["visibility"]).astype(bool)
        except (KeyError, OSError, TypeError, ValueError) as error:
            raise DinotrackError(f"{folder} is no clip of CoTracker's Kubric ({error}); get it again") from error
        if occluded.ndim == 3:
            occluded = occluded[..., 0]
        if xy.shape != (*occluded.shape, 2) or len(frames) != xy.shape[1]:
            raise DinotrackError(
                f"{folder}: {len(frames)} frames, coords {xy.shape}, visibility {occluded.shape} do not belong together"
            )
        free = torch.full((len(xy),), -1)
        pictures = torch.from_numpy(frames).permute(0, 3, 1, 2).contiguous()
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
        return load_file(path)
    except (OSError, ValueError, SafetensorError) as error:
        raise DinotrackError(f"cannot read clip {path}: {error}; export it again") from error


def checked(arrays: Mapping[str, Any], path: Path) -> Mapping[str, Any]:
    """The arrays of an exported clip that belong together.

    Raises:
        DinotrackError: for others.
    """
    shapes = {name: arrays[name].shape for name in ARRAYS if name in arrays}
    if {name: len(shape) for name, shape in shapes.items()} == ARRAYS:
        count, frames = shapes["occluded"]
        expected = ((count, 3), (count, frames, 2), frames, 3)
        found = (shapes["query_points"], shapes["target_points"], shapes["video"][0], shapes["video"][3])
        if found == expected and arrays["video"].dtype == np.uint8:
            return arrays
    wanted = "video (T, H, W, 3) of bytes, query_points (N, 3), target_points (N, T, 2), occluded (N, T)"
    raise DinotrackError(f"{path} holds {shapes}; expected {wanted}")


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
