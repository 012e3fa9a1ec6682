"""What a run, a job of a sweep or an evaluation leaves and reads again, damaged: found, or it means the same."""

import dataclasses
import math
import random
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import torch

from benchmarks.faults import evaluation
from benchmarks.faults.tiny import FIT, REBUILD, SMALL, Place, begin, failed
from benchmarks.faults.trying import Row, Try
from dinotrack.errors import DinotrackError
from dinotrack.methods.dino_tracker import read_checkpoint
from dinotrack.scoreboard import read_clip
from dinotrack.sealed import forget_checks
from dinotrack.training.stopping import read_resumable
from dinotrack.training.sweep_jobs import read_jobs

CLIP = "benchmark.clip=clip1"
VIDEO = ["video=synthetic", "synthetic.frames=6", "synthetic.size=[64,48]"]


def tries(root: Path, rng: random.Random, count: int) -> Iterator[Try]:
    readers = made(root)
    for _ in range(count):
        path, read = rng.choice(list(readers.items()))
        forget_checks()
        before, content = read(), path.read_bytes()
        where = damage(path, rng)
        yield Try(*judged(path, where, before, read))
        path.write_bytes(content)


def made(root: Path) -> dict[Path, Callable[[], Any]]:
    """The files of a job of a sweep and of an evaluation's clip, and what reads each."""
    sweep, evaluated = Place(root / "sweep"), Place(root / "evaluation")
    words = ["fit", "-m", "seed=0", f"hydra.sweep.dir={sweep.folder}", f"cache_dir={sweep.cache}"]
    do(sweep, [*words, *SMALL, *FIT, *REBUILD, *VIDEO])
    do(evaluated, evaluation.words(evaluated, evaluation.small_benchmark(root), "method=raw_features", CLIP))
    job, clip = sweep.folder / "0", evaluated.folder / "clip1"
    settings = torch.load(job / "resume.ckpt", weights_only=True)["callbacks"]["Resumable"]["settings"]
    readers: dict[Path, Callable[[], Any]] = {
        job / "resume.ckpt": lambda: read_resumable(job / "resume.ckpt", settings),
        job / "tracker.ckpt": lambda: read_checkpoint(job / "tracker.ckpt"),
    }
    readers |= {job / f"{name}": lambda: jobs_of(sweep.folder) for name in ("job.json", "summary.json")}
    readers |= {job / f"metrics.{ending}": lambda: jobs_of(sweep.folder) for ending in ("csv", "json")}
    return readers | {clip / n: lambda: read_clip(clip) for n in ("summary.json", "tracks.npz", "truth.safetensors")}


def do(place: Place, words: list[str]) -> None:
    if wrong := failed(place, begin(words, place.log).wait()):
        raise RuntimeError(wrong)


def jobs_of(folder: Path) -> Any:
    """The jobs of a sweep; one whose results cannot be read is an error here."""
    jobs = read_jobs(folder)
    for job in jobs:
        if job.status == "failed":
            raise DinotrackError(job.reason)
    return jobs


def damage(path: Path, rng: random.Random) -> str:
    """Change one byte, or in one of five cases cut the file short."""
    content = bytearray(path.read_bytes())
    place = rng.randrange(len(content))
    if cut := rng.random() < 0.2:
        del content[place:]
    else:
        content[place] ^= rng.randrange(1, 256)
    path.write_bytes(content)
    return "cut short" if cut else "a byte"


def judged(path: Path, where: str, before: Any, read: Callable[[], Any]) -> tuple[str, str]:
    """Where it struck, and what is wrong: only an error of one line that names the file, or the same content, is right."""
    name = f"{path.name}, {where}"
    try:
        again = read()
    except DinotrackError as error:
        said = str(error)
        return f"{name}: named", "" if str(path) in said and "\n" not in said else f"{name}: {said}"
    except Exception as error:
        return name, f"{name}: {type(error).__name__}: {error}"
    return f"{name}: without meaning", "" if same(again, before) else f"{name} was taken"


def same(one: Any, other: Any) -> bool:
    """Whether two contents are equal to the bit."""
    if isinstance(one, torch.Tensor):
        return isinstance(other, torch.Tensor) and one.dtype == other.dtype and torch.equal(one, other)
    if dataclasses.is_dataclass(one):
        return type(one) is type(other) and same(vars(one), vars(other))
    if isinstance(one, dict):
        return one.keys() == other.keys() and all(same(value, other[name]) for name, value in one.items())
    if isinstance(one, list | tuple):
        return len(one) == len(other) and all(same(a, b) for a, b in zip(one, other, strict=True))
    return one == other or (isinstance(one, float) and math.isnan(one) and math.isnan(other))


ROW = Row(
    "a byte changed, or the end cut off, of what a run leaves and reads again: checkpoints, summary, record, scores, predictions",
    "an error of one line that names the file, unless the content is the same (a space between two words, say)",
    tries,
    short=30,
    long=500,
)
