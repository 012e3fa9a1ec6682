"""Naive twins that several tests share: loops in float64, written from the formulas of the method."""

import math

import numpy as np
import torch
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
    out = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for a in range(3):
        for b in range(3):
            out += np.einsum("oc,chw->ohw", weight[:, :, a, b], padded[:, a : a + height, b : b + width])
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


def benign_head(**options: object) -> TrackerHead:
    """A head whose normalised kernels stay of order 1, so that float32 and float64 agree."""
    head = TrackerHead(**options)  # type: ignore[arg-type]
    rng = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in head.parameters():
            parameter.copy_(torch.rand(parameter.shape, generator=rng) - (0.25 if parameter.ndim > 1 else 0.5))
    return head


def overlap_twin(a: np.ndarray, b: np.ndarray, side: float) -> float:
    """Intersection over union of the boxes of `side` around two centres, from their edges."""
    width = min(a[0], b[0]) + side / 2 - (max(a[0], b[0]) - side / 2)
    height = min(a[1], b[1]) + side / 2 - (max(a[1], b[1]) - side / 2)
    intersection = max(width, 0) * max(height, 0)
    return intersection / (2 * side * side - intersection)


def ambiguity_twin(
    values: np.ndarray, xy: np.ndarray, side: float = 60.0, overlap: float = 0.2, candidates: int = 400
) -> float:
    """s_2 / s_1 after literal greedy non-maximum suppression of the `candidates` highest similarities."""
    waiting = sorted(range(len(values)), key=lambda n: -values[n])[:candidates]
    kept: list[int] = []
    while waiting:
        best = waiting.pop(0)
        kept.append(best)
        waiting = [n for n in waiting if overlap_twin(xy[best], xy[n], side) <= overlap]
    if len(kept) < 2:
        return 0.0
    return min(max(values[kept[1]] / max(values[kept[0]], 1e-8), 0.0), 1.0)


Point = tuple[float, float]


def step_twin(flow: np.ndarray, point: Point) -> Point:
    """x + f(x), f bilinear between pixel centres and clamped to the outermost."""
    _, height, width = flow.shape
    u, v = min(max(point[0] - 0.5, 0.0), width - 1.0), min(max(point[1] - 0.5, 0.0), height - 1.0)
    j, i = min(int(u), width - 2), min(int(v), height - 2)
    a, b = u - j, v - i
    value = (1 - b) * ((1 - a) * flow[:, i, j] + a * flow[:, i, j + 1])
    value = value + b * ((1 - a) * flow[:, i + 1, j] + a * flow[:, i + 1, j + 1])
    return point[0] + float(value[0]), point[1] + float(value[1])


def within(point: Point, height: int, width: int) -> bool:
    return 0 <= point[0] < width and 0 <= point[1] < height
