"""Track any point through a video, trained at test time on that one video.

video = dinotrack.load_video("clip.mp4")
tracker = dinotrack.fit(video)
tracks = tracker.track(queries)  # (t, x, y) rows
"""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Any

# Before torch is imported: OpenMP's threads sleep while they wait. Spinning ones, the default, made a training step on two busy
# cores ten times slower (0.17 s against 1.7 s), and gain nothing on idle ones. Your own setting wins.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

from dinotrack.data import open_described
from dinotrack.data.video import load_video, save_video
from dinotrack.errors import DinotrackError
from dinotrack.grouping import group
from dinotrack.methods.checkpoint import load_checkpoint
from dinotrack.methods.chrono import ChronoTracker
from dinotrack.methods.dino_tracker import DinoTracker, read_checkpoint
from dinotrack.structs import Tracks, Video

if TYPE_CHECKING:
    from dinotrack.training.fit import fit

__version__ = "0.1.0"
__all__ = [
    "ChronoTracker",
    "DinoTracker",
    "DinotrackError",
    "Tracks",
    "Video",
    "fit",
    "group",
    "load_tracker",
    "load_video",
    "save_video",
]


def load_tracker(path: str | Path, video: Video | None = None, **options: Any) -> DinoTracker | ChronoTracker:
    """The tracker of a checkpoint; without `video` the one that it names is read again.

    Options are those of `load_checkpoint`: `backbone`, `cache`, `device`, `memory`, `budget`, `progress`.

    Raises:
        DinotrackError: for an unreadable checkpoint, or another video than it was fitted to.
    """
    if video is None:
        video = open_described(read_checkpoint(path)["dinotrack"]["video"])
    return load_checkpoint(path, video, **options)


def __getattr__(name: str) -> Any:
    """`dinotrack.fit` is imported on first use, because it needs Lightning and Hydra."""
    if name == "fit":
        from dinotrack.training.fit import fit

        return fit
    raise AttributeError(f"module 'dinotrack' has no attribute {name!r}")
