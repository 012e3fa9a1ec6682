"""Chrono at the small setting: training, ablation, and four methods on one ViT side by side; rows for docs/chrono.md.

python scripts/chrono.py train     # the ablation's multirun, five rows by three seeds, about two hours of one core; goes on
python scripts/chrono.py compare   # benchmark=synthetic by the adapters of that, about half an hour; goes on
python scripts/chrono.py picture   # docs/images/chrono_pca.png, by the same adapters
python scripts/chrono.py           # only keep what is there in docs/results; scripts/results.py writes the tables
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

from PIL import Image

from dinotrack.scoreboard import as_csv, rows_of
from dinotrack.training.sweep_jobs import read_jobs

ROOT = Path(__file__).resolve().parents[1]
RUNS = ROOT / "runs" / "chrono"
TRAINED, COMPARED = (ROOT / "docs" / "results" / f"chrono_{name}" for name in ("training.json", "methods.csv"))
PICTURE = ROOT / "docs" / "images" / "chrono_pca.png"
WIDE = 640
SWEEP = ["train-chrono", "sweep=temporal", "experiment=chrono_small", "threads=1"]
CHOSEN = ("attention", 0)
"""Row and seed of the ablation whose adapters are compared."""
VIT = ["backbone=chrono_s14", "backbone.layer=4", "backbone.pretrained=false"]
FITTED = ["experiment=demo_fast", "backbone.stride=14", "backbone.upscale=3.5", "method.head.radius=70"]
"""R of two tokens, as in the demo."""
ON_VIT = {
    "raw features": ["method=raw_features", *FITTED],
    "Chrono's head, no adapters": ["method=chrono", "method.size=[96,72]", "device=cpu"],
    "Chrono": ["method=chrono", "method.size=[96,72]", "device=cpu"],
    "DINO-Tracker": ["method=dino_tracker", *FITTED],
    "hybrid": ["method=dino_tracker", *FITTED],
}
ADAPTED = ("Chrono", "hybrid")
ON_SIFT = {
    name: [f"method={method}", "experiment=demo_fast"]
    for name, method in (("raw features", "raw_features"), ("DINO-Tracker", "dino_tracker"))
}
SCORES = {"delta_avg": "δ_avg", "oa": "OA", "aj": "AJ", "cpu_seconds": "CPU s a clip"}


def dinotrack(*words: str) -> None:
    environ = {**os.environ, "WANDB_MODE": "disabled", "OMP_NUM_THREADS": "1"}
    subprocess.run([sys.executable, "-m", "dinotrack", *words], check=True, env=environ)


def sweep_folder() -> Path:
    return RUNS / "ablation"


def compared() -> dict[str, tuple[Path, list[str]]]:
    """Folder and words of each evaluation, by its name."""
    jobs = {(job.values["temporal"], job.values["seed"]): job for job in read_jobs(sweep_folder())}
    adapters = sweep_folder() / jobs[CHOSEN].folder / "adapters.safetensors"
    found = {}
    for name, words in ON_VIT.items():
        file = f"backbone.adapters={adapters if name in ADAPTED else 'null'}"
        found[f"random ViT: {name}"] = (RUNS / "vit" / folder_name(name), [*words, *VIT, file])
    for name, words in ON_SIFT.items():
        found[f"dense SIFT: {name}"] = (RUNS / "sift" / folder_name(name), words)
    return found


def folder_name(name: str) -> str:
    return "".join(letter if letter.isalnum() else "_" for letter in name)


def cpu_seconds(folder: Path) -> float:
    """Of a training, or of an evaluation's clip: other work on the machine changes little in them."""
    stages = json.loads((folder / "summary.json").read_text())["stages"]
    return sum(stage["cpu_seconds"] for stage in stages)


def compare() -> None:
    """Evaluate every method on all clips."""
    for folder, words in compared().values():
        dinotrack("evaluate", "benchmark=synthetic", *words, "threads=1", "logger=none", f"folder={folder}")


def picture() -> None:
    """Components of the features of a synthetic video."""
    folder, words = RUNS / "picture", compared()["random ViT: Chrono"][1]
    dinotrack(
        "run", "video=synthetic", *words, "queries=grid:16", "render=false", "logger=none", f"hydra.run.dir={folder}"
    )
    dinotrack("picture", "pca", str(folder), str(PICTURE), "--frames", "0,12,23")
    image = Image.open(PICTURE).convert("RGB")
    image.thumbnail((WIDE, WIDE))
    image.quantize(96, dither=Image.Dither.NONE).save(PICTURE, optimize=True)


def keep() -> None:
    """What the runs say, as far as they are done."""
    jobs = [job for job in read_jobs(sweep_folder()) if job.status == "done"]
    rows = [
        {
            **job.values,
            **about(sweep_folder() / job.folder),
            **job.about,
            "cpu_seconds": cpu_seconds(sweep_folder() / job.folder),
        }
        for job in jobs
    ]
    TRAINED.write_text(json.dumps({"command": ["dinotrack", *SWEEP], "rows": rows}, indent=1) + "\n")
    done = {name: folder for name, (folder, _) in compared().items() if (folder / "scores.csv").exists()}
    rows = [(name, folder, row) for name, folder in done.items() for row in rows_of(folder)]
    lines = [
        {**row, "group": name, "cpu_seconds": round(cpu_seconds(folder / row["clip"]), 2)} for name, folder, row in rows
    ]
    for line in lines:
        del line["config"]  # a place on this machine
    if lines:
        COMPARED.write_text(as_csv(lines))


def about(folder: Path) -> dict[str, Any]:
    """Of a training: δ_avg, OA and AJ of each held-out clip before and after, and the mean loss of its first and last sixth."""
    with open(folder / "held_out.csv", newline="") as file:
        table = list(csv.DictReader(file))
    with open(folder / "metrics.csv", newline="") as file:
        losses = [float(row["loss/total"]) for row in csv.DictReader(file) if row["loss/total"]]
    steps = sorted({int(row["step"]) for row in table})
    part = max(1, len(losses) // 6)
    ends = {"before": str(steps[0]), "after": str(steps[-1])}
    scores = {
        when: {name: [float(row[name]) for row in table if row["step"] == step] for name in ("delta_avg", "oa", "aj")}
        for when, step in ends.items()
    }
    return {**scores, "loss_first": statistics.mean(losses[:part]), "loss_last": statistics.mean(losses[-part:])}


def mean_and_error(values: list[float]) -> tuple[float, float]:
    return statistics.mean(values), statistics.stdev(values) / math.sqrt(len(values))


def gains(row: dict[str, Any], name: str = "delta_avg") -> list[float]:
    """Of each held-out clip, what the training gained."""
    return [after - before for before, after in zip(row["before"][name], row["after"][name], strict=True)]


def training_table() -> str:
    """The training of Chrono's own adapters by seed, and whether it is what was hoped for."""
    kept = json.loads(TRAINED.read_text())
    own = sorted((row for row in kept["rows"] if row["temporal"] == CHOSEN[0]), key=lambda row: row["seed"])
    lines = [
        "| seed | loss, first sixth | last sixth | δ_avg without adapters | with | gain | CPU s |",
        "|---" * 7 + "|",
    ]
    met = True
    for row in own:
        gain, error = mean_and_error(gains(row))
        before, after = (statistics.mean(row[when]["delta_avg"]) for when in ("before", "after"))
        cells = [
            str(row["seed"]),
            f"{row['loss_first']:.2f}",
            f"{row['loss_last']:.2f}",
            f"{before:.1f}",
            f"{after:.1f}",
        ]
        lines.append("| " + " | ".join([*cells, f"{gain:+.1f} ± {error:.1f}", f"{row['cpu_seconds']:.0f}"]) + " |")
        met &= gain > 2 * error and row["loss_last"] < row["loss_first"]
    goal = "met" if met else "MISSED"
    clips = len(own[0]["before"]["delta_avg"])
    note = (
        f"Goal, a loss that falls and a gain above two standard errors over the {clips} clips with each seed: {goal}."
    )
    return "\n".join([*lines, "", f"{note} {where(kept['rows'])}"])


def ablation_table() -> str:
    """Each row of the ablation: means over seeds, errors over clips."""
    kept = json.loads(TRAINED.read_text())
    lines = ["| adapters | seeds | δ_avg | gain | OA | AJ | CPU s |", "|---" * 7 + "|"]
    for name in dict.fromkeys(row["temporal"] for row in kept["rows"]):
        own = [row for row in kept["rows"] if row["temporal"] == name]
        means = {
            score: statistics.mean(value for row in own for value in row["after"][score])
            for score in ("delta_avg", "oa", "aj")
        }
        gain, error = mean_and_error([statistics.mean(each) for each in zip(*map(gains, own), strict=True)])
        cells = [name, str(len(own)), f"{means['delta_avg']:.1f}", f"{gain:+.1f} ± {error:.1f}", f"{means['oa']:.1f}"]
        seconds = statistics.mean(row["cpu_seconds"] for row in own)
        lines.append("| " + " | ".join([*cells, f"{means['aj']:.1f}", f"{seconds:.0f}"]) + " |")
    command = " ".join(kept["command"])
    return "\n".join(
        [*lines, "", f"(`{command}`; errors over clips, of the means over seeds; {where(kept['rows'])[1:]}"]
    )


def methods_table(group: str) -> str:
    """Scores and seconds of the methods of one group, means over the clips."""
    with open(COMPARED, newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["group"].startswith(f"{group}: ")]
    lines = [f"| method | clips | {' | '.join(SCORES.values())} |", "|---" * (len(SCORES) + 2) + "|"]
    for name in dict.fromkeys(row["group"] for row in rows):
        own = [row for row in rows if row["group"] == name]
        values = [statistics.mean(float(row[score]) for row in own) for score in SCORES]
        lines.append(f"| {name.split(': ')[1]} | {len(own)} | " + " | ".join(f"{value:.1f}" for value in values) + " |")
    return "\n".join([*lines, "", where(rows)])


def where(rows: list[dict[str, Any]]) -> str:
    commits, machines = (", ".join(sorted({row[key] for row in rows})) for key in ("commit", "hardware"))
    return f"(commit {commits}; {machines}, one thread)"


if __name__ == "__main__":
    if "train" in sys.argv:
        dinotrack(*SWEEP, "resume=true", f"hydra.sweep.dir={sweep_folder()}")
    if "compare" in sys.argv:
        compare()
    if "picture" in sys.argv:
        picture()
    keep()
