"""From configs to objects: the one place where Hydra's `instantiate` is called."""

import inspect
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import torch
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinotrack.backbones import Backbone, Tap
from dinotrack.errors import DinotrackError
from dinotrack.memory import Budget
from dinotrack.networks import Refinement
from dinotrack.progress import Progress, silent
from dinotrack.structs import NO_TRUTH, PointTruth, Video
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.modules import DinoTrackerModule

WATCHING = ("monitor", "pictures")
"""Callbacks that log, and change nothing: no setting that a result depends on."""


def config_folder() -> Path:
    """`conf/`: beside the package in a wheel, at the root of a source checkout."""
    package = Path(__file__).resolve().parents[1]
    folders = [package / "conf", package.parents[1] / "conf"]
    for folder in folders:
        if (folder / "run.yaml").is_file():
            return folder
    raise DinotrackError(f"dinotrack's configs are in neither {folders[0]} nor {folders[1]}; install it again")


def compose_config(
    name: str = "fit", experiment: str | None = None, overrides: Sequence[str] = (), *, with_hydra: bool = False
) -> DictConfig:
    """The config of a command as the command line would compose it, on request with Hydra's own node.

    Raises:
        DinotrackError: for an unknown experiment or override.
    """
    chosen = [f"experiment={experiment}"] if experiment else []
    try:
        with initialize_config_dir(version_base="1.3", config_dir=str(config_folder())):
            return compose(name, overrides=[*chosen, *overrides], return_hydra_config=with_hydra)
    except (HydraException, OmegaConfBaseException) as error:
        raise DinotrackError(f"the config cannot be composed: {' '.join(str(error).split())[:300]}") from error


def pick_device(name: str) -> torch.device:
    """The device that `device=` names; "auto" takes CUDA where there is one.

    Raises:
        DinotrackError: for a device that torch does not know or have.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
    except RuntimeError as error:
        raise DinotrackError(f"device={name}: torch knows no such device; use auto, cpu or cuda") from error
    if device.type == "cuda" and not torch.cuda.is_available():
        raise DinotrackError(f"device={name}: this machine has no CUDA device; use device=cpu")
    return device


def make_data(
    config: DictConfig, video: Video, progress: Progress = silent, truth: PointTruth = NO_TRUTH
) -> VideoDataModule:
    """The data module of a config."""
    return VideoDataModule(
        video,
        instantiate(config.backbone),
        instantiate(config.flow),
        cache=config.cache_dir,
        resolution=config.resolution,
        size=fixed_size(config),
        supervision=instantiate(config.supervision),
        beside=taps_of(config),
        batch=instantiate(config.method.batch),
        seed=config.seed,
        device=pick_device(config.device),
        budget=budget_of(config),
        progress=progress,
        truth=truth,
    )


def budget_of(config: DictConfig) -> Budget:
    """What a run may hold in memory; files for what does not fit lie in its cache."""
    folder = Path(config.cache_dir).expanduser() if config.cache_dir else None
    return Budget(config.get("memory_limit"), folder, config.get("features_on", "auto"))


def taps_of(config: DictConfig) -> list[Tap]:
    """Every (layer, facet) whose features a ViT's pass keeps beside its own: those that `layers` and `facets` name.

    Raises:
        DinotrackError: when `layers` are no whole numbers.
    """
    if not config.layers and not config.facets:
        return []
    layers = list(config.layers or [config.backbone.layer])
    if not all(isinstance(layer, int) for layer in layers):
        raise DinotrackError(f"layers={layers}: expected whole numbers, [12,16,20]")
    return [(layer, str(facet)) for layer in layers for facet in config.facets or [config.backbone.facet]]


def fixed_size(config: DictConfig) -> tuple[int, int] | None:
    """`size` = [W, H], or None where the aspect decides.

    Raises:
        DinotrackError: for anything else.
    """
    return size_of(config.size, "size")


def size_of(value: Any, name: str) -> tuple[int, int] | None:
    """A setting [W, H], or None.

    Raises:
        DinotrackError: for anything else.
    """
    if value is None:
        return None
    size = OmegaConf.to_container(value) if OmegaConf.is_config(value) else value
    if not (isinstance(size, list) and len(size) == 2 and all(isinstance(side, int) and side > 0 for side in size)):
        raise DinotrackError(f"{name}={size}: expected [W, H] in whole pixels, or null")
    return size[0], size[1]


def make_module(config: DictConfig, backbone: Backbone) -> DinoTrackerModule:
    """The module of a config, its refinement made for the backbone."""
    delta = make_refinement(instantiate(config.method.delta, _partial_=True), backbone)
    losses = {str(name): instantiate(term) for name, term in config.losses.items()}
    visibility = instantiate(config.method.visibility)
    parts = {"delta": delta, "head": instantiate(config.method.head), "losses": losses, "visibility": visibility}
    return instantiate(config.method.module, **parts, _convert_="object")


def make_refinement(make: Callable[..., Refinement], backbone: Backbone) -> Refinement:
    """A refinement from its class with settings: Delta-DINO needs the backbone's channels, LoRA the backbone."""
    try:
        wanted = inspect.signature(make).parameters
        return make(backbone=backbone) if "backbone" in wanted else make(channels=backbone.channels)
    except DinotrackError:
        raise
    except (TypeError, ValueError) as error:  # a setting that an experiment made for another refinement
        raise DinotrackError(f"method.delta: {error}; remove that setting with ~method.delta.NAME") from error
