"""A minibatch of at most 8 frames and how it is drawn (method §5)."""

from dataclasses import dataclass, replace

import torch
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor

from dinotrack.growing import placed
from dinotrack.memory import Budget
from dinotrack.structs import FeatureMap, Grid, Pairs, PairTable
from dinotrack.tensor_struct import TensorStruct
from dinotrack.training.tracklet_table import TrackletTable

NO_FRAMES = torch.zeros(0, dtype=torch.long)


@dataclass(frozen=True)
class Batch(TensorStruct):
    """Frames with what supervises them; `source` and `target` of the pairs number the batch's frames, not the video's.

    Images, features and masks are on the training device. Pairs stay on the CPU, where they are drawn and grouped, so that a step
    never waits for the device to say how many there are; `send` takes there what the losses compare.
    """

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


def send(values: Shaped[Tensor, "..."], device: torch.device) -> Shaped[Tensor, "..."]:
    """The tensor on `device`; on its way to a GPU from memory that nobody has to wait for."""
    on_the_way = values.pin_memory() if device.type == "cuda" and not values.is_cuda else values
    return on_the_way.to(device, non_blocking=True)


@dataclass(frozen=True)
class Store(TensorStruct):
    """What minibatches are drawn from: images, features and masks on the training device, what is sampled on the CPU.

    Drawing is arithmetic on a few numbers and gathers. Features may lie elsewhere too, in the host's memory or on disk: then a
    minibatch's frames travel.
    """

    images: UInt8[Tensor, "t 3 h w"]
    features: FeatureMap
    flow: TrackletTable
    best_buddies: PairTable
    refined: PairTable
    cycle: PairTable
    masks: Bool[Tensor, "t h w"]
    """Foreground, at working resolution."""
    scale_constants: bool = True

    def on(self, device: torch.device | str, budget: Budget = Budget()) -> "Store":
        """Images and masks on `device`, and the features if the budget has room for them there; the tables stay on the CPU."""
        features = placed(self.features, device, budget)
        return replace(self, images=self.images.to(device), masks=self.masks.to(device), features=features)

    def to(self, device: torch.device | str) -> "Store":
        """Images, features and masks on `device`; the tables stay on the CPU."""
        moved = {name: getattr(self, name).to(device) for name in ("images", "features", "masks")}
        return replace(self, **moved)

    def draw(self, settings: BatchSettings, generator: torch.Generator) -> Batch:
        """A minibatch by random numbers from `generator` (a CPU one)."""
        late = self.late_pair(settings.every, generator)
        foreground, on_foreground = self.frames_with_tracklets(True, settings, generator, late[:1])
        background, on_background = self.frames_with_tracklets(False, settings, generator, late[1:])
        frames = torch.cat([foreground, background]).unique()
        half = settings.flow_pairs // 2
        of_flow = [
            self.flow.draw(foreground, True, half if on_background else 2 * half, generator),
            self.flow.draw(background, False, half if on_foreground else 2 * half, generator),
        ]
        between = draw_frame_pairs(frames, settings.frame_pairs, generator)
        tables = (self.best_buddies, self.refined, self.cycle)
        pairs = [
            Pairs.cat(of_flow),
            *(draw_pairs(table, within(between, frames, table, generator), settings, generator) for table in tables),
        ]
        flow, best_buddies, refined, cycle = (renumber(part, frames) for part in pairs)
        index = send(frames, self.images.device)
        return Batch(
            frames=index,
            images=self.images[index],
            features=self.features_of(frames, index).contiguous(memory_format=torch.channels_last),
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

    def features_of(self, frames: Int[Tensor, " b"], index: Int[Tensor, " b"]) -> Float[Tensor, "b c h w"]:
        """Raw features of these frames on the device of their numbers `index`."""
        values = self.features.values
        return values[index] if values.device == index.device else send(values[frames], index.device)

    def frames_with_tracklets(
        self,
        foreground: bool,
        settings: BatchSettings,
        generator: torch.Generator,
        given: Int[Tensor, " g"] = NO_FRAMES,
    ) -> tuple[Int[Tensor, " f"], int]:
        """A random set of frames with those `given`, sorted, and how many tracklets of the class are eligible for it."""
        available = torch.arange(0, len(self.images), settings.every)
        chosen, eligible = available[:0], 0
        for _ in range(settings.draws):
            shuffled = available[torch.randperm(len(available), generator=generator)]
            chosen = torch.cat([given, shuffled[~torch.isin(shuffled, given)]])[: settings.frames_per_set].sort().values
            eligible = self.flow.eligible(chosen, foreground)
            if eligible >= 2:
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
            parts.append(table.pairs[picked])
    return Pairs.cat(parts)


def renumber(pairs: Pairs, frames: Int[Tensor, " b"]) -> Pairs:
    """The pairs with frames numbered as in sorted `frames`."""
    source, target = (torch.searchsorted(frames, side.to(frames.dtype)) for side in (pairs.source, pairs.target))
    return Pairs(source, target, pairs.source_xy, pairs.target_xy, pairs.weight)
