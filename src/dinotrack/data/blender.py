"""Tracks for Blender: a Python script, run inside Blender, that makes tracking markers of a movie clip; docs/exports.md says how.

A marker's place is a share of the clip, x from the left and y from the bottom edge, with pixel centres at 0.5 as ours; its frame
counts from the clip's own first frame, which is 1 wherever the clip starts in the scene.
"""

import json
import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch

from dinotrack.data.export import point_ids
from dinotrack.files import write_atomically
from dinotrack.structs import Tracks

SCRIPT = '''"""Make tracking markers of a movie clip from dinotrack's tracks, inside Blender (2.80 or later):

    blender --python {name} -- clip.mp4

or open it in the Text Editor and run it: it takes the scene's active clip, or the only one.
"""

import json
import os
import sys

import bpy

TRACKS = json.loads({data!r})


def find_clip():
    """The clip that is named after -- on the command line, the scene's active one, or the only one."""
    words = sys.argv[sys.argv.index("--") + 1 :] if "--" in sys.argv else []
    if words:
        return bpy.data.movieclips.load(os.path.abspath(words[0]))  # a saved scene is opened from elsewhere
    clips = list(bpy.data.movieclips)
    clip = bpy.context.scene.active_clip or (clips[0] if len(clips) == 1 else None)
    if clip is None:
        raise RuntimeError(f"{{len(clips)}} movie clips are open: make one the scene's active clip, or name a file after --")
    return clip


def add_tracks(clip):
    """A track for each point; markers are muted where the point is occluded."""
    width, height = clip.size
    if abs(width * TRACKS["height"] - height * TRACKS["width"]) > max(width, height):
        print(f"dinotrack: the clip is {{width}}x{{height}}, the tracks are of {{TRACKS['width']}}x{{TRACKS['height']}}")
    for point in TRACKS["points"]:
        track = clip.tracking.tracks.new(name=point["name"], frame=point["markers"][0][0])
        for frame, x, y, muted in point["markers"]:
            marker = track.markers.insert_frame(frame, co=(x, y))
            marker.mute = bool(muted)


add_tracks(find_clip())
'''


def save_blender(
    tracks: Tracks, path: str | os.PathLike[str], ids: Sequence[int] = (), *, first_frame: int = 1
) -> None:
    """Write the script with the tracks in it; `first_frame` is the clip's frame that the first tracked one is.

    Raises:
        DinotrackError: when the file cannot be written; nothing half-written stays.
    """
    width, height = tracks.size
    content = {"width": width, "height": height, "points": blender_points(tracks, ids, first_frame)}
    # Data enters the script as the literal of a string of JSON, whatever it holds; the name only as a plain word.
    name = "".join(letter if letter.isalnum() or letter in "._-" else "_" for letter in Path(path).name)
    text = SCRIPT.format(name=name, data=json.dumps(content, allow_nan=False))
    write_atomically(Path(path), lambda file: file.write_text(text, encoding="utf-8"))


def blender_points(tracks: Tracks, ids: Sequence[int] = (), first_frame: int = 1) -> list[dict[str, Any]]:
    """Names and markers (frame, x, y, muted) of the points that have a position at all.

    A marker holds until the next one. Frames without a position therefore have a muted one, where the point was last or will
    first be, and another ends the track.
    """
    xy = tracks.xy.double().cpu() / torch.tensor(tracks.size)
    known, points = xy.isfinite().all(-1), []
    for row, number in enumerate(point_ids(tracks, ids)):
        if not known[row].any():
            continue
        at, markers = int(known[row].nonzero()[0]), []
        for t in range(xy.shape[1]):
            at = t if known[row, t] else at
            x, y = xy[row, at].tolist()
            shown = bool(known[row, t] and tracks.visible[row, t])
            markers.append([first_frame + t, round(x, 7), round(1 - y, 7), 0 if shown else 1])
        markers.append([first_frame + xy.shape[1], *markers[-1][1:3], 1])
        points.append({"name": f"point_{number:04d}", "markers": markers})
    return points
