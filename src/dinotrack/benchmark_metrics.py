"""The benchmarks' scores as `torchmetrics.Metric`: updated video by video, averaged over videos, summed over processes."""

from dataclasses import asdict
from typing import Any

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor
from torchmetrics import Metric

from dinotrack.metrics import THRESHOLDS, BadjaScores, TapVidScores, badja_metrics, tapvid_metrics


class _MeanOverVideos(Metric):
    """Sums and counts of each score, in double precision; a score that is NaN for a video does not count (§7)."""

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    total: Tensor
    count: Tensor

    def __init__(self, names: tuple[str, ...], **options: Any) -> None:
        super().__init__(**options)
        self.names = names
        for state in ("total", "count"):
            self.add_state(state, torch.zeros(len(names), dtype=torch.float64), dist_reduce_fx="sum")

    def add(self, scores: TapVidScores | BadjaScores) -> None:
        """Count one video's scores in."""
        flat = flattened(scores)
        values = torch.tensor([flat[name] for name in self.names], dtype=torch.float64, device=self.total.device)
        self.total = self.total + values.nan_to_num(0.0)
        self.count = self.count + ~values.isnan()

    def compute(self) -> dict[str, Tensor]:
        """Each score's mean in percent, NaN of no videos."""
        return dict(zip(self.names, self.total / self.count, strict=True))


def flattened(scores: TapVidScores | BadjaScores) -> dict[str, float]:
    """Scores by name, those of TAP-Vid's thresholds as delta_1, delta_2, ..., jaccard_16."""
    flat: dict[str, float] = {}
    for name, value in asdict(scores).items():
        if isinstance(value, Tensor):
            flat |= {f"{name}_{d:g}": float(v) for d, v in zip(THRESHOLDS, value, strict=True)}
        else:
            flat[name] = float(value)
    return flat


TAPVID = (
    *(f"{kind}_{d:g}" for kind in ("delta", "jaccard") for d in THRESHOLDS),
    *("delta_avg", "oa", "aj"),
)


class TapVidMetric(_MeanOverVideos):
    """TAP-Vid's δ_d, δ_avg, OA, Jaccard_d and AJ (§7), at TAP-Vid's five thresholds.

    `mode` says how the queries were chosen, strided or first.
    """

    def __init__(self, mode: str = "strided", **options: Any) -> None:
        super().__init__(TAPVID, **options)
        self.mode = mode

    def update(
        self,
        queries: Float[Tensor, "n 3"],
        gt_xy: Float[Tensor, "n t 2"],
        gt_visible: Bool[Tensor, "n t"],
        pred_xy: Float[Tensor, "n t 2"],
        pred_visible: Bool[Tensor, "n t"],
        size: tuple[int, int],
    ) -> None:
        """Add one video; arguments are those of `tapvid_metrics`."""
        self.add(tapvid_metrics(queries, gt_xy, gt_visible, pred_xy, pred_visible, size, self.mode))


class BadjaMetric(_MeanOverVideos):
    """BADJA's δ_seg and δ_3px (§7), as published and without the queries' own frames."""

    def __init__(self, **options: Any) -> None:
        super().__init__(("delta_seg", "delta_3px", "delta_seg_later", "delta_3px_later"), **options)

    def update(
        self,
        pred_xy: Float[Tensor, "n f 2"],
        gt_xy: Float[Tensor, "n f 2"],
        gt_visible: Bool[Tensor, "n f"],
        areas: Float[Tensor, " a"],
        frames: Int[Tensor, " f"],
        query_frames: Int[Tensor, " n"],
    ) -> None:
        """Add one video; arguments are those of `badja_metrics`."""
        self.add(badja_metrics(pred_xy, gt_xy, gt_visible, areas, frames, query_frames))
