"""The tracker of a checkpoint, whichever method wrote it."""

from pathlib import Path
from typing import Any

from dinotrack.methods.chrono import ChronoTracker, load_chrono_tracker
from dinotrack.methods.dino_tracker import DinoTracker, load_dino_tracker, read_checkpoint
from dinotrack.structs import Video


def load_checkpoint(path: str | Path, video: Video, **options: Any) -> DinoTracker | ChronoTracker:
    """DINO-Tracker's, for the video that it was fitted to, or Chrono's, for any; options are those of `load_dino_tracker`.

    Raises:
        DinotrackError: for an unreadable checkpoint, another video or another backbone.
    """
    chrono = read_checkpoint(path)["dinotrack"].get("method") == "chrono"
    return (load_chrono_tracker if chrono else load_dino_tracker)(path, video, **options)
