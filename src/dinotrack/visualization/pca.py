"""Principal components of a video's features as colours: what is alike has one colour in all frames."""

import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinotrack.correspondences import principal_components
from dinotrack.geometry import at_pixels
from dinotrack.structs import FeatureMap


def component_maps(features: FeatureMap, count: int = 3) -> Float[Tensor, "t k h w"]:
    """The first components of the normalised features of all frames; signs are such that the mean of cubes is not negative."""
    height, width = features.values.shape[2:]
    maps = principal_components(features, count)
    maps = maps - maps.mean((0, 1))
    maps = maps * torch.where((maps**3).mean((0, 1)) < 0, -1.0, 1.0)
    return maps.transpose(1, 2).unflatten(2, (height, width))


def pca_frames(features: FeatureMap, size: tuple[int, int], *, cut: float = 0.01) -> UInt8[Tensor, "t 3 h w"]:
    """Frames of (W, H) `size` whose red, green and blue are the first three components.

    Axes and scales are those of the whole video, so that colours mean the same in all frames; each scale leaves out the share `cut`
    at either end.
    """
    maps = component_maps(features)
    ends = [_ends(component, cut) for component in maps.transpose(0, 1).flatten(1)]
    low, high = (torch.tensor([end[k] for end in ends])[None, :, None, None] for k in (0, 1))
    scaled = ((maps - low) / (high - low).clamp(min=1e-8)).clamp(0, 1)
    return (at_pixels(scaled, features.grid, features.size, size) * 255).round().to(torch.uint8)


def _ends(values: Float[Tensor, " n"], cut: float) -> tuple[float, float]:
    """Quantiles `cut` and 1 - `cut`, by sorting: `torch.quantile` refuses more than 16 million values."""
    ordered, skipped = values.sort().values, int(cut * len(values))
    return float(ordered[skipped]), float(ordered[len(values) - 1 - skipped])
