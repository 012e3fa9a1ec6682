"""Foreground masks of a video's frames, from pictures or an array: hard, soft or labels (method §3)."""

import logging
import os
from pathlib import Path

import numpy as np
import torch
from jaxtyping import Bool, UInt8
from PIL import Image
from torch import Tensor

from dinotrack.data.arrays import read_npy
from dinotrack.data.pictures import open_picture, pictures_of
from dinotrack.errors import DinotrackError
from dinotrack.geometry import resize_masks
from dinotrack.structs import Video

log = logging.getLogger(__name__)
EXPECTED = "expected an .npy file (T, H, W)"


def load_masks(
    path: str | os.PathLike[str], video: Video, *, start: int = 0, stop: int | None = None
) -> Bool[Tensor, "t h w"]:
    """Read the foreground masks of a video's frames [start, stop), one for every frame of the whole video.

    They are of the video's size, also where its frames were scaled down. Foreground is a value above 127 of 255, or above 0.5 in
    floats. Label masks, where any label but 0 is foreground, are known by a palette (as DAVIS has) or by no value above 127 in all
    of them; a .jpg is never one, because its compression makes labels of nothing.

    Raises:
        DinotrackError: where there are none, or they differ from the video in count or size.
    """
    path = Path(path)
    try:
        folder, there = path.is_dir(), path.exists()
    except (OSError, ValueError):
        folder, there = False, False
    if not folder and not (path.suffix.lower() == ".npy" and there):
        raise DinotrackError(f"no such masks: {path}; expected a folder of png or jpg masks, or an .npy file (T, H, W)")
    masks = _mask_folder(path, video, start, stop) if folder else _mask_array(path, video, start, stop)
    if not masks.any():
        log.warning("%s: no mask has any foreground", path)
    return resize_masks(torch.from_numpy(masks), video.frame_size)


def _check_count(path: Path, found: int, video: Video, start: int, stop: int | None) -> slice:
    """The part of `found` masks that is of the video's frames."""
    part = slice(*slice(start, stop).indices(found))
    chosen = len(range(found)[part])
    if chosen != len(video):
        about = f"{found} masks, {chosen} of them for frames [{start}, {'end' if stop is None else stop})"
        raise DinotrackError(f"{path} holds {about}, but {video.path} has {len(video)} there; expected one per frame")
    return part


def _mask_folder(folder: Path, video: Video, start: int, stop: int | None) -> Bool[np.ndarray, "m h w"]:
    """Read one after the other; that there are labels is said by all of them, not by those of [start, stop) alone."""
    files = pictures_of(folder)
    part = _check_count(folder, len(files), video, start, stop)
    levels, labels, brightest = [], False, 0
    for number, file in enumerate(files):
        image = open_picture(file)
        _check_size(image.size, video.size, file)
        level = _levels(image)
        labels |= image.mode == "P"
        brightest = 255 if file.suffix.lower() != ".png" else max(brightest, int(level.max()))
        if part.start <= number < part.stop:
            levels.append(level)
    return _foreground(np.stack(levels), labels or brightest < 128)


def _levels(image: Image.Image) -> UInt8[np.ndarray, "h w"]:
    """A mask's grey levels, its palette's numbers, or the brightest of its colours."""
    if image.mode == "P":
        return np.array(image)
    if image.mode.startswith("I"):  # 16 bit: keeps labels and what lies above half apart
        wide = np.asarray(image)
        return np.where(wide > 32767, 255, wide.clip(0, 127)).astype(np.uint8)
    return np.array(image.convert("RGB")).max(-1)


def _mask_array(file: Path, video: Video, start: int, stop: int | None) -> Bool[np.ndarray, "m h w"]:
    masks = read_npy(file, "masks", EXPECTED)
    if masks.ndim != 3:
        raise DinotrackError(f"the masks {file} have shape {masks.shape}; expected (T, H, W)")
    if masks.dtype.kind not in "biuf":
        raise DinotrackError(
            f"the masks {file} are of type {masks.dtype}; save them as bool, uint8 or floats in [0, 1]"
        )
    _check_size((masks.shape[2], masks.shape[1]), video.size, file)
    part = _check_count(file, len(masks), video, start, stop)
    if masks.dtype == np.bool_:
        return np.array(masks[part])
    if masks.dtype.kind in "iu":
        return _foreground(np.array(masks[part]), labels=bool(masks.max(initial=0) < 128))
    if not ((masks >= 0) & (masks <= 1)).all():
        raise DinotrackError(f"the masks {file} are floats outside [0, 1]; save them as bool or uint8")
    return np.array(masks[part] > 0.5)


def _foreground(levels: np.ndarray, labels: bool) -> Bool[np.ndarray, "m h w"]:
    """Any label but 0, or the brighter half of 8 bit."""
    return levels > (0 if labels else 127)


def _check_size(found: tuple[int, int], size: tuple[int, int], file: Path) -> None:
    if found != size:
        raise DinotrackError(
            f"the mask {file} is {found[0]}x{found[1]}, the video {size[0]}x{size[1]}; resize the masks"
        )
