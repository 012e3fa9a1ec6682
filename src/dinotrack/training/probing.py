"""Short measurements from which a run is planned: what one frame, pair or step costs with these networks on this machine."""

import time
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import permutations
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dinotrack.equations import ambiguity, best_buddies, similarity
from dinotrack.errors import DinotrackError
from dinotrack.geometry import centres, resize_frames
from dinotrack.memory import Budget, Watch, give_back_freed, held
from dinotrack.spilling import kept_on_disk
from dinotrack.structs import FeatureMap, Grid, Pairs
from dinotrack.training.batch import Batch, BatchSettings
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.losses import Step
from dinotrack.training.modules import DinoTrackerModule

COUNTS = 2, 4
"""Frames of the training steps that are measured."""
CYCLE = 0.4
"""Share of the points searched that come back to where they began: 0.1 to 0.3 in fits of a real and a synthetic clip."""


@dataclass(frozen=True)
class Cost:
    """Seconds, and bytes held at the same time beyond those before: by the process, of a GPU's memory, and in unnamed files."""

    seconds: float
    bytes: float
    device: float = 0.0
    disk: float = 0.0


def cost_of(job: Callable[[], Any], *, short: float = 1.0) -> Cost:
    """What a job costs; a `short` one, in seconds, is done twice, since the first time is slower."""
    give_back_freed()
    before, begin, gpu = held(), time.perf_counter(), torch.cuda.is_available()
    allocated = torch.cuda.memory_allocated() if gpu else 0
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    with Watch.running() as watch:
        job()
        if gpu:
            torch.cuda.synchronize()
        seconds = time.perf_counter() - begin
    device = torch.cuda.max_memory_allocated() - allocated if gpu else 0.0
    first = Cost(seconds, max(0, watch.peak - before), device)
    if seconds > short:
        return first
    again = cost_of(job, short=0)
    return Cost(min(seconds, again.seconds), max(first.bytes, again.bytes), max(first.device, again.device))


@dataclass(frozen=True)
class Probe:
    """What was measured."""

    tokens: tuple[int, int]
    """Rows and columns of a feature map."""
    channels: int
    feature_frame: Cost
    """The backbone on one frame."""
    flow_pair: Cost
    """Optical flow from one frame to the next."""
    frame_pair: Cost
    """Best buddies and their ambiguity between two frames."""
    refine_frame: Cost
    """Delta-DINO on one frame, without gradient."""
    step: tuple[Cost, Cost]
    """A training step with all losses, of as many frames as `COUNTS` says."""
    short_step: tuple[Cost, Cost]
    """The same where what the backward pass needs lies on disk; on a GPU no other."""
    locate: Cost
    """64 queries found in one frame."""


@torch.no_grad()
def probe(data: VideoDataModule, module: DinoTrackerModule, *, queries: int = 64) -> Probe:
    """Measure each part once, on the video's first frames at working resolution and features of random numbers.

    On a CPU at the published size this takes a minute or two, most of it the ViT's frame and the training steps.
    """
    device = torch.device(data.device)
    frames = resize_frames(data.video.frames[:2], data.working_size).to(device)
    backbone, flow = data.backbone.to(device), data.flow.to(device)
    maps: list[Tensor] = []
    feature_frame = cost_of(lambda: maps.append(backbone(frames[:1].float() / 255)))
    _, channels, height, width = maps.pop().shape
    rng = torch.Generator().manual_seed(0)
    raw = torch.randn(max(COUNTS), channels, height, width, generator=rng).half().to(device)
    features = FeatureMap(raw, backbone.grid.stride, backbone.grid.offset, data.working_size)
    module = module.to(device)
    images = frames[:1].expand(max(COUNTS), -1, -1, -1).contiguous()
    numbers = torch.arange(max(COUNTS), device=device)
    wanted = torch.randn(queries, channels, generator=rng).to(device)
    module.eval()
    module.delta.prepare(images)
    refine = cost_of(lambda: module.delta.refine(raw[:1], images[:1], numbers[:1], features.grid))
    locate = cost_of(lambda: module.head.find(wanted, raw[0], features.grid))
    # The smaller ones first: what large ones leave in the heap would count as theirs.
    batches = [full_batch(features, images, count, data.batch) for count in COUNTS]
    short = [on_disk(module, batch, data.budget) for batch in batches]
    fits = all(each is None or each.bytes + each.disk <= data.budget.room() for each in short)
    whole = [
        train_step(module, batch) if fits or each is None else Cost(each.seconds, each.bytes + each.disk)
        for batch, each in zip(batches, short, strict=True)
    ]  # what the budget has no room for is known by the same step with a part on disk
    return Probe(
        tokens=(height, width),
        channels=channels,
        feature_frame=feature_frame,
        flow_pair=cost_of(lambda: flow(frames[:1], frames[1:])),
        frame_pair=cost_of(lambda: search(raw[0], raw[1], features.grid)),
        refine_frame=refine,
        step=(whole[0], whole[1]),
        short_step=(short[0] or whole[0], short[1] or whole[1]),
        locate=locate,
    )


def search(source: Float[Tensor, "c h w"], target: Float[Tensor, "c h w"], grid: Grid, some: int = 200) -> None:
    """Best buddies of two frames, and the ambiguity of so many of them either way."""
    cosines = similarity(source.flatten(1).T.float(), target.flatten(1).T.float())
    best_buddies(cosines)
    xy = centres(source.shape[1], source.shape[2], grid, source.device)
    ambiguity(cosines[:some], xy)
    ambiguity(cosines[:, :some].T, xy)


def on_disk(module: DinoTrackerModule, batch: Batch, budget: Budget) -> Cost | None:
    """A step that keeps what it can on the disk of the budget; None on a GPU, or where the disk has no room for it."""
    if batch.images.device.type != "cpu":
        return None
    there = next(folder for folder in (budget.place, *budget.place.absolute().parents) if folder.is_dir())
    try:
        return train_step(module, batch, Budget(1, there))  # a plan makes no folder
    except DinotrackError:
        return None


def train_step(
    module: DinoTrackerModule, batch: Batch, budget: Budget | None = None, reserve: float | None = None
) -> Cost:
    """A step of all losses; with a budget, what it has no room for beside `reserve` bytes lies on disk."""
    module.train()
    written = 0

    def step() -> None:
        nonlocal written
        optimizer = torch.optim.Adam(module.parameters())
        with (
            torch.enable_grad(),
            nullcontext() if budget is None else kept_on_disk(budget, reserve=reserve) as spilling,
        ):
            refined = module.delta.refine(batch.features, batch.images, batch.frames, batch.grid)
            loss, _ = module.losses(Step(batch, refined, module.head), 10**9, 10**9)  # late enough for all
        written = 0 if spilling is None else spilling.bytes
        loss.backward()
        optimizer.step()
        module.zero_grad()

    state = {name: value.clone() for name, value in module.state_dict().items()}
    cost = cost_of(step)
    module.load_state_dict(state)
    return replace(cost, disk=written)


def full_batch(features: FeatureMap, images: Tensor, count: int, settings: BatchSettings) -> Batch:
    """A minibatch of random pairs among `count` frames, as many as `settings` have at most and between as many frame pairs."""
    rng = torch.Generator().manual_seed(0)
    size = torch.tensor(features.size, dtype=torch.float32)

    def pairs(source: Tensor, target: Tensor) -> Pairs:
        xy = torch.rand(2, len(source), 2, generator=rng) * size
        return Pairs(source, target, xy[0], xy[1], torch.ones(len(source)))

    def tokens(share: float = 1.0) -> Pairs:
        """Between the first frame pairs that there are, one after the other."""
        most = min(settings.pairs_foreground + settings.pairs_background, features.values[0, 0].numel())
        each = max(1, int(share * most))
        ordered = [*permutations(range(count), 2)]
        chosen = torch.tensor([ordered[k % len(ordered)] for k in range(settings.frame_pairs)], dtype=torch.long)
        return pairs(*chosen.view(-1, 2).repeat_interleave(each, 0).unbind(1))

    return Batch(
        frames=torch.arange(count, device=images.device),
        images=images[:count],
        features=features.values[:count].contiguous(memory_format=torch.channels_last),
        flow=pairs(*torch.randint(0, count, (2, settings.flow_pairs), generator=rng)),
        best_buddies=tokens(),
        refined=tokens(),
        cycle=tokens(CYCLE),
        frame_pairs=torch.zeros(0, 2, dtype=torch.long),
        masks=torch.ones(count, features.size[1], features.size[0], dtype=torch.bool, device=images.device),
        grid=features.grid,
        size=features.size,
    )
