"""What a row of the table is made of."""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path


class Impossible(Exception):
    """This machine does not let the row be tried."""


@dataclass(frozen=True)
class Try:
    """One fault: where it struck, and what went wrong afterwards; "" for nothing."""

    where: str
    wrong: str = ""


@dataclass(frozen=True)
class Row:
    """`tries(folder, rng, count)` makes so many faults in an empty folder; `short` and `long` say how many."""

    fault: str
    held: str
    """What is held against each try."""
    tries: Callable[[Path, random.Random, int], Iterator[Try]]
    short: int
    long: int
