"""Optical-flow tracklets (method §3): chains of flow from frame to frame, and their check for drift."""

from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dinotrack.equations import follow, forward_backward_error
from dinotrack.errors import DinotrackError
from dinotrack.geometry import centres, constant_scale, inside, nearest_cell
from dinotrack.memory import Budget
from dinotrack.optical_flow import FlowEstimator, Flows, flows_over
from dinotrack.progress import Progress, silent
from dinotrack.spilling import PART, Pile, zeros
from dinotrack.structs import PIXELS, Tracklets


def consecutive_flows(
    flows: Flows, progress: Progress = silent
) -> Iterator[tuple[Float[Tensor, "2 h w"], Float[Tensor, "2 h w"]]]:
    """Flow from each frame to the next, and from the next back: one pair of frames after the other, held by nobody here."""
    for some in progress(torch.arange(len(flows) - 1).split(flows.batch), "optical flow"):
        yield from zip(*both_ways(flows, some, some + 1), strict=True)


def both_ways(
    flows: Flows, first: Int[Tensor, " p"], second: Int[Tensor, " p"]
) -> tuple[Float[Tensor, "p 2 h w"], Float[Tensor, "p 2 h w"]]:
    """Flow from frames `first` to frames `second` and back, asked for at once."""
    found = flows(torch.cat([first, second]), torch.cat([second, first]))
    return found[: len(first)], found[len(first) :]


def new_starts(
    occupied: Bool[Tensor, "h w"], forward: Float[Tensor, "2 h w"], backward: Float[Tensor, "2 h w"], limit: float
) -> Bool[Tensor, "h w"]:
    """Pixels of a frame where tracklets start (§3), from the flow of the previous frame to it and back.

    Those through which no tracklet passes, whose backward flow is inconsistent, or on which no forward flow lands.
    """
    height, width = occupied.shape
    pixels = centres(height, width, PIXELS, occupied.device)
    _, error = forward_backward_error(backward, forward, pixels)
    landed = follow(forward, pixels)
    reached = torch.zeros_like(occupied).flatten()
    reached[nearest_cell(landed[inside(landed, (width, height))], PIXELS, height, width)] = True
    return ~occupied | (error >= limit).view(height, width) | ~reached.view(height, width)


def stacked(flows: Flows, progress: Progress = silent) -> tuple[Float[Tensor, "u 2 h w"], Float[Tensor, "u 2 h w"]]:
    """Consecutive flows of a whole video at once, those forwards and those backwards, on the CPU; none of a single frame."""
    batches = progress(torch.arange(len(flows) - 1).split(flows.batch), "optical flow")
    parts = [[way.cpu() for way in both_ways(flows, some, some + 1)] for some in batches]
    forward, backward = (torch.cat(way) for way in zip(*parts, strict=True))
    return forward, backward


def chain(
    flows: Iterable[tuple[Float[Tensor, "2 h w"], Float[Tensor, "2 h w"]]],
    *,
    gamma: float = 1.5,
    budget: Budget = Budget(),
) -> Tracklets:
    """Tracklets before the drift check (§3), from the flows from each frame to the next and back, of which two are held.

    x^j = x^{j-1} + f(x^{j-1}) while the forward-backward error is below `gamma` pixels and x stays inside the frame. They are on
    the CPU, or in unnamed files where the budget has no room for them.
    """
    ids, xy, size = torch.zeros(0, dtype=torch.int32), torch.zeros(0, 2), (0, 0)
    rows, begun = Pile(budget), list[int]()
    before: list[Tensor] = []
    for forward, backward in flows:
        (_, height, width), device = forward.shape, forward.device
        pixels, size = centres(height, width, PIXELS, device), (width, height)
        ids, xy = ids.to(device), xy.to(device)
        occupied = torch.zeros(height * width, dtype=torch.bool, device=device)
        occupied[nearest_cell(xy, PIXELS, height, width)] = True
        occupied = occupied.view(height, width)
        starts = pixels[(new_starts(occupied, *before, gamma) if before else ~occupied).flatten()]
        known, xy = len(xy), torch.cat([xy, starts])
        landed, error = forward_backward_error(forward, backward, xy)
        alive = (error < gamma) & inside(landed, size)
        # One that ends where it starts is no tracklet and gets no number.
        ids = torch.cat([ids, sum(begun) + alive[known:].cumsum(0, dtype=torch.int32) - 1])
        begun.append(int(alive[known:].sum()))
        rows.add(torch.cat([ids[:known], ids[known:][alive[known:]]]))
        rows.add(torch.cat([xy[:known], xy[known:][alive[known:]]]))
        ids, xy, before = ids[alive], landed[alive], [forward, backward]
    rows.add(ids)  # a start in the last frame would be no tracklet
    rows.add(xy)
    return gather_rows(rows, begun, size, budget)


def gather_rows(rows: Pile, begun: list[int], size: tuple[int, int], budget: Budget = Budget()) -> Tracklets:
    """Numbers and positions of each frame's tracklets, and how many begin in it, as ragged tracklets.

    A position's place is known once all are counted, and no sorting is needed. The rows are taken off the pile one by one, as
    their positions come to lie where they stay.
    """
    start, length = (zeros((sum(begun),), torch.int32, budget) for _ in range(2))
    first = zeros((len(start),), torch.int64, budget)
    for t, part in enumerate(start.split(begun)):
        part.fill_(t)
    for t in range(0, len(rows), 2):
        length[rows[t]] += 1  # once each: a number is in a frame once
    total = 0
    for part, counts in zip(first.split(begun), length.split(begun), strict=True):
        ends = total + counts.cumsum(0)
        part.copy_(ends - counts)
        total = int(ends[-1]) if len(ends) else total
    xy = zeros((total, 2), torch.float32, budget)
    for t in range(len(rows) // 2):
        ids, positions = rows[2 * t], rows[2 * t + 1]
        xy[first[ids] + (t - start[ids])] = positions
        rows.drop(2 * t)
        rows.drop(2 * t + 1)
    return Tracklets(start, length, length, xy, size, rows=first)


def limit_drift(
    tracklets: Tracklets,
    flows: Flows,
    *,
    gamma: float = 1.5,
    gamma_long: float = 2.5,
    drift: Literal["end", "drop"] = "end",
    budget: Budget = Budget(),
    progress: Progress = silent,
) -> Tracklets:
    """Take out of tracklets what the direct flow from their first frame disagrees with by `gamma_long` pixels or more (§3).

    `drift` says what: all from there on [C], or that position alone [P]. The direct flow counts where it is itself
    cycle-consistent (below `gamma`) and lands inside. Only pairs of frames that some tracklet still spans are computed: those
    that are equally far apart, batch by batch, before those farther apart.

    Raises:
        DinotrackError: for another `drift`.
    """
    if drift not in ("end", "drop"):
        raise DinotrackError(f"drift={drift!r} is neither 'end' nor 'drop'")
    length = zeros((len(tracklets),), tracklets.length.dtype, budget).copy_(tracklets.length)
    dropped = zeros((len(tracklets.xy) if drift == "drop" else 0,), torch.bool, budget)
    begun = tracklets.begun(len(flows))
    living = list(range(len(flows)))
    for apart in progress(range(2, len(flows)), "drift check"):
        spanned = those_alive(length, begun, living, apart)
        living = []
        while batch := list(islice(spanned, flows.batch)):
            first = torch.tensor([i for i, _ in batch])
            living += first.tolist()
            for (i, group), direct, back in zip(batch, *both_ways(flows, first, first + apart), strict=True):
                device = direct.device
                xy, chained = (tracklets.at(group, torch.full_like(group, t)).to(device) for t in (i, i + apart))
                landed, error = forward_backward_error(direct, back, xy)
                off = (landed - chained).norm(dim=1)
                drifted = (error < gamma) & inside(landed, tracklets.size) & (off >= gamma_long)
                some = group[drifted.cpu()]
                if drift == "end":
                    length[some] = apart
                else:
                    dropped[tracklets.offset[some] + apart] = True
    return replace(tracklets, length=length, dropped=dropped)


def those_alive(
    length: Int[Tensor, " n"], begun: list[int], starts: list[int], apart: int
) -> Iterator[tuple[int, Int[Tensor, " m"]]]:
    """(i, the tracklets that begin in frame i and last for more than `apart` frames), for each i of `starts` that has some."""
    for i in starts:
        group = begun[i] + (length[begun[i] : begun[i + 1]] > apart).nonzero().squeeze(1)
        if len(group):
            yield i, group


def build_tracklets(
    frames: UInt8[Tensor, "t 3 h w"],
    flow: FlowEstimator,
    *,
    gamma: float = 1.5,
    gamma_long: float = 2.5,
    drift: Literal["end", "drop"] = "end",
    scale: bool = True,
    device: torch.device | str = "cpu",
    budget: Budget = Budget(),
    progress: Progress = silent,
) -> Tracklets:
    """Flow tracklets of a video at working resolution (§3); `scale` takes γ_of and γ_lng as pixels at a long side of 854.

    `flow` sees the frames on `device`, and the points are followed there; the tracklets are on the CPU. What the budget has no
    room for lies in unnamed files, and what a flow estimator knows of a frame is made again.
    """
    size = (frames.shape[3], frames.shape[2])
    factor = constant_scale(size) if scale else 1.0
    memory = min(budget.share(place, PART) for place in (device, "cpu"))  # DIS keeps what it knows on the CPU
    flows = flows_over(frames.to(device), flow, memory)
    chained = chain(consecutive_flows(flows, progress), gamma=gamma * factor, budget=budget)
    chained = replace(chained, size=size)  # which no flow says of a single frame
    limits = {"gamma": gamma * factor, "gamma_long": gamma_long * factor}
    return limit_drift(chained, flows, **limits, drift=drift, budget=budget, progress=progress)
