"""Tracklets sorted by the frames that they span, from which flow pairs are drawn without a look at each (method §5)."""

from dataclasses import dataclass
from functools import cached_property
from itertools import pairwise

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from dinotrack.geometry import look_up
from dinotrack.structs import Pairs, Tracklets
from dinotrack.tensor_struct import TensorStruct


@dataclass(frozen=True)
class Spans(TensorStruct):
    """Tracklets by span: those of span k, frames `start[k]` to `stop[k]` - 1, are `order[first[k]:first[k + 1]]`."""

    start: Int[Tensor, " k"]
    stop: Int[Tensor, " k"]
    first: Int[Tensor, " m"]
    order: Int[Tensor, " n"]

    @classmethod
    def of(cls, tracklets: Tracklets, chosen: Bool[Tensor, " n"]) -> "Spans":
        """The spans of the chosen tracklets, by what the drift check confirms; sorted one first frame after the other."""
        begun = tracklets.begun(int(tracklets.start[-1]) + 1 if len(tracklets) else 0)
        order = torch.empty(int(chosen.sum()), dtype=torch.int32)
        start, stop, counts, filled = list[Tensor](), list[Tensor](), list[Tensor](), 0
        for t, (first, last) in enumerate(pairwise(begun)):
            rows = first + chosen[first:last].nonzero().squeeze(1)
            length, sorting = tracklets.length[rows].long().sort(stable=True)
            order[filled : filled + len(rows)] = rows[sorting]
            filled += len(rows)
            lengths, sizes = length.unique_consecutive(return_counts=True)
            start.append(torch.full_like(lengths, t))
            stop.append(t + lengths)
            counts.append(sizes)
        none = torch.zeros(1, dtype=torch.long)
        return cls(
            torch.cat([none[:0], *start]), torch.cat([none[:0], *stop]), torch.cat([none, *counts]).cumsum(0), order
        )

    def on(self, chosen: Int[Tensor, " f"]) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
        """Of each span, the numbers in sorted `chosen` of the first frame on it and of the first one past it."""
        return torch.searchsorted(chosen, self.start), torch.searchsorted(chosen, self.stop)

    def eligible(self, chosen: Int[Tensor, " f"]) -> Int[Tensor, " k"]:
        """Tracklets of each span if at least two of the chosen frames lie on it, else 0."""
        first, last = self.on(chosen)
        return self.first.diff() * (last - first >= 2)


@dataclass(frozen=True)
class TrackletTable(TensorStruct):
    """Tracklets of a video and whether each starts on the foreground; on the CPU, where minibatches are drawn.

    A tracklet is eligible when at least two of the chosen frames lie on it. That depends on its span alone, and a video of T
    frames has at most T(T - 1)/2 spans.
    """

    tracklets: Tracklets
    foreground: Bool[Tensor, " n"]

    @classmethod
    def of(
        cls, tracklets: Tracklets, masks: Bool[Tensor, "t h w"], size: tuple[int, int], *, at_once: int = 2**18
    ) -> "TrackletTable":
        """By masks of frames of (W, H) `size`, some tracklets at a time."""
        foreground = torch.empty(len(tracklets), dtype=torch.bool)
        for first in range(0, len(tracklets), at_once):
            rows = torch.arange(first, min(first + at_once, len(tracklets)))
            starts = tracklets.start[rows].long()
            foreground[rows] = look_up(masks, starts, tracklets.at(rows, starts), size)
        return cls(tracklets, foreground)

    def __len__(self) -> int:
        return len(self.tracklets)

    @cached_property
    def spans(self) -> dict[bool, Spans]:
        """Those of the background and those of the foreground."""
        return {kind: Spans.of(self.tracklets, self.foreground == kind) for kind in (True, False)}

    def eligible(self, chosen: Int[Tensor, " f"], foreground: bool) -> int:
        """How many tracklets of the class are eligible for the sorted frames `chosen`."""
        return int(self.spans[foreground].eligible(chosen).sum())

    def draw(self, chosen: Int[Tensor, " f"], foreground: bool, count: int, generator: torch.Generator) -> Pairs:
        """Pairs of positions on random eligible tracklets: two different chosen frames, in a random direction.

        Where the drift check dropped single positions [P], pairs that have one are left out.
        """
        spans = self.spans[foreground]
        edges = spans.eligible(chosen).cumsum(0)
        if not len(edges) or not edges[-1]:
            return Pairs.empty()
        u = torch.rand(3, count, generator=generator, dtype=torch.float64)
        drawn = (u[0] * edges[-1]).long().clamp(max=edges[-1] - 1)
        span = torch.searchsorted(edges, drawn, right=True)
        index = spans.order[spans.first[span + 1] - edges[span] + drawn].long()
        first, last = (edge[span] for edge in spans.on(chosen))
        a = torch.minimum((u[1] * (last - first)).long(), last - first - 1)
        b = torch.minimum((u[2] * (last - first - 1)).long(), last - first - 2)
        source, target = chosen[first + a], chosen[first + b + (b >= a)]
        xy = (self.tracklets.at(index, source), self.tracklets.at(index, target))
        kept = self.tracklets.supervises(index, source) & self.tracklets.supervises(index, target)
        return Pairs(source, target, *xy, torch.ones(count))[kept]
