"""From a video to what a fit reads: raw features, tracklets, best buddies, foreground; through the cache."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from dinotrack.backbones import Backbone, Tap, identity
from dinotrack.cache import build_or_load, cache_entry
from dinotrack.correspondences import dino_best_buddies, frame_pairs, searched_between, table_of
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import FeaturePass
from dinotrack.geometry import resize_frames, resize_masks, working_size
from dinotrack.growing import Rows
from dinotrack.memory import Budget
from dinotrack.optical_flow import FlowEstimator
from dinotrack.progress import Progress, silent
from dinotrack.spilling import LITTLE
from dinotrack.structs import FeatureMap, Pairs, PairTable, Tracklets, Video
from dinotrack.tracklets import build_tracklets


@dataclass(frozen=True)
class Supervision:
    """Settings of tracklets and best buddies (method §3); lengths in pixels at a long side of 854 if `scale_constants`."""

    gamma: float = 1.5
    """Forward-backward limit γ_of of the flow."""
    gamma_long: float = 2.5
    """Drift limit γ_lng; the paper has 2, its code 2.5."""
    drift: Literal["end", "drop"] = "end"
    """A chain that drifts ends there [C], or loses only the positions that drifted [P]."""
    box: float = 60.0
    """Side of the boxes of non-maximum suppression."""
    overlap: float = 0.2
    candidates: int = 400
    max_frame_pairs: int = 4950
    """All pairs up to 100 frames; of longer videos so many at random."""
    scale_constants: bool = True


@dataclass(frozen=True)
class Preprocessed:
    """What a fit reads: frames and features at working resolution, and their supervision."""

    frames: UInt8[Tensor, "t 3 h w"]
    features: FeatureMap
    tracklets: Tracklets
    best_buddies: PairTable
    masks: Bool[Tensor, "t h2 w2"]


def working_frames(
    video: Video,
    stride: int,
    resolution: int = 854,
    size: tuple[int, int] | None = None,
    budget: Budget = Budget(),
) -> UInt8[Tensor, "t 3 h w"]:
    """Frames at working resolution: long side `resolution`, or exactly `size` = (W, H) (§0).

    Where they are not the video's own and the budget has little room for them, they lie in an unnamed file.
    """
    size = size or working_size(video.size, resolution, stride)
    if size == video.frame_size:
        return video.frames
    rows = Rows(len(video.frames), budget, part=LITTLE)
    for some in video.frames.split(8):
        rows.add(resize_frames(some, size))
    return rows.done()


def working_masks(
    masks: Bool[Tensor, "t h w"], size: tuple[int, int], budget: Budget = Budget()
) -> Bool[Tensor, "t h2 w2"]:
    """Masks at the (W, H) `size` of working frames, and where the budget has little room for them in an unnamed file."""
    if (masks.shape[2], masks.shape[1]) == size:
        return masks
    rows = Rows(len(masks), budget, part=LITTLE)
    for some in masks.split(8):
        rows.add(resize_masks(some, size))
    return rows.done()


def preprocess(
    video: Video,
    backbone: Backbone,
    flow: FlowEstimator,
    cache: Path,
    *,
    resolution: int = 854,
    size: tuple[int, int] | None = None,
    supervision: Supervision = Supervision(),
    beside: Sequence[Tap] = (),
    device: torch.device | str = "cpu",
    chunk: int = 4,
    budget: Budget = Budget(),
    progress: Progress = silent,
) -> Preprocessed:
    """Features, tracklets and best buddies of a video, each built once and kept in the folder `cache`, from which it is mapped.

    Tracklets do not depend on the backbone but for its stride. A pass that makes features keeps those of `beside` too. The
    budget bounds what of all frames is in memory at once.

    Raises:
        DinotrackError: when no tracklet is found, or the cache cannot be written.
    """
    frames = working_frames(video, backbone.stride, resolution, size, budget)
    options = {"device": device, "chunk": chunk, "progress": progress, "budget": budget}
    raw = FeaturePass(video, frames, backbone, cache, beside, **options)
    features = raw.features(saliency=not len(video.masks))
    shape = list(frames.shape[2:])
    of_flow = {
        "gamma": supervision.gamma,
        "gamma_long": supervision.gamma_long,
        "drift": supervision.drift,
        "scale": supervision.scale_constants,
    }
    flow = flow.to(device)  # on which the precision of its settings may depend
    key_flow = {"flow": flow.settings, "size": shape, **of_flow}
    tracklets = build_or_load(
        Tracklets,
        cache_entry(cache, video, "tracklets", key_flow),
        lambda: build_tracklets(frames, flow, **of_flow, device=device, budget=budget, progress=progress),
    )
    if not len(tracklets):
        raise DinotrackError(
            f"no optical-flow tracklet found in {video.path or 'the video'}: its frames do not follow one another; "
            "raise supervision.gamma, or take another flow estimator"
        )
    key_pairs = {**key_flow, "backbone": identity(backbone.settings), **asdict(supervision)}
    pairs = build_or_load(
        Pairs,
        cache_entry(cache, video, "best_buddies", key_pairs),
        lambda: dino_best_buddies(
            features,
            tracklets,
            side=supervision.box,
            overlap=supervision.overlap,
            candidates=supervision.candidates,
            max_frame_pairs=supervision.max_frame_pairs,
            scale=supervision.scale_constants,
            device=device,
            memory=budget.share(device),
            budget=budget,
            progress=progress,
        ),
    )
    masks = video.masks if len(video.masks) else raw.saliency(features)
    searched = searched_between(frame_pairs(len(frames), supervision.max_frame_pairs), len(frames))
    table = table_of(pairs, masks, features.size, searched, budget=budget)
    return Preprocessed(frames, features, tracklets, table, masks)
