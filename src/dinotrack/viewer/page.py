"""The page: frames as JPEG, tracks as arrays, and the scripts that draw them, in one file that may load nothing else.

All that comes from the user travels as data: JSON whose `<` are escaped, read by a script that writes it as text. The page's policy
(CSP) names its own script and style by their hash, so that nothing else on it would run, and lets it load nothing.
"""

import base64
import hashlib
import html
import io
import json
import os
from collections.abc import Iterator, Sequence
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from string import Template
from typing import Any, TextIO

import numpy as np
import torch
from jaxtyping import UInt8
from PIL import Image
from torch import Tensor

from dinotrack.data import SYNTHETIC
from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically
from dinotrack.geometry import resize_frames
from dinotrack.progress import Progress, silent
from dinotrack.structs import Tracks, Video
from dinotrack.viewer.objects import NO_OBJECTS, Objects
from dinotrack.viewer.points import Points, TrackSet, unite
from dinotrack.visualization import start_colours

ASSETS = files("dinotrack.viewer") / "assets"
SCRIPTS = (
    "data.js",
    "frames.js",
    "player.js",
    "camera.js",
    "colours.js",
    "selection.js",
    "drawing.js",
    "timeline.js",
    "details.js",
    "export.js",
    "controls.js",
    "main.js",
)
"""In the order in which they are run, as one script."""
FRAMES = "<!-- frames -->"


def write_view(
    video: Video,
    sets: Sequence[TrackSet],
    path: str | os.PathLike[str],
    *,
    objects: Objects = NO_OBJECTS,
    max_side: int = 960,
    quality: int = 85,
    progress: Progress = silent,
) -> None:
    """Write one HTML file that plays the video with one or two files of tracks over it, and needs nothing else.

    Frames are kept one by one as JPEG, not as a film: a browser shows exactly the frame that it is asked for, and tracks never lie
    on their neighbour's.

    Args:
        video: what was tracked.
        sets: its tracks; a second file is laid beside the first, matched by its queries.
        path: a file ending in .html.
        objects: of the first file's points, to colour them by.
        max_side: long side at which frames are kept, in pixels; smaller videos stay as they are.
        quality: of the JPEG frames, 1 to 95.
        progress: shows how far it is.

    Raises:
        DinotrackError: for another ending, sizes or qualities out of range, tracks that are not of this video, and where the
            file cannot be written; nothing half-written stays.
    """
    target = Path(path)
    _check(video, sets, target, max_side, quality)
    points = unite(sets)
    page = _page(_title(video), _payload(video, sets, points, objects))
    head, tail = page.split(FRAMES)

    def write(name: Path) -> None:
        # A file's name may be no text at all: what of it is none becomes a question mark.
        with name.open("w", encoding="utf-8", errors="replace", newline="\n") as file:
            file.write(head)
            _write_frames(file, progress(list(video.frames), "view"), _kept_size(video.frame_size, max_side), quality)
            file.write(tail)

    write_atomically(target, write)


def _check(video: Video, sets: Sequence[TrackSet], target: Path, max_side: int, quality: int) -> None:
    if target.suffix.lower() not in (".html", ".htm"):
        raise DinotrackError(f"cannot write a page to {target}: expected a name that ends in .html")
    if max_side < 16 or not 1 <= quality <= 95:
        raise DinotrackError(f"max_side={max_side}, quality={quality}; expected at least 16 pixels, and 1 to 95")
    if not 1 <= len(sets) <= 2:
        raise DinotrackError(f"{len(sets)} files of tracks; the viewer shows one, or two side by side")
    found, expected = (sets[0].tracks.xy.shape[1], *sets[0].tracks.size), (len(video), *video.size)
    if found != expected:
        raise DinotrackError(
            f"tracks are of (T, W, H) = {found}, the video is {expected}; give the video that was tracked"
        )


def _title(video: Video) -> str:
    """The file's name; a folder of frames has seldom a name of its own, so its parent's goes before it."""
    if video.path.startswith(SYNTHETIC):
        return "synthetic video"
    parts = [part for part in Path(video.path).parts if part != os.sep]
    return "/".join(parts[-1:] if Path(video.path).suffix else parts[-2:]) or "video"


def _kept_size(size: tuple[int, int], max_side: int) -> tuple[int, int]:
    scale = min(1.0, max_side / max(size))
    return max(1, round(size[0] * scale)), max(1, round(size[1] * scale))


def _write_frames(file: TextIO, frames: Any, size: tuple[int, int], quality: int) -> None:
    """Each frame in an element of its own, which the browser keeps as text until the frame is wanted."""
    for text in _encoded(frames, size, quality):
        file.write(f'<script type="text/plain" class="frame">{text}</script>\n')


def _encoded(frames: Any, size: tuple[int, int], quality: int) -> Iterator[str]:
    frame: UInt8[Tensor, "3 h w"]
    for frame in frames:
        small = resize_frames(frame[None].cpu(), size)[0].permute(1, 2, 0).contiguous().numpy()
        buffer = io.BytesIO()
        Image.fromarray(small).save(buffer, format="JPEG", quality=quality, optimize=True)
        yield base64.b64encode(buffer.getvalue()).decode("ascii")


def _payload(video: Video, sets: Sequence[TrackSet], points: Points, objects: Objects) -> dict[str, Any]:
    of = torch.full((len(points),), -1)
    of[: len(objects.of)] = objects.of
    colours = start_colours(_asked(points, sets[0].tracks))
    return {
        "title": _title(video),
        "fps": video.fps,
        "size": list(video.size),
        "frames": len(video),
        "start": video.start,
        "points": len(points),
        "queries": _base64(points.queries.float().numpy(), "<f4"),
        "colours": _base64(colours, "u1"),
        "objects": {"names": list(objects.names), "of": _base64(of.numpy(), "<i4")},
        "confidence": _spread([each.tracks for each in sets]),
        "sets": [_set(each, points, number) for number, each in enumerate(sets)],
    }


def _asked(points: Points, tracks: Tracks) -> Tracks:
    """Tracks that have the queries of all points, and nothing else, for what is made of queries alone."""
    nothing = torch.zeros(len(points), 0)
    return replace(
        tracks,
        queries=points.queries,
        xy=nothing[..., None].expand(-1, -1, 2),
        visible=nothing.bool(),
        confidence=nothing,
    )


def _set(named: TrackSet, points: Points, number: int) -> dict[str, Any]:
    """A file's arrays in the order of all points; NaN where it has no such point."""
    tracks, row = named.tracks.to("cpu"), points.rows[number]
    missing = row < 0
    xy, visible, confidence = (
        values[row.clamp(min=0)] if len(tracks) else values.new_zeros(len(row), *values.shape[1:])
        for values in (tracks.xy.float(), tracks.visible, tracks.confidence.float())
    )
    return {
        "name": named.name,
        "rows": _base64(row.numpy(), "<i4"),
        "xy": _base64(xy.masked_fill(missing[:, None, None], torch.nan).numpy(), "<f4"),
        "visible": _base64(visible.masked_fill(missing[:, None], False).numpy(), "u1"),
        "confidence": _base64(confidence.masked_fill(missing[:, None], torch.nan).numpy(), "<f4"),
    }


def _spread(tracks: Sequence[Tracks], tail: float = 2.0) -> list[float]:
    """Between which confidences the colours run: all but `tail` per cent at either end, since most lie close together."""
    values = np.concatenate([each.confidence.float().numpy(force=True).ravel() for each in tracks])
    values = values[np.isfinite(values)]
    if len(values) == 0:
        return [0.0, 1.0]
    low, high = np.percentile(values, [tail, 100 - tail]).tolist()
    return [low, high] if high - low > 1e-6 else [min(low, 0.0), max(high, 1.0)]


def _base64(array: np.ndarray, kind: str) -> str:
    return base64.b64encode(np.ascontiguousarray(array, np.dtype(kind)).tobytes()).decode("ascii")


def _page(title: str, payload: dict[str, Any]) -> str:
    """The page with a gap for its frames."""
    style, script = _asset("viewer.css"), '"use strict";\n{\n' + "".join(map(_asset, SCRIPTS)) + "}\n"
    return Template(_asset("page.html")).substitute(
        title=html.escape(title),
        style=style,
        script=script,
        style_hash=_hash(style),
        script_hash=_hash(script),
        data=json.dumps(payload, allow_nan=False).replace("<", "\\u003c"),
        frames=FRAMES,
    )


def _asset(name: str) -> str:
    return (ASSETS / name).read_text(encoding="utf-8").replace("\r\n", "\n")


def _hash(text: str) -> str:
    """As a content security policy names what lies between an element's tags."""
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode("ascii")
