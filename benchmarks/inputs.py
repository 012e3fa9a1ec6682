"""Generated input of a given size: moving features, nearly consistent flow, random networks. Nothing is downloaded."""

from dataclasses import dataclass
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from dinotrack.correspondences import dino_best_buddies, frame_pairs, searched_between, table_of
from dinotrack.geometry import constant_scale
from dinotrack.networks import DeltaDino, TrackerHead
from dinotrack.refined_pairs import PairSearch
from dinotrack.structs import FeatureMap, PairTable, Tracklets
from dinotrack.tracklets import build_tracklets
from dinotrack.training.batch import Batch, BatchSettings, Store
from dinotrack.training.rebuild import rebuilt_tables
from dinotrack.training.tracklet_table import TrackletTable


@dataclass(frozen=True)
class Size:
    """Frames (T, H, W) and channels; tokens of a ViT of patch 14 at stride 7."""

    frames: int
    height: int
    width: int
    channels: int = 1024
    queries: int = 128

    @property
    def tokens(self) -> tuple[int, int]:
        """Rows and columns."""
        return (self.height - 14) // 7 + 1, (self.width - 14) // 7 + 1


SIZES = {
    "S": Size(12, 126, 224),
    "M": Size(24, 238, 420),
    "L": Size(50, 238, 420),
    "full": Size(100, 476, 854, queries=600),
}


class GivenFlow:
    """Flow that costs nothing: everything moves by the same step a frame, with smooth errors that break and bend some chains.

    Frames bear their number in their first pixel.
    """

    def __init__(self, size: Size, step: tuple[float, float] = (1.3, -0.7), error: float = 0.6, seed: int = 0) -> None:
        rng = torch.Generator().manual_seed(seed)
        small = torch.randn(8, 2, size.height // 24 + 2, size.width // 24 + 2, generator=rng)
        error *= constant_scale((size.width, size.height))  # as the limits of tracklets
        self.errors = error * F.interpolate(small, (size.height, size.width), mode="bicubic", align_corners=True)
        self.step = torch.tensor(step)[:, None, None]
        self.settings: dict[str, Any] = {"kind": "given"}
        self.asked = 0

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        i, j = int(source[0, 0, 0, 0]), int(target[0, 0, 0, 0])
        self.asked += 1
        error = self.errors[(5 * i + 3 * j) % 8] * abs(j - i) ** 0.5
        return ((j - i) * self.step + error)[None]

    def to(self, device: torch.device | str) -> "GivenFlow":
        self.errors, self.step = self.errors.to(device), self.step.to(device)
        return self


def numbered_frames(size: Size, seed: int = 0) -> Tensor:
    """Smooth random uint8 frames (T, 3, H, W) that bear their number in their first pixel."""
    rng = torch.Generator().manual_seed(seed)
    small = torch.rand(size.frames, 3, size.height // 8, size.width // 8, generator=rng)
    frames = (255 * F.interpolate(small, (size.height, size.width), mode="bilinear")).byte()
    frames[:, :, 0, 0] = torch.arange(size.frames, dtype=torch.uint8)[:, None]
    return frames


def moving_features(size: Size, *, noise: tuple[float, float] = (0.6, 2.0), seed: int = 0) -> FeatureMap:
    """A random sheet of features that moves a fifth of a token a frame, in half precision.

    With little noise on the left 40 %, where most tokens are best buddies and most frames anchors, and much on the rest.
    """
    rng = torch.Generator().manual_seed(seed)
    height, width = size.tokens
    margin = size.frames // 5 + 2
    sheet = torch.randn(1, size.channels, height + margin, width + margin, generator=rng)
    sheet = F.avg_pool2d(sheet, 3, 1, 1) * 3
    maps, strength = [], torch.full((width,), noise[1])
    strength[: int(0.4 * width)] = noise[0]
    for t in range(size.frames):
        whole, part = divmod(0.2 * t, 1.0)
        near, far = (sheet[..., int(whole) + k : int(whole) + k + height, :width] for k in (0, 1))
        moved = (1 - part) * near + part * far
        maps.append((moved + strength * torch.randn(moved.shape, generator=rng)).half()[0])
    return FeatureMap(torch.stack(maps), 7.0, 7.0, (size.width, size.height))


@dataclass
class Inputs:
    """What the stages of one size work on; each part is made when it is first asked for."""

    size: Size
    device: torch.device
    seed: int = 0

    @cached_property
    def frames(self) -> Tensor:
        return numbered_frames(self.size, self.seed).to(self.device)

    @cached_property
    def flow(self) -> GivenFlow:
        return GivenFlow(self.size, seed=self.seed).to(self.device)

    @cached_property
    def features(self) -> FeatureMap:
        return moving_features(self.size, seed=self.seed).to(self.device)

    @cached_property
    def tracklets(self) -> Tracklets:
        return build_tracklets(self.frames, self.flow, device=self.device)

    @cached_property
    def delta(self) -> DeltaDino:
        torch.manual_seed(self.seed)
        return DeltaDino(self.size.channels, zero_start=False).to(self.device)

    @cached_property
    def head(self) -> TrackerHead:
        """A head whose refiner is far from the kernels of sum zero that a random one may have."""
        torch.manual_seed(self.seed)
        head = TrackerHead()
        with torch.no_grad():
            for parameter in head.parameters():
                parameter.copy_(parameter.abs() + 0.02)
        return head.to(self.device)

    @cached_property
    def masks(self) -> Tensor:
        """A third of each frame is foreground."""
        masks = torch.zeros(self.size.frames, self.size.height, self.size.width, dtype=torch.bool)
        masks[:, :, : self.size.width // 3] = True
        return masks.to(self.device)

    @cached_property
    def best_buddies(self) -> PairTable:
        pairs = dino_best_buddies(self.features, self.tracklets, device=self.device)
        every = searched_between(frame_pairs(self.size.frames, 4950), self.size.frames)
        return table_of(pairs, self.masks.cpu(), self.features.size, every)

    @cached_property
    def store(self) -> Store:
        """With the tables of a rebuild, so that steps may have all losses."""
        starts = self.tracklets.start.long()
        first = self.tracklets.at(torch.arange(len(starts)), starts)
        empty = PairTable.empty(self.size.frames)
        store = Store(
            self.frames,
            self.features,
            TrackletTable(self.tracklets.to("cpu"), (first[:, 0] < self.size.width / 3).cpu()),
            self.best_buddies,
            empty,
            empty,
            self.masks,
        ).to(self.device)
        from dataclasses import replace

        generator = torch.Generator().manual_seed(self.seed)
        tables = rebuilt_tables(store, self.delta, self.head, self.search, generator, {"refined", "cycle"}, count=20)
        return replace(store, **tables)

    @cached_property
    def search(self) -> PairSearch:
        """Wide, so that a random head finds cycles: the cost of the step is that of full pair counts."""
        return PairSearch(gamma=1e4)

    @cached_property
    def batch(self) -> Batch:
        return self.store.draw(BatchSettings(), torch.Generator().manual_seed(self.seed))

    @cached_property
    def queries(self) -> Tensor:
        """(t, x, y) rows on random frames."""
        rng = torch.Generator().manual_seed(self.seed)
        share = torch.rand(self.size.queries, 3, generator=rng)
        scale = torch.tensor([self.size.frames - 1.0, self.size.width, self.size.height])
        queries = share * scale
        queries[:, 0] = queries[:, 0].round()
        return queries

    @property
    def scale(self) -> float:
        """What constants in pixels are multiplied with."""
        return constant_scale(self.features.size)
