"""How well `confidence` orders positions, beside the binary rule and the cosine, on synthetic videos 0 to 4.

python scripts/confidence.py  # experiment=ablations, about three minutes on 2 cores; writes docs/results/confidence.json
"""

import json
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

import dinotrack.trackers
from dinotrack.data import open_synthetic
from dinotrack.data.queries import sample_queries
from dinotrack.equations import trajectory_agreement
from dinotrack.training.ablations import mean_and_error
from dinotrack.training.commands import video_of
from dinotrack.training.config import compose_config
from dinotrack.training.fit import prepare, train
from dinotrack.training.stages import environment

KEPT = Path(__file__).resolve().parents[1] / "docs" / "results" / "confidence.json"
SEEDS = range(5)


def average_precision(score: Tensor, label: Tensor) -> float:
    """Area under the precision-recall curve, steps between distinct scores, in %."""
    order = score.argsort(descending=True)
    score, hits = score[order], label[order].double().cumsum(0)
    last = torch.cat([score.diff() != 0, torch.ones(1, dtype=torch.bool)])
    precision, recall = hits / torch.arange(1, len(score) + 1), hits / hits[-1]
    recall = recall[last]
    return float(100 * (recall.diff(prepend=recall.new_zeros(1)) * precision[last]).sum())


def areas(seed: int) -> dict[str, dict[str, float]]:
    """Of one video, all evaluated frames of all strided queries."""
    config = compose_config("run", "ablations", ["video=synthetic", f"synthetic.seed={seed}", "logger=none"])
    video = video_of(config)
    tracker = train(config, prepare(config, video))
    clip = open_synthetic(video.path)
    queries, index = sample_queries(clip.xy, clip.visible, "strided")
    seen: list[Tensor] = []

    def spy(distances: Tensor, anchors: Tensor) -> tuple[Tensor, Tensor]:
        disagreement, limit = trajectory_agreement(distances, anchors)
        seen.append(disagreement)
        return disagreement, limit

    dinotrack.trackers.trajectory_agreement = spy
    tracks = tracker.track(queries.float())
    dinotrack.trackers.trajectory_agreement = trajectory_agreement
    reach = tracker.head.radius * max(tracker.features.size) / 854
    cosine = tracks.confidence * (1 + torch.cat(seen) / reach)
    evaluated = torch.ones_like(tracks.visible)
    evaluated[torch.arange(len(queries)), queries[:, 0].long()] = False
    near = ((tracks.xy - clip.xy[index]) * 256 / torch.tensor(video.size)).norm(dim=-1) < 16
    truths = {"visible": clip.visible[index], "visible and near": clip.visible[index] & near}
    scores = {"confidence": tracks.confidence, "cosine": cosine, "binary rule": tracks.visible.double()}
    return {
        name: {what: average_precision(score[evaluated], truth[evaluated]) for what, truth in truths.items()}
        for name, score in scores.items()
    }


def main() -> None:
    found = [areas(seed) for seed in SEEDS]
    means: dict[str, Any] = {
        name: {
            what: [round(v, 2) for v in mean_and_error([each[name][what] for each in found])] for what in found[0][name]
        }
        for name in found[0]
    }
    KEPT.write_text(json.dumps({"seeds": list(SEEDS), "average_precision": means, **environment()}, indent=2) + "\n")
    print(json.dumps(means, indent=2))


if __name__ == "__main__":
    main()
