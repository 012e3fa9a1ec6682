"""Callbacks: they decide when, and call a function."""

from pathlib import Path
from signal import Signals
from typing import TYPE_CHECKING, Any, Literal

import lightning as L
import torch

from dinotrack.errors import DinotrackError, Stopped
from dinotrack.progress import make_bar
from dinotrack.refined_pairs import PairSearch
from dinotrack.signals import StopSignals
from dinotrack.training.jobs import resumed_by
from dinotrack.training.losses import first_step
from dinotrack.training.midway import score_module, spread
from dinotrack.training.rebuild import consistent_share, rebuilt_tables
from dinotrack.training.stopping import resumable_state, save_resumable

if TYPE_CHECKING:
    from dinotrack.training.modules import DinoTrackerModule


class RebuildPairs(L.Callback):
    """Refined best buddies and cycle-consistent pairs, searched anew during the fit (method §3, §5).

    From step `start` on (a step, or a share of the run), every `every` steps, between `frame_pairs` random pairs of training
    frames, in both directions; minibatches draw from what was found. With `frame_pairs="batch"` and every=1 each step searches
    its own features between its own frame pairs instead, as the published code does. Only what weighted losses read is searched.
    """

    def __init__(
        self,
        search: PairSearch = PairSearch(),
        *,
        start: int | float = 0.5,
        every: int = 500,
        frame_pairs: int | Literal["batch"] = 500,
        chunk: int = 8,
    ) -> None:
        counts = {"every": every, "chunk": chunk, **({} if frame_pairs == "batch" else {"frame_pairs": frame_pairs})}
        for name, value in counts.items():
            if not isinstance(value, int) or value < 1:
                raise DinotrackError(f"rebuild: {name}={value}: expected a whole number of at least 1")
        if frame_pairs == "batch" and every != 1:
            raise DinotrackError(f"rebuild: frame_pairs=batch searches in each step; it needs every=1, not {every}")
        self.search, self.start, self.every, self.frame_pairs, self.chunk = search, start, every, frame_pairs, chunk

    def due(self, step: int, steps: int) -> bool:
        """Whether pairs are searched before the 0-based step `step` of a run of `steps`."""
        first = first_step(self.start, steps)
        return first <= step < steps and (step - first) % self.every == 0

    def on_train_start(self, trainer: L.Trainer, pl_module: "DinoTrackerModule") -> None:  # type: ignore[override]
        if trainer.global_step == 0:  # a resumed run has its tables from the checkpoint
            self.rebuild(trainer, pl_module)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: "DinoTrackerModule", *_: Any) -> None:  # type: ignore[override]
        in_batch = self.frame_pairs == "batch" and self.due(trainer.global_step, pl_module.steps)
        pl_module.in_batch = self.search if in_batch else None

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: "DinoTrackerModule", *_: Any) -> None:  # type: ignore[override]
        self.rebuild(trainer, pl_module)

    def rebuild(self, trainer: L.Trainer, pl_module: "DinoTrackerModule") -> None:
        """Search, if it is time, and hand the tables to the data module."""
        if self.frame_pairs == "batch" or not self.due(trainer.global_step, pl_module.steps):
            return
        data, networks = pl_module.data, (pl_module.delta, pl_module.head)
        how = {"count": int(self.frame_pairs), "every": data.batch.every, "chunk": self.chunk, "budget": data.budget}
        tables = rebuilt_tables(data.store, *networks, self.search, data.generator, pl_module.losses.reads, **how)
        data.replace_tables(**tables)
        found: dict[str, Any] = {f"pairs/{name}": float(len(table)) for name, table in tables.items()}
        if "cycle" in tables:
            sources = tables["cycle"].searched.nonzero()[:, 0]
            found["pairs/cycle_share"] = consistent_share(len(tables["cycle"]), sources, data.store.masks, self.search)
        pl_module.log_dict(found)


class TapVidMetrics(L.Callback):
    """Every `every` steps, the scores (§7) of the networks as they are, on at most `queries` queries of the video's ground truth.

    Logs tapvid/delta_avg, oa and aj, each also as the best so far, for BADJA's joints badja/delta_seg and delta_3px. A video
    without ground truth has none. The fit is what it is without this callback.
    """

    def __init__(self, every: int = 1000, queries: int = 64) -> None:
        for name, value in {"every": every, "queries": queries}.items():
            if not isinstance(value, int) or value < 1:
                raise DinotrackError(f"tapvid metrics: {name}={value}: expected a whole number of at least 1")
        self.every, self.queries, self.best = every, queries, dict[str, float]()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: "DinoTrackerModule", *_: Any) -> None:  # type: ignore[override]
        data = pl_module.data
        if not len(data.truth) or trainer.global_step % self.every:
            return
        scores = score_module(pl_module, data, spread(data.truth, self.queries))
        self.best |= {name: max(value, self.best.get(name, value)) for name, value in scores.items()}
        found = scores | {f"{name}_best": self.best[name] for name in scores}
        log_at_once(trainer, pl_module, found)

    def state_dict(self) -> dict[str, Any]:
        return {"best": self.best}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.best = dict(state_dict["best"])


def log_at_once(trainer: L.Trainer, module: L.LightningModule, found: dict[str, float]) -> None:
    """Log what a callback found after a step, once: for callbacks that monitor, and for loggers at that step."""
    module.log_dict(found, logger=False)  # a logger would be told again in every step
    for logger in trainer.loggers:
        logger.log_metrics(found, step=trainer.global_step - 1)


class StepProgress(L.Callback):
    """A bar over the steps of the run, with the total loss beside it."""

    def __init__(self, every: int = 10) -> None:
        self.every, self.bar = every, make_bar()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.bar = make_bar()
        if trainer.is_global_zero:  # of several processes one shows it
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


def received_by_any(trainer: L.Trainer, own: Signals | None) -> Signals | None:
    """The signal that this process has, or that another of several has: they stop at the same step."""
    if trainer.world_size > 1 and trainer.strategy.reduce_boolean_decision(own is not None, all=False):
        return own or Signals.SIGTERM
    return own


class Resumable(L.Callback):
    """Keeps `path` so that a stopped run can go on: every `every` steps, at the end, and when a signal asks the fit to stop.

    A step is never cut in two. What an exception or a kill loses is at most `every` steps, and those are repeated exactly. The
    state is taken at a step's end and written before the next, when Lightning has logged the step.
    """

    def __init__(self, path: Path, every: int = 500, settings: dict[str, Any] | None = None) -> None:
        if every < 1:
            raise DinotrackError(f"checkpoint_every={every}: expected at least 1")
        self.path, self.every, self.settings = path, every, settings or {}
        self.signals = StopSignals()
        self.saved_for: Signals | None = None
        self.state: dict[str, Any] | None = None
        self.rows = list[dict[str, str]]()

    def on_train_start(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.signals.install()

    def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        self.saved_for = received_by_any(trainer, self.signals.received)
        last = trainer.should_stop or trainer.global_step == trainer.max_steps
        if self.saved_for or last or trainer.global_step % self.every == 0:
            self.state = resumable_state(trainer)

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any, **__: Any) -> None:
        self.save(trainer)
        self.stop(trainer)

    def on_train_end(self, trainer: L.Trainer, pl_module: L.LightningModule) -> None:
        self.save(trainer)
        self.saved_for = self.signals.received  # the last step is always saved
        self.stop(trainer)

    def save(self, trainer: L.Trainer) -> None:
        """Write the state that was taken, if one was."""
        if self.state is not None:
            self.rows = save_resumable(trainer, self.state, self.path)
            self.state = None

    def stop(self, trainer: L.Trainer) -> None:
        """End the fit if a signal asked for it before the last saving; one that came since waits for the next."""
        if self.saved_for:
            self.signals.heeded = True
            where = f"stopped by {self.saved_for.name} at step {trainer.global_step} of {trainer.max_steps}"
            again = f"the same command with {resumed_by(self.path.parent)} goes on from there"
            raise Stopped(where, again, self.saved_for)

    def teardown(self, trainer: L.Trainer, pl_module: L.LightningModule, stage: str) -> None:
        self.signals.pass_on()

    def on_exception(self, trainer: L.Trainer, pl_module: L.LightningModule, exception: BaseException) -> None:
        self.state = None
        self.signals.remove()

    def state_dict(self) -> dict[str, Any]:
        cuda = torch.cuda.get_rng_state_all() if torch.cuda.is_available() else []
        random = {"random": torch.get_rng_state(), "random_cuda": cuda}
        return {"settings": self.settings, "metrics": self.rows, **random}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.rows = state_dict["metrics"]
        torch.set_rng_state(state_dict["random"].cpu())
        if state_dict["random_cuda"] and torch.cuda.is_available():
            torch.cuda.set_rng_state_all([state.cpu() for state in state_dict["random_cuda"]])
