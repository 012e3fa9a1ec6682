"""Callbacks: they decide when, and call a function."""

from typing import Any

import lightning as L

from dinotrack.progress import make_bar


class StepProgress(L.Callback):
    """A bar over the steps of the run, with the total loss beside it."""

    def __init__(self, every: int = 10) -> None:
        self.every, self.bar = every, make_bar()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = make_bar()
        self.bar.start()
        self.task = self.bar.add_task("fit", total=trainer.max_steps, completed=trainer.global_step, note="")

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        if trainer.global_step % self.every == 0:
            loss = trainer.callback_metrics.get("loss/total")
            note = f"loss {float(loss):.3g}" if loss is not None else ""
            self.bar.update(self.task, completed=trainer.global_step, note=note)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar.update(self.task, completed=trainer.global_step)
        self.bar.stop()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.bar.stop()
