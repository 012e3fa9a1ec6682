"""Supervision of a fit (method §3): DINO best buddies between frames that no tracklet joins, and the foreground."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import fields

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.cosines import Cosines, ambiguities
from dinotrack.equations import best_buddies, best_buddy_weight, unit
from dinotrack.geometry import centres, constant_scale, look_up, nearest_cell
from dinotrack.growing import Columns
from dinotrack.memory import Budget
from dinotrack.progress import Progress, silent
from dinotrack.structs import FeatureMap, Grid, Pairs, PairTable, Tracklets


def alive_in(tracklets: Tracklets, frames: int) -> Iterator[Int[Tensor, " m"]]:
    """Those whose chain is there, in each of so many frames."""
    begun, alive = tracklets.begun(frames), torch.zeros(0, dtype=torch.long)
    for t in range(frames):
        going_on = tracklets.start[alive] + tracklets.chained[alive] > t
        alive = torch.cat([alive[going_on], torch.arange(begun[t], begun[t + 1])])
        yield alive


def nearest_last_frames(
    tracklets: Tracklets, alive: Int[Tensor, " m"], frame: int, grid: Grid, height: int, width: int
) -> Int[Tensor, "cells 2"]:
    """First and last frame of that chain, of those `alive` in `frame`, nearest to each token; (frame, frame) without one (§3)."""
    tokens = centres(height, width, grid)
    span = torch.full((len(tokens), 2), frame, dtype=torch.int32)
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
    budget: Budget = Budget(),
    progress: Progress = silent,
) -> Pairs:
    """DINO best buddies of every unordered pair of frames (Eq. 3), filtered by flow, with their weights (§3).

    `source` is the earlier frame. `side` is in pixels at a long side of 854 unless `scale` is off; up to 100 frames make
    4950 pairs, of longer videos `max_frame_pairs` are chosen at random. `memory` bounds, in bytes, the unit rows of all frames,
    which are made again where they do not fit; the pairs are the same. They lie on disk where the budget has no room for them.
    """
    count, _, height, width = features.values.shape
    tokens = centres(height, width, features.grid, device)
    peaks = {
        "side": side * (constant_scale(features.size) if scale else 1.0),
        "overlap": overlap,
        "candidates": candidates,
    }
    spans = [
        nearest_last_frames(tracklets, alive, t, features.grid, height, width).to(device)
        for t, alive in enumerate(alive_in(tracklets, count))
    ]
    found: dict[tuple[int, int], tuple[Tensor, Tensor, Tensor]] = {}
    every = frame_pairs(count, max_frame_pairs)
    for i, j, similarities in progress(Cosines(features.values, every, device, memory), "best buddies"):
        source, target = best_buddies(similarities)
        supervised = (spans[i][source, 1] >= j) | (spans[j][target, 0] <= i)
        source, target = source[~supervised], target[~supervised]
        ratio = torch.maximum(
            ambiguities(similarities, source, 0, tokens, **peaks), ambiguities(similarities, target, 1, tokens, **peaks)
        )
        weight = best_buddy_weight(ratio, similarities[source, target])
        found[i, j] = source.int().cpu(), target.int().cpu(), weight.cpu()
    if not any(len(weight) for *_, weight in found.values()):
        return Pairs.empty()
    columns, tokens = Columns(sum(len(weight) for *_, weight in found.values()), budget), tokens.cpu()
    for i, j in every:
        source, target, weight = found.pop((i, j))
        frames = {"source": torch.full((len(source),), i), "target": torch.full((len(source),), j)}
        columns.add(**frames, source_xy=tokens[source], target_xy=tokens[target], weight=weight)
    return Pairs(**columns.done())


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
    pairs: Pairs,
    masks: Bool[Tensor, "t h w"],
    size: tuple[int, int],
    searched: Bool[Tensor, "t t"],
    *,
    budget: Budget = Budget(),
    at_once: int = 2**20,
) -> PairTable:
    """Pairs in both directions as a table, so that the foreground is always the source token's (§5).

    Positions of frames of (W, H) `size`, in which the masks may be of another size. About `at_once` rows are sorted at a time,
    and they lie on disk where the budget has no room for them.
    """
    if not len(pairs):
        return PairTable.build(pairs, torch.zeros(0, dtype=torch.bool), searched)
    columns = Columns(2 * len(pairs), budget)
    for first, last in source_blocks(pairs, len(searched), at_once):
        there, back = (
            ((frame >= first) & (frame < last)).nonzero().squeeze(1) for frame in (pairs.source, pairs.target)
        )
        some = Pairs.cat([pairs[there], pairs[back].flip()])
        part = PairTable.build(some, look_up(masks, some.source, some.source_xy, size), searched)
        columns.add(**{field.name: getattr(part, field.name) for field in fields(part) if field.name != "searched"})
    return PairTable(**columns.done(), searched=searched)


def source_blocks(pairs: Pairs, frames: int, at_once: int) -> Iterator[tuple[int, int]]:
    """First and past the last frame of blocks of source frames with some `at_once` pairs in both directions, or one frame."""
    counts = sum(torch.bincount(frame, minlength=frames) for frame in (pairs.source, pairs.target))
    first = rows = 0
    for frame, count in enumerate(torch.as_tensor(counts).tolist()):
        if rows and rows + count > at_once:
            yield first, frame
            first, rows = frame, 0
        rows += count
    yield first, frames
