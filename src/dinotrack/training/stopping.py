"""What it takes to go on with a fit that was stopped."""

import copy
import csv
from pathlib import Path
from typing import Any

import lightning as L
from lightning.pytorch.loggers import CSVLogger, Logger

from dinotrack.differences import in_words
from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically
from dinotrack.sealed import load_archive
from dinotrack.training.loggers import unguarded

RESUME = "resume.ckpt"
"""In the run folder: networks, optimiser, schedule, step, random states, pair tables, the rows of metrics.csv."""
METRICS = "metrics.csv"


def resumable_state(trainer: L.Trainer) -> dict[str, Any]:
    """A copy of the whole state of a fit between two steps, which is what Lightning's `save_checkpoint` writes.

    Raises:
        DinotrackError: when the fit has diverged; what was saved before stays.
    """
    module = trainer.lightning_module
    if not all(parameter.isfinite().all() for parameter in module.parameters()):
        raise DinotrackError(
            f"the fit diverged before step {trainer.global_step}; lower the learning rate (method.module.lr, chrono.lr), "
            "and start again"
        )
    return copy.deepcopy(trainer._checkpoint_connector.dump_checkpoint(weights_only=False))


def save_resumable(trainer: L.Trainer, state: dict[str, Any], path: Path) -> list[dict[str, str]]:
    """Write a `resumable_state` with the rows of metrics.csv before its step, which are returned.

    Lightning logs a step after callbacks have seen its end, and its CSV logger begins by deleting what is there: rows that were
    not in the state could be lost at a kill. Of a logger that has failed they are the last that were known.
    """
    own = state["callbacks"]["Resumable"]
    if not trainer.is_global_zero:  # of several processes one writes
        return own["metrics"]
    for logger in trainer.loggers:
        logger.save()
    if any(isinstance(unguarded(logger), CSVLogger) for logger in trainer.loggers):
        own["metrics"] = read_metrics(path.parent, state["global_step"])
    write_atomically(path, lambda name: trainer.strategy.save_checkpoint(state, name))
    return own["metrics"]


def read_resumable(path: Path, settings: dict[str, Any]) -> dict[str, Any]:
    """The state that `save_resumable` wrote, when it belongs to a fit with the same `settings`.

    Raises:
        DinotrackError: for a damaged file, or naming the settings that differ.
    """
    try:
        content = load_archive(path)
        own = content["callbacks"]["Resumable"]
        before, _ = own["settings"], own["metrics"]
    except Exception as error:  # torch raises RuntimeError, UnpicklingError, EOFError, ... for damaged files
        reason = str(error).splitlines()[0][:120] if str(error) else type(error).__name__
        raise DinotrackError(f"cannot resume from {path} ({reason}); delete it to start again") from error
    if changed := in_words(before, settings, most=5):
        raise DinotrackError(
            f"cannot resume from {path}: {changed}; give the same settings, or another folder for the run"
        )
    return content


def read_metrics(folder: Path, step: int) -> list[dict[str, str]]:
    """The rows of `metrics.csv` from before 0-based step `step`."""
    path = folder / METRICS
    if not path.exists():
        return []
    with open(path, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row.get("step", "").isdigit() and int(row["step"]) < step]
    return [{name: value for name, value in row.items() if name and value} for row in rows]


def continue_metrics(logger: Logger | None, rows: list[dict[str, str]]) -> None:
    """Put the rows in front of what a CSV logger is going to write."""
    if rows and isinstance(logger, CSVLogger):
        logger.experiment.metrics = [*rows]
