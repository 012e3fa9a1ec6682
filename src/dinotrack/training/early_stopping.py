"""Stopping a fit early, by the share of held-out points that come back to where they started (ours)."""

import logging
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from jaxtyping import Float
from lightning.pytorch.callbacks import EarlyStopping
from torch import Tensor

from dinotrack.correspondences import frame_pairs
from dinotrack.errors import DinotrackError
from dinotrack.methods.dino_tracker import Refinement, refine_features
from dinotrack.networks import TrackerHead
from dinotrack.refined_pairs import PairSearch, cycle_pairs
from dinotrack.training.batch import Store
from dinotrack.training.callbacks import log_at_once
from dinotrack.training.losses import first_step
from dinotrack.training.rebuild import consistent_share

if TYPE_CHECKING:
    from dinotrack.training.modules import DinoTrackerModule

log = logging.getLogger(__name__)
SCORE = "heldout/cycle_consistent"
FEW_POINTS = PairSearch(points_foreground=90, points_background=38)


@dataclass(frozen=True)
class HeldOut:
    """Random pixels of random pairs of frames, drawn by a generator of their own: the same ones at every check of every fit.

    A test-time fit has one video, and these are its frames: held out are the points, which no loss is given but by chance. The
    cycle loss teaches other points what is measured here, and a wrong match that is wrong both ways counts as consistent: the share
    says when a fit has ceased to change, not how right its tracks are.
    """

    search: PairSearch = FEW_POINTS
    """Points of each ordered frame pair, and γ."""
    frames: int = 16
    """At most so many, evenly spaced, are refined for a check."""
    frame_pairs: int = 16
    """Unordered ones; points go from either frame to the other."""
    seed: int = 1_000_003
    chunk: int = 8
    """Frames that pass through Delta-DINO at a time."""

    def __post_init__(self) -> None:
        for name, least in (("frames", 2), ("frame_pairs", 1), ("chunk", 1)):
            value = getattr(self, name)
            if not isinstance(value, int) or value < least:
                raise DinotrackError(f"held out: {name}={value}: expected a whole number of at least {least}")

    def share(self, store: Store, network: Refinement, head: TrackerHead) -> Float[Tensor, ""]:
        """Share of the points x^i with ‖Π(Π(x^i, j), i) - x^i‖ ≤ γ (§3), in features refined in eval mode."""
        every = -(-len(store.images) // self.frames)
        masks, own = store.masks[::every], torch.Generator().manual_seed(self.seed)
        between = frame_pairs(len(masks), self.frame_pairs, own)
        features = refine_features(store.features, store.images, network, every=every, chunk=self.chunk)
        scale = store.scale_constants
        found = cycle_pairs(features, head, masks, between, self.search, own, both=True, scale=scale)
        sources = torch.tensor(between, dtype=torch.long).flatten()
        return consistent_share(len(found), sources, masks, self.search)


class StopEarly(EarlyStopping):
    """Stops the fit when the held-out share has not risen by more than `min_delta` in `patience` checks, one every `every` steps.

    Each check is logged; those before `start` (a step, or a share of the run) count for nothing else: the late losses change the
    share when they begin. When to stop is decided by Lightning's EarlyStopping, whose own hooks come between epochs, and a fit is
    one. Until then the fit is what it is without this callback.
    """

    def __init__(
        self,
        held_out: HeldOut = HeldOut(),
        *,
        every: int = 250,
        start: int | float = 0.6,
        min_delta: float = 0.005,
        patience: int = 4,
    ) -> None:
        for name, value in {"every": every, "patience": patience}.items():
            if not isinstance(value, int) or value < 1:
                raise DinotrackError(f"early stopping: {name}={value}: expected a whole number of at least 1")
        super().__init__(SCORE, min_delta, patience, mode="max", check_on_train_epoch_end=False)
        self.held_out, self.every, self.start = held_out, every, start

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        trainer.should_stop |= self.wait_count >= self.patience  # a fit that had stopped is not to go on

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: "DinoTrackerModule", *_: Any) -> None:  # type: ignore[override]
        if trainer.global_step % self.every:
            return
        share = self.held_out.share(pl_module.data.store, pl_module.delta, pl_module.head)
        log_at_once(trainer, pl_module, {SCORE: float(share)})
        if trainer.global_step >= first_step(self.start, pl_module.steps):
            self.on_validation_end(trainer, pl_module)
        if trainer.should_stop:
            waited = f"{SCORE} has not risen above {float(self.best_score):.3f} in {self.wait_count} checks"
            log.info("the fit ends at step %d of %d: %s", trainer.global_step, trainer.max_steps, waited)
