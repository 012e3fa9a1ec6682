"""Scores of a run's trackers against its ground truth, and how they are shown."""

from dataclasses import fields
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from dinotrack.data import SYNTHETIC, open_synthetic
from dinotrack.evaluation import baselines, predict, score_tracks, truth_of_clip, truth_of_joints
from dinotrack.metrics import BadjaScores, TapVidScores
from dinotrack.progress import shown
from dinotrack.scoreboard import LABELS
from dinotrack.structs import NO_TRUTH, PointTruth, Video
from dinotrack.trackers import Tracker
from dinotrack.training.config import pick_device
from dinotrack.training.datamodules import VideoDataModule

NAMES = {"raw_features": "raw features", "flow_chain": "chained flow", "dino_tracker": "fitted tracker"}


def is_synthetic(video: Video) -> bool:
    return video.path.startswith(SYNTHETIC)


def truth_of(config: DictConfig, video: Video) -> PointTruth:
    """The ground truth of a run's video, before its long part, so that a wrong file fails at once; empty where there is none."""
    if config.get("truth"):
        return truth_of_joints(video, config.truth)
    if is_synthetic(video):
        return truth_of_clip(open_synthetic(video.path, start=video.start, stop=video.start + len(video)))
    return NO_TRUTH


def score(
    config: DictConfig, truth: PointTruth, video: Video, tracker: Tracker, data: VideoDataModule | None
) -> dict[str, TapVidScores | BadjaScores]:
    """A method's tracker against the ground truth of the run, beside both baselines where it was fitted to `data`."""
    trackers: dict[str, Tracker] = beside(config, data) if data and config.baselines else {}
    trackers[config.method.name] = tracker
    tracked = {name: predict(each, truth, video.size, progress=shown) for name, each in trackers.items()}
    return {name: score_tracks(truth, tracks) for name, tracks in tracked.items()}


def beside(config: DictConfig, data: VideoDataModule) -> dict[str, Tracker]:
    """The baselines on the features and the flow that a fit had."""
    device = pick_device(config.device)
    store, flow = data.store.on(device, data.budget), data.flow.to(device)
    rules = {
        "scale_constants": store.scale_constants,
        "visibility": instantiate(config.method.visibility),
        "radius": config.method.head.radius,
        "memory": float(config.memory),
    }
    return baselines(data.video, store.features, store.images, flow, **rules, progress=shown)


def score_table(scores: Any, title: str) -> Table:
    """Scores of each method as a table; per-threshold lists are left to the JSON file."""
    kinds = next(iter(scores.values()))
    columns = [f.name for f in fields(kinds) if isinstance(getattr(kinds, f.name), float)]
    table = Table("method", *(LABELS.get(column, column) for column in columns), title=title)
    for name, values in scores.items():
        table.add_row(NAMES.get(name, name), *(f"{getattr(values, column):.1f}" for column in columns))
    return table


def verdict(means: dict[str, TapVidScores]) -> list[str]:
    """Whether the fit is ahead of each baseline on δ_avg and AJ; a miss is called a miss."""
    ours, lines = means["dino_tracker"], []
    for name, theirs in means.items():
        if name != "dino_tracker":
            for label, key in (("δ_avg", "delta_avg"), ("AJ", "aj")):
                ahead = getattr(ours, key) - getattr(theirs, key)
                lines.append(f"{'ahead' if ahead > 0 else 'MISS'}: {label} {ahead:+.1f} against {NAMES[name]}")
    return lines
