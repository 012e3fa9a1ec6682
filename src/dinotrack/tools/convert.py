"""`dinotrack convert tracks.npz OUTPUT [options]`."""

import argparse
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dinotrack.data.blender import save_blender
from dinotrack.data.export import load_npz, load_numbered_csv, save_csv, save_npz, visible_only
from dinotrack.data.keypoints import load_numbered_json, save_json
from dinotrack.data.nuke import save_nuke, save_nuke_text
from dinotrack.errors import DinotrackError
from dinotrack.structs import Tracks
from dinotrack.tools.arguments import numbers, size
from dinotrack.viewer import described, tracks_file

ENDINGS = {".npz": "npz", ".csv": "csv", ".json": "json", ".nk": "nuke", ".txt": "nuke-text", ".py": "blender"}
NUMBERED: dict[str, Callable[..., Any]] = {
    "json": save_json,
    "nuke": save_nuke,
    "nuke-text": save_nuke_text,
    "blender": save_blender,
}
"""Formats whose frames bear numbers."""


def main(arguments: Sequence[str]) -> None:
    options = parse(arguments)
    options.tracks = tracks_file(options.tracks)
    tracks, numbers, first = read(options)
    if options.first_frame is None and options.format in NUMBERED:
        options.first_frame = first or begin_of_run(options)
    row = {number: index for index, number in enumerate(numbers)}
    ids = options.points or numbers
    missing = [number for number in ids if number not in row]
    if missing:
        raise DinotrackError(f"--points {missing[0]}: {options.tracks} has points {in_short(numbers)}")
    tracks = tracks[[row[number] for number in ids]]
    tracks = visible_only(tracks) if options.visible_only else tracks
    print(*write(tracks, options, ids), sep="\n")


def parse(arguments: Sequence[str]) -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="dinotrack convert", description="tracks for other programs")
    parser.add_argument("tracks", type=Path, help="a run folder, its tracks.npz, or a .csv or .json of them")
    parser.add_argument("output", type=Path, help=f"its ending says what: {', '.join(ENDINGS)}")
    parser.add_argument("--format", choices=tuple(ENDINGS.values()), help="whatever the ending says")
    parser.add_argument(
        "--first-frame",
        type=int,
        help="number of the first frame; default: 1, after a run with start=30 31; in .json 0",
    )
    parser.add_argument("--visible-only", action="store_true", help="leave out positions where a point is occluded")
    parser.add_argument("--points", type=numbers, help="only these, as in 0,5,9; they keep their numbers")
    parser.add_argument("--size", type=size, help="of the video, WxH, when the tracks are a .csv, which does not say")
    parser.add_argument("--fps", type=float, default=25.0, help="likewise; default: 25")
    options = parser.parse_args(arguments)
    options.format = options.format or ENDINGS.get(options.output.suffix.lower())
    if options.format is None:
        parser.error(f"output {options.output}: expected a name that ends in {', '.join(ENDINGS)}, or --format")
    if options.first_frame is not None and options.format not in NUMBERED:
        parser.error(f"--first-frame: frames of .{options.format} always count from 0")
    is_csv = options.tracks.suffix.lower() == ".csv" and not options.tracks.is_dir()
    if is_csv != (options.size is not None):
        parser.error("--size is needed for tracks in a .csv, and only there")
    if options.points and len(set(options.points)) < len(options.points):
        parser.error("--points: a number is given twice")
    return options


def read(options: argparse.Namespace) -> tuple[Tracks, list[int], int]:
    """The tracks by their file's ending, NPZ the default; their points' numbers, and the first frame's, 0 where it has none."""
    ending = options.tracks.suffix.lower()
    if ending == ".csv":
        return *load_numbered_csv(options.tracks, options.size, options.fps), 0
    if ending == ".json":
        return load_numbered_json(options.tracks)
    tracks = load_npz(options.tracks)
    return tracks, list(range(len(tracks))), 0


def begin_of_run(options: argparse.Namespace) -> int | None:
    """The number of the first tracked frame in the whole clip, for plates of the whole clip; None where that is the usual one."""
    start = int(described(options.tracks, "give --first-frame").get("start") or 0)
    if not start or options.format == "json":
        return None
    print(f"--first-frame {1 + start}: the run began at start={start}", file=sys.stderr)
    return 1 + start


def in_short(numbers: Sequence[int], most: int = 8) -> str:
    """Numbers for a message: a row of them by its ends, of others the first few."""
    if list(numbers) == list(range(len(numbers))):
        return f"0 to {len(numbers) - 1}"
    return ", ".join(str(number) for number in numbers[:most]) + (", ..." if len(numbers) > most else "")


def write(tracks: Tracks, options: argparse.Namespace, ids: list[int]) -> list[Path]:
    """The files that were written."""
    if options.format in NUMBERED:
        numbered = {} if options.first_frame is None else {"first_frame": options.first_frame}
        return NUMBERED[options.format](tracks, options.output, ids, **numbered) or [
            options.output
        ]  # one file a point, or the one
    if options.format == "csv":
        save_csv(tracks, options.output, ids)
    else:
        save_npz(tracks, options.output)
    return [options.output]
