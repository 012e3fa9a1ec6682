"""Pictures of a fit as it goes: tracks on frames, what looks like a query in another frame, best buddies of two frames."""

import logging
import math
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING

import cv2
import lightning as L
import numpy as np
import torch
from jaxtyping import Bool, Float, UInt8
from torch import Tensor

from dinotrack.data.queries import read_queries
from dinotrack.errors import DinotrackError
from dinotrack.geometry import rescale
from dinotrack.methods.dino_tracker import DinoTracker
from dinotrack.structs import PIXELS, Video
from dinotrack.trackers import Tracker, check_queries
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.loggers import in_a_line, show_picture, shows_pictures
from dinotrack.training.midway import as_it_is
from dinotrack.visualization import (
    Look,
    best_buddies_between,
    compare_tracks,
    draw_matches,
    on_mask,
    render_overlay,
    similarity_picture,
    spread,
    tile,
)
from dinotrack.visualization.layout import panel_size
from dinotrack.visualization.side_by_side import frames_in_a_row

if TYPE_CHECKING:
    from dinotrack.training.modules import DinoTrackerModule

log = logging.getLogger(__name__)
Picture = UInt8[Tensor, "3 _h _w"]
WIDEST = 1280
"""About so many pixels across."""


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
        video, masks = data.video, data.store.masks
        query = torch.tensor([[*self.query]]).float() if self.query is not None else middle(masks, video.size)
        source = int(query[0, 0])
        target = self.target if self.target is not None else (source + len(video) // 2) % len(video)
        tracks = tracker.track(coarse_grid(video, self.points, source))
        shown = list(dict.fromkeys((source, target, len(video) - 1)))
        found = tracker.track(query).xy[0]
        looks = [
            Look("raw", data.store.features, torch.full_like(found, torch.nan), tracker.shift),
            Look("refined", tracker.features, found, tracker.shift),
        ]
        seen = similarity_picture(video, query[0], looks, [target], widest=WIDEST)[0]
        rows = [buddies_picture(video, look, masks, (source, target), self.pairs)[None] for look in looks]
        panel = panel_size(video.size, len(shown), widest=WIDEST)[0]
        overlay = compare_tracks(video, [tracks], frames=shown, widest=panel)
        return {
            "overlay": frames_in_a_row(overlay, len(shown), shown),
            "similarity": seen,
            "best_buddies": tile(rows, 1)[0],
        }


def coarse_grid(video: Video, points: int, frame: int = 0) -> Float[Tensor, "n 3"]:
    """A grid of queries in one frame, about so many."""
    spacing = math.sqrt(video.size[0] * video.size[1] / points)
    return read_queries(f"grid:{max(1, round(spacing))}", video, frame=frame)


def final_overlay(pictures: Pictures, tracker: Tracker, video: Video, path: Path) -> Path | None:
    """Tracks of the grid of `pictures/overlay` as an mp4; None, with a warning, where that fails: the fit is done."""
    try:
        render_overlay(video, tracker.track(coarse_grid(video, pictures.points)), path)
    except Exception as error:
        log.warning("the final overlay failed (%s); the fit is whole without", in_a_line(error))
        return None
    return path


def middle(masks: Bool[Tensor, "t h w"], size: tuple[int, int]) -> Float[Tensor, "1 3"]:
    """The query deepest inside the first foreground, its pixel farthest from any edge; without any, of frame 0."""
    t = int(masks.flatten(1).any(1).int().argmax())
    mask = (masks[t] if masks[t].any() else ~masks[t]).byte().cpu().numpy()
    depth = cv2.distanceTransform(np.pad(mask, 1), cv2.DIST_L2, 5)[1:-1, 1:-1]
    row, column = divmod(int(depth.argmax()), mask.shape[1])
    on_video = rescale(torch.tensor([column, row]) + PIXELS.offset, (masks.shape[2], masks.shape[1]), size)
    return torch.cat([torch.tensor([float(t)]), on_video])[None]


def buddies_picture(
    video: Video, look: Look, masks: Bool[Tensor, "t h w"], frames: tuple[int, int], most: int
) -> Picture:
    """Lines between mutual nearest neighbours (Eq. 3) of two frames in a look's features; on the foreground, if any are."""
    features = look.features
    pairs = best_buddies_between(features, *frames)
    foreground = on_mask(pairs, masks.cpu(), features.size)
    pairs = spread(foreground if len(foreground) else pairs, most)
    return draw_matches(video, pairs, features.size, *frames, title=look.title, widest=WIDEST)
