"""`dinotrack evaluate`: a benchmark's clips one after the other, each predicted to a folder of its own."""

import json
import logging
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf

from dinotrack.cache import default_cache
from dinotrack.data.benchmarks import Benchmark, BenchmarkClip
from dinotrack.data.export import save_npz
from dinotrack.errors import DinotrackError, Stopped
from dinotrack.evaluation import predict
from dinotrack.methods.published import PUBLISHED_SIZE, load_published
from dinotrack.progress import shown
from dinotrack.scoreboard import SUMMARY, TRACKS, TRUTH, finished
from dinotrack.trackers import Tracker
from dinotrack.training.ablations import settings_of
from dinotrack.training.config import compose_config, fixed_size, pick_device
from dinotrack.training.fit import flatten
from dinotrack.training.stages import Stages
from dinotrack.training.stopping import RESUME

log = logging.getLogger(__name__)

WHERE = ("path", "videos", "source", "clip", "subset", "joints", "frames", "masks")
"""Settings of a benchmark that say where it lies and which clips are asked for, not what a clip's prediction is."""

Make = Callable[[BenchmarkClip, Path, Stages], Tracker]


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
    return [str(name) for name in given] if OmegaConf.is_list(given) else [str(given)]


def evaluated_settings(config: DictConfig) -> dict[str, Any]:
    """What a prediction depends on, as dotted names and plain values."""
    whole = settings_of(config)
    dropped = ("folder", "save_tracker", "video", "table")
    kept = {name: value for name, value in whole.items() if name not in dropped}
    kept["benchmark"] = {name: value for name, value in whole["benchmark"].items() if name not in WHERE}
    return flatten(kept)


def check_settings(folder: Path, settings: dict[str, Any]) -> None:
    """Let pass a folder whose predictions were made with these settings, or which has none.

    Raises:
        DinotrackError: naming the settings that differ.
    """
    for clip in finished(folder):
        try:
            before = json.loads((clip / SUMMARY).read_text())["evaluation"]["settings"]
        except (OSError, ValueError, KeyError, TypeError) as error:
            raise DinotrackError(f"{clip / SUMMARY} is damaged ({error}); delete {clip}") from error
        names = sorted(
            name for name in {*before, *settings} if before.get(name, "absent") != settings.get(name, "absent")
        )
        if names:
            shown_names = ", ".join(
                f"{name} was {before.get(name, 'absent')}, is {settings.get(name, 'absent')}" for name in names[:4]
            )
            raise DinotrackError(
                f"{folder} has predictions made with other settings ({shown_names}); give another folder=, or delete it"
            )


def predict_clips(
    config: DictConfig,
    folder: Path,
    make: Make,
    save_config: Callable[[DictConfig, Path], None],
    say: Callable[[str], None],
) -> None:
    """Predict the chosen clips that are not finished; one that fails does not keep the others from their turn.

    Raises:
        DinotrackError: naming the clips that failed, once the others are done.
    """
    benchmark = benchmark_of(config)
    settings = evaluated_settings(config)
    check_settings(folder, settings)
    names, failed = chosen_clips(config, benchmark), list[str]()
    done = {path.name for path in finished(folder)}
    for number, name in enumerate(names, 1):
        place = f"[{number}/{len(names)}] {name}"
        if name in done:
            say(f"{place}: done before")
            continue
        try:
            clip = benchmark.open(name)
            say(
                f"{place}: {len(clip.video)} frames of {clip.video.size[0]}x{clip.video.size[1]}, {len(clip.truth)} queries"
            )
            predict_clip(config, clip, folder / clip.name, make, settings, save_config)
        except Stopped:
            raise
        except DinotrackError as error:
            log.error("%s: %s", place, error)
            failed.append(name)
    if failed:
        raise DinotrackError(
            f"{len(failed)} of {len(names)} clips failed ({', '.join(failed[:5])}), their reasons stand above"
        )


def predict_clip(
    config: DictConfig,
    clip: BenchmarkClip,
    folder: Path,
    make: Make,
    settings: dict[str, Any],
    save_config: Callable[[DictConfig, Path], None],
) -> None:
    """Track the queries of one clip and keep tracks, ground truth, costs and settings; the summary comes last."""
    stages = Stages()
    save_config(config, folder)
    tracker = make(clip, folder, stages)
    with stages.stage("track"):
        tracks = predict(tracker, clip.truth, clip.video.size, progress=shown)
    save_npz(tracks, folder / TRACKS)
    clip.truth.save(folder / TRUTH)
    about = {"benchmark": config.benchmark.name, "method": config.method.name, "clip": clip.name, "settings": settings}
    stages.save(folder / SUMMARY, evaluation=about)
    spare = [RESUME] if config.save_tracker else [RESUME, "tracker.ckpt"]
    for name in spare:
        (folder / name).unlink(missing_ok=True)


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
        progress=shown,
    )


def one_clip_a_job(words: Sequence[str]) -> list[str]:
    """The words of a multirun of `dinotrack evaluate`, with a list of the benchmark's clips unless they name some.

    Raises:
        DinotrackError: when the benchmark cannot be read.
    """
    parser = OverridesParser.create()
    given = parser.parse_overrides([word for word in words if "=" in word and not word.startswith("-")])
    if any(each.key_or_group == "benchmark.clip" for each in given):
        return list(words)
    plain = [
        each.input_line or ""
        for each in given
        if each.key_or_group.split(".")[0] == "benchmark" and not each.is_sweep_override()
    ]
    names = benchmark_of(compose_config("evaluate", overrides=plain)).names()
    # Beside the other overrides: the parser of the command line wants them in one row.
    place = next((index for index, word in enumerate(words) if "=" in word and not word.startswith("-")), len(words))
    return [*words[:place], "benchmark.clip=" + ",".join(f"'{name}'" for name in names), *words[place:]]
