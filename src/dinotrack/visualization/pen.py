"""How thick marks are: everything grows with the picture, and strokes keep a dark rim, so that they show on any ground."""

from dataclasses import dataclass

import cv2
import numpy as np
from jaxtyping import Float, Int, UInt8
from torch import Tensor

from dinotrack.geometry import to_index
from dinotrack.structs import PIXELS

SHIFT = 4
"""Fractional bits of the positions that OpenCV draws at: 1/16 px."""
Colour = tuple[int, int, int]
WHITE, BLACK, RED = (255, 255, 255), (0, 0, 0), (255, 32, 32)


@dataclass(frozen=True)
class Pen:
    """Measures of marks in pixels."""

    radius: float
    """Of a point."""

    @classmethod
    def of(cls, size: tuple[int, int], share: float = 1 / 200, smallest: float = 2.5) -> "Pen":
        """For pictures of (W, H) `size`: a point's radius is a `share` of the long side, at least `smallest`."""
        return cls(max(smallest, share * max(size)))

    @property
    def line(self) -> int:
        return max(1, round(self.radius / 2))

    @property
    def thin(self) -> int:
        return max(1, round(self.radius / 3))

    @property
    def font(self) -> int:
        """Height of letters: 5 points."""
        return max(11, round(5 * self.radius))


def opencv_points(xy: Float[Tensor, "*n 2"]) -> Int[np.ndarray, "*n 2"]:
    """Raster positions in OpenCV's terms: pixel indices (method §0), in fixed point with `SHIFT` fractional bits."""
    return (to_index(xy, PIXELS) * 2**SHIFT).round().int().numpy()


def ring(
    canvas: UInt8[np.ndarray, "h w 3"], xy: Float[Tensor, "2"], radius: float, colour: Colour, thickness: int
) -> None:
    """A circle with a dark rim around a raster position."""
    centre = tuple(opencv_points(xy).tolist())
    for shade, width in ((BLACK, thickness + 2), (colour, thickness)):
        cv2.circle(canvas, centre, round(radius * 2**SHIFT), shade, width, cv2.LINE_AA, SHIFT)


def cross(
    canvas: UInt8[np.ndarray, "h w 3"], xy: Float[Tensor, "2"], radius: float, colour: Colour, thickness: int
) -> None:
    """A diagonal cross with a dark rim at a raster position."""
    (x, y), arm = opencv_points(xy).tolist(), round(radius * 2**SHIFT)
    for shade, width in ((BLACK, thickness + 2), (colour, thickness)):
        for dy in (arm, -arm):
            cv2.line(canvas, (x - arm, y - dy), (x + arm, y + dy), shade, width, cv2.LINE_AA, SHIFT)


def to_canvas(frame: UInt8[Tensor, "3 h w"]) -> UInt8[np.ndarray, "h w 3"]:
    """A copy of a frame that OpenCV can draw on."""
    return np.array(frame.permute(1, 2, 0).numpy(force=True), order="C")
