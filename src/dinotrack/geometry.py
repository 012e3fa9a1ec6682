"""The coordinate convention (method §0) and every conversion to and from it.

A position is raster (x, y): origin at the top-left corner of the top-left pixel, that pixel's centre at (0.5, 0.5), the
bottom-right corner of a frame at (W, H). Only this module knows of half pixels, `grid_sample` and aligned corners.
"""

import math
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.structs import PIXELS, Grid

REFERENCE_LONG_SIDE = 854
"""The papers' constants in pixels (R, γ, γ_of, γ_lng, NMS boxes) hold at this long side (method §0)."""


def working_size(size: tuple[int, int], resolution: int, stride: int) -> tuple[int, int]:
    """(W, H) at which a video is processed: aspect kept, long side `resolution`, both sides multiples of `stride` (§0).

    Raises:
        DinotrackError: when the short side would not hold a single stride.
    """
    scale = resolution / max(size)
    width, height = (int(side * scale + 1e-6) // stride * stride for side in size)
    if not width or not height:
        raise DinotrackError(
            f"a {size[0]}x{size[1]} video at resolution={resolution} has no room for stride {stride}; raise resolution"
        )
    return width, height


def constant_scale(size: tuple[int, int]) -> float:
    """What the papers' pixel constants are multiplied with at working size (W, H) (§0, `scale_constants`)."""
    return max(size) / REFERENCE_LONG_SIDE


def resize_frames(frames: UInt8[Tensor, "t 3 h w"], size: tuple[int, int]) -> UInt8[Tensor, "t 3 h2 w2"]:
    """Frames at (W, H) by PIL's Lanczos filter in 8 bit, as published (§0)."""
    if (frames.shape[3], frames.shape[2]) == size:
        return frames
    resized = [
        np.asarray(
            Image.fromarray(frame.permute(1, 2, 0).contiguous().numpy(force=True)).resize(
                size, Image.Resampling.LANCZOS
            )
        )
        for frame in frames
    ]
    return torch.from_numpy(np.stack(resized)).permute(0, 3, 1, 2).contiguous().to(frames.device)


def rescale(xy: Float[Tensor, "*n 2"], source: tuple[int, int], target: tuple[int, int]) -> Float[Tensor, "*n 2"]:
    """Raster positions of frames of (W, H) `source` in frames of `target`."""
    return xy * xy.new_tensor([target[0] / source[0], target[1] / source[1]])


def centres(height: int, width: int, grid: Grid, device: torch.device | str = "cpu") -> Float[Tensor, "cells 2"]:
    """Raster positions of the cells of a map, row by row."""
    y, x = torch.meshgrid(torch.arange(height, device=device), torch.arange(width, device=device), indexing="ij")
    return torch.stack([x, y], -1).reshape(-1, 2) * grid.stride + grid.offset


def cell_centres(cells: Int[Tensor, "*n"], width: int, grid: Grid) -> Float[Tensor, "*n 2"]:
    """Raster positions of cells, numbered row by row, of a map of `width` columns."""
    return torch.stack([cells % width, cells // width], -1) * grid.stride + grid.offset


def resize_masks(masks: Bool[Tensor, "t h w"], size: tuple[int, int]) -> Bool[Tensor, "t h2 w2"]:
    """Masks looked up at the pixels of frames of (W, H) `size`."""
    width, height = size
    if masks.shape[1:] == (height, width):
        return masks
    y = ((torch.arange(height, device=masks.device) + 0.5) * (masks.shape[1] / height)).long()
    x = ((torch.arange(width, device=masks.device) + 0.5) * (masks.shape[2] / width)).long()
    return masks[:, y[:, None], x]


def to_index(xy: Float[Tensor, "*n 2"], grid: Grid) -> Float[Tensor, "*n 2"]:
    """Fractional (column, row) of raster positions in a map on `grid`."""
    return (xy - grid.offset) / grid.stride


def nearest_cell(xy: Float[Tensor, "*n 2"], grid: Grid, height: int, width: int) -> Int[Tensor, "*n"]:
    """Row-by-row number of the cell whose centre is nearest."""
    column, row = to_index(xy, grid).round().long().unbind(-1)
    return row.clamp(0, height - 1) * width + column.clamp(0, width - 1)


def inside(xy: Float[Tensor, "*n 2"], size: tuple[int, int]) -> Bool[Tensor, "*n"]:
    """Whether positions lie on a frame of (W, H); its right and bottom edges do not belong to it."""
    x, y = xy.unbind(-1)
    return (x >= 0) & (y >= 0) & (x < size[0]) & (y < size[1])


def corners(
    xy: Float[Tensor, "n 2"], grid: Grid, height: int, width: int
) -> tuple[Int[Tensor, "n 4"], Float[Tensor, "n 4"]]:
    """Row-by-row numbers of the four cells around raster positions, and their bilinear weights.

    Positions are clamped to the outermost cell centres (§0).
    """
    limit = xy.new_tensor([width - 1, height - 1])
    index = torch.minimum(to_index(xy, grid).clamp(min=0), limit)
    low = torch.minimum(index.floor(), (limit - 1).clamp(min=0))
    (fx, fy), (x, y) = (index - low).unbind(1), low.long().unbind(1)
    right, below = (x + 1).clamp(max=width - 1) - x, ((y + 1).clamp(max=height - 1) - y) * width
    first = y * width + x
    cells = torch.stack([first, first + right, first + below, first + below + right], 1)
    return cells, torch.stack([(1 - fx) * (1 - fy), fx * (1 - fy), (1 - fx) * fy, fx * fy], 1)


def sample(
    maps: Float[Tensor, "t c h w"], frame: Int[Tensor, " n"], xy: Float[Tensor, "n 2"], grid: Grid
) -> Float[Tensor, "n c"]:
    """Bilinear samples of map `frame` at raster positions, in float32; clamped to the outermost cell centres (§0)."""
    cells, weights = corners(xy, grid, *maps.shape[2:])
    values = maps.flatten(2)[frame[:, None], :, cells].float()
    return torch.einsum("nk,nkc->nc", weights.float(), values)


def read_field(field: Float[Tensor, "c h w"], xy: Float[Tensor, "n 2"], grid: Grid) -> Float[Tensor, "n c"]:
    """What `sample` reads of one map with few channels, as optical flow has: many times faster, to about 1e-5 of a cell."""
    points = _grid_points(xy, grid, field.shape[1], field.shape[2])[None, None]
    return F.grid_sample(field[None], points, mode="bilinear", padding_mode="border", align_corners=True)[0, :, 0].T


def _grid_points(xy: Float[Tensor, "*n 2"], grid: Grid, height: int, width: int) -> Float[Tensor, "*n 2"]:
    """Raster positions in `grid_sample`'s units, where the outermost cell centres of an h×w map lie at -1 and 1."""
    extent = xy.new_tensor([max(width - 1, 1), max(height - 1, 1)])
    return 2 * to_index(xy, grid) / extent - 1


def resample(
    maps: Float[Tensor, "t c h w"], source: Grid, target: Grid, height: int, width: int
) -> Float[Tensor, "t c h2 w2"]:
    """Maps on grid `source` sampled bilinearly, clamped at the border, at the cells of an h×w map on grid `target`.

    Channels are last in memory. Between two grids this is a product of matrices along either axis, whose gradient is another one;
    `grid_sample` adds its gradient up cell by cell.
    """
    rows, columns = (
        linear_weights(count, source, target, cells, maps.device).to(maps.dtype)
        for count, cells in ((maps.shape[2], height), (maps.shape[3], width))
    )
    with without_autocast(maps.device.type):  # it would round the weights to half precision
        return (rows @ (columns @ maps.movedim(1, 3)).flatten(2)).unflatten(2, (width, -1)).movedim(3, 1)


def without_autocast(device: str) -> AbstractContextManager[Any]:
    """Full precision for what stands below, also on devices that have no autocast."""
    return torch.autocast(device, enabled=False) if torch.amp.is_autocast_available(device) else nullcontext()


def linear_weights(
    count: int, source: Grid, target: Grid, cells: int, device: torch.device | str = "cpu"
) -> Float[Tensor, "cells count"]:
    """What each of `count` cells of an axis of grid `source` gives to each of the `cells` of `target`; outermost ones beyond."""
    double = {"dtype": torch.float64, "device": device}
    index = ((torch.arange(cells, **double) * target.stride + target.offset) - source.offset) / source.stride
    distance = index.clamp(0, count - 1)[:, None] - torch.arange(count, **double)
    return (1 - distance.abs()).clamp(min=0).float()


def at_pixels(
    maps: Float[Tensor, "t c h w"], grid: Grid, working: tuple[int, int], size: tuple[int, int]
) -> Float[Tensor, "t c h2 w2"]:
    """Maps of working frames of (W, H) `working`, bilinearly at every pixel of the same frames at (W, H) `size`."""
    pixels = resample(maps.float().cpu(), grid, PIXELS, working[1], working[0])
    return F.interpolate(pixels, (size[1], size[0]), mode="bilinear", align_corners=False)


def look_up(
    masks: Bool[Tensor, "t h w"], frame: Int[Tensor, " n"], xy: Float[Tensor, "n 2"], size: tuple[int, int]
) -> Bool[Tensor, " n"]:
    """Value of mask `frame` at raster positions of frames of (W, H) `size`; the masks may have another size."""
    height, width = masks.shape[-2:]
    x, y = rescale(xy, size, (width, height)).floor().long().unbind(-1)
    return masks[frame, y.clamp(0, height - 1), x.clamp(0, width - 1)]


def normalise(xy: Float[Tensor, "*n 2"], size: tuple[int, int]) -> Float[Tensor, "*n 2"]:
    """Positions in the losses' units: 2x / (W - 1) - 1, 2y / (H - 1) - 1, as the published code has it (§0)."""
    x, y = xy.unbind(-1)
    return torch.stack([2 * x / (size[0] - 1) - 1, 2 * y / (size[1] - 1) - 1], -1)  # no tensor of sizes to wait for


def window(radius: float, stride: float) -> int:
    """Half side, in cells, of the square window that holds a disc of `radius` pixels around a cell."""
    return math.floor(radius / stride)
