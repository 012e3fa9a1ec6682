"""Refined best buddies and cycle-consistent pairs from the networks as they are (method §3): for a table, or for one batch."""

from collections.abc import Collection
from dataclasses import replace
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.correspondences import frame_pairs, searched_between
from dinotrack.geometry import look_up
from dinotrack.memory import Budget
from dinotrack.methods.dino_tracker import Refinement, refine_features
from dinotrack.networks import TrackerHead
from dinotrack.refined_pairs import FramePairs, PairSearch, cycle_pairs, refined_best_buddies
from dinotrack.structs import FeatureMap, Pairs, PairTable
from dinotrack.training.batch import Batch, Store


def find_pairs(
    features: FeatureMap,
    head: TrackerHead,
    masks: Bool[Tensor, "t h w"],
    between: FramePairs,
    search: PairSearch,
    generator: torch.Generator,
    wanted: Collection[str],
    *,
    both: bool = False,
    scale: bool = True,
) -> dict[str, Pairs]:
    """The pairs that are `wanted` ("refined", "cycle") in refined features, by the names that `Batch` and `Store` have for them."""
    found: dict[str, Pairs] = {}
    if "refined" in wanted:
        found["refined"] = refined_best_buddies(features, masks, between, search, generator, both=both)
    if "cycle" in wanted:
        found["cycle"] = cycle_pairs(features, head, masks, between, search, generator, both=both, scale=scale)
    return found


def rebuilt_tables(
    store: Store,
    network: Refinement,
    head: TrackerHead,
    search: PairSearch,
    generator: torch.Generator,
    wanted: Collection[str],
    *,
    count: int = 500,
    every: int = 1,
    chunk: int = 8,
    budget: Budget = Budget(),
) -> dict[str, PairTable]:
    """Tables between `count` random pairs of the training frames (each `every`-th), in both directions, on the CPU.

    Refined features are computed in eval mode, `chunk` frames at a time, and kept in half precision where the budget has room.
    """
    masks, total = store.masks[::every], len(store.images)
    between = frame_pairs(len(masks), count, generator)
    features = refine_features(store.features, store.images, network, every=every, chunk=chunk, budget=budget)
    settings = {"both": True, "scale": store.scale_constants}
    found = find_pairs(features, head, masks, between, search, generator, wanted, **settings)
    searched = searched_between([(i * every, j * every) for i, j in between], total)
    tables = {}
    for name, pairs in found.items():
        foreground = look_up(masks, pairs.source, pairs.source_xy, features.size).cpu()
        in_video = replace(pairs, source=pairs.source * every, target=pairs.target * every).to("cpu")
        tables[name] = PairTable.build(in_video, foreground, searched)
    return tables


def searched_batch(
    batch: Batch,
    refined: Float[Tensor, "b c h w"],
    head: TrackerHead,
    search: PairSearch,
    generator: torch.Generator,
    wanted: Collection[str],
) -> Batch:
    """The batch with pairs found in its own refined features, between its own frame pairs, as the published code has it."""
    features = FeatureMap(refined.detach(), batch.grid.stride, batch.grid.offset, batch.size)
    between = [(int(i), int(j)) for i, j in batch.frame_pairs.tolist()]
    scale = batch.scale_constants
    found = find_pairs(features, head, batch.masks, between, search, generator, wanted, scale=scale)
    return replace(batch, **{name: pairs.to("cpu") for name, pairs in found.items()})


def consistent_share(
    found: int, sources: Int[Tensor, " n"], masks: Bool[Tensor, "t h w"], search: PairSearch
) -> Float[Tensor, ""]:
    """Cycle-consistent points over the points that were tried: `search`'s shares of the mask of each source frame searched."""
    foreground = masks.flatten(1).sum(1)
    background = masks[0].numel() - foreground
    tried = foreground.clamp(max=search.points_foreground) + background.clamp(max=search.points_background)
    return found / tried[sources].sum().clamp(min=1)


def searched_counts(batch: Batch, search: PairSearch, wanted: Collection[str]) -> dict[str, Any]:
    """What is logged of a batch that was searched itself: pairs of each kind, and the cycle-consistent share."""
    counts: dict[str, Any] = {f"batch/{name}": float(len(getattr(batch, name))) for name in wanted}
    if "cycle" in wanted:
        share = consistent_share(len(batch.cycle), batch.frame_pairs[:, 0], batch.masks, search)
        counts["pairs/cycle_share"] = share
    return counts
