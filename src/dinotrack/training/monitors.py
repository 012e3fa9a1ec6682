"""What is logged of a fit beside its losses, at Lightning's interval; nothing waits for the device in between."""

import time
from typing import TYPE_CHECKING, Any

import lightning as L
import torch
from torch import Tensor
from torch.nn.utils import get_total_norm

from dinotrack.training.batch import Batch
from dinotrack.training.stages import peak_bytes

if TYPE_CHECKING:
    from dinotrack.training.modules import DinoTrackerModule

KINDS = ("flow", "best_buddies", "refined", "cycle")


class Monitor(L.Callback):
    """Every `trainer.log_every_n_steps` steps: how the loss is shared, learning rates, gradient norms, speed, memory, pairs.

    share/TERM is the weighted term's part of the total; lr/PART and gradient/PART are of the optimiser's groups; speed counts all
    that happens between two steps; memory is the process's peak and the GPU's, in MB; batch/KIND counts pairs of the minibatch.
    """

    def __init__(self) -> None:
        self.since = (0, 0.0)

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.since = (trainer.global_step, time.perf_counter())

    def on_before_optimizer_step(
        self, trainer: L.Trainer, pl_module: L.LightningModule, optimizer: torch.optim.Optimizer
    ) -> None:
        if due(trainer, trainer.global_step + 1):
            pl_module.log_dict(optimiser_state(optimizer), batch_size=1)

    def on_train_batch_end(  # type: ignore[override]
        self, trainer: L.Trainer, pl_module: "DinoTrackerModule", outputs: Any, batch: Batch, *_: Any
    ) -> None:
        if not due(trainer, trainer.global_step):
            return
        (step, then), now = self.since, time.perf_counter()
        self.since = (trainer.global_step, now)
        found = {"speed/steps_per_second": (trainer.global_step - step) / max(now - then, 1e-9), **memory()}
        found |= shares(pl_module, trainer.callback_metrics, trainer.global_step - 1)
        searched = pl_module.losses.reads if pl_module.in_batch else ()  # the module counts what it searched itself
        found |= {f"batch/{kind}": float(len(getattr(batch, kind))) for kind in KINDS if kind not in searched}
        pl_module.log_dict(found, batch_size=1)


def due(trainer: L.Trainer, done: int) -> bool:
    """Whether Lightning logs the step with which `done` steps are done."""
    every = trainer.log_every_n_steps  # type: ignore[attr-defined]
    return bool(trainer.loggers) and every > 0 and done % every == 0


def optimiser_state(optimizer: torch.optim.Optimizer) -> dict[str, Any]:
    """Learning rate and Euclidean norm of the gradients of each group of parameters; the norms stay on the device."""
    found: dict[str, Any] = {}
    for number, group in enumerate(optimizer.param_groups):
        name = group.get("name", number)
        found[f"lr/{name}"] = float(group["lr"])
        found[f"gradient/{name}"] = get_total_norm([p.grad for p in group["params"] if p.grad is not None])
    return found


def shares(module: "DinoTrackerModule", logged: dict[str, Tensor], number: int) -> dict[str, Tensor]:
    """λ·L of each term that counts at 0-based step `number`, over the sum of all."""
    terms = module.losses.active(number, module.steps)
    parts = {name: term.weight * logged[f"loss/{name}"] for name, term in terms.items() if f"loss/{name}" in logged}
    return {f"share/{name}": (part / logged["loss/total"]).nan_to_num() for name, part in parts.items()}


def memory() -> dict[str, float]:
    """Peak memory in MB, of the process and of the GPU where there is one."""
    found = {"memory/process_mb": peak_bytes() / 1e6}
    if torch.cuda.is_available():
        found["memory/cuda_mb"] = torch.cuda.max_memory_allocated() / 1e6
    return found
