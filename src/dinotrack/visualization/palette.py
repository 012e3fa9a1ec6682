"""Which colour a point has: by where it starts, by its row, or by how far it is to be trusted."""

from collections.abc import Callable
from types import MappingProxyType

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.structs import Tracks

HUES = 300.0
"""The last hue in degrees, a magenta: 360 would be red again."""
TRUST = torch.tensor([[213.0, 60.0, 0.0], [240.0, 228.0, 66.0], [0.0, 158.0, 255.0]])
"""Vermilion, yellow and blue for a confidence of 0, 1/2 and 1: told apart whatever one's colour vision."""


def rgb_of(hsv: Float[Tensor, "n 3"]) -> UInt8[np.ndarray, "n 3"]:
    """Hue in degrees, saturation and value in [0, 1], as 8-bit RGB."""
    if not len(hsv):
        return np.zeros((0, 3), np.uint8)  # OpenCV refuses empty arrays
    return (cv2.cvtColor(hsv[None].float().numpy(), cv2.COLOR_HSV2RGB)[0] * 255).round().astype(np.uint8)


def start_colours(tracks: Tracks) -> UInt8[np.ndarray, "n 3"]:
    """RGB by each track's query position: hue from left to right, bright and full colours above, paler ones below."""
    x, y = _start(tracks)
    return rgb_of(torch.stack([HUES * x, 1 - 0.6 * y, torch.ones_like(x)], 1))


def row_colours(tracks: Tracks) -> UInt8[np.ndarray, "n 3"]:
    """RGB by the row that each track starts in: a rainbow from red at the highest start to magenta at the lowest."""
    _, y = _start(tracks)
    top, bottom = (float(y.min()), float(y.max())) if len(y) else (0.0, 0.0)
    place = (y - top) / max(bottom - top, 1e-6)
    return rgb_of(torch.stack([HUES * place, torch.ones_like(y), torch.ones_like(y)], 1))


def confidence_colours(tracks: Tracks) -> UInt8[np.ndarray, "n t 3"]:
    """RGB by the confidence of each position, `TRUST`; no number counts as 0."""
    place = 2 * tracks.confidence.float().nan_to_num(0.0).clamp(0, 1)[..., None]
    colours = torch.where(
        place < 1, TRUST[0] + place * (TRUST[1] - TRUST[0]), TRUST[1] + (place - 1) * (TRUST[2] - TRUST[1])
    )
    return colours.round().to(torch.uint8).numpy()


def _start(tracks: Tracks) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """Where each track's query lies, as shares of the frame."""
    x, y = (tracks.queries[:, 1:].float() / torch.tensor(tracks.size)).nan_to_num().clamp(0, 1).unbind(1)
    return x, y


COLOURINGS: MappingProxyType[str, Callable[[Tracks], np.ndarray]] = MappingProxyType(
    {"start": start_colours, "rainbow": row_colours, "confidence": confidence_colours}
)
"""What `colour` may be."""


def track_colours(tracks: Tracks, colour: str) -> UInt8[np.ndarray, "n t 3"]:
    """The colour of each track in each frame.

    Raises:
        DinotrackError: when `colour` is none of `COLOURINGS`.
    """
    if colour not in COLOURINGS:
        raise DinotrackError(f"colour={colour!r}; choose {', '.join(COLOURINGS)}")
    colours = COLOURINGS[colour](tracks)
    return np.broadcast_to(colours[:, None] if colours.ndim == 2 else colours, (*tracks.xy.shape[:2], 3))
