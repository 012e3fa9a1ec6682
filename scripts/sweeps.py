"""Measure what docs/sweeps.md shows: a 3 x 2 sweep at the tiny setting, the same again, and by two jobs at a time.

python scripts/sweeps.py measure   # some minutes; keeps docs/results/sweep.json and docs/images/sweep.png
python scripts/sweeps.py           # only write the page's table from what is kept
"""

import csv
import json
import os
import shutil
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE, PICTURE = (ROOT / "docs" / name for name in ("results/sweep.json", "sweeps.md", "images/sweep.png"))
WORDS = ["fit", "-m", "experiment=tiny", "method.module.lr=1e-3,1e-2,5e-2", "resolution=72,96", "threads=1"]
RUNS = {"first": [], "again": [], "two jobs at a time": ["hydra/launcher=local"]}
"""The last one with a cache of its own, so that its jobs race for the entries."""
EXACT = ("delta_avg", "oa", "aj", "loss/total")


def dinotrack(*words: str) -> None:
    subprocess.run(
        [sys.executable, "-m", "dinotrack", *words], check=True, env={**os.environ, "WANDB_MODE": "disabled"}
    )


def measure() -> None:
    """Run the sweep three times, and keep what its reports say."""
    kept: dict[str, Any] = {"command": ["dinotrack", *WORDS], "runs": {}}
    with tempfile.TemporaryDirectory() as scratch:
        for name, more in RUNS.items():
            folder = Path(scratch) / name.replace(" ", "_")
            cache = Path(scratch) / ("other" if more else "cache")
            begin = time.perf_counter()
            dinotrack(*WORDS, *more, f"cache_dir={cache}", f"hydra.sweep.dir={folder}")
            seconds = round(time.perf_counter() - begin, 1)
            dinotrack("sweep-report", str(folder))
            with open(folder / "report.csv", newline="") as file:
                rows = list(csv.DictReader(file))
            kept["runs"][name] = {"seconds": seconds, "entries": len(list(cache.rglob("*.safetensors"))), "jobs": rows}
        shutil.copy(Path(scratch) / "first" / "report.png", PICTURE)
    KEPT.write_text(json.dumps(kept, indent=2) + "\n")


def table() -> str:
    """Seconds of preprocessing and fit of each run, and whether its numbers are those of the first."""
    kept = json.loads(KEPT.read_text())
    first = [[job[name] for name in EXACT] for job in kept["runs"]["first"]["jobs"]]
    lines = [
        "| run | jobs | cache entries | preprocessing, s of all jobs | fits, s | AJ and losses |",
        "|---" * 6 + "|",
    ]
    for name, run in kept["runs"].items():
        jobs = run["jobs"]
        parts = [f"{sum(float(job[f'seconds_{stage}']) for job in jobs):.1f}" for stage in ("preprocess", "fit")]
        same = [[job[name] for name in EXACT] for job in jobs] == first
        said = "–" if name == "first" else "as the first" if same else "DIFFERENT"
        lines.append(f"| {name} | {len(jobs)} | {run['entries']} | {' | '.join(parts)} | {said} |")
    about = kept["runs"]["first"]["jobs"][0]
    where = f"commit {about['commit']}; {about['hardware']}, {about['cpu_threads']} thread a job"
    return "\n".join([*lines, "", f"(`{' '.join(kept['command'])}`; {where}, on a machine with other work)"])


def update_page() -> None:
    """Put the table between its markers."""
    text = PAGE.read_text()
    before, rest = text.split("<!-- sweep -->")
    PAGE.write_text(f"{before}<!-- sweep -->\n{table()}\n<!-- /sweep -->{rest.split('<!-- /sweep -->')[1]}")


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    update_page()
