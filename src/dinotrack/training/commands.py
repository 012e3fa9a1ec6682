"""What the commands do: preprocess, fit, track, run, demo. Each is handed a config and a folder for its results."""

import json
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
from dinotrack.data.queries import read_queries
from dinotrack.data.video import load_masks
from dinotrack.errors import DinotrackError
from dinotrack.evaluation import plain
from dinotrack.files import write_atomically
from dinotrack.interpolation import check_method
from dinotrack.methods.checkpoint import load_checkpoint
from dinotrack.methods.dino_tracker import read_checkpoint
from dinotrack.methods.published import PUBLISHED_SIZE, import_published
from dinotrack.metrics import TapVidScores, mean_over_videos
from dinotrack.progress import shown
from dinotrack.scoreboard import CSV, MARKDOWN, compare, finished, means_of, rows_of
from dinotrack.sealed import read_json, save_archive, write_json
from dinotrack.structs import Video
from dinotrack.trackers import Tracker
from dinotrack.training.ablations import TABLE, measured, read_rows, row_of, row_path, settings_of, write_table
from dinotrack.training.chrono_command import train_chrono_command  # noqa: F401  (the command line asks for it here)
from dinotrack.training.config import budget_of, fixed_size, frame_side, pick_device
from dinotrack.training.evaluating import first_to_log, log_scores, predict_clips, published_tracker
from dinotrack.training.fit import prepare
from dinotrack.training.jobs import check_objective, evaluation_folder
from dinotrack.training.loggers import RunLoggers, shows_videos
from dinotrack.training.pictures import Pictures, final_overlay
from dinotrack.training.planning import as_json, planned, show_plan
from dinotrack.training.runs import (
    CHECKPOINT,
    SUMMARY,
    Run,
    describe_data,
    fitted,
    save_config,
    say,
    scores_of,
    tracker_of,
    write_plain,
    write_summary,
    write_tracks,
)
from dinotrack.training.scoring import score_table, truth_of, verdict
from dinotrack.training.unfitted import UNFITTED


def video_of(config: DictConfig) -> Video:
    """The video that a config names; "synthetic" stands for the one that `synthetic.*` describes."""
    if OmegaConf.is_missing(config, "video"):
        raise DinotrackError("no video given; add video=clip.mp4, video=folder_of_frames or video=synthetic")
    path = str(config.video)
    if path == "synthetic":
        settings = OmegaConf.to_container(config.synthetic, resolve=True)
        path = SYNTHETIC + json.dumps(settings, separators=(",", ":"))
    masks = None if config.masks is None else str(config.masks)
    part = {"start": config.start, "stop": config.stop}
    return open_video(path, masks, **part, max_side=frame_side(config), most=budget_of(config).room())


def queries_of(config: DictConfig, video: Video) -> torch.Tensor:
    """The queries that a config names, checked against the video."""
    given = config.queries
    spec = OmegaConf.to_container(given, resolve=True) if OmegaConf.is_config(given) else str(given)
    return read_queries(spec, video, frame=config.queries_frame, masked=config.queries_on_mask)  # type: ignore[arg-type]


def preprocess_command(config: DictConfig, folder: Path) -> None:
    """Fill the cache for a video."""
    run = Run(config, folder, video_of(config))
    with run.stages.stage("preprocess"):
        data = prepare(config, run.video, shown)
    save_config(config, folder)
    write_summary(run, data)
    say(f"{describe_data(data)}; cached in {data.cache}")


def plan_command(config: DictConfig, folder: Path) -> None:
    """Print what a run will take, and keep it as plan.json."""
    if config.method.name in UNFITTED:
        raise DinotrackError(f"a plan is of a fit, and method={config.method.name} has none; take method=dino_tracker")
    video = video_of(config)
    found = planned(config, video, len(queries_of(config, video)), len(truth_of(config, video)))
    show_plan(found, say)
    write_plain(folder / "plan.json", as_json(found))


def fit_command(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Preprocess and fit; the checkpoint lands in the run folder. With ground truth also score, and return the scores."""
    if config.method.name in UNFITTED:
        raise DinotrackError(
            f"method={config.method.name} has nothing to fit; use dinotrack run method={config.method.name}"
        )
    video = video_of(config)
    truth = truth_of(config, video)
    check_objective(config, truth)
    with RunLoggers(config, folder) as loggers:
        run = Run(config, folder, video, truth, loggers)
        data, tracker = fitted(run)
        scores = scores_of(run, tracker, data)
        loggers.results(plain(scores), logged_overlay(run, tracker, loggers), folder / CHECKPOINT)
    write_summary(run, data)
    say(f"fitted; now: dinotrack track checkpoint={folder / CHECKPOINT} queries=grid:30")
    return scores


def logged_overlay(run: Run, tracker: Tracker, loggers: RunLoggers) -> Path | None:
    """The overlay that a fit ends with, where a logger shows videos and pictures are not switched off."""
    entry = run.config.callbacks.get("pictures")
    pictures = instantiate(entry) if entry and any(map(shows_videos, loggers.open())) else None
    if not isinstance(pictures, Pictures) or not pictures.every:
        return None
    with run.stages.stage("render"):
        return final_overlay(pictures, tracker, run.video, run.folder / "overlay.mp4")


def run_command(config: DictConfig, folder: Path) -> dict[str, Any]:
    """Preprocess, fit, track, render; with ground truth also score, and return the scores."""
    video = video_of(config)
    queries = queries_of(config, video)
    check_method(config.interpolate)
    truth = truth_of(config, video)
    check_objective(config, truth)
    wanted = config.plan and config.method.name not in UNFITTED
    foreseen = planned(config, video, len(queries), len(truth)) if wanted else None
    if foreseen:
        show_plan(foreseen, say)
    with RunLoggers(config, folder) as loggers:
        run = Run(config, folder, video, truth, loggers)
        data, tracker = tracker_of(run)
        if foreseen:
            write_plain(folder / "plan.json", as_json(foreseen))
        with run.stages.stage("track"):
            tracks = tracker.track(queries, progress=shown)
        write_tracks(run, tracks)
        scores = scores_of(run, tracker, data)
        loggers.results(plain(scores), folder / "overlay.mp4" if config.render else None, folder / CHECKPOINT)
    write_summary(run, data, points=len(tracks))
    written = ", ".join(sorted(path.name for path in folder.iterdir()))
    say(f"{len(tracks)} points over {len(video)} frames: {written} in {folder}")
    return scores


def track_command(config: DictConfig, folder: Path) -> None:
    """Track queries with the checkpoint of a fit."""
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
    run = Run(config, folder, video)
    with run.stages.stage("load"):
        tracker = load_checkpoint(
            config.checkpoint,
            video,
            backbone=moved_backbone(config),
            cache=Path(config.cache_dir).expanduser() if config.cache_dir else default_cache(),
            device=pick_device(config.device),
            memory=float(config.memory),
            budget=budget_of(config),
            progress=shown,
        )
    with run.stages.stage("track"):
        tracks = tracker.track(queries, progress=shown)
    save_config(config, folder)
    write_tracks(run, tracks)
    write_summary(run, None, points=len(tracks))
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
    write_atomically(folder / CHECKPOINT, lambda name: save_archive(content, name))
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
    write_plain(folder / "demo.json", {"seeds": list(config.seeds), "mean": plain(means), "verdict": found})
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
        summary = read_json(folder / SUMMARY, "run it again")
        write_json(kept, {**row, **measured(scores, config.method.name, summary), "settings": settings})
    write_table(table, table / TABLE)
    say(f"table: {table / TABLE}")


def evaluate_command(config: DictConfig, _: Path) -> dict[str, Any]:
    """Predict the clips of a benchmark that are not done yet, then score all that are; a sweep has a folder for its values."""
    folder = evaluation_folder(config)
    rows: list[dict[str, Any]] = []

    def make(clip: BenchmarkClip, run: Run) -> Tracker:
        if config.benchmark.published_weights:
            with run.stages.stage("load"):
                return published_tracker(config, clip)
        return tracker_of(run)[1]

    try:
        predict_clips(config, folder, make)
    finally:
        done, jobs = len(finished(folder)), config.benchmark.of
        if jobs and done < jobs:  # a job of many: the last one makes the table
            say(f"{done} of {jobs} clips are done; meanwhile, dinotrack score {folder}")
        elif done:
            [rows] = compare([folder])
            say(f"{folder / CSV} has each of the {done} clips that are done, {folder / MARKDOWN} the tables")
    if rows and (not config.benchmark.of or first_to_log(folder, rows)):
        log_scores(config, folder, rows)
    return {config.method.name: means_of(rows or rows_of(folder))} if config.objective else {}
