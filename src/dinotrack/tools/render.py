"""`dinotrack render tracks.npz video [overlay.mp4 | picture.png] [options]`."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from dinotrack.data import open_video
from dinotrack.data.export import load_npz
from dinotrack.errors import DinotrackError
from dinotrack.mp4 import save_video
from dinotrack.progress import shown
from dinotrack.structs import NO_TRUTH, PointTruth, Tracks, Video
from dinotrack.tools.arguments import numbers
from dinotrack.visualization import COLOURINGS, compare_tracks, render_overlay, save_png
from dinotrack.visualization.side_by_side import frames_in_a_row

ENDINGS = (".mp4", ".m4v", ".mov", ".png")


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    tracks = [load_npz(path) for path in (options.tracks, *options.compare)]
    video = open_video(options.video, start=options.start, stop=options.start + tracks[0].xy.shape[1])
    for path, each in zip((options.tracks, *options.compare), tracks, strict=True):
        check(path, each, options.video, video)
    marks = {"trail": options.trail, "every": options.every, "colour": options.colour}
    marks["truth"] = read_truth(options.truth, tracks[0])
    if options.output.suffix.lower() == ".png":
        chosen = options.frames or evenly(len(video))
        drawn = compare_tracks(video, tracks, options.title, **marks, frames=chosen, columns=options.columns)
        save_png(frames_in_a_row(drawn, sheet_columns(len(chosen))), options.output)
    elif options.compare or options.title or options.frames:
        picked = {"frames": options.frames, "columns": options.columns, "progress": shown}
        save_video(compare_tracks(video, tracks, options.title, **marks, **picked), options.output, video.fps)
    else:
        render_overlay(video, tracks[0], options.output, **marks, progress=shown)
    print(options.output)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dinotrack render", description="draw tracks over their video")
    parser.add_argument("tracks", type=Path, help="tracks.npz of a run folder")
    parser.add_argument("video", help="the video file or folder of frames that was tracked")
    parser.add_argument(
        "output", type=Path, nargs="?", default=Path("overlay.mp4"), help="ends in .mp4 or .png; default: overlay.mp4"
    )
    parser.add_argument("--trail", type=int, default=10, help="frames of a track that stay behind each point")
    parser.add_argument("--every", type=int, default=1, help="draw only every so many-th point")
    parser.add_argument("--start", type=int, default=0, help="first frame, where a part of the video was tracked")
    parser.add_argument("--colour", choices=tuple(COLOURINGS), default="start", help="what a point's colour says")
    parser.add_argument("--truth", type=Path, help="true positions: red lines show the errors; .npz or .safetensors")
    parser.add_argument(
        "--compare", type=Path, action="append", default=[], help="another tracker's tracks, in a panel beside"
    )
    parser.add_argument("--title", action="append", default=[], help="of each panel in turn, tracks first")
    parser.add_argument("--columns", type=int, help="panels in a row; default: all")
    parser.add_argument("--frames", type=numbers, help="only these frames, as in 0,12,24; default of a .png: 4 of all")
    options = parser.parse_args(arguments)
    if options.output.suffix.lower() not in ENDINGS:
        parser.error(f"output {options.output}: expected a name that ends in {', '.join(ENDINGS)}")
    if len(options.title) not in (0, 1 + len(options.compare)):
        parser.error(f"--title is given {len(options.title)} times for {1 + len(options.compare)} tracks")
    return options


def check(path: Path, tracks: Tracks, name: str, video: Video) -> None:
    """Let pass tracks of this video."""
    if tracks.xy.shape[1] != len(video) or tracks.size != video.size:
        raise DinotrackError(
            f"{path} has {tracks.xy.shape[1]} frames of {tracks.size}, "
            f"{name} has {len(video)} of {video.size}; give the video that was tracked"
        )


def read_truth(path: Path | None, tracks: Tracks) -> PointTruth:
    """The truth.safetensors of an evaluated clip, or tracks of the same queries that are taken as true."""
    if path is None:
        return NO_TRUTH
    if path.suffix == ".safetensors":
        return PointTruth.load(path)
    true = load_npz(path)
    if true.xy.shape[1] != tracks.xy.shape[1]:
        raise DinotrackError(f"{path} has {true.xy.shape[1]} frames, the tracks have {tracks.xy.shape[1]}")
    frames = torch.arange(true.xy.shape[1])
    return PointTruth(true.queries, true.xy, true.visible, frames, torch.zeros(0), true.size, "first")


def evenly(count: int, most: int = 4) -> list[int]:
    """Numbers of at most so many frames of `count`, first and last among them."""
    return torch.linspace(0, count - 1, min(most, count)).round().int().tolist()


def sheet_columns(count: int) -> int:
    """Columns of a sheet of so many frames: two where there are up to four, then three."""
    return min(count, 2 if count <= 4 else 3)
