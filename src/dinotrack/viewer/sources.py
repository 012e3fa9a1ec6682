"""From a run folder, or a file of tracks, to the tracks and the video that they were made of."""

import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from dinotrack.data import SYNTHETIC, open_video
from dinotrack.data.export import load_npz
from dinotrack.data.reopening import reopened
from dinotrack.errors import DinotrackError, printable
from dinotrack.structs import Video
from dinotrack.viewer.points import TrackSet

log = logging.getLogger(__name__)

TRACKS, SUMMARY = "tracks.npz", "summary.json"


def open_sources(
    *sources: Path, video: str | None = None, start: int | None = None, max_side: int | None = None
) -> tuple[Video, list[TrackSet]]:
    """The tracked frames and the tracks of some files.

    Args:
        sources: run folders or their tracks.npz, of the same video.
        video: where the video is, or "synthetic"; else where the first run folder's summary.json says, or the benchmark's clip
            that it is of.
        start: the first frame that was tracked; else what summary.json says, or 0.
        max_side: the long side that larger frames are scaled down to, where no summary.json says at which they were tracked.

    Raises:
        DinotrackError: where a file is missing or none of tracks, the video is not where it was, or is another one.
    """
    sets = [_open_tracks(each) for each in sources]
    about = described(sources[0])
    if video == SYNTHETIC.rstrip(":"):
        _check_synthetic(about, sources[0])
        video = None
    if video is None and "source" in about:
        opened = reopened(about["source"], str(about["clip"]))
    else:
        place = video or str(about.get("path") or "")
        _check_place(place, sources[0], moved=video is None)
        first = int(about.get("start") or 0) if start is None else start
        stop = first + sets[0].tracks.xy.shape[1]
        opened = open_video(
            place, start=first, stop=stop, max_side=about.get("max_side") if "path" in about else max_side
        )
    for each in sets:
        _check_fit(opened, each)
    for source in sources:
        _check_content(opened, source, given=video is not None)
    return opened, sets


def tracks_file(source: Path) -> Path:
    """The file of tracks that a run folder, or the file itself, stands for.

    Raises:
        DinotrackError: for a folder without one.
    """
    if not source.is_dir():
        return source
    if not (source / TRACKS).is_file():
        raise DinotrackError(
            f"{source} has no {TRACKS}; give the folder of a dinotrack run or track, or a file of tracks"
        )
    return source / TRACKS


def _open_tracks(source: Path) -> TrackSet:
    """Tracks under the name of their run folder, or their own where that says more."""
    file = tracks_file(source)
    parent = file.resolve().parent.name
    return TrackSet(parent if file.name == TRACKS and parent else file.name, load_npz(file))


def described(source: Path, remedy: str = "give --video") -> Mapping[str, Any]:
    """What a run folder says of its video, of a benchmark's clip `source` and `clip`; nothing where it is no run folder.

    Raises:
        DinotrackError: where its summary is damaged.
    """
    path = tracks_file(source).parent / SUMMARY
    if not path.is_file():
        return {}
    try:
        summary = json.loads(path.read_text(encoding="utf-8"))
        about = summary.get("video") or _of_benchmark(summary.get("evaluation") or {})
        if not all(isinstance(about.get(name) or 0, int) for name in ("start", "max_side")):
            raise TypeError("start and max_side are no whole numbers")
        return dict(about)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DinotrackError(f"{path} is damaged ({error}); delete it and {remedy}") from error


def _of_benchmark(about: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the summary of an evaluation says of its clip; those of earlier versions do not say where it came from."""
    return {name: about[name] for name in ("source", "clip", "hash")} if isinstance(about.get("source"), dict) else {}


def _check_synthetic(about: Mapping[str, Any], source: Path) -> None:
    if not str(about.get("path") or "").startswith(SYNTHETIC):
        raise DinotrackError(f"{source} does not say which synthetic video it tracked; give the video with --video")


def _check_place(place: str, source: Path, moved: bool) -> None:
    if not place:
        raise DinotrackError(f"{source} does not say which video was tracked; give it with --video")
    if moved and not place.startswith(SYNTHETIC) and not Path(place).exists():
        raise DinotrackError(
            f"{source} was tracked in {place}, which is not there any more; give its place with --video"
        )


def _check_fit(video: Video, tracked: TrackSet) -> None:
    found, expected = (len(video), *video.size), (tracked.tracks.xy.shape[1], *tracked.tracks.size)
    if found != expected:
        raise DinotrackError(
            f"{video.path} is of (T, W, H) = {found}, {tracked.name} of {expected}; give the video that was tracked"
        )


def _check_content(video: Video, source: Path, given: bool) -> None:
    """A video that was replaced, or another part of it, would put every track on a wrong picture.

    One that is `given` may be the same encoded again, and gets a warning.
    """
    if described(source).get("hash") in (None, video.content_hash):
        return
    wrong = f"{video.path} does not show from frame {video.start} on what {source} was tracked in"
    if given:
        log.warning(
            "%s: right if it is the same, encoded again; else give another --video or --start", printable(wrong)
        )
        return
    raise DinotrackError(f"{wrong}; give the video with --video, and --start where that is not {video.start}")
