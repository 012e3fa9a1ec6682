"""What a tried input is, and what is said of it afterwards."""

import logging
import re
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dinotrack import DinotrackError

WORKS, SAYS, REFUSED, FAILED = "works", "works, with a line", "refused", "FAILED"


@dataclass(frozen=True)
class Case:
    """An input: `make` writes it into an empty folder, `act` hands it over and says in a few words what came of it."""

    group: str
    name: str
    make: Callable[[Path], Any]
    act: Callable[[Any], str]
    expected: str = WORKS
    words: str = ""
    """What the line must say: a pattern."""

    @property
    def id(self) -> str:
        return f"{self.group}: {self.name}"


@dataclass(frozen=True)
class Outcome:
    """What happened: `said` is what came of it, `lines` the error or the warnings, without the folder's name."""

    case: Case
    status: str
    said: str
    lines: tuple[str, ...]
    seconds: float

    @property
    def as_expected(self) -> bool:
        """Whether it is what the case expects, and every line is one line that says what it must."""
        plain = all(line == " ".join(line.split()) and line.isprintable() and len(line) < 700 for line in self.lines)
        said = not self.case.words or any(re.search(self.case.words, line) for line in self.lines)
        return self.status == self.case.expected and plain and said


@contextmanager
def warnings_of(name: str = "dinotrack") -> Iterator[list[str]]:
    """The lines that are logged meanwhile, from warnings on."""
    lines = list[str]()
    handler = logging.Handler(logging.WARNING)
    handler.emit = lambda record: lines.append(record.getMessage())  # type: ignore[method-assign]
    logger = logging.getLogger(name)
    logger.addHandler(handler)
    before, logger.propagate = logger.propagate, False
    try:
        yield lines
    finally:
        logger.removeHandler(handler)
        logger.propagate = before


def tried(case: Case, folder: Path) -> Outcome:
    """Make the input in `folder`, hand it over and see; whatever is raised but our own error is a failure."""
    made, begun = case.make(folder), time.perf_counter()
    said = ""
    with warnings_of() as lines:
        try:
            said = case.act(made)
            status = SAYS if lines else WORKS
        except DinotrackError as error:
            status, lines = REFUSED, [*lines, str(error)]
        except BaseException as error:
            status, lines = FAILED, [*lines, f"{type(error).__name__}: {error}"]
    shown = tuple(line.replace(f"{folder}/", "").replace(str(folder), "FOLDER") for line in lines)
    return Outcome(case, status, said, shown, round(time.perf_counter() - begun, 3))
