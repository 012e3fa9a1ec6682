"""Frames put together: resized with their tracks, titled, side by side, as contact sheets, as PNG."""

import math
import os
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from jaxtyping import UInt8
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically
from dinotrack.geometry import rescale, resize_frames
from dinotrack.structs import Tracks, Video
from dinotrack.visualization.pen import Pen

PAPER, INK = (24, 24, 27), (244, 244, 245)
"""Of title bars and gaps."""


def resized(video: Video, size: tuple[int, int]) -> Video:
    """The video at (W, H) `size`, without its masks: what marks are drawn on, so that they are not resized themselves."""
    return Video(resize_frames(video.frames, size), video.fps, path=video.path, start=video.start)


def resized_tracks(tracks: Tracks, size: tuple[int, int]) -> Tracks:
    """The tracks of the video at (W, H) `size`."""
    xy = rescale(tracks.xy, tracks.size, size)
    queries = torch.cat([tracks.queries[:, :1], rescale(tracks.queries[:, 1:], tracks.size, size)], 1)
    return replace(tracks, xy=xy, queries=queries, size=size)


def enlarge(video: Video, tracks: Tracks, smallest: int) -> tuple[Video, Tracks]:
    """Both at the size of the frames, as many whole times larger as a long side of `smallest` pixels wants, at least once."""
    size = enlarged(video.frame_size, smallest)
    return (video, tracks) if size == video.size else (resized(video, size), resized_tracks(tracks, size))


def enlarged(size: tuple[int, int], smallest: int) -> tuple[int, int]:
    """(W, H) times the least whole number that makes the long side at least `smallest`."""
    factor = max(1, math.ceil(smallest / max(size)))
    return size[0] * factor, size[1] * factor


def panel_size(size: tuple[int, int], columns: int, smallest: int = 320, widest: int = 1920) -> tuple[int, int]:
    """(W, H) of one of so many panels in a row of at most about `widest` pixels; even, and never below 16."""
    width, height = enlarged(size, smallest)
    scale = min(1.0, widest / (columns * width))
    return max(16, 2 * round(width * scale / 2)), max(16, 2 * round(height * scale / 2))


def titled(frames: UInt8[Tensor, "t 3 h w"], text: str, pen: Pen | None = None) -> UInt8[Tensor, "t 3 h2 w"]:
    """Frames below a bar with a line of text, as large as `pen` or the frames say; what is too long is cut."""
    height, width = frames.shape[2:]
    bar = torch.from_numpy(title_bar(text, width, (pen or Pen.of((width, height))).font)).permute(2, 0, 1)
    return torch.cat([bar.expand(len(frames), -1, -1, -1), frames.cpu()], 2)


def title_bar(text: str, width: int, font_size: int) -> UInt8[np.ndarray, "h w 3"]:
    """A bar of `width` pixels with a line of text in its middle."""
    font, words = ImageFont.load_default(font_size), " ".join(text.split())
    image = Image.new("RGB", (width, 2 * round(0.9 * font_size)), PAPER)
    draw = ImageDraw.Draw(image)
    shown, room = words, width - font_size
    while shown and draw.textlength(shown, font) > room:
        words = words[:-1]
        shown = f"{words.rstrip()}..." if words else ""
    draw.text((width / 2, image.height / 2), shown, INK, font, anchor="mm")
    return np.array(image)


def tile(
    panels: Sequence[UInt8[Tensor, "t 3 h w"]], columns: int | None = None, gap: int = 4
) -> UInt8[Tensor, "t 3 h2 w2"]:
    """Panels of one size in rows of `columns` (default: one row), `gap` pixels apart.

    Raises:
        DinotrackError: without panels, or when they differ in size.
    """
    if not panels or len({tuple(panel.shape) for panel in panels}) > 1:
        raise DinotrackError(f"panels of {[tuple(panel.shape) for panel in panels]}; expected some of one size")
    count, _, height, width = panels[0].shape
    columns = min(columns or len(panels), len(panels))
    rows = math.ceil(len(panels) / columns)
    shape = (count, 3, rows * (height + gap) - gap, columns * (width + gap) - gap)
    sheet = torch.tensor(PAPER, dtype=torch.uint8)[None, :, None, None].repeat(count, 1, *shape[2:])
    for k, panel in enumerate(panels):
        top, left = k // columns * (height + gap), k % columns * (width + gap)
        sheet[:, :, top : top + height, left : left + width] = panel
    return sheet


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
