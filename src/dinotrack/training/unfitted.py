"""Methods that fit nothing to the video: the baselines, and Chrono."""

from pathlib import Path

from hydra.utils import instantiate
from omegaconf import DictConfig

from dinotrack.cache import default_cache
from dinotrack.feature_pass import video_features
from dinotrack.geometry import resize_frames, working_size
from dinotrack.methods.flow_chain import FlowChainTracker
from dinotrack.methods.raw_features import raw_feature_tracker
from dinotrack.optical_flow import flows_over
from dinotrack.preprocessing import working_frames
from dinotrack.progress import Progress, silent
from dinotrack.structs import Video
from dinotrack.trackers import Tracker
from dinotrack.tracklets import stacked
from dinotrack.training.chrono_tracking import chrono
from dinotrack.training.config import budget_of, fixed_size, pick_device, size_of, taps_of

UNFITTED = ("raw_features", "flow_chain", "chrono")
"""Names of methods."""


def unfitted_tracker(config: DictConfig, video: Video, progress: Progress = silent) -> Tracker:
    """What `method=` names; a baseline on the frames that a fit would have."""
    make = {"raw_features": raw_features, "flow_chain": flow_chain, "chrono": chrono}[config.method.name]
    return make(config, video, progress)


def raw_features(config: DictConfig, video: Video, progress: Progress) -> Tracker:
    """Raw features of the config's backbone, through the cache (method §2)."""
    backbone, device, budget = instantiate(config.backbone), pick_device(config.device), budget_of(config)
    frames = working_frames(video, backbone.stride, config.resolution, fixed_size(config), budget)
    cache = Path(config.cache_dir).expanduser() if config.cache_dir else default_cache()
    options = {"beside": taps_of(config), "device": device, "budget": budget, "progress": progress}
    features = video_features(video, frames, backbone, cache, **options)
    tracker = raw_feature_tracker(
        video,
        features,
        radius=config.method.head.radius,
        scale_constants=config.scale_constants,
        visibility=instantiate(config.method.visibility),
        memory=float(config.memory),
    )
    return tracker.to(device, budget)


def flow_chain(config: DictConfig, video: Video, progress: Progress) -> Tracker:
    """Chained flow; with `method.through` on frames that were brought to that size first, as [P] does with 256 pixels.

    Raises:
        DinotrackError: when `method.through` is no size.
    """
    through = size_of(config.method.through, "method.through")
    seen = Video(resize_frames(video.frames, through) if through else video.frames, video.fps)
    size = fixed_size(config) or working_size(video.size, config.resolution, config.backbone.stride)
    frames = working_frames(seen, config.backbone.stride, size=size, budget=budget_of(config))
    frames = frames.to(pick_device(config.device))
    flow = instantiate(config.flow).to(pick_device(config.device))
    forward, backward = stacked(flows_over(frames, flow), progress)
    rules = {"gamma": config.method.gamma, "scale_constants": config.scale_constants}
    return FlowChainTracker(forward, backward, video.size, video.fps, **rules)
