"""Random pictures with the statistics of natural ones, for the layers of a synthetic video."""

import math

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

DENSITY = 2
"""Texels per pixel, so that a texture's detail survives its resampling."""


def texture(
    rng: np.random.Generator, extent: tuple[float, float], long: int, hue: float, colourful: float = 0.8
) -> Float[Tensor, "3 h w"]:
    """Colours over `extent` (pixels) around a hue: overlapping ellipses and strokes of all sizes, and noise of all scales."""
    width, height = (math.ceil(side * DENSITY) for side in extent)
    angle = 2 * math.pi * (hue + np.array([0, 1, 2]) / 3)
    base = 0.48 + 0.22 * colourful * np.cos(angle)
    picture = torch.from_numpy(_leaves(rng, width, height, long * DENSITY, base)) + 0.2 * _octaves(rng, width, height)
    sigma = 0.5 * DENSITY
    kernel = torch.exp(-0.5 * (torch.arange(-4, 5) / sigma) ** 2)
    kernel = kernel / kernel.sum()
    padded = F.pad(picture[:, None], (4, 4, 4, 4), mode="replicate")
    smooth = F.conv2d(F.conv2d(padded, kernel[None, None, None]), kernel[None, None, :, None])[:, 0]
    return 0.47 + 0.43 * torch.tanh((smooth - 0.47) / 0.43)


def _leaves(
    rng: np.random.Generator,
    width: int,
    height: int,
    long: int,
    base: np.ndarray,
    smallest: float = 0.008,
    largest: float = 0.1,
) -> np.ndarray:
    """The dead-leaves model of natural images: ellipses whose number falls with the cube of their size, large ones below."""
    count = max(40, round(500 * width * height / long**2))
    picture = np.broadcast_to(base[:, None, None], (3, height, width)).astype(np.float32)
    radii = np.sort(rng.uniform(largest**-2, smallest**-2, count) ** -0.5)[::-1] * long
    for radius in radii:
        x, y, turn = rng.uniform(0, width), rng.uniform(0, height), rng.uniform(0, math.pi)
        aspect = rng.uniform(0.12, 1)
        colour = base + rng.normal(0, 0.2) + rng.normal(0, 0.09, 3)
        left, top = max(0, int(x - radius)), max(0, int(y - radius))
        rows, columns = np.ogrid[top : min(height, int(y + radius) + 2), left : min(width, int(x + radius) + 2)]
        along = (columns + 0.5 - x) * math.cos(turn) + (rows + 0.5 - y) * math.sin(turn)
        across = (rows + 0.5 - y) * math.cos(turn) - (columns + 0.5 - x) * math.sin(turn)
        on = along**2 + (across / aspect) ** 2 < radius**2
        picture[:, top : top + on.shape[0], left : left + on.shape[1]][:, on] = colour[:, None]
    return picture


def _octaves(rng: np.random.Generator, width: int, height: int, finest: float = 2.0) -> Float[Tensor, "3 h w"]:
    """Noise whose amplitude falls by a fifth from octave to octave, mostly of brightness; about unit variance."""
    total, power = torch.zeros(3, height, width), 0.0
    period = max(width, height) / 2
    while period >= finest * DENSITY:
        cells = (math.ceil(height / period) + 2, math.ceil(width / period) + 2)
        grid = rng.normal(size=(1, *cells)) * 0.8 + rng.normal(size=(3, *cells)) * 0.6
        waves = F.interpolate(
            torch.from_numpy(grid).float()[None], size=(height, width), mode="bicubic", align_corners=True
        )
        total += period**0.3 * waves[0]
        power += period**0.6
        period /= 2
    return total / math.sqrt(max(power, 1e-9))
