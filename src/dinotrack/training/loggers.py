"""The loggers of a run: opened when first needed, closed at its end, and never a reason for a fit to fail."""

import logging
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, TypeVar

from hydra.utils import instantiate
from jaxtyping import UInt8
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger, WandbLogger
from omegaconf import DictConfig, OmegaConf
from torch import Tensor

from dinotrack.scoreboard import markdown
from dinotrack.training.weights_and_biases import check_mode

log = logging.getLogger(__name__)
T = TypeVar("T")


def in_a_line(error: Exception, longest: int = 200) -> str:
    """Kind and reason of an exception."""
    return f"{type(error).__name__}: {' '.join(str(error).split())}"[:longest]


class Guarded(Logger):
    """A logger that cannot stop a fit: at its first exception it is warned of, once, and left alone from then on.

    `make` makes it, which may fail as well, or may say with None that there is nothing to log to.
    """

    def __init__(self, label: str, make: Callable[[], Logger | None]) -> None:
        super().__init__()
        self.label = label
        self.inner: Logger | None = None
        with self.guard():
            self.inner = make()

    @contextmanager
    def guard(self) -> Iterator[None]:
        """Let no exception out."""
        try:
            yield
        except Exception as error:  # loggers talk to disks and servers: whatever it is, the fit is worth more
            log.warning("logger %s failed (%s); the fit goes on without it", self.label, in_a_line(error))
            log.debug("", exc_info=error)
            self.inner = None

    def do(self, act: Callable[[Any], T]) -> T | None:
        """What `act` makes of the logger; None once it has failed."""
        found: T | None = None
        if self.inner is not None:
            with self.guard():
                found = act(self.inner)
        return found

    @property
    def name(self) -> str | None:
        return self.do(lambda inner: inner.name)

    @property
    def version(self) -> int | str | None:
        return self.do(lambda inner: inner.version)

    @property
    def save_dir(self) -> str | None:
        return self.do(lambda inner: inner.save_dir)

    @property
    def log_dir(self) -> str | None:
        return self.do(lambda inner: inner.log_dir)

    @property
    def experiment(self) -> Any:
        """The logger's own object, which is not guarded; None of a logger that has none."""
        return self.do(lambda inner: getattr(inner, "experiment", None))

    def log_metrics(self, metrics: Mapping[str, float], step: int | None = None) -> None:
        self.do(lambda inner: inner.log_metrics(metrics, step=step))

    def log_hyperparams(self, params: Any, *rest: Any, **more: Any) -> None:
        self.do(lambda inner: inner.log_hyperparams(params, *rest, **more))

    def log_graph(self, model: Any, input_array: Tensor | None = None) -> None:
        self.do(lambda inner: inner.log_graph(model, input_array))

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.do(lambda inner: inner.after_save_checkpoint(checkpoint_callback))

    def save(self) -> None:
        self.do(lambda inner: inner.save())

    def finalize(self, status: str) -> None:
        self.do(lambda inner: inner.finalize(status))


def unguarded(logger: Logger) -> Logger | None:
    """The logger itself, or None of one that has failed."""
    return logger.inner if isinstance(logger, Guarded) else logger


def shows_pictures(logger: Logger) -> bool:
    """Whether `show_picture` has something to do."""
    inner = unguarded(logger)
    return isinstance(inner, TensorBoardLogger) or hasattr(inner, "log_image")


def show_picture(logger: Logger, key: str, picture: UInt8[Tensor, "3 h w"], step: int) -> None:
    """Hand an RGB picture to a logger that has `log_image` as Lightning's have it, or to TensorBoard; to others nothing."""
    if isinstance(logger, Guarded):
        logger.do(lambda inner: show_picture(inner, key, picture, step))
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_image(key, picture, step)
    elif shows_pictures(logger):
        image = picture.permute(1, 2, 0).contiguous().numpy(force=True)
        logger.log_image(key, [image], step=step)  # type: ignore[attr-defined]


def show_table(logger: Logger, key: str, columns: Sequence[str], rows: Sequence[Sequence[Any]]) -> None:
    """Hand a table to W&B, or as Markdown to TensorBoard."""
    if isinstance(logger, WandbLogger):
        logger.log_table(key, columns=[*columns], data=[[*row] for row in rows])
    elif isinstance(logger, TensorBoardLogger):
        logger.experiment.add_text(key, markdown(columns, [[str(cell) for cell in line] for line in rows]))


def shows_videos(logger: Logger) -> bool:
    """Whether `show_video` has something to do."""
    return hasattr(unguarded(logger), "log_video")


def show_video(logger: Logger, key: str, path: Path) -> None:
    """Hand a finished mp4 to W&B, or what has its `log_video`; TensorBoard would encode it again, as a GIF."""
    if shows_videos(logger):
        logger.log_video(key, [str(path)], format=["mp4"])  # type: ignore[attr-defined]


def keep_checkpoint(logger: Logger, path: Path) -> None:
    """The checkpoint as an artifact of W&B, where `log_model` asks for it."""
    if isinstance(logger, WandbLogger) and logger._log_model:
        logger.experiment.log_artifact(str(path), name=f"tracker-{logger.version}", type="model")


class RunLoggers:
    """The loggers that a config names, for one run: `with RunLoggers(config, folder) as loggers`.

    They are opened by the first call of `open`, so that bad input leaves nothing behind, and closed with the block. A `save_dir`
    in the config lies in the run folder. `name` is that of the run where the config leaves it open.
    """

    def __init__(self, config: DictConfig, folder: Path | None, name: str | None = None) -> None:
        for entry in (config.logger or {}).values():
            if OmegaConf.is_dict(entry) and str(entry.get("_target_")).endswith(".open_wandb"):
                check_mode(str(entry.get("mode", "auto")))
        self.config, self.folder, self.name = config, folder, name
        self.opened: list[Guarded] | None = None

    def open(self) -> list[Guarded]:
        """The loggers, made and told the resolved config; none without a run folder."""
        if self.opened is None:
            entries = (self.config.logger or {}) if self.folder else {}
            self.opened = [self.made(str(label), entry) for label, entry in entries.items()]
            self.opened = [logger for logger in self.opened if logger.inner is not None]
            settings: Any = OmegaConf.to_container(self.config, resolve=True)
            for logger in self.opened:
                if not isinstance(logger.inner, CSVLogger):  # the run folder has config.yaml
                    logger.log_hyperparams(settings)
        return self.opened

    def made(self, label: str, entry: DictConfig) -> Guarded:
        """One logger. Only its making is guarded: a class that is not there is an error of the config."""
        place = {"save_dir": str(Path(str(self.folder)) / entry.save_dir)} if "save_dir" in entry else {}
        if self.name is not None and "name" in entry and entry.name is None:
            place["name"] = self.name
        return Guarded(label, instantiate(entry, _partial_=True, **place))

    def results(self, scores: Mapping[str, Mapping[str, Any]], overlay: Path | None, checkpoint: Path | None) -> None:
        """What a run ends with: each method's scores as a table and numbers, the overlay, the checkpoint if asked for."""
        columns = list(
            dict.fromkeys(name for row in scores.values() for name, value in row.items() if is_number(value))
        )
        rows = [[method, *(row.get(column) for column in columns)] for method, row in scores.items()]
        numbers = {f"final/{m}/{name}": row[name] for m, row in scores.items() for name in columns if name in row}
        for logger in self.open():
            if scores:
                logger.do(lambda inner: inner.log_metrics(numbers) if not isinstance(inner, CSVLogger) else None)
                logger.do(lambda inner: show_table(inner, "final/scores", ["method", *columns], rows))
            if overlay is not None and overlay.exists():
                logger.do(lambda inner: show_video(inner, "final/overlay", overlay))
            if checkpoint is not None and checkpoint.exists():
                logger.do(lambda inner: keep_checkpoint(inner, checkpoint))

    def table(self, key: str, rows: Sequence[Mapping[str, Any]]) -> None:
        """A table of rows, whose columns are all that one of them has."""
        columns = list(dict.fromkeys(name for row in rows for name in row))
        for logger in self.open():
            logger.do(lambda inner: show_table(inner, key, columns, [[row.get(c) for c in columns] for row in rows]))

    def __enter__(self) -> "RunLoggers":
        return self

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        for logger in self.opened or []:
            logger.do(lambda inner: close(inner, failed=kind is not None))


def is_number(value: Any) -> bool:
    return isinstance(value, int | float)


def close(logger: Logger, *, failed: bool) -> None:
    """Write what a logger still holds, and end a run of W&B, so that the next one in this process is its own."""
    logger.finalize("failed" if failed else "success")
    if isinstance(logger, WandbLogger):
        logger.experiment.finish(exit_code=int(failed))
