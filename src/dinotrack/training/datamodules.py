"""The data of a fit: one video, preprocessed once, served as minibatches of 8 frames."""

from collections.abc import Sequence
from dataclasses import fields, replace
from pathlib import Path
from typing import Any

import lightning as L
import torch
from torch.utils.data import DataLoader, Dataset

from dinotrack.backbones import Backbone, Tap
from dinotrack.cache import default_cache
from dinotrack.geometry import working_size
from dinotrack.memory import Budget
from dinotrack.optical_flow import FlowEstimator
from dinotrack.preprocessing import Preprocessed, Supervision, preprocess, working_masks
from dinotrack.progress import Progress, silent
from dinotrack.structs import NO_TRUTH, PairTable, PointTruth, Video
from dinotrack.training.batch import Batch, BatchSettings, Store
from dinotrack.training.tracklet_table import TrackletTable


class Minibatches(Dataset[Batch]):
    """As many minibatches as the fit has steps, each drawn from the data module's store as it is when it is asked for.

    A length keeps Lightning from fetching one batch ahead: that one would miss what a callback rebuilds after this step, and a
    checkpoint would hold random numbers that are one batch late.
    """

    def __init__(self, data: "VideoDataModule", steps: int) -> None:
        self.data, self.steps = data, steps

    def __len__(self) -> int:
        return self.steps

    def __getitem__(self, _: int) -> Batch:
        return self.data.store.draw(self.data.batch, self.data.generator)


class VideoDataModule(L.LightningDataModule):
    """Preprocesses a video through the cache, then draws minibatches on the training device (method §5).

    `resolution` is the long side of the working frames; `size` = (W, H) fixes both sides instead. `beside` names further
    (layer, facet) of a ViT whose features its pass keeps in the cache. The budget bounds what of all frames is in memory.
    `truth` is never trained on: callbacks score the fit against it.
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
        beside: Sequence[Tap] = (),
        batch: BatchSettings = BatchSettings(),
        seed: int = 0,
        device: torch.device | str = "cpu",
        budget: Budget = Budget(),
        progress: Progress = silent,
        truth: PointTruth = NO_TRUTH,
    ) -> None:
        super().__init__()
        self.video, self.backbone, self.flow = video, backbone, flow
        self.cache = Path(cache).expanduser() if cache else default_cache()
        self.resolution, self.size = resolution, size
        self.supervision, self.beside, self.batch = supervision, beside, batch
        self.generator = torch.Generator().manual_seed(seed)
        self.device, self.budget, self.progress, self.truth = device, budget, progress, truth
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
            beside=self.beside,
            device=self.device,
            budget=self.budget,
            progress=self.progress,
        )

    def prepare_data(self) -> None:
        if not self.ready:
            self.preprocess()

    def setup(self, stage: str) -> None:
        if self.ready:
            return
        done = self.preprocess()
        self.store = Store(
            images=done.frames,
            features=done.features,
            flow=TrackletTable.of(done.tracklets, done.masks, done.features.size),
            best_buddies=done.best_buddies,
            refined=PairTable.empty(len(done.frames)),
            cycle=PairTable.empty(len(done.frames)),
            masks=working_masks(done.masks, done.features.size, self.budget),
            scale_constants=self.supervision.scale_constants,
        )

    def replace_tables(self, refined: PairTable | None = None, cycle: PairTable | None = None) -> None:
        """Serve other refined best buddies or cycle-consistent pairs from the next minibatch on."""
        tables = {"refined": refined, "cycle": cycle}
        self.store = replace(self.store, **{name: table for name, table in tables.items() if table is not None})

    def train_dataloader(self) -> DataLoader[Batch]:
        if self.trainer is not None:
            self.store = self.store.on(self.trainer.strategy.root_device, self.budget)
        # No workers: the store lives on the training device, and a callback's new tables must reach the next minibatch.
        # As long as the fit; of one that counts epochs, one is as long as the published fit.
        steps = self.trainer.max_steps if self.trainer is not None and self.trainer.max_steps > 0 else 10_000
        # A generator of its own: the loader would take a number from torch's, which a resumed fit has just been given back.
        own = torch.Generator()
        return DataLoader(Minibatches(self, steps), batch_size=None, num_workers=0, generator=own)

    def transfer_batch_to_device(self, batch: Batch, device: torch.device, dataloader_idx: int) -> Batch:
        """As it is: the store is on the training device, and the pairs of a minibatch stay on the CPU."""
        return batch

    def state_dict(self) -> dict[str, Any]:
        """The random state and the pairs that were found during the fit, as plain tensors."""
        tables = {name: getattr(self.store, name) for name in ("refined", "cycle")}
        columns = {name: {f.name: getattr(table, f.name) for f in fields(table)} for name, table in tables.items()}
        return {"generator": self.generator.get_state(), **columns}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.generator.set_state(state_dict["generator"].cpu())
        self.replace_tables(**{name: PairTable(**state_dict[name]) for name in ("refined", "cycle")})
