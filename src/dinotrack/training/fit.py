"""Fit a tracker to one video."""

import logging
import math
import warnings
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from jaxtyping import Bool
from lightning.pytorch.loggers import Logger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dinotrack.backbones import identity
from dinotrack.data.video import load_masks
from dinotrack.differences import flatten
from dinotrack.errors import DinotrackError
from dinotrack.geometry import constant_scale
from dinotrack.methods.dino_tracker import DinoTracker
from dinotrack.progress import Progress, shown, silent
from dinotrack.structs import NO_TRUTH, PointTruth, Video
from dinotrack.tensor_struct import hash_of
from dinotrack.training.callbacks import RebuildPairs, Resumable, StepProgress
from dinotrack.training.config import WATCHING, compose_config, make_data, make_module, pick_device
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.loggers import Guarded, RunLoggers
from dinotrack.training.modules import DinoTrackerModule
from dinotrack.training.stopping import RESUME, continue_metrics, read_resumable
from dinotrack.training.warm_start import start_from

log = logging.getLogger(__name__)


def fit(
    video: Video,
    masks: str | Path | Bool[Tensor, "t h w"] | None = None,
    experiment: str | None = None,
    overrides: Sequence[str] = (),
    *,
    progress: bool = True,
) -> DinoTracker:
    """Fit DINO-Tracker to a video and return its tracker: `fit(load_video("clip.mp4")).track(queries)`.

    `experiment` and `overrides` are those of the command line, `fit(video, overrides=["steps=500", "backbone=dense_sift"])`;
    `masks` is a folder of mask images, an .npy file, or (T, H, W) booleans.

    Raises:
        DinotrackError: for settings or masks that do not fit, weights that cannot be had, or a video without supervision.
    """
    if isinstance(masks, str | Path):
        masks = load_masks(masks, video, start=video.start, stop=video.start + len(video))
    if masks is not None:
        video = replace(video, masks=masks)
    config = compose_config("fit", experiment, [*overrides, "logger=none"])
    show = shown if progress else silent
    data = prepare(config, video, show)
    return train(config, data, show)


def prepare(
    config: DictConfig, video: Video, progress: Progress = silent, truth: PointTruth = NO_TRUTH
) -> VideoDataModule:
    """Preprocess a video through the cache, once the config is known to make networks that fit it.

    `truth` is for callbacks that score the fit.

    Raises:
        DinotrackError: for settings that do not fit the video, before anything is computed.
    """
    data, _ = checked(config, video, progress, truth)
    warn_of_small_radius(config, data)
    data.setup("fit")
    if not len(data.store.best_buddies):
        log.warning("no DINO best buddies: optical flow covers every frame pair that has any, so their loss stays 0")
    return data


def checked(
    config: DictConfig, video: Video, progress: Progress = silent, truth: PointTruth = NO_TRUTH
) -> tuple[VideoDataModule, DinoTrackerModule]:
    """Data module and networks of a config that fit the video, before anything is computed.

    Raises:
        DinotrackError: for settings that do not.
    """
    if config.steps is not None and config.steps < 0:
        raise DinotrackError(f"steps={config.steps}: expected at least 1, or 0 to leave the networks as they start")
    data = make_data(config, video, progress, truth)
    module = make_module(config, data.backbone)
    module.delta.check_size(data.working_size)
    return data, module


def warn_of_small_radius(config: DictConfig, data: VideoDataModule) -> None:
    """Say it where R reaches no second token: positions are cells' centres then, and no loss of positions has a gradient."""
    scale = constant_scale(data.working_size) if data.supervision.scale_constants else 1.0
    reach, stride = config.method.head.radius * scale, data.backbone.stride
    if reach < stride:
        needed = f"method.head.radius={math.ceil(stride / scale)}"
        line = "R is %.1f pixels, a token %d: the refiner learns nothing; take a larger resolution, or at least %s"
        log.warning(line, reach, stride, needed)


def published_steps(frames: int, *, long: int = 250) -> int:
    """Steps of the published fit of a video of so many frames: 10 000, from `long` frames on 20 000 (method §5)."""
    return 20_000 if frames >= long else 10_000


def train(
    config: DictConfig,
    data: VideoDataModule,
    progress: Progress = silent,
    folder: Path | None = None,
    loggers: RunLoggers | None = None,
) -> DinoTracker:
    """Fit the networks of a config to prepared data; loggers, and what a stopped fit needs to go on, write to `folder`.

    Without `loggers` those of the config are closed when the fit ends.

    Raises:
        DinotrackError: when the fit diverges, is stopped by a signal, or cannot be resumed from what lies in `folder`.
    """
    if loggers is None:
        with RunLoggers(config, folder) as own:
            return train(config, data, progress, folder, own)
    L.seed_everything(config.seed, verbose=False)
    module = make_module(config, data.backbone)
    if config.get("init_from"):
        start_from(str(config.init_from), module)
    module.delta.prepare(data.store.images, budget=data.budget, progress=progress)
    steps = config.steps if config.steps is not None else published_steps(len(data.video))
    if config.get("compile"):
        module.delta.compile_parts()
        module.head.compile()
    settings = resumable_settings(config, data, steps)
    resume = folder / RESUME if folder and config.get("resume") and (folder / RESUME).exists() else None
    rows = read_resumable(resume, settings)["callbacks"]["Resumable"]["metrics"] if resume else []
    callbacks: list[L.Callback] = [instantiate(callback) for callback in config.callbacks.values()]
    if not any(isinstance(callback, RebuildPairs) for callback in callbacks):
        callbacks.append(RebuildPairs())  # as the module would, but before what saves its tables
    if folder:
        callbacks.append(Resumable(folder / RESUME, config.get("checkpoint_every", 500), settings))
    if progress is not silent:
        callbacks.append(StepProgress())
    with without_idle_warnings():
        trainer = make_trainer(config, steps, callbacks, folder, loggers.open())
        begin(trainer, module, data, resume, rows)
    return finish(module, data, float(config.memory))


@contextmanager
def without_idle_warnings() -> Iterator[None]:
    """Keep back what is true of every fit, and no fault."""
    with warnings.catch_warnings():
        for message in (
            "does not have many workers",  # it must have none
            "Experiment logs directory .* exists and is not empty",  # of the config
            "`isinstance\\(treespec, LeafSpec\\)` is deprecated",
            "module\\(s\\) in eval mode at the start of training",  # LoRA's frozen parts
            "your dataloader is not resumable",  # ours is
        ):
            warnings.filterwarnings("ignore", message=f".*{message}.*")
        yield


def begin(
    trainer: L.Trainer,
    module: L.LightningModule,
    data: L.LightningDataModule,
    resume: Path | None,
    rows: list[dict[str, str]],
) -> None:
    """Fit, from the step that `resume` was saved at if there is one; `rows` of metrics are from before."""
    for logger in trainer.loggers:
        if isinstance(logger, Guarded):
            logger.do(lambda inner: continue_metrics(inner, rows))
    trainer.fit(module, data, ckpt_path=str(resume) if resume else None)


def resumable_settings(config: DictConfig, data: VideoDataModule, steps: int) -> dict[str, Any]:
    """What must be the same for a fit to go on, as dotted names and plain values."""
    whole: Any = OmegaConf.to_container(config, resolve=True)
    nested = {name: whole[name] for name in ("method", "losses", "supervision", "seed")}
    nested["callbacks"] = {name: value for name, value in whole["callbacks"].items() if name not in WATCHING}
    about = {
        "video": data.video.content_hash,
        "masks": hash_of(data.store.masks),
        "size": list(data.store.features.size),
    }
    about |= {"backbone": identity(data.backbone.settings), "flow": data.flow.settings, "steps": steps}
    about |= {"device": str(pick_device(config.device)), "precision": whole["trainer"]["precision"]}
    return flatten({**nested, **about})  # type: ignore[dict-item]


def finish(module: DinoTrackerModule, data: VideoDataModule, memory: float) -> DinoTracker:
    """The tracker of a module whose fit has ended.

    Raises:
        DinotrackError: when the fit diverged.
    """
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise DinotrackError("the fit diverged: its weights are no longer finite; lower method.module.lr")
    return module.tracker(data, memory=memory)


def make_trainer(
    config: DictConfig, steps: int, callbacks: list[L.Callback], folder: Path | None, loggers: Sequence[Logger] = ()
) -> L.Trainer:
    """Lightning's Trainer of a config."""
    quiet_lightning()
    device = pick_device(config.device)
    options: dict[str, Any] = {"callbacks": callbacks, "logger": [*loggers] or False, "max_steps": steps}
    if 0 < steps < config.trainer.log_every_n_steps:
        options["log_every_n_steps"] = steps  # else a short fit would log nothing
    if config.trainer.deterministic == "auto":
        # On the CPU it costs nothing, and two runs are equal to the bit; on CUDA some backward passes have no such form.
        options["deterministic"] = device.type == "cpu"
    if config.trainer.precision == "auto":
        options["precision"] = "bf16-mixed" if device.type == "cuda" else "32-true"
    if config.trainer.accelerator == "auto":
        options["accelerator"] = "gpu" if device.type == "cuda" else "cpu"
    if device.index is not None:
        options["devices"] = [device.index]
    folder_option = {"default_root_dir": str(folder)} if folder else {}
    return instantiate(config.trainer, **options, **folder_option)


def quiet_lightning() -> None:
    """Keep Lightning to warnings: its banners are about hardware that nobody asked for."""
    for name in ("lightning.pytorch", "lightning.fabric", "lightning.pytorch.utilities.rank_zero"):
        logging.getLogger(name).setLevel(logging.WARNING)
