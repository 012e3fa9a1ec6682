"""One pass over a video: features of a layer, of others that a sweep will ask for, and saliency masks; through the cache."""

from collections.abc import Sequence
from contextlib import AbstractContextManager, ExitStack
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Bool, UInt8
from torch import Tensor

from dinotrack.backbones import Backbone, Tap, VitBackbone, extract_features, extract_taps, identity
from dinotrack.cache import Entry, cache_entry, keep, locked, stored
from dinotrack.correspondences import saliency_masks
from dinotrack.growing import FeatureEntry
from dinotrack.memory import Budget
from dinotrack.progress import Progress, silent
from dinotrack.structs import FeatureMap, Video
from dinotrack.tensor_struct import TensorStruct


@dataclass(frozen=True)
class Masks(TensorStruct):
    """Foreground of each frame, at any resolution."""

    values: Bool[Tensor, "t h w"]


@dataclass(frozen=True)
class FeaturePass:
    """What a pass of `backbone` over a video's working frames gives, and where it is cached.

    `beside` names further (layer, facet) of a ViT, which other runs will ask for: the pass that makes one makes all. A single
    lock holds for what comes out of a pass, so that a run that wants another layer waits for the one that brings it.
    """

    video: Video
    frames: UInt8[Tensor, "t 3 h w"]
    backbone: Backbone
    cache: Path
    beside: Sequence[Tap] = ()
    device: torch.device | str = "cpu"
    chunk: int = 4
    progress: Progress = silent
    budget: Budget = field(default_factory=Budget)

    def features(self, *, saliency: bool = False) -> FeatureMap:
        """Raw features, cached; with `saliency` a pass that has to be made brings those masks too.

        Raises:
            DinotrackError: for a layer or facet that the ViT does not have, or a cache that cannot be written.
        """
        entry = self.entry("features", self.backbone.settings)
        found = stored(FeatureMap, entry, quiet=True)
        if found is not None:
            return found
        with self.locked():
            found = stored(FeatureMap, entry)  # another process may have made the pass meanwhile
            return self.run(saliency) if found is None else found

    def is_cached(self) -> bool:
        """Whether there is an entry of the features, so that no pass is made unless it is damaged."""
        return self.entry("features", self.backbone.settings).path.exists()

    def saliency(self, features: FeatureMap) -> Bool[Tensor, "t h2 w2"]:
        """Foreground by the saliency of the backbone's last layer (§3), cached; `features` are this backbone's."""
        final = self.backbone.final()
        entry = self.entry("saliency", final.settings)
        found = stored(Masks, entry, quiet=True)
        if found is not None:
            return found.values
        with self.locked():
            found = stored(Masks, entry)
            if found is None:
                same = final.settings == self.backbone.settings
                last = features if same else extract_features(final, self.frames, **self.options)
                found = Masks(saliency_masks(last))
                keep(found, entry)
            return found.values

    def run(self, saliency: bool) -> FeatureMap:
        """Make the features, straight into the cache; of a ViT keep what else is wanted and not there, from the same pass."""
        vit, own = self.backbone, self.entry("features", self.backbone.settings)
        with ExitStack() as stack:
            if not isinstance(vit, VitBackbone):
                return extract_features(vit, self.frames, stack.enter_context(self.sink(own)), **self.options)
            wanted = {tap: self.entry("features", vit.tapped(tap)) for tap in self.beside if tap != vit.tap}
            wanted = {vit.tap: own, **{tap: entry for tap, entry in wanted.items() if not entry.path.exists()}}
            masks = self.entry("saliency", vit.tapped(vit.last))
            shown = [vit.last] if saliency and not masks.path.exists() else []
            sinks = {tap: stack.enter_context(self.sink(entry)) for tap, entry in wanted.items()}
            maps = extract_taps(vit, [*sinks, *shown], self.frames, sinks, **self.options)
        for tap in shown:
            keep(Masks(saliency_masks(maps[tap])), masks)
        return maps[vit.tap]

    def sink(self, entry: Entry) -> FeatureEntry:
        """Features of the frames, about to be written as this entry."""
        grid, size = self.backbone.grid, (self.frames.shape[3], self.frames.shape[2])
        return FeatureEntry(entry, len(self.frames), stride=grid.stride, offset=grid.offset, size=size)

    @property
    def options(self) -> dict[str, Any]:
        return {"budget": self.budget, "chunk": self.chunk, "device": self.device, "progress": self.progress}

    def entry(self, name: str, settings: dict[str, Any]) -> Entry:
        """The entry `name` of the backbone with these settings."""
        key = {"backbone": identity(settings), "size": list(self.frames.shape[2:])}
        return cache_entry(self.cache, self.video, name, key)

    def locked(self) -> AbstractContextManager[None]:
        """The lock of all that one pass can give."""
        settings = {name: value for name, value in self.backbone.settings.items() if name not in ("layer", "facet")}
        return locked(self.entry("pass", settings))


def video_features(
    video: Video, frames: UInt8[Tensor, "t 3 h w"], backbone: Backbone, cache: Path, **options: Any
) -> FeatureMap:
    """Raw features of a video's working frames, cached; `options` are those of `FeaturePass`."""
    return FeaturePass(video, frames, backbone, cache, **options).features()
