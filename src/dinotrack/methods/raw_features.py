"""The raw-feature baseline (method §2): Φ_Δ = 0 and H = S."""

from dinotrack.networks import TrackerHead
from dinotrack.structs import FeatureMap, Video
from dinotrack.trackers import FeatureTracker, VisibilityRule


def raw_feature_tracker(
    video: Video,
    features: FeatureMap,
    *,
    radius: float = 35.0,
    scale_constants: bool = True,
    visibility: VisibilityRule = VisibilityRule(),
    memory: float = 1e9,
) -> FeatureTracker:
    """A tracker on the backbone's own features; nothing is fitted."""
    head = TrackerHead(radius, refine=False)
    common = {"scale_constants": scale_constants, "visibility": visibility, "memory": memory}
    return FeatureTracker(features, head, video.size, video.fps, **common)
