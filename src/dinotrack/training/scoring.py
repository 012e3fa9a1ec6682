"""Scores of a run's trackers against its ground truth, and how they are shown."""

from dataclasses import fields
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig
from rich.table import Table

from dinotrack.data import SYNTHETIC, open_synthetic
from dinotrack.evaluation import baselines, score_clip, score_joints
from dinotrack.metrics import BadjaScores, TapVidScores
from dinotrack.progress import shown
from dinotrack.structs import Video
from dinotrack.trackers import Tracker
from dinotrack.training.config import pick_device
from dinotrack.training.datamodules import VideoDataModule

NAMES = {"raw_features": "raw features", "flow_chain": "chained flow", "dino_tracker": "fitted tracker"}


def is_synthetic(video: Video) -> bool:
    return video.path.startswith(SYNTHETIC)


def check_truth(config: DictConfig, video: Video) -> None:
    """Read ground truth before the long part of a run, so that a wrong file fails at once."""
    if config.truth:
        score_joints({}, video, config.truth)


def score(
    config: DictConfig, video: Video, tracker: Tracker, data: VideoDataModule | None
) -> dict[str, TapVidScores] | dict[str, BadjaScores]:
    """A method's tracker against the ground truth of the run, beside both baselines where it was fitted to `data`."""
    trackers: dict[str, Tracker] = beside(config, data) if data and config.baselines else {}
    trackers[config.method.name] = tracker
    if is_synthetic(video):
        clip = open_synthetic(video.path, start=video.start, stop=video.start + len(video))
        return score_clip(trackers, clip, progress=shown)
    return score_joints(trackers, video, config.truth, progress=shown)


def beside(config: DictConfig, data: VideoDataModule) -> dict[str, Tracker]:
    """The baselines on the features and the flow that a fit had."""
    device = pick_device(config.device)
    store, flow = data.store.to(device), data.flow.to(device)
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
    table = Table("method", *(NICE.get(column, column) for column in columns), title=title)
    for name, values in scores.items():
        table.add_row(NAMES.get(name, name), *(f"{getattr(values, column):.1f}" for column in columns))
    return table


NICE = {"delta_avg": "δ_avg", "oa": "OA", "aj": "AJ", "delta_seg": "δ_seg", "delta_3px": "δ_3px"}


def verdict(means: dict[str, TapVidScores]) -> list[str]:
    """Whether the fit is ahead of each baseline on δ_avg and AJ; a miss is called a miss."""
    ours, lines = means["dino_tracker"], []
    for name, theirs in means.items():
        if name != "dino_tracker":
            for label, key in (("δ_avg", "delta_avg"), ("AJ", "aj")):
                ahead = getattr(ours, key) - getattr(theirs, key)
                lines.append(f"{'ahead' if ahead > 0 else 'MISS'}: {label} {ahead:+.1f} against {NAMES[name]}")
    return lines
