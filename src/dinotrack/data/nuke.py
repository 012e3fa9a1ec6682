"""Tracks for Nuke: a script with a Tracker node, and the text files that its File > Import reads; docs/exports.md says how.

Nuke's y goes up from the bottom edge, its pixel centres lie at 0.5 as ours do, and its clips start at frame 1 unless told
otherwise.
"""

import os
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from dinotrack.data.export import point_ids
from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically
from dinotrack.structs import Tracks

COLUMNS = (
    *("5 1 20 enable e 1", "3 1 75 name name 1", "2 1 58 track_x track_x 1", "2 1 58 track_y track_y 1"),
    *("2 1 63 offset_x offset_x 1", "2 1 63 offset_y offset_y 1", "4 1 27 T T 1", "4 1 27 R R 1", "4 1 27 S S 1"),
    *("2 0 45 error error 1", "1 1 0 error_min error_min 1", "1 1 0 error_max error_max 1"),
    *(f"1 1 0 {box}_{side} {box}_{side} 1" for box in ("pattern", "search") for side in "xyrt"),
    "2 1 0 key_track key_track 1",
    *(f"2 1 0 key_{box}_{side} key_{box}_{side} 1" for box in ("search", "track") for side in "xyrt"),
    *(f"2 1 0 key_centre_offset_{axis} key_centre_offset_{axis} 1" for axis in "xy"),
)
"""What a row of a Tracker4's table has, as Nuke itself writes it."""
BOXES = "-32 -32 32 32 -22 -22 22 22"
"""Pattern and search box of a new track: only Nuke's own tracking would look there."""


@dataclass(frozen=True)
class Keys:
    """One point's keys in Nuke's terms."""

    name: str
    frames: list[int]
    x: list[float]
    y: list[float]
    enabled: list[bool]


def nuke_keys(tracks: Tracks, ids: Sequence[int] = (), first_frame: int = 1) -> Iterator[Keys]:
    """Each point's keys, y from the bottom edge; frames without a position have none, and points without any are left out."""
    xy = tracks.xy.double().cpu()
    known, up = xy.isfinite().all(-1), tracks.size[1] - xy[..., 1]
    for row, number in enumerate(point_ids(tracks, ids)):
        at = known[row].nonzero().flatten()
        frames = [first_frame + t for t in at.tolist()]
        if frames:
            columns = (xy[row, at, 0].tolist(), up[row, at].tolist(), tracks.visible[row].cpu()[at].tolist())
            yield Keys(f"point_{number:04d}", frames, *columns)


def save_nuke(tracks: Tracks, path: str | os.PathLike[str], ids: Sequence[int] = (), *, first_frame: int = 1) -> None:
    """Write a script with one Tracker4 node that has a track for each point; `enable` is 0 where a point is occluded.

    Raises:
        DinotrackError: when the file cannot be written; nothing half-written stays.
    """
    rows = [_row(keys) for keys in nuke_keys(tracks, ids, first_frame)]
    columns = " \n".join(f"{{ {column} }}" for column in COLUMNS)
    table = f"{{ {{ 1 {len(COLUMNS)} {len(rows)} }} \n{{ {columns} \n}} \n{{ \n{''.join(rows)}}} \n}}"
    knobs = f"inputs 0\ntracks {table}\nreference_frame {first_frame}\nname Tracker_dinotrack\n"
    text = f"# {tracks.size[0]}x{tracks.size[1]}, frames {first_frame} to {first_frame + tracks.xy.shape[1] - 1}\n"
    text += f"version 7.0 v1\nTracker4 {{\n{knobs}}}\n"
    write_atomically(Path(path), lambda name: name.write_text(text, encoding="utf-8"))


def _row(keys: Keys) -> str:
    start = keys.frames[0]
    enabled = [k for k in range(len(keys.frames)) if k == 0 or keys.enabled[k] != keys.enabled[k - 1]]
    steps = " ".join(f"x{keys.frames[k]} {int(keys.enabled[k])}" for k in enabled)  # K holds a value until the next key
    zero, nothing = f"{{curve K x{start} 0}}", " ".join(["{}"] * 11)
    marks = f'{{curve K {steps}}} "{keys.name}" {_curve(keys.frames, keys.x)} {_curve(keys.frames, keys.y)}'
    return f" {{ {marks} {zero} {zero} 1 0 0 {{curve x{start} 0}} 1 0 {BOXES} {nothing} }} \n"


def _curve(frames: list[int], values: list[float]) -> str:
    """A key for each frame, each with its number: Nuke counts on from a key without one."""
    return "{curve " + " ".join(f"x{frame} {value:.4f}" for frame, value in zip(frames, values, strict=True)) + "}"


def save_nuke_text(
    tracks: Tracks, path: str | os.PathLike[str], ids: Sequence[int] = (), *, first_frame: int = 1
) -> list[Path]:
    """Write a text file of `frame x y` lines for each point, which is what the import of one track reads: NAME.0007.txt.

    Raises:
        DinotrackError: when there is no position to write, or a file cannot be written.
    """
    target, written = Path(path), []
    for keys in nuke_keys(tracks, ids, first_frame):
        lines = [f"{t} {x:.4f} {y:.4f}" for t, x, y in zip(keys.frames, keys.x, keys.y, strict=True)]
        text = "\n".join([f"# {keys.name} of {tracks.size[0]}x{tracks.size[1]}: frame x y", *lines, ""])
        file = target.with_name(f"{target.stem}.{keys.name.removeprefix('point_')}{target.suffix or '.txt'}")
        write_atomically(file, lambda name, text=text: name.write_text(text, encoding="utf-8"))
        written.append(file)
    if not written:
        raise DinotrackError(f"no point has a position, so there is no file to write beside {target}")
    return written
