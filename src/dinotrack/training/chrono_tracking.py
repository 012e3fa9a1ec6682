"""`method=chrono`: a config's backbone with adapters, and the tracker on its features."""

from pathlib import Path
from typing import Any

from hydra.utils import instantiate
from omegaconf import DictConfig

from dinotrack.cache import default_cache
from dinotrack.chrono import ChronoBackbone
from dinotrack.errors import DinotrackError
from dinotrack.geometry import working_size
from dinotrack.methods.chrono import ChronoTracker, chrono_tracker, read_visibility
from dinotrack.progress import Progress, silent
from dinotrack.structs import Video
from dinotrack.training.config import budget_of, fixed_size, pick_device, size_of


def chrono_backbone(config: DictConfig) -> ChronoBackbone:
    """The config's backbone, its frames enlarged as the method has it.

    Raises:
        DinotrackError: for a backbone without adapters.
    """
    target = f"{ChronoBackbone.__module__}.{ChronoBackbone.__name__}"
    if config.backbone._target_ != target:
        raise DinotrackError(
            f"method=chrono is for a backbone with adapters, not {config.backbone._target_}; take backbone=chrono_s14 or chrono_b14"
        )
    own = config.backbone.upscale
    if own not in (1, config.method.upscale):
        raise DinotrackError(
            f"backbone.upscale={own}: under method=chrono it is method.upscale={config.method.upscale}"
        )
    return instantiate(config.backbone, upscale=config.method.upscale)


def head_settings(config: DictConfig) -> dict[str, Any]:
    """Those of `chrono_head`, as plain values."""
    return {str(name): value for name, value in config.method.chrono_head.items()}


def chrono(config: DictConfig, video: Video, progress: Progress = silent) -> ChronoTracker:
    """Chrono's tracker on a video, through the cache."""
    backbone = chrono_backbone(config)
    size = fixed_size(config) or size_of(config.method.size, "method.size")
    return chrono_tracker(
        video,
        backbone,
        read_visibility(backbone.settings["adapters"]),
        size=size or working_size(video.size, config.resolution, backbone.stride),
        head=head_settings(config),
        cache=Path(config.cache_dir).expanduser() if config.cache_dir else default_cache(),
        device=pick_device(config.device),
        memory=float(config.memory),
        budget=budget_of(config),
        progress=progress,
    )
