"""`dinotrack evaluate`: a benchmark's clips one after the other, each predicted to a folder of its own."""

import hashlib
import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dinotrack.benchmark_metrics import flattened
from dinotrack.cache import default_cache
from dinotrack.data.benchmarks import Benchmark, BenchmarkClip
from dinotrack.data.export import save_npz
from dinotrack.differences import flatten, in_words
from dinotrack.errors import DinotrackError, Stopped
from dinotrack.evaluation import predict, score_tracks
from dinotrack.methods.published import PUBLISHED_SIZE, load_published
from dinotrack.progress import shown
from dinotrack.scoreboard import SUMMARY, TRACKS, TRUTH, finished, means_of, read_clip, summary_of
from dinotrack.structs import Tracks
from dinotrack.trackers import Tracker
from dinotrack.training.ablations import settings_of
from dinotrack.training.config import budget_of, compose_config, fixed_size, pick_device
from dinotrack.training.jobs import RECORDS
from dinotrack.training.loggers import RunLoggers
from dinotrack.training.runs import CHECKPOINT, Run, save_config, say
from dinotrack.training.stopping import RESUME
from dinotrack.training.unfitted import UNFITTED
from dinotrack.training.words import quoted

log = logging.getLogger(__name__)

ASKED = ("source", "clip", "subset", "of")
"""Settings of a benchmark that say which clips are asked for, not what a clip's prediction is; `source` repeats the others."""
UNREAD = (
    "folder",
    "save_tracker",
    "video",
    "start",
    "stop",
    "masks",
    "truth",
    "synthetic",
    "baselines",
    "device",
    "interpolate",
)
UNREAD += ("queries", "queries_frame", "queries_on_mask")
FITTED = ("losses", "callbacks", "trainer", "steps", "compile", "supervision")
"""What a method that is not fitted does not read."""

Make = Callable[[BenchmarkClip, Run], Tracker]


def benchmark_of(config: DictConfig) -> Benchmark:
    """The benchmark that a config names.

    Raises:
        DinotrackError: when it does not say where the benchmark lies.
    """
    if OmegaConf.is_missing(config.benchmark, "path"):
        raise DinotrackError(f"where is {config.benchmark.name}? add benchmark.path=FILE_OR_FOLDER")
    return instantiate(config.benchmark.source)


def chosen_clips(config: DictConfig, benchmark: Benchmark) -> list[str]:
    """The clips that `benchmark.clip` names, or all."""
    given = config.benchmark.clip
    if given is None:
        return benchmark.names()
    names = [str(name) for name in given] if OmegaConf.is_list(given) else [str(given)]
    if not names:
        raise DinotrackError("benchmark.clip=[] names no clip; give some names, or null for all")
    return names


def evaluated_settings(config: DictConfig) -> dict[str, Any]:
    """What a prediction depends on, as dotted names and plain values."""
    for name in ("start", "stop", "masks", "truth"):
        if config[name] not in (None, 0):
            raise DinotrackError(f"{name}={config[name]}: an evaluation tracks the benchmark's clips as they are")
    whole = settings_of(config)
    dropped = (*UNREAD, *(FITTED if config.method.name in UNFITTED else ()))
    kept = {name: value for name, value in whole.items() if name not in dropped}
    kept["benchmark"] = {name: value for name, value in whole["benchmark"].items() if name not in ASKED}
    kept["benchmark"] = with_places(kept["benchmark"])
    return flatten(kept)


def source_of(config: DictConfig) -> dict[str, Any]:
    """What reads the benchmark, so that a clip can be shown later from anywhere."""
    source: Any = OmegaConf.to_container(config.benchmark.source, resolve=True)
    return with_places(source)


def with_places(settings: dict[str, Any]) -> dict[str, Any]:
    """A benchmark's settings with whole paths."""
    places = {name: settings[name] for name in ("path", "videos") if settings.get(name)}
    return settings | {name: str(Path(place).absolute()) for name, place in places.items()}


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Let pass a folder whose predictions were made with these settings, or which has none.

    Raises:
        DinotrackError: naming the settings that differ, or a damaged summary.
    """
    for clip in finished(folder):
        before = summary_of(clip)["evaluation"]["settings"]
        if reason := in_words(before, settings):
            raise DinotrackError(
                f"{folder} has predictions made with other settings ({reason}); give another folder=, or delete it"
            )


def drop_damaged(folder: Path, names: Sequence[str]) -> None:
    """Name the finished clips among `names` whose files are damaged, and have them predicted again."""
    for clip in finished(folder):
        if clip.name in names:
            try:
                read_clip(clip)
            except DinotrackError as error:
                log.warning("predicting %s again: %s", clip.name, error)
                (clip / SUMMARY).unlink()


def predict_clips(config: DictConfig, folder: Path, make: Make) -> None:
    """Predict the chosen clips that are not finished; one that fails does not keep the others from their turn.

    Raises:
        DinotrackError: naming the clips that failed, once the others are done.
    """
    benchmark = benchmark_of(config)
    settings = evaluated_settings(config)
    names, failed = chosen_clips(config, benchmark), list[str]()
    drop_damaged(folder, names)
    check_settings(folder, settings)
    done = {path.name for path in finished(folder)}
    for number, name in enumerate(names, 1):
        place = f"[{number}/{len(names)}] {name}"
        if name in done:
            tidy(config, folder / name)
            say(f"{place}: done before")
            continue
        try:
            clip = benchmark.open(name)
            say(
                f"{place}: {len(clip.video)} frames of {clip.video.size[0]}x{clip.video.size[1]}, {len(clip.truth)} queries"
            )
            predict_clip(config, clip, folder / clip.name, make, settings)
        except Stopped as error:
            raise Stopped(f"{place}: {error.where}", "the same command goes on from there", error.number) from error
        except Exception as error:  # of one clip, as memory that does not suffice; the others have their turn
            reason = error if isinstance(error, DinotrackError) else f"{type(error).__name__}: {error}"
            log.error("%s: %s", place, reason)
            log.debug("", exc_info=error)
            failed.append(name)
            if len(names) == 1:  # a job of a multirun, whose record says why
                raise DinotrackError(f"{name}: {reason}") from error
        clip = None  # one clip at a time is in memory
    if failed:
        raise DinotrackError(
            f"{len(failed)} of {len(names)} clips failed ({', '.join(failed[:5])}), their reasons stand above"
        )


def predict_clip(config: DictConfig, clip: BenchmarkClip, folder: Path, make: Make, settings: dict[str, Any]) -> None:
    """Track the queries of one clip and keep tracks, ground truth, costs and settings; the summary comes last.

    A fit's loggers are told the clip's scores at the end.
    """
    save_config(config, folder)
    with RunLoggers(config, folder) as loggers:
        run = Run(config, folder, clip.video, clip.truth, loggers)
        tracks = no_tracks(clip)
        if len(clip.truth):  # else there is nothing to fit for
            tracker = make(clip, run)
            with run.stages.stage("track"):
                tracks = predict(tracker, clip.truth, clip.video.size, progress=shown)
        save_npz(tracks, folder / TRACKS)
        clip.truth.save(folder / TRUTH)
        about: dict[str, Any] = {"benchmark": config.benchmark.name, "method": config.method.name, "clip": clip.name}
        digest = hashlib.sha256(json.dumps(settings, sort_keys=True, default=str).encode()).hexdigest()[:12]
        about |= {"source": source_of(config), "hash": clip.video.content_hash}
        run.stages.save(folder / SUMMARY, evaluation={**about, "settings": settings, "settings_hash": digest})
        if loggers.opened:
            scores = flattened(score_tracks(clip.truth, tracks))
            loggers.results({config.method.name: scores}, None, folder / CHECKPOINT)
    tidy(config, folder)


def tidy(config: DictConfig, folder: Path) -> None:
    """Remove from a finished clip's folder what is no longer needed."""
    for name in [RESUME] if config.save_tracker else [RESUME, CHECKPOINT]:
        (folder / name).unlink(missing_ok=True)


def first_to_log(folder: Path, rows: Sequence[dict[str, Any]]) -> bool:
    """Whether no other job has told loggers these rows: two that end at once both see that all clips are done."""
    digest = hashlib.sha256(json.dumps(rows, sort_keys=True, default=str).encode()).hexdigest()[:12]
    mark = folder / RECORDS / f".logged-{digest}"
    mark.parent.mkdir(parents=True, exist_ok=True)
    try:
        mark.touch(exist_ok=False)
    except FileExistsError:
        return False
    return True


def log_scores(config: DictConfig, folder: Path, rows: Sequence[dict[str, Any]]) -> None:
    """Tell loggers that keep results of a whole evaluation, in a run of its own: the means over clips, and each clip's row."""
    with RunLoggers(config, folder, name=folder.name) as loggers:
        loggers.results({config.method.name: means_of(rows)}, None, None)
        loggers.table("final/clips", rows)


def no_tracks(clip: BenchmarkClip) -> Tracks:
    """Those of a clip without queries."""
    nothing = torch.zeros(0, len(clip.video))
    return Tracks(
        torch.zeros(0, 3), torch.zeros(0, len(clip.video), 2), nothing.bool(), nothing, clip.video.size, clip.video.fps
    )


def published_tracker(config: DictConfig, clip: BenchmarkClip) -> Tracker:
    """The tracker of the weights that were published for a clip.

    Raises:
        DinotrackError: when there are none beside it, or another method is asked for.
    """
    if config.method.name != "dino_tracker":
        raise DinotrackError(f"benchmark.published_weights=true is for method=dino_tracker, not {config.method.name}")
    if not clip.weights:
        raise DinotrackError(
            f"{clip.name} has no published weights beside its frames; benchmark.published_weights=false fits"
        )
    return load_published(
        clip.weights,
        clip.video,
        instantiate(config.backbone),
        size=fixed_size(config) or PUBLISHED_SIZE,
        cache=Path(config.cache_dir).expanduser() if config.cache_dir else default_cache(),
        device=pick_device(config.device),
        memory=float(config.memory),
        budget=budget_of(config),
        progress=shown,
    )


def one_clip_a_job(words: Sequence[str]) -> list[str]:
    """The words of a multirun of `dinotrack evaluate`, with a list of the benchmark's clips unless they name some.

    Raises:
        DinotrackError: when the benchmark cannot be read.
    """
    try:
        plain = [word for word in words if "=" in word and not word.startswith("-")]
        given = OverridesParser.create().parse_overrides(plain)
    except HydraException as error:
        raise DinotrackError(f"an override cannot be read: {str(error).splitlines()[0]}") from error
    of_benchmark = [each for each in given if each.key_or_group.split(".")[0] == "benchmark"]
    if any(each.key_or_group == "benchmark.clip" for each in of_benchmark):
        return list(words)
    swept = [
        each.key_or_group for each in of_benchmark if each.is_sweep_override() and each.key_or_group != "benchmark.mode"
    ]
    if swept:
        raise DinotrackError(f"-m cannot list the clips of several benchmarks ({swept[0]}); evaluate one at a time")
    lines = [each.input_line or "" for each in of_benchmark if not each.is_sweep_override()]
    names = benchmark_of(compose_config("evaluate", overrides=lines)).names()
    # Beside the other overrides: the parser of the command line wants them in one row.
    place = next((index for index, word in enumerate(words) if "=" in word and not word.startswith("-")), len(words))
    clips = "benchmark.clip=" + ",".join(quoted(name) for name in names)
    return [*words[:place], clips, f"benchmark.of={len(names)}", *words[place:]]
