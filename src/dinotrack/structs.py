"""The frozen structs of tensors that pass between modules: nothing else does.

Positions are raster (x, y): the top-left corner of the top-left pixel is (0, 0), its centre (0.5, 0.5). Empty is length 0,
never None. Sizes are (W, H) pixels.
"""

from dataclasses import dataclass, field, fields, replace
from functools import cached_property
from typing import Any

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.tensor_struct import TensorStruct, hash_of


@dataclass(frozen=True)
class Video(TensorStruct):
    """Frames as loaded, uint8 RGB, with optional foreground masks of their size (length 0 when there are none)."""

    frames: UInt8[Tensor, "t 3 h w"]
    fps: float = 25.0
    masks: Bool[Tensor, "m h w"] = field(default_factory=lambda: torch.zeros(0, 1, 1, dtype=torch.bool))
    path: str = ""
    start: int = 0
    """Number of the first frame in the file at `path`."""
    full_size: tuple[int, int] = (0, 0)
    """(W, H) of the file at `path`, where frames were scaled down as they were read; by default that of the frames."""

    def __post_init__(self) -> None:
        count, _, height, width = self.frames.shape
        if count < 2:
            raise DinotrackError(f"{self.path or 'the video'} has {count} frame(s); tracking needs at least 2")
        if len(self.masks) == 0:
            empty = torch.zeros(0, height, width, dtype=torch.bool, device=self.frames.device)
            object.__setattr__(self, "masks", empty)
        elif self.masks.shape != (count, height, width):
            raise DinotrackError(
                f"masks are {tuple(self.masks.shape)}, the video needs {(count, height, width)}: one per frame, of its size"
            )
        if not self.fps > 0:
            object.__setattr__(self, "fps", 25.0)
        if self.full_size == (0, 0):
            object.__setattr__(self, "full_size", (width, height))

    def __len__(self) -> int:
        return len(self.frames)

    def __getitem__(self, index: slice) -> "Video":
        first = self.start + index.indices(len(self))[0]
        return replace(self, frames=self.frames[index], masks=self.masks[index], start=first)

    @property
    def size(self) -> tuple[int, int]:
        """(W, H) in the pixels that positions are in: those of the file, also where the frames are smaller."""
        return self.full_size

    @property
    def frame_size(self) -> tuple[int, int]:
        """(W, H) of the frames."""
        return self.frames.shape[3], self.frames.shape[2]

    @property
    def max_side(self) -> int | None:
        """The long side that frames were scaled down to as they were read; None where they were not."""
        return None if self.frame_size == self.full_size else max(self.frame_size)

    @cached_property
    def content_hash(self) -> str:
        """SHA-256 of shape and pixels; masks, frame rate and path do not count."""
        return hash_of(self.frames)


@dataclass(frozen=True)
class Grid:
    """Where the cells of a map look: cell (i, j) at raster (offset + stride * j, offset + stride * i)."""

    stride: float
    offset: float


PIXELS = Grid(stride=1.0, offset=0.5)
"""The grid of an image: pixel j has its centre at j + 0.5."""


@dataclass(frozen=True)
class FeatureMap(TensorStruct):
    """Features of a whole video on a regular grid at working resolution, in half precision."""

    values: Float[Tensor, "t c h w"]
    stride: float
    offset: float
    size: tuple[int, int]
    """(W, H) of the working frames in pixels; positions below are raster positions in them."""

    def __len__(self) -> int:
        return len(self.values)

    @property
    def grid(self) -> Grid:
        return Grid(self.stride, self.offset)


@dataclass(frozen=True)
class Tracklets(TensorStruct):
    """Chains of optical flow (method §3): each a run of consecutive frames, stored ragged, at working resolution.

    Those that begin in an earlier frame come first.
    """

    start: Int[Tensor, " n"]
    """First frame."""
    length: Int[Tensor, " n"]
    """Frames that the drift check confirms; these supervise."""
    chained: Int[Tensor, " n"]
    """Frames before the drift check, at least `length`; these filter best buddies."""
    xy: Float[Tensor, "p 2"]
    """Positions of all chains one after the other, `chained` of each."""
    size: tuple[int, int]
    dropped: Bool[Tensor, " q"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.bool))
    """Positions that the drift check took out of their chain [P], as rows of `xy`; empty where chains end instead [C]."""
    rows: Int[Tensor, " r"] = field(default_factory=lambda: torch.zeros(0, dtype=torch.long))
    """Row of each chain's first position in `xy`; empty where it is counted when it is asked for."""

    def __len__(self) -> int:
        return len(self.start)

    @cached_property
    def offset(self) -> Int[Tensor, " n"]:
        """Row of each chain's first position in `xy`."""
        return self.rows if len(self.rows) == len(self) else self.chained.cumsum(0).sub_(self.chained)

    def begun(self, frames: int) -> list[int]:
        """Chains that begin before each of so many frames, and in all of them: those of frame t begin at the t-th of it.

        Raises:
            DinotrackError: when they are not sorted by their first frame.
        """
        for part, after in zip(self.start.split(2**20), self.start[1:].split(2**20), strict=False):
            if (part[: len(after)] > after).any():
                raise DinotrackError("tracklets must be sorted by their first frame")
        return torch.searchsorted(self.start, torch.arange(frames + 1, dtype=self.start.dtype)).tolist()

    def at(self, index: Int[Tensor, " k"], frame: Int[Tensor, " k"]) -> Float[Tensor, "k 2"]:
        """Positions of chains `index` at `frame`, which must lie on them."""
        return self.xy[self.offset[index] + frame - self.start[index]]

    def supervises(self, index: Int[Tensor, " k"], frame: Int[Tensor, " k"]) -> Bool[Tensor, " k"]:
        """Whether the drift check left in the positions of chains `index` at `frame`, which must lie on them."""
        if not len(self.dropped):
            return torch.ones_like(index, dtype=torch.bool)
        return ~self.dropped[self.offset[index] + frame - self.start[index]]


@dataclass(frozen=True)
class Pairs(TensorStruct):
    """Correspondences: `source_xy` in frame `source` is `target_xy` in frame `target`, trusted by `weight`."""

    source: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    source_xy: Float[Tensor, "n 2"]
    target_xy: Float[Tensor, "n 2"]
    weight: Float[Tensor, " n"]

    def __len__(self) -> int:
        return len(self.source)

    def __getitem__(self, index: Any) -> "Pairs":
        return Pairs(*(getattr(self, f.name)[index] for f in fields(self)))

    def flip(self) -> "Pairs":
        """The same correspondences read from target to source."""
        return Pairs(self.target, self.source, self.target_xy, self.source_xy, self.weight)

    @classmethod
    def empty(cls, device: torch.device | str = "cpu") -> "Pairs":
        index = torch.zeros(0, dtype=torch.long, device=device)
        xy = torch.zeros(0, 2, device=device)
        return cls(index, index, xy, xy, torch.zeros(0, device=device))

    @classmethod
    def cat(cls, parts: "list[Pairs]", device: torch.device | str = "cpu") -> "Pairs":
        """One after the other; of no parts, the empty one on `device`."""
        if not parts:
            return cls.empty(device)
        return cls(*(torch.cat([getattr(part, f.name) for part in parts]) for f in fields(cls)))


@dataclass(frozen=True)
class PairTable(TensorStruct):
    """Pairs sorted by (source frame, target frame, foreground): a slice is two look-ups, a sample is one gather."""

    source: Int[Tensor, " n"]
    target: Int[Tensor, " n"]
    source_xy: Float[Tensor, "n 2"]
    target_xy: Float[Tensor, "n 2"]
    weight: Float[Tensor, " n"]
    foreground: Bool[Tensor, " n"]
    """Whether the source lies on the foreground."""
    searched: Bool[Tensor, "t t"]
    """[i, j]: whether pairs from frame i to frame j were looked for. Minibatches draw among these."""

    def __len__(self) -> int:
        return len(self.source)

    @property
    def frames(self) -> int:
        """Frames of the video."""
        return len(self.searched)

    @classmethod
    def build(cls, pairs: Pairs, foreground: Bool[Tensor, " n"], searched: Bool[Tensor, "t t"]) -> "PairTable":
        """Sort `pairs` into a table; `searched` says between which frames of the video they were looked for."""
        order = ((pairs.source * len(searched) + pairs.target) * 2 + foreground).argsort(stable=True)
        chosen = pairs[order]
        columns = {f.name: getattr(chosen, f.name) for f in fields(Pairs)}
        return cls(**columns, foreground=foreground[order], searched=searched)

    @classmethod
    def empty(cls, frames: int) -> "PairTable":
        """Nothing looked for yet."""
        nowhere = torch.zeros(frames, frames, dtype=torch.bool)
        return cls.build(Pairs.empty(), torch.zeros(0, dtype=torch.bool), nowhere)

    @property
    def pairs(self) -> Pairs:
        return Pairs(self.source, self.target, self.source_xy, self.target_xy, self.weight)

    @cached_property
    def offsets(self) -> Int[Tensor, " m"]:
        """CSR offsets over (source, target, foreground), on the CPU so that slicing waits for no device."""
        counts = torch.zeros(2 * self.frames**2, dtype=torch.long)
        for parts in zip(*(column.split(2**20) for column in (self.source, self.target, self.foreground)), strict=True):
            source, target, foreground = (part.cpu() for part in parts)
            counts += torch.bincount((source * self.frames + target) * 2 + foreground, minlength=len(counts))
        return torch.cat([torch.zeros(1, dtype=torch.long), counts.cumsum(0)])

    @cached_property
    def choices(self) -> Bool[Tensor, "t t"]:
        """`searched`, on the CPU for the same reason."""
        return self.searched.cpu()

    def between(self, source: int, target: int, foreground: bool) -> slice:
        """Rows from frame `source` to frame `target` on the foreground or the background."""
        key = (source * self.frames + target) * 2 + foreground
        return slice(int(self.offsets[key]), int(self.offsets[key + 1]))


@dataclass(frozen=True)
class Tracks(TensorStruct):
    """What a tracker says of its queries, in the pixels of the video as loaded."""

    queries: Float[Tensor, "n 3"]
    """(t, x, y) rows."""
    xy: Float[Tensor, "n t 2"]
    visible: Bool[Tensor, "n t"]
    confidence: Float[Tensor, "n t"]
    """In [0, 1]; it orders positions by how far they are to be trusted, and is no probability."""
    size: tuple[int, int]
    fps: float

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: Any) -> "Tracks":
        parts = {name: getattr(self, name)[index] for name in ("queries", "xy", "visible", "confidence")}
        return replace(self, **parts)


def check_mode(mode: str) -> None:
    """Let pass the two ways in which TAP-Vid chooses queries (method §7).

    Raises:
        DinotrackError: for any other.
    """
    if mode not in ("strided", "first"):
        raise DinotrackError(f"mode={mode!r}; choose strided or first")


@dataclass(frozen=True)
class PointTruth(TensorStruct):
    """What tracks of a clip's queries are scored against: row n answers query n, columns are the annotated `frames`."""

    queries: Float[Tensor, "n 3"]
    """(t, x, y) rows, in pixels of `size`."""
    xy: Float[Tensor, "n f 2"]
    """Raster positions, without meaning where not visible."""
    visible: Bool[Tensor, "n f"]
    frames: Int[Tensor, " f"]
    areas: Float[Tensor, " a"]
    """Foreground area of each annotated frame in pixels of `size`: BADJA's scores; empty for TAP-Vid's."""
    size: tuple[int, int]
    """(W, H) of the video as it is tracked."""
    mode: str
    """How TAP-Vid's queries were chosen: strided or first."""

    def __post_init__(self) -> None:
        check_mode(self.mode)
        rows, columns = len(self.queries), len(self.frames)
        if self.xy.shape[:2] != (rows, columns) or self.visible.shape != (rows, columns):
            raise DinotrackError(
                f"ground truth of {tuple(self.xy.shape)} positions and {tuple(self.visible.shape)} visibilities "
                f"for {rows} queries and {columns} frames"
            )

    def __len__(self) -> int:
        return len(self.queries)

    def __getitem__(self, index: Any) -> "PointTruth":
        return replace(self, queries=self.queries[index], xy=self.xy[index], visible=self.visible[index])


NO_TRUTH = PointTruth(
    torch.zeros(0, 3),
    torch.zeros(0, 0, 2),
    torch.zeros(0, 0, dtype=torch.bool),
    torch.zeros(0, dtype=torch.long),
    torch.zeros(0),
    (1, 1),
    "strided",
)
"""Of a video without ground truth."""
