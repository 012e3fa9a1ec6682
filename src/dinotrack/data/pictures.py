"""Folders of pictures: frames and masks, in natural order, each opened with a bound on its size."""

import os
import re
from pathlib import Path

import numpy as np
from jaxtyping import UInt8
from PIL import Image, ImageOps

from dinotrack.errors import DinotrackError

PICTURES = (".jpg", ".jpeg", ".png")
MOST_PIXELS = 2**27
"""Of a frame; 8K has a quarter of it. A few bytes can ask for any number."""


def pictures_of(folder: Path) -> list[Path]:
    """Its visible jpg and png files in natural order.

    Raises:
        DinotrackError: where there is none, or the folder cannot be read.
    """
    try:
        files = [f for f in folder.iterdir() if f.suffix.lower() in PICTURES and not f.name.startswith(".")]
    except OSError as error:
        raise DinotrackError(f"cannot read the folder {folder} ({error.strerror}); check its permissions") from error
    if not files:
        raise DinotrackError(f"{folder} holds no frames; expected files ending in {', '.join(PICTURES)}")
    return sorted(files, key=natural)


def frame_numbers(folder: str | os.PathLike[str]) -> list[int]:
    """The number that each frame of a folder bears at the end of its name; counted from 0 where one has none, or two the same."""
    found = [re.search(r"(\d+)$", file.stem) for file in pictures_of(Path(folder))]
    numbers = [int(match[1]) for match in found if match]
    return numbers if len(set(numbers)) == len(found) else list(range(len(found)))


def natural(file: Path) -> tuple[list[str | int], str]:
    """Sorting key by which frame2 comes before frame10."""
    parts = re.split(r"(\d+)", file.stem.lower())
    return [int(part) if part.isdecimal() else part for part in parts], file.name


def open_picture(file: Path) -> Image.Image:
    """A picture in memory, upright as EXIF says.

    Raises:
        DinotrackError: for a file that is damaged, no picture, or larger than `MOST_PIXELS`.
    """
    try:
        with Image.open(file) as image:
            if image.width * image.height > MOST_PIXELS:
                raise DinotrackError(f"{file} is {image.width}x{image.height}; expected at most {MOST_PIXELS} pixels")
            return ImageOps.exif_transpose(image)
    except DinotrackError:
        raise
    except Exception as error:  # a damaged picture can fail anywhere in its decoder
        reason = " ".join(str(error).split())[:200] or type(error).__name__
        raise DinotrackError(f"cannot read the picture {file} ({reason}); save it again or remove it") from error


def rgb(image: Image.Image) -> UInt8[np.ndarray, "h w 3"]:
    """Its colours in 8 bit, without alpha."""
    if image.mode.startswith("I"):  # 16-bit grey, of which PIL would clip all above 255
        image = Image.fromarray((np.asarray(image).clip(0, 65535) // 256).astype(np.uint8))
    return np.array(image.convert("RGB"))
