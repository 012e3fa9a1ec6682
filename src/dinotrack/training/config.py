"""From configs to objects: the one place where Hydra's `instantiate` is called."""

import inspect
import re
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from hydra import compose, initialize_config_dir
from hydra.errors import HydraException
from hydra.utils import instantiate
from omegaconf import DictConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException

from dinotrack.backbones import Backbone, Tap
from dinotrack.data.arrays import read_text
from dinotrack.errors import DinotrackError, reason_of
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


def frame_side(config: DictConfig) -> int | None:
    """The long side above which frames are scaled down as they are read, never below that at which they are processed.

    Raises:
        DinotrackError: for a `max_side` or `resolution` that is no whole number.
    """
    for name in ("max_side", "resolution"):
        value = config[name]
        if not (isinstance(value, int) and value > 0) and (name, value) != ("max_side", None):
            raise DinotrackError(f"{name}={value}: expected whole pixels, as in {name}=1280")
    return config.max_side and max(config.max_side, config.resolution, *(fixed_size(config) or ()))


def own_targets() -> set[str]:
    """What dinotrack's own configs make of the parts of a fit."""
    files = [config_folder() / "settings.yaml"]
    for group in ("backbone", "flow", "method", "refinement", "losses"):
        files += sorted((config_folder() / group).glob("*.yaml"))
    return {name for file in files for name in re.findall(r"_target_:\s*([\w.]+)", file.read_text(encoding="utf-8"))}


def read_run_config(path: Path) -> DictConfig:
    """What a run was made with, as its folder says, without what only a fit reads.

    `instantiate` calls whatever a config names, and a run folder may come from a stranger: this one may name what our own configs
    name, and nothing that is put together while it is read.

    Raises:
        DinotrackError: for a file that is not there or damaged, or one that names anything else.
    """
    text = read_text(path, "config", "expected the config.yaml of a run folder")
    try:
        aliased = any(isinstance(event, yaml.AliasEvent) for event in yaml.parse(text, yaml.SafeLoader))
        content = None if aliased else yaml.safe_load(text)
    except (yaml.YAMLError, RecursionError, ValueError) as error:
        raise DinotrackError(f"{path} is damaged ({reason_of(error)}); make the run again") from error
    if not isinstance(content, dict):
        raise DinotrackError(f"{path} is not as a run writes it; make the run again")
    plain = {name: value for name, value in content.items() if name not in ("callbacks", "trainer", "logger")}
    known = own_targets()
    if strange := [text for text in called_or_computed(plain) if text not in known]:
        raise DinotrackError(
            f"{path} names {strange[0][:80]!r}, which would be called and is none of dinotrack's own; "
            "where you wrote it yourself, make the picture from Python"
        )
    try:
        return OmegaConf.create(plain)
    except OmegaConfBaseException as error:
        raise DinotrackError(f"{path} is damaged ({reason_of(error)}); make the run again") from error


def called_or_computed(value: Any, name: Any = "") -> Iterator[str]:
    """Every `_target_` in a nest of plain values, and every text that OmegaConf would compute."""
    if isinstance(value, dict | list):
        for key, part in value.items() if isinstance(value, dict) else enumerate(value):
            yield from called_or_computed(part, key)
    elif name == "_target_" or (isinstance(value, str) and "${" in value):
        yield str(value)


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
