"""`dinotrack picture similarity | best-buddies | pca RUN OUTPUT [options]`: what the features of a finished run see."""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, Float, UInt8
from omegaconf import DictConfig
from torch import Tensor

from dinotrack.backbones import Backbone, build_backbone
from dinotrack.cache import default_cache
from dinotrack.correspondences import saliency_masks
from dinotrack.data import open_described
from dinotrack.data.video import load_masks
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import FeaturePass
from dinotrack.geometry import resize_frames
from dinotrack.growing import placed
from dinotrack.memory import Budget
from dinotrack.methods.checkpoint import load_checkpoint
from dinotrack.methods.chrono import ChronoTracker
from dinotrack.methods.dino_tracker import DinoTracker, read_checkpoint
from dinotrack.methods.raw_features import raw_feature_tracker
from dinotrack.mp4 import save_video
from dinotrack.preprocessing import working_frames
from dinotrack.progress import shown
from dinotrack.structs import FeatureMap, Pairs, Tracklets, Video
from dinotrack.tools.arguments import numbers, query
from dinotrack.trackers import FeatureTracker, check_queries
from dinotrack.training.config import pick_device, read_run_config
from dinotrack.training.fit import prepare
from dinotrack.visualization import (
    Look,
    best_buddies_between,
    draw_matches,
    on_mask,
    pca_frames,
    save_png,
    similarity_picture,
    spread,
    tile,
    titled,
    tracklets_between,
)
from dinotrack.visualization.layout import panel_size
from dinotrack.visualization.overlay import check_frames
from dinotrack.visualization.side_by_side import frames_in_a_row

CHECKPOINT, CONFIG = "tracker.ckpt", "config.yaml"
KINDS = ("raw", "refined", "tracklets")


@dataclass(frozen=True)
class FittedRun:
    """A finished run: its video, its tracker, and the features before the fit refined them, or before Chrono's adapters."""

    folder: Path
    video: Video
    raw: FeatureMap
    tracker: DinoTracker | ChronoTracker
    cache: Path | None = None

    @classmethod
    def open(
        cls, folder: Path, *, video: str | None = None, device: str = "auto", cache: Path | None = None
    ) -> "FittedRun":
        """From its folder or its checkpoint; `video` is where the video is now, if it has moved.

        Raises:
            DinotrackError: where there is none, or its video or its backbone's weights cannot be read.
        """
        path = folder / CHECKPOINT if folder.is_dir() else folder
        if not path.exists():
            raise DinotrackError(f"{folder} has no {CHECKPOINT}; give the folder of a dinotrack run or fit")
        about = read_checkpoint(path)["dinotrack"]
        common = {"device": pick_device(device), "progress": shown}
        opened = open_described({**about["video"], "path": video} if video else about["video"])
        backbone: Backbone = build_backbone(about["backbone"]).to(common["device"])
        plain = without_adapters(about["backbone"]) if about.get("method") == "chrono" else backbone
        frames = working_frames(opened, backbone.stride, size=tuple(about["working_size"]), budget=Budget(folder=cache))
        made = FeaturePass(opened, frames, plain.to(common["device"]), cache or default_cache(), **common)
        if not made.is_cached():
            print(
                f"the features are not in {made.cache}: their pass is made again, unless --cache says where they are",
                file=sys.stderr,
            )
        raw = made.features()
        tracker = load_checkpoint(path, opened, backbone=backbone, cache=cache, **common)
        return cls(path.parent, opened, placed(raw, common["device"]), tracker, cache)

    @property
    def config(self) -> DictConfig:
        """What it was run with."""
        return read_run_config(self.folder / CONFIG)

    @property
    def raw_tracker(self) -> FeatureTracker:
        """What the features say before."""
        if isinstance(self.tracker, ChronoTracker):
            before = ChronoTracker(self.raw, self.tracker.visibility_head, self.tracker.settings)
            return before.to(self.tracker.device)
        radius, scale = self.tracker.head.radius, self.tracker.scale_constants
        tracker = raw_feature_tracker(self.video, self.raw, radius=radius, scale_constants=scale)
        return tracker.to(self.tracker.device)

    @property
    def captions(self) -> dict[str, str]:
        """What each kind of features is called."""
        if isinstance(self.tracker, ChronoTracker):
            return {"raw": "features without adapters", "refined": "features with adapters"}
        return {"raw": "raw features", "refined": "refined features"}

    def given_masks(self) -> Bool[Tensor, "m h w"]:
        """The masks that it was run with, none if it was run without."""
        given = self.config.get("masks")
        if not given:
            return self.video.masks
        return load_masks(given, self.video, start=self.video.start, stop=self.video.start + len(self.video))

    def tracklets(self) -> Tracklets:
        """The optical flow's tracklets that supervised it, from the cache or computed again.

        Raises:
            DinotrackError: for Chrono, which needs none.
        """
        config = self.config
        if config.method.name == "chrono":
            raise DinotrackError(f"{self.folder} is a run of method=chrono, which has no tracklets; take --kind raw")
        config.device = str(self.tracker.device)
        config.size = list(self.raw.size)
        config.cache_dir = str(self.cache or default_cache())  # wherever the run kept its own
        data = prepare(config, replace(self.video, masks=self.given_masks()), shown)
        return data.store.flow.tracklets


def without_adapters(settings: Mapping[str, Any]) -> Backbone:
    """Chrono's backbone before it was trained: the ViT's own features."""
    own = {name: value for name, value in settings.items() if name != "weights"}
    return build_backbone({**own, "adapters": None})


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    run = FittedRun.open(options.run, video=options.video, device=options.device, cache=options.cache)
    {"similarity": similarity, "best-buddies": best_buddies, "pca": pca}[options.kind](run, options)
    print(options.output)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dinotrack picture", description="what the features of a finished fit see")
    kinds = parser.add_subparsers(dest="kind", required=True)
    similar = kinds.add_parser("similarity", help="heat maps of one point's similarity, raw and refined")
    similar.add_argument("--query", type=query, required=True, help="t,x,y in pixels of the video")
    similar.add_argument("--frames", type=numbers, help="target frames; default: all for .mp4, the middle one for .png")
    buddies = kinds.add_parser("best-buddies", help="lines between two frames: best buddies, or optical flow")
    buddies.add_argument("--frames", type=numbers, help="source,target; default: first and middle")
    buddies.add_argument("--kind", dest="kinds", action="append", choices=KINDS, help="default: raw and refined")
    buddies.add_argument("--count", type=int, default=80, help="about how many lines, spread over the frame")
    buddies.add_argument("--foreground", action="store_true", help="only from the run's masks, or from saliency")
    components = kinds.add_parser("pca", help="first three principal components of the features as colours")
    components.add_argument("--frames", type=numbers, help="only these; default of a .png: 3 of all")
    for each, default in ((similar, "similarity.png"), (buddies, "best_buddies.png"), (components, "pca.mp4")):
        each.add_argument("run", type=Path, help="folder of a dinotrack run or fit, or its tracker.ckpt")
        each.add_argument("output", type=Path, nargs="?", default=Path(default), help=f"default: {default}")
        each.add_argument("--video", help="where the video is now, if it has moved")
        each.add_argument("--device", default="auto", help="auto, cpu or cuda")
        kept = "default: $DINOTRACK_CACHE, or dinotrack in your cache folder, not the run's cache_dir"
        each.add_argument("--cache", type=Path, help=kept)
    options = parser.parse_args(arguments)
    allowed = (".png",) if options.kind == "best-buddies" else (".png", ".mp4")
    if options.kind == "best-buddies" and options.count < 1:
        parser.error(f"--count {options.count}: expected at least 1")
    if options.output.suffix.lower() not in allowed:
        parser.error(f"output {options.output}: expected a name that ends in {' or '.join(allowed)}")
    return options


def similarity(run: FittedRun, options: argparse.Namespace) -> None:
    """Heat maps in raw and refined features; each look predicts with its own tracker."""
    asked = torch.tensor(options.query)
    check_queries(asked[None], len(run.video), run.video.size)
    chosen = options.frames or (range(len(run.video)) if is_video(options.output) else [len(run.video) // 2])
    drawn = similarity_picture(run.video, asked, looks_of(run, asked), chosen, progress=shown)
    write(drawn, options.output, run, chosen)


def looks_of(run: FittedRun, asked: Float[Tensor, "3"]) -> list[Look]:
    """The query (t, x, y), in pixels of the video, looked for in raw and in refined features."""
    trackers = dict(zip(run.captions.values(), (run.raw_tracker, run.tracker), strict=True))
    return [Look(name, each.features, each.track(asked[None]).xy[0], each.shift) for name, each in trackers.items()]


def best_buddies(run: FittedRun, options: argparse.Namespace) -> None:
    """Lines of each kind below one another."""
    save_png(buddies_picture(run, options), options.output)


def buddies_picture(run: FittedRun, options: argparse.Namespace, widest: int = 1920) -> UInt8[Tensor, "3 h w"]:
    """A row for each kind, at most about `widest` pixels wide; its title counts all, also those that are not drawn."""
    frames = options.frames or [0, len(run.video) // 2]
    if len(frames) != 2:
        raise DinotrackError(f"--frames {','.join(map(str, frames))}: expected two, source and target")
    check_frames(frames, len(run.video))
    rows = []
    for kind in options.kinds or ["raw", "refined"]:
        pairs = pairs_of(run, kind, frames[0], frames[1])
        if options.foreground:
            masks = run.given_masks()
            pairs = on_mask(pairs, masks if len(masks) else saliency_masks(run.raw), run.raw.size)
        what = "tracklets of optical flow" if kind == "tracklets" else f"best buddies in {run.captions[kind]}"
        about = {"title": f"{what}: {len(pairs)} from frame {frames[0]} to {frames[1]}", "widest": widest}
        rows.append(draw_matches(run.video, spread(pairs, options.count), run.raw.size, *frames, **about)[None])
    return tile(rows, 1)[0]


def pairs_of(run: FittedRun, kind: str, source: int, target: int) -> Pairs:
    """All correspondences of a kind between two frames; tracklets are those that the fit had."""
    if kind == "tracklets":
        return tracklets_between(run.tracklets(), source, target)
    return best_buddies_between(run.raw if kind == "raw" else run.tracker.features, source, target)


def pca(run: FittedRun, options: argparse.Namespace) -> None:
    """The video, raw and refined components beside one another; axes and colours are those of the whole video."""
    count = len(run.video)
    every = torch.linspace(0, count - 1, min(3, count)).round().int().tolist()
    chosen = check_frames(options.frames or (range(count) if is_video(options.output) else every), count)
    size = panel_size(run.video.size, 3)
    panels = {"video": resize_frames(run.video.frames[chosen], size)}
    for name, features in zip(run.captions.values(), (run.raw, run.tracker.features), strict=True):
        panels[name] = pca_frames(features, size)[chosen]
    write(tile([titled(frames, name) for name, frames in panels.items()]), options.output, run, chosen)


def is_video(output: Path) -> bool:
    return output.suffix.lower() == ".mp4"


def write(frames: UInt8[Tensor, "t 3 h w"], output: Path, run: FittedRun, chosen: Sequence[int]) -> None:
    """Frames as a video, or below one another as one picture, where several say which they are."""
    if is_video(output):
        save_video(frames, output, run.video.fps)
    else:
        save_png(frames_in_a_row(frames, 1, chosen if len(chosen) > 1 else ()), output)
