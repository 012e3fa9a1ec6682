"""What Chrono reads off its cost volumes (method §8): positions by the tracker head, visibility by three statistics."""

import math

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from dinotrack.networks import TrackerHead


class VisibilityHead(nn.Module):
    """Two logits, occluded and far off, of the mean, the maximum and the minimum of a query's cosines in a frame (§8).

    Untrained it finds every point visible. No gradient leads back to the cosines.
    """

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.bias = nn.Parameter(torch.zeros(2, 3)), nn.Parameter(torch.full((2,), -1.0))

    def forward(self, cosines: Float[Tensor, "n h w"]) -> Float[Tensor, "n 2"]:
        flat = cosines.detach().flatten(1).float()
        return F.linear(torch.stack([flat.mean(1), flat.amax(1), flat.amin(1)], 1), self.weight, self.bias)


def visible_share(logits: Float[Tensor, "*n 2"]) -> Float[Tensor, "*n"]:
    """(1 - σ(occluded))(1 - σ(far off)) of §8; a point is visible where this is at least 0.5."""
    return torch.sigmoid(-logits).prod(-1)


def chrono_head(stride: float, sharpness: float = 20.0, within: int = 5) -> TrackerHead:
    """The head that takes a soft-argmax of `sharpness` times the cosines, strictly `within` so many tokens of their peak (§8).

    Squared distances between tokens are whole numbers: to be nearer than n is to be no farther than the root of n² - 1/2.
    """
    head = TrackerHead(math.sqrt(within**2 - 0.5) * stride, refine=False, sharpness=sharpness)
    return head.requires_grad_(False)
