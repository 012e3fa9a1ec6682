"""DINO-Tracker assembled from given weights: refined features, the fitted head, and its checkpoint."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import Any

import torch
from jaxtyping import UInt8
from torch import Tensor

from dinotrack.backbones import Backbone, build_backbone, identity
from dinotrack.cache import default_cache
from dinotrack.errors import DinotrackError, reason_of
from dinotrack.feature_pass import video_features
from dinotrack.files import write_atomically
from dinotrack.growing import Rows, placed
from dinotrack.lora import LoraVit
from dinotrack.memory import Budget
from dinotrack.methods.description import check_description, check_weights
from dinotrack.networks import DeltaDino, Refinement, TrackerHead
from dinotrack.preprocessing import working_frames
from dinotrack.progress import Progress, silent
from dinotrack.sealed import load_archive, save_archive
from dinotrack.structs import FeatureMap, Video
from dinotrack.trackers import FeatureTracker, VisibilityRule

FORMAT = 1
"""Of checkpoints."""


@torch.no_grad()
def refine_features(
    raw: FeatureMap,
    frames: UInt8[Tensor, "t 3 h w"],
    delta: Refinement,
    *,
    every: int = 1,
    chunk: int = 8,
    budget: Budget = Budget(),
    progress: Progress = silent,
) -> FeatureMap:
    """Φ of each `every`-th frame (Eq. 1) in half precision, with BatchNorm's running statistics; `chunk` at a time on a GPU.

    Where the budget has no room for all of them on the network's device, they lie in the host's memory or on disk.

    Raises:
        DinotrackError: when they have to lie on disk, and cannot be written.
    """
    training, device = delta.training, next(delta.parameters()).device
    delta.eval()
    chosen = torch.arange(0, len(raw), every)
    refined = Rows(len(chosen), budget, device)
    # On a CPU one frame at a time is faster: its maps are more than the cache holds as it is.
    for numbers in progress(chosen.split(chunk if device.type == "cuda" else 1), "refined features"):
        inputs = (raw.values[numbers].to(device), frames[numbers].to(device))
        refined.add(delta.refine(*inputs, numbers.to(device), raw.grid).to(raw.values.dtype))
    delta.train(training)
    return FeatureMap(refined.done(), raw.stride, raw.offset, raw.size)


class DinoTracker(FeatureTracker):
    """A tracker fitted to one video; `save` writes a checkpoint that `load_tracker` reads."""

    def __init__(
        self,
        features: FeatureMap,
        delta: Refinement,
        head: TrackerHead,
        settings: Mapping[str, Any],
        *,
        memory: float = 1e9,
    ) -> None:
        video = settings["video"]
        rule = VisibilityRule(**settings["visibility"])
        options = {"scale_constants": settings["scale_constants"], "visibility": rule, "memory": memory}
        shift = settings.get("shift", 0.0)  # not in the first checkpoints
        super().__init__(features, head, tuple(video["size"]), video["fps"], shift=shift, **options)
        self.delta, self.settings = delta, dict(settings)

    def checkpoint(self) -> dict[str, Any]:
        """Tensors and plain types only, so that it loads with `weights_only=True`."""
        return {"state_dict": state_dict(self.delta, self.head), "dinotrack": self.settings}

    def save(self, path: str | Path) -> None:
        """Write the checkpoint: networks and settings, not the features.

        Raises:
            DinotrackError: when the file cannot be written.
        """
        write_atomically(Path(path), lambda name: save_archive(self.checkpoint(), name))


def state_dict(delta: Refinement, head: TrackerHead) -> dict[str, Tensor]:
    """Both networks' weights under the prefixes that a `DinoTrackerModule` gives them."""
    parts = {"delta": delta.state_dict(), "head": head.state_dict()}
    return {f"{name}.{key}": value.detach().cpu() for name, part in parts.items() for key, value in part.items()}


def about_video(video: Video) -> dict[str, Any]:
    """What a checkpoint says of its video."""
    return {
        "path": video.path,
        "start": video.start,
        "hash": video.content_hash,
        "frames": len(video),
        "size": list(video.size),
        "max_side": video.max_side,
        "fps": video.fps,
    }


def describe(
    video: Video,
    backbone: Backbone,
    working: tuple[int, int],
    delta: Refinement,
    head: TrackerHead,
    *,
    scale_constants: bool = True,
    visibility: VisibilityRule = VisibilityRule(),
    shift: float = 0.0,
) -> dict[str, Any]:
    """The plain settings that a checkpoint carries: its video, its backbone, its networks."""
    return {
        "format": FORMAT,
        "method": "dino_tracker",
        "video": about_video(video),
        "backbone": dict(backbone.settings),
        "working_size": list(working),
        "delta": delta.settings,
        "head": head.settings,
        "scale_constants": scale_constants,
        "visibility": asdict(visibility),
        "shift": shift,
    }


def assemble(
    raw: FeatureMap,
    frames: UInt8[Tensor, "t 3 h w"],
    delta: Refinement,
    head: TrackerHead,
    settings: Mapping[str, Any],
    *,
    memory: float = 1e9,
    budget: Budget = Budget(),
    progress: Progress = silent,
) -> DinoTracker:
    """The tracker of a video from its raw features and fitted networks."""
    refined = refine_features(raw, frames, delta, budget=budget, progress=progress)
    device = next(head.parameters()).device
    return DinoTracker(refined, delta, head, settings, memory=min(memory, budget.share(device)))


def read_checkpoint(path: str | Path) -> dict[str, Any]:
    """What `DinoTracker.save` or a `DinoTrackerModule`'s Trainer wrote.

    Raises:
        DinotrackError: for a missing file, one that is not plain tensors, or not of dinotrack.
    """
    if not Path(path).is_file():
        raise DinotrackError(f"no checkpoint at {path}")
    try:
        content = load_archive(path)
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        raise DinotrackError(f"{path} is not a readable checkpoint ({reason_of(error)}); fit again") from error
    parts = [content.get(name) for name in ("state_dict", "dinotrack")] if isinstance(content, dict) else [None]
    if not all(isinstance(part, dict) for part in parts):
        raise DinotrackError(f"{path} holds no dinotrack tracker; pass the tracker.ckpt of a run folder")
    if content["dinotrack"].get("format") != FORMAT:
        raise DinotrackError(
            f"{path} has checkpoint format {repr(content['dinotrack'].get('format'))[:40]}, this version reads {FORMAT}"
        )
    check_description(content["dinotrack"], path)
    check_weights(content["dinotrack"], content["state_dict"], path)
    return content


def build_refinement(settings: Mapping[str, Any], backbone: Backbone | None) -> Refinement:
    """The refinement that has these `settings`: Delta-DINO, or LoRA on the backbone.

    Raises:
        DinotrackError: when it does not fit the backbone.
    """
    options = {name: value for name, value in settings.items() if name != "kind"}
    if settings.get("kind") == "lora":
        return LoraVit(backbone, **options)  # type: ignore[arg-type]  (LoraVit refuses other backbones by name)
    if backbone is not None and options["channels"] != backbone.channels:
        raise DinotrackError(
            f"Delta-DINO has {options['channels']} channels, the backbone {dict(backbone.settings)} has {backbone.channels}"
        )
    return DeltaDino(**options)


def load_networks(
    content: Mapping[str, Any], path: str | Path, backbone: Backbone | None = None
) -> tuple[Refinement, TrackerHead]:
    """Refinement and head of a checkpoint; Delta-DINO can do without `backbone`.

    Raises:
        DinotrackError: when the weights do not fit the settings beside them, or these do not fit the backbone.
    """
    about, weights = content["dinotrack"], content["state_dict"]
    delta, head = build_refinement(about["delta"], backbone), TrackerHead(**about["head"])
    for name, network in (("delta", delta), ("head", head)):
        part = {key.removeprefix(f"{name}."): value for key, value in weights.items() if key.startswith(f"{name}.")}
        try:
            network.load_state_dict(part)
        except RuntimeError as error:
            raise DinotrackError(f"{path} is damaged: its {name} weights do not fit its settings") from error
    return delta, head


def load_dino_tracker(
    path: str | Path,
    video: Video,
    *,
    backbone: Backbone | None = None,
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    memory: float = 1e9,
    budget: Budget = Budget(),
    progress: Progress = silent,
) -> DinoTracker:
    """The tracker of a checkpoint, for the video that it was fitted to; features come from the cache or are computed again.

    `backbone` replaces the one that the checkpoint names, whose kind then need not be dinotrack's own. `memory` bounds, in bytes,
    what one chunk of queries takes; the budget says where the features of all frames may lie.

    Raises:
        DinotrackError: for an unreadable checkpoint, another video, or another backbone.
    """
    content = read_checkpoint(path)
    about = content["dinotrack"]
    if about.get("method", "dino_tracker") != "dino_tracker":
        raise DinotrackError(
            f"{path} is a checkpoint of method {about['method']}; expected one of a fit of dino_tracker"
        )
    fitted = about["video"]
    if fitted["hash"] != video.content_hash:
        raise DinotrackError(
            f"{path} was fitted to {fitted['path'] or 'a video without a path'} ({fitted['frames']} frames of "
            f"{fitted['size'][0]}x{fitted['size'][1]}, hash {fitted['hash'][:12]}), "
            f"not to {video.path or 'this video'} ({len(video)} frames of {video.size[0]}x{video.size[1]}, "
            f"hash {video.content_hash[:12]}); fit again"
        )
    backbone = backbone or build_backbone(about["backbone"])
    if identity(dict(backbone.settings)) != identity(about["backbone"]):
        raise DinotrackError(f"{path} was fitted on backbone {about['backbone']}, not {dict(backbone.settings)}")
    delta, head = load_networks(content, path, backbone)
    frames = working_frames(video, backbone.stride, size=tuple(about["working_size"]), budget=budget)
    backbone = backbone.to(device)
    delta.prepare(frames, budget=budget, progress=progress)
    common = {"budget": budget, "progress": progress}
    raw = video_features(video, frames, backbone, cache or default_cache(), device=device, **common)
    networks = (delta.to(device), head.to(device))
    return assemble(placed(raw, device, budget), frames, *networks, about, memory=memory, **common)
