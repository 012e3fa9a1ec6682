"""How a video that was read is looked at: is it the film that was written?"""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from jaxtyping import UInt8
from torch import Tensor

from benchmarks.tried.films import film, write
from dinotrack import Video, load_video

Act = Callable[[Path], str]


def like(frames: UInt8[Tensor, "t 3 h w"] | None = None, near: float = 8.0, fps: float = 25.0, **options: Any) -> Act:
    """Reads a video, which must be these frames to so many grey levels on average, none of them out of place."""
    expected = film() if frames is None else frames

    def act(path: Path) -> str:
        video = load_video(path, **options)
        assert video.frames.shape == expected.shape, f"{tuple(video.frames.shape)} in place of {tuple(expected.shape)}"
        away = (video.frames.double() - expected.double()).abs().mean((1, 2, 3)).max().item()
        assert away <= near, f"{away:.1f} grey levels off"
        assert abs(video.fps - fps) < 0.01 * fps, f"{video.fps} frames per second in place of {fps}"
        return described(video)

    return act


def described(video: Video) -> str:
    size = f"{video.size[0]}x{video.size[1]}"
    scaled = f", read at {video.frame_size[0]}x{video.frame_size[1]}" if video.max_side else ""
    return f"{len(video)} frames of {size}{scaled}"


def counted(count: int, least: int | None = None) -> Act:
    """Reads a video that must have so many frames, or between `least` and so many."""

    def act(path: Path) -> str:
        video = load_video(path)
        assert (least or count) <= len(video) <= count, f"{len(video)} frames in place of {count}"
        return described(video)

    return act


def only(numbers: Sequence[int], near: float = 8.0) -> Act:
    """Reads a video that must have exactly these of the film's frames."""
    return like(film()[list(numbers)], near)


def written(name: str, codec: str, pixels: str, **settings: Any) -> Callable[[Path], Path]:
    return lambda folder: write(folder / name, codec, pixels, **settings)
