"""Results of preprocessing on disk, keyed by the video's content and every setting that went into them."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from dinotrack.differences import differing, flatten, in_words
from dinotrack.errors import DinotrackError
from dinotrack.files import remove_leftovers
from dinotrack.structs import Video
from dinotrack.tensor_struct import TensorStruct, read_about

log = logging.getLogger(__name__)
S = TypeVar("S", bound=TensorStruct)

FORMAT = 2
"""Kept in every entry, which is built again by a version with another one: raise it when what is stored changes its meaning."""


def default_cache() -> Path:
    """`$DINOTRACK_CACHE`, or dinotrack's folder in the user's cache directory."""
    return Path(
        os.environ.get("DINOTRACK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "dinotrack"
    ).expanduser()


@dataclass(frozen=True)
class Entry:
    """One result of preprocessing: where it lies, and what it is of, which its file says too."""

    path: Path
    name: str
    about: Mapping[str, Any]
    """Format, video and settings, as JSON gives them back."""


def cache_entry(folder: Path, video: Video, name: str, settings: Mapping[str, Any]) -> Entry:
    """The entry `name` of a video with these settings."""
    key = json.dumps({"video": video.content_hash, "name": name, "settings": settings}, sort_keys=True)
    file = f"{name}-{hashlib.sha256(key.encode()).hexdigest()[:16]}.safetensors"
    return Entry(folder / video.content_hash[:16] / file, name, {"format": FORMAT, **json.loads(key)})


@contextmanager
def locked(entry: Entry) -> Iterator[None]:
    """Hold the lock of an entry, so that of several processes one builds it and the others find it built.

    The system takes the lock from a process that dies. Its empty file stays: whoever unlinked it would split those who wait.

    Raises:
        DinotrackError: when the lock's file cannot be written.
    """
    path = entry.path
    lock = FileLock(path.with_suffix(".lock"))
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            lock.acquire(timeout=0)
        except Timeout:
            log.info("another process builds %s; waiting for it", path)
            lock.acquire()
    except (OSError, NotImplementedError) as error:
        reason = getattr(error, "strerror", None) or error
        raise DinotrackError(
            f"cannot lock {path}: {reason}; free space or choose another folder (cache_dir=)"
        ) from error
    try:
        yield
    finally:
        lock.release()


def stored(struct: type[S], entry: Entry, *, quiet: bool = False) -> S | None:
    """The struct of an entry; None where there is none, or one that is damaged or of another version.

    Unless `quiet`, a line says why it has to be built: that, or that it is there with other settings only.
    """
    if not entry.path.exists():
        if not quiet and (other := nearest(entry)):
            log.info(
                "building %s: the cache has it of other settings (%s)",
                entry.name,
                in_words(other, flatten(entry.about)),
            )
        return None
    level = logging.DEBUG if quiet else logging.WARNING
    try:
        found = struct.load(entry.path)
    except DinotrackError as error:
        log.log(level, "building again: %s", error)
        return None
    about = flatten(read_about(entry.path))
    if differing(about, flatten(entry.about)):
        reason = in_words(about, flatten(entry.about))
        log.log(level, "building again: %s is of another version or of other settings (%s)", entry.path, reason)
        return None
    return found


def nearest(entry: Entry) -> dict[str, Any]:
    """What the entry of this name and video is about that has the most settings in common; empty where there is none."""
    files = entry.path.parent.glob(f"{entry.name}-*{entry.path.suffix}")
    others = [flatten(about) for about in map(read_about, sorted(files)) if about]
    now = flatten(entry.about)
    return min(others, key=lambda other: len(differing(other, now)), default={})


def keep(struct: TensorStruct, entry: Entry) -> None:
    """Save what was built; for whoever holds the lock, since what killed processes left of it is removed.

    Raises:
        DinotrackError: when the entry cannot be written; nothing half-written stays.
    """
    remove_leftovers(entry.path, alone=True)
    struct.save(entry.path, entry.about)


def build_or_load(struct: type[S], entry: Entry, build: Callable[[], S]) -> S:
    """The struct of an entry, mapped, or what `build` makes, kept there first; a damaged entry is named and built again.

    Processes that want the same entry at once wait for the one that builds it. An entry that is there is read without the
    lock, so its folder may be read-only.

    Raises:
        DinotrackError: when the entry cannot be written; nothing half-written stays.
    """
    found = stored(struct, entry, quiet=True)
    if found is not None:
        return found
    with locked(entry):
        found = stored(struct, entry)  # another process may have built it meanwhile
        if found is None:
            keep(build(), entry)
            found = struct.load(entry.path)  # what was built need not stay in memory
        return found
