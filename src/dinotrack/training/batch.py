"""A minibatch of at most 8 frames and how it is drawn (method §5)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dinotrack.growing import placed
from dinotrack.memory import Budget
from dinotrack.structs import FeatureMap, Grid, Pairs, PairTable, TensorStruct, Tracklets

NO_FRAMES = torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Batch(TensorStruct):
    """Frames with what supervises them; `source` and `target` of the pairs number the batch's frames, not the video's."""

    frames: Int[Tensor, " b"]
    images: UInt8[Tensor, "b 3 h w"]
    features: Float[Tensor, "b c h2 w2"]
    """Raw features Φ_DINO; `Store` gives them with channels last in memory, as Delta-DINO's are."""
    flow: Pairs
    best_buddies: Pairs
    refined: Pairs
    cycle: Pairs
    frame_pairs: Int[Tensor, "p 2"]
    """The frames between which pairs of tokens were drawn, as numbers of the batch's frames."""
    masks: Bool[Tensor, "b h w"]
    """Foreground of the frames."""
    grid: Grid
    size: tuple[int, int]
    """(W, H) of the working frames."""
    scale_constants: bool = True


@dataclass(frozen=True)
class BatchSettings:
    """How a minibatch is drawn (§5)."""

    frames_per_set: int = 4
    """One random set for foreground tracklets and one for background, united: at most 8 frames."""
    flow_pairs: int = 512
    frame_pairs: int = 4
    pairs_foreground: int = 179
    pairs_background: int = 77
    """Best buddies per frame pair: 70 % of 256 on the foreground."""
    draws: int = 20
    """At most so many sets of frames are tried until two tracklets are eligible."""
    every: int = 1
    """Only every so many-th frame trains ([P] Table 4)."""


@dataclass(frozen=True)
class Store(TensorStruct):
    """What minibatches are drawn from, on the training device. Sampling is arithmetic on intervals and gathers.

    Features alone may lie elsewhere, in the host's memory or on disk: then a minibatch's frames travel.
    """

    images: UInt8[Tensor, "t 3 h w"]
    features: FeatureMap
    tracklets: Tracklets
    on_foreground: Bool[Tensor, " n"]
    """Whether each tracklet starts on the foreground."""
    best_buddies: PairTable
    refined: PairTable
    cycle: PairTable
    masks: Bool[Tensor, "t h w"]
    """Foreground, at working resolution."""
    scale_constants: bool = True

    def on(self, device: torch.device | str, budget: Budget = Budget()) -> "Store":
        """All of it on `device`, but for features that the budget has no room for there."""
        features = placed(self.features, device, budget)
        bare = replace(self, features=replace(features, values=features.values[:0]))
        return replace(bare.to(device), features=features)

    def draw(self, settings: BatchSettings, generator: torch.Generator) -> Batch:
        """A minibatch by random numbers from `generator` (a CPU one)."""
        late = self.late_pair(settings.every, generator)
        foreground, on_foreground = self.frames_with_tracklets(True, settings, generator, late[:1])
        background, on_background = self.frames_with_tracklets(False, settings, generator, late[1:])
        frames = torch.cat([foreground, background]).unique()
        half = settings.flow_pairs // 2
        of_flow = [
            self.flow_pairs(foreground, on_foreground, half if len(on_background) else 2 * half, generator),
            self.flow_pairs(background, on_background, half if len(on_foreground) else 2 * half, generator),
        ]
        between = draw_frame_pairs(frames, settings.frame_pairs, generator)
        device = self.images.device
        tables = (self.best_buddies, self.refined, self.cycle)
        pairs = [
            Pairs.cat(of_flow, device),
            *(draw_pairs(table, within(between, frames, table, generator), settings, generator) for table in tables),
        ]
        index = frames.to(device)
        flow, best_buddies, refined, cycle = (renumber(part, index) for part in pairs)
        return Batch(
            frames=index,
            images=self.images[index],
            features=self.features_of(frames).to(device).contiguous(memory_format=torch.channels_last),
            flow=flow,
            best_buddies=best_buddies,
            refined=refined,
            cycle=cycle,
            frame_pairs=torch.searchsorted(frames, torch.tensor(between, dtype=torch.long).view(-1, 2)),
            masks=self.masks[index],
            grid=self.features.grid,
            size=self.features.size,
            scale_constants=self.scale_constants,
        )

    def features_of(self, frames: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Raw features of these frames, where those of all frames lie."""
        values = self.features.values
        return values[frames.to(values.device)]

    def frames_with_tracklets(
        self,
        foreground: bool,
        settings: BatchSettings,
        generator: torch.Generator,
        given: Int[Tensor, " g"] = NO_FRAMES,
    ) -> tuple[Int[Tensor, " f"], Int[Tensor, " k"]]:
        """A random set of frames with those `given`, sorted, and the tracklets of the class on which at least two of them lie."""
        available = torch.arange(0, len(self.images), settings.every)
        kind = self.on_foreground == foreground
        chosen, eligible = available[:0], torch.zeros(0, dtype=torch.long)
        for _ in range(settings.draws):
            shuffled = available[torch.randperm(len(available), generator=generator)]
            chosen = torch.cat([given, shuffled[~torch.isin(shuffled, given)]])[: settings.frames_per_set].sort().values
            first, last = self.frames_on(chosen)
            eligible = torch.nonzero(kind & (last - first >= 2)).squeeze(1)
            if len(eligible) >= 2:
                break
        return chosen, eligible

    def late_pair(self, every: int, generator: torch.Generator) -> Int[Tensor, " k"]:
        """Two training frames between which refined pairs were searched last, drawn at random; none before the first search.

        One goes into either set of frames. Searched frame pairs are random ones, so these sets are as random as any; but without
        this most minibatches of a long video would hold no such pair, and the late losses would have nothing to learn from.
        """
        searched = self.refined.choices | self.cycle.choices
        known = searched[::every, ::every].nonzero() * every
        if not len(known):
            return NO_FRAMES
        return known[int(torch.randint(len(known), (), generator=generator))]

    def frames_on(self, chosen: Int[Tensor, " f"]) -> tuple[Int[Tensor, " n"], Int[Tensor, " n"]]:
        """Of each tracklet, the numbers in sorted `chosen` of the first frame on it and of the first one past it."""
        position = torch.searchsorted(chosen, torch.arange(len(self.images) + 1)).to(self.images.device)
        start = self.tracklets.start.long()
        return position[start], position[start + self.tracklets.length.long()]

    def flow_pairs(
        self, chosen: Int[Tensor, " f"], eligible: Int[Tensor, " k"], count: int, generator: torch.Generator
    ) -> Pairs:
        """Pairs of positions on random eligible tracklets: two different chosen frames, in a random direction.

        Where the drift check dropped single positions [P], pairs that have one are left out.
        """
        if not len(eligible):
            return Pairs.empty(self.images.device)
        u = torch.rand(3, count, generator=generator).to(self.images.device)
        index = eligible[(u[0] * len(eligible)).long().clamp(max=len(eligible) - 1)]
        first, last = (edge[index] for edge in self.frames_on(chosen))
        number = last - first
        a = torch.minimum((u[1] * number).long(), number - 1)
        b = torch.minimum((u[2] * (number - 1)).long(), number - 2)
        b = b + (b >= a)
        on_device = chosen.to(index.device)
        source, target = on_device[first + a], on_device[first + b]
        xy = (self.tracklets.at(index, source), self.tracklets.at(index, target))
        kept = self.tracklets.supervises(index, source) & self.tracklets.supervises(index, target)
        return Pairs(source, target, *xy, torch.ones(count, device=index.device))[kept]


def draw_frame_pairs(frames: Int[Tensor, " b"], count: int, generator: torch.Generator) -> list[tuple[int, int]]:
    """`count` ordered pairs of different frames, drawn with replacement."""
    if len(frames) < 2:
        return []
    pairs = (frames[torch.randperm(len(frames), generator=generator)[:2]].tolist() for _ in range(count))
    return [(int(i), int(j)) for i, j in pairs]


def within(
    frame_pairs: list[tuple[int, int]], frames: Int[Tensor, " b"], table: PairTable, generator: torch.Generator
) -> list[tuple[int, int]]:
    """The drawn frame pairs if the table knows them all, else as many drawn anew among those that it knows, if any."""
    if all(table.choices[i, j] for i, j in frame_pairs):
        return frame_pairs
    known = frames[table.choices[frames[:, None], frames].nonzero()]
    if not len(known):
        return []
    return [(int(i), int(j)) for i, j in known[torch.randint(len(known), (len(frame_pairs),), generator=generator)]]


def draw_pairs(
    table: PairTable, frame_pairs: list[tuple[int, int]], settings: BatchSettings, generator: torch.Generator
) -> Pairs:
    """Random pairs from each frame to its partner, foreground and background apart, no topping up (§5)."""
    parts = []
    for source, target in frame_pairs:
        for foreground, most in ((True, settings.pairs_foreground), (False, settings.pairs_background)):
            rows = table.between(source, target, foreground)
            picked = rows.start + torch.randperm(rows.stop - rows.start, generator=generator)[:most]
            parts.append(table.pairs[picked.to(table.source.device)])
    return Pairs.cat(parts, table.source.device)


def renumber(pairs: Pairs, frames: Int[Tensor, " b"]) -> Pairs:
    """The pairs with frames numbered as in sorted `frames`."""
    source, target = (torch.searchsorted(frames, side.to(frames.dtype)) for side in (pairs.source, pairs.target))
    return Pairs(source, target, pairs.source_xy, pairs.target_xy, pairs.weight)
