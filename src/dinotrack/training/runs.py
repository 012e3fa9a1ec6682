"""One run: what its stages share, how its tracker comes about, and what it writes."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from dinotrack.data.export import save_csv, save_npz
from dinotrack.evaluation import plain
from dinotrack.files import write_atomically
from dinotrack.interpolation import through_occlusion
from dinotrack.methods.chrono import ChronoTracker
from dinotrack.methods.dino_tracker import DinoTracker
from dinotrack.progress import shown
from dinotrack.structs import NO_TRUTH, PointTruth, Tracks, Video
from dinotrack.trackers import Tracker
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.fit import prepare, train
from dinotrack.training.loggers import RunLoggers
from dinotrack.training.scoring import score, score_table
from dinotrack.training.stages import Stages
from dinotrack.training.unfitted import UNFITTED, unfitted_tracker
from dinotrack.visualization import render_overlay

CHECKPOINT, SUMMARY = "tracker.ckpt", "summary.json"


@dataclass(frozen=True)
class Run:
    """A run of a method on a video."""

    config: DictConfig
    folder: Path
    """Where its results go."""
    video: Video
    truth: PointTruth = NO_TRUTH
    loggers: RunLoggers | None = None
    """None: a fit opens those of the config, and closes them."""
    stages: Stages = field(default_factory=Stages)


def tracker_of(run: Run) -> tuple[VideoDataModule | None, Tracker]:
    """The tracker that `method=` names, and the data that it was fitted to, if it was; Chrono's has a checkpoint too."""
    if run.config.method.name not in UNFITTED:
        return fitted(run)
    save_config(run.config, run.folder)
    with run.stages.stage("preprocess"):
        tracker = unfitted_tracker(run.config, run.video, shown)
    if isinstance(tracker, ChronoTracker):
        tracker.save(run.folder / CHECKPOINT)
    return None, tracker


def fitted(run: Run) -> tuple[VideoDataModule, DinoTracker]:
    """Preprocess and fit, measured; writes config and checkpoint."""
    with run.stages.stage("preprocess"):
        data = prepare(run.config, run.video, shown, run.truth)
    say(describe_data(data))
    save_config(run.config, run.folder)
    with run.stages.stage("fit"):
        tracker = train(run.config, data, shown, run.folder, run.loggers)
    tracker.save(run.folder / CHECKPOINT)
    return data, tracker


def scores_of(run: Run, tracker: Tracker, data: VideoDataModule | None) -> dict[str, Any]:
    """The scores against the run's ground truth, kept in its folder and shown; none where there is none."""
    if not len(run.truth):
        return {}
    with run.stages.stage("score"):
        scores = score(run.config, run.truth, run.video, tracker, data)
    write_plain(run.folder / "metrics.json", plain(scores))
    Console().print(score_table(scores, "On this video"))
    return scores


def write_tracks(run: Run, tracks: Tracks) -> None:
    """Tracks as NPZ and CSV, and the overlay; `interpolate` decides on hidden positions."""
    config, folder = run.config, run.folder
    tracks = through_occlusion(tracks, config.interpolate)
    save_npz(tracks, folder / "tracks.npz")
    save_csv(tracks, folder / "tracks.csv")
    if config.render:
        with run.stages.stage("render"):
            render_overlay(run.video, tracks, folder / "overlay.mp4", trail=config.trail, progress=shown)


def write_summary(run: Run, data: VideoDataModule | None, **more: Any) -> None:
    """What the run was of, what preprocessing found, and what the stages took."""
    found = counts(data) if data else {}
    run.stages.save(run.folder / SUMMARY, video=about(run.video), **found, **more)


def save_config(config: DictConfig, folder: Path) -> None:
    """Write the config as it was run."""
    text = OmegaConf.to_yaml(config, resolve=True)
    write_atomically(folder / "config.yaml", lambda name: name.write_text(text))


def about(video: Video) -> dict[str, Any]:
    return {
        "path": video.path,
        "start": video.start,
        "frames": len(video),
        "size": list(video.size),
        "max_side": video.max_side,
        "fps": video.fps,
        "hash": video.content_hash,
    }


def counts(data: VideoDataModule) -> dict[str, Any]:
    store = data.store
    return {
        "working_size": list(store.features.size),
        "tokens": list(store.features.values.shape[2:]),
        "tracklets": len(store.flow),
        "best_buddies": len(store.best_buddies.source) // 2,  # the table holds both directions
    }


def describe_data(data: VideoDataModule) -> str:
    """One line about what preprocessing found."""
    found, (width, height) = counts(data), data.store.features.size
    rows, columns = found["tokens"]
    pairs = f"{found['tracklets']:,} tracklets, {found['best_buddies']:,} best buddies"
    return f"{len(data.video)} frames at {width}x{height}, {columns}x{rows} tokens; {pairs}"


def write_plain(path: Path, content: Any) -> None:
    write_atomically(path, lambda name: name.write_text(json.dumps(content, indent=2) + "\n"))


def say(line: str) -> None:
    """A line for the user, on standard output."""
    Console(highlight=False, soft_wrap=True).print(line)
