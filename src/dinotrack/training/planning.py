"""What a run will take, before it begins: seconds, memory and disk of each stage, and what happens where memory is short.

Features of all frames are not counted on a GPU: they lie there only where there is room, else on the host.
"""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import asdict, astuple, dataclass, field
from typing import Any

import torch
from omegaconf import DictConfig
from rich.console import Console
from rich.table import Table

from dinotrack.chrono import ChronoBackbone
from dinotrack.lora import LoraVit
from dinotrack.memory import Budget, free_memory, held, parse_bytes
from dinotrack.optical_flow import flows_over
from dinotrack.spilling import LITTLE, PART
from dinotrack.structs import Video
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.fit import checked, published_steps
from dinotrack.training.losses import first_step
from dinotrack.training.modules import DinoTrackerModule
from dinotrack.training.probing import COUNTS, Cost, Probe, probe

POSITIONS, TRACKLETS, BUDDIES = 2.0, 0.15, 0.2
"""Positions on tracklets, and tracklets, for each pixel of each frame, and best buddies for each token of each pair of frames.

`python -m scripts.counts` measures them. Every pixel has a position, and where chains meet there are more.
"""
POINT = 250
"""Bytes of what is computed of each position in a frame while it is followed."""
CHUNK = 4
"""Frames that the backbone sees at once."""
PRODUCT = 256e6
"""Bytes of one product of `Cosines`."""
ROW = 37
"""Bytes of a pair in a table."""
TRAINING = "training"
"""The stage in which a minibatch may be made smaller."""


@dataclass(frozen=True)
class Job:
    """The numbers that decide what a run costs."""

    frames: int
    size: tuple[int, int]
    """(W, H) of the video as loaded."""
    working: tuple[int, int]
    tokens: tuple[int, int]
    channels: int
    frame_pairs: int
    steps: int
    batch_frames: int
    """Of a minibatch, at most."""
    rebuilds: int
    rebuilt_pairs: int
    queries: int
    chunk_bytes: float
    """`memory`: what a chunk of queries may take."""
    encoded: float
    """Bytes a pixel that the flow estimator keeps of each frame."""
    scored: int = 0
    """Queries of the ground truth, which a fit tracks at its end."""
    resized: bool = True
    """Whether working frames are others than the video's own, as loaded."""
    masked: bool = True
    """Whether masks are made, or brought to their size."""
    flow_batch: int = 1
    """Pairs of frames that optical flow does at once, both ways."""
    dropped: bool = False
    """Whether the check for drift takes out single positions."""
    passing: tuple[int, int] = (0, 0)
    """Bytes a frame that Chrono's backbone keeps of all frames while it makes features: where there is room, and in memory."""
    prepared: int = 0
    """Bytes a frame that LoRA keeps of all frames during the fit and tracking."""

    @property
    def cells(self) -> int:
        return self.tokens[0] * self.tokens[1]

    @property
    def pixels(self) -> int:
        return self.working[0] * self.working[1]

    @property
    def own(self) -> dict[str, float]:
        """Bytes of the working frames and of the masks, where they are not the video's own."""
        pixels = float(self.frames * self.pixels)
        return {"working frames": 3 * pixels * self.resized, "masks": pixels * self.masked}

    @property
    def best_buddies(self) -> float:
        """About how many there are."""
        return BUDDIES * self.cells * self.frame_pairs

    @property
    def tracklets(self) -> float:
        """About how many there are."""
        return TRACKLETS * self.frames * self.pixels

    def tables(self, left: float) -> float:
        """Bytes that a fit draws pairs from: spans of tracklets, best buddies, and of two kinds those that it finds itself."""
        found = 2.0 * 2 * ROW * BUDDIES * self.cells * self.rebuilt_pairs
        return 5 * self.tracklets + read_little(left, 2 * ROW * self.best_buddies) + found + 3 * 16.0 * self.frames**2

    @property
    def features(self) -> float:
        """Bytes of the features of all frames, in half precision."""
        return 2.0 * self.frames * self.cells * self.channels


@dataclass(frozen=True)
class Need:
    """What one stage takes: seconds at least and at most, bytes held by the process in all, bytes it could do without, disk."""

    name: str
    seconds: tuple[float, float]
    memory: float
    spare: float
    """Of `memory`, what goes to disk or is done again in parts where it does not fit."""
    disk: float = 0.0
    instead: str = ""
    """How it does without."""
    device: float = 0.0
    """Bytes of a GPU's memory, beside what lies there all the time."""
    temporary: float = 0.0
    """Bytes of files that are gone when the stage ends."""


@dataclass(frozen=True)
class Plan:
    """The stages of a run."""

    job: Job
    needs: list[Need]
    room: float
    """Bytes that the process may hold in all."""
    device_room: float | None = None
    """Bytes of the GPU's memory that are free beside the networks; None where none is used."""
    aside: dict[str, float] = field(default_factory=dict)
    """Bytes of what lies on disk all the time."""

    def short(self) -> list[Need]:
        """Stages that do not fit as they are."""
        return [need for need in self.needs if need.memory > self.room]

    def lines(self) -> Iterator[str]:
        """What is said of memory, in a line a stage."""
        for name, count in self.aside.items():
            yield f"{name} of {size(count)} will lie on disk"
        for need in self.short():
            least = need.memory - need.spare
            if least <= self.room:
                yield f"{need.name}: {size(need.memory)} do not fit into {size(self.room)}; {need.instead}"
            else:
                also = ", or method.batch.frames_per_set" if need.name == TRAINING else ""
                yield (
                    f"{need.name} needs {size(least)}, and {size(self.room)} may be used; "
                    f"lower resolution to about {self.fitting(least, self.room)}{also}"
                )
        for need in self.needs:
            if need.temporary:
                yield f"{need.name}: temporary files of {size(need.temporary)}, where memory has no room"
            if self.device_room is not None and need.device > self.device_room:
                yield (
                    f"{need.name} needs {size(need.device)} of the GPU's memory, of which {size(self.device_room)} are free; "
                    f"lower resolution to about {self.fitting(need.device, self.device_room)}, or take device=cpu"
                )

    def fitting(self, least: float, room: float) -> int:
        """A long side at which a stage that needs so much would fit, as what it holds grows with the area."""
        return int(max(self.job.working) * (room / least) ** 0.5)


def job_of(
    config: DictConfig, data: VideoDataModule, module: DinoTrackerModule, probe: Probe, queries: int, scored: int = 0
) -> Job:
    """What a config asks for of a video."""
    frames = len(data.video)
    steps = published_steps(frames) if config.steps is None else config.steps
    rebuild = config.callbacks.get("rebuild") or {}
    counted = isinstance(rebuild.get("frame_pairs"), int)
    width, height = data.working_size
    begins, cells = first_step(rebuild.get("start", 0), steps), probe.tokens[0] * probe.tokens[1]
    return Job(
        frames=frames,
        size=data.video.size,
        working=data.working_size,
        tokens=probe.tokens,
        channels=probe.channels,
        frame_pairs=min(frames * (frames - 1) // 2, config.supervision.max_frame_pairs),
        steps=steps,
        batch_frames=min(frames, 2 * config.method.batch.frames_per_set),
        rebuilds=max(0, -(-(steps - begins) // rebuild["every"])) if counted else 0,
        rebuilt_pairs=min(frames * (frames - 1) // 2, rebuild["frame_pairs"]) if counted else 0,
        queries=queries,
        chunk_bytes=float(config.memory),
        encoded=encoded_bytes(data.flow.settings),
        scored=scored,
        resized=data.working_size != data.video.frame_size,
        masked=not len(data.video.masks) or data.working_size != data.video.frame_size,
        flow_batch=flows_over(torch.zeros(2, 3, height, width, dtype=torch.uint8, device=data.device), data.flow).batch,
        dropped=config.supervision.drift == "drop",
        passing=data.backbone.frame_bytes(cells) if isinstance(data.backbone, ChronoBackbone) else (0, 0),
        prepared=module.delta.frame_bytes(cells) if isinstance(module.delta, LoraVit) else 0,
    )


def encoded_bytes(flow: Mapping[str, Any]) -> float:
    """Bytes a pixel that an estimator with these settings keeps of a frame."""
    if flow["kind"] != "raft":
        return 1.0
    return 32.0 if flow.get("precision", "float32") == "float32" else 16.0


def plan(job: Job, probe: Probe, budget: Budget, start: float | None = None, device_room: float | None = None) -> Plan:
    """The plan of a run, from what was measured; `start` is what the process holds now, with its video and networks.

    `device_room` is what a GPU still has free beside the networks.
    """
    start = held() if start is None else start
    free = start + free_memory()
    room = free if budget.limit is None else min(free, parse_bytes(budget.limit))
    aside = {name: count for name, count in job.own.items() if count > read_little(room - start, count)}
    start += sum(job.own.values()) - sum(aside.values())
    fitting = start + job.tables(room - start)
    tokens = float(job.frames * job.prepared)
    if tokens > max(0.0, room - fitting) / 2:
        aside["tokens for LoRA"] = tokens
    else:
        fitting += tokens
    return Plan(
        job,
        [
            *preprocessing_needs(job, probe, start, room, device_room),
            *fit_needs(job, probe, fitting, room),
            *([inference_needs(job, probe, fitting, room, "scores", job.scored)] if job.scored else []),
            inference_needs(job, probe, fitting, room, "tracks and visibility", job.queries),
        ],
        room,
        device_room,
        aside,
    )


def preprocessing_needs(job: Job, probe: Probe, start: float, room: float, device_room: float | None) -> Iterator[Need]:
    """Features, tracklets, best buddies."""
    frames, cells = job.frames, job.cells
    extracted = start + min(CHUNK, frames) * probe.feature_frame.bytes
    tokens, mixed = (float(frames * count) for count in job.passing)
    stored = within(room - extracted - mixed, tokens / 2, tokens / 2, part=2)
    spared = tokens - stored if extracted + tokens + mixed > room else 0.0
    yield Need(
        "features",
        both(frames * probe.feature_frame.seconds),
        extracted + stored + spared + mixed,
        spared,
        job.features,
        instead="tokens between its adapters will lie on disk",
        device=min(CHUNK, frames) * probe.feature_frame.device,
        temporary=tokens - stored,
    )
    yield tracklets_need(job, probe, start, room, device_room)
    rows = min(
        4.0 * frames * cells * job.channels, max(0.0, room - start) / 2
    )  # what a budget lends, else block by block
    partners = min(frames, 2 * job.frame_pairs / frames)  # of a frame, at most: few where not all pairs are searched
    one_product = 4.0 * cells**2
    product = max(one_product, min(PRODUCT, max(0.0, room - start) / 4, one_product * partners))
    beside = max(0.0, probe.frame_pair.bytes - one_product)  # the probe's own product is no other one
    columns = read_little(room - start, (ROW - 1) * job.best_buddies)
    found = 12 * job.best_buddies + columns + 8 * frames * cells  # with the tracklet nearest to each token
    yield Need(
        "best buddies",
        both(job.frame_pairs * probe.frame_pair.seconds),
        start + rows + product + beside + found,
        rows,
        (ROW - 1) * job.best_buddies,
        instead="unit features will be made block of frames by block",
        device=8.0 * cells * job.channels + product + probe.frame_pair.device,
    )


def tracklets_need(job: Job, probe: Probe, start: float, room: float, device_room: float | None) -> Need:
    """Optical flow from frame to frame, its chains, and their check for drift.

    Each position is held twice for a while, once with its number. What a part of the memory that is left has no room for lies on
    disk, or is made again.
    """
    frames, positions, left = job.frames, POSITIONS * job.frames * job.pixels, max(0.0, room - start)
    one, pairs = 2 * probe.flow_pair.seconds, frames * (frames - 1) / 2
    encoded = job.encoded * frames * job.pixels
    on_gpu = encoded if device_room is not None and job.encoded > 1 else 0.0  # DIS keeps what it knows on the CPU
    lent = min(left, device_room or 0.0) / PART
    rows, about = 12 * positions, [width * job.tracklets for width in (4, 4, 8)]
    arrays = [*about, 8 * positions, 4 * job.tracklets, *([positions] if job.dropped else [])]
    piled = min(rows, left / PART)
    known = min(encoded - on_gpu, left / PART)
    placed = within(left - piled - known, *arrays)
    followed = POINT * POSITIONS * job.pixels
    return Need(
        "optical flow and tracklets",
        ((frames - 1) * one, pairs * one),
        start + encoded - on_gpu + rows + sum(arrays) + 2 * probe.flow_pair.bytes + followed,
        rows - piled + encoded - on_gpu - known + sum(arrays) - placed,
        8 * positions + 20 * job.tracklets + positions * job.dropped,
        instead="positions on tracklets will lie on disk, and a frame may be read more than once",
        device=3.0 * frames * job.pixels + min(on_gpu, lent) + 2 * job.flow_batch * probe.flow_pair.device + followed,
        temporary=rows - piled + sum(arrays) - placed,
    )


def within(left: float, *wanted: float, part: int = PART) -> float:
    """What tensors take, one after the other, of the memory that is left: each all that it wants, or nothing and lies on disk."""
    start = left
    for count in wanted:
        left -= count if count <= left / part else 0.0
    return start - left


def read_little(left: float, wanted: float) -> float:
    """What tensors that are read a little at a time take of the memory that is left: all that they want, or nothing."""
    return wanted if wanted <= left / LITTLE else 0.0


def fit_needs(job: Job, probe: Probe, start: float, room: float) -> Iterator[Need]:
    """Training steps, and the rebuilding of pairs."""
    whole, short = (of_batch(job, *steps) for steps in (probe.step, probe.short_step))
    fits = start + whole.bytes <= room
    slowest = whole.seconds if fits else max(whole.seconds, short.seconds)
    yield Need(
        TRAINING,
        (job.steps * whole.seconds, job.steps * slowest),
        start + whole.bytes,
        max(0.0, whole.bytes - short.bytes),
        instead="what a step keeps for its backward pass will lie on disk",
        device=whole.device,
        temporary=0.0 if start + 2 * whole.bytes <= room else short.disk,  # the first steps leave much of it free
    )
    if job.rebuilds:
        again = job.rebuilds * (
            job.frames * probe.refine_frame.seconds + 3 * job.rebuilt_pairs * probe.frame_pair.seconds
        )
        least = start + probe.refine_frame.bytes + probe.frame_pair.bytes
        yield Need(
            "rebuilding pairs",
            both(again),
            least + job.features,
            job.features,
            instead="refined features will lie on disk",
            temporary=refined_on_disk(job, room - start),
            device=probe.refine_frame.device + probe.frame_pair.device,
        )


def refined_on_disk(job: Job, left: float) -> float:
    """Bytes of the refined features of all frames where they take more than half of what is left of memory, else none."""
    return job.features if job.features > max(0.0, left) / 2 else 0.0


def of_batch(job: Job, few: Cost, more: Cost) -> Cost:
    """A step of a whole minibatch, from those of as many frames as `COUNTS` says."""
    grown = max(0.0, (job.batch_frames - COUNTS[0]) / (COUNTS[1] - COUNTS[0]))
    return Cost(*(a + grown * max(0.0, b - a) for a, b in zip(astuple(few), astuple(more), strict=True)))


def inference_needs(job: Job, probe: Probe, start: float, room: float, name: str, queries: int) -> Need:
    """Refined features, tracks and visibility of so many queries."""
    refined = job.frames * probe.refine_frame.seconds
    maps = queries * job.frames / 64 * probe.locate.seconds
    along = 4.0 * queries * job.frames * (3 * job.channels + 2 * job.frames)
    compared = 12.0 * queries * job.frames * job.cells
    lent = min(job.chunk_bytes, max(0.0, room - start) / 2)
    chunk = sum(min(lent / 2, needed) for needed in (along, compared))
    least = start + probe.refine_frame.bytes + chunk
    return Need(
        name,
        (refined + 2 * maps, refined + (1 + job.frames) * maps),
        least + job.features,
        job.features,
        instead="refined features will lie on disk",
        device=probe.refine_frame.device + chunk,
        temporary=refined_on_disk(job, room - start),
    )


def both(seconds: float) -> tuple[float, float]:
    return seconds, seconds


def size(count: float) -> str:
    """Bytes as one reads them."""
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000:
            return f"{count:.3g} {unit}"
        count /= 1000
    return f"{count:.3g} TB"


def duration(seconds: tuple[float, float]) -> str:
    """Seconds as one reads them, from the least to the most."""
    low, high = (spoken(value) for value in seconds)
    return low if low == high else f"{low} to {high}"


def spoken(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.2g} s"
    minutes = seconds / 60
    return f"{minutes:.2g} min" if minutes < 90 else f"{minutes / 60:.2g} h"


def plan_table(plan: Plan) -> Table:
    """The stages as a table."""
    room, gpu = plan.device_room, plan.device_room is not None
    title = f"{size(plan.room)} of memory may be used" + ("" if room is None else f", {size(room)} of the GPU's")
    files = any(need.temporary for need in plan.needs)
    heads = ["stage", "time", "memory", *(["GPU memory"] if gpu else []), "disk", *(["temporary"] if files else [])]
    table = Table(*heads, title=title)
    for need in plan.needs:
        cells = [duration(need.seconds), size(need.memory), *([size(need.device)] if gpu else [])]
        disk = [need.disk, *([need.temporary] if files else [])]
        table.add_row(need.name, *cells, *(size(count) if count else "" for count in disk))
    return table


def planned(config: DictConfig, video: Video, queries: int, scored: int = 0) -> Plan:
    """The plan of a run, by a probe of networks of its own: those of the fit are not touched.

    `queries` are tracked at its end, after `scored` of a ground truth.

    Raises:
        DinotrackError: for settings that do not fit the video.
    """
    data, module = checked(config, video)
    start = held()
    found = probe(data, module)
    gpu = data.budget.room(data.device) if torch.device(data.device).type == "cuda" else None
    return plan(job_of(config, data, module, found, queries, scored), found, data.budget, start, gpu)


def show_plan(found: Plan, say: Callable[[str], None]) -> None:
    """A line about the video, the table of stages, and what happens where memory is short."""
    job = found.job
    (width, height), (rows, columns) = job.working, job.tokens
    say(
        f"{job.frames} frames of {job.size[0]}x{job.size[1]} at {width}x{height}, {columns}x{rows} tokens of {job.channels}"
    )
    truth = f", {job.scored:,} of the ground truth" if job.scored else ""
    say(f"{job.frame_pairs:,} frame pairs, {job.steps:,} steps, {job.queries:,} queries{truth}")
    Console().print(plan_table(found))
    for line in found.lines():
        say(line)


def as_json(plan: Plan) -> dict[str, Any]:
    """For plan.json."""
    return {**asdict(plan), "lines": list(plan.lines())}
