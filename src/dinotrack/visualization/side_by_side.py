"""Several trackers' tracks of one video, each in a panel of its own under its title."""

from collections.abc import Sequence

import torch
from jaxtyping import UInt8
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.progress import Progress, silent
from dinotrack.structs import NO_TRUTH, PointTruth, Tracks, Video
from dinotrack.visualization.layout import panel_size, resized, resized_tracks, tile, titled
from dinotrack.visualization.overlay import check_frames, draw_tracks


def compare_tracks(
    video: Video,
    tracks: Sequence[Tracks],
    titles: Sequence[str] = (),
    *,
    trail: int = 10,
    every: int = 1,
    colour: str = "start",
    truth: PointTruth = NO_TRUTH,
    frames: Sequence[int] | None = None,
    columns: int | None = None,
    widest: int = 1920,
    progress: Progress = silent,
) -> UInt8[Tensor, "t 3 h w"]:
    """Frames that show each of `tracks` in a panel, in rows of `columns` (default: one row) and at most about `widest` pixels.

    Marks are drawn after the panels were resized. Without `titles` the panels have no bars.

    Raises:
        DinotrackError: for another number of titles than of tracks, or where `draw_tracks` does.
    """
    if not tracks or len(titles) not in (0, len(tracks)) or (columns is not None and columns < 1):
        given = f"{len(titles)} titles for {len(tracks)} tracks in {columns} columns"
        raise DinotrackError(f"{given}; expected one title for each, or none, and at least one of each")
    columns = min(columns or len(tracks), len(tracks))
    chosen = list(range(len(video))) if frames is None else check_frames(frames, len(video))
    size = panel_size(video.size, columns, widest=widest)
    small = resized(video, size)
    panels: list[Tensor] = []
    for k, each in enumerate(tracks):
        if each.size != video.size:
            raise DinotrackError(f"tracks of {each.size} for a video of {video.size}; draw them on their own video")
        marks = {"trail": trail, "every": every, "colour": colour, "truth": truth, "frames": chosen}
        drawn = draw_tracks(small, resized_tracks(each, size), **marks, progress=progress)
        panels.append(titled(drawn, titles[k]) if titles else drawn)
    return tile(panels, columns)


def frames_in_a_row(
    frames: UInt8[Tensor, "t 3 h w"], columns: int, numbers: Sequence[int] = ()
) -> UInt8[Tensor, "3 h2 w2"]:
    """All frames as one picture, row by row, the last row filled up; with `numbers` each says above it which it is."""
    if numbers:
        bars = [titled(frame[None], f"frame {t}") for frame, t in zip(frames, numbers, strict=True)]
        frames = torch.cat(bars)
    missing = -len(frames) % min(columns, len(frames))
    filled = torch.cat([frames, frames.new_full((missing, *frames.shape[1:]), 24)])
    return tile([frame[None] for frame in filled], columns)[0]
