"""Score trackers on a clip with ground truth; a method is handed in as a tracker."""

from collections.abc import Mapping
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from dinotrack.data.badja import BADJA_SIZE, badja_truth, read_badja
from dinotrack.data.queries import sample_queries
from dinotrack.data.synthetic import Clip
from dinotrack.errors import DinotrackError
from dinotrack.geometry import rescale
from dinotrack.memory import Budget
from dinotrack.methods.flow_chain import FlowChainTracker
from dinotrack.methods.raw_features import raw_feature_tracker
from dinotrack.metrics import BadjaScores, TapVidScores, badja_metrics, tapvid_metrics
from dinotrack.optical_flow import FlowEstimator, flows_over
from dinotrack.progress import Progress, silent
from dinotrack.structs import FeatureMap, PointTruth, Tracks, Video
from dinotrack.trackers import Tracker, VisibilityRule
from dinotrack.tracklets import stacked


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

    `flow` and `frames` must lie on one device, on which raw features are tracked; these stay where they lie.
    """
    forward, backward = stacked(flows_over(frames, flow), progress)
    rules = {"scale_constants": scale_constants, "visibility": visibility, "radius": radius, "memory": memory}
    return {
        "raw_features": raw_feature_tracker(video, features, **rules).to(frames.device, Budget(features="host")),
        "flow_chain": FlowChainTracker(forward, backward, video.size, video.fps, scale_constants=scale_constants),
    }


def score_tracks(truth: PointTruth, tracks: Tracks) -> TapVidScores | BadjaScores:
    """The scores (§7) of tracks of the truth's queries: BADJA's where it has foreground areas, TAP-Vid's otherwise.

    Raises:
        DinotrackError: for tracks of other queries or frames.
    """
    if len(tracks) != len(truth) or (len(truth.frames) and tracks.xy.shape[1] <= int(truth.frames.max())):
        raise DinotrackError(
            f"{len(tracks)} tracks of {tracks.xy.shape[1]} frames for {len(truth)} queries and frames up to "
            f"{int(truth.frames.max())}; predict them again"
        )
    xy = rescale(tracks.xy[:, truth.frames].double(), tracks.size, truth.size)
    if len(truth.areas):
        asked = truth.queries[:, 0].long()
        return badja_metrics(xy, truth.xy, truth.visible, truth.areas, truth.frames, asked)
    visible = tracks.visible[:, truth.frames]
    return tapvid_metrics(truth.queries, truth.xy, truth.visible, xy, visible, truth.size, truth.mode)


def truth_of_clip(clip: Clip, mode: str = "strided") -> PointTruth:
    """TAP-Vid's queries (§7) of a clip whose tracks are known, and their answers."""
    queries, index = sample_queries(clip.xy, clip.visible, mode)
    frames = torch.arange(clip.xy.shape[1])
    return PointTruth(queries, clip.xy[index], clip.visible[index], frames, torch.zeros(0), clip.video.size, mode)


def truth_of_joints(video: Video, joints_file: str | Path) -> PointTruth:
    """BADJA's joints (§7) of a video with masks, at 854×480 whatever the video's size.

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
    # Frames are counted from the first that was loaded, which is the one that does not count.
    return badja_truth(replace(joints, frames=joints.frames - video.start), video.masks, BADJA_SIZE)


def predict(tracker: Tracker, truth: PointTruth, size: tuple[int, int], *, progress: Progress = silent) -> Tracks:
    """Tracks of the truth's queries, by a tracker of a video of (W, H) `size`."""
    xy = rescale(truth.queries[:, 1:].double(), truth.size, size)
    return tracker.track(torch.cat([truth.queries[:, :1].double(), xy], 1).float(), progress=progress)


def plain(scores: Mapping[str, TapVidScores | BadjaScores]) -> dict[str, dict[str, Any]]:
    """Scores as numbers and lists, for JSON."""
    return {
        name: {
            key: value.tolist() if isinstance(value, torch.Tensor) else value for key, value in asdict(score).items()
        }
        for name, score in scores.items()
    }
