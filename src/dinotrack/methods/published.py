"""Per-video checkpoints of the published DINO-Tracker code (§9): read them, track with them, write ours as they are.

Such a checkpoint is two bare state dicts, `delta_dino_<iteration>.pt` and `tracker_head_<iteration>.pt`. They say nothing of
the video, the backbone or the reader's options.
"""

import logging
import re
from collections.abc import Iterable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from dinotrack.backbones import Backbone
from dinotrack.cache import default_cache
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import video_features
from dinotrack.files import write_atomically
from dinotrack.growing import placed
from dinotrack.memory import Budget
from dinotrack.methods.dino_tracker import (
    DinoTracker,
    assemble,
    describe,
    load_networks,
    read_checkpoint,
    state_dict,
)
from dinotrack.networks import BlurPool, DeltaDino, Refinement, TrackerHead
from dinotrack.preprocessing import working_frames
from dinotrack.progress import Progress, silent
from dinotrack.structs import PIXELS, Video
from dinotrack.weights import read_weights

log = logging.getLogger(__name__)

Source = str | Path | tuple[str | Path, str | Path]
"""A folder, or the files of Delta-DINO and of the head."""
DELTA, HEAD = "delta_dino", "tracker_head"
PUBLISHED_SIZE = (854, 476)
"""(W, H) at which the published code works whatever the video (§0)."""
READER: dict[str, Any] = {
    "channels": 1024,
    "hidden": [64, 128, 256],
    "head.radius": 35.0,
    "head.peak": "similarity",
    "head.fallback": "published",
    "head.hidden": 16,
    "working_size": list(PUBLISHED_SIZE),
    "visibility.anchor": 0.7,
    "visibility.visible": 0.6,
    "shift": 0.0,
    "backbone.kind": "vit",
    "backbone.model": "vit_large_patch14_dinov2.lvd142m",
    "backbone.layer": 16,
    "backbone.facet": "token",
    "backbone.stride": 7,
}
"""What the published code sets by itself, under the names that a checkpoint of ours has for it."""


def published_files(folder: str | Path, iteration: int | None = None) -> tuple[Path, Path]:
    """The two files of an iteration in a folder, by default of the highest one; .safetensors goes before .pt.

    Raises:
        DinotrackError: when the folder holds no such files, or one of the two is not there.
    """
    deltas, heads = numbered(Path(folder), DELTA), numbered(Path(folder), HEAD)
    if not deltas and not heads:
        raise DinotrackError(
            f"no {DELTA}_<iteration>.pt and {HEAD}_<iteration>.pt in {folder}; give the folder that holds them "
            "(the published code writes <video>/models/dino_tracker), or both files"
        )
    chosen = max([*deltas, *heads]) if iteration is None else iteration
    missing = [f"{name}_{chosen}.pt" for name, found in ((DELTA, deltas), (HEAD, heads)) if chosen not in found]
    if missing:
        whole = ", ".join(map(str, sorted(deltas.keys() & heads.keys()))) or "none"
        raise DinotrackError(f"{folder} has no {' and no '.join(missing)}; iterations with both files: {whole}")
    return deltas[chosen], heads[chosen]


def numbered(folder: Path, name: str) -> dict[int, Path]:
    """The files `<name>_<iteration>` of a folder by their iteration."""
    pattern = re.compile(rf"{name}_(\d+)\.(pt|safetensors)")
    paths = sorted(folder.iterdir()) if folder.is_dir() else []
    return {int(match[1]): path for path in paths if (match := pattern.fullmatch(path.name))}


def read_published(source: Source, iteration: int | None = None) -> tuple[DeltaDino, TrackerHead]:
    """The networks of a published checkpoint, in float32 and with the published alignment and fallback (§1, §2).

    `iteration` chooses among those of a folder. Widths and depth are those of the files.

    Raises:
        DinotrackError: when a file is missing, unreadable, more than plain tensors, or has other names, shapes or filters.
    """
    delta_file, head_file = source if isinstance(source, tuple) else published_files(source, iteration)
    weights, refiner = read_weights(delta_file), read_weights(head_file)
    *hidden, channels = widths(weights)
    with torch.device("meta"):  # neither memory nor random numbers are spent before the shapes are known to fit
        delta = DeltaDino(channels, hidden, alignment="published")
        head = TrackerHead(fallback="published", hidden=width(refiner, "cnn_refiner.0."))
    fill(delta, weights, delta_file)
    fill(head, refiner, head_file)
    return delta.eval(), head.eval()


def widths(weights: Mapping[str, Tensor]) -> list[int]:
    """Channels after each convolution of Delta-DINO, `layers.{0, 4, 8, ...}`; the last are those of the features (§9)."""
    found = [re.fullmatch(r"layers\.(\d{1,3})\.\w+", name) for name in weights]
    depth = max([1, *(int(match[1]) // 4 for match in found if match)])
    return [width(weights, f"layers.{4 * block}.", f"layers.{4 * block + 1}.") for block in range(depth + 1)]


def width(weights: Mapping[str, Tensor], *prefixes: str) -> int:
    """Rows of the first tensor below the prefixes; 1 where there is none, so that the checks list what is missing."""
    return next((len(value) for name, value in weights.items() if name.startswith(prefixes) and value.numel() > 1), 1)


def fill(network: nn.Module, weights: Mapping[str, Tensor], file: str | Path) -> None:
    """Give a network exactly the tensors of a file, in the network's types.

    Raises:
        DinotrackError: listing the names that are missing, unexpected, or of another shape, kind or filter, or not finite.
    """
    expected = network.state_dict()
    if listed := "; ".join(f"{what}: {shortened(names)}" for what, names in faults(expected, weights).items() if names):
        raise DinotrackError(
            f"{file} is no {type(network).__name__} as published: {listed}; give {DELTA}_<iteration>.pt and "
            f"{HEAD}_<iteration>.pt as the published code or `dinotrack export` writes them"
        )
    network.load_state_dict({name: weights[name].to(like.dtype) for name, like in expected.items()}, assign=True)


def faults(expected: Mapping[str, Tensor], weights: Mapping[str, Tensor]) -> dict[str, list[str]]:
    """The names at which a file is not as expected, by what is wrong there."""
    both = {name: (weights[name], like) for name, like in expected.items() if name in weights}
    return {
        "missing": [name for name in expected if name not in weights],
        "unexpected": [name for name in weights if name not in expected],
        "of another shape": [
            f"{name} {tuple(found.shape)} in place of {tuple(like.shape)}"
            for name, (found, like) in both.items()
            if found.shape != like.shape
        ],
        "of another kind": [
            f"{name} {found.dtype} in place of {like.dtype}"
            for name, (found, like) in both.items()
            if like.is_floating_point() and not found.is_floating_point()
        ],
        "not finite": [name for name, (found, _) in both.items() if not found.isfinite().all()],
        "another filter than [1,3,3,1]⊗[1,3,3,1]/64": [
            name
            for name, (found, like) in both.items()
            if name.endswith(".filt") and found.shape == like.shape and not torch.equal(found, filter_like(like))
        ],
    }


def filter_like(expected: Tensor) -> Tensor:
    """BlurPool's filter for as many channels as `expected` has."""
    return BlurPool(len(expected)).filt


def shortened(names: list[str], most: int = 40) -> str:
    """A list for a message; a published file has fewer names than `most`, a file of something else may have thousands."""
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more


def import_published(
    source: Source,
    video: Video,
    backbone: Backbone,
    *,
    iteration: int | None = None,
    size: tuple[int, int] = PUBLISHED_SIZE,
    index_positions: bool = False,
) -> dict[str, Any]:
    """A published checkpoint as the content of one of ours, which `load_dino_tracker` reads; computes no features.

    Options are those of `load_published`.

    Raises:
        DinotrackError: as `load_published` does.
    """
    delta, head = read_published(source, iteration)
    about = describe_published(delta, head, video, backbone, size, index_positions)
    return {"state_dict": state_dict(delta, head), "dinotrack": about}


def load_published(
    source: Source,
    video: Video,
    backbone: Backbone,
    *,
    iteration: int | None = None,
    size: tuple[int, int] = PUBLISHED_SIZE,
    index_positions: bool = False,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    memory: float = 1e9,
    budget: Budget = Budget(),
    progress: Progress = silent,
) -> DinoTracker:
    """The tracker of a published checkpoint for the video that it was fitted to, on the backbone that it was fitted to.

    The files name neither: a wrong video, or another layer of as many channels, is not noticed. The published ones belong to
    tokens of DINOv2 ViT-L/14's 16th block at stride 7. `size` is the (W, H) in pixels at which the fit worked. Their fit mixed
    pixel indices with raster positions; as in the published evaluation positions go in and come out unshifted, unless
    `index_positions` turns them into pixel indices inside (§0).

    Raises:
        DinotrackError: for files that are not as published, a backbone of other channels, or a size too small.
    """
    delta, head = read_published(source, iteration)
    about = describe_published(delta, head, video, backbone, size, index_positions)
    frames = working_frames(video, backbone.stride, size=size, budget=budget)
    common = {"budget": budget, "progress": progress}
    raw = video_features(video, frames, backbone.to(device), cache or default_cache(), device=device, **common)
    networks = (delta.to(device), head.to(device))
    return assemble(placed(raw, device, budget), frames, *networks, about, memory=memory, **common)


def describe_published(
    delta: DeltaDino,
    head: TrackerHead,
    video: Video,
    backbone: Backbone,
    size: tuple[int, int],
    index_positions: bool,
) -> dict[str, Any]:
    """The settings of an imported checkpoint.

    Raises:
        DinotrackError: for a backbone of other channels, or a size too small.
    """
    channels = delta.settings["channels"]
    if channels != backbone.channels:
        raise DinotrackError(
            f"the checkpoint was fitted to features of {channels} channels, those of the backbone {backbone.settings} have "
            f"{backbone.channels}; give the backbone that it was fitted on (published: DINOv2 ViT-L/14, layer 16, stride 7)"
        )
    delta.check_size(size)
    return describe(video, backbone, size, delta, head, shift=PIXELS.offset if index_positions else 0.0)


def export_published(tracker: DinoTracker, folder: str | Path, iteration: int = 10000) -> list[Path]:
    """Write a tracker as a published checkpoint; see `export_networks`.

    Raises:
        DinotrackError: as `export_networks` does.
    """
    return export_networks(tracker.delta, tracker.head, folder, iteration, tracker.settings)


def export_checkpoint(path: str | Path, folder: str | Path, iteration: int = 10000) -> list[Path]:
    """Write a checkpoint of ours as a published one, without its video; see `export_networks`.

    Raises:
        DinotrackError: as `read_checkpoint`, `load_networks` and `export_networks` do.
    """
    content = read_checkpoint(path)
    about = content["dinotrack"]
    if (kind := about["delta"].get("kind", DELTA)) != DELTA:  # named before a backbone is asked for
        raise DinotrackError(
            f"{path} cannot be exported: it refines features by {kind}, published files hold Delta-DINO"
        )
    return export_networks(*load_networks(content, path), folder, iteration, about)


def export_networks(
    delta: Refinement,
    head: TrackerHead,
    folder: str | Path,
    iteration: int = 10000,
    settings: Mapping[str, Any] | None = None,
) -> list[Path]:
    """Write both networks as the bare state dicts of the published code (§9), over files of that iteration.

    What the reader must set by itself is logged as a warning where it differs, also for the tracker's `settings`.

    Raises:
        DinotrackError: for networks that the published code would misread, or when a file cannot be written.
    """
    if reasons := list(misread(delta, head, iteration)):
        raise DinotrackError(f"this tracker cannot be exported: {'; '.join(reasons)}")
    paths = []
    for name, network in ((DELTA, delta), (HEAD, head)):
        weights = {key: value.detach().cpu().contiguous() for key, value in network.state_dict().items()}
        paths.append(Path(folder) / f"{name}_{iteration}.pt")
        write_atomically(paths[-1], partial(torch.save, weights))
    warn(delta, head, settings or {}, Path(folder))
    return paths


def misread(delta: Refinement, head: TrackerHead, iteration: int) -> Iterable[str]:
    """Why the published code could not read the networks, or would take them for something else without a word."""
    if iteration < 0:
        yield f"iteration={iteration}: expected 0 or more"
    if not isinstance(delta, DeltaDino):
        yield f"its features are refined by {type(delta).__name__}, published files hold Delta-DINO"
    elif delta.settings["alignment"] != "published":
        yield (
            f"Delta-DINO was fitted with alignment={delta.settings['alignment']}, the published code reads every file as "
            "alignment=published; fit with method.delta.alignment=published"
        )
    if getattr(delta, "alone", False):
        yield "Delta-DINO was fitted without DINO, whose features the published code adds"
    if not head.refine:
        yield "its head has no refiner (refine=false), the published code always runs one"
    tensors = {**delta.state_dict(), **head.state_dict()}
    if wrong := [name for name, value in tensors.items() if not value.isfinite().all()]:
        yield f"not finite: {shortened(wrong)}; fit again with a lower method.module.lr"


def warn(delta: Refinement, head: TrackerHead, settings: Mapping[str, Any], folder: Path) -> None:
    """Log what the published code must be told before it tracks with the files as this tracker does."""
    of_delta = {name: delta.settings[name] for name in ("channels", "hidden")}
    ours = flat({**settings, **of_delta, "head": head.settings})
    other = [
        f"{name}={ours[name]} (there: {READER[name]})"
        for name in READER
        if ours.get(name, READER[name]) != READER[name]
    ]
    if other:
        log.warning("the published code has other settings, which its files do not carry: %s", ", ".join(other))
    known = {*numbered(folder, DELTA).values(), *numbered(folder, HEAD).values()}
    if strangers := sorted(path.name for path in folder.iterdir() if path.is_file() and path not in known):
        log.warning(
            "the published code reads an iteration off the name of every file beside its own, which fails here: %s; "
            "move the two files to a folder of their own",
            shortened(strangers, most=3),
        )


def flat(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Nested settings under dotted names, one level deep."""
    nested = {f"{a}.{b}": v for a, part in settings.items() if isinstance(part, Mapping) for b, v in part.items()}
    return {**settings, **nested}
