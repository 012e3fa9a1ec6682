"""What is done to a training clip (method §8): one draw of colours and one crop for all its frames; queries of visible points."""

import math
from dataclasses import dataclass, replace

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Float, Int
from torch import Tensor
from torchvision.transforms.v2 import functional as colours

from dinotrack.data.point_clips import PointClip
from dinotrack.errors import DinotrackError
from dinotrack.geometry import inside
from dinotrack.structs import TensorStruct


@dataclass(frozen=True)
class TrainingClip(TensorStruct):
    """A clip as a step sees it; positions are raster, in pixels of `images`."""

    images: Float[Tensor, "t 3 h w"]
    """In [0, 1]."""
    query: Int[Tensor, " n"]
    """Frame of each query; its position is the track's there."""
    xy: Float[Tensor, "n t 2"]
    occluded: Float[Tensor, "n t"]
    """1 where occluded, else 0."""


def augmented_colours(
    images: Float[Tensor, "t 3 h w"], rng: np.random.Generator, *, jitter: float = 0.8, grey: float = 0.2
) -> Float[Tensor, "t 3 h w"]:
    """With probability `jitter` all four changes of `SPANS`, brightness added; with probability `grey` no colour (§8)."""
    shift, saturation, contrast, hue = (rng.uniform(*span) for span in SPANS)
    if rng.uniform() < jitter:
        images = (images + shift).clamp(0, 1)
        images = colours.adjust_contrast(colours.adjust_saturation(images, saturation), contrast)
        images = colours.adjust_hue(images, hue)
    if rng.uniform() < grey:
        images = colours.rgb_to_grayscale(images, num_output_channels=3)
    return images.clamp(0, 1)


SPANS = ((-32 / 255, 32 / 255), (0.6, 1.4), (0.6, 1.4), (-0.2, 0.2))
"""Of brightness, saturation, contrast and hue (§8)."""


def crop_box(
    size: tuple[int, int],
    rng: np.random.Generator,
    *,
    area: tuple[float, float] = (0.3, 1.0),
    aspect: tuple[float, float] = (0.5, 2.0),
    tries: int = 100,
) -> tuple[int, int, int, int]:
    """Left, top, width and height of a random crop of frames of (W, H) `size`: shares of their area, aspects W / H.

    Whole frames where no draw fits.
    """
    for _ in range(tries):
        pixels, shape = rng.uniform(*area) * size[0] * size[1], rng.uniform(*aspect)
        width, height = round(math.sqrt(pixels * shape)), round(math.sqrt(pixels / shape))
        if 0 < width <= size[0] and 0 < height <= size[1]:
            return int(rng.integers(size[0] - width + 1)), int(rng.integers(size[1] - height + 1)), width, height
    return 0, 0, *size


def cropped(clip: PointClip, box: tuple[int, int, int, int], size: tuple[int, int]) -> PointClip:
    """The part of a clip in a box, brought to (W, H) `size`; points outside it are occluded."""
    left, top, width, height = box
    frames = clip.frames[:, :, top : top + height, left : left + width].float()
    if (width, height) != size:
        frames = F.interpolate(frames, (size[1], size[0]), mode="bilinear", align_corners=False, antialias=True)
    scale = clip.xy.new_tensor([size[0] / width, size[1] / height])
    xy = (clip.xy - clip.xy.new_tensor([left, top])) * scale
    frames = frames.round().clamp(0, 255).byte()
    return replace(clip, frames=frames, xy=xy, occluded=clip.occluded | ~inside(xy, size))


def chosen_queries(
    clip: PointClip, count: int, rng: np.random.Generator
) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
    """`count` points that are visible somewhere, each once while there are enough, and the frame in which each is asked for.

    That is the clip's own where the point is visible there, else a random one of those where it is.

    Raises:
        DinotrackError: when no point is visible.
    """
    visible = ~clip.occluded.numpy()
    there = np.flatnonzero(visible.any(1))
    if not len(there):
        raise DinotrackError("a clip without visible points cannot be trained on; take it out of data")
    rounds = [rng.permutation(there) for _ in range(-(-count // len(there)))]
    points = np.concatenate(rounds)[:count]
    own = clip.query.numpy()[points]
    drawn = np.array([rng.choice(np.flatnonzero(visible[point])) for point in points])
    kept = (own >= 0) & visible[points, own.clip(0)]
    return torch.from_numpy(points), torch.from_numpy(np.where(kept, own, drawn))


def training_clip(
    clip: PointClip,
    rng: np.random.Generator,
    *,
    size: tuple[int, int],
    points: int,
    augment: bool = True,
    tries: int = 10,
) -> TrainingClip:
    """A clip at (W, H) `size` with queries, with random crop and colours if `augment`; a crop without a point is drawn again."""
    whole = (0, 0, clip.frames.shape[3], clip.frames.shape[2])
    for _ in range(tries):
        part = cropped(clip, crop_box(whole[2:], rng) if augment else whole, size)
        if not part.occluded.all():
            break
    else:
        part = cropped(clip, whole, size)
    number, query = chosen_queries(part, points, rng)
    images = part.frames.float() / 255
    images = augmented_colours(images, rng) if augment else images
    return TrainingClip(images, query, part.xy[number], part.occluded[number].float())
