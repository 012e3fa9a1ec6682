"""What one frame of a video takes, part by part: the ground on which a long video is planned."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True)
class Part:
    """Bytes that each frame adds to something that is kept of all frames."""

    name: str
    bytes: int
    where: Literal["memory", "disk", "either"]
    """"disk": in the cache, and mapped from it. "either": in memory where a `Budget` has room, else on disk or made again."""


def parts_of(
    size: tuple[int, int], tokens: tuple[int, int], channels: int, *, video: tuple[int, int] | None = None
) -> list[Part]:
    """What is kept of all frames at working (W, H) `size`, with (rows, columns) of `tokens`; `video` is the (W, H) as loaded.

    Tracklets and best buddies are not among them: they depend on what the video shows.
    """
    pixels, cells = size[0] * size[1], tokens[0] * tokens[1]
    loaded = 3 * video[0] * video[1] if video and video != size else 0
    return [
        Part("video as loaded", loaded, "memory"),
        Part("working frames", 3 * pixels, "memory"),
        Part("masks", pixels, "memory"),
        Part("flow, both ways", 2 * 2 * 4 * pixels, "memory"),
        Part("spans of tracklets", 2 * 4 * cells, "memory"),
        Part("features", 2 * channels * cells, "disk"),
        Part("unit rows", 4 * channels * cells, "either"),
        Part("refined features", 2 * channels * cells, "either"),
    ]
