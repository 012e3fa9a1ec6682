"""Pairs that refined features find during a fit (method §3): refined best buddies and cycle-consistent pairs."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Bool, Float, Int
from torch import Tensor

from dinotrack.equations import best_buddies, cubed, cycle_weight, similarity
from dinotrack.errors import DinotrackError
from dinotrack.geometry import cell_centres, centres, constant_scale, look_up, sample
from dinotrack.networks import TrackerHead
from dinotrack.progress import Progress, silent
from dinotrack.structs import PIXELS, FeatureMap, Grid, Pairs

FramePairs = Sequence[tuple[int, int]]
"""Ordered pairs of different frames."""


@dataclass(frozen=True)
class PairSearch:
    """How many points of a frame pair are looked at (§5), and which of them count (§3)."""

    points_foreground: int = 179
    points_background: int = 77
    """Best buddies kept, or candidates for cycles, of each ordered frame pair: 70 % of 256 on the source frame's foreground."""
    gamma: float = 4.0
    """Largest cycle error γ, in pixels at a long side of 854 (§0)."""
    base: float = 0.8
    """Of w = 0.8^e."""

    def __post_init__(self) -> None:
        if min(self.points_foreground, self.points_background) < 0 or not self.gamma > 0:
            raise DinotrackError(
                f"points_foreground={self.points_foreground}, points_background={self.points_background}, "
                f"gamma={self.gamma}: expected counts of at least 0 and a positive gamma"
            )

    def share(self, foreground: Bool[Tensor, " n"], generator: torch.Generator) -> Int[Tensor, " k"]:
        """Random rows, at most so many of the foreground and so many of the background; no topping up (§5)."""
        kinds = ((foreground, self.points_foreground), (~foreground, self.points_background))
        rows = [(kind.nonzero().squeeze(1), most) for kind, most in kinds]
        return torch.cat([row[pick(len(row), most, generator).to(row.device)] for row, most in rows])


def pick(count: int, most: int, generator: torch.Generator) -> Int[Tensor, " k"]:
    """At most `most` random numbers below `count`: different ones, except of so many that a repetition is rare."""
    if count > 100 * most:
        return torch.randint(count, (most,), generator=generator)
    return torch.randperm(count, generator=generator)[:most]


@torch.no_grad()
def refined_best_buddies(
    features: FeatureMap,
    masks: Bool[Tensor, "t h w"],
    frame_pairs: FramePairs,
    search: PairSearch,
    generator: torch.Generator,
    *,
    both: bool = False,
    progress: Progress = silent,
) -> Pairs:
    """Mutual nearest neighbours in refined features Φ, w = 2·s³ (§3): no flow filter, no ambiguity term.

    From each frame to its partner in `frame_pairs`, and with `both` back; at most `search`'s share of either class, each way.
    The search is on the masks' device, to which features that lie elsewhere come frame by frame.
    """
    device, (height, width) = masks.device, features.values.shape[2:]
    tokens = centres(height, width, features.grid, device)
    found: list[Pairs] = []
    for i, j in progress(frame_pairs, "refined best buddies"):
        here, there = (features.values[t].to(device).flatten(1).T.float() for t in (i, j))
        cosines = similarity(here, there)
        source, target = best_buddies(cosines)
        frames = (torch.full_like(source, i), torch.full_like(target, j))
        buddies = Pairs(*frames, tokens[source], tokens[target], cubed(cosines[source, target]))
        for way in (buddies, buddies.flip())[: 1 + both]:
            found.append(way[search.share(look_up(masks, way.source, way.source_xy, features.size), generator)])
    return Pairs.cat(found, device)


@torch.no_grad()
def cycle_pairs(
    features: FeatureMap,
    head: TrackerHead,
    masks: Bool[Tensor, "t h w"],
    frame_pairs: FramePairs,
    search: PairSearch,
    generator: torch.Generator,
    *,
    both: bool = False,
    scale: bool = True,
    progress: Progress = silent,
) -> Pairs:
    """Random pixels x^i with x^j = Π(x^i, j), where Π(x^j, i) comes back to within γ; w = 0.8^e (§3).

    From each frame to its partner in `frame_pairs`, and with `both` back; `search`'s shares count candidates, before the limit.
    The masks are of the working size and lie on the device of the search. `scale` takes γ and R as pixels at a long side of 854.
    """
    factor, found = constant_scale(features.size) if scale else 1.0, [Pairs.empty(masks.device)]
    ways = [way for i, j in frame_pairs for way in ((i, j), (j, i))[: 1 + both]]
    for i, j in progress(ways, "cycle-consistent pairs"):
        here, there = (features.values[t].to(masks.device) for t in (i, j))
        start = random_pixels(masks[i], search, generator)
        reached = follow_features(here, there, features.grid, head, start, factor)
        error = (follow_features(there, here, features.grid, head, reached, factor) - start).norm(dim=1) / factor
        kept = error <= search.gamma
        source, target = (torch.full_like(kept, k, dtype=torch.long)[kept] for k in (i, j))
        found.append(Pairs(source, target, start[kept], reached[kept], cycle_weight(error[kept], base=search.base)))
    return Pairs.cat(found)


def follow_features(
    source: Float[Tensor, "c h w"],
    target: Float[Tensor, "c h w"],
    grid: Grid,
    head: TrackerHead,
    xy: Float[Tensor, "n 2"],
    scale: float,
) -> Float[Tensor, "n 2"]:
    """Π(x^i, j): where the head finds in the target's features what lies at `xy` in the source's, at working resolution."""
    wanted = sample(source[None], torch.zeros(len(xy), dtype=torch.long, device=xy.device), xy, grid)
    return head.find(wanted, target, grid, scale)


def random_pixels(mask: Bool[Tensor, "h w"], search: PairSearch, generator: torch.Generator) -> Float[Tensor, "n 2"]:
    """Centres of random pixels of a frame, `search`'s share of either class of its mask."""
    return cell_centres(search.share(mask.flatten(), generator), mask.shape[1], PIXELS)
