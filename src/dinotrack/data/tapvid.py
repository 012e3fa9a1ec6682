"""TAP-Vid's files (Doersch et al., NeurIPS 2022; RoboTAP, 2023): pickles of clips with their tracks, read one clip at a time."""

from contextlib import suppress
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from dinotrack.data.benchmarks import (
    BenchmarkClip,
    check_positions,
    choose,
    files_of,
    flags,
    in_frame,
    in_pixels,
    numbers,
    plain_name,
    resized,
    tracked_size,
)
from dinotrack.data.pickles import read_pickle
from dinotrack.data.queries import sample_queries
from dinotrack.errors import DinotrackError
from dinotrack.structs import PointTruth, Video, check_mode


class TapVid:
    """DAVIS and RoboTAP (a dict of clips), RGB-Stacking (a list), Kinetics (a folder of lists): a pickle, or a folder of them.

    Each clip has `video` (T, H, W, 3) uint8 or T encoded pictures, `points` (N, T, 2) as shares of the frame, `occluded`
    (N, T). Clips of a dict keep their names, those of a list are called by file and number. `resolution` is that of
    `tracked_size`; `mode` and `stride` those of `sample_queries`. One file at a time is read, and of it one clip is kept.
    """

    def __init__(
        self,
        path: str | Path,
        *,
        resolution: int | None = 480,
        mode: str = "strided",
        stride: int = 5,
        fps: float = 25.0,
    ) -> None:
        check_mode(mode)
        self.path, self.resolution, self.mode, self.stride, self.fps = Path(path), resolution, mode, stride, fps
        self.seen = dict[str, Path]()

    def files(self) -> list[Path]:
        """The pickles, sorted by name.

        Raises:
            DinotrackError: when there are none.
        """
        return (
            [self.path] if self.path.is_file() else files_of(self.path, "*.pkl", "the .pkl file, or the folder of them")
        )

    def names(self) -> list[str]:
        return [name for file in self.files() for name in self._content(file)]

    def open(self, name: str) -> BenchmarkClip:
        known: list[str] = []
        for file in self._likely(name):
            content = self._content(file)
            known += content
            if name in content:
                entry = content.pop(name)
                content.clear()  # the other clips
                return self._clip(name, entry, f"{file}, clip {name}")
        choose(name, known, str(self.path))
        raise AssertionError  # `choose` has raised

    def _likely(self, name: str) -> list[Path]:
        """The files, first the one that had this clip when it was last read, or after which a clip of a list is named."""
        stem = name.rpartition("-")[0]
        return sorted(self.files(), key=lambda file: (self.seen.get(name) != file, file.stem != stem))

    def _content(self, file: Path) -> dict[str, Any]:
        """What a file says of each clip, undecoded."""
        content = read_pickle(file)
        if isinstance(content, list):
            content = {f"{file.stem}-{number:04d}": entry for number, entry in enumerate(content)}
        if not isinstance(content, dict) or not content:
            raise DinotrackError(f"{file} holds a {type(content).__name__}; expected a dict or a list of clips")
        named = {plain_name(name, str(file)): entry for name, entry in content.items()}
        if len(named) < len(content):
            raise DinotrackError(f"{file} has two clips of one name")
        self.seen |= dict.fromkeys(named, file)
        return named

    def _clip(self, name: str, entry: Any, where: str) -> BenchmarkClip:
        missing = {"video", "points", "occluded"} - set(entry if isinstance(entry, dict) else ())
        if missing:
            raise DinotrackError(f"{where}: no {', '.join(sorted(missing))}; expected video, points and occluded")
        frames = decoded(entry["video"], where)
        shares, visible = tracks_of(entry, len(frames), where)
        video = Video(frames, self.fps, path=where)
        video = resized(video, tracked_size(video.size, self.resolution))
        return BenchmarkClip(name, video, truth_of(shares, visible, video.size, self.mode, self.stride))


def tracks_of(entry: dict[str, Any], frames: int, where: str) -> tuple[Float[Tensor, "n t 2"], Bool[Tensor, "n t"]]:
    """Positions as shares of the frame, and visibility.

    Raises:
        DinotrackError: for wrong shapes, or visible positions that are not on the frame.
    """
    shares = torch.from_numpy(numbers(entry["points"], (None, frames, 2), "points", where).astype(np.float64))
    visible = ~flags(entry["occluded"], (len(shares), frames), "occluded", where)
    check_positions(shares, visible, "points", where)
    return shares, visible


def truth_of(
    shares: Float[Tensor, "n t 2"], visible: Bool[Tensor, "n t"], size: tuple[int, int], mode: str, stride: int = 5
) -> PointTruth:
    """TAP-Vid's queries of these tracks, and what answers them, at (W, H) `size`."""
    xy = in_pixels(shares, size)
    queries, track = sample_queries(xy, visible, mode, stride)
    queries = torch.cat([queries[:, :1], in_frame(queries[:, 1:], size)], 1)
    everywhere = torch.arange(xy.shape[1])
    return PointTruth(queries, xy[track], visible[track], everywhere, torch.zeros(0), size, mode)


def decoded(stored: Any, where: str) -> Tensor:
    """Frames (T, 3, H, W) of an array (T, H, W, 3), or of T pictures in any format that OpenCV reads.

    Raises:
        DinotrackError: for anything else, with the clip.
    """
    if not isinstance(stored, list | tuple) and not (isinstance(stored, np.ndarray) and stored.dtype.kind == "S"):
        frames = numbers(stored, (None, None, None, 3), "video", where)
        if frames.dtype != np.uint8 or not frames.size:
            raise DinotrackError(f"{where}: video is {frames.dtype} {frames.shape}; expected uint8 and no side of 0")
    else:
        pictures = [_picture(each, number, where) for number, each in enumerate(stored)]
        if len({picture.shape for picture in pictures}) != 1:
            raise DinotrackError(f"{where}: video has pictures of different sizes, or none")
        frames = np.stack(pictures)
    return torch.from_numpy(np.ascontiguousarray(frames.transpose(0, 3, 1, 2)))


def _picture(encoded: Any, number: int, where: str) -> np.ndarray:
    found = None
    if isinstance(encoded, bytes) and encoded:
        with suppress(cv2.error):  # as of a picture whose header asks for gigabytes
            # Points are of the picture as it is stored, whatever its orientation flag says.
            flags = cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION
            found = cv2.imdecode(np.frombuffer(encoded, np.uint8), flags)
    if found is None:
        raise DinotrackError(f"{where}: frame {number} of video is no readable picture; expected JPEG bytes")
    return cv2.cvtColor(found, cv2.COLOR_BGR2RGB)
