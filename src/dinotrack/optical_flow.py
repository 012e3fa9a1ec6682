"""Optical flow between frames (method §3): what an estimator is, and the two that there are, DIS and RAFT."""

import math
from functools import partial
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dinotrack.dis import Dis
from dinotrack.errors import DinotrackError
from dinotrack.raft import Raft


@runtime_checkable
class FlowEstimator(Protocol):
    """Two batches of frames in, the motion from the first to the second out."""

    @property
    def settings(self) -> dict[str, Any]:
        """Plain values from which `build_flow` makes the same estimator again; part of every cache key."""
        ...

    def __call__(self, source: UInt8[Tensor, "b 3 h w"], target: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
        """Motion (x, y) in pixels: what is at the centre p of a pixel of `source` is at p + flow[p] in `target`."""
        ...

    def to(self, device: torch.device | str) -> "FlowEstimator": ...


@runtime_checkable
class Flows(Protocol):
    """The motion between the frames of one video; `len` is their number."""

    batch: int
    """Pairs of frames that are best asked for at once, each in both directions."""

    def __len__(self) -> int: ...

    def __call__(self, source: Int[Tensor, " p"], target: Int[Tensor, " p"]) -> Float[Tensor, "p 2 h w"]:
        """Motion from frames `source` to frames `target`, which are numbers, as `FlowEstimator` has it."""
        ...


@runtime_checkable
class VideoFlowEstimator(FlowEstimator, Protocol):
    """A flow estimator that, of a whole video, reads each frame once and not once for each of its pairs."""

    def over(self, frames: UInt8[Tensor, "t 3 h w"], memory: float = math.inf) -> Flows:
        """Motion between these frames. `memory` bounds, in bytes, what is kept of them between two calls."""
        ...


class PairFlows:
    """The motion between the frames of a video by an estimator that knows no more than pairs of frames, one after the other."""

    batch = 1

    def __init__(self, flow: FlowEstimator, frames: UInt8[Tensor, "t 3 h w"]) -> None:
        self.flow, self.frames = flow, frames

    def __len__(self) -> int:
        return len(self.frames)

    def __call__(self, source: Int[Tensor, " p"], target: Int[Tensor, " p"]) -> Float[Tensor, "p 2 h w"]:
        pairs = zip(source.tolist(), target.tolist(), strict=True)
        flows = [self.flow(self.frames[i : i + 1], self.frames[j : j + 1]) for i, j in pairs]
        empty = torch.zeros(0, 2, *self.frames.shape[2:], device=self.frames.device)
        return torch.cat([empty, *flows])


def flows_over(frames: UInt8[Tensor, "t 3 h w"], flow: FlowEstimator, memory: float = math.inf) -> Flows:
    """The motion between the frames of a video, which are on the estimator's device; of them it keeps `memory` bytes at most."""
    return flow.over(frames, memory) if isinstance(flow, VideoFlowEstimator) else PairFlows(flow, frames)


def build_flow(settings: dict[str, Any]) -> FlowEstimator:
    """The estimator that has these `settings`.

    Raises:
        DinotrackError: when the kind is unknown, or the weights are no longer those that `settings` name.
    """
    options = {name: value for name, value in settings.items() if name not in ("kind", "weights")}
    kinds: dict[str, Any] = {"dis": Dis, "raft": partial(Raft, precision="float32")}  # a RAFT in half precision says so
    if settings.get("kind") not in kinds:
        raise DinotrackError(f"flow kind {settings.get('kind')!r} is unknown; choose one of {', '.join(kinds)}")
    flow: FlowEstimator = kinds[settings["kind"]](**options)
    found, expected = flow.settings.get("weights"), settings.get("weights", flow.settings.get("weights"))
    if found != expected:
        raise DinotrackError(f"the flow's weights are {found}, expected {expected}; give the file they came from")
    return flow
