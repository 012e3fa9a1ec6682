"""A run that is as small as a run can be, in a process of its own, and whether two of them came to the same."""

import csv
import os
import signal
import subprocess
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cache
from pathlib import Path

import numpy as np
import torch

from dinotrack import cli

SMALL = ["experiment=tiny", "resolution=64", "method.delta.hidden=[4,8]", "method.batch.flow_pairs=16", "threads=1"]
FIT = ["steps=12", "trainer.log_every_n_steps=1", "checkpoint_every=2", "resume=true", "logger=csv"]
REBUILD = ["callbacks.rebuild.every=3", "callbacks.rebuild.frame_pairs=3", "callbacks.rebuild.search.gamma=1e5"]
VIDEO = ["synthetic.frames=6", "synthetic.size=[64,48]", "queries=grid:16", "baselines=false", "plan=false"]
REPEATED = ("pairs/", "speed/", "memory/")
"""Columns of metrics.csv that Lightning repeats in rows of its own choice, or that are no result."""


@dataclass(frozen=True)
class Place:
    """Where a run lies: its folder and its cache."""

    root: Path

    @property
    def folder(self) -> Path:
        return self.root / "run"

    @property
    def cache(self) -> Path:
        return self.root / "cache"

    @property
    def log(self) -> Path:
        """What the processes said, one after the other."""
        return self.root / "said.txt"

    def words(self, *more: str) -> list[str]:
        """The command, which is the same each time."""
        here = [f"hydra.run.dir={self.folder}", f"cache_dir={self.cache}"]
        return ["run", *SMALL, *FIT, *REBUILD, *VIDEO, *here, *more]

    def said(self) -> str:
        return self.log.read_text(errors="replace") if self.log.exists() else ""


class Process:
    """A job in a forked process: it has a number and can be killed as any other, but need not import torch again."""

    def __init__(self, job: Callable[[], object], log: Path) -> None:
        log.parent.mkdir(parents=True, exist_ok=True)
        sys.stdout.flush()
        self.number = os.fork()
        if not self.number:
            os._exit(self.child(job, log))

    @staticmethod
    def child(job: Callable[[], object], log: Path) -> int:
        """What the process does: the job, its output to `log`."""
        file = os.open(log, os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(file, 1)
        os.dup2(file, 2)
        code = 0
        try:
            job()
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else int(end.code is not None)
        except BaseException:
            traceback.print_exc()
            code = 1
        sys.stdout.flush()
        sys.stderr.flush()
        return code

    def wait(self) -> int:
        """Its exit code; -N where signal N ended it."""
        return os.waitstatus_to_exitcode(os.waitpid(self.number, 0)[1])

    def end(self, number: signal.Signals, after: float) -> int:
        """Its exit code once it was sent a signal so many seconds from now, unless it had ended before."""
        time.sleep(after)
        os.kill(self.number, number)  # of one that has ended nobody else has the number: it was not waited for
        return self.wait()


def begin(words: Sequence[str], log: Path) -> Process:
    """`dinotrack WORDS`."""
    return Process(lambda: cli.main(words), log)


def finish(place: Place) -> str:
    """Let a run end; what went wrong."""
    return failed(place, begin(place.words(), place.log).wait())


def anew(place: Place) -> str:
    """Let a run end in a process that begins with nothing, its order of sets included; what went wrong."""
    with place.log.open("a") as file:
        command = [sys.executable, "-m", "dinotrack", *place.words()]
        return failed(place, subprocess.run(command, stdout=file, stderr=subprocess.STDOUT, check=False).returncode)


def failed(place: Place, code: int) -> str:
    """What a process that ended with that code said last; nothing of one that ended well."""
    return f"exit code {code}: {place.said()[-300:]}" if code else ""


@cache
def undisturbed(scratch: Path) -> tuple[Place, float]:
    """A run that nothing happens to, and its seconds; one for all rows that have this folder."""
    place, start = Place(scratch / "undisturbed"), time.perf_counter()
    if reason := finish(place):
        raise RuntimeError(reason)
    return place, time.perf_counter() - start


def unlike(place: Place, whole: Place) -> str:
    """In what a run differs from an undisturbed one, to the bit; and what it left behind."""
    with np.load(place.folder / "tracks.npz") as ours, np.load(whole.folder / "tracks.npz") as theirs:
        wrong = [name for name in theirs.files if not np.array_equal(ours[name], theirs[name])]
    weights = [torch.load(each.folder / "tracker.ckpt", weights_only=True)["state_dict"] for each in (place, whole)]
    wrong += [name for name, value in weights[1].items() if not torch.equal(weights[0][name], value)]
    wrong += [name for name in ("tracks.csv", "metrics.json") if not same_bytes(place, whole, name)]
    wrong += [] if metrics(place) == metrics(whole) else ["metrics.csv"]
    names = [{path.name for path in each.folder.iterdir()} for each in (place, whole)]
    wrong += [f"the files {sorted(names[0] ^ names[1])}"] if names[0] != names[1] else []
    wrong += [f"left over: {path.name}" for path in temporary(place)]
    return ", ".join(wrong)


def same_bytes(place: Place, whole: Place, name: str) -> bool:
    return (place.folder / name).read_bytes() == (whole.folder / name).read_bytes()


def metrics(place: Place) -> list[dict[str, str]]:
    """The rows of metrics.csv, without what no two runs have in common."""
    with open(place.folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if value and not name.startswith(REPEATED)} for row in rows]


def temporary(place: Place) -> list[Path]:
    """Files under a temporary name."""
    return [path for path in place.root.rglob(".*") if path.is_file()]
