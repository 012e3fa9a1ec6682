"""Tracks drawn over their video, and contact sheets of the result."""

import math
import os
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Int, UInt8
from PIL import Image
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.geometry import inside, rescale, resize_frames, to_index
from dinotrack.mp4 import save_video
from dinotrack.progress import Progress, silent
from dinotrack.structs import PIXELS, Tracks, Video, write_atomically

SHIFT = 4
"""Fractional bits of the positions that OpenCV draws at: 1/16 px."""


def draw_tracks(
    video: Video,
    tracks: Tracks,
    *,
    trail: int = 10,
    every: int = 1,
    radius_share: float = 1 / 200,
    min_radius: float = 2.5,
    jump: float = 0.1,
    progress: Progress = silent,
) -> UInt8[Tensor, "t 3 h w"]:
    """The video's frames with discs at visible points, circles at occluded ones, and trails that fade.

    Args:
        video: what was tracked.
        tracks: its tracks; points outside the frame are not drawn.
        trail: frames that a trail looks back; it is drawn where the point was visible.
        every: draw every so many of the tracks.
        radius_share: radius of a point as a share of the long side.
        min_radius: its least radius in pixels.
        jump: a step longer than this share of the long side is a point found elsewhere, not motion; trails leave it out.

    Raises:
        DinotrackError: when tracks and video differ in size or number of frames, or `trail` or `every` is too small.
    """
    _check(video, tracks, trail, every)
    tracks = tracks.to("cpu")[::every]
    radius = max(min_radius, radius_share * max(video.size))
    shown = inside(tracks.xy, tracks.size) & tracks.xy.isfinite().all(-1)
    steady = shown & tracks.visible
    steps = (tracks.xy[:, 1:] - tracks.xy[:, :-1]).norm(dim=-1) <= jump * max(video.size)
    moved = steady[:, 1:] & steady[:, :-1] & steps
    points, colours = opencv_points(torch.where(shown[..., None], tracks.xy, 0.0)), start_colours(tracks)
    drawn = []
    for t, frame in progress(list(enumerate(video.frames)), "overlay"):
        canvas = np.array(frame.permute(1, 2, 0).numpy(force=True), order="C")
        _draw_trails(canvas, points[:, : t + 1], moved[:, :t], colours, trail, radius)
        _draw_points(canvas, points[:, t], shown[:, t], tracks.visible[:, t], colours, radius)
        drawn.append(torch.from_numpy(canvas).permute(2, 0, 1).contiguous())
    return torch.stack(drawn)


def _check(video: Video, tracks: Tracks, trail: int, every: int) -> None:
    found, expected = (tracks.xy.shape[1], *tracks.size), (len(video), *video.size)
    if found != expected:
        raise DinotrackError(
            f"tracks are of (T, W, H) = {found}, the video is {expected}; draw them on their own video"
        )
    if trail < 0 or every < 1:
        raise DinotrackError(f"trail={trail}, every={every}; expected trail >= 0 and every >= 1")


def opencv_points(xy: Float[Tensor, "*n 2"]) -> Int[np.ndarray, "*n 2"]:
    """Raster positions in OpenCV's terms: pixel indices (method §0), in fixed point with `SHIFT` fractional bits."""
    return (to_index(xy, PIXELS) * 2**SHIFT).round().int().numpy()


def start_colours(tracks: Tracks) -> UInt8[np.ndarray, "n 3"]:
    """RGB by each track's query position: hue from left to right, bright and full colours above, paler ones below."""
    x, y = (tracks.queries[:, 1:] / torch.tensor(tracks.size)).nan_to_num().clamp(0, 1).unbind(1)
    hsv = torch.stack([300 * x, 1 - 0.6 * y, torch.ones_like(x)], 1)  # up to 300°, since 360° is red again
    rgb = cv2.cvtColor(hsv[None].float().numpy(), cv2.COLOR_HSV2RGB) if len(tracks) else hsv[None].numpy()
    return (rgb[0] * 255).round().astype(np.uint8)


def _draw_trails(
    canvas: UInt8[np.ndarray, "h w 3"],
    points: Int[np.ndarray, "n t 2"],
    moved: Bool[Tensor, "n s"],
    colours: UInt8[np.ndarray, "n 3"],
    trail: int,
    radius: float,
) -> None:
    """Segments of the last `trail` steps, oldest first; opacity grows to 1 with the newest, and overlaps do not add up."""
    last, thickness = points.shape[1] - 1, max(1, round(radius / 2))
    layer, opacity = canvas.copy(), np.zeros(canvas.shape[:2], np.uint8)
    for age in range(min(trail, last), 0, -1):
        level = round(255 * (1 - (age - 1) / trail))
        for n in moved[:, last - age].nonzero().flatten().tolist():
            ends = points[n, last - age].tolist(), points[n, last - age + 1].tolist()
            cv2.line(layer, *ends, colours[n].tolist(), thickness + 2, cv2.LINE_8, SHIFT)  # wider than its soft edge
            cv2.line(opacity, *ends, level, thickness, cv2.LINE_AA, SHIFT)
    where = opacity > 0
    share = opacity[where][:, None] / 255
    canvas[where] = (share * layer[where] + (1 - share) * canvas[where]).round()


def _draw_points(
    canvas: UInt8[np.ndarray, "h w 3"],
    points: Int[np.ndarray, "n 2"],
    shown: Bool[Tensor, " n"],
    visible: Bool[Tensor, " n"],
    colours: UInt8[np.ndarray, "n 3"],
    radius: float,
) -> None:
    for n in shown.nonzero().flatten().tolist():
        thickness = cv2.FILLED if visible[n] else max(1, round(radius / 3))
        centre = tuple(points[n].tolist())
        cv2.circle(canvas, centre, round(radius * 2**SHIFT), colours[n].tolist(), thickness, cv2.LINE_AA, SHIFT)


def enlarge(video: Video, tracks: Tracks, smallest: int) -> tuple[Video, Tracks]:
    """Both as many whole times larger as a long side of `smallest` pixels wants, at least once."""
    factor = math.ceil(smallest / max(video.size))
    if factor <= 1:
        return video, tracks
    size = (video.size[0] * factor, video.size[1] * factor)
    larger = Video(resize_frames(video.frames, size), video.fps, path=video.path)
    xy = rescale(tracks.xy, video.size, size)
    queries = torch.cat([tracks.queries[:, :1], rescale(tracks.queries[:, 1:], video.size, size)], 1)
    return larger, replace(tracks, xy=xy, queries=queries, size=size)


def render_overlay(
    video: Video,
    tracks: Tracks,
    path: str | os.PathLike[str],
    *,
    trail: int = 10,
    every: int = 1,
    smallest: int = 320,
    progress: Progress = silent,
) -> None:
    """Write `draw_tracks` as an mp4 at the video's frame rate; tiny videos enlarged, so that points can be told apart.

    Raises:
        DinotrackError: where `draw_tracks` or `save_video` does.
    """
    larger, scaled = enlarge(video, tracks, smallest)
    drawn = draw_tracks(larger, scaled, trail=trail, every=every, progress=progress)
    save_video(drawn, path, video.fps)


def contact_sheet(
    frames: UInt8[Tensor, "t 3 h w"], columns: int = 4, count: int = 8, width: int = 240
) -> UInt8[Tensor, "3 h2 w2"]:
    """One picture of at most `count` evenly spaced frames, first and last among them, each `width` pixels wide.

    Raises:
        DinotrackError: without frames, or when columns, count or width is below 1.
    """
    if frames.numel() == 0 or min(columns, count, width) < 1:
        given = f"{len(frames)} frames, columns={columns}, count={count}, width={width}"
        raise DinotrackError(f"no contact sheet of {given}; expected at least 1 of each")
    count = min(count, len(frames))
    columns = min(columns, count)
    chosen = frames[torch.linspace(0, len(frames) - 1, count).round().long()]
    height = max(1, round(width * frames.shape[2] / frames.shape[3]))
    small = F.pad(resize_frames(chosen, (width, height)), (0, 0, 0, 0, 0, 0, 0, -count % columns))
    rows = small.unflatten(0, (-1, columns))
    return rows.permute(2, 0, 3, 1, 4).reshape(3, rows.shape[0] * height, columns * width)


def save_png(picture: UInt8[Tensor, "3 h w"], path: str | os.PathLike[str]) -> None:
    """Write an RGB picture as PNG.

    Raises:
        DinotrackError: when the file cannot be written; nothing half-written stays.
    """
    image = Image.fromarray(picture.permute(1, 2, 0).contiguous().numpy(force=True))
    write_atomically(Path(path), lambda name: image.save(name, format="PNG"))
