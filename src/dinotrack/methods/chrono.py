"""Chrono assembled from given weights (method §8): tracks without a fit, and the small checkpoint that names what made them."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor

from dinotrack.backbones import Backbone, build_backbone, identity
from dinotrack.cache import default_cache
from dinotrack.chrono_head import VisibilityHead, chrono_head, visible_share
from dinotrack.chrono_weights import part, read_chrono
from dinotrack.equations import similarity
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import video_features
from dinotrack.files import write_atomically
from dinotrack.geometry import rescale
from dinotrack.memory import Budget
from dinotrack.methods.dino_tracker import FORMAT, about_video, read_checkpoint
from dinotrack.preprocessing import working_frames
from dinotrack.progress import Progress, silent
from dinotrack.sealed import save_archive
from dinotrack.structs import FeatureMap, Video
from dinotrack.trackers import FeatureTracker


class ChronoTracker(FeatureTracker):
    """Positions and visibility of a query in a frame from one cost volume; nothing is fitted to the video."""

    def __init__(
        self,
        features: FeatureMap,
        visibility: VisibilityHead,
        settings: Mapping[str, Any],
        *,
        memory: float = 1e9,
    ) -> None:
        head, about = chrono_head(features.stride, **settings["head"]), settings["video"]
        super().__init__(features, head, tuple(about["size"]), about["fps"], scale_constants=False, memory=memory)
        self.visibility_head, self.settings = visibility.eval(), dict(settings)

    def to(self, device: torch.device | str, budget: Budget = Budget()) -> "ChronoTracker":
        """Move the heads to `device`, and the features if the budget has room for them there; in place."""
        super().to(device, budget)
        self.visibility_head.to(device)
        return self

    @property
    def _bytes_per_query(self) -> int:
        """Its feature, positions and visibility; cost volumes are made for some queries at a time, one frame after the other."""
        return 4 * (self.features.values.shape[1] + 4 * self.frames)

    def _track(self, queries: Float[Tensor, "n 3"], progress: Progress) -> tuple[Tensor, Tensor, Tensor]:
        frame, rows = queries[:, 0].long(), torch.arange(len(queries), device=self.device)
        wanted = self._sample(frame, rescale(queries[:, 1:], self.size, self.features.size))
        xy = queries.new_empty(len(queries), self.frames, 2)
        share = queries.new_empty(len(queries), self.frames)
        for t in progress(range(self.frames), "tracks"):
            xy[:, t], share[:, t] = self.find(wanted, t)
        on_video = rescale(xy, self.features.size, self.size)
        on_video[rows, frame], share[rows, frame] = queries[:, 1:], 1.0
        return on_video, share >= 0.5, share

    def find(self, wanted: Float[Tensor, "n c"], frame: int) -> tuple[Float[Tensor, "n 2"], Float[Tensor, " n"]]:
        """Where each wanted feature is in `frame`, at working resolution, and how visible."""
        values = self.features.values[frame].to(self.device).float()
        height, width = values.shape[1:]
        rows = max(1, int(self.memory / 2 / (4 * 3 * height * width)))  # three maps a row
        found = []
        for some in wanted.split(rows):
            maps = similarity(some, values.flatten(1).T).view(-1, height, width)
            found.append((self.head(maps, self.features.grid), visible_share(self.visibility_head(maps))))
        xy, share = zip(*found, strict=True)
        return torch.cat(xy), torch.cat(share)

    def checkpoint(self) -> dict[str, Any]:
        """Tensors and plain types; the adapters stay in their file, which the settings name."""
        weights = {f"visibility.{name}": value.cpu() for name, value in self.visibility_head.state_dict().items()}
        return {"state_dict": weights, "dinotrack": self.settings}

    def save(self, path: str | Path) -> None:
        """Write the checkpoint.

        Raises:
            DinotrackError: when the file cannot be written.
        """
        write_atomically(Path(path), lambda name: save_archive(self.checkpoint(), name))


def read_visibility(path: str | Path | None) -> VisibilityHead:
    """The visibility of a file of adapters, or the untrained one.

    Raises:
        DinotrackError: when the file is unreadable or has none.
    """
    head = VisibilityHead()
    if path is not None:
        try:
            head.load_state_dict(part(read_chrono(path), "visibility."))
        except RuntimeError as error:
            raise DinotrackError(
                f"{path} has no visibility (occ_linear) of shape (2, 3); give a whole checkpoint"
            ) from error
    return head


def chrono_tracker(
    video: Video,
    backbone: Backbone,
    visibility: VisibilityHead,
    *,
    size: tuple[int, int],
    head: Mapping[str, Any],
    cache: Path | None = None,
    device: torch.device | str = "cpu",
    memory: float = 1e9,
    budget: Budget = Budget(),
    progress: Progress = silent,
) -> ChronoTracker:
    """Chrono on a video whose frames are brought to (W, H) `size`; `head` are settings of `chrono_head`."""
    frames = working_frames(video, backbone.stride, size=size, budget=budget)
    options: dict[str, Any] = {"device": device, "budget": budget, "progress": progress}
    features = video_features(video, frames, backbone, cache or default_cache(), **options)
    settings = {
        "format": FORMAT,
        "method": "chrono",
        "video": about_video(video),
        "backbone": dict(backbone.settings),
        "working_size": list(size),
        "head": dict(head),
    }
    return ChronoTracker(features, visibility, settings, memory=memory).to(device, budget)


def load_chrono_tracker(
    path: str | Path, video: Video, *, backbone: Backbone | None = None, **options: Any
) -> ChronoTracker:
    """The tracker of a checkpoint, for any video; options are those of `chrono_tracker` without size and head.

    Raises:
        DinotrackError: for an unreadable checkpoint, another method's, or another backbone.
    """
    content = read_checkpoint(path)
    about = content["dinotrack"]
    if about["method"] != "chrono":
        raise DinotrackError(f"{path} is a checkpoint of method {about['method']}, not of chrono")
    backbone = backbone or build_backbone(about["backbone"])
    if identity(dict(backbone.settings)) != identity(about["backbone"]):
        raise DinotrackError(f"{path} was made on backbone {about['backbone']}, not {dict(backbone.settings)}")
    visibility = VisibilityHead()
    visibility.load_state_dict(part(content["state_dict"], "visibility."))
    size = tuple(about["working_size"])
    return chrono_tracker(video, backbone, visibility, size=size, head=about["head"], **options)
