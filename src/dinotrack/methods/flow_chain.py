"""The flow baseline: optical flow chained from frame to frame, forwards and backwards from the query."""

from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.equations import forward_backward_error
from dinotrack.geometry import constant_scale, inside, rescale
from dinotrack.progress import Progress, silent
from dinotrack.structs import Tracks
from dinotrack.trackers import check_queries


@dataclass(frozen=True)
class FlowChainTracker:
    """A point is visible while inside and forward-backward consistent; once lost it stays where it was, occluded.

    Consistent means within γ_of = `gamma` pixels at a long side of 854 (§0, §3), as tracklets are, unless `scale_constants` is off.
    Flows (T - 1, 2, h, w) in pixels at the frames' own resolution, from each frame to the next and back; `size` (W, H) of the
    video as loaded.
    """

    forward: Float[Tensor, "u 2 h w"]
    backward: Float[Tensor, "u 2 h w"]
    size: tuple[int, int]
    fps: float = 25.0
    gamma: float = 1.5
    scale_constants: bool = True

    def track(self, queries: Float[Tensor, "n 3"], *, progress: Progress = silent) -> Tracks:
        """Tracks of (t, x, y) queries, in pixels of the video as loaded; confidence is 1 while visible."""
        count = len(self.forward) + 1
        check_queries(queries, count, self.size)
        flow_size = (self.forward.shape[3], self.forward.shape[2])
        frame, start = queries[:, 0].long(), rescale(queries[:, 1:].float(), self.size, flow_size)
        xy = start[:, None].expand(-1, count, -1).clone()
        visible = torch.zeros(len(queries), count, dtype=torch.bool)
        visible[torch.arange(len(queries)), frame] = True
        steps = [(t, t + 1, self.forward[t], self.backward[t]) for t in range(count - 1)]
        back = [(t + 1, t, self.backward[t], self.forward[t]) for t in reversed(range(count - 1))]
        for here, there, flow, reverse in progress([*steps, *back], "flow chain"):
            forwards = there > here
            self.step(xy, visible, frame, here, there, forwards, (flow, reverse))
        on_video = rescale(xy, flow_size, self.size)
        on_video[torch.arange(len(queries)), frame] = queries[:, 1:].float()
        return Tracks(queries.float(), on_video, visible, visible.float(), self.size, self.fps)

    def step(
        self,
        xy: Float[Tensor, "n t 2"],
        visible: Bool[Tensor, "n t"],
        frame: Int[Tensor, " n"],
        here: int,
        there: int,
        forwards: bool,
        flows: tuple[Tensor, Tensor],
    ) -> None:
        """Carry the points whose query lies on the near side of `here` on to `there`, in place."""
        on_way = frame <= here if forwards else frame >= here
        landed, error = forward_backward_error(*flows, xy[:, here])
        size = (flows[0].shape[2], flows[0].shape[1])
        limit = self.gamma * (constant_scale(size) if self.scale_constants else 1.0)
        found = visible[:, here] & (error < limit) & inside(landed, size)
        xy[:, there] = torch.where(
            (on_way & found)[:, None], landed, torch.where(on_way[:, None], xy[:, here], xy[:, there])
        )
        visible[:, there] |= on_way & found
