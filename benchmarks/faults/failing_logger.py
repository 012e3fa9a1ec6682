"""A logger that raises, whatever it is asked and whenever, changes nothing."""

import errno
import random
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from lightning.pytorch.loggers import Logger

from benchmarks.faults.tiny import Place, begin, failed, undisturbed, unlike
from benchmarks.faults.trying import Row, Try

ERRORS = (OSError(errno.ENOSPC, "No space left on device"), RuntimeError("server is gone"), KeyError("name"))
ERRORS += (TimeoutError("no answer"), AssertionError(), MemoryError())


class Faulty(Logger):
    """Raises at its call number `at`, and keeps at `path` how many there were."""

    def __init__(self, path: str, at: int, error: int) -> None:
        super().__init__()
        self.path, self.at, self.error, self.calls = Path(path), at, error, 0
        self.call()

    def call(self) -> None:
        self.calls += 1
        self.path.write_text(str(self.calls))
        if self.calls == self.at:
            raise ERRORS[self.error]

    @property
    def name(self) -> str:
        self.call()
        return "faulty"

    @property
    def version(self) -> str:
        self.call()
        return "0"

    def log_metrics(self, *_: Any, **__: Any) -> None:
        self.call()

    def log_hyperparams(self, *_: Any, **__: Any) -> None:
        self.call()

    def log_image(self, *_: Any, **__: Any) -> None:
        self.call()

    def save(self) -> None:
        self.call()

    def finalize(self, status: str) -> None:
        self.call()


def tries(root: Path, rng: random.Random, count: int) -> Iterator[Try]:
    whole, _ = undisturbed(root.parent)
    counted = Place(root / "counted")
    yield Try("never", logged(counted, 0, 0) or unlike(counted, whole))
    calls = int((counted.root / "calls").read_text())
    for attempt in range(count - 1):
        place, at = Place(root / str(attempt)), rng.randrange(1, calls + 1)
        wrong = logged(place, at, rng.randrange(len(ERRORS))) or unlike(place, whole)
        if place.said().count("logger faulty failed") != 1:
            wrong = f"not warned of at call {at} of {calls}"
        yield Try("a call", wrong)


def logged(place: Place, at: int, error: int) -> str:
    """A run with the logger beside metrics.csv; what went wrong."""
    entry = f"{{_target_: {__name__}.Faulty, path: '{place.root / 'calls'}', at: {at}, error: {error}}}"
    return failed(place, begin(place.words(f"+logger.faulty={entry}"), place.log).wait())


ROW = Row(
    "a logger that raises at a random call, one of six errors",
    "a warning, and a run that equals an undisturbed one to the bit",
    tries,
    short=2,
    long=10,
)
