"""The fit of one video as a LightningModule: refine, losses that have started, log, weighted sum."""

import logging
from collections.abc import Mapping, Sequence
from contextlib import nullcontext
from typing import Any, Literal

import lightning as L
import torch
from jaxtyping import Float
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.geometry import without_autocast
from dinotrack.memory import Budget
from dinotrack.methods.dino_tracker import DinoTracker, Refinement, assemble, describe
from dinotrack.networks import DeltaDino, TrackerHead
from dinotrack.progress import Progress
from dinotrack.refined_pairs import PairSearch
from dinotrack.spilling import kept_on_disk
from dinotrack.trackers import VisibilityRule
from dinotrack.training.batch import Batch
from dinotrack.training.callbacks import RebuildPairs
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
    first_step,
)
from dinotrack.training.rebuild import searched_batch, searched_counts
from dinotrack.training.step_memory import StepMemory

log = logging.getLogger(__name__)


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
        delta: Refinement | None = None,
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
        self.in_batch: PairSearch | None = None
        """Set by `RebuildPairs` while each step is to search its own features."""
        self.step_memory = StepMemory()

    @property
    def steps(self) -> int:
        """Steps of the whole run."""
        return int(self.trainer.max_steps if self.trainer.max_steps > 0 else self.trainer.estimated_stepping_batches)

    @property
    def data(self) -> VideoDataModule:
        """Where the minibatches come from."""
        return self.trainer.datamodule  # type: ignore[attr-defined]

    @property
    def budget(self) -> Budget:
        """What memory the fit may take: as its data module says, if there is one."""
        data = getattr(self.trainer, "datamodule", None)  # none where loaders are given
        return data.budget if isinstance(data, VideoDataModule) else Budget()

    def training_step(self, batch: Batch, _: int) -> Float[Tensor, ""]:
        if batch.features.device.type != "cpu":
            return self.loss_of(batch)
        with kept_on_disk(self.budget, reserve=self.step_memory.reserve(self.kind_of_step, len(batch.frames))):
            return self.loss_of(batch)

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        on_cpu = self.device.type == "cpu"
        with self.step_memory.measured(self.kind_of_step, self.budget) if on_cpu else nullcontext():
            super().optimizer_step(*arguments, **options)

    @property
    def kind_of_step(self) -> tuple[object, ...]:
        """What decides how much memory a step of this fit takes: whether it searches, which pairs there are, which terms count."""
        data = getattr(self.trainer, "datamodule", None)
        tables = (data.store.refined, data.store.cycle) if isinstance(data, VideoDataModule) else ()
        found = tuple(len(table) > 0 for table in tables)
        return self.in_batch is not None, found, *self.losses.active(self.global_step, self.steps)

    def loss_of(self, batch: Batch) -> Float[Tensor, ""]:
        """The weighted sum of the terms that have started, logged."""
        refined = self.delta.refine(batch.features, batch.images, batch.frames, batch.grid)
        with without_autocast(refined.device.type):  # positions and losses in float32
            if self.in_batch is not None:
                search = (self.in_batch, self.data.generator, self.losses.reads)
                batch = searched_batch(batch, refined, self.head, *search)
                self.log_dict(searched_counts(batch, self.in_batch, self.losses.reads), batch_size=1)
            loss, terms = self.losses(Step(batch, refined, self.head), self.global_step, self.steps)
        self.check_finite(loss, terms)
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

    def configure_callbacks(self) -> list[L.Callback]:
        """The search for refined pairs that the method needs, unless the Trainer has one already."""
        present = any(isinstance(callback, RebuildPairs) for callback in self.trainer.callbacks)  # type: ignore[attr-defined]
        return [] if present else [RebuildPairs()]

    def on_fit_start(self) -> None:
        self.step_memory = StepMemory()  # another video's steps were others
        self.description = self.describe(self.data)
        for warning in idle_terms(self.losses, self.trainer.callbacks, self.steps):  # type: ignore[attr-defined]
            log.warning(warning)

    def check_finite(self, loss: Float[Tensor, ""], terms: Mapping[str, Tensor], every: int = 20) -> None:
        """Stop before weights are changed by a loss that is no number; on a GPU, for which one has to wait, now and then.

        Raises:
            DinotrackError: naming the terms.
        """
        if (loss.device.type != "cpu" and self.global_step % every) or loss.isfinite():
            return
        wrong = (
            ", ".join(f"{name} = {float(value.detach())}" for name, value in terms.items() if not value.isfinite())
            or "the sum"
        )
        raise DinotrackError(
            f"the fit diverged at step {self.global_step}: {wrong}; lower method.module.lr, or start with another seed"
        )

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        checkpoint["dinotrack"] = self.description

    def tracker(self, data: VideoDataModule, *, memory: float = 1e9, progress: Progress | None = None) -> DinoTracker:
        """The fitted tracker of the data module's video, on the data module's device; its networks are the module's.

        Lightning takes the module back to the CPU when a fit ends; here it goes where the data is.
        """
        self.to(data.device)
        store = data.store.on(self.device, data.budget)
        networks = (self.delta.eval(), self.head.eval())
        options = {"budget": data.budget, "progress": data.progress if progress is None else progress}
        return assemble(store.features, store.images, *networks, self.describe(data), memory=memory, **options)


def idle_terms(losses: LossTerms, callbacks: Sequence[L.Callback], steps: int) -> list[str]:
    """What to tell the user of weighted terms that a run of `steps` steps never computes."""
    rebuilds = [callback for callback in callbacks if isinstance(callback, RebuildPairs)]
    warnings = []
    for name, term in losses.terms.items():
        searches = [max(term.begins(steps), first_step(rebuild.start, steps)) for rebuild in rebuilds]
        begins = min(searches, default=steps) if term.reads else term.begins(steps)
        if term.weight and begins >= steps > 0:
            why = (
                "its pairs are never searched (rebuild.start)" if term.begins(steps) < steps else f"start={term.start}"
            )
            warnings.append(f"losses.{name} has weight {term.weight:g} but never counts in {steps} steps: {why}")
    return warnings


def constant(step: int) -> float:
    """A learning rate that stays."""
    return 1.0
