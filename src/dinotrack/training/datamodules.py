"""The data of a fit: one video, preprocessed once, served as minibatches of 8 frames."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import lightning as L
import torch
from torch.utils.data import DataLoader, IterableDataset

from dinotrack.backbones import Backbone
from dinotrack.cache import default_cache
from dinotrack.geometry import look_up, working_size
from dinotrack.optical_flow import FlowEstimator
from dinotrack.preprocessing import Preprocessed, Supervision, preprocess
from dinotrack.progress import Progress, silent
from dinotrack.structs import PairTable, Video
from dinotrack.training.batch import Batch, BatchSettings, Store


class Minibatches(IterableDataset[Batch]):
    """Endless minibatches from the data module's store as it is at that moment."""

    def __init__(self, data: "VideoDataModule") -> None:
        self.data = data

    def __iter__(self) -> Iterator[Batch]:
        while True:
            yield self.data.store.draw(self.data.batch, self.data.generator)


class VideoDataModule(L.LightningDataModule):
    """Preprocesses a video through the cache, then draws minibatches on the training device (method §5).

    `resolution` is the long side of the working frames; `size` = (W, H) fixes both sides instead.
    """

    def __init__(
        self,
        video: Video,
        backbone: Backbone,
        flow: FlowEstimator,
        *,
        cache: str | Path | None = None,
        resolution: int = 854,
        size: tuple[int, int] | None = None,
        supervision: Supervision = Supervision(),
        batch: BatchSettings = BatchSettings(),
        seed: int = 0,
        device: torch.device | str = "cpu",
        progress: Progress = silent,
    ) -> None:
        super().__init__()
        self.video, self.backbone, self.flow = video, backbone, flow
        self.cache = Path(cache).expanduser() if cache else default_cache()
        self.resolution, self.size = resolution, size
        self.supervision, self.batch = supervision, batch
        self.generator = torch.Generator().manual_seed(seed)
        self.device, self.progress = device, progress
        self.store: Store

    @property
    def working_size(self) -> tuple[int, int]:
        """(W, H) at which the video is processed."""
        return self.size or working_size(self.video.size, self.resolution, self.backbone.stride)

    @property
    def ready(self) -> bool:
        """Whether `setup` has filled the store."""
        return hasattr(self, "store")

    def preprocess(self) -> Preprocessed:
        """Features, tracklets, best buddies and masks, from the cache where they are there."""
        return preprocess(
            self.video,
            self.backbone.to(self.device),
            self.flow.to(self.device),
            self.cache,
            resolution=self.resolution,
            size=self.size,
            supervision=self.supervision,
            device=self.device,
            progress=self.progress,
        )

    def prepare_data(self) -> None:
        if not self.ready:
            self.preprocess()

    def setup(self, stage: str) -> None:
        if self.ready:
            return
        done = self.preprocess()
        starts = done.tracklets.start.long()
        first = done.tracklets.at(torch.arange(len(starts)), starts)
        self.store = Store(
            images=done.frames,
            features=done.features,
            tracklets=done.tracklets,
            on_foreground=look_up(done.masks, starts, first, done.features.size),
            best_buddies=done.best_buddies,
            refined=PairTable.empty(len(done.frames)),
            cycle=PairTable.empty(len(done.frames)),
            scale_constants=self.supervision.scale_constants,
        )

    def replace_tables(self, refined: PairTable | None = None, cycle: PairTable | None = None) -> None:
        """Serve other refined best buddies or cycle-consistent pairs from the next minibatch on."""
        device = self.store.images.device
        tables = {"refined": refined, "cycle": cycle}
        self.store = replace(
            self.store, **{name: table.to(device) for name, table in tables.items() if table is not None}
        )

    def train_dataloader(self) -> DataLoader[Batch]:
        if self.trainer is not None:
            self.store = self.store.to(self.trainer.strategy.root_device)
        # No workers: the store lives on the training device, and a callback's new tables must reach the next minibatch.
        return DataLoader(Minibatches(self), batch_size=None, num_workers=0)
