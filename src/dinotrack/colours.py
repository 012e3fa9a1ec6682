"""Soft colour histograms around each pixel, which dense SIFT lacks: it sees grey gradients only."""

import torch
import torch.nn.functional as F
from jaxtyping import Float
from kornia.filters import gaussian_blur2d
from torch import Tensor

OPPONENT = ((0.299, 0.587, 0.114), (0.5, -0.5, 0.0), (0.25, 0.25, -0.5))
"""Luma (ITU-R BT.601), red against green, and yellow against blue."""
RANGES = ((0.0, 1.0), (-0.25, 0.25), (-0.25, 0.25))
BINS = 6
CHANNELS = BINS * len(OPPONENT)


def colour_histograms(images: Float[Tensor, "b 3 h w"], sigma: float) -> Float[Tensor, "b c h w"]:
    """Unit-norm histograms of luma and two opponent colours of images in [0, 1], over a Gaussian of `sigma` pixels.

    Each value falls softly into `BINS` bins over its range, by a Gaussian of one bin's width.
    """
    opponent = torch.einsum("kc,bchw->bkhw", images.new_tensor(OPPONENT), images)
    memberships = []
    for values, (low, high) in zip(opponent.unbind(1), RANGES, strict=True):
        middles = torch.linspace(low, high, BINS, device=images.device)
        width = (high - low) / (BINS - 1)
        memberships.append(torch.exp(-(((values[:, None] - middles[:, None, None]) / width) ** 2) / 2))
    size = 2 * round(3 * sigma) + 1
    return F.normalize(gaussian_blur2d(torch.cat(memberships, 1), (size, size), (sigma, sigma), "replicate"), dim=1)
