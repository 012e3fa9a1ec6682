"""Tracks drawn over their video: points, trails that fade, and lines to where the points truly are."""

import os
from collections.abc import Sequence
from pathlib import Path

import cv2
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.geometry import inside, rescale
from dinotrack.mp4 import save_video
from dinotrack.progress import Progress, silent
from dinotrack.structs import NO_TRUTH, PointTruth, Tracks, Video
from dinotrack.visualization.layout import enlarge
from dinotrack.visualization.palette import track_colours
from dinotrack.visualization.pen import RED, SHIFT, WHITE, Pen, cross, opencv_points, to_canvas


def draw_tracks(
    video: Video,
    tracks: Tracks,
    *,
    trail: int = 10,
    every: int = 1,
    colour: str = "start",
    truth: PointTruth = NO_TRUTH,
    frames: Sequence[int] | None = None,
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
        colour: start, by where a track starts; rainbow, by its row; confidence.
        truth: where these points truly are: a red line from each point to a cross there, in annotated frames where it is
            visible ([P] Fig. 5).
        frames: which frames to draw; all if None.
        radius_share: radius of a point as a share of the long side.
        min_radius: its least radius in pixels.
        jump: a step longer than this share of the long side is a point found elsewhere, not motion; trails leave it out.

    Raises:
        DinotrackError: when tracks and video differ in size or number of frames, when the truth is of other queries, for a
            frame that the video does not have or an unknown colour, or when `trail` or `every` is too small.
    """
    _check(video, tracks, trail, every)
    video, tracks = enlarge(video, tracks, smallest=1)  # frames that were scaled down are drawn on as they are
    chosen = range(len(video)) if frames is None else check_frames(frames, len(video))
    errors = ErrorLines.of(tracks, truth, every)
    tracks = tracks.to("cpu")[::every]
    pen = Pen.of(video.size, radius_share, min_radius)
    shown = inside(tracks.xy, tracks.size) & tracks.xy.isfinite().all(-1)
    steady = shown & tracks.visible
    steps = (tracks.xy[:, 1:] - tracks.xy[:, :-1]).norm(dim=-1) <= jump * max(video.size)
    moved = steady[:, 1:] & steady[:, :-1] & steps
    points, colours = opencv_points(torch.where(shown[..., None], tracks.xy, 0.0)), track_colours(tracks, colour)
    drawn = []
    for t in progress(chosen, "overlay"):
        canvas = to_canvas(video.frames[t])
        _draw_trails(canvas, points[:, : t + 1], moved[:, :t], colours, trail, pen)
        errors.draw(canvas, t, pen)
        _draw_points(canvas, points[:, t], shown[:, t], tracks.visible[:, t], colours[:, t], pen)
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


def check_frames(frames: Sequence[int], count: int) -> list[int]:
    """Let pass numbers of frames of a video of `count`, at least one.

    Raises:
        DinotrackError: for none, or one that there is not.
    """
    wrong = [t for t in frames if not 0 <= t < count]
    if wrong or not len(frames):
        raise DinotrackError(f"frames {list(frames)}; expected some of 0 to {count - 1}")
    return list(frames)


class ErrorLines:
    """Lines from where points were said to be to where they are, in the pixels of the tracks."""

    def __init__(
        self,
        frames: Int[Tensor, " f"],
        said: Float[Tensor, "n f 2"],
        true: Float[Tensor, "n f 2"],
        shown: Bool[Tensor, "n f"],
    ) -> None:
        self.column = {int(t): k for k, t in enumerate(frames)}
        self.said, self.true, self.shown = said, true, shown

    @classmethod
    def of(cls, tracks: Tracks, truth: PointTruth, every: int = 1, near: float = 1.0) -> "ErrorLines":
        """Of every so many tracks; no truth makes no lines.

        Raises:
            DinotrackError: when the queries differ, by more than `near` pixels or in their frame, or frames lie outside.
        """
        if not len(truth):
            nothing = torch.zeros(0, 0, 2)
            return cls(truth.frames[:0], nothing, nothing, torch.zeros(0, 0, dtype=torch.bool))
        asked = rescale(truth.queries[:, 1:].double(), truth.size, tracks.size).float()
        expected = torch.cat([truth.queries[:, :1].float(), asked], 1)
        same = expected.shape == tracks.queries.shape and bool(
            ((expected - tracks.queries.cpu().float()).abs() <= expected.new_tensor([0.0, near, near])).all()
        )
        if not same or int(truth.frames.max()) >= tracks.xy.shape[1]:
            raise DinotrackError(
                f"the ground truth is of {len(truth)} queries and frames up to {int(truth.frames.max())}, the tracks are of "
                f"{len(tracks)} queries and {tracks.xy.shape[1]} frames; give the truth of the same queries"
            )
        said = tracks.xy.cpu()[:, truth.frames].float()
        true = rescale(truth.xy.double(), truth.size, tracks.size).float()
        shown = truth.visible & said.isfinite().all(-1) & true.isfinite().all(-1)
        reach = 4 * max(tracks.size)  # beyond it OpenCV's numbers end; the line leaves the picture anyway
        return cls(truth.frames, said[::every].clamp(-reach, reach), true[::every], shown[::every])

    def draw(self, canvas: UInt8[np.ndarray, "h w 3"], frame: int, pen: Pen) -> None:
        """The lines of one frame."""
        column = self.column.get(frame)
        if column is None:
            return
        rows = self.shown[:, column].nonzero().flatten()
        said, true = self.said[rows, column], self.true[rows, column]
        for start, end in zip(opencv_points(said).tolist(), opencv_points(true).tolist(), strict=True):
            cv2.line(canvas, start, end, RED, pen.line, cv2.LINE_AA, SHIFT)
        for xy in true:
            cross(canvas, xy, 0.8 * pen.radius, WHITE, pen.thin)


def _draw_trails(
    canvas: UInt8[np.ndarray, "h w 3"],
    points: Int[np.ndarray, "n t 2"],
    moved: Bool[Tensor, "n s"],
    colours: UInt8[np.ndarray, "n t2 3"],
    trail: int,
    pen: Pen,
) -> None:
    """Segments of the last `trail` steps, oldest first; opacity grows to 1 with the newest, and overlaps do not add up."""
    last, thickness = points.shape[1] - 1, pen.line
    layer, opacity = canvas.copy(), np.zeros(canvas.shape[:2], np.uint8)
    for age in range(min(trail, last), 0, -1):
        level = round(255 * (1 - (age - 1) / trail))
        for n in moved[:, last - age].nonzero().flatten().tolist():
            ends = points[n, last - age].tolist(), points[n, last - age + 1].tolist()
            colour = colours[n, last - age + 1].tolist()
            cv2.line(layer, *ends, colour, thickness + 2, cv2.LINE_8, SHIFT)  # wider than its soft edge
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
    pen: Pen,
) -> None:
    for n in shown.nonzero().flatten().tolist():
        thickness = cv2.FILLED if visible[n] else pen.thin
        centre = tuple(points[n].tolist())
        cv2.circle(canvas, centre, round(pen.radius * 2**SHIFT), colours[n].tolist(), thickness, cv2.LINE_AA, SHIFT)


def render_overlay(
    video: Video,
    tracks: Tracks,
    path: str | os.PathLike[str],
    *,
    trail: int = 10,
    every: int = 1,
    colour: str = "start",
    truth: PointTruth = NO_TRUTH,
    smallest: int = 320,
    progress: Progress = silent,
) -> None:
    """Write `draw_tracks` as an mp4 at the video's frame rate; tiny videos enlarged, so that points can be told apart.

    Raises:
        DinotrackError: where `draw_tracks` or `save_video` does.
    """
    larger, scaled = enlarge(video, tracks, smallest)
    marks = {"trail": trail, "every": every, "colour": colour, "truth": truth}
    save_video(draw_tracks(larger, scaled, **marks, progress=progress), Path(path), video.fps)
