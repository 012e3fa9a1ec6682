"""Fit a tracker to one video."""

import logging
import warnings
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from jaxtyping import Bool
from omegaconf import DictConfig
from torch import Tensor

from dinotrack.data.video import load_masks
from dinotrack.errors import DinotrackError
from dinotrack.methods.dino_tracker import DinoTracker
from dinotrack.progress import Progress, shown, silent
from dinotrack.structs import Video
from dinotrack.training.callbacks import StepProgress
from dinotrack.training.config import compose_config, make_data, make_module, pick_device
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.modules import DinoTrackerModule

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


def prepare(config: DictConfig, video: Video, progress: Progress = silent) -> VideoDataModule:
    """Preprocess a video through the cache, once the config is known to make networks that fit it.

    Raises:
        DinotrackError: for settings that do not fit the video, before anything is computed.
    """
    if config.steps < 0:
        raise DinotrackError(f"steps={config.steps}: expected at least 1, or 0 to leave the networks as they start")
    data = make_data(config, video, progress)
    make_module(config, data.backbone.channels).delta.check_size(data.working_size)
    data.setup("fit")
    if not len(data.store.best_buddies):
        log.warning("no DINO best buddies: optical flow covers every frame pair that has any, so their loss stays 0")
    return data


def train(
    config: DictConfig, data: VideoDataModule, progress: Progress = silent, folder: Path | None = None
) -> DinoTracker:
    """Fit the networks of a config to prepared data; loggers write to `folder`."""
    L.seed_everything(config.seed, verbose=False)
    module = make_module(config, data.backbone.channels)
    with warnings.catch_warnings():
        # True of every fit, and no fault: the loader must have no workers, and the run folder already holds the config.
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Experiment logs directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
        make_trainer(config, progress is not silent, folder).fit(module, data)
    return finish(module, data, float(config.memory))


def finish(module: DinoTrackerModule, data: VideoDataModule, memory: float) -> DinoTracker:
    """The tracker of a module whose fit has ended.

    Raises:
        DinotrackError: when the fit diverged.
    """
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise DinotrackError("the fit diverged: its weights are no longer finite; lower method.module.lr")
    return module.tracker(data, memory=memory)


def make_trainer(config: DictConfig, progress: bool, folder: Path | None) -> L.Trainer:
    """Lightning's Trainer of a config."""
    quiet_lightning()
    device = pick_device(config.device)
    options: dict[str, Any] = {"callbacks": [StepProgress()] if progress else [], "logger": False}
    if "_target_" in config.logger and folder is not None:
        options["logger"] = instantiate(config.logger, save_dir=str(folder))
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
