"""Two processes that want the same entries of an empty cache at once; in half of the races one is killed."""

import random
import time
from collections.abc import Iterator
from functools import partial
from pathlib import Path

import torch

from benchmarks.faults.damaged_cache import KINDS, preprocessed, unequal
from benchmarks.faults.tiny import Process
from benchmarks.faults.trying import Row, Try


def tries(root: Path, rng: random.Random, count: int) -> Iterator[Try]:
    start = time.perf_counter()
    whole = preprocessed(root / "whole")
    seconds = time.perf_counter() - start
    for race in range(count):
        folder = root / str(race)
        folder.mkdir()
        runners = [Process(partial(run, folder, number), folder / f"{number}.txt") for number in range(2)]
        (folder / "go").touch()
        killed = bool(race % 2)
        if killed:
            runners[0].end(9, rng.uniform(0, 2 * seconds))
        codes = [runner.wait() for runner in runners[killed:]]
        yield Try("one killed" if killed else "both end", lost(folder, codes, whole))


def run(folder: Path, number: int) -> None:
    """A runner: waits for the start, and keeps what it found."""
    while not (folder / "go").exists():
        time.sleep(0.0005)
    torch.save(preprocessed(folder / "cache"), folder / f"{number}.part")
    (folder / f"{number}.part").rename(folder / f"{number}.pt")  # a killed one's is not looked at


def lost(folder: Path, codes: list[int], whole: object) -> str:
    """What is wrong after a race."""
    if any(codes):
        return f"exit codes {codes}: {' '.join(path.read_text()[-200:] for path in folder.glob('*.txt'))}"
    found = [torch.load(path, weights_only=False) for path in folder.glob("*.pt")]
    wrong = [unequal(each, whole) for each in [*found, preprocessed(folder / "cache")]]
    files = [path for path in (folder / "cache").rglob("*") if path.is_file() and path.suffix != ".lock"]
    kinds = sorted(path.name.split("-")[0] for path in files)
    return ", ".join(filter(None, wrong)) or ("" if kinds == sorted(KINDS) else f"in the cache: {kinds}")


ROW = Row(
    "two processes fill one empty cache at once; in every second race one is killed at a random moment",
    "who was not killed has the same as alone; each entry is there once, whole; no temporary file",
    tries,
    short=2,
    long=50,
)
