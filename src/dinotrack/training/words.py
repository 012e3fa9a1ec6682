"""File names among the words of a command, as Hydra's grammar takes them, and one line for words that it cannot read."""

from collections.abc import Sequence
from pathlib import Path

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Quote, QuotedString
from hydra.errors import HydraException

from dinotrack.errors import DinotrackError

FILES = ("video", "masks", "truth", "queries", "checkpoint", "published", "data", "folder", "table", "cache_dir")
FILES += ("backbone_checkpoint", "backbone.checkpoint", "flow.checkpoint", "benchmark.path", "benchmark.videos")
FILES += ("hydra.run.dir", "hydra.sweep.dir")
"""Settings whose value is a path."""
MEANT = ("", "null", "synthetic", "???")
"""Values that mean something else, whatever files are called."""
TAKE_ONE = ("--config-path", "-cp", "--config-name", "-cn", "--config-dir", "-cd", "--cfg", "-c", "--package", "-p")
TAKE_ONE += ("--info", "-i", "--experimental-rerun")
"""Flags of Hydra's that are followed by a word."""


def quoted(text: str) -> str:
    """Text as Hydra takes it for exactly itself."""
    return QuotedString(text.replace("${", "\\${"), Quote.single).with_quotes()


def readable(words: Sequence[str]) -> list[str]:
    """Words with the names of files and folders that are there in quotes: `video=my clip(1).mp4` then needs none.

    Raises:
        DinotrackError: for a word that Hydra cannot read.
    """
    made = [_with_quotes(word) for word in words]
    parser = OverridesParser.create()
    for before, word in zip(["", *made], made, strict=False):
        if word.startswith("-") or before in TAKE_ONE:
            continue
        try:
            parser.parse_overrides([word])
        except HydraException as error:
            name = word.partition("=")[0]
            raise DinotrackError(
                f"an override cannot be read: {word[:200]}; expected NAME=VALUE, and a value with other signs than letters, "
                f"digits and _-./:% that names no file which is there in quotes of its own: '{name[:40]}=\"my clip.mp4\"'"
            ) from error
    return made


def _with_quotes(word: str) -> str:
    name, _, value = word.partition("=")
    if name.lstrip("+") not in FILES or value in MEANT:
        return word
    try:
        there = Path(value).exists()
    except (OSError, ValueError):
        return word
    return f"{name}={quoted(value)}" if there else word
