"""What the commands do: preprocess, fit, track, run, demo. Each is handed a config and a folder for its results."""

import json
import logging
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console

from dinotrack.backbones import Backbone, build_backbone
from dinotrack.cache import default_cache
from dinotrack.data import SYNTHETIC, open_described, open_video
from dinotrack.data.benchmarks import BenchmarkClip
from dinotrack.data.export import save_csv, save_npz
from dinotrack.data.queries import read_queries
from dinotrack.data.video import load_masks
from dinotrack.errors import DinotrackError
from dinotrack.evaluation import plain
from dinotrack.interpolation import check_method, through_occlusion
from dinotrack.methods.dino_tracker import DinoTracker, load_dino_tracker, read_checkpoint
from dinotrack.methods.published import PUBLISHED_SIZE, import_published
from dinotrack.metrics import TapVidScores, mean_over_videos
from dinotrack.progress import shown
from dinotrack.scoreboard import CSV, MARKDOWN, compare, finished, means_of, rows_of
from dinotrack.structs import NO_TRUTH, PointTruth, Tracks, Video, write_atomically
from dinotrack.trackers import Tracker
from dinotrack.training.ablations import TABLE, measured, read_rows, row_of, row_path, settings_of, write_table
from dinotrack.training.config import budget_of, fixed_size, pick_device
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.evaluating import predict_clips, published_tracker
from dinotrack.training.fit import prepare, train
from dinotrack.training.jobs import check_objective, evaluation_folder
from dinotrack.training.loggers import RunLoggers
from dinotrack.training.scoring import score, score_table, truth_of, verdict
from dinotrack.training.stages import Stages
from dinotrack.training.unfitted import UNFITTED, unfitted_tracker
from dinotrack.visualization import render_overlay

log = logging.getLogger(__name__)
CHECKPOINT = "tracker.ckpt"


def video_of(config: DictConfig) -> Video:
    """The video that a config names; "synthetic" stands for the one that `synthetic.*` describes."""
    if OmegaConf.is_missing(config, "video"):
        raise DinotrackError("no video given; add video=clip.mp4, video=folder_of_frames or video=synthetic")
    path = str(config.video)
    if path == "synthetic":
        settings = OmegaConf.to_container(config.synthetic, resolve=True)
        path = SYNTHETIC + json.dumps(settings, separators=(",", ":"))
    masks = None if config.masks is None else str(config.masks)
    return open_video(path, masks, start=config.start, stop=config.stop)


def queries_of(config: DictConfig, video: Video) -> torch.Tensor:
    """The queries that a config names, checked against the video."""
    given = config.queries
    spec = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else str(given)
    return read_queries(spec, video, frame=config.queries_frame, masked=config.queries_on_mask)  # type: ignore[arg-type]


def save_config(config: DictConfig, folder: Path) -> None:
    """Write the config as it was run."""
    text = OmegaConf.to_yaml(config, resolve=True)
    write_atomically(folder / "config.yaml", lambda name: name.write_text(text))


def preprocess_command(config: DictConfig, folder: Path) -> None:
    """Fill the cache for a video."""
    video, stages = video_of(config), Stages()
    with stages.stage("preprocess"):
        data = prepare(config, video, shown)
    save_config(config, folder)
    stages.save(folder / "summary.json", video=about(video), **counts(data))
    say(f"{describe_data(data)}; cached in {data.cache}")


def fit_command(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Preprocess and fit; the checkpoint lands in the run folder. With ground truth also score, and return the scores."""
    if config.method.name in UNFITTED:
        raise DinotrackError(
            f"method={config.method.name} has nothing to fit; use dinotrack run method={config.method.name}"
        )
    video, stages = video_of(config), Stages()
    truth = truth_of(config, video)
    check_objective(config, truth)
    with RunLoggers(config, folder) as loggers:
        data, tracker = fit_stages(config, folder, video, stages, truth, loggers)
        scores = score_stage(config, folder, truth, video, tracker, data, stages)
        loggers.results(plain(scores), None, folder / CHECKPOINT)
    stages.save(folder / "summary.json", video=about(video), **counts(data))
    say(f"fitted; now: dinotrack track checkpoint={folder / CHECKPOINT} queries=grid:30")
    return scores


def score_stage(
    config: DictConfig,
    folder: Path,
    truth: PointTruth,
    video: Video,
    tracker: Tracker,
    data: VideoDataModule | None,
    stages: Stages,
) -> dict[str, Any]:
    """The scores against the ground truth of a run, kept in its folder and shown; none where there is none."""
    if not len(truth):
        return {}
    with stages.stage("score"):
        scores = score(config, truth, video, tracker, data)
    write_json(folder / "metrics.json", plain(scores))
    Console().print(score_table(scores, "On this video"))
    return scores


def run_command(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Preprocess, fit, track, render; with ground truth also score, and return the scores."""
    video, stages = video_of(config), Stages()
    queries = queries_of(config, video)
    check_method(config.interpolate)
    truth = truth_of(config, video)
    check_objective(config, truth)
    with RunLoggers(config, folder) as loggers:
        data, tracker = trackers_of(config, folder, video, stages, truth, loggers)
        with stages.stage("track"):
            tracks = tracker.track(queries, progress=shown)
        write_tracks(tracks, video, folder, config, stages)
        scores = score_stage(config, folder, truth, video, tracker, data, stages)
        loggers.results(plain(scores), folder / "overlay.mp4" if config.render else None, folder / CHECKPOINT)
    found = counts(data) if data else {}
    stages.save(folder / "summary.json", video=about(video), **found, points=len(tracks))
    written = ", ".join(sorted(path.name for path in folder.iterdir()))
    say(f"{len(tracks)} points over {len(video)} frames: {written} in {folder}")
    return scores


def track_command(config: DictConfig, folder: Path) -> None:
    """Track queries with the checkpoint of a fit."""
    stages = Stages()
    if OmegaConf.is_missing(config, "checkpoint"):
        raise DinotrackError("no checkpoint given; add checkpoint=tracker.ckpt of a run folder")
    about_video = read_checkpoint(config.checkpoint)["dinotrack"]["video"]
    if config.video:
        about_video = {**about_video, "path": str(config.video)}
    video = open_described(about_video)
    if config.masks:
        video = replace(video, masks=load_masks(config.masks, video, start=video.start, stop=video.start + len(video)))
    queries = queries_of(config, video)
    check_method(config.interpolate)
    with stages.stage("load"):
        tracker = load_dino_tracker(
            config.checkpoint,
            video,
            backbone=moved_backbone(config),
            cache=Path(config.cache_dir).expanduser() if config.cache_dir else default_cache(),
            device=pick_device(config.device),
            memory=float(config.memory),
            budget=budget_of(config),
            progress=shown,
        )
    with stages.stage("track"):
        tracks = tracker.track(queries, progress=shown)
    save_config(config, folder)
    write_tracks(tracks, video, folder, config, stages)
    stages.save(folder / "summary.json", video=about(video), points=len(tracks))
    say(f"{len(tracks)} points over {len(video)} frames in {folder}")


def import_command(config: DictConfig, folder: Path) -> None:
    """A checkpoint of weights that the published code fitted to the video."""
    if OmegaConf.is_missing(config, "published"):
        raise DinotrackError(
            "no weights given; add published=folder, the one with delta_dino_N.pt and tracker_head_N.pt"
        )
    content = import_published(
        str(config.published),
        video_of(config),
        instantiate(config.backbone),
        iteration=config.iteration,
        size=fixed_size(config) or PUBLISHED_SIZE,
        index_positions=config.index_positions,
    )
    write_atomically(folder / CHECKPOINT, lambda name: torch.save(content, name))
    save_config(config, folder)
    say(f"imported; now: dinotrack track checkpoint={folder / CHECKPOINT} queries=grid:30")


def moved_backbone(config: DictConfig) -> Backbone | None:
    """The checkpoint's backbone with its weights read from `backbone_checkpoint`, or None to read them where they were."""
    if not config.backbone_checkpoint:
        return None
    settings = read_checkpoint(config.checkpoint)["dinotrack"]["backbone"]
    return build_backbone({**settings, "checkpoint": str(config.backbone_checkpoint)})


def demo_command(config: DictConfig, folder: Path) -> None:
    """Run on a few synthetic videos and print the fitted tracker beside its baselines, averaged over the seeds."""
    scores: dict[str, list[TapVidScores]] = {}
    if config.video != "synthetic":
        raise DinotrackError(f"the demo needs ground truth; for video={config.video} use dinotrack run")
    for seed in config.seeds:
        say(f"synthetic video {seed}")
        each = OmegaConf.merge(config, {"synthetic": {"seed": seed}})
        for name, values in run_command(each, folder / f"seed-{seed}").items():  # type: ignore[arg-type]
            scores.setdefault(name, []).append(values)
    means = {name: mean_over_videos(values) for name, values in scores.items()}
    found = verdict(means)
    write_json(folder / "demo.json", {"seeds": list(config.seeds), "mean": plain(means), "verdict": found})
    Console().print(score_table(means, f"Mean over synthetic videos {list(config.seeds)}, TAP-Vid strided, %"))
    for line in found:
        say(line)
    say(f"overlay: {folder / f'seed-{config.seeds[0]}' / 'overlay.mp4'}")


def ablate_command(config: DictConfig, folder: Path) -> None:
    """One run of the ablation table, unless its row is there; then the table of all rows."""
    row = row_of(dict(HydraConfig.get().runtime.choices), config)
    table = Path(config.table)
    kept = row_path(table, row)
    settings = settings_of(config)
    if any(row_path(table, other) == kept and other.get("settings") == settings for other in read_rows(table)):
        say(f"{row['clip']} {row['ablation']} seed {row['seed']}: done before")
    else:
        scores = run_command(config, folder)
        summary = json.loads((folder / "summary.json").read_text())
        write_json(kept, {**row, **measured(scores, config.method.name, summary), "settings": settings})
    write_table(table, table / TABLE)
    say(f"table: {table / TABLE}")


def evaluate_command(config: DictConfig, _: Path) -> dict[str, Any]:
    """Predict the clips of a benchmark that are not done yet, then score all that are; a sweep has a folder for its values."""
    folder = evaluation_folder(config)

    def make(clip: BenchmarkClip, place: Path, stages: Stages) -> Tracker:
        if config.benchmark.published_weights:
            with stages.stage("load"):
                return published_tracker(config, clip)
        return trackers_of(config, place, clip.video, stages, clip.truth)[1]

    try:
        predict_clips(config, folder, make, save_config, say)
    finally:
        done, jobs = len(finished(folder)), config.benchmark.of
        if jobs and done < jobs:  # a job of many: the last one makes the table
            say(f"{done} of {jobs} clips are done; meanwhile, dinotrack score {folder}")
        elif done:
            compare([folder])
            say(f"{folder / CSV} has each of the {done} clips that are done, {folder / MARKDOWN} the tables")
    return {config.method.name: means_of(rows_of(folder))} if config.objective else {}


def trackers_of(
    config: DictConfig,
    folder: Path,
    video: Video,
    stages: Stages,
    truth: PointTruth = NO_TRUTH,
    loggers: RunLoggers | None = None,
) -> tuple[VideoDataModule | None, Tracker]:
    """The tracker that `method=` names, and the data that it was fitted to, if it was."""
    if config.method.name not in UNFITTED:
        return fit_stages(config, folder, video, stages, truth, loggers)
    save_config(config, folder)
    with stages.stage("preprocess"):
        return None, unfitted_tracker(config, video, shown)


def fit_stages(
    config: DictConfig,
    folder: Path,
    video: Video,
    stages: Stages,
    truth: PointTruth = NO_TRUTH,
    loggers: RunLoggers | None = None,
) -> tuple[VideoDataModule, DinoTracker]:
    """Preprocess and fit, measured; writes config and checkpoint."""
    with stages.stage("preprocess"):
        data = prepare(config, video, shown, truth)
    say(describe_data(data))
    save_config(config, folder)
    with stages.stage("fit"):
        tracker = train(config, data, shown, folder, loggers)
    tracker.save(folder / CHECKPOINT)
    return data, tracker


def write_tracks(tracks: Tracks, video: Video, folder: Path, config: DictConfig, stages: Stages) -> None:
    """Tracks as NPZ and CSV, and the overlay; `interpolate` decides on hidden positions."""
    tracks = through_occlusion(tracks, config.interpolate)
    save_npz(tracks, folder / "tracks.npz")
    save_csv(tracks, folder / "tracks.csv")
    if config.render:
        with stages.stage("render"):
            render_overlay(video, tracks, folder / "overlay.mp4", trail=config.trail, progress=shown)


def about(video: Video) -> dict[str, Any]:
    return {
        "path": video.path,
        "start": video.start,
        "frames": len(video),
        "size": list(video.size),
        "fps": video.fps,
        "hash": video.content_hash,
    }


def counts(data: VideoDataModule) -> dict[str, Any]:
    store = data.store
    return {
        "working_size": list(store.features.size),
        "tokens": list(store.features.values.shape[2:]),
        "tracklets": len(store.tracklets),
        "best_buddies": len(store.best_buddies.source) // 2,  # the table holds both directions
    }


def describe_data(data: VideoDataModule) -> str:
    """One line about what preprocessing found."""
    found, (width, height) = counts(data), data.store.features.size
    rows, columns = found["tokens"]
    pairs = f"{found['tracklets']:,} tracklets, {found['best_buddies']:,} best buddies"
    return f"{len(data.video)} frames at {width}x{height}, {columns}x{rows} tokens; {pairs}"


def write_json(path: Path, content: Any) -> None:
    write_atomically(path, lambda name: name.write_text(json.dumps(content, indent=2) + "\n"))


def say(line: str) -> None:
    """A line for the user, on standard output."""
    Console(highlight=False, soft_wrap=True).print(line)
