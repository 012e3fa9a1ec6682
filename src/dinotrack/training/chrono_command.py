"""`dinotrack train-chrono`: adapters and visibility trained on clips with known tracks."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from rich.console import Console
from safetensors.torch import save_file

from dinotrack.backbones import identity
from dinotrack.chrono_weights import part, read_chrono
from dinotrack.data.point_clips import SYNTHETIC, ExportedClips, KubricClips, SyntheticClips, open_clips
from dinotrack.differences import flatten
from dinotrack.errors import DinotrackError
from dinotrack.evaluation import plain
from dinotrack.files import write_atomically
from dinotrack.methods.chrono import read_visibility
from dinotrack.metrics import TapVidScores
from dinotrack.progress import Progress, shown, silent
from dinotrack.training.callbacks import Resumable, StepProgress
from dinotrack.training.chrono_data import ChronoDataModule, ClipSettings, TrainingClips
from dinotrack.training.chrono_module import ChronoModule
from dinotrack.training.chrono_tracking import chrono_backbone, head_settings
from dinotrack.training.config import size_of
from dinotrack.training.fit import begin, make_trainer, without_idle_warnings
from dinotrack.training.held_out import TABLE, HeldOut
from dinotrack.training.jobs import is_job
from dinotrack.training.loggers import RunLoggers
from dinotrack.training.runs import save_config, say, write_plain
from dinotrack.training.scoring import score_table
from dinotrack.training.stages import Stages
from dinotrack.training.stopping import RESUME, read_resumable

ADAPTERS = "adapters.safetensors"
UNSEEN = 5_000
"""The seed of the first synthetic clip that is held out; a training's begin at 10 000, those of benchmark=synthetic at 200."""


def chrono_module(config: DictConfig) -> ChronoModule:
    """The module of a config; with `backbone.adapters` it goes on from those, and from their visibility if the file has one."""
    backbone = chrono_backbone(config)
    module = instantiate(config.chrono, backbone=backbone, head=head_settings(config), _convert_="object")
    file = backbone.settings["adapters"]
    if file is not None and part(read_chrono(file), "visibility."):
        module.visibility.load_state_dict(read_visibility(file).state_dict())
    return module


def clip_settings(config: DictConfig, *, augment: bool) -> ClipSettings:
    size = size_of(config.clips.size, "clips.size") or (256, 256)
    return ClipSettings(config.clips.frames, size, config.clips.points, augment)


def data_of(config: DictConfig) -> str:
    """What `data` names.

    Raises:
        DinotrackError: where it names nothing.
    """
    if OmegaConf.is_missing(config, "data"):
        raise DinotrackError("no clips given; add data=synthetic, or data=FOLDER of exported or of Kubric clips")
    return str(config.data)


def chrono_data(config: DictConfig, devices: int = 1, done: int = 0) -> ChronoDataModule:
    """The clips of a config, one for each step, device and accumulated gradient, but those of the steps that are `done`."""
    settings = clip_settings(config, augment=config.clips.augment)
    each = devices * config.trainer.get("accumulate_grad_batches", 1)
    found = open_clips(data_of(config), {"frames": settings.frames, "size": settings.size, "points": settings.points})
    clips = TrainingClips(found, settings, config.steps * each, config.seed)
    return ChronoDataModule(clips, config.clips.workers, done * each)


def held_out(config: DictConfig) -> HeldOut | None:
    """What scores the clips that `held_out.data` names, if it names any; no seed changes them.

    Raises:
        DinotrackError: for clips that are not there, or that the training sees.
    """
    wanted = config.held_out
    if wanted.data is None:
        return None
    if wanted.clips < 1 or (wanted.every is not None and wanted.every < 1):
        raise DinotrackError(
            f"held_out.clips={wanted.clips}, every={wanted.every}: expected 1 or more; held_out.data=null scores none"
        )
    check_apart(data_of(config), str(wanted.data), wanted.clips)
    settings = clip_settings(config, augment=False)
    synthetic: Any = {"frames": settings.frames, "size": settings.size, "points": settings.points, "first": UNSEEN}
    clips = open_clips(str(wanted.data), synthetic)
    if wanted.clips > len(clips):
        raise DinotrackError(f"held_out.clips={wanted.clips}: {wanted.data} has {len(clips)}")
    return HeldOut(TrainingClips(clips, settings, wanted.clips), wanted.every)


def check_apart(trained: str, scored: str, clips: int) -> None:
    """Let pass held-out clips that are none of the training's.

    Raises:
        DinotrackError: for the same folder, or so many synthetic clips that the training's begin among them.
    """
    if scored == SYNTHETIC:
        if clips > SyntheticClips().first - UNSEEN:
            raise DinotrackError(
                f"held_out.clips={clips}: expected at most {SyntheticClips().first - UNSEEN} synthetic ones"
            )
    elif Path(scored).expanduser().resolve() == Path(trained).expanduser().resolve():
        raise DinotrackError(f"held_out.data={scored} is what is trained on; give a folder of other clips")


def train_chrono(
    config: DictConfig,
    folder: Path | None = None,
    progress: Progress = silent,
    loggers: RunLoggers | None = None,
    watched: HeldOut | None = None,
) -> ChronoModule:
    """Train the adapters of a config; what a stopped training needs to go on is written to `folder`, `watched` keeps scores.

    Raises:
        DinotrackError: for settings or clips that do not fit, when the training diverges, is stopped by a signal, or cannot be
            resumed from what lies in `folder`.
    """
    if config.steps < 1:
        raise DinotrackError(f"steps={config.steps}: expected at least 1; as published 100 000")
    if config.seed < 0:
        raise DinotrackError(f"seed={config.seed}: expected 0 or more")
    L.seed_everything(config.seed, verbose=False)
    module = chrono_module(config)
    callbacks: list[L.Callback] = [watched] if watched else []
    keeper = Resumable(folder / RESUME, config.checkpoint_every) if folder else None
    if keeper:
        callbacks.append(keeper)
    if progress is not silent:
        callbacks.append(StepProgress())
    with without_idle_warnings():
        trainer = make_trainer(config, config.steps, callbacks, folder, loggers.open() if loggers else ())
        if is_job() and trainer.world_size > 1:
            raise DinotrackError("a job of a multirun trains on one device; train with several by a command without -m")
        settings = training_settings(config, module.backbone.settings, trainer)
        resume = folder / RESUME if folder and config.resume and (folder / RESUME).exists() else None
        before: dict[str, Any] = read_resumable(resume, settings) if resume else {"global_step": 0}
        rows = before["callbacks"]["Resumable"]["metrics"] if resume else []
        if keeper:
            keeper.settings = settings
        data = chrono_data(config, trainer.world_size, before["global_step"])
        with in_a_workers_words():
            begin(trainer, module, data, resume, rows)
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise DinotrackError("the training diverged: its weights are no longer finite; lower chrono.lr")
    return module


@contextmanager
def in_a_workers_words() -> Iterator[None]:
    """Hand on what a process that reads clips says, without the traceback that torch puts around it."""
    try:
        yield
    except DinotrackError as error:
        text, name = str(error), f"{DinotrackError.__name__}: "
        if not text.startswith("Caught "):
            raise
        raise DinotrackError(text.rpartition(name)[2].strip()) from error


def training_settings(config: DictConfig, backbone: Mapping[str, Any], trainer: L.Trainer) -> dict[str, Any]:
    """What must be the same for a training to go on, as dotted names and plain values."""
    whole: Any = OmegaConf.to_container(config, resolve=True)
    nested = {name: whole[name] for name in ("data", "steps", "chrono", "method", "held_out", "seed")}
    clips = {name: value for name, value in whole["clips"].items() if name != "workers"}
    clips |= {"trained_on": listing(data_of(config)), "held_out": listing(whole["held_out"]["data"])}
    ran = {name: whole["trainer"].get(name) for name in ("gradient_clip_val", "accumulate_grad_batches")}
    ran |= {"precision": str(trainer.precision), "processes": trainer.world_size}
    ran |= {"device": trainer.strategy.root_device.type}
    return flatten({**nested, "clips": clips, "backbone": identity(dict(backbone)), "trainer": ran})


def listing(data: str | None) -> str:
    """A checksum of names and sizes of the clips that `data` names."""
    if data in (None, SYNTHETIC):
        return str(data)
    clips = open_clips(str(data), {})
    files = clips.paths if isinstance(clips, ExportedClips) else []
    files = [path / f"{path.name}.npy" for path in clips.folders] if isinstance(clips, KubricClips) else files
    return hashlib.sha256(repr([(path.name, path.stat().st_size) for path in files]).encode()).hexdigest()[:16]


def train_chrono_command(config: DictConfig, folder: Path) -> dict[str, TapVidScores]:
    """Train, and write the adapters, which `backbone.adapters=` reads; returns the scores of held-out clips."""
    stages, watched = Stages(), held_out(config)
    scores_there = [each.name for each in fields(TapVidScores) if each.type is float]
    if config.objective is not None and str(config.objective).lower() not in scores_there:
        raise DinotrackError(f"objective={config.objective}: held-out clips give {', '.join(scores_there)}")
    if is_job() and config.objective is not None and watched is None:
        raise DinotrackError(
            f"objective={config.objective} is a score of held-out clips; add held_out.data=synthetic, or a folder"
        )
    save_config(config, folder)
    with RunLoggers(config, folder) as loggers, stages.stage("train"):
        module = train_chrono(config, folder, shown, loggers, watched)
    if module.global_rank:
        return {}
    path = folder / ADAPTERS
    write_atomically(path, lambda name: save_file(module.weights(), name))
    scores = watched.means() if watched else {}
    if watched:
        watched.save(folder / TABLE)
        write_plain(folder / "metrics.json", plain(scores))
        Console().print(score_table(scores, f"On {config.held_out.clips} held-out clips"))
    stages.save(folder / "summary.json", steps=config.steps)
    say(f"trained; now: dinotrack run method=chrono backbone.adapters={path} video=clip.mp4")
    return scores
