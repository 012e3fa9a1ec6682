"""Correspondences between two frames as lines ([P] Fig. 8): best buddies of features, or tracklets of optical flow."""

import math
from typing import Literal

import cv2
import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from dinotrack.geometry import look_up, nearest_cell, rescale, resize_frames
from dinotrack.refined_pairs import PairSearch, refined_best_buddies
from dinotrack.structs import FeatureMap, Grid, Pairs, Tracklets, Tracks, Video
from dinotrack.visualization.layout import panel_size, tile, titled
from dinotrack.visualization.overlay import check_frames
from dinotrack.visualization.palette import row_colours
from dinotrack.visualization.pen import BLACK, SHIFT, Pen, opencv_points, to_canvas


def best_buddies_between(features: FeatureMap, source: int, target: int) -> Pairs:
    """All mutual nearest neighbours (Eq. 3) of two frames, at working resolution; the weight is that of refined ones (§3)."""
    check_frames([source, target], len(features))
    everywhere = torch.ones(len(features), 1, 1, dtype=torch.bool, device=features.values.device)
    cells = features.values.shape[2] * features.values.shape[3]
    all_of_them = PairSearch(points_foreground=cells, points_background=0)
    found = refined_best_buddies(features, everywhere, [(source, target)], all_of_them, torch.Generator())
    return found.to("cpu")


def tracklets_between(tracklets: Tracklets, source: int, target: int) -> Pairs:
    """Where the tracklets that supervise both frames lie in them, at working resolution; each weighs 1."""
    low, high = min(source, target), max(source, target)
    both = ((tracklets.start <= low) & (high < tracklets.start + tracklets.length)).nonzero().squeeze(1)
    here, there = (torch.full_like(both, t) for t in (source, target))
    both = both[tracklets.supervises(both, here) & tracklets.supervises(both, there)]
    here, there = (torch.full_like(both, t) for t in (source, target))
    return Pairs(here, there, tracklets.at(both, here), tracklets.at(both, there), torch.ones(len(both)))


def on_mask(pairs: Pairs, masks: Bool[Tensor, "t h w"], size: tuple[int, int]) -> Pairs:
    """The pairs whose source lies on the foreground; positions are of frames of (W, H) `size`."""
    return pairs[look_up(masks, pairs.source, pairs.source_xy, size)]


def spread(pairs: Pairs, count: int) -> Pairs:
    """At most about `count` pairs, all over the part of the source frame that has any: the heaviest of each square of a grid."""
    if len(pairs) <= count:
        return pairs
    corner = pairs.source_xy.amin(0)
    width, height = (pairs.source_xy.amax(0) - corner).clamp(min=1e-3).tolist()
    stride = math.sqrt(width * height / count)
    square = nearest_cell(
        pairs.source_xy - corner, Grid(stride, stride / 2), _whole(height / stride), _whole(width / stride)
    )
    order = pairs.weight.argsort(descending=True, stable=True)
    order = order[square[order].argsort(stable=True)]
    first = torch.cat([torch.ones(1, dtype=torch.bool), square[order].diff() != 0])
    return pairs[order[first]]


def _whole(cells: float) -> int:
    return max(1, round(cells))


def draw_matches(
    video: Video,
    pairs: Pairs,
    size: tuple[int, int],
    source: int,
    target: int,
    *,
    title: str = "",
    layout: Literal["beside", "below"] = "beside",
    widest: int = 1920,
) -> UInt8[Tensor, "3 h w"]:
    """The source frame with the target frame beside or below it, and a line for each pair, coloured by its row in the source.

    `size` is the (W, H) of the frames that the pairs' positions are of; a `title` stands in a bar above.

    Raises:
        DinotrackError: for a frame that the video does not have.
    """
    check_frames([source, target], len(video))
    columns = 2 if layout == "beside" else 1
    panel = panel_size(video.size, columns, widest=widest)
    two = resize_frames(video.frames[[source, target]], panel)
    sheet = tile([two[:1], two[1:]], columns)[0]
    canvas, pen = to_canvas(sheet), Pen.of(panel)
    offset = torch.tensor([sheet.shape[2] - panel[0], sheet.shape[1] - panel[1]]).float()
    starts, ends = rescale(pairs.source_xy, size, panel), rescale(pairs.target_xy, size, panel) + offset
    lines = [
        opencv_points(starts).tolist(),
        opencv_points(ends).tolist(),
        row_colours(_as_tracks(starts, panel)).tolist(),
    ]
    for a, b, colour in zip(*lines, strict=True):
        cv2.line(canvas, a, b, colour, pen.line, cv2.LINE_AA, SHIFT)
    for a, b, colour in zip(*lines, strict=True):
        for end in (a, b):
            for shade, radius in ((BLACK, 1.2 * pen.radius + 1), (colour, 1.2 * pen.radius)):
                cv2.circle(canvas, end, round(radius * 2**SHIFT), shade, cv2.FILLED, cv2.LINE_AA, SHIFT)
    drawn = torch.from_numpy(canvas).permute(2, 0, 1).contiguous()
    return titled(drawn[None], title, pen)[0] if title else drawn


def _as_tracks(xy: Tensor, size: tuple[int, int]) -> Tracks:
    """Points as tracks of one frame, which is what colours are given to."""
    queries = torch.cat([torch.zeros(len(xy), 1), xy], 1)
    ones = torch.ones(len(xy), 1)
    return Tracks(queries, xy[:, None], ones.bool(), ones, size, 1.0)
