"""Measure quality against seconds of shorter fits: the rows, the curve and the tables of "Fewer steps" in docs/speed.md.

python scripts/fewer_steps.py measure         # all settings, one after the other, about an hour; goes on where it was stopped
python scripts/fewer_steps.py measure NAME    # one of SETTINGS, as "75 steps"
python scripts/fewer_steps.py                 # only draw the curve from the kept rows; scripts/results.py writes the tables
"""

import csv
import json
import math
import os
import statistics
import subprocess
import sys
from pathlib import Path
from typing import Any

from dinotrack.scoreboard import as_csv, rows_of
from dinotrack.training.stopping import read_metrics

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "fewer_steps"
KEPT, PICTURE = ROOT / "docs" / "results" / "fewer_steps.csv", ROOT / "docs" / "images" / "fewer_steps.png"
FOUR = "benchmark.subset=four"
LATE = ("losses.refined_best_buddy.start", "losses.cycle.start", "callbacks.rebuild.start")
FAST, FULL = "75 steps", "300 steps"
CURVE = {
    FAST: [FOUR, "experiment=demo_fast"],
    "38 steps": [
        FOUR,
        *("experiment=demo_fast", "steps=38", "method.module.decay_every=3", "callbacks.rebuild.every=13"),
    ],
    "150 steps": [
        FOUR,
        *("experiment=demo_fast", "steps=150", "method.module.decay_every=10", "callbacks.rebuild.every=50"),
    ],
    FULL: [FOUR, "experiment=demo"],
}
"""The same proportions in more and fewer steps."""
TRIED = {
    "another seed": ["seed=1"],
    "late losses from a quarter of the run on": [f"{name}=0.25" for name in LATE],
    "late losses from three quarters on": [f"{name}=0.75" for name in LATE],
    "no late losses": ["ablation=no_refined_losses"],
    "at most 8 frames a minibatch, not 4": ["method.batch.frames_per_set=4"],
    "twice the pairs a minibatch": ["method.batch.flow_pairs=1024", "method.batch.frame_pairs=8"],
    "constant learning rate": ["method.module.decay=1"],
    "learning rate falls faster": ["method.module.decay=0.8"],
    "twice the learning rate, falls faster": ["method.module.lr=0.02", "method.module.decay=0.8"],
    "every 2nd frame": ["method.batch.every=2"],
}
"""What was changed of `experiment=demo_fast`."""
STOPPING = [
    *("callbacks=stop_early", "callbacks.early_stopping.every=15", "callbacks.early_stopping.start=0.1"),
    *("callbacks.early_stopping.min_delta=0.01", "callbacks.early_stopping.patience=2"),
]
STOPPED, TWELVE, FULL_TWELVE = "300 steps, stopped early", "75 steps, all clips", "300 steps, all clips"
SETTINGS = {
    **CURVE,
    **{name: [*CURVE[FAST], *words] for name, words in TRIED.items()},
    STOPPED: [*CURVE[FULL], *STOPPING],
    TWELVE: ["experiment=demo_fast"],
    FULL_TWELVE: ["experiment=demo"],
}
SCORES = {"delta_avg": "δ_avg", "aj": "AJ"}
Rows = list[dict[str, Any]]


def measure(name: str) -> None:
    """Evaluate a setting by one process with one thread; all share the preprocessing of `runs/fewer_steps/cache`."""
    folder = RUNS / f"{list(SETTINGS).index(name):02}"
    words = ["evaluate", "benchmark=synthetic", *SETTINGS[name], "threads=1", "save_tracker=false"]
    options = [f"folder={folder}", f"cache_dir={RUNS / 'cache'}"]
    one_thread = {**os.environ, "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "dinotrack", *words, *options], check=True, cwd=ROOT, env=one_thread)
    others = [row for row in kept() if row["setting"] != name] if KEPT.exists() else []
    rows = [*others, *measured(name, folder)]
    KEPT.write_text(as_csv(sorted(rows, key=lambda row: list(SETTINGS).index(row["setting"]))))


def measured(name: str, folder: Path) -> Rows:
    """A row for each clip: scores, steps, and seconds of the fit, by the clock and of the processor."""
    rows = []
    for row in rows_of(folder):
        summary = json.loads((folder / row["clip"] / "summary.json").read_text())
        stage = {stage["name"]: stage for stage in summary["stages"]}["fit"]
        checks = [line for line in read_metrics(folder / row["clip"], 10**9) if "heldout/cycle_consistent" in line]
        steps = int(checks[-1]["step"]) + 1 if checks else summary["evaluation"]["settings"]["steps"]
        cost = {"fit_seconds": stage["seconds"], "fit_cpu_seconds": stage["cpu_seconds"], "steps": steps}
        about = {key: row[key] for key in ("clip", "frames", "delta_avg", "oa", "aj", "commit", "hardware")}
        rows.append({"setting": name, **about, **cost})
    return rows


def kept() -> Rows:
    with open(KEPT, newline="") as file:
        return list(csv.DictReader(file))


def of(setting: str) -> Rows:
    """The rows of a setting, sorted by clip."""
    return sorted((row for row in kept() if row["setting"] == setting), key=lambda row: row["clip"])


def mean(setting: str, column: str) -> float:
    return statistics.fmean(float(row[column]) for row in of(setting))


def apart(setting: str, from_setting: Rows, column: str) -> tuple[float, float]:
    """Mean over clips of the difference to another setting on the same clip, and its standard error."""
    others = {row["clip"]: float(row[column]) for row in from_setting}
    found = [float(row[column]) - others[row["clip"]] for row in of(setting)]
    return statistics.fmean(found), statistics.stdev(found) / math.sqrt(len(found))


def line(setting: str, from_setting: Rows, label: str = "") -> str:
    """A row of a table: steps, scores, differences to another setting, processor seconds of a fit."""
    cells = [label or setting, f"{mean(setting, 'steps'):.0f}", *(f"{mean(setting, score):.1f}" for score in SCORES)]
    for score in SCORES:
        difference, error = apart(setting, from_setting, score)
        cells.append("" if of(setting) == from_setting else f"{difference:+.2f} ± {error:.2f}")
    return "| " + " | ".join([*cells, f"{mean(setting, 'fit_cpu_seconds'):.0f}"]) + " |"


def table(settings: list[str], base: str, called: str) -> str:
    """Settings on the four clips beside the base setting, by the differences on each clip."""
    titles = ["", "steps", *SCORES.values(), *(f"{name} − {called}" for name in SCORES.values()), "s of a fit"]
    heads = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    rows = [row for row in kept() if row["setting"] in settings]
    commits, machines = (", ".join(sorted({row[key] for row in rows})) for key in ("commit", "hardware"))
    note = f"(mean ± standard error over the differences of 4 clips; one thread, processor seconds; commit {commits}; {machines})"
    return "\n".join([*heads, *(line(name, of(base)) for name in settings), "", note])


def curve() -> str:
    """Quality against steps, each setting beside the full schedule."""
    return table(sorted((*CURVE, STOPPED), key=lambda name: -mean(name, "steps")), FULL, "full")


def tried() -> str:
    """Changes of experiment=demo_fast, beside it."""
    return table([FAST, *TRIED], FAST, FAST)


def chosen() -> str:
    """experiment=demo_fast on all clips beside the full schedule."""
    full = of(FULL_TWELVE)
    titles = ["δ_avg", "AJ", "δ_avg − full", "AJ − full", "worst clip, AJ − full", "s of a fit", "s of the full fit"]
    cells = [f"{mean(TWELVE, score):.1f}" for score in SCORES]
    found = {score: apart(TWELVE, full, score) for score in SCORES}
    cells += [f"{difference:+.2f} ± {error:.2f}" for difference, error in found.values()]
    before = {row["clip"]: float(row["aj"]) for row in full}
    cells.append(f"{min(float(row['aj']) - before[row['clip']] for row in of(TWELVE)):+.1f}")
    cells += [f"{mean(setting, 'fit_cpu_seconds'):.0f}" for setting in (TWELVE, FULL_TWELVE)]
    rows = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|", "| " + " | ".join(cells) + " |"]
    goal = "MISSED" if any(difference < -1 for difference, _ in found.values()) else "met"
    commits = ", ".join(sorted({row["commit"] for row in (*of(TWELVE), *full)}))
    note = f"Goal, at most 1 point below the full schedule on average: {goal}. (commit {commits})"
    return "\n".join([*rows, "", note])


def draw() -> None:
    """The curve of quality against seconds, and what was tried beside it."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(9.6, 4.4), dpi=110, layout="constrained")
    for axis, (score, label) in zip(figure.subplots(1, 2), SCORES.items(), strict=True):
        steps = sorted(CURVE, key=lambda name: mean(name, "steps"))
        places = {name: (mean(name, "fit_cpu_seconds"), mean(name, score)) for name in (*CURVE, *TRIED, STOPPED)}
        axis.plot(*zip(*(places[name] for name in steps), strict=True), "o-", color="black", zorder=3)
        for name in steps:
            axis.annotate(name, places[name], (4, -12), textcoords="offset points", fontsize=8)
        for name in (*TRIED, STOPPED):
            axis.plot(*places[name], "*" if name == STOPPED else "o", label=name, ms=9 if name == STOPPED else 6)
        axis.set(xlabel="processor seconds of a fit (mean of 4 clips)", ylabel=f"{label} (%)")
        axis.margins(y=0.12)
        axis.grid(True, alpha=0.3)
        axis.spines[["top", "right"]].set_visible(False)
    figure.legend(*axis.get_legend_handles_labels(), loc="outside lower center", ncols=3, fontsize=8, frameon=False)
    PICTURE.parent.mkdir(exist_ok=True)
    figure.savefig(PICTURE)


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        for setting in sys.argv[2:] or SETTINGS:
            measure(setting)
    draw()
