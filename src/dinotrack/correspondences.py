"""Supervision of a fit (method §3): optical-flow tracklets and DINO best buddies, vectorised over points."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import groupby
from typing import Literal

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dinotrack.equations import (
    ambiguity,
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
) -> tuple[Float[Tensor, "u 2 h w"], Float[Tensor, "u 2 h w"]]:
    """Flow from each frame to the next, and from the next back."""
    first = torch.arange(len(flows) - 1).split(flows.batch)
    found = [both_ways(flows, some, some + 1) for some in progress(first, "optical flow")]
    return torch.cat([forward for forward, _ in found]), torch.cat([backward for _, backward in found])


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


def chain(
    forward: Float[Tensor, "u 2 h w"],
    backward: Float[Tensor, "u 2 h w"],
    *,
    gamma: float = 1.5,
    progress: Progress = silent,
) -> Tracklets:
    """Tracklets from the flows between consecutive frames, before the drift check (§3).

    x^j = x^{j-1} + f(x^{j-1}) while the forward-backward error is below `gamma` pixels and x stays inside the frame.
    """
    (count, _, height, width), device = forward.shape, forward.device
    pixels, size = centres(height, width, PIXELS, device), (width, height)
    ids = torch.zeros(0, dtype=torch.long, device=device)
    xy, total = torch.zeros(0, 2, device=device), 0
    rows: list[tuple[Tensor, Tensor]] = []
    starts: list[Tensor] = []
    for t in progress(range(count + 1), "tracklets"):
        occupied = torch.zeros(height * width, dtype=torch.bool, device=device)
        occupied[nearest_cell(xy, PIXELS, height, width)] = True
        occupied = occupied.view(height, width)
        fresh = ~occupied if t == 0 else new_starts(occupied, forward[t - 1], backward[t - 1], gamma)
        begun = pixels[fresh.flatten()] if t < count else pixels[:0]  # a start in the last frame is no tracklet
        ids = torch.cat([ids, torch.arange(total, total + len(begun), device=device)])
        xy = torch.cat([xy, begun])
        total += len(begun)
        starts.append(torch.full((len(begun),), t, device=device))
        rows.append((ids, xy))
        if t < count:
            landed, error = forward_backward_error(forward[t], backward[t], xy)
            alive = (error < gamma) & inside(landed, size)
            ids, xy = ids[alive], landed[alive]
    return gather_rows(rows, torch.cat(starts), size)


def gather_rows(rows: list[tuple[Tensor, Tensor]], start: Int[Tensor, " n"], size: tuple[int, int]) -> Tracklets:
    """Per-frame (ids, xy) rows as ragged tracklets of two frames or more."""
    ids, xy = torch.cat([r[0] for r in rows]), torch.cat([r[1] for r in rows])
    length = torch.bincount(ids, minlength=len(start))
    keep = length >= 2
    xy = xy[ids.argsort(stable=True)][keep.repeat_interleave(length)]
    return Tracklets(start[keep].int(), length[keep].int(), length[keep].int(), xy, size)


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
    forward, backward = consecutive_flows(flows, progress)
    chained = chain(forward, backward, gamma=gamma * factor, progress=progress)
    limits = {"gamma": gamma * factor, "gamma_long": gamma_long * factor}
    return limit_drift(chained, flows, **limits, drift=drift, progress=progress).to("cpu")


def nearest_last_frames(
    tracklets: Tracklets, frame: int, grid: Grid, height: int, width: int
) -> Int[Tensor, "cells 2"]:
    """First and last frame of the chained tracklet nearest to each token of `frame`; (frame, frame) where none lives (§3).

    A tracklet is looked for among those of the token's own cell first. One in another cell is at least half a stride away, so a
    nearer hit is exact; the few tokens without one are compared with every living tracklet.
    """
    tokens = centres(height, width, grid, tracklets.xy.device)
    alive = torch.nonzero((tracklets.start <= frame) & (frame < tracklets.start + tracklets.chained)).squeeze(1)
    span = torch.full((len(tokens), 2), frame, dtype=torch.int32, device=tokens.device)
    if not len(alive):
        return span
    xy = tracklets.at(alive, torch.full_like(alive, frame))
    cell = nearest_cell(xy, grid, height, width)
    distance = (xy - tokens[cell]).norm(dim=1)
    least = torch.full((len(tokens),), torch.inf, device=tokens.device).scatter_reduce(0, cell, distance, "amin")
    hits = torch.nonzero(distance == least[cell]).squeeze(1)  # of equals the earliest counts
    nearest = torch.full((len(tokens),), len(xy), device=tokens.device).scatter_reduce(0, cell[hits], hits, "amin")
    far = least > grid.stride / 2
    for chunk in torch.nonzero(far).squeeze(1).split(256):
        nearest[chunk] = torch.cdist(tokens[chunk], xy).argmin(1)
    chosen = alive[nearest]
    return torch.stack([tracklets.start[chosen], tracklets.start[chosen] + tracklets.chained[chosen] - 1], 1)


def frame_pairs(frames: int, limit: int, generator: torch.Generator | None = None) -> list[tuple[int, int]]:
    """Unordered pairs of frames i < j: all of them, or `limit` random ones, without `generator` always the same."""
    index = torch.combinations(torch.arange(frames))
    if len(index) > limit:
        generator = generator or torch.Generator().manual_seed(0)
        index = index[torch.randperm(len(index), generator=generator)[:limit].sort().values]
    return [(int(i), int(j)) for i, j in index]


@dataclass(frozen=True)
class Cosines:
    """(i, j, cosines of every token of frame i with every token of j) for pairs of frames sorted by i, from unit rows.

    One product serves several partners of a frame, which the processor does faster than one after the other. All products are
    written to the same memory: cosines are to be used before the next ones are asked for.
    """

    maps: Float[Tensor, "t cells c"]
    pairs: list[tuple[int, int]]
    memory: float = 256e6
    """Bytes that one product may fill."""

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[int, int, Float[Tensor, "n m"]]]:
        cells = self.maps.shape[1]
        most = min(len(self.maps), max(1, int(self.memory / (4 * cells**2))))
        room = self.maps.new_empty(cells * most * cells)
        for i, group in groupby(self.pairs, key=lambda pair: pair[0]):
            partners = [j for _, j in group]
            for start in range(0, len(partners), most):
                some = partners[start : start + most]
                product = room[: cells * len(some) * cells].view(cells, -1)
                torch.mm(self.maps[i], self.rows_of(some).flatten(0, 1).T, out=product)
                for j, similarities in zip(some, product.split(cells, 1), strict=True):
                    yield i, j, similarities

    def rows_of(self, frames: list[int]) -> Float[Tensor, "k cells c"]:
        """Maps of these frames: a view where they follow one another, as all partners of a frame do."""
        if frames == list(range(frames[0], frames[-1] + 1)):
            return self.maps[frames[0] : frames[-1] + 1]
        return self.maps[frames]


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
    progress: Progress = silent,
) -> Pairs:
    """DINO best buddies of every unordered pair of frames (Eq. 3), filtered by flow, with their weights (§3).

    `source` is the earlier frame. `side` is in pixels at a long side of 854 unless `scale` is off; up to 100 frames make
    4950 pairs, of longer videos `max_frame_pairs` are chosen at random.
    """
    count, _, height, width = features.values.shape
    tokens = centres(height, width, features.grid, device)
    side = side * (constant_scale(features.size) if scale else 1.0)
    spans = [nearest_last_frames(tracklets, t, features.grid, height, width).to(device) for t in range(count)]
    maps = torch.empty(count, height * width, features.values.shape[1], device=device)
    for rows, values in zip(maps, features.values, strict=True):
        rows.copy_(unit(values.to(device).flatten(1).T.float()))
    found: list[Pairs] = []
    every = frame_pairs(count, max_frame_pairs)
    for i, j, similarities in progress(Cosines(maps, every), "best buddies"):
        source, target = best_buddies(similarities)
        supervised = (spans[i][source, 1] >= j) | (spans[j][target, 0] <= i)
        source, target = source[~supervised], target[~supervised]
        peaks = {"side": side, "overlap": overlap, "candidates": candidates}
        ratio = torch.maximum(
            ambiguity(similarities[source], tokens, **peaks), ambiguity(similarities[:, target].T, tokens, **peaks)
        )
        weight = best_buddy_weight(ratio, similarities[source, target])
        first, second = torch.full_like(source, i), torch.full_like(target, j)
        found.append(Pairs(first, second, tokens[source], tokens[target], weight).to("cpu"))
    return Pairs.cat(found)


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


def saliency_masks(features: FeatureMap, *, threshold: float = 0.6) -> Bool[Tensor, "t h w"]:
    """Foreground of a video without masks (§3): first principal component of the normalised features of all frames, < 0.6.

    The component is min-max scaled over the video; of its two signs that is taken which leaves less foreground on the border.
    """
    count, _, height, width = features.values.shape
    axis = principal_axes(features, 1)[0]
    score = torch.stack([unit(values.flatten(1).T.float().cpu()) @ axis for values in features.values]).view(
        count, height, width
    )
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
