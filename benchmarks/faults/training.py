"""A training of Chrono's adapters that is killed or asked to stop at random moments and begun again by the same command."""

import random
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

from safetensors.torch import load_file

from benchmarks.faults.killed import in_good_order
from benchmarks.faults.tiny import Place, begin, failed, metrics, same_bytes, temporary
from benchmarks.faults.trying import Row, Try
from dinotrack.training.chrono_command import ADAPTERS
from dinotrack.training.stopping import RESUME

SIZE = ["backbone.width=8", "backbone.pretrained=false", "clips.frames=3", "clips.size=[32,32]", "clips.points=8"]
STEPS = ["steps=12", "checkpoint_every=2", "trainer.log_every_n_steps=1", "resume=true", "logger=csv", "threads=1"]
SCORED = ["held_out.data=synthetic", "held_out.clips=2", "held_out.every=4"]


def words(place: Place) -> list[str]:
    """The command, which is the same each time."""
    here = [f"hydra.run.dir={place.folder}", "device=cpu", "clips.workers=0"]
    return ["train-chrono", "data=synthetic", "experiment=chrono_small", *SIZE, *STEPS, *SCORED, *here]


def tries(root: Path, rng: random.Random, count: int) -> Iterator[Try]:
    whole, start = Place(root / "whole"), time.perf_counter()
    if wrong := finish(whole):
        raise RuntimeError(wrong)
    seconds = time.perf_counter() - start
    for attempt in range(count):
        place, number = Place(root / str(attempt)), 15 if attempt % 2 else 9
        while not (code := begin(words(place), place.log).end(number, rng.uniform(0, seconds))):
            shutil.rmtree(place.root)
            seconds *= 0.8  # it had ended: the machine is less busy than before
        where = f"SIG{'TERM' if attempt % 2 else 'KILL'} {reached(place)}"
        wrong = in_good_order(place, code, number) if number == 15 else failed(place, code) if code != -9 else ""
        yield Try(where, wrong or finish(place) or unlike(place, whole))


def finish(place: Place) -> str:
    """Let a training end; what went wrong."""
    return failed(place, begin(words(place), place.log).wait())


def reached(place: Place) -> str:
    """How far a training has come, by what it has kept."""
    if (place.folder / ADAPTERS).exists():
        return "after the last step"
    return "between steps" if (place.folder / RESUME).exists() else "before the first checkpoint"


def unlike(place: Place, whole: Place) -> str:
    """In what a training differs from an undisturbed one, to the bit; and what it left behind."""
    ours, theirs = (load_file(each.folder / ADAPTERS) for each in (place, whole))
    wrong = [name for name, value in theirs.items() if name not in ours or not ours[name].equal(value)]
    wrong += [name for name in ("held_out.csv", "metrics.json") if not same_bytes(place, whole, name)]
    wrong += [] if metrics(place) == metrics(whole) else ["metrics.csv"]
    names = [{path.name for path in each.folder.iterdir()} for each in (place, whole)]
    wrong += [f"the files {sorted(names[0] ^ names[1])}"] if names[0] != names[1] else []
    wrong += [f"left over: {path.name}" for path in temporary(place)]
    return ", ".join(wrong)


ROW = Row(
    "a training of Chrono's adapters killed or asked to stop at a random moment; then the same command",
    "adapters, scores of held-out clips and logged losses equal an undisturbed training's to the bit; no temporary file",
    tries,
    short=1,
    long=10,
)
