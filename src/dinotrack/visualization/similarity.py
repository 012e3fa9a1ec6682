"""What the features see ([P] Fig. 7): the similarity of one point with every place of another frame, as a heat map."""

from collections.abc import Sequence
from dataclasses import dataclass

import cv2
import numpy as np
import torch
from jaxtyping import Float, UInt8
from torch import Tensor

from dinotrack.equations import similarity
from dinotrack.errors import DinotrackError
from dinotrack.geometry import at_pixels, cell_centres, inside, rescale, resize_frames, sample
from dinotrack.progress import Progress, silent
from dinotrack.structs import FeatureMap, Video
from dinotrack.trackers import check_queries
from dinotrack.visualization.layout import panel_size, tile, titled
from dinotrack.visualization.overlay import check_frames
from dinotrack.visualization.pen import WHITE, Pen, cross, ring, to_canvas

LUMA = (0.299, 0.587, 0.114)
"""ITU-R BT.601."""


@dataclass(frozen=True)
class Look:
    """One way to see the video: features, and where a head finds the query by them."""

    title: str
    features: FeatureMap
    found: Float[Tensor, "t 2"]
    """Predicted positions in every frame, in pixels of the video; not finite where there is none."""
    shift: float = 0.0
    """What the tracker takes off positions before it reads features, in working pixels."""


@torch.no_grad()
def similarity_maps(
    features: FeatureMap, query: Float[Tensor, "3"], frames: Sequence[int], progress: Progress = silent
) -> Float[Tensor, "k h w"]:
    """Cosines (Eq. 2) of the feature at `query`, (t, x, y) at working resolution, with all cells of each of `frames`."""
    values, (_, _, height, width) = features.values, features.values.shape
    query = query.to(values.device)
    wanted = sample(values, query[:1].long(), query[None, 1:].float(), features.grid)
    maps = [similarity(wanted, values[t].flatten(1).T.float()) for t in progress(frames, "similarity")]
    return torch.cat(maps).view(-1, height, width).cpu()


def peaks(maps: Float[Tensor, "k h w"], features: FeatureMap) -> Float[Tensor, "k 2"]:
    """Where each map is highest, at working resolution."""
    return cell_centres(maps.flatten(1).argmax(1), maps.shape[2], features.grid)


def heat_limits(maps: Float[Tensor, "k h w"]) -> tuple[float, float]:
    """The ends of the scale of colours: the median, so that half of all places stay cold, and the highest value."""
    return float(maps.median()), float(maps.max())


def heat_frames(
    frames: UInt8[Tensor, "t 3 h w"],
    maps: Float[Tensor, "t a b"],
    features: FeatureMap,
    limits: tuple[float, float] | None = None,
    opacity: tuple[float, float] = (0.35, 0.8),
) -> UInt8[Tensor, "t 3 h w"]:
    """Grey frames under the colours of their maps, one scale for all: blue at the lower of `limits`, red at the upper.

    The colours cover the frames by `opacity` at either end.
    """
    low, high = limits or heat_limits(maps)
    size = (frames.shape[3], frames.shape[2])
    wide = at_pixels(maps[:, None], features.grid, features.size, size)
    levels = ((wide - low) / max(high - low, 1e-6)).clamp(0, 1)
    share = opacity[0] + (opacity[1] - opacity[0]) * levels
    grey = torch.einsum("c,tchw->thw", torch.tensor(LUMA), frames.cpu().float())[:, None]
    bytes_ = levels[:, 0].mul(255).round().to(torch.uint8).numpy()
    coloured = np.stack([cv2.applyColorMap(each, cv2.COLORMAP_TURBO)[..., ::-1] for each in bytes_])
    heat = torch.from_numpy(coloured).permute(0, 3, 1, 2).float()
    return (share * heat + (1 - share) * grey).round().to(torch.uint8)


def similarity_picture(
    video: Video,
    query: Float[Tensor, "3"],
    looks: Sequence[Look],
    frames: Sequence[int],
    *,
    widest: int = 1920,
    progress: Progress = silent,
) -> UInt8[Tensor, "k 3 h w"]:
    """The query's frame beside a heat map of each look, for each of the target `frames`.

    A disc marks the query (t, x, y), in pixels of the video; in a heat map a cross marks its highest cell, a ring where the head
    says the point is. Each look has one scale of colours for all frames, `heat_limits`, which its title names.

    Raises:
        DinotrackError: for a query that is not on the video, a frame that it does not have, or without looks.
    """
    check_queries(query[None], len(video), video.size)
    chosen = check_frames(frames, len(video))
    if not looks:
        raise DinotrackError("no features to look with; expected at least one look")
    size = panel_size(video.size, len(looks) + 1, widest=widest)
    source, t = resize_frames(video.frames[int(query[0])][None], size), int(query[0])
    panels = [titled(_mark_query(source, rescale(query[1:], video.size, size)), f"query, frame {t}")]
    panels[0] = panels[0].expand(len(chosen), -1, -1, -1)
    targets = resize_frames(video.frames[chosen], size)
    for look in looks:
        at_work = rescale(query[1:], video.size, look.features.size) - look.shift
        maps = similarity_maps(look.features, torch.cat([query[:1], at_work]), chosen, progress)
        heat = heat_frames(targets, maps, look.features)
        peak = rescale(peaks(maps, look.features) + look.shift, look.features.size, size)
        found = rescale(look.found[chosen].float(), video.size, size)
        where = f"frame {chosen[0]}, " if len(chosen) == 1 else ""
        low, high = heat_limits(maps)
        title = f"{look.title}, {where}cosine {low:.2f} to {high:.2f}"
        panels.append(titled(_mark_found(heat, peak, found), title))
    return tile(panels)


def _mark_query(frames: UInt8[Tensor, "1 3 h w"], xy: Float[Tensor, "2"]) -> UInt8[Tensor, "1 3 h w"]:
    canvas, pen = to_canvas(frames[0]), Pen.of((frames.shape[3], frames.shape[2]))
    ring(canvas, xy, 1.6 * pen.radius, WHITE, pen.line)
    ring(canvas, xy, 0.4 * pen.radius, (255, 32, 32), cv2.FILLED)
    return torch.from_numpy(canvas).permute(2, 0, 1)[None]


def _mark_found(
    frames: UInt8[Tensor, "k 3 h w"], peak: Float[Tensor, "k 2"], found: Float[Tensor, "k 2"]
) -> UInt8[Tensor, "k 3 h w"]:
    size, marked = (frames.shape[3], frames.shape[2]), []
    pen = Pen.of(size)
    for frame, high, said in zip(frames, peak, found, strict=True):
        canvas = to_canvas(frame)
        cross(canvas, high, 1.2 * pen.radius, WHITE, pen.thin)
        if inside(said, size):
            ring(canvas, said, 4 * pen.radius, WHITE, pen.thin)
        marked.append(torch.from_numpy(canvas).permute(2, 0, 1))
    return torch.stack(marked)
