"""The stages that are timed: what prepares one, the library's way, and the plain one where there is one."""

from collections.abc import Callable
from dataclasses import dataclass
from tempfile import TemporaryDirectory
from typing import Any

import torch

from benchmarks import reference
from benchmarks.inputs import Inputs
from dinotrack.correspondences import dino_best_buddies
from dinotrack.methods.dino_tracker import refine_features
from dinotrack.optical_flow import Dis, Raft, flows_over
from dinotrack.refined_pairs import PairSearch
from dinotrack.structs import Video
from dinotrack.trackers import FeatureTracker
from dinotrack.tracklets import build_tracklets, consecutive_flows
from dinotrack.training.batch import BatchSettings
from dinotrack.training.fit import fit
from dinotrack.training.losses import LossTerms, Step
from dinotrack.training.modules import published_losses
from dinotrack.training.rebuild import rebuilt_tables

Job = Callable[[], Any]
WHOLE_STEPS = {"cpu": 20, "cuda": 10_000}
"""Steps of the fit in `whole_run`, half of them with the late losses: on a GPU as published."""
RAFT_PAIRS = 8
"""Pairs of frames in either direction that the job of `flow_raft` does: of five frames."""


@dataclass(frozen=True)
class Stage:
    """One row of the table. `make` prepares, and gives the library's job and the plain one, or None."""

    name: str
    unit: str
    make: Callable[[Inputs], tuple[Job, Job | None]]
    published: float | None = None
    """Seconds of the published implementation at M on two cores, measured apart (the issue's table)."""
    published_mb: float | None = None
    """Its peak memory, likewise."""
    parts: int = 1
    """How many of its unit a job does; seconds and operations are those of one."""
    once: bool = False
    """Too long to be repeated: timed once, without a warm-up, and its operations are not counted."""


def features(inputs: Inputs) -> tuple[Job, Job | None]:
    """One frame through ViT-L/14 at stride 7 up to its 16th block, random weights."""
    from dinotrack.backbones import VitBackbone

    backbone = VitBackbone("vit_large_patch14_dinov2", layer=16, stride=7, pretrained=False).to(inputs.device)
    return (lambda: backbone(inputs.frames[:1])), None


def raft(inputs: Inputs) -> tuple[Job, Job | None]:
    """A few frames, each to the next and back, through RAFT large, 24 updates, random weights; the plain way pair by pair."""
    estimator, frames = Raft(pretrained=False).to(inputs.device), inputs.frames[: RAFT_PAIRS // 2 + 1]
    pairs = [pair for t in range(len(frames) - 1) for pair in ((t, t + 1), (t + 1, t))]
    return (
        lambda: list(consecutive_flows(flows_over(frames, estimator))),
        torch.no_grad()(lambda: [reference.raft(estimator.network, frames, i, j) for i, j in pairs]),
    )


def dis(inputs: Inputs) -> tuple[Job, Job | None]:
    estimator = Dis()
    return (lambda: estimator(inputs.frames[:1], inputs.frames[1:2])), None


def tracklets(inputs: Inputs) -> tuple[Job, Job | None]:
    """From given flow, with the drift check."""
    frames, flow, scale = inputs.frames, inputs.flow, max(inputs.size.width, inputs.size.height) / 854
    limits = (1.5 * scale, 2.5 * scale)
    return (
        lambda: build_tracklets(frames, flow, device=inputs.device),
        lambda: reference.tracklets(frames, flow, *limits),
    )


def dense_chains(inputs: Inputs) -> torch.Tensor:
    """(N, T, 2) of the chains before the drift check, as the plain filter of best buddies wants them."""
    chains = inputs.tracklets
    length = chains.chained.long()
    row = torch.arange(len(chains)).repeat_interleave(length)
    frame = torch.arange(len(chains.xy)) - chains.offset[row] + chains.start.long()[row]
    dense = torch.full((len(chains), inputs.size.frames, 2), torch.nan)
    dense[row, frame] = chains.xy
    return dense.to(inputs.device)


def best_buddies(inputs: Inputs) -> tuple[Job, Job | None]:
    """All pairs of frames, with the flow filter and the ambiguity ratio."""
    chains, tracklets = dense_chains(inputs), inputs.tracklets
    return (
        lambda: dino_best_buddies(inputs.features, tracklets, device=inputs.device),
        lambda: reference.best_buddies(inputs.features, chains, 60 * inputs.scale),
    )


def delta_dino(inputs: Inputs) -> tuple[Job, Job | None]:
    """Φ of all frames, with BatchNorm's running statistics."""
    delta = inputs.delta.eval()
    with torch.no_grad():
        return (
            lambda: refine_features(inputs.features, inputs.frames, delta),
            torch.no_grad()(lambda: reference.delta_dino(delta, inputs.frames, inputs.features)),
        )


def full_step(inputs: Inputs, late: bool) -> tuple[Job, Job | None]:
    """Forward, losses, backward and Adam of one minibatch with full pair counts."""
    delta, head, batch = inputs.delta.train(), inputs.head, inputs.batch
    adam = torch.optim.Adam([*delta.parameters(), *head.parameters()], lr=1e-6)
    losses, number = LossTerms(published_losses()), 7000 if late else 0

    def update(loss: torch.Tensor) -> float:
        adam.zero_grad()
        loss.backward()
        adam.step()
        return float(loss.detach())

    def ours() -> float:
        refined = delta.refine(batch.features, batch.images, batch.frames, batch.grid)
        return update(losses(Step(batch, refined, head), number, 10_000)[0])

    return ours, lambda: update(reference.step_loss(batch, delta, head, late, inputs.scale))


def draw(inputs: Inputs) -> tuple[Job, Job | None]:
    """A minibatch from the store: frames, features, and pairs of all four kinds."""
    store, generator = inputs.store, torch.Generator().manual_seed(0)
    return (lambda: store.draw(BatchSettings(), generator)), None


def delta_alone(inputs: Inputs) -> tuple[Job, Job | None]:
    """Of the training step, what Delta-DINO itself costs: forward, backward and Adam."""
    delta, batch = inputs.delta.train(), inputs.batch
    adam = torch.optim.Adam(delta.parameters(), lr=1e-6)

    def ours() -> None:
        adam.zero_grad()
        delta.refine(batch.features, batch.images, batch.frames, batch.grid).mean().backward()
        adam.step()

    return ours, None


def rebuild(inputs: Inputs) -> tuple[Job, Job | None]:
    """Refined best buddies and cycle pairs between 100 pairs of frames, Delta-DINO on all frames included."""

    def ours() -> Any:
        generator = torch.Generator().manual_seed(0)
        return rebuilt_tables(
            inputs.store, inputs.delta, inputs.head, PairSearch(), generator, {"refined", "cycle"}, count=100
        )

    return ours, None


def tracker(inputs: Inputs) -> FeatureTracker:
    size = (inputs.size.width, inputs.size.height)
    return FeatureTracker(inputs.features, inputs.head, size)


def tracks(inputs: Inputs) -> tuple[Job, Job | None]:
    """Positions of the queries in all frames, without visibility."""
    tool, queries = tracker(inputs), inputs.queries.to(inputs.device)
    return (
        lambda: tool.positions(queries[:, 0].long(), queries[:, 1:]),
        torch.no_grad()(lambda: reference.tracks(inputs.features, inputs.head, queries, inputs.scale)),
    )


def visibility(inputs: Inputs) -> tuple[Job, Job | None]:
    """Trajectory agreement of tracks that are there."""
    tool, queries = tracker(inputs), inputs.queries.to(inputs.device)
    frame = queries[:, 0].long()
    found = tool.positions(frame, queries[:, 1:])
    return (
        lambda: tool.judge(frame, found),
        torch.no_grad()(lambda: reference.visible(inputs.features, inputs.head, queries, found, inputs.scale)),
    )


def whole_run(inputs: Inputs) -> tuple[Job, Job | None]:
    """A video with an empty cache: features of ViT-L with random weights, pairs, fit, tracks and visibility of the queries.

    The flow is given, and random features have few best buddies; the time of RAFT is that of `flow_raft`.
    """
    size, steps = inputs.size, WHOLE_STEPS[inputs.device.type]
    flow = f"{{_target_: benchmarks.inputs.GivenFlow, size: {{_target_: benchmarks.inputs.Size, frames: {size.frames}, "
    flow += f"height: {size.height}, width: {size.width}, channels: {size.channels}}}}}"
    words = ["backbone.pretrained=false", "~flow", f"+flow={flow}", f"size=[{size.width},{size.height}]"]
    words += [f"steps={steps}", "callbacks.rebuild.start=0.5", "losses.refined_best_buddy.start=0.5"]
    words += ["losses.cycle.start=0.5", f"device={inputs.device.type}"]
    video, queries = Video(inputs.frames.cpu(), 25.0), inputs.queries

    def ours() -> Any:
        with TemporaryDirectory() as cache:
            return fit(video, overrides=[*words, f"cache_dir={cache}"], progress=False).track(queries)

    return ours, None


STAGES = {
    stage.name: stage
    for stage in (
        Stage("features", "a frame", features),
        Stage("flow_raft", "a pair", raft, parts=RAFT_PAIRS),
        Stage("flow_dis", "a pair", dis),
        Stage("tracklets", "the video", tracklets, 18.6, 1400),
        Stage("best_buddies", "the video", best_buddies, 58.8 + 110 + 8.8, 4300),
        Stage("delta_dino", "the video", delta_dino, 8.0),
        Stage("draw", "a minibatch", draw),
        Stage("delta_dino_step", "a step", delta_alone),
        Stage("step_before", "a step", lambda inputs: full_step(inputs, late=False), 9.0, 3300),
        Stage("step_after", "a step", lambda inputs: full_step(inputs, late=True), 17.1, 4300),
        Stage("rebuild", "100 frame pairs", rebuild),
        Stage("tracks", "all queries", tracks, 47.7, 2000),
        Stage("visibility", "all queries", visibility, 412.0, 2000),
        Stage("whole_run", "the video", whole_run, once=True),
    )
}
