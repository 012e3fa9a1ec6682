"""An evaluation that is ended between or inside clips and begun again by the same command."""

import csv
import pickle
import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np

from benchmarks.faults.tiny import REBUILD, SMALL, Place, begin, failed, temporary
from benchmarks.faults.trying import Row, Try
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.data.synthetic_benchmark import stored

CLIPS = 3
MEASURED = ("seconds", "peak", "config")
"""Columns of scores.csv that no two evaluations have in common."""


def small_benchmark(folder: Path) -> Path:
    """Three clips as TAP-Vid-DAVIS has them."""
    path = folder / "davis.pkl"
    clips = {f"clip{seed}": stored(synthetic_clip(seed, 6, (64, 48), points=6)) for seed in range(CLIPS)}
    path.write_bytes(pickle.dumps(clips))
    return path


def words(place: Place, benchmark: Path, *more: str) -> list[str]:
    clips = ["benchmark=tapvid_davis", f"benchmark.path={benchmark}", "benchmark.resolution=null"]
    fit = ["steps=3", "checkpoint_every=1", "trainer.log_every_n_steps=1", *REBUILD]
    return ["evaluate", *clips, *SMALL, *fit, f"folder={place.folder}", f"cache_dir={place.cache}", *more]


def tries(root: Path, rng: random.Random, count: int) -> Iterator[Try]:
    benchmark, whole = small_benchmark(root), Place(root / "whole")
    start = time.perf_counter()
    if wrong := failed(whole, begin(words(whole, benchmark), whole.log).wait()):
        raise RuntimeError(wrong)
    seconds = time.perf_counter() - start
    for attempt in range(count):
        place, done = Place(root / str(attempt)), CLIPS
        while done == CLIPS:  # else it had ended before: again from nothing, and sooner
            shutil.rmtree(place.folder, ignore_errors=True)
            number = 15 if attempt % 2 else 9
            code = begin(words(place, benchmark), place.log).end(number, rng.uniform(0, seconds))
            done = len([*place.folder.glob("*/summary.json")])
            seconds *= 0.7 if done == CLIPS else 1.0
        wrong = "" if number == 9 or not temporary(place) else f"left over after exit code {code}"
        wrong = wrong or failed(place, begin(words(place, benchmark), place.log).wait()) or unlike(place, whole)
        yield Try(f"SIG{'TERM' if attempt % 2 else 'KILL'} after {done} of {CLIPS} clips", wrong)


def unlike(place: Place, whole: Place) -> str:
    """In what an evaluation differs from an undisturbed one."""
    wrong = [] if scores(place) == scores(whole) else ["scores.csv"]
    for path in whole.folder.glob("*/tracks.npz"):
        name = path.relative_to(whole.folder)
        with np.load(path) as theirs, np.load(place.folder / name) as ours:
            wrong += [f"{name} {each}" for each in theirs.files if not np.array_equal(ours[each], theirs[each])]
    names = [{path.relative_to(each.folder) for path in each.folder.rglob("*")} for each in (place, whole)]
    wrong += [f"the files {sorted(map(str, names[0] ^ names[1]))}"] if names[0] != names[1] else []
    wrong += [f"left over: {path.name}" for path in temporary(place)]
    return ", ".join(wrong)


def scores(place: Place) -> list[dict[str, str]]:
    with open(place.folder / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{name: value for name, value in row.items() if not name.startswith(MEASURED)} for row in rows]


ROW = Row(
    "an evaluation killed or asked to stop at a random moment, between clips or in one; then the same command",
    "predictions equal an undisturbed evaluation's to the bit, and so do scores; no temporary file",
    tries,
    short=1,
    long=10,
)
