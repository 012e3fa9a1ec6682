"""Objects from points: one path for all points of an object, the robust mean of those that are seen.

The plain mean of the visible points jumps whenever points vanish or come back, without anything having moved. So each point
keeps its place u_i on the object, and frame t is explained by one centre and one turn with scaling, as complex numbers
x_i(t) = c(t) + a(t)·u_i, whichever points show it. Everything is a median: over frames for u_i, of a repeated median (Siegel
1982: the median over i of the median over j of (x_i - x_j)/(u_i - u_j)) for a(t), over points for c(t). Without a(t) the centre
of a turning object of which one side is seen would drift by about as much as that side turns.
"""

from dataclasses import dataclass, replace
from typing import Any

import torch
from jaxtyping import Bool, Complex, Float, Int, Shaped
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.geometry import look_up
from dinotrack.interpolation import fill, middle
from dinotrack.structs import Tracks
from dinotrack.tensor_struct import TensorStruct

NOWHERE = complex("nan+nanj")


@dataclass(frozen=True)
class ObjectPaths(TensorStruct):
    """Where objects are, in the pixels of the video as loaded."""

    labels: Int[Tensor, " m"]
    """Which object, ascending."""
    xy: Float[Tensor, "m t 2"]
    visible: Bool[Tensor, "m t"]
    """Whether enough of its points are; elsewhere the path is a straight line between frames where they are, or held."""
    points: Int[Tensor, "m t"]
    """How many of its points count: visible, and not found wrong."""
    size: tuple[int, int]
    fps: float

    def __len__(self) -> int:
        return len(self.labels)

    def __getitem__(self, index: Any) -> "ObjectPaths":
        return replace(self, **{name: getattr(self, name)[index] for name in ("labels", "xy", "visible", "points")})


def group(tracks: Tracks, objects: Shaped[Tensor, "..."], *, least: int = 3, agreement: float = 0.75) -> ObjectPaths:
    """The path of each object: the mean of its points, moved with the robust motion of those that are visible.

    The mean is taken over the places of the object's queries, which are exact, so that no wrong track shifts it.

    Args:
        tracks: of points on the objects; a point counts as visible at its query's frame (§6).
        objects: labels (N,), whole numbers, negative for no object; or what the queries are looked up in, at their own frame
            and in pixels of the video as loaded: bool masks (T, H, W) of one object, which gets label 1, or label maps (T, H, W)
            with 0 for background. (H, W) will do where all queries are on one frame.
        least: visible points that a frame needs, or as many as are ever seen at once where that is fewer.
        agreement: a point is left out where it moves with the others in a smaller share of the frames in which it is
            visible; the better half of the points always stays.

    Raises:
        DinotrackError: for objects of another shape or type, `least` below 1, and where no point is on any object.
    """
    if least < 1:
        raise DinotrackError(f"least={least}: a frame needs at least 1 visible point")
    labels = labels_of(tracks, objects)
    found = labels[labels >= 0].unique()
    if len(found) == 0:
        raise DinotrackError(
            f"none of the {len(tracks)} points is on an object; give other masks or labels, or queries on the objects"
        )
    on_cpu, labels = tracks.to("cpu"), labels.cpu()
    paths = [_path(on_cpu[labels == label], least, agreement) for label in found.tolist()]
    xy, visible, points = (torch.stack(part) for part in zip(*paths, strict=True))
    return ObjectPaths(found, xy, visible, points, tracks.size, tracks.fps).to(tracks.xy.device)


def labels_of(tracks: Tracks, objects: Shaped[Tensor, "..."]) -> Int[Tensor, " n"]:
    """The label of each point, negative for none; `objects` are what `group` takes.

    Raises:
        DinotrackError: for objects of another shape or type.
    """
    (width, height), frames = tracks.size, tracks.xy.shape[1]
    shapes = [(frames, height, width), (height, width)] + [(len(tracks),)] * (objects.dtype != torch.bool)
    if tuple(objects.shape) not in shapes or objects.is_floating_point() or objects.is_complex():
        raise DinotrackError(
            f"objects are {objects.dtype} {tuple(objects.shape)}; expected whole numbers ({len(tracks)},), one label a point, "
            f"or bool masks or label maps {(frames, height, width)} in the video's pixels"
        )
    objects = objects.to(tracks.xy.device)
    if objects.ndim == 1:
        return objects.long()
    asked = tracks.queries[:, 0]
    if not ((asked >= 0) & (asked < frames) & tracks.queries.isfinite().all(1)).all():
        raise DinotrackError(
            f"a query lies on none of the {frames} frames, where maps are looked up; give labels instead"
        )
    frame, row = asked.long().unique(return_inverse=True)
    if objects.ndim == 2 and len(frame) > 1:
        raise DinotrackError(
            f"objects are one map {(height, width)}, the queries are on {len(frame)} frames; give a map for every frame"
        )
    maps = objects.long()[None] if objects.ndim == 2 else objects[frame].long()
    labels = torch.full_like(row, -1)
    for label in maps[maps > 0].unique().tolist():
        labels[look_up(maps == label, row, tracks.queries[:, 1:], tracks.size)] = label
    return labels


def _path(
    tracks: Tracks, least: int, agreement: float
) -> tuple[Float[Tensor, "t 2"], Bool[Tensor, " t"], Int[Tensor, " t"]]:
    """Path, visibility and number of points of the one object that all `tracks` are on."""
    point, frame = torch.arange(len(tracks)), tracks.queries[:, 0].long()
    query = torch.view_as_complex(tracks.queries[:, 1:].double().contiguous())
    x = torch.view_as_complex(tracks.xy.double().contiguous())
    x = x.masked_fill(~(tracks.visible & x.isfinite()), NOWHERE)
    x[point, frame] = query
    kept = x.masked_fill(~_trusted(x, least, agreement)[:, None], NOWHERE)
    turn, centre, _ = _motion(kept, least)
    mean = ((query - _between(centre)[frame]) / turn[frame]).mean()
    path = _between(centre + turn * mean)
    return torch.view_as_real(path).float(), ~centre.isnan(), (~kept.isnan()).sum(0)


def _trusted(x: Complex[Tensor, "n t"], least: int, agreement: float, floor: float = 1.0) -> Bool[Tensor, " n"]:
    """Points that are where the object's motion has them in a share `agreement` of their visible frames.

    That is within three times the usual distance, or `floor` pixels where that is more. A point that went over to another object
    agrees with itself alone while the object is hidden, but not before or after.
    """
    turn, centre, place = _motion(x, least)
    misfit = (x - centre - turn * place[:, None]).abs()
    limit = max(3 * float(misfit.nanmedian()), floor)
    share = (misfit <= limit).sum(1) / (~misfit.isnan()).sum(1).clamp(min=1)
    return share >= min(agreement, float(share.median()))


def _motion(
    x: Complex[Tensor, "n t"], least: int
) -> tuple[Complex[Tensor, " t"], Complex[Tensor, " t"], Complex[Tensor, " n"]]:
    """a(t), c(t) and u_i from positions x_i(t), NaN where not seen; c(t) is NaN in frames with too few points.

    Frames are added one by one, always that with the most points whose place is known already; where no frame has enough of
    these, which is so at the start, the one with the most points begins anew at their mean.
    """
    seen = ~x.isnan()
    enough = min(least, int(seen.sum(0).max()))
    turn, centre = x.new_full(x.shape[1:], NOWHERE), x.new_full(x.shape[1:], NOWHERE)
    whole, place = torch.ones_like(turn), x.new_full(x.shape[:1], NOWHERE)
    while ((seen.sum(0) >= enough) & centre.isnan()).any():
        familiar = (seen & ~place.isnan()[:, None]).sum(0).masked_fill(~centre.isnan(), 0)
        t = int(familiar.argmax())
        if familiar[t] >= enough:
            turn[t] = _turn(x[:, t], place)
            centre[t] = _middle(x[:, t] - _between(turn)[t] * place, 0)
        else:
            t = int(seen.sum(0).masked_fill(~centre.isnan(), 0).argmax())
            turn[t], centre[t] = 1, x[seen[:, t], t].mean()
        whole = _between(turn)
        place = _middle((x - centre) / whole, 1)
    return whole, centre, place


def _turn(
    x: Complex[Tensor, " n"],
    place: Complex[Tensor, " n"],
    least: int = 5,
    lever: float = 1.5,
    partners: int = 64,
    shrunk: float = 0.05,
) -> Complex[Tensor, ""]:
    """a of one frame, or NaN where the points cannot tell: fewer than `least`, shrunk to almost one spot, or huddled on one side.

    The last means farther from the centre than `lever` times their spread, where a small error of a throws the centre about.
    Each point is compared with at most `partners` others.
    """
    there = ~(x.isnan() | place.isnan())
    x, place = x[there], place[there]
    if len(x) < least or place.mean().abs() > lever * (place - place.mean()).abs().mean():
        return x.new_full((), NOWHERE)
    few = slice(None, None, -(-len(x) // partners))
    apart = place[:, None] - place[few]
    ratio = (x[:, None] - x[few]) / apart
    ratio = ratio.masked_fill(apart.abs() < 1, NOWHERE)  # neighbours under 1 px tell nothing
    turn = _middle(_middle(ratio, 1), 0)
    return turn.masked_fill(turn.abs() < shrunk, NOWHERE)


def _between(values: Complex[Tensor, " t"]) -> Complex[Tensor, " t"]:
    """Linear where NaN, held at the ends."""
    filled = fill(torch.view_as_real(values)[None], ~values.isnan()[None], smooth=False)
    return torch.view_as_complex(filled[0])


def _middle(values: Complex[Tensor, "..."], dim: int) -> Complex[Tensor, "..."]:
    """Median of x and of y over `dim`, counted from the front, of what is not NaN."""
    return torch.view_as_complex(middle(torch.view_as_real(values), dim))
