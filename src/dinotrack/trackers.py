"""Inference without Lightning: the features of one video, a head, and a visibility rule make a tracker."""

from dataclasses import dataclass
from typing import Protocol, runtime_checkable

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, Shaped
from torch import Tensor

from dinotrack.equations import confidence, trajectory_agreement
from dinotrack.errors import DinotrackError
from dinotrack.geometry import constant_scale, rescale, sample
from dinotrack.growing import placed
from dinotrack.memory import Budget
from dinotrack.networks import TrackerHead
from dinotrack.progress import Progress, silent
from dinotrack.structs import FeatureMap, Tracks


@runtime_checkable
class Tracker(Protocol):
    """Whatever turns queries of one video into tracks."""

    def track(self, queries: Float[Tensor, "n 3"], *, progress: Progress = silent) -> Tracks:
        """Tracks of (t, x, y) queries, in pixels of the video as loaded."""
        ...


@dataclass(frozen=True)
class VisibilityRule:
    """Trajectory agreement (§6): the cosines from which a frame is an anchor, and from which it may be visible."""

    anchor: float = 0.7
    visible: float = 0.6


def check_queries(queries: Shaped[Tensor, "..."], frames: int, size: tuple[int, int]) -> None:
    """Let pass (N, 3) rows (t, x, y) on frames 0 to `frames` - 1 of (W, H) `size`, edges included, also N = 0 (§0).

    Raises:
        DinotrackError: for another shape, or naming the first row that is not finite, between frames or outside.
    """
    if queries.ndim != 2 or queries.shape[1] != 3:
        raise DinotrackError(f"queries have shape {tuple(queries.shape)}; expected (N, 3) rows of (t, x, y)")
    t, x, y = queries.unbind(1)
    width, height = size
    _reject(~queries.isfinite().all(1), queries, "is not finite; expected numbers (t, x, y)")
    _reject(t != t.round(), queries, "lies between frames; expected a whole number t")
    _reject((t < 0) | (t >= frames), queries, f"is on no frame of the video; expected t in 0..{frames - 1}")
    outside = (x < 0) | (y < 0) | (x > width) | (y > height)
    _reject(outside, queries, f"lies outside the video; expected x in [0, {width}], y in [0, {height}]")


def _reject(wrong: Shaped[Tensor, " n"], queries: Shaped[Tensor, "n 3"], why: str) -> None:
    if wrong.any():
        row = int(wrong.nonzero()[0])
        values = ", ".join(f"{value:g}" for value in queries[row].tolist())
        raise DinotrackError(f"query {row} (t, x, y) = ({values}) {why}")


class FeatureTracker:
    """Tracks by the similarity of features (Eq. 2) with visibility by trajectory agreement (§6).

    `features` at working resolution, which may lie in the host's memory or on disk while the head is on a GPU; `size` (W, H) and
    `fps` of the video as loaded; `memory` bounds, in bytes, what one chunk of queries takes beside the features. `shift`, in
    working pixels, is taken off positions on their way in and added on their way out: 0.5 for networks that were fitted to pixel
    indices (§0).
    """

    def __init__(
        self,
        features: FeatureMap,
        head: TrackerHead,
        size: tuple[int, int],
        fps: float = 25.0,
        *,
        scale_constants: bool = True,
        visibility: VisibilityRule = VisibilityRule(),
        memory: float = 1e9,
        shift: float = 0.0,
    ) -> None:
        self.features, self.head, self.size, self.fps = features, head.eval(), size, fps
        self.scale_constants, self.visibility, self.memory, self.shift = scale_constants, visibility, memory, shift

    @property
    def device(self) -> torch.device:
        """Where it computes; the features of a frame come there if they lie elsewhere."""
        return next(self.head.parameters()).device

    @property
    def frames(self) -> int:
        return len(self.features)

    def to(self, device: torch.device | str, budget: Budget = Budget()) -> "FeatureTracker":
        """Move the head to `device`, and the features if the budget has room for them there; in place.

        Chunks of queries become smaller if the budget leaves less than `memory` for them.
        """
        self.features, self.head = placed(self.features, device, budget), self.head.to(device)
        self.memory = min(self.memory, budget.share(device))
        return self

    @torch.no_grad()
    def track(self, queries: Float[Tensor, "n 3"], *, progress: Progress = silent) -> Tracks:
        """Tracks of (t, x, y) queries, in pixels of the video as loaded; the query's own frame returns the query.

        Raises:
            DinotrackError: for a query that is not on the video.
        """
        queries = torch.as_tensor(queries)
        check_queries(queries, self.frames, self.size)
        parts = queries.split(max(1, int(self.memory / 2 / self._bytes_per_query)))
        found = [self._track(part.to(self.device).float(), progress) for part in parts]
        columns = [torch.cat(column).cpu() for column in zip(*found, strict=True)] if found else self._nothing()
        return Tracks(queries.cpu().float(), *columns, size=self.size, fps=self.fps)

    @property
    def _bytes_per_query(self) -> int:
        """What a query takes while it is tracked."""
        _, channels, height, width = self.features.values.shape
        return 4 * self.frames * (3 * channels + 2 * self.frames) + 4 * height * width

    def _nothing(self) -> tuple[Tensor, ...]:
        shape = (0, self.frames)
        return torch.zeros(*shape, 2), torch.zeros(shape, dtype=torch.bool), torch.zeros(shape)

    def _track(self, queries: Float[Tensor, "n 3"], progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        frame, rows = queries[:, 0].long(), torch.arange(len(queries), device=self.device)
        xy = self.positions(frame, rescale(queries[:, 1:], self.size, self.features.size) - self.shift, progress)
        visible, trust = self.judge(frame, xy, progress)
        on_video = rescale(xy + self.shift, self.features.size, self.size)
        on_video[rows, frame] = queries[:, 1:]  # exactly the query, not its rounded round trip
        return on_video, visible, trust

    @torch.no_grad()
    def positions(
        self, frame: Int[Tensor, " n"], query_xy: Float[Tensor, "n 2"], progress: Progress = silent
    ) -> Float[Tensor, "n t 2"]:
        """Π of queries in every frame (Eq. 2), all at working resolution and at once; in its own frame the query."""
        wanted = self._sample(frame, query_xy)
        xy = query_xy.new_empty(len(frame), self.frames, 2)  # in place: see `principal_components`
        for t in progress(range(self.frames), "tracks"):
            xy[:, t] = self.locate(wanted, t)
        xy[torch.arange(len(frame), device=self.device), frame] = query_xy
        return xy

    @torch.no_grad()
    def judge(
        self, frame: Int[Tensor, " n"], xy: Float[Tensor, "n t 2"], progress: Progress = silent
    ) -> tuple[Bool[Tensor, "n t"], Float[Tensor, "n t"]]:
        """Visibility by trajectory agreement (§6) and confidence of tracks at working resolution, queried in `frame`."""
        rows = torch.arange(len(frame), device=self.device)
        along = xy.new_empty(len(frame), self.frames, self.features.values.shape[1])
        for t in range(self.frames):
            along[:, t] = self._sample(torch.full_like(frame, t), xy[:, t])
        cosine = F.cosine_similarity(along, along[rows, frame][:, None], dim=-1)
        disagreement, limit = self._agreement(xy, along, cosine, progress)
        visible = (disagreement <= limit[:, None]) & (cosine >= self.visibility.visible)
        trust = confidence(cosine, disagreement, scale=self.head.radius * self._scale)
        visible[rows, frame], trust[rows, frame] = True, 1.0
        return visible, trust

    def _agreement(
        self,
        xy: Float[Tensor, "n t 2"],
        along: Float[Tensor, "n t c"],
        cosine: Float[Tensor, "n t"],
        progress: Progress,
    ) -> tuple[Float[Tensor, "n t"], Float[Tensor, " n"]]:
        """median_k d_k(t) and e_q of §6."""
        anchors = cosine >= self.visibility.anchor
        distances = xy.new_zeros(len(xy), self.frames, self.frames)
        for k in progress(range(self.frames), "visibility"):
            chosen = anchors[:, k].nonzero().squeeze(1)
            back = self.locate(along[chosen].flatten(0, 1), k).view(len(chosen), self.frames, 2)
            distances[chosen, k] = (back - xy[chosen, k, None]).norm(dim=-1)
        return trajectory_agreement(distances, anchors)

    @property
    def _scale(self) -> float:
        """What constants in pixels are multiplied with."""
        return constant_scale(self.features.size) if self.scale_constants else 1.0

    def _sample(self, frame: Int[Tensor, " n"], xy: Float[Tensor, "n 2"]) -> Float[Tensor, "n c"]:
        values = self.features.values
        return sample(values, frame.to(values.device), xy.to(values.device), self.features.grid).to(self.device)

    def locate(self, wanted: Float[Tensor, "n c"], frame: int) -> Float[Tensor, "n 2"]:
        """Π: where each wanted feature is in `frame`, at working resolution."""
        values = self.features.values[frame].to(self.device)
        height, width = values.shape[1:]
        rows = max(1, int(self.memory / 2 / (4 * 3 * height * width)))  # three maps a row
        chunks = [self.head.find(part, values, self.features.grid, self._scale) for part in wanted.split(rows)]
        return torch.cat(chunks) if chunks else wanted.new_zeros(0, 2)
