"""Results of preprocessing on disk, keyed by the video's content and every setting that went into them."""

import hashlib
import json
import logging
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

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


def build_or_load(struct: type[S], path: Path, build: Callable[[], S]) -> S:
    """The struct at `path`, or what `build` makes, saved there; a damaged entry is named and built again.

    Raises:
        DinotrackError: when the entry cannot be written; nothing half-written stays.
    """
    if path.exists():
        try:
            return struct.load(path)
        except DinotrackError as error:
            log.warning("building again: %s", error)
    built = build()
    built.save(path)
    return built
