"""Pictures of a fit as it goes: tracks on frames, what looks like a query in another frame, best buddies of two frames."""

import logging
import math
from collections.abc import Sequence
from dataclasses import replace
from typing import TYPE_CHECKING

import cv2
import lightning as L
import numpy as np
import torch
from jaxtyping import Bool, Float, Int, UInt8
from torch import Tensor

from dinotrack.data.queries import read_queries
from dinotrack.equations import best_buddies, similarity
from dinotrack.errors import DinotrackError
from dinotrack.geometry import centres, look_up, resample, rescale, resize_frames, sample
from dinotrack.methods.dino_tracker import DinoTracker
from dinotrack.structs import PIXELS, FeatureMap, Tracks, Video
from dinotrack.trackers import check_queries
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.loggers import in_a_line, show_picture, shows_pictures
from dinotrack.training.midway import as_it_is
from dinotrack.visualization import draw_tracks, enlarge, opencv_points
from dinotrack.visualization.pen import SHIFT

if TYPE_CHECKING:
    from dinotrack.training.modules import DinoTrackerModule

log = logging.getLogger(__name__)
Picture = UInt8[Tensor, "3 _h _w"]
Canvas = UInt8[np.ndarray, "_h _w 3"]
GAP = 6
"""White pixels between panels."""


class Pictures(L.Callback):
    """At the start, every `every` steps and at the end, three pictures for the loggers that show any; `every=0` is none at all.

    overlay: tracks of about `points` points on three frames. similarity: how much of frame `target` resembles `query` (t, x, y),
    in raw and in refined features. best_buddies: some `pairs` of both frames, raw and refined. Without `query` it is the middle
    of the first foreground, without `target` the frame half a video away. The fit is what it is without this callback.
    """

    def __init__(
        self,
        every: int = 1000,
        *,
        points: int = 25,
        pairs: int = 40,
        query: Sequence[float] | None = None,
        target: int | None = None,
    ) -> None:
        for name, value, least in (("every", every, 0), ("points", points, 1), ("pairs", pairs, 1)):
            if not isinstance(value, int) or value < least:
                raise DinotrackError(f"pictures: {name}={value}: expected a whole number of at least {least}")
        self.every, self.points, self.pairs, self.query, self.target = every, points, pairs, query, target

    def on_fit_start(self, trainer: L.Trainer, pl_module: "DinoTrackerModule") -> None:  # type: ignore[override]
        video = pl_module.data.video
        if self.query is not None:
            check_queries(torch.tensor([[*self.query]]), len(video), video.size)
        if self.target is not None and not 0 <= self.target < len(video):
            raise DinotrackError(f"pictures: target={self.target}: expected a frame in 0..{len(video) - 1}")

    def on_train_start(self, trainer: L.Trainer, pl_module: "DinoTrackerModule") -> None:  # type: ignore[override]
        if self.every and trainer.global_step == 0:
            self.show(trainer, pl_module)

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: "DinoTrackerModule", *_: object) -> None:  # type: ignore[override]
        if self.every and trainer.global_step % self.every == 0:
            self.show(trainer, pl_module)

    def on_train_end(self, trainer: L.Trainer, pl_module: "DinoTrackerModule") -> None:  # type: ignore[override]
        if self.every and trainer.global_step % self.every:
            self.show(trainer, pl_module)

    def show(self, trainer: L.Trainer, module: "DinoTrackerModule") -> None:
        """Draw and hand over; what goes wrong, such as a lack of memory, ends the pictures, not the fit."""
        loggers = [logger for logger in trainer.loggers if shows_pictures(logger)]
        if not loggers:
            return
        try:
            with as_it_is(module, module.data) as tracker:
                pictures = self.drawn(tracker, module.data)
        except Exception as error:
            log.warning("pictures failed (%s); the fit goes on without", in_a_line(error))
            self.every = 0
            return
        for logger in loggers:
            for name, picture in pictures.items():
                show_picture(logger, f"pictures/{name}", picture, max(0, trainer.global_step - 1))

    @torch.no_grad()
    def drawn(self, tracker: DinoTracker, data: VideoDataModule) -> dict[str, Picture]:
        """The three pictures of a tracker as it is."""
        video, raw, refined = data.video, data.store.features, tracker.features
        query = (
            torch.tensor([[*self.query]]).float() if self.query is not None else middle(data.store.masks, video.size)
        )
        source = int(query[0, 0])
        target = self.target if self.target is not None else (source + len(video) // 2) % len(video)
        spacing = math.sqrt(video.size[0] * video.size[1] / self.points)
        grid = read_queries(f"grid:{max(1, round(spacing))}", video, frame=source)
        kinds = {"raw": raw, "refined": refined}
        return {
            "overlay": overlay_picture(video, tracker.track(grid), (source, target, len(video) - 1)),
            "similarity": similarity_picture(video, kinds, query, target),
            "best_buddies": buddies_picture(video, kinds, data.store.masks, (source, target), self.pairs),
        }


def middle(masks: Bool[Tensor, "t h w"], size: tuple[int, int]) -> Float[Tensor, "1 3"]:
    """The query deepest inside the first foreground, its pixel farthest from any edge; without any, of frame 0."""
    t = int(masks.flatten(1).any(1).int().argmax())
    mask = (masks[t] if masks[t].any() else ~masks[t]).byte().cpu().numpy()
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = divmod(int(depth.argmax()), mask.shape[1])
    on_video = rescale(torch.tensor([column, row]) + PIXELS.offset, (masks.shape[2], masks.shape[1]), size)
    return torch.cat([torch.tensor([float(t)]), on_video])[None]


def overlay_picture(video: Video, tracks: Tracks, frames: Sequence[int], trail: int = 10) -> Picture:
    """Some frames side by side, with their points and the trails behind them."""
    panels = {}
    for t in dict.fromkeys(frames):
        part = slice(min(max(0, t - trail), len(video) - 2), max(t, 1) + 1)  # a video has two frames at least
        cut = replace(tracks, **{name: getattr(tracks, name)[:, part] for name in ("xy", "visible", "confidence")})
        larger, scaled = enlarge(video[part], cut, 320)
        drawn = draw_tracks(larger, scaled, trail=trail)[t - part.start]
        panels[f"frame {t}"] = resize_frames(drawn[None], panel_size(video.size))[0]
    return side_by_side(panels)


def similarity_picture(video: Video, kinds: dict[str, FeatureMap], query: Float[Tensor, "1 3"], target: int) -> Picture:
    """The query in its frame, then the cosine of its feature with frame `target` as heat, for each kind of features."""
    frame, size = query[:, 0].long(), panel_size(video.size)
    marked = canvas_of(video, int(frame), size)
    mark(marked, rescale(query[:, 1:], video.size, size))
    panels = {f"frame {int(frame)}": from_canvas(marked)}
    for name, features in kinds.items():
        xy = rescale(query[:, 1:], video.size, features.size).to(features.values.device)
        wanted = sample(features.values, frame.to(xy.device), xy, features.grid)
        rows = features.values[target].float().flatten(1).T
        cosines = similarity(wanted, rows).view(1, 1, *features.values.shape[2:])
        whole = resample(cosines, features.grid, PIXELS, features.size[1], features.size[0])[0, 0]
        panels[f"frame {target}, {name}"] = from_canvas(heat(canvas_of(video, target, size), whole.cpu()))
    return side_by_side(panels)


def heat(canvas: Canvas, values: Float[Tensor, "h w"], opacity: float = 0.6) -> Canvas:
    """Values from their lowest to their highest, blue to red, over a frame in grey, with a mark at the highest."""
    height, width = canvas.shape[:2]
    scaled = (values - values.min()) / (values.max() - values.min()).clamp(min=1e-8)
    levels = cv2.resize(scaled.numpy(), (width, height), interpolation=cv2.INTER_LINEAR)
    colours = cv2.applyColorMap((levels * 255).round().astype(np.uint8), cv2.COLORMAP_TURBO)[..., ::-1]
    grey = cv2.cvtColor(cv2.cvtColor(canvas, cv2.COLOR_RGB2GRAY), cv2.COLOR_GRAY2RGB)
    blended = cv2.addWeighted(np.ascontiguousarray(colours), opacity, grey, 1 - opacity, 0)
    row, column = divmod(int(values.argmax()), values.shape[1])
    best = torch.tensor([[column, row]]) + PIXELS.offset
    mark(blended, rescale(best, (values.shape[1], values.shape[0]), (width, height)))
    return blended


def buddies_picture(
    video: Video,
    kinds: dict[str, FeatureMap],
    masks: Bool[Tensor, "t h w"],
    frames: tuple[int, int],
    most: int,
) -> Picture:
    """Lines between mutual nearest neighbours of two frames, a row for each kind of features; on the foreground, if any are."""
    rows = []
    for name, features in kinds.items():
        source, target = (xy.cpu() for xy in buddies(features, masks, frames, most))
        rows.append(
            lines_between(
                video,
                name,
                frames,
                source / source.new_tensor(features.size),
                target / target.new_tensor(features.size),
            )
        )
    white = torch.full((3, GAP, rows[0].shape[2]), 255, dtype=torch.uint8)
    return torch.cat([part for row in rows for part in (row, white)][:-1], 1)


def buddies(
    features: FeatureMap, masks: Bool[Tensor, "t h w"], frames: tuple[int, int], most: int
) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
    """Working positions of best buddies (Eq. 3) of two frames, at most so many, evenly spread over all."""
    height, width = features.values.shape[2:]
    here, there = (features.values[t].float().flatten(1).T for t in frames)
    source, target = best_buddies(similarity(here, there))
    tokens = centres(height, width, features.grid, source.device)
    foreground = look_up(masks, torch.full_like(source, frames[0]), tokens[source], features.size)
    if foreground.any():
        source, target = source[foreground], target[foreground]
    chosen = torch.linspace(0, len(source) - 1, min(most, len(source))).round().long().to(source.device)
    return tokens[source[chosen]], tokens[target[chosen]]


def lines_between(
    video: Video, name: str, frames: tuple[int, int], source: Float[Tensor, "n 2"], target: Float[Tensor, "n 2"]
) -> Picture:
    """Two frames side by side and lines from `source` in the first to `target` in the second, both as shares of the frame."""
    size = panel_size(video.size)
    picture = side_by_side({f"frame {t}, {name}": from_canvas(canvas_of(video, t, size)) for t in frames})
    canvas = to_canvas(picture)
    shift = torch.tensor([size[0] + GAP, 0])
    ends = [opencv_points(xy) for xy in (rescale(source, (1, 1), size), rescale(target, (1, 1), size) + shift)]
    for start, end, colour in zip(*ends, spread_colours(source), strict=True):
        cv2.line(canvas, start.tolist(), end.tolist(), colour, 1, cv2.LINE_AA, SHIFT)
        for point in (start, end):
            cv2.circle(canvas, point.tolist(), 3 << SHIFT, colour, cv2.FILLED, cv2.LINE_AA, SHIFT)
    return from_canvas(canvas)


def spread_colours(share: Float[Tensor, "n 2"]) -> list[list[int]]:
    """RGB from blue to red by the order of the positions along the frame's diagonal."""
    order = share.sum(1).argsort().argsort().numpy()
    levels = (255 * (order + 0.5) / max(len(order), 1)).astype(np.uint8)
    return cv2.applyColorMap(levels[:, None], cv2.COLORMAP_TURBO)[:, 0, ::-1].tolist() if len(order) else []


def panel_size(size: tuple[int, int], long_side: int = 420) -> tuple[int, int]:
    """(W, H) of a frame in a picture."""
    width, height = (max(1, round(side * long_side / max(size))) for side in size)
    return width, height


def canvas_of(video: Video, t: int, size: tuple[int, int]) -> Canvas:
    """A frame to draw on."""
    return to_canvas(resize_frames(video.frames[t : t + 1].cpu(), size)[0])


def to_canvas(picture: Picture) -> Canvas:
    return np.array(picture.permute(1, 2, 0).numpy(), order="C")


def from_canvas(canvas: Canvas) -> Picture:
    return torch.from_numpy(canvas).permute(2, 0, 1).contiguous()


def mark(canvas: Canvas, xy: Float[Tensor, "1 2"], radius: int = 7) -> None:
    """A white ring with a dark edge around a position."""
    centre: Int[np.ndarray, " 2"] = opencv_points(xy)[0]
    for colour, thickness in (((0, 0, 0), 4), ((255, 255, 255), 2)):
        cv2.circle(canvas, centre.tolist(), radius << SHIFT, colour, thickness, cv2.LINE_AA, SHIFT)


def side_by_side(panels: dict[str, Picture]) -> Picture:
    """Panels of one size in a row, each with its name."""
    parts = []
    for name, picture in panels.items():
        canvas = to_canvas(picture)
        (width, height), below = cv2.getTextSize(name, cv2.FONT_HERSHEY_SIMPLEX, 0.45, 1)
        cv2.rectangle(canvas, (0, 0), (width + 10, height + below + 8), (0, 0, 0), cv2.FILLED)
        cv2.putText(canvas, name, (5, height + 5), cv2.FONT_HERSHEY_SIMPLEX, 0.45, (255, 255, 255), 1, cv2.LINE_AA)
        parts += [from_canvas(canvas), torch.full((3, canvas.shape[0], GAP), 255, dtype=torch.uint8)]
    return torch.cat(parts[:-1], 2)
