"""A run that is killed at random moments and begun again by the same command ends as if nothing had happened."""

import random
import shutil
from collections.abc import Iterator
from pathlib import Path

import torch

from benchmarks.faults.tiny import Place, anew, begin, failed, finish, temporary, undisturbed, unlike
from benchmarks.faults.trying import Row, Try
from dinotrack.training.commands import CHECKPOINT
from dinotrack.training.stopping import RESUME

AGAIN = 0.3
"""How probable it is that the run that goes on is killed as well."""


def tries(root: Path, rng: random.Random, count: int, number: int = 9) -> Iterator[Try]:
    whole, seconds = undisturbed(root.parent)
    for attempt in range(count):
        place = Place(root / str(attempt))
        while (struck := strike(place, rng, seconds, number)) is None:
            shutil.rmtree(place.root)
            seconds *= 0.8  # it had ended: the machine is less busy than before
        while not struck.wrong and rng.random() < AGAIN and (more := strike(place, rng, seconds / 2, number)):
            struck = Try(f"{struck.where}, then {more.where}", more.wrong)
        if struck.wrong:
            yield struck
            continue
        # Every fourth goes on in a process that shares nothing with the one that was killed.
        yield Try(struck.where, (finish(place) if attempt % 4 else anew(place)) or unlike(place, whole))


def strike(place: Place, rng: random.Random, seconds: float, number: int) -> Try | None:
    """A run that is ended by a signal at a random moment of so many seconds; None where it had ended before."""
    code = begin(place.words(), place.log).end(number, rng.uniform(0, seconds))
    if not code:
        return None
    wrong = in_good_order(place, code, number) if number != 9 else failed(place, code) if code != -9 else ""
    return Try(reached(place), wrong)


def reached(place: Place) -> str:
    """How far a run has come, by what it has kept."""
    if (place.folder / CHECKPOINT).exists():
        return "after the fit"
    return "fit" if (place.folder / RESUME).exists() else "preprocessing"


def in_good_order(place: Place, code: int, number: int) -> str:
    """What is wrong with the end of a run that was asked to stop."""
    last = (place.said().strip().splitlines() or [""])[-1]
    if code == -number and not place.folder.exists():
        return ""  # it had not begun
    if code != 128 + number or "dinotrack: " not in last or "stopped by" not in last:
        return f"exit code {code}: {last[-200:]}"
    if left := temporary(place):
        return f"left over: {left[0].name}"
    if " at step " in last:
        step = torch.load(place.folder / RESUME, weights_only=True)["global_step"]
        return "" if f" at step {step} of " in last else f"step {step} was saved, but {last}"
    return ""


ROW = Row(
    "killed at a random moment (SIGKILL), some of them again while they go on; then the same command",
    "tracks, checkpoint and logged losses equal an undisturbed run's to the bit",
    tries,
    short=2,
    long=20,
)
