"""Textured sheets that move by maps with closed-form inverses, and what one sees of them from the front."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.data.textures import DENSITY


@dataclass(frozen=True)
class Motion:
    """Where a layer is in each frame."""

    centre: Float[Tensor, "t 2"]
    angle: Float[Tensor, " t"]
    scale: Float[Tensor, " t"]
    bend: Float[Tensor, " t"]
    bend_rate: float = 0.0
    bend_phase: float = 0.0

    def to_frame(self, uv: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n t 2"]:
        """Raster positions of a layer's points in every frame."""
        u, v = uv[..., None, :].expand(*uv.shape[:-1], len(self.angle), 2).unbind(-1)
        v = v + self.bend * torch.sin(self.bend_rate * u + self.bend_phase)
        return self.centre + self.scale[:, None] * _rotate(u, v, self.angle)

    def to_layer(self, xy: Float[Tensor, "*n t 2"], frames: slice = slice(None)) -> Float[Tensor, "*n t 2"]:
        """The layer's points at raster positions, one for each of `frames`: the inverse of `to_frame`."""
        x, y = ((xy - self.centre[frames]) / self.scale[frames, None]).unbind(-1)
        u, v = _rotate(x, y, -self.angle[frames]).unbind(-1)
        return torch.stack([u, v - self.bend[frames] * torch.sin(self.bend_rate * u + self.bend_phase)], -1)


@dataclass(frozen=True)
class Layer:
    """One textured sheet."""

    motion: Motion
    outline: Callable[[Tensor], Tensor]
    """How many pixels a point of the sheet's plane lies inside the sheet; negative outside."""
    texture: Float[Tensor, "3 h w"]
    reach: float = math.inf
    """Nothing of it lies farther from its centre, in pixels at scale 1."""

    def covers(self, xy: Float[Tensor, "*n t 2"]) -> Bool[Tensor, "*n t"]:
        """Whether the layer lies at raster positions, one for each frame."""
        return self.outline(self.motion.to_layer(xy)) > 0

    def near(self, xy: Float[Tensor, "n 2"], frame: int) -> Bool[Tensor, " n"]:
        """Whether raster positions are within reach, which is cheaper to know than whether it covers them."""
        if math.isinf(self.reach):
            return torch.ones(len(xy), dtype=torch.bool)
        reach = self.reach * float(self.motion.scale[frame])
        return ((xy - self.motion.centre[frame]).abs() <= reach).all(-1)

    def colour(self, uv: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
        """Bilinear samples of the texture, whose middle is the layer's centre; it is mirrored beyond its edges."""
        half = uv.new_tensor([self.texture.shape[2], self.texture.shape[1]]) / (2 * DENSITY)
        grid = (uv / half).to(self.texture)[None, None]
        return F.grid_sample(self.texture[None], grid, padding_mode="reflection", align_corners=False)[0, :, 0].T


def _rotate(x: Float[Tensor, "*n t"], y: Float[Tensor, "*n t"], angle: Float[Tensor, " t"]) -> Float[Tensor, "*n t 2"]:
    return torch.stack([angle.cos() * x - angle.sin() * y, angle.sin() * x + angle.cos() * y], -1)


def look(layers: list[Layer], xy: Float[Tensor, "n 2"], frame: int) -> tuple[Int[Tensor, " n"], Float[Tensor, "n 2"]]:
    """Which layer, the topmost first, is seen at raster positions of `frame`, and which of its points."""
    depth, uv = torch.full((len(xy),), len(layers) - 1), torch.zeros_like(xy)
    free = torch.ones(len(xy), dtype=torch.bool)
    for index, layer in enumerate(layers):
        near = (free & layer.near(xy, frame)).nonzero()[:, 0]
        there = layer.motion.to_layer(xy.index_select(0, near)[:, None], slice(frame, frame + 1))[:, 0]
        on = layer.outline(there) > 0
        depth[near[on]], uv[near[on]], free[near[on]] = index, there[on], False
    return depth, uv


def paint(layers: list[Layer], depth: Int[Tensor, " n"], uv: Float[Tensor, "n 2"]) -> Float[Tensor, "n 3"]:
    """Colours of points of layers."""
    colour = torch.zeros(len(uv), 3)
    for index, layer in enumerate(layers):
        colour[depth == index] = layer.colour(uv[depth == index])
    return colour
