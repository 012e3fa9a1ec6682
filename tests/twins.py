"""Naive twins that several tests share: loops in float64, written from the formulas of the method."""

import math

import numpy as np
from torch import Tensor

from dinotrack.networks import TrackerHead
from dinotrack.structs import Grid


def array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().double().numpy()


def bilinear(values: np.ndarray, x: float, y: float, grid: Grid) -> np.ndarray:
    """Sample (c, h, w) `values` at a raster position, clamped to the outermost cell centres (§0)."""
    height, width = values.shape[1:]
    column = min(max((x - grid.offset) / grid.stride, 0.0), width - 1.0)
    row = min(max((y - grid.offset) / grid.stride, 0.0), height - 1.0)
    total = np.zeros(len(values))
    for i in range(height):
        for j in range(width):
            total += values[:, i, j] * max(0.0, 1 - abs(row - i)) * max(0.0, 1 - abs(column - j))
    return total


def cosine(a: np.ndarray, b: np.ndarray) -> float:
    return float(a @ b) / max(math.sqrt(float(a @ a)) * math.sqrt(float(b @ b)), 1e-16)


def huber(a: float, b: float, delta: float = 1 / 32) -> float:
    error = abs(a - b)
    return error**2 / 2 if error <= delta else delta * (error - delta / 2)


def convolve(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    """3×3 cross-correlation of (c, h, w) maps with zero padding 1."""
    height, width = maps.shape[1:]
    padded = np.pad(maps, ((0, 0), (1, 1), (1, 1)))
    out = np.zeros((len(weight), height, width))
    for o in range(len(weight)):
        for i in range(height):
            for j in range(width):
                out[o, i, j] = (padded[:, i : i + 3, j : j + 3] * weight[o]).sum() + bias[o]
    return out


def divided(weight: np.ndarray, smallest: float = 1e-8) -> np.ndarray:
    """Each 3×3 kernel divided by its own sum, which is kept `smallest` away from 0 (§2)."""
    out = np.zeros_like(weight)
    for o in range(weight.shape[0]):
        for i in range(weight.shape[1]):
            total = weight[o, i].sum()
            if abs(total) < smallest:
                total = -smallest if total < 0 else smallest
            out[o, i] = weight[o, i] / total
    return out


def refine(head: TrackerHead, similarities: np.ndarray) -> np.ndarray:
    """The CNN refiner over a whole (h, w) map of clamped similarities (§2)."""
    weights = {name: array(value) for name, value in head.state_dict().items()}
    hidden = convolve(similarities[None], divided(weights["cnn_refiner.0.weight"]), weights["cnn_refiner.0.bias"])
    hidden = np.maximum(hidden, 0)
    return convolve(hidden, divided(weights["cnn_refiner.2.weight"]), weights["cnn_refiner.2.bias"])[0]


def locate(head: TrackerHead, similarities: np.ndarray, grid: Grid, scale: float = 1.0) -> np.ndarray:
    """Eq. 2 over a whole (h, w) map of cosines: refine all, softmax over all, cut out the disc, renormalise."""
    height, width = similarities.shape
    clamped = np.maximum(similarities, 0)
    if head.refine:
        logits = refine(head, clamped)
        heat = np.exp(logits - logits.max())
        heat /= heat.sum()
    else:
        heat = logits = clamped
    peaks = logits if head.refine and head.peak == "refined" else clamped
    row, column = divmod(int(peaks.argmax()), width)
    cells = [
        (i, j)
        for i in range(height)
        for j in range(width)
        if grid.stride * math.hypot(i - row, j - column) <= head.radius * scale
    ]
    mass = sum(heat[i, j] for i, j in cells)
    if head.refine and head.fallback == "normalised":  # a softmax of its own inside Ω
        highest = max(logits[i, j] for i, j in cells)
        heat = np.exp(np.minimum(logits - highest, 0))
        mass = sum(heat[i, j] for i, j in cells)
    elif mass < 1e-8:
        heat, mass = np.ones_like(heat), len(cells)
    total = np.zeros(2)
    for i, j in cells:
        total += heat[i, j] / mass * np.array([grid.offset + grid.stride * j, grid.offset + grid.stride * i])
    return total


def match(head: TrackerHead, wanted: np.ndarray, target: np.ndarray, grid: Grid, scale: float = 1.0) -> np.ndarray:
    """Π: the raster position of a feature in a (c, h, w) map."""
    height, width = target.shape[1:]
    similarities = np.zeros((height, width))
    for i in range(height):
        for j in range(width):
            similarities[i, j] = cosine(wanted, target[:, i, j])
    return locate(head, similarities, grid, scale)
