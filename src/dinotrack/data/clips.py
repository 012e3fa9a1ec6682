"""A folder or a pattern of clips to their paths."""

import glob
import logging
from pathlib import Path

from dinotrack.data.pictures import PICTURES, natural
from dinotrack.errors import DinotrackError

log = logging.getLogger(__name__)
VIDEOS = (".mp4", ".m4v", ".mov", ".mkv", ".webm", ".avi", ".mpg", ".mpeg", ".ts", ".wmv", ".flv", ".ogv", ".gif")


def clips_of(where: str) -> list[Path]:
    """The clips that lie in a folder, video files and folders of frames, or that a pattern (`clips/*.mp4`) matches.

    In natural order (2 before 10), hidden ones skipped; what else lies in the folder is named and passed over.

    Raises:
        DinotrackError: where there is none.
    """
    folder = Path(where).expanduser()
    if not folder.is_dir():
        found = [Path(name) for name in glob.glob(str(folder))]
    else:
        visible = [path for path in folder.iterdir() if not path.name.startswith(".")]
        found = [path for path in visible if is_clip(path)]
        if others := sorted(path.name for path in visible if path not in found):
            log.warning("%s: passed over %d that are no clips: %s", folder, len(others), ", ".join(others[:5]))
    if not found:
        raise DinotrackError(
            f"no clips in {where}; expected a folder with files ending in {', '.join(VIDEOS[:5])}, ... or with folders of "
            f"{' / '.join(PICTURES)}, or a pattern such as 'clips/*.mp4'; for the frames of one clip, use video="
        )
    return sorted(found, key=natural)


def is_clip(path: Path) -> bool:
    """Whether a path is a video file by its ending, or a folder with pictures."""
    if path.is_dir():
        return any(file.suffix.lower() in PICTURES for file in path.iterdir())
    return path.suffix.lower() in VIDEOS
