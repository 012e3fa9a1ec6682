"""The benchmarks' scores of method §7, all in percent: TAP-Vid's δ, occlusion accuracy and Jaccard, BADJA's δ_seg and δ_3px.

A score with nothing to average over is NaN; `mean_over_videos` leaves such a video out of that score.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass, fields
from typing import Any, TypeVar

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.geometry import rescale
from dinotrack.structs import check_mode

THRESHOLDS = (1.0, 2.0, 4.0, 8.0, 16.0)
"""TAP-Vid's distances in pixels at 256x256."""


@dataclass(frozen=True)
class TapVidScores:
    """TAP-Vid's scores of one video in percent."""

    delta: Float[Tensor, " d"]
    """Share of visible points within each threshold."""
    delta_avg: float
    oa: float
    """Occlusion accuracy: share of frames with the right visibility."""
    jaccard: Float[Tensor, " d"]
    aj: float


@dataclass(frozen=True)
class BadjaScores:
    """BADJA's scores of one video in percent; the `_later` ones leave out each query's own frame."""

    delta_seg: float
    delta_3px: float
    delta_seg_later: float
    delta_3px_later: float


S = TypeVar("S", TapVidScores, BadjaScores)


def tapvid_metrics(
    queries: Float[Tensor, "n 3"],
    gt_xy: Float[Tensor, "n t 2"],
    gt_visible: Bool[Tensor, "n t"],
    pred_xy: Float[Tensor, "m s 2"],
    pred_visible: Bool[Tensor, "m s"],
    size: tuple[int, int],
    mode: str = "strided",
    thresholds: Sequence[float] = THRESHOLDS,
    resolution: int = 256,
) -> TapVidScores:
    """TAP-Vid's scores of one video, whose track n answers query n (§7): distances at 256x256, strictly less.

    Positions are in pixels of frames of (W, H) `size`. `strided` evaluates all frames but the query's, `first` the later
    ones. With TP visible in both and near enough, FP predicted visible and occluded or too far,
    Jaccard = TP / (visible in ground truth + FP).

    Raises:
        DinotrackError: for an unknown mode, or predictions and ground truth that do not match.
    """
    check_mode(mode)
    _check_shapes(gt_xy, pred_xy, pred_visible)
    frame, asked = torch.arange(gt_xy.shape[1], device=gt_xy.device), queries[:, :1].round()
    evaluated = frame > asked if mode == "first" else frame != asked
    near = _distance(pred_xy, gt_xy, size, resolution)[..., None] < _thresholds(thresholds, gt_xy)
    seen = evaluated & gt_visible
    claimed = (evaluated & pred_visible)[..., None]
    hits = (claimed & seen[..., None] & near).sum((0, 1))
    false = (claimed & ~(gt_visible[..., None] & near)).sum((0, 1))
    delta = _percent((seen[..., None] & near).sum((0, 1)), seen.sum())
    jaccard = _percent(hits, seen.sum() + false)
    right = _percent((evaluated & (gt_visible == pred_visible)).sum(), evaluated.sum())
    return TapVidScores(delta, float(delta.mean()), float(right), jaccard, float(jaccard.mean()))


def occlusion_rate(gt_visible: Bool[Tensor, "n t"]) -> Float[Tensor, " n"]:
    """Share of the frames, from 0 to 1, in which each track is not visible ([P] Fig. 6, §7); a video's is their mean."""
    return (~gt_visible).double().mean(1)


def badja_metrics(
    pred_xy: Float[Tensor, "m s 2"],
    gt_xy: Float[Tensor, "n f 2"],
    gt_visible: Bool[Tensor, "n f"],
    areas: Float[Tensor, " a"],
    frames: Int[Tensor, " f"],
    query_frames: Int[Tensor, " n"],
    share: float = 0.2,
    pixels: float = 3.0,
) -> BadjaScores:
    """BADJA's scores of one video over its annotated frames (§7), in pixels at 854x480, strictly less.

    Every annotated frame but frame number 0 counts where the joint is visible, [C]: the query's own too. δ_seg holds
    distances against `share` · √(foreground area of that frame in pixels), δ_3px against `pixels`.

    Raises:
        DinotrackError: for predictions that do not match the ground truth, or areas that do not match the frames.
    """
    _check_shapes(gt_xy, pred_xy)
    if len(areas) != len(frames):
        raise DinotrackError(f"{len(areas)} foreground areas for {len(frames)} annotated frames; give one for each")
    distance = (pred_xy.double() - gt_xy.double()).norm(dim=-1)
    counted = gt_visible & (frames != 0)
    later = counted & (frames != query_frames[:, None])
    near = [distance < share * areas.double().sqrt(), distance < pixels]
    scores = [float(_percent((mask & hit).sum(), mask.sum())) for mask in (counted, later) for hit in near]
    return BadjaScores(*scores)


def mean_over_videos(scores: Sequence[S]) -> S:
    """The mean over videos of every score, without the videos where it is NaN (§7).

    Raises:
        DinotrackError: for no videos.
    """
    if not scores:
        raise DinotrackError("no videos to average over; score at least one")
    means: dict[str, Any] = {f.name: _mean([getattr(score, f.name) for score in scores]) for f in fields(scores[0])}
    return type(scores[0])(**means)


def _mean(values: list[Any]) -> Any:
    stacked = torch.stack([torch.as_tensor(value, dtype=torch.float64) for value in values]).nanmean(0)
    return stacked if stacked.ndim else float(stacked)


def _percent(hits: Int[Tensor, "*d"], total: Int[Tensor, "*e"]) -> Float[Tensor, "*d"]:
    """100 · hits / total in double precision, NaN of none."""
    share = 100 * hits.double() / total.double()
    return torch.where(total > 0, share, math.nan).cpu()


def _distance(
    pred_xy: Float[Tensor, "n t 2"], gt_xy: Float[Tensor, "n t 2"], size: tuple[int, int], resolution: int
) -> Float[Tensor, "n t"]:
    """Distances in double precision at `resolution` x `resolution` pixels."""
    return rescale(pred_xy.double() - gt_xy.double(), size, (resolution, resolution)).norm(dim=-1)


def _thresholds(thresholds: Sequence[float], like: Tensor) -> Float[Tensor, " d"]:
    return torch.tensor(thresholds, dtype=torch.float64, device=like.device)


def _check_shapes(gt_xy: Tensor, *others: Tensor) -> None:
    """Whether positions and visibilities are of as many tracks and frames."""
    for other in others:
        if other.shape[:2] != gt_xy.shape[:2]:
            raise DinotrackError(
                f"{tuple(other.shape[:2])} tracks and frames against ground truth of {tuple(gt_xy.shape[:2])}; "
                "give one row a query and one column a frame"
            )
