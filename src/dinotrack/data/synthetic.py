"""A rendered video whose tracks are known exactly: textured layers that move by maps with closed-form inverses.

Layers lie in depth order: an occluder (a wavy bar across the frame), two or three bending blobs, a panning background. A layer's
point (u, v), in pixels from the layer's centre, is seen at raster position c(t) + s(t) · R(t) · (u, v + a(t) · sin(k u + φ)).
"""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.data.layers import Layer, Motion, look, paint
from dinotrack.data.textures import DENSITY, texture
from dinotrack.errors import DinotrackError
from dinotrack.geometry import centres, inside
from dinotrack.structs import PIXELS, Video


@dataclass(frozen=True)
class Clip:
    """A synthetic video and its exact tracks."""

    video: Video
    """Its masks are true where a moving object, not the occluder, is what a pixel's centre sees."""
    xy: Float[Tensor, "n t 2"]
    """Raster positions, also where not visible."""
    visible: Bool[Tensor, "n t"]
    """Inside the frame, and no layer above covers the position."""
    layer: Int[Tensor, " n"]
    """Depth of the layer that a point lies on: 0 is the occluder, which has no points, the highest the background."""


def synthetic_clip(
    seed: int = 0,
    frames: int = 24,
    size: tuple[int, int] = (192, 144),
    *,
    points: int = 64,
    look_alikes: bool = False,
    motion: float = 1.0,
    bend: float = 1.0,
    hidden: float = 0.31,
    illumination: float = 0.1,
    noise: float = 0.008,
) -> Clip:
    """A video of (W, H) `size` with exact tracks of `points` points, two thirds on objects, the rest on the background.

    Objects move by about 3 % of the long side a frame, the background by 0.5 %, times `motion`; in more than 24 frames slower,
    so that they travel no farther. Points of one object go behind the occluder for about the share `hidden` of the clip and come
    out again; `bend` multiplies how far objects bend. `look_alikes` gives that object and another the same texture.
    `illumination` is the largest change of a frame's gain, `noise` the standard deviation of the sensor noise; both as shares of
    the full range.

    Raises:
        DinotrackError: for fewer than 2 frames, a side below 16 pixels, a negative number, `hidden` above 0.6, or points that
            cannot be placed.
    """
    amounts = {"points": points, "motion": motion, "bend": bend, "hidden": hidden}
    _check(frames, size, {**amounts, "illumination": illumination, "noise": noise})
    rng = np.random.default_rng(seed)
    layers = _scene(rng, frames, size, look_alikes, motion, bend, hidden)
    uv, depth = _choose_points(rng, layers, size, frames, points)
    xy, visible = _tracks(layers, uv, depth, size)
    pictures, masks = _render(layers, frames, size)
    pictures = _film(rng, pictures, illumination, noise)
    video = Video(pictures.mul(255).round().clamp(0, 255).byte(), masks=masks, path=f"synthetic-{seed}")
    return Clip(video, xy.float(), visible, depth)


def _check(frames: int, size: tuple[int, int], amounts: dict[str, float]) -> None:
    if frames < 2 or min(size) < 16:
        raise DinotrackError(
            f"a synthetic clip of {frames} frames of {size[0]}x{size[1]}; it needs 2 or more of at least 16x16"
        )
    if min(amounts.values()) < 0 or amounts["hidden"] > 0.6:
        given = ", ".join(f"{name}={value}" for name, value in amounts.items())
        raise DinotrackError(f"{given}: none may be negative, use 0; and hidden at most 0.6")


def _scene(
    rng: np.random.Generator,
    frames: int,
    size: tuple[int, int],
    look_alikes: bool,
    motion: float,
    bend: float = 1.0,
    hidden: float = 0.31,
) -> list[Layer]:
    """The layers, topmost first. Time runs over [-1/2, 1/2] in 24 frames or more, over a part of it in fewer."""
    span = min(motion * min(1.0, (frames - 1) / 23), 1.2)
    time = torch.linspace(-0.5, 0.5, frames, dtype=torch.float64) * span
    count = int(rng.integers(2, 4))
    hues = rng.uniform() + 0.618 * np.arange(count + 2)  # far from each other: the golden ratio
    occluder = _occluder(rng, time, span, size, hues[0], hidden)
    blobs = [_blob(rng, time, size, hues[2 + index], occluder, index, bend) for index in range(count)]
    if look_alikes:
        blobs[1] = replace(blobs[1], texture=blobs[0].texture)
    return [occluder, *blobs, _background(rng, time, size, hues[1])]


def _advance(time: Float[Tensor, " t"], travel: float = 0.6, rush: float = 0.3) -> Float[Tensor, " t"]:
    """Way of the occluded object past the occluder, in long sides: by `rush` faster than on average at time 0."""
    return travel * ((1 + rush) * time - 4 * rush * time**3)


def _occluder(
    rng: np.random.Generator,
    time: Float[Tensor, " t"],
    span: float,
    size: tuple[int, int],
    hue: float,
    hidden: float,
) -> Layer:
    """A wavy bar across the long side, as wide as the occluded object travels in the share `hidden` of the clip."""
    long, short = max(size), min(size)
    width = 2 * float(_advance(time.new_tensor([hidden / 2 * span]))) * long
    width = max(width, 0.04 * long)
    along = 0.5 + 0.02 * torch.sin(4 * time + rng.uniform(0, 6))
    across = torch.full_like(along, 0.5)
    angle = torch.full_like(along, rng.uniform(-0.08, 0.08) + (0 if size[0] >= size[1] else math.pi / 2))
    motion = Motion(_on_frame(along, across, size), angle, torch.ones_like(time), torch.zeros_like(time))
    wave, phase = rng.uniform(4, 8) / short, rng.uniform(0, 6)

    def outline(uv: Tensor) -> Tensor:
        u, v = uv.unbind(-1)
        return width / 2 - (u - 0.08 * width * torch.sin(wave * v + phase)).abs()

    return Layer(motion, outline, texture(rng, (1.3 * width, 1.3 * short), long, hue, colourful=0.5))


def _blob(
    rng: np.random.Generator,
    time: Float[Tensor, " t"],
    size: tuple[int, int],
    hue: float,
    occluder: Layer,
    index: int,
    bend: float,
) -> Layer:
    """A smooth shape that travels, turns, grows and bends; number 0 passes behind the occluder."""
    radius = min(0.095 * max(size), 0.2 * min(size)) if index == 0 else min(0.145 * max(size), 0.25 * min(size))
    if index == 0:
        sign = rng.choice([-1, 1])
        along = occluder.motion.centre[:, int(size[0] < size[1])] / max(size) + sign * _advance(time)
        across = 0.5 + rng.uniform(-0.1, 0.1) + 0.12 * torch.sin(5 * time + rng.uniform(0, 6))
    else:
        along = (0.25, 0.75)[index - 1] + rng.choice([-1, 1]) * rng.uniform(0.2, 0.35) * time
        across = 0.5 + rng.uniform(-0.2, 0.2) + rng.choice([-1, 1]) * rng.uniform(0.2, 0.35) * torch.sin(3 * time)
    motion = Motion(
        _on_frame(along, across, size),
        rng.uniform(0, 6) + rng.choice([-1, 1]) * rng.uniform(0.4, 0.9) * time,
        torch.exp(0.15 * torch.sin(4 * time + rng.uniform(0, 6))),
        bend * radius * rng.uniform(0.08, 0.16) * torch.sin(6 * time + rng.uniform(0, 6)),
        rng.uniform(1.5, 2.5) / radius,
        rng.uniform(0, 6),
    )
    waves = torch.tensor([(k, rng.uniform(0.1, 0.25) / k, rng.uniform(0, 6)) for k in range(2, 6)], dtype=time.dtype)

    def outline(uv: Tensor) -> Tensor:
        theta = torch.atan2(uv[..., 1], uv[..., 0])[..., None]
        turns, height, phase = waves.unbind(-1)
        return radius * (1 + (height * torch.cos(turns * theta + phase)).sum(-1)) - uv.norm(dim=-1)

    reach = radius * (1 + float(waves[:, 1].sum())) + float(motion.bend.abs().max())
    return Layer(motion, outline, texture(rng, (2 * reach, 2 * reach), max(size), hue), reach)


def _background(rng: np.random.Generator, time: Float[Tensor, " t"], size: tuple[int, int], hue: float) -> Layer:
    """A sheet without end that pans by half a percent of the long side a frame, zooms and turns a little."""
    direction = rng.uniform(0, 2 * math.pi)
    pan = (0.11 * max(size)) * (time + 0.1 * torch.sin(5 * time))
    centre = torch.stack([size[0] / 2 + math.cos(direction) * pan, size[1] / 2 + math.sin(direction) * pan], -1)
    turn, zoom = rng.uniform(-0.06, 0.06), rng.uniform(-0.1, 0.1)
    motion = Motion(centre, turn * time, torch.exp(zoom * time), torch.zeros_like(time))
    extent = (1.15 * size[0] + 0.12 * max(size), 1.15 * size[1] + 0.12 * max(size))
    pattern = texture(rng, extent, max(size), hue, colourful=0.45)
    return Layer(motion, lambda uv: torch.full_like(uv[..., 0], math.inf), pattern)


def _on_frame(along: Float[Tensor, " t"], across: Float[Tensor, " t"], size: tuple[int, int]) -> Float[Tensor, "t 2"]:
    """Raster positions from shares of the long and of the short side."""
    x, y = (along, across) if size[0] >= size[1] else (across, along)
    return torch.stack([x * size[0], y * size[1]], -1)


def _tracks(
    layers: list[Layer], uv: Float[Tensor, "n 2"], depth: Int[Tensor, " n"], size: tuple[int, int]
) -> tuple[Float[Tensor, "n t 2"], Bool[Tensor, "n t"]]:
    """Positions of points of the layers `depth`, and whether nothing hides them."""
    xy = torch.zeros(len(uv), len(layers[0].motion.angle), 2, dtype=uv.dtype)
    for index, layer in enumerate(layers):
        xy[depth == index] = layer.motion.to_frame(uv[depth == index])
    visible = inside(xy.float(), size)
    for index, layer in enumerate(layers):
        visible &= ~(layer.covers(xy) & (index < depth)[:, None])
    return xy, visible


def _choose_points(
    rng: np.random.Generator, layers: list[Layer], size: tuple[int, int], frames: int, points: int, rounds: int = 50
) -> tuple[Float[Tensor, "n 2"], Int[Tensor, " n"]]:
    """Points of layers, in random order: what random positions of random frames show, where visible in 2 frames or more."""
    background = len(layers) - 1
    uv, depth = torch.zeros(0, 2, dtype=torch.float64), torch.zeros(0, dtype=torch.long)
    for _ in range(rounds):
        chosen = torch.cat(
            [
                (depth < background).nonzero()[: points - points // 3, 0],
                (depth == background).nonzero()[: points // 3, 0],
            ]
        )
        if len(chosen) == points:
            order = chosen[torch.from_numpy(rng.permutation(points))]
            return uv[order], depth[order]
        more_uv, more_depth = _candidates(rng, layers, size, frames, 4 * points)
        often = _tracks(layers, more_uv, more_depth, size)[1].sum(1) >= 2
        uv, depth = torch.cat([uv, more_uv[often]]), torch.cat([depth, more_depth[often]])
    raise DinotrackError(f"no room for {points} visible points in {frames} frames of {size}; ask for a larger video")


def _candidates(
    rng: np.random.Generator, layers: list[Layer], size: tuple[int, int], frames: int, count: int, margin: float = 1.0
) -> tuple[Float[Tensor, "n 2"], Int[Tensor, " n"]]:
    """Points of objects and background that `count` random positions show, `margin` pixels inside their outline."""
    found = []
    for frame, number in enumerate(np.bincount(rng.integers(frames, size=count), minlength=frames)):
        depth, uv = look(layers, torch.from_numpy(rng.uniform(size=(int(number), 2)) * size), frame)
        for index in range(1, len(layers)):
            deep = uv[depth == index]
            deep = deep[layers[index].outline(deep) > margin]
            found.append((deep, torch.full((len(deep),), index)))
    order = torch.from_numpy(rng.permutation(sum(len(uv) for uv, _ in found)))
    return torch.cat([uv for uv, _ in found])[order], torch.cat([depth for _, depth in found])[order]


def _render(
    layers: list[Layer], frames: int, size: tuple[int, int]
) -> tuple[Float[Tensor, "t 3 h w"], Bool[Tensor, "t h w"]]:
    """Frames by inverse warping with DENSITY x DENSITY samples a pixel, and what is object at the pixels' centres."""
    width, height = size
    fine = centres(height * DENSITY, width * DENSITY, PIXELS).double() / DENSITY
    coarse = centres(height, width, PIXELS).double()
    pictures, masks = torch.zeros(frames, 3, height, width), torch.zeros(frames, height, width, dtype=torch.bool)
    for frame in range(frames):
        colour = paint(layers, *look(layers, fine, frame)).T
        pictures[frame] = F.avg_pool2d(colour.reshape(1, 3, height * DENSITY, width * DENSITY), DENSITY)[0]
        depth = look(layers, coarse, frame)[0].reshape(height, width)
        masks[frame] = (depth > 0) & (depth < len(layers) - 1)
    return pictures, masks


def _film(
    rng: np.random.Generator, pictures: Float[Tensor, "t 3 h w"], illumination: float, noise: float
) -> Float[Tensor, "t 3 h w"]:
    """The frames under a slowly drifting light, with sensor noise."""
    time = torch.linspace(0, 1, len(pictures))
    gain = 1 + illumination * torch.sin(rng.uniform(2, 6) * time + rng.uniform(0, 6))
    grain = torch.from_numpy(rng.standard_normal(pictures.shape, dtype=np.float32))
    return pictures * gain[:, None, None, None] + noise * grain
