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
from dinotrack.visualization.layout import panel_size, tile
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


def spread(pairs: Pairs, size: tuple[int, int], count: int) -> Pairs:
    """At most about `count` pairs all over the source frame of (W, H) `size`: the heaviest of each square of a grid."""
    stride = math.sqrt(size[0] * size[1] / max(1, count))
    rows, columns = math.ceil(size[1] / stride), math.ceil(size[0] / stride)
    square = nearest_cell(pairs.source_xy, Grid(stride, stride / 2), rows, columns)
    order = pairs.weight.argsort(descending=True, stable=True)
    order = order[square[order].argsort(stable=True)]
    first = torch.cat([torch.ones(min(1, len(order)), dtype=torch.bool), square[order].diff() != 0])
    return pairs[order[first]]


def draw_matches(
    video: Video,
    pairs: Pairs,
    size: tuple[int, int],
    source: int,
    target: int,
    *,
    layout: Literal["beside", "below"] = "beside",
    widest: int = 1920,
) -> UInt8[Tensor, "3 h w"]:
    """The source frame with the target frame beside or below it, and a line for each pair, coloured by its row in the source.

    `size` is the (W, H) of the frames that the pairs' positions are of.

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
    colours = row_colours(_as_tracks(starts, panel))
    for a, b, colour in zip(
        opencv_points(starts).tolist(), opencv_points(ends).tolist(), colours.tolist(), strict=True
    ):
        cv2.line(canvas, a, b, colour, pen.thin, cv2.LINE_AA, SHIFT)
    for a, b, colour in zip(
        opencv_points(starts).tolist(), opencv_points(ends).tolist(), colours.tolist(), strict=True
    ):
        for end in (a, b):
            cv2.circle(canvas, end, round((pen.radius + 1) * 2**SHIFT), BLACK, cv2.FILLED, cv2.LINE_AA, SHIFT)
            cv2.circle(canvas, end, round(pen.radius * 2**SHIFT), colour, cv2.FILLED, cv2.LINE_AA, SHIFT)
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous()


def _as_tracks(xy: Tensor, size: tuple[int, int]) -> Tracks:
    """Points as tracks of one frame, which is what colours are given to."""
    queries = torch.cat([torch.zeros(len(xy), 1), xy], 1)
    ones = torch.ones(len(xy), 1)
    return Tracks(queries, xy[:, None], ones.bool(), ones, size, 1.0)
