"""From what an evaluation's summary says of a clip back to the video that was tracked."""

from collections.abc import Callable, Mapping
from typing import Any

from dinotrack.data.badja import Badja
from dinotrack.data.benchmarks import Benchmark
from dinotrack.data.dino_tracker_file import DinoTrackerFile
from dinotrack.data.synthetic_benchmark import SyntheticBenchmark
from dinotrack.data.tapvid import TapVid
from dinotrack.errors import DinotrackError, reason_of
from dinotrack.structs import Video

KNOWN: dict[str, Callable[..., Benchmark]] = {
    f"{each.__module__}.{each.__qualname__}": each for each in (SyntheticBenchmark, TapVid, Badja, DinoTrackerFile)
}
"""Readers by their `_target_`; a summary may come from a stranger, so that it can name no other class."""


def reopened(source: Mapping[str, Any], clip: str) -> Video:
    """The video of a benchmark's clip, read as `dinotrack evaluate` read it; `source` is `benchmark.source` of its config.

    Raises:
        DinotrackError: for a reader that is none of ours, or a benchmark that is not there any more.
    """
    settings = dict(source)
    name = str(settings.pop("_target_", ""))
    if name not in KNOWN:
        raise DinotrackError(f"clip {clip} was read by {name[:80]!r}, which is not dinotrack's; give --video")
    try:
        return KNOWN[name](**settings).open(clip).video
    except DinotrackError as error:
        raise DinotrackError(f"clip {clip} cannot be read again ({error}); give its place with --video") from error
    except (TypeError, ValueError) as error:
        raise DinotrackError(f"{name} cannot read clip {clip} ({reason_of(error)}); give --video") from error
