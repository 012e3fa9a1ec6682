"""Video files, folders of frames and masks to a `Video`; the way back to a file is `save_video`."""

import os
import re
from dataclasses import replace
from itertools import islice
from pathlib import Path

import av
import numpy as np
import torch
from av.error import FFmpegError
from jaxtyping import Bool, UInt8
from PIL import Image, ImageOps
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.mp4 import save_video
from dinotrack.structs import Video

__all__ = ["load_masks", "load_video", "save_video"]

PICTURES = (".jpg", ".jpeg", ".png")
TEXT_ART = ("ansi", "bintext", "xbin", "idf")
"""Codecs by which FFmpeg would make a picture of any text file."""


def load_video(
    path: str | os.PathLike[str],
    masks: str | os.PathLike[str] | None = None,
    *,
    start: int = 0,
    stop: int | None = None,
    folder_fps: float = 25.0,
) -> Video:
    """Read frames [start, stop) of a video file or of a folder of jpg and png frames, with foreground masks (method §3).

    Frames come as a player shows them (rotation flags applied), in sRGB, 8 bit, without alpha; files of a folder in
    natural order (2 before 10), hidden ones skipped.

    Args:
        path: anything FFmpeg decodes, or a folder.
        masks: a folder of mask pictures or an .npy file (T, H, W), one mask for every frame of the whole video.
            Foreground is a value above 127 of 255, or above 0.5 in floats. Label masks, where any label but 0 is
            foreground, are known by a palette (as DAVIS has) or by no value above 127 in all of them.
        start: first frame.
        stop: the frame after the last; the end of the video if None.
        folder_fps: frames per second of a folder, which does not say.

    Raises:
        DinotrackError: where there is no such file or folder, where it is no video, an unreadable picture, holds frames
            of different sizes or fewer than two in [start, stop), or where masks differ from the frames in count or size.
    """
    if start < 0 or (stop is not None and stop < start + 2):
        raise DinotrackError(f"frames [{start}, {stop}) of {path} are no clip; expected start >= 0, stop >= start + 2")
    source = Path(path)
    if source.is_dir():
        frames, fps = _read_folder(source, start, stop), folder_fps
    elif source.exists():
        frames, fps = _read_file(source, start, stop)
    else:
        raise DinotrackError(f"no such video: {source}; expected a video file or a folder of jpg or png frames")
    if len(frames) == 0:
        raise DinotrackError(f"{source} has no frames in [{start}, {'end' if stop is None else stop}); lower start")
    video = Video(torch.stack(frames), fps, path=str(source.expanduser().resolve()), start=start)
    if masks is None:
        return video
    return replace(video, masks=load_masks(masks, video, start=start, stop=stop))


def _read_file(path: Path, start: int, stop: int | None) -> tuple[list[UInt8[Tensor, "3 h w"]], float]:
    frames: list[Tensor] = []
    try:
        with av.open(str(path)) as container:
            stream = container.streams.best("video")
            if not isinstance(stream, av.VideoStream) or stream.codec_context.name in TEXT_ART:
                raise DinotrackError(f"{path} holds no video; expected a video file or a folder of jpg or png frames")
            stream.thread_type = "AUTO"
            for frame in islice(container.decode(stream), start, stop):
                frames.append(_upright(frame))
                _check_size(frames, f"frame {start + len(frames) - 1} of {path}", f"frame {start}")
            return frames, float(stream.average_rate or 0)
    except (FFmpegError, OSError) as error:
        raise DinotrackError(
            f"cannot read {path} as a video ({error.strerror}); expected one that FFmpeg plays"
        ) from error


def _upright(frame: av.VideoFrame) -> UInt8[Tensor, "3 h w"]:
    """RGB, turned as the file's display matrix says; `rotation` counts degrees counter-clockwise, as rot90 does."""
    rgb = np.rot90(frame.to_ndarray(format="rgb24"), round(frame.rotation / 90))
    return _channels_first(rgb)


def _read_folder(path: Path, start: int, stop: int | None) -> list[UInt8[Tensor, "3 h w"]]:
    frames: list[Tensor] = []
    files = _pictures(path)
    for file in files[start:stop]:
        frames.append(_channels_first(_rgb(_open(file))))
        _check_size(frames, str(file), files[start].name)
    return frames


def _check_size(frames: list[UInt8[Tensor, "3 _h _w"]], name: str, first: str) -> None:
    height, width = frames[-1].shape[1:]
    if frames[-1].shape != frames[0].shape:
        expected = f"{frames[0].shape[2]}x{frames[0].shape[1]}"
        raise DinotrackError(f"{name} is {width}x{height}, but {first} is {expected}; all frames need one size")


def _pictures(folder: Path) -> list[Path]:
    """Its visible jpg and png files in natural order."""
    files = [f for f in folder.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")]
    if not files:
        raise DinotrackError(f"{folder} holds no frames; expected files ending in {', '.join(PICTURES)}")
    return sorted(files, key=natural)


def frame_numbers(folder: str | os.PathLike[str]) -> list[int]:
    """The number that each frame of a folder bears at the end of its name; counted from 0 where one has none, or two the same."""
    found = [re.search(r"(\d+)$", file.stem) for file in _pictures(Path(folder))]
    numbers = [int(match[1]) for match in found if match]
    return numbers if len(set(numbers)) == len(found) else list(range(len(found)))


def natural(file: Path) -> tuple[list[str | int], str]:
    """Sorting key by which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", file.stem.lower())
    return [int(part) if part.isdecimal() else part for part in parts], file.name


def _open(file: Path) -> Image.Image:
    """A picture in memory, upright as EXIF says."""
    try:
        with Image.open(file) as image:
            return ImageOps.exif_transpose(image)
    except (OSError, ValueError, SyntaxError, Image.DecompressionBombError) as error:
        raise DinotrackError(f"cannot read the picture {file} ({error}); save it again or remove it") from error


def _rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    if image.mode.startswith("I"):  # 16-bit grey, of which PIL would clip all above 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return np.array(image.convert("RGB"))


def _channels_first(rgb: UInt8[np.ndarray, "h w 3"]) -> UInt8[Tensor, "3 h w"]:
    return torch.from_numpy(np.ascontiguousarray(rgb.transpose(2, 0, 1)))


def load_masks(
    path: str | os.PathLike[str], video: Video, *, start: int = 0, stop: int | None = None
) -> Bool[Tensor, "t h w"]:
    """Read the foreground masks of a video's frames [start, stop), as `load_video` describes them.

    Raises:
        DinotrackError: where there are none, or they differ from the video in count or size.
    """
    path = Path(path)
    if path.is_dir():
        masks = _mask_folder(path, video.size)
    elif path.suffix.lower() == ".npy" and path.exists():
        masks = _mask_array(path, video.size)
    else:
        raise DinotrackError(f"no such masks: {path}; expected a folder of png or jpg masks, or an .npy file (T, H, W)")
    chosen = masks[start:stop]
    if len(chosen) != len(video):
        found = f"{len(masks)} masks, {len(chosen)} of them for frames [{start}, {'end' if stop is None else stop})"
        raise DinotrackError(f"{path} holds {found}, but {video.path} has {len(video)} there; expected one per frame")
    return torch.from_numpy(chosen)


def _mask_folder(folder: Path, size: tuple[int, int]) -> Bool[np.ndarray, "m h w"]:
    levels, palette = [], False
    for file in _pictures(folder):
        image = _open(file)
        _check_mask_size(image.size, size, file)
        levels.append(_levels(image))
        palette |= image.mode == "P"
    return _foreground(np.stack(levels), palette)


def _levels(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """A mask's grey levels, its palette's numbers, or the brightest of its colours."""
    if image.mode == "P":
        return np.array(image)
    if image.mode.startswith("I"):  # 16 bit: keeps labels and what lies above half apart
        wide = np.asarray(image)
        return np.where(wide > 32767, 255, wide.clip(0, 127)).astype(np.uint8)
    return np.array(image.convert("RGB")).max(-1)


def _mask_array(file: Path, size: tuple[int, int]) -> Bool[np.ndarray, "m h w"]:
    try:
        masks = np.load(file, allow_pickle=False)
    except (OSError, ValueError, EOFError) as error:
        raise DinotrackError(f"cannot read the masks {file} ({error}); expected an .npy file (T, H, W)") from error
    if masks.ndim != 3:
        raise DinotrackError(f"the masks {file} have shape {masks.shape}; expected (T, H, W)")
    _check_mask_size((masks.shape[2], masks.shape[1]), size, file)
    if masks.dtype == np.bool_:
        return masks
    if not np.issubdtype(masks.dtype, np.floating):
        return _foreground(masks, labels=False)
    if not ((masks >= 0) & (masks <= 1)).all():
        raise DinotrackError(f"the masks {file} are floats outside [0, 1]; save them as bool or uint8")
    return masks > 0.5


def _foreground(levels: np.ndarray, labels: bool) -> Bool[np.ndarray, "m h w"]:
    """Any label but 0, or the brighter half of 8 bit; without a value above 127 in the whole video they are labels."""
    return levels > (0 if labels or levels.max(initial=0) < 128 else 127)


def _check_mask_size(found: tuple[int, int], size: tuple[int, int], file: Path) -> None:
    if found != size:
        raise DinotrackError(
            f"the mask {file} is {found[0]}x{found[1]}, the video {size[0]}x{size[1]}; resize the masks"
        )
