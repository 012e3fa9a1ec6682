"""The objective (Eq. 5, method §4): each term an object with a weight and a start."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import ClassVar

import torch
from jaxtyping import Float, Int, Shaped
from torch import Tensor

from dinotrack.equations import contrastive_loss, cubed, position_loss, priors, unit
from dinotrack.errors import DinotrackError
from dinotrack.geometry import constant_scale, corners, nearest_cell, normalise
from dinotrack.networks import TrackerHead
from dinotrack.structs import Pairs
from dinotrack.training.batch import Batch, send


@dataclass(frozen=True)
class Step:
    """What the losses of one step see: the batch, its refined features, and the head."""

    batch: Batch
    refined: Float[Tensor, "b c h w"]
    head: TrackerHead

    @cached_property
    def rows(self) -> Float[Tensor, "b cells c"]:
        """Refined features, one token a row; no copy where channels are last in memory."""
        return self.refined.flatten(2).transpose(1, 2).contiguous()

    @cached_property
    def frames(self) -> list[tuple[Float[Tensor, "cells c"], Float[Tensor, " cells"]]]:
        """Rows of each frame and their norms: taken apart once, since the gradient of a part is a whole that is zero elsewhere."""
        norms = self.rows.norm(dim=-1).clamp(min=1e-8)
        return list(zip(self.rows.unbind(0), norms.unbind(0), strict=True))

    def cosines(self, wanted: Float[Tensor, "n c"], target: int) -> Float[Tensor, "n cells"]:
        """Of features of unit length with every token of a frame; the map is divided by the norms, not the features."""
        rows, norms = self.frames[target]
        return wanted @ rows.T / norms

    def tokens(self, frame: Int[Tensor, " n"], cell: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """Features of tokens, at unit length."""
        return unit(self.gather(frame * self.rows.shape[1] + cell))

    def gather(self, row: Int[Tensor, " n"]) -> Float[Tensor, "n c"]:
        """Refined features of tokens that are numbered over all frames of the batch."""
        return self.rows.flatten(0, 1).index_select(0, self.send(row))

    def locate(self, pairs: Pairs) -> Float[Tensor, "n 2"]:
        """Π(x^i, j): where the head finds each pair's source in its target frame, at working resolution."""
        grid, scale = self.batch.grid, constant_scale(self.batch.size) if self.batch.scale_constants else 1.0
        height, width = self.refined.shape[2:]
        order = pairs.target.argsort(stable=True)
        counts = torch.bincount(pairs.target, minlength=len(self.refined)).tolist()
        cells, weights = corners(pairs.source_xy[order], grid, height, width)
        rows = self.gather((cells + pairs.source[order][:, None] * (height * width)).flatten())
        wanted = unit(torch.einsum("nk,nkc->nc", self.send(weights), rows.view(*cells.shape, self.refined.shape[1])))
        maps = torch.cat([self.cosines(part, j) for j, part in enumerate(wanted.split(counts))])
        found = self.head(maps.view(-1, height, width), grid, scale)
        return found.index_select(0, self.send(order.argsort()))

    def normalised(self, xy: Float[Tensor, "n 2"]) -> Float[Tensor, "n 2"]:
        """Positions in the losses' units, on the training device."""
        return normalise(self.send(xy), self.batch.size)

    def send(self, values: Shaped[Tensor, "..."]) -> Shaped[Tensor, "..."]:
        """What pairs say, on the training device."""
        return send(values, self.refined.device)


def first_step(start: int | float, steps: int) -> int:
    """The 0-based step that `start` names in a run of `steps` steps: a step (int), or a share of the run (float)."""
    return round(start * steps) if isinstance(start, float) else start


@dataclass
class LossTerm:
    """A term of Eq. 5. It counts from `start` on: a step (int), or a share of the run (float, 0.5 is half-way)."""

    weight: float
    start: int | float = 0

    reads: ClassVar[str] = ""
    """The table of `Store` that a callback must fill for the term, if any."""

    def __post_init__(self) -> None:
        if isinstance(self.start, str) or self.start < 0:
            raise DinotrackError(f"start={self.start}: expected a step (a whole number) or a share of the run (0.5)")

    def begins(self, steps: int) -> int:
        """The 0-based step at which the term starts in a run of `steps` steps."""
        return first_step(self.start, steps)

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        """The unweighted term; zero where there is nothing to compare."""
        raise TypeError(f"{type(self).__name__} defines no loss")


def nothing(step: Step) -> Float[Tensor, ""]:
    """Zero, with a gradient of zeros, so that a step with nothing to learn from is still a step."""
    return 0 * step.refined.sum()


@dataclass
class FlowLoss(LossTerm):
    """L_flow: Huber loss of Π(x^i, j) against the tracklet's position, mean over pairs and coordinates (§4)."""

    weight: float = 1.0
    delta: float = 1 / 32

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        pairs = step.batch.flow
        if not len(pairs):
            return nothing(step)
        found = step.normalised(step.locate(pairs))
        return position_loss(found, step.normalised(pairs.target_xy), delta=self.delta).mean()


def both_ways(step: Step, pairs: Pairs, temperature: float) -> tuple[Float[Tensor, " n"], Float[Tensor, " n"]]:
    """½(l_ij + l_ji) of best buddies, gradients reaching both frames (§4), and their cosines in Φ, without gradient."""
    groups = by_frames(pairs)
    order, counts = torch.cat([rows for _, rows in groups]), [len(rows) for _, rows in groups]
    (source, here), (target, there) = (
        ends(step, frame[order], xy[order], counts)
        for frame, xy in ((pairs.source, pairs.source_xy), (pairs.target, pairs.target_xy))
    )
    losses, cosines = [], []
    for n, ((i, j), _) in enumerate(groups):
        similar = step.cosines(here[n], j)
        forth = contrastive_loss(similar, target[n], temperature=temperature)
        back = contrastive_loss(step.cosines(there[n], i), source[n], temperature=temperature)
        losses.append((forth + back) / 2)
        cosines.append(similar.detach().gather(1, target[n][:, None]).squeeze(1))
    back_in_place = step.send(order.argsort())
    return torch.cat(losses)[back_in_place], torch.cat(cosines)[back_in_place]


def ends(
    step: Step, frame: Int[Tensor, " n"], xy: Float[Tensor, "n 2"], counts: list[int]
) -> tuple[Sequence[Int[Tensor, " k"]], Sequence[Float[Tensor, "k c"]]]:
    """Tokens at one end of pairs that are sorted by groups of these sizes, and their features at unit length."""
    cell = nearest_cell(xy, step.batch.grid, *step.refined.shape[2:])
    return step.send(cell).split(counts), step.tokens(frame, cell).split(counts)


def by_frames(pairs: Pairs) -> list[tuple[tuple[int, int], Int[Tensor, " k"]]]:
    """Rows of the pairs between each two frames."""
    frames, number = torch.stack([pairs.source, pairs.target], 1).unique(dim=0, return_inverse=True)
    return [((int(i), int(j)), (number == k).nonzero().squeeze(1)) for k, (i, j) in enumerate(frames.tolist())]


@dataclass
class BestBuddyLoss(LossTerm):
    """L_dino-bb: weighted contrastive loss of DINO best buddies, its sum over `divisor` (§4, [C]; [P] divides by their number)."""

    weight: float = 25e-5
    divisor: float | None = 700.0
    """None divides by the number of pairs [P]."""
    temperature: float = 0.1

    def pairs(self, step: Step) -> Pairs:
        return step.batch.best_buddies

    def trust(self, pairs: Pairs, cosines: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        """w of each pair; `cosines` are those in the refined features of this step."""
        return pairs.weight

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        pairs = self.pairs(step)
        if not len(pairs):
            return nothing(step)
        losses, cosines = both_ways(step, pairs, self.temperature)
        return (step.send(self.trust(pairs, cosines)) * losses).sum() / (self.divisor or len(pairs))


@dataclass
class RefinedBestBuddyLoss(BestBuddyLoss):
    """L_rfn-bb: the same loss on best buddies of refined features, found during the fit, by w = 2·s³ in the current Φ (§3, §4)."""

    reads: ClassVar[str] = "refined"
    weight: float = 5e-5
    start: int | float = 0.5
    divisor: float | None = 900.0

    def trust(self, pairs: Pairs, cosines: Float[Tensor, " n"]) -> Float[Tensor, " n"]:
        return cubed(cosines)

    def pairs(self, step: Step) -> Pairs:
        return step.batch.refined


@dataclass
class CycleLoss(LossTerm):
    """L_rfn-cc: cycle-consistent pairs found during the fit, half the Huber loss of either direction (§4)."""

    reads: ClassVar[str] = "cycle"
    weight: float = 0.5
    start: int | float = 0.5
    delta: float = 1 / 32

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        pairs = step.batch.cycle
        if not len(pairs):
            return nothing(step)
        losses = [
            position_loss(step.normalised(step.locate(way)), step.normalised(way.target_xy), delta=self.delta)
            for way in (pairs, pairs.flip())
        ]
        return (step.send(pairs.weight)[:, None] * (losses[0] + losses[1]) / 2).mean()


@dataclass
class PriorLoss(LossTerm):
    """L_prior: norms and angles of refined features stay near the raw ones, mean over tokens and frames (§4)."""

    weight: float = 1e-4

    def __call__(self, step: Step) -> Float[Tensor, ""]:
        raw = step.batch.features.flatten(2).transpose(1, 2)
        halves = [priors(rows, before) for (rows, _), before in zip(step.frames, raw, strict=True)]
        return torch.stack([(norm + angle).mean() for norm, angle in halves]).mean()


@dataclass
class LossTerms:
    """Eq. 5: L = Σ λ·L over the terms that have started."""

    terms: dict[str, LossTerm] = field(default_factory=lambda: dict[str, LossTerm]())

    def active(self, number: int, steps: int) -> dict[str, LossTerm]:
        """The weighted terms that have started by 0-based step `number` of `steps`."""
        return {k: v for k, v in self.terms.items() if v.weight and number >= v.begins(steps)}

    @property
    def reads(self) -> set[str]:
        """The tables that weighted terms read, now or later."""
        return {term.reads for term in self.terms.values() if term.weight and term.reads}

    def __call__(self, step: Step, number: int, steps: int) -> tuple[Float[Tensor, ""], dict[str, Tensor]]:
        """The weighted sum at 0-based step `number` of `steps`, and each active term unweighted."""
        active = self.active(number, steps)
        values = {name: term(step) for name, term in active.items()}
        weighted: Sequence[Tensor] = [active[name].weight * value for name, value in values.items()] or [nothing(step)]
        return torch.stack(list(weighted)).sum(), values
