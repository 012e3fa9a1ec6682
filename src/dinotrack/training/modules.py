"""The fit of one video as a LightningModule: refine, losses that have started, log, weighted sum."""

from collections.abc import Mapping
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.methods.dino_tracker import DinoTracker, assemble, describe, unit_range
from dinotrack.networks import DeltaDino, TrackerHead
from dinotrack.trackers import VisibilityRule
from dinotrack.training.batch import Batch
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.losses import (
    BestBuddyLoss,
    CycleLoss,
    FlowLoss,
    LossTerm,
    LossTerms,
    PriorLoss,
    RefinedBestBuddyLoss,
    Step,
)


def published_losses() -> dict[str, LossTerm]:
    """The terms of Eq. 5 with the weights of the paper."""
    return {
        "flow": FlowLoss(),
        "best_buddy": BestBuddyLoss(),
        "refined_best_buddy": RefinedBestBuddyLoss(),
        "cycle": CycleLoss(),
        "prior": PriorLoss(),
    }


class DinoTrackerModule(L.LightningModule):
    """Delta-DINO and the tracker head, fitted by Adam with the published learning rates (method §5).

    The ViT is not in the module: its features come with the minibatch, and a checkpoint is a few tens of MB. `decay_on` is the
    part whose learning rate is multiplied by `decay` every `decay_every` steps: "delta" [C], "refiner" [P], or "both".
    """

    def __init__(
        self,
        delta: DeltaDino | None = None,
        head: TrackerHead | None = None,
        losses: Mapping[str, LossTerm] | None = None,
        visibility: VisibilityRule = VisibilityRule(),
        *,
        lr: float = 0.01,
        decay: float = 0.999,
        decay_every: int = 40,
        decay_on: Literal["delta", "refiner", "both"] = "delta",
    ) -> None:
        super().__init__()
        if decay_on not in ("delta", "refiner", "both"):
            raise DinotrackError(f"decay_on={decay_on!r} is none of 'delta', 'refiner', 'both'")
        self.delta, self.head = delta or DeltaDino(), head or TrackerHead()
        self.losses = LossTerms(dict(losses if losses is not None else published_losses()))
        self.visibility = visibility
        self.lr, self.decay, self.decay_every, self.decay_on = lr, decay, decay_every, decay_on
        self.description: dict[str, Any] = {}

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return int(self.trainer.max_steps)

    def refine(self, batch: Batch) -> Float[Tensor, "b c h w"]:
        """Φ = Φ_DINO + Φ_Δ of the batch's frames (Eq. 1), in float32 whatever the precision of Delta-DINO."""
        residual = self.delta(unit_range(batch.images), batch.grid, *batch.features.shape[2:])
        return batch.features.float() + residual.float()

    def training_step(self, batch: Batch, _: int) -> Float[Tensor, ""]:
        refined = self.refine(batch)
        with torch.autocast(refined.device.type, enabled=False):  # positions and losses in float32
            loss, terms = self.losses(Step(batch, refined, self.head), self.global_step, self.steps)
        self.log_dict({f"loss/{name}": value.detach() for name, value in terms.items()}, batch_size=1)
        self.log("loss/total", loss.detach(), batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        parts = {"delta": self.delta, "refiner": self.head}
        groups = [{"params": list(part.parameters()), "name": name} for name, part in parts.items()]
        optimizer = torch.optim.Adam(groups, lr=self.lr)
        # A plain function, unlike a bound method, stays out of LambdaLR's state and so out of checkpoints.
        factors = [(lambda step: self.decayed(step)) if self.decay_on in (name, "both") else constant for name in parts]
        scheduler = torch.optim.lr_scheduler.LambdaLR(optimizer, factors)
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def decayed(self, step: int) -> float:
        """Factor of the learning rate at a step."""
        return self.decay ** (step // self.decay_every)

    def describe(self, data: VideoDataModule) -> dict[str, Any]:
        """The settings that a checkpoint carries so that it can be loaded without its config."""
        rules = {"scale_constants": data.store.scale_constants, "visibility": self.visibility}
        return describe(data.video, data.backbone, data.store.features.size, self.delta, self.head, **rules)

    def on_fit_start(self) -> None:
        self.description = self.describe(self.trainer.datamodule)  # type: ignore[attr-defined]

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dinotrack"] = self.description

    def tracker(self, data: VideoDataModule, *, memory: float = 1e9) -> DinoTracker:
        """The fitted tracker of the data module's video, on the data module's device.

        Lightning takes the module back to the CPU when a fit ends; here it goes where the data is.
        """
        self.to(data.device)
        store = data.store.to(self.device)
        networks = (self.delta.eval(), self.head.eval())
        return assemble(
            store.features, store.images, *networks, self.describe(data), memory=memory, progress=data.progress
        )


def constant(step: int) -> float:
    """A learning rate that stays."""
    return 1.0
