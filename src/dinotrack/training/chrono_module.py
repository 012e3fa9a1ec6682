"""The training of Chrono's adapters as a LightningModule (method §8); the frozen ViT is no part of it."""

from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinotrack.chrono import ChronoBackbone
from dinotrack.chrono_head import VisibilityHead, chrono_head
from dinotrack.data.augmentation import TrainingClip
from dinotrack.equations import similarity
from dinotrack.errors import DinotrackError
from dinotrack.geometry import rescale, sample, without_autocast

REFERENCE = (256, 256)
"""(W, H) in whose pixels the losses are."""


def chrono_losses(
    xy: Float[Tensor, "n t 2"],
    logits: Float[Tensor, "n t 2"],
    truth: Float[Tensor, "n t 2"],
    occluded: Float[Tensor, "n t"],
    *,
    weight: float = 0.05,
    delta: float = 4.0,
    far: float = 6.0,
) -> dict[str, Float[Tensor, ""]]:
    """The three terms of §8, means over all points: position, occlusion, and whether the error exceeds `far`; in pixels of 256."""
    visible, error = 1 - occluded, (xy - truth).norm(dim=-1)
    error = torch.where(occluded > 0, 0.0, error)  # whatever a file says of a position that no one sees
    huber = F.huber_loss(error, torch.zeros_like(error), delta=delta, reduction="none")
    off = F.binary_cross_entropy_with_logits(logits[..., 1], (error.detach() > far).float(), reduction="none")
    return {
        "position": weight * (huber * visible).mean(),
        "occlusion": F.binary_cross_entropy_with_logits(logits[..., 0], occluded),
        "distance": (off * visible).mean(),
    }


class ChronoModule(L.LightningModule):
    """Adapters and visibility, trained by AdamW under a one-cycle schedule with the published numbers as defaults.

    `head` are settings of `chrono_head`. Parameters and checkpoints are those of the adapters and of the visibility.
    """

    def __init__(
        self,
        backbone: ChronoBackbone,
        head: dict[str, Any],
        *,
        lr: float = 1e-4,
        weight_decay: float = 1e-4,
        warm_up: float = 0.003,
    ) -> None:
        super().__init__()
        if not len(backbone.adapters):
            raise DinotrackError("backbone.adapted names no block, so there is nothing to train; take all")
        if not (lr > 0 and weight_decay >= 0 and 0 <= warm_up < 1):
            raise DinotrackError(
                f"chrono.lr={lr}, weight_decay={weight_decay}, warm_up={warm_up}: expected a positive rate, 0 or more, and a share "
                "of the steps below 1"
            )
        self.backbone = backbone  # no module: the frozen ViT is neither moved nor saved with this one
        self.adapters, self.visibility = backbone.adapters, VisibilityHead()
        self.locate = [chrono_head(backbone.grid.stride, **head)]  # in a list, since it has nothing to train or to save
        self.lr, self.weight_decay, self.warm_up = lr, weight_decay, warm_up

    def on_fit_start(self) -> None:
        self.backbone.to(self.device)

    def track(self, clip: TrainingClip) -> tuple[Float[Tensor, "n t 2"], Float[Tensor, "n t 2"]]:
        """Positions, in the query's frame the query, and visibility logits of a clip's points."""
        features = self.backbone.features(clip.images)
        with without_autocast(features.device.type):  # positions and losses in float32
            rows = torch.arange(len(clip.query), device=features.device)
            asked = clip.xy[rows, clip.query]
            wanted = sample(features, clip.query, asked, self.backbone.grid)
            found = [self.find(wanted, values) for values in features]
            xy, logits = (torch.stack(each, 1) for each in zip(*found, strict=True))
            own = torch.arange(len(features), device=features.device) == clip.query[:, None]
            return torch.where(own[..., None], asked[:, None], xy), logits

    def find(
        self, wanted: Float[Tensor, "n c"], values: Float[Tensor, "c h w"]
    ) -> tuple[Float[Tensor, "n 2"], Float[Tensor, "n 2"]]:
        """Positions and logits of wanted features in a frame."""
        maps = similarity(wanted, values.flatten(1).T).view(-1, *values.shape[1:])
        return self.locate[0](maps, self.backbone.grid), self.visibility(maps)

    def training_step(self, clip: TrainingClip, _: int) -> Float[Tensor, ""]:
        xy, logits = self.track(clip)
        size = (clip.images.shape[3], clip.images.shape[2])
        xy, truth = (rescale(each.float(), size, REFERENCE) for each in (xy, clip.xy))
        with without_autocast(xy.device.type):
            terms = chrono_losses(xy, logits, truth, clip.occluded)
        loss = torch.stack(list(terms.values())).sum()
        self.log_dict({f"loss/{name}": value.detach() for name, value in terms.items()}, batch_size=1)
        self.log("loss/total", loss.detach(), batch_size=1)
        return loss

    def configure_optimizers(self) -> Any:
        parameters = [*self.adapters.parameters(), *self.visibility.parameters()]
        optimizer = torch.optim.AdamW(parameters, lr=self.lr, weight_decay=self.weight_decay)
        steps = max(3, int(self.trainer.max_steps))
        scheduler = torch.optim.lr_scheduler.OneCycleLR(
            optimizer,
            max_lr=self.lr,
            total_steps=steps,
            pct_start=max(self.warm_up, 2 / steps),  # of few steps two at least, or the schedule divides by 0
            anneal_strategy="cos",
            base_momentum=0.85,
            max_momentum=0.95,
            div_factor=25.0,
            final_div_factor=1e4,
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": scheduler, "interval": "step"}}

    def weights(self) -> dict[str, Tensor]:
        """What a file of adapters holds."""
        return {name: value.detach().cpu().contiguous() for name, value in self.state_dict().items()}
