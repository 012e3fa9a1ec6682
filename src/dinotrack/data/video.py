"""Video files and folders of frames to a `Video`; the way back to a file is `save_video`."""

import logging
import os
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor
from torch.nn.functional import avg_pool2d

from dinotrack.data.arrays import regular_file
from dinotrack.data.decoding import VideoFile
from dinotrack.data.masks import load_masks
from dinotrack.data.pictures import open_picture, pictures_of, rgb
from dinotrack.errors import DinotrackError
from dinotrack.geometry import resize_frames
from dinotrack.memory import Budget
from dinotrack.mp4 import save_video
from dinotrack.structs import Video

__all__ = ["load_masks", "load_video", "save_video"]

log = logging.getLogger(__name__)


def load_video(
    path: str | os.PathLike[str],
    masks: str | os.PathLike[str] | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
    folder_fps: float = 25.0,
    max_side: int | None = None,
    most: float | None = None,
) -> Video:
    """Read frames [start, stop) of a video file or of a folder of jpg and png frames, with foreground masks (method §3).

    Frames come as a player shows them (rotation flags applied), in sRGB, 8 bit, without alpha; files of a folder in
    natural order (2 before 10), hidden ones skipped. Frames that cannot be decoded are left out, and a line says which.

    Args:
        path: anything FFmpeg decodes, or a folder.
        masks: a folder of mask pictures or an .npy file (T, H, W), as `load_masks` reads them.
        start: first frame.
        stop: the frame after the last; the end of the video if None.
        folder_fps: frames per second of a folder, which does not say.
        max_side: frames with a longer side are scaled down to it as they are read. Positions stay in pixels of the file.
        most: bytes that frames may take; None for the memory that is free.

    Raises:
        DinotrackError: where there is no such file or folder, where it is no video, an unreadable picture, holds frames
            of different sizes or fewer than two in [start, stop), takes more memory than `most`, or where masks differ from the
            frames in count or size.
    """
    if start < 0 or (stop is not None and stop < start + 2):
        raise DinotrackError(f"frames [{start}, {stop}) of {path} are no clip; expected start >= 0, stop >= start + 2")
    if max_side is not None and max_side < 16:
        raise DinotrackError(f"max_side={max_side}: expected at least 16 pixels, or none to keep frames as they are")
    source = _source(path, start, stop, folder_fps)
    frames, size = _gathered(source, max_side, Budget().room() if most is None else most)
    if not frames:
        raise DinotrackError(
            f"{source.path} has no frames in [{start}, {'end' if stop is None else stop}); lower start, or take a whole file"
        )
    place = str(source.path.resolve())
    video = Video(_stacked(frames), source.fps, path=place, start=start, full_size=size)
    if _stands_still(video.frames):
        log.warning("%s shows one picture in all %d frames: tracks can only stand still", source.path, len(video))
    if masks is None:
        return video
    return replace(video, masks=load_masks(masks, video, start=start, stop=stop))


@runtime_checkable
class Source(Protocol):
    """Where frames come from, one by one."""

    path: Path
    fps: float
    """Known once the frames have been read."""
    expected: int
    """About how many there will be, known with the first; 0 where nothing says."""

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]: ...

    def name(self, number: int) -> str:
        """What messages call a frame."""
        ...


class PictureFolder:
    """Frames [start, stop) of a folder, by their names in natural order."""

    def __init__(self, path: Path, start: int, stop: int | None, fps: float) -> None:
        self.path, self.fps, self.files = path, fps, pictures_of(path)[start:stop]
        self.expected = len(self.files)

    def __iter__(self) -> Iterator[UInt8[np.ndarray, "h w 3"]]:
        for file in self.files:
            yield rgb(open_picture(file))

    def name(self, number: int) -> str:
        """The file of a frame."""
        return str(self.files[number])


def _source(path: str | os.PathLike[str], start: int, stop: int | None, folder_fps: float) -> Source:
    """What a path stands for, without a look into a file."""
    place = Path(os.path.expanduser(path))
    if "\0" in str(place):
        raise DinotrackError(
            f"{str(place)!a} is no name of a file; expected a video file or a folder of jpg or png frames"
        )
    try:
        str(place).encode()
        if place.is_dir():
            return PictureFolder(place, start, stop, folder_fps)
        there = place.exists()
    except UnicodeEncodeError as error:
        raise DinotrackError(f"{str(place)!a} is no name in Unicode, which results hold; rename it") from error
    except OSError as error:
        raise DinotrackError(f"cannot look for the video {str(place)[:200]}: {error.strerror}") from error
    if not there:
        raise DinotrackError(f"no such video: {place}; expected a video file or a folder of jpg or png frames")
    if not regular_file(place):
        raise DinotrackError(f"{place} is a device or a pipe; save it as a video file first")
    return VideoFile(place, start, stop)


def _gathered(
    source: Source, max_side: int | None, most: float
) -> tuple[list[UInt8[Tensor, "3 h w"]], tuple[int, int]]:
    """The frames, no larger than `max_side`, and (W, H) as they are stored."""
    frames, size = list[Tensor](), (0, 0)
    for picture in source:
        height, width, _ = picture.shape
        size = size if frames else (width, height)
        if (width, height) != size:
            names = source.name(len(frames)), source.name(0)
            raise DinotrackError(
                f"{names[0]} is {width}x{height}, but {names[1]} is {size[0]}x{size[1]}; all frames need one size"
            )
        whole = torch.from_numpy(np.ascontiguousarray(picture.transpose(2, 0, 1)))
        frames.append(resize_frames(whole[None], _fitted(size, max_side))[0])
        _check_room(source, frames, most)
    return frames, size


def _fitted(size: tuple[int, int], max_side: int | None) -> tuple[int, int]:
    """(W, H) with no side above `max_side`."""
    scale = min(1.0, (max_side or max(size)) / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _check_room(source: Source, frames: list[UInt8[Tensor, "3 h w"]], most: float) -> None:
    """Before they take more memory than there is."""
    count, (_, height, width) = max(len(frames), source.expected), frames[0].shape
    if count * frames[0].numel() > most:
        raise DinotrackError(
            f"{source.path} has {count} frames that take {count * frames[0].numel() / 1e9:.1f} GB at {width}x{height}; "
            f"{most / 1e9:.1f} GB may be taken: give max_side={max(width, height) // 2}, or read a part with start and stop"
        )


def _stands_still(frames: UInt8[Tensor, "t 3 h w"], block: int = 16, drift: float = 3.0, most: float = 100.0) -> bool:
    """Whether every frame shows the first, but for what codecs make of one picture: levels of 255 that change by up to `most`,
    though hardly in the mean of a block.
    """
    first = frames[0].float()
    return all(_within(frame.float() - first, block, drift, most) for frame in frames[1:])


def _within(change: Float[Tensor, "3 h w"], block: int, drift: float, most: float) -> bool:
    if change.abs().max() > most:
        return False
    means = avg_pool2d(change[None], block, ceil_mode=True, count_include_pad=False)
    return bool(means.abs().max() <= drift)


def _stacked(frames: list[UInt8[Tensor, "3 h w"]]) -> UInt8[Tensor, "t 3 h w"]:
    """All frames in one tensor; each is given up as it is copied, so that they are never in memory twice."""
    stack = torch.empty(len(frames), *frames[0].shape, dtype=torch.uint8)
    frames.reverse()
    for slot in stack:
        slot.copy_(frames.pop())
    return stack
