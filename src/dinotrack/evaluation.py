"""Score trackers on a clip with ground truth; a method is handed in as a tracker."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from dinotrack.correspondences import consecutive_flows
from dinotrack.data.badja import badja_queries, foreground_areas, read_badja
from dinotrack.data.synthetic import Clip
from dinotrack.errors import DinotrackError
from dinotrack.geometry import rescale
from dinotrack.methods.flow_chain import FlowChainTracker
from dinotrack.methods.raw_features import raw_feature_tracker
from dinotrack.metrics import BadjaScores, TapVidScores, badja_metrics, sample_queries, tapvid_metrics
from dinotrack.optical_flow import FlowEstimator
from dinotrack.progress import Progress, silent
from dinotrack.structs import FeatureMap, Video
from dinotrack.trackers import Tracker, VisibilityRule

BADJA_SIZE = (854, 480)
"""(W, H) at which BADJA is scored (§7)."""


def baselines(
    video: Video,
    features: FeatureMap,
    frames: UInt8[Tensor, "t 3 h w"],
    flow: FlowEstimator,
    *,
    scale_constants: bool = True,
    visibility: VisibilityRule = VisibilityRule(),
    radius: float = 35.0,
    memory: float = 1e9,
    progress: Progress = silent,
) -> dict[str, Tracker]:
    """What a fit must beat: its own raw features, and its own optical flow chained, on the same working frames.

    Raw features are tracked where they lie; `flow` and `frames` must lie on one device.
    """
    forward, backward = (part.cpu() for part in consecutive_flows(frames, flow, progress))
    rules = {"scale_constants": scale_constants, "visibility": visibility, "radius": radius, "memory": memory}
    return {
        "raw_features": raw_feature_tracker(video, features, **rules).to(features.values.device),
        "flow_chain": FlowChainTracker(forward, backward, video.size, video.fps, scale_constants=scale_constants),
    }


def score_clip(
    trackers: Mapping[str, Tracker], clip: Clip, mode: str = "strided", *, progress: Progress = silent
) -> dict[str, TapVidScores]:
    """TAP-Vid's scores (§7) of each tracker on a clip whose tracks are known."""
    queries, index = sample_queries(clip.xy, clip.visible, mode)
    truth = (clip.xy[index], clip.visible[index])
    scores = {}
    for name, tracker in trackers.items():
        tracks = tracker.track(queries.float(), progress=progress)
        scores[name] = tapvid_metrics(queries, *truth, tracks.xy, tracks.visible, clip.video.size, mode)
    return scores


def score_joints(
    trackers: Mapping[str, Tracker], video: Video, joints_file: str | Path, *, progress: Progress = silent
) -> dict[str, BadjaScores]:
    """BADJA's scores (§7) of each tracker on a video with masks, at 854×480 whatever the video's size.

    Raises:
        DinotrackError: for an unreadable file, a video without masks, or annotated frames that it does not have.
    """
    if not len(video.masks):
        raise DinotrackError(f"BADJA's threshold needs the foreground's area; give masks= beside truth={joints_file}")
    joints = read_badja(joints_file, size=BADJA_SIZE)
    if int(joints.frames.max()) >= video.start + len(video) or int(joints.frames.min()) < video.start:
        raise DinotrackError(
            f"{joints_file} annotates frames {int(joints.frames.min())} to {int(joints.frames.max())}; "
            f"{video.path} has {video.start} to {video.start + len(video) - 1}; give the whole video"
        )
    queries, rows = badja_queries(joints)
    areas = foreground_areas(video.masks, joints.frames - video.start, size=BADJA_SIZE)
    truth = (joints.xy[rows], joints.visible[rows], areas, joints.frames, queries[:, 0].long())
    own = torch.cat([queries[:, :1] - video.start, rescale(queries[:, 1:], BADJA_SIZE, video.size)], 1).float()
    scores = {}
    for name, tracker in trackers.items():
        xy = tracker.track(own, progress=progress).xy[:, joints.frames - video.start]
        scores[name] = badja_metrics(rescale(xy.to(joints.xy), video.size, BADJA_SIZE), *truth)
    return scores


def plain(scores: Mapping[str, TapVidScores | BadjaScores]) -> dict[str, dict[str, Any]]:
    """Scores as numbers and lists, for JSON."""
    return {
        name: {
            key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in asdict(score).items()
        }
        for name, score in scores.items()
    }
