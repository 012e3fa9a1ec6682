"""`dinotrack render RUN [OUTPUT]`, or `dinotrack render tracks.npz VIDEO [OUTPUT]`; OUTPUT is overlay.mp4 or a picture.png."""

import argparse
from collections.abc import Sequence
from pathlib import Path

import torch

from dinotrack.data.export import load_npz
from dinotrack.errors import DinotrackError
from dinotrack.mp4 import save_video
from dinotrack.progress import shown
from dinotrack.structs import NO_TRUTH, PointTruth, Tracks
from dinotrack.tools.arguments import numbers
from dinotrack.viewer import open_sources
from dinotrack.visualization import COLOURINGS, compare_tracks, render_overlay, save_png
from dinotrack.visualization.side_by_side import frames_in_a_row

ENDINGS = (".mp4", ".m4v", ".mov", ".png")


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    part = {"start": options.start, "max_side": options.max_side}
    video, sets = open_sources(options.tracks, *options.compare, video=options.video, **part)
    tracks = [each.tracks for each in sets]
    if options.output.resolve() == Path(video.path).resolve():
        raise DinotrackError(f"{options.output} is the video that was tracked; give the picture another name")
    marks = {"trail": options.trail, "every": options.every, "colour": options.colour}
    marks["truth"] = read_truth(options.truth, tracks[0])
    if options.output.suffix.lower() == ".png":
        chosen = options.frames or evenly(len(video))
        drawn = compare_tracks(video, tracks, options.title, **marks, frames=chosen, columns=options.columns)
        save_png(frames_in_a_row(drawn, sheet_columns(len(chosen)), chosen), options.output)
    elif options.compare or options.title or options.frames:
        picked = {"frames": options.frames, "columns": options.columns, "progress": shown}
        save_video(compare_tracks(video, tracks, options.title, **marks, **picked), options.output, video.fps)
    else:
        render_overlay(video, tracks[0], options.output, **marks, progress=shown)
    print(options.output)


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    usage = "%(prog)s RUN [OUTPUT] [options]\n       %(prog)s tracks.npz VIDEO [OUTPUT] [options]"
    parser = argparse.ArgumentParser("dinotrack render", usage, description="draw tracks over their video")
    parser.add_argument("tracks", type=Path, help="a run folder, or a file of tracks (.npz)")
    words = "the video that was tracked, then the output, which ends in .mp4 or .png; default: overlay.mp4"
    parser.add_argument("words", nargs="*", metavar="VIDEO, OUTPUT", help=words)
    parser.add_argument("--video", help="where the video is, if not where it was tracked")
    parser.add_argument("--trail", type=int, default=10, help="frames of a track that stay behind each point")
    parser.add_argument("--every", type=int, default=1, help="draw only every so many-th point")
    parser.add_argument("--start", type=int, help="first frame that was tracked, if the run folder does not say")
    parser.add_argument(
        "--max-side",
        type=int,
        default=1920,
        help="long side that larger frames are drawn at, if the run folder does not say",
    )
    parser.add_argument("--colour", choices=tuple(COLOURINGS), default="start", help="what a point's colour says")
    parser.add_argument("--truth", type=Path, help="true positions: red lines show the errors; .npz or .safetensors")
    parser.add_argument(
        "--compare", type=Path, action="append", default=[], help="another tracker's tracks, in a panel beside"
    )
    parser.add_argument("--title", action="append", default=[], help="of each panel in turn, tracks first")
    parser.add_argument("--columns", type=int, help="panels in a row; default: all")
    parser.add_argument("--frames", type=numbers, help="only these frames, as in 0,12,24; default of a .png: 4 of all")
    options = parser.parse_intermixed_args(arguments)
    options.video, options.output = places(options, parser)
    if options.output.suffix.lower() not in ENDINGS:
        parser.error(f"output {options.output}: expected a name that ends in {', '.join(ENDINGS)}")
    if len(options.title) not in (0, 1 + len(options.compare)):
        parser.error(f"--title is given {len(options.title)} times for {1 + len(options.compare)} tracks")
    return options


def places(options: argparse.Namespace, parser: argparse.ArgumentParser) -> tuple[str | None, Path]:
    """Where the video and the output are: of a run folder the video is known, after a file of tracks it comes first."""
    words = list(options.words)
    told = options.video is not None
    if len(words) > 2 - told:
        parser.error(f"{' '.join(words)}: expected at most {'OUTPUT' if told else 'VIDEO and OUTPUT'}")
    first = not told and (len(words) == 2 or (len(words) == 1 and not options.tracks.is_dir()))
    video = words.pop(0) if first else options.video
    return video, Path(words[0] if words else "overlay.mp4")


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
