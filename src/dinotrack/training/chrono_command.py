"""`dinotrack train-chrono`: adapters and visibility trained on clips with known tracks."""

import warnings
from pathlib import Path
from typing import Any

import lightning as L
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from safetensors.torch import save_file

from dinotrack.chrono_weights import part, read_chrono
from dinotrack.data.point_clips import open_clips
from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically
from dinotrack.methods.chrono import read_visibility
from dinotrack.progress import Progress, shown, silent
from dinotrack.training.callbacks import StepProgress
from dinotrack.training.chrono_data import ChronoDataModule, ClipSettings, TrainingClips
from dinotrack.training.chrono_module import ChronoModule
from dinotrack.training.chrono_tracking import chrono_backbone, head_settings
from dinotrack.training.config import size_of
from dinotrack.training.fit import make_trainer
from dinotrack.training.loggers import RunLoggers
from dinotrack.training.runs import save_config, say
from dinotrack.training.stages import Stages

ADAPTERS = "adapters.safetensors"


def chrono_module(config: DictConfig) -> ChronoModule:
    """The module of a config; with `backbone.adapters` it goes on from those, and from their visibility if the file has one."""
    backbone = chrono_backbone(config)
    module = instantiate(config.chrono, backbone=backbone, head=head_settings(config), _convert_="object")
    file = backbone.settings["adapters"]
    if file is not None and part(read_chrono(file), "visibility."):
        module.visibility.load_state_dict(read_visibility(file).state_dict())
    return module


def chrono_data(config: DictConfig, devices: int = 1) -> ChronoDataModule:
    """The clips of a config, one for each step and device."""
    if OmegaConf.is_missing(config, "data"):
        raise DinotrackError("no clips given; add data=synthetic, or data=FOLDER of exported or of Kubric clips")
    size = size_of(config.clips.size, "clips.size") or (256, 256)
    settings = ClipSettings(config.clips.frames, size, config.clips.points, config.clips.augment)
    synthetic: Any = {"frames": settings.frames, "size": size, "points": settings.points}
    clips = TrainingClips(open_clips(str(config.data), synthetic), settings, config.steps * devices, config.seed)
    return ChronoDataModule(clips, config.clips.workers)


def train_chrono(
    config: DictConfig, folder: Path | None = None, progress: Progress = silent, loggers: RunLoggers | None = None
) -> ChronoModule:
    """Train the adapters of a config.

    Raises:
        DinotrackError: for settings or clips that do not fit, or when the training diverges.
    """
    if config.steps < 1:
        raise DinotrackError(f"steps={config.steps}: expected at least 1; as published 100 000")
    L.seed_everything(config.seed, verbose=False)
    module = chrono_module(config)
    callbacks: list[L.Callback] = [] if progress is silent else [StepProgress()]
    trainer = make_trainer(config, config.steps, callbacks, folder, loggers.open() if loggers else ())
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message=".*does not have many workers.*")
        warnings.filterwarnings("ignore", message=".*Experiment logs directory .* exists and is not empty.*")
        warnings.filterwarnings("ignore", message=".*`isinstance\\(treespec, LeafSpec\\)` is deprecated.*")
        trainer.fit(module, chrono_data(config, trainer.world_size))
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise DinotrackError("the training diverged: its weights are no longer finite; lower chrono.lr")
    return module


def train_chrono_command(config: DictConfig, folder: Path) -> None:
    """Train, and write the adapters, which `backbone.adapters=` reads."""
    stages = Stages()
    with RunLoggers(config, folder) as loggers, stages.stage("train"):
        module = train_chrono(config, folder, shown, loggers)
    if module.global_rank:
        return
    path = folder / ADAPTERS
    write_atomically(path, lambda name: save_file(module.weights(), name))
    save_config(config, folder)
    stages.save(folder / "summary.json", steps=config.steps)
    say(f"trained; now: dinotrack run method=chrono backbone.adapters={path} video=clip.mp4")
