"""Scores of networks in the midst of their fit."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch

from dinotrack.benchmark_metrics import flattened
from dinotrack.evaluation import predict, score_tracks
from dinotrack.methods.dino_tracker import DinoTracker
from dinotrack.progress import silent
from dinotrack.structs import PointTruth
from dinotrack.training.datamodules import VideoDataModule

if TYPE_CHECKING:
    from dinotrack.training.modules import DinoTrackerModule

LOGGED = ("delta_avg", "oa", "aj", "delta_seg", "delta_3px")


def spread(truth: PointTruth, most: int) -> PointTruth:
    """At most so many of the queries, evenly spaced among all; always the same."""
    count = min(most, len(truth))
    return truth[torch.arange(count) * len(truth) // max(count, 1)]


@contextmanager
def as_it_is(module: "DinoTrackerModule", data: VideoDataModule) -> Iterator[DinoTracker]:
    """The tracker of a module in the midst of its fit, which goes on as if nothing had been asked."""
    training = {part: part.training for part in module.modules()}
    try:
        yield module.tracker(data, progress=silent)
    finally:
        for part, mode in training.items():
            part.training = mode


def score_module(module: "DinoTrackerModule", data: VideoDataModule, truth: PointTruth) -> dict[str, float]:
    """The scores of a module in the midst of its fit."""
    with as_it_is(module, data) as tracker:
        scores = flattened(score_tracks(truth, predict(tracker, truth, data.video.size)))
    kind = "badja" if len(truth.areas) else "tapvid"
    return {f"{kind}/{name}": scores[name] for name in LOGGED if name in scores}
