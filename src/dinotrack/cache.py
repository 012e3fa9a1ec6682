"""Results of preprocessing on disk, keyed by the video's content and every setting that went into them."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from filelock import FileLock, Timeout

from dinotrack.errors import DinotrackError
from dinotrack.structs import TensorStruct, Video

log = logging.getLogger(__name__)
S = TypeVar("S", bound=TensorStruct)

FORMAT = 1
"""Part of every key: raise it when what is stored changes its meaning."""


def default_cache() -> Path:
    """`$DINOTRACK_CACHE`, or dinotrack's folder in the user's cache directory."""
    return Path(
        os.environ.get("DINOTRACK_CACHE") or Path(os.environ.get("XDG_CACHE_HOME", "~/.cache")) / "dinotrack"
    ).expanduser()


def cache_path(folder: Path, video: Video, name: str, settings: Mapping[str, Any]) -> Path:
    """Where the entry `name` of a video with these settings lies."""
    text = json.dumps(
        {"format": FORMAT, "video": video.content_hash, "name": name, "settings": settings}, sort_keys=True
    )
    return folder / video.content_hash[:16] / f"{name}-{hashlib.sha256(text.encode()).hexdigest()[:16]}.safetensors"


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Hold the lock of the entry at `path`, so that of several processes one builds it and the others find it built.

    The system takes the lock from a process that dies. Its empty file stays: whoever unlinked it would split those who wait.

    Raises:
        DinotrackError: when the lock's file cannot be written.
    """
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


def stored(struct: type[S], path: Path, level: int = logging.WARNING) -> S | None:
    """The struct at `path`; None where there is none, or a damaged one, which is named at a logging `level`."""
    if not path.exists():
        return None
    try:
        return struct.load(path)
    except DinotrackError as error:
        log.log(level, "building again: %s", error)
        return None


def build_or_load(struct: type[S], path: Path, build: Callable[[], S]) -> S:
    """The struct at `path`, mapped, or what `build` makes, saved there first; a damaged entry is named and built again.

    Processes that want the same entry at once wait for the one that builds it. An entry that is there is read without the
    lock, so its folder may be read-only.

    Raises:
        DinotrackError: when the entry cannot be written; nothing half-written stays.
    """
    found = stored(struct, path, logging.DEBUG)
    if found is not None:
        return found
    with locked(path):
        found = stored(struct, path)  # another process may have built it meanwhile
        if found is None:
            build().save(path)
            found = struct.load(path)  # what was built need not stay in memory
        return found
