"""Supervision of a fit (method §3): optical-flow tracklets and DINO best buddies, vectorised over points."""

import math
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Literal

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dinotrack.cosines import Cosines, ambiguities
from dinotrack.equations import (
    best_buddies,
    best_buddy_weight,
    follow,
    forward_backward_error,
    unit,
)
from dinotrack.errors import DinotrackError
from dinotrack.geometry import centres, constant_scale, inside, look_up, nearest_cell
from dinotrack.optical_flow import FlowEstimator, Flows, flows_over
from dinotrack.progress import Progress, silent
from dinotrack.structs import PIXELS, FeatureMap, Grid, Pairs, PairTable, Tracklets


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


def chain(flows: Iterable[tuple[Float[Tensor, "2 h w"], Float[Tensor, "2 h w"]]], *, gamma: float = 1.5) -> Tracklets:
    """Tracklets before the drift check (§3), from the flows from each frame to the next and back, of which two are held.

    x^j = x^{j-1} + f(x^{j-1}) while the forward-backward error is below `gamma` pixels and x stays inside the frame.
    """
    ids, xy, size = torch.zeros(0, dtype=torch.int32), torch.zeros(0, 2), (0, 0)
    rows: list[tuple[Tensor, Tensor]] = []
    starts: list[Tensor] = []
    before: list[Tensor] = []
    for t, (forward, backward) in enumerate(flows):
        (_, height, width), device = forward.shape, forward.device
        pixels, size = centres(height, width, PIXELS, device), (width, height)
        ids, xy = ids.to(device), xy.to(device)
        occupied = torch.zeros(height * width, dtype=torch.bool, device=device)
        occupied[nearest_cell(xy, PIXELS, height, width)] = True
        occupied = occupied.view(height, width)
        begun = pixels[(new_starts(occupied, *before, gamma) if before else ~occupied).flatten()]
        total = sum(map(len, starts))
        starts.append(torch.full((len(begun),), t, device=device))
        ids = torch.cat([ids, torch.arange(total, total + len(begun), dtype=torch.int32, device=device)])
        xy = torch.cat([xy, begun])
        rows.append((ids, xy))
        landed, error = forward_backward_error(forward, backward, xy)
        alive = (error < gamma) & inside(landed, size)
        ids, xy, before = ids[alive], landed[alive], [forward, backward]
    rows.append((ids, xy))  # a start in the last frame would be no tracklet
    return gather_rows(rows, torch.cat(starts) if starts else ids, size)


def gather_rows(rows: list[tuple[Tensor, Tensor]], start: Int[Tensor, " n"], size: tuple[int, int]) -> Tracklets:
    """(ids, xy) of each frame as ragged tracklets of two frames or more.

    A position's place is known once all are counted, and no sorting is needed. The rows are taken out of the list one by one, so
    that positions are not held twice.
    """
    length = torch.zeros(len(start), dtype=torch.int32, device=start.device)
    for ids, _ in rows:
        length[ids] += 1  # once each: an id is in a frame once
    keep = length >= 2
    end = (length * keep).cumsum(0)
    xy = torch.empty(int(end[-1]) if len(end) else 0, 2, device=start.device)
    first = end - length - start  # of a chain's row in frame 0, were it there
    for t in range(len(rows)):
        ids, positions = rows[t]
        kept = keep[ids]
        xy[first[ids[kept]] + t] = positions[kept]
        rows[t] = (ids.new_empty(0), positions.new_empty(0, 2))
    return Tracklets(start[keep].int(), length[keep], length[keep], xy, size)


def limit_drift(
    tracklets: Tracklets,
    flows: Flows,
    *,
    gamma: float = 1.5,
    gamma_long: float = 2.5,
    drift: Literal["end", "drop"] = "end",
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
    length, device = tracklets.length.clone(), tracklets.xy.device
    dropped = torch.zeros(len(tracklets.xy) if drift == "drop" else 0, dtype=torch.bool, device=device)
    living = torch.arange(len(tracklets), device=device)
    for apart in progress(range(2, len(flows)), "drift check"):
        living = living[length[living] > apart]
        for i, group, direct, back in spanned_flows(tracklets, living, apart, flows):
            landed, error = forward_backward_error(direct, back, tracklets.at(group, torch.full_like(group, i)))
            off = (landed - tracklets.at(group, torch.full_like(group, i + apart))).norm(dim=1)
            drifted = group[(error < gamma) & inside(landed, tracklets.size) & (off >= gamma_long)]
            if drift == "end":
                length[drifted] = apart
            else:
                dropped[tracklets.offset[drifted] + apart] = True
    return replace(tracklets, length=length, dropped=dropped)


def spanned_flows(
    tracklets: Tracklets, living: Int[Tensor, " n"], apart: int, flows: Flows
) -> Iterator[tuple[int, Int[Tensor, " m"], Float[Tensor, "2 h w"], Float[Tensor, "2 h w"]]]:
    """(i, those of the tracklets `living` that start in frame i, flow from i to i + `apart` and back), for each such frame."""
    # Chains that start together are next to each other, because they are numbered by their first frame.
    starts, sizes = tracklets.start[living].cpu().long().unique_consecutive(return_counts=True)
    groups = dict(zip(starts.tolist(), living.split(sizes.tolist()), strict=True))
    for first in starts.split(flows.batch) if len(starts) else ():
        for i, direct, back in zip(first.tolist(), *both_ways(flows, first, first + apart), strict=True):
            yield i, groups[i], direct, back


def build_tracklets(
    frames: UInt8[Tensor, "t 3 h w"],
    flow: FlowEstimator,
    *,
    gamma: float = 1.5,
    gamma_long: float = 2.5,
    drift: Literal["end", "drop"] = "end",
    scale: bool = True,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> Tracklets:
    """Flow tracklets of a video at working resolution (§3); `scale` takes γ_of and γ_lng as pixels at a long side of 854.

    `flow` sees the frames on `device`, and the points are followed there; the tracklets come back on the CPU.
    """
    size = (frames.shape[3], frames.shape[2])
    factor, flows = constant_scale(size) if scale else 1.0, flows_over(frames.to(device), flow)
    chained = chain(consecutive_flows(flows, progress), gamma=gamma * factor)
    chained = replace(chained, size=size)  # which no flow says of a single frame
    limits = {"gamma": gamma * factor, "gamma_long": gamma_long * factor}
    return limit_drift(chained, flows, **limits, drift=drift, progress=progress).to("cpu")


def nearest_last_frames(
    tracklets: Tracklets, frame: int, grid: Grid, height: int, width: int
) -> Int[Tensor, "cells 2"]:
    """First and last frame of the chained tracklet nearest to each token of `frame`; (frame, frame) where none lives (§3)."""
    tokens = centres(height, width, grid, tracklets.xy.device)
    alive = torch.nonzero((tracklets.start <= frame) & (frame < tracklets.start + tracklets.chained)).squeeze(1)
    span = torch.full((len(tokens), 2), frame, dtype=torch.int32, device=tokens.device)
    if not len(alive):
        return span
    xy = tracklets.at(alive, torch.full_like(alive, frame))
    chosen = alive[nearest_points(xy, grid, height, width)]
    return torch.stack([tracklets.start[chosen], tracklets.start[chosen] + tracklets.chained[chosen] - 1], 1)


def nearest_points(
    xy: Float[Tensor, "n 2"], grid: Grid, height: int, width: int, *, rings: int = 2
) -> Int[Tensor, " cells"]:
    """The point nearest to each cell's centre, of equals the first.

    It is looked for among the points of the cell itself, then among those of the cells around it. A point beyond r rings of cells
    is at least r + 1/2 strides away, so that a nearer one that was found is the nearest of all; the few cells without one are
    compared with every point.
    """
    centre, cell = centres(height, width, grid, xy.device), nearest_cell(xy, grid, height, width)
    every = torch.arange(len(xy), device=xy.device)
    least, nearest = nearest_of(centre, xy, cell, every)
    far = least > grid.stride / 2
    if far.any():
        token, point = around(cell, far.view(height, width), rings)
        further, other = nearest_of(centre, xy, token, point)
        least, nearest = torch.where(far, further, least), torch.where(far, other, nearest)
    for chunk in torch.nonzero(least > (rings + 0.5) * grid.stride).squeeze(1).split(256):
        nearest[chunk] = torch.cdist(centre[chunk], xy).argmin(1)
    return nearest


def nearest_of(
    centre: Float[Tensor, "cells 2"], xy: Float[Tensor, "n 2"], cell: Int[Tensor, " k"], point: Int[Tensor, " k"]
) -> tuple[Float[Tensor, " cells"], Int[Tensor, " cells"]]:
    """Of pairs of a cell and a point: each cell's smallest distance, infinite without a pair, and the first point that has it."""
    distance = (xy[point] - centre[cell]).norm(dim=1)
    least = torch.full((len(centre),), torch.inf, device=xy.device).scatter_reduce(0, cell, distance, "amin")
    hits = torch.nonzero(distance == least[cell]).squeeze(1)
    nearest = torch.full((len(centre),), len(xy), device=xy.device).scatter_reduce(0, cell[hits], point[hits], "amin")
    return least, nearest


def around(
    cell: Int[Tensor, " n"], wanted: Bool[Tensor, "h w"], rings: int
) -> tuple[Int[Tensor, " k"], Int[Tensor, " k"]]:
    """Pairs of a wanted cell and a point in it or in the `rings` of cells around it; `cell` is each point's own."""
    width = wanted.shape[1]
    padded = F.pad(wanted, (rings, rings, rings, rings)).flatten()
    row, column = cell // width, cell % width
    tokens, points = [], []
    for down in range(-rings, rings + 1):
        for right in range(-rings, rings + 1):
            place = (row + down + rings) * (width + 2 * rings) + column + right + rings
            points.append(padded[place].nonzero().squeeze(1))
            tokens.append((cell + down * width + right)[points[-1]])
    return torch.cat(tokens), torch.cat(points)


def frame_pairs(frames: int, limit: int, generator: torch.Generator | None = None) -> list[tuple[int, int]]:
    """Unordered pairs of frames i < j: all of them, or `limit` random ones, without `generator` always the same."""
    index = torch.combinations(torch.arange(frames))
    if len(index) > limit:
        generator = generator or torch.Generator().manual_seed(0)
        index = index[torch.randperm(len(index), generator=generator)[:limit].sort().values]
    return [(int(i), int(j)) for i, j in index]


def dino_best_buddies(
    features: FeatureMap,
    tracklets: Tracklets,
    *,
    side: float = 60.0,
    overlap: float = 0.2,
    candidates: int = 400,
    max_frame_pairs: int = 4950,
    scale: bool = True,
    device: torch.device | str = "cpu",
    memory: float = 4e9,
    progress: Progress = silent,
) -> Pairs:
    """DINO best buddies of every unordered pair of frames (Eq. 3), filtered by flow, with their weights (§3).

    `source` is the earlier frame. `side` is in pixels at a long side of 854 unless `scale` is off; up to 100 frames make
    4950 pairs, of longer videos `max_frame_pairs` are chosen at random. `memory` bounds, in bytes, the unit rows of all frames,
    which are made again where they do not fit; the pairs are the same.
    """
    count, _, height, width = features.values.shape
    tokens = centres(height, width, features.grid, device)
    peaks = {
        "side": side * (constant_scale(features.size) if scale else 1.0),
        "overlap": overlap,
        "candidates": candidates,
    }
    spans = [nearest_last_frames(tracklets, t, features.grid, height, width).to(device) for t in range(count)]
    found: dict[tuple[int, int], Pairs] = {}
    every = frame_pairs(count, max_frame_pairs)
    for i, j, similarities in progress(Cosines(features.values, every, device, memory), "best buddies"):
        source, target = best_buddies(similarities)
        supervised = (spans[i][source, 1] >= j) | (spans[j][target, 0] <= i)
        source, target = source[~supervised], target[~supervised]
        ratio = torch.maximum(
            ambiguities(similarities, source, 0, tokens, **peaks), ambiguities(similarities, target, 1, tokens, **peaks)
        )
        weight = best_buddy_weight(ratio, similarities[source, target])
        first, second = torch.full_like(source, i), torch.full_like(target, j)
        found[i, j] = Pairs(first, second, tokens[source], tokens[target], weight).to("cpu")
    return Pairs.cat([found[pair] for pair in every])


def principal_axes(features: FeatureMap, count: int) -> Float[Tensor, "k c"]:
    """The first `count` principal axes of the normalised features of all frames, the one of most variance first; zero beyond C."""
    frames, channels = features.values.shape[:2]
    mean, second = torch.zeros(channels), torch.zeros(channels, channels)
    maps = (unit(values.flatten(1).T.float().cpu()) for values in features.values)
    for tokens in maps:
        mean += tokens.mean(0) / frames
        second += tokens.T @ tokens / (len(tokens) * frames)
    vectors = torch.linalg.eigh((second - mean.outer(mean)).double()).eigenvectors
    axes = torch.zeros(count, channels)
    axes[:channels] = vectors.flip(1).T[:count].float()
    return axes


def principal_components(features: FeatureMap, count: int) -> Float[Tensor, "t cells k"]:
    """The first `count` components of the normalised features of every token of all frames."""
    axes = principal_axes(features, count)
    # Filled in place: small results kept one by one among large temporaries leave holes in the heap that add up over the frames.
    found = torch.empty(len(features), math.prod(features.values.shape[2:]), count)
    for components, values in zip(found, features.values, strict=True):
        torch.mm(unit(values.flatten(1).T.float().cpu()), axes.T, out=components)
    return found


def saliency_masks(features: FeatureMap, *, threshold: float = 0.6) -> Bool[Tensor, "t h w"]:
    """Foreground of a video without masks (§3): first principal component of the normalised features of all frames, < 0.6.

    The component is min-max scaled over the video; of its two signs that is taken which leaves less foreground on the border.
    """
    count, _, height, width = features.values.shape
    score = principal_components(features, 1).view(count, height, width)
    scaled = (score - score.min()) / (score.max() - score.min()).clamp(min=1e-8)
    border = torch.ones(height, width, dtype=torch.bool)
    border[1:-1, 1:-1] = False
    options = [scaled < threshold, (1 - scaled) < threshold]
    return min(options, key=lambda mask: float(mask[:, border].float().mean()))


def searched_between(frame_pairs: Sequence[tuple[int, int]], frames: int) -> Bool[Tensor, "t t"]:
    """Which ordered pairs of frames were searched, when `frame_pairs` were in both directions."""
    searched = torch.zeros(frames, frames, dtype=torch.bool)
    i, j = torch.tensor(list(frame_pairs), dtype=torch.long).view(-1, 2).unbind(1)
    searched[i, j] = searched[j, i] = True
    return searched


def table_of(
    pairs: Pairs, masks: Bool[Tensor, "t h w"], size: tuple[int, int], searched: Bool[Tensor, "t t"]
) -> PairTable:
    """Pairs in both directions as a table, so that the foreground is always the source token's (§5).

    Positions of frames of (W, H) `size`, in which the masks may be of another size.
    """
    pairs = Pairs.cat([pairs, pairs.flip()])
    return PairTable.build(pairs, look_up(masks, pairs.source, pairs.source_xy, size), searched)
