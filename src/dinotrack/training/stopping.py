"""Stopping a fit between two steps, and what it takes to go on."""

import csv
import os
import signal
import threading
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.loggers import CSVLogger, Logger

from dinotrack.errors import DinotrackError
from dinotrack.structs import write_atomically

RESUME = "resume.ckpt"
"""In the run folder: networks, optimiser, schedule, step, random states, pair tables."""


class StopSignals:
    """Notes SIGINT (Ctrl-C) and SIGTERM in place of dying of them; a second one is not held back."""

    def __init__(self) -> None:
        self.received: signal.Signals | None = None
        self.before = dict[int, Any]()

    def install(self) -> None:
        """Begin to listen; only the main thread can."""
        if threading.current_thread() is threading.main_thread() and not self.before:
            self.received = None
            self.before = {number: signal.signal(number, self.note) for number in (signal.SIGINT, signal.SIGTERM)}

    def note(self, number: int, _: Any) -> None:
        """The handler."""
        again, self.received = self.received is not None, signal.Signals(number)
        if again:
            self.remove()
            os.kill(os.getpid(), number)

    def remove(self) -> None:
        """Give the signals back to whoever had them."""
        for number, handler in self.before.items():
            signal.signal(number, handler)
        self.before = {}


def save_resumable(trainer: L.Trainer, path: Path) -> None:
    """Write the whole state of a fit, to a temporary name first, and what loggers still hold.

    Raises:
        DinotrackError: when the fit has diverged; what was saved before stays.
    """
    module = trainer.lightning_module
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise DinotrackError(
            f"the fit diverged before step {trainer.global_step}; lower method.module.lr, and start again"
        )
    write_atomically(path, trainer.save_checkpoint)
    for logger in trainer.loggers:
        logger.save()


def read_resumable(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The state that `save_resumable` wrote, when it belongs to a fit with the same `settings`.

    Raises:
        DinotrackError: for a damaged file, or naming the settings that differ.
    """
    try:
        content = torch.load(path, map_location="cpu", weights_only=True)
        before = content["callbacks"]["Resumable"]["settings"]
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DinotrackError(f"cannot resume from {path} ({reason}); delete it to start again") from error
    names = sorted({*before, *settings})
    changed = [n for n in names if before.get(n) != settings.get(n)]
    if changed:
        what = "; ".join(f"{n} was {before.get(n)}, is {settings.get(n)}" for n in changed[:5])
        raise DinotrackError(
            f"cannot resume from {path}: {what}; give the same settings, or another folder for the run"
        )
    return content


def read_metrics(folder: Path, step: int) -> list[dict[str, str]]:
    """The rows of `metrics.csv` from before 0-based step `step`; a logger that starts anew would delete them."""
    path = folder / "metrics.csv"
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("step", "").isdigit() and int(row["step"]) < step]
    return [{name: value for name, value in row.items() if name and value} for row in rows]


def continue_metrics(logger: Logger | None, rows: list[dict[str, str]]) -> None:
    """Put the rows in front of what a CSV logger is going to write."""
    if rows and isinstance(logger, CSVLogger):
        logger.experiment.metrics = [*rows]
