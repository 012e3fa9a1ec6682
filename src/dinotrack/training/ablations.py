"""The table of baselines and ablations: a row for each run, then means with their standard errors."""

import csv
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, OmegaConf

from dinotrack.evaluation import plain
from dinotrack.files import write_atomically
from dinotrack.sealed import read_json
from dinotrack.training.config import WATCHING

ROWS, TABLE = "rows", "ablations.csv"
MEASURES = {"delta_avg": "synthetic", "oa": "synthetic", "aj": "synthetic", "delta_seg": "badja", "delta_3px": "badja"}
"""Columns of the table, in percent, and the kind of ground truth that has them."""


def row_path(folder: Path, row: dict[str, Any]) -> Path:
    """Where the row of a run is kept."""
    return folder / ROWS / f"{row['clip']}-{row['ablation']}-{row['seed']}.json"


def row_of(choices: dict[str, str], config: DictConfig) -> dict[str, Any]:
    """What names a run."""
    return {"clip": choices["clip"], "ablation": choices["ablation"] or "full", "seed": int(config.seed)}


def measured(scores: dict[str, Any], method: str, summary: dict[str, Any]) -> dict[str, Any]:
    """The figures of a finished run: scores of its own method, and the seconds that it took beyond preprocessing."""
    values = {name: value for name, value in plain(scores)[method].items() if name in MEASURES}
    seconds = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
    own = sum(value for name, value in seconds.items() if name in ("fit", "track"))
    where = {name: summary["environment"][name] for name in ("commit", "hardware", "cpu_threads")}
    return {**{name: round(value, 4) for name, value in values.items()}, "seconds": round(own, 2), **where}


def read_rows(folder: Path) -> list[dict[str, Any]]:
    """All rows that are there.

    Raises:
        DinotrackError: for one that is damaged.
    """
    files = sorted((folder / ROWS).glob("*.json"))
    return [read_json(path, "delete it, and its run is made again") for path in files]


def mean_and_error(values: Sequence[float]) -> tuple[float, float]:
    """Mean, and its standard error s / √n; 0 of a single value."""
    mean = sum(values) / len(values)
    spread = math.sqrt(sum((value - mean) ** 2 for value in values) / max(len(values) - 1, 1))
    return mean, spread / math.sqrt(len(values))


def summarise(rows: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
    """A line for each clip and ablation: means over seeds, their standard errors, and the same of the differences from full."""
    groups: dict[tuple[str, str], dict[int, dict[str, Any]]] = {}
    for row in rows:
        groups.setdefault((row["clip"], row["ablation"]), {})[row["seed"]] = row
    lines = []
    for (clip, ablation), runs in groups.items():
        line: dict[str, Any] = {"clip": clip, "ablation": ablation, "runs": len(runs)}
        full = groups.get((clip, "full"), {})
        for name in [*MEASURES, "seconds"]:
            values = [run[name] for run in runs.values() if name in run]
            if values:
                line[name], line[f"{name}_se"] = (round(value, 2) for value in mean_and_error(values))
            apart = [run[name] - full[seed][name] for seed, run in runs.items() if name in run and seed in full]
            if apart and name in MEASURES:
                line[f"{name}_vs_full"], line[f"{name}_vs_full_se"] = (round(v, 2) for v in mean_and_error(apart))
        for name in ("commit", "hardware", "cpu_threads"):
            line[name] = " / ".join(sorted({str(run[name]) for run in runs.values()}))
        lines.append(line)
    return sorted(lines, key=lambda line: (line["clip"], -line.get("aj", line.get("delta_seg", 0.0))))


def write_table(folder: Path, path: Path) -> list[dict[str, Any]]:
    """The table of all rows in `folder`, as CSV."""
    lines = summarise(read_rows(folder))
    columns = list(dict.fromkeys(name for line in lines for name in line))
    columns = [*(c for c in columns if c not in ENDING), *ENDING]

    def write(name: Path) -> None:
        with open(name, "w", newline="") as file:
            writer = csv.DictWriter(file, columns, restval="")
            writer.writeheader()
            writer.writerows(lines)

    write_atomically(path, write)
    return lines


ENDING = ["commit", "hardware", "cpu_threads"]


def settings_of(config: DictConfig) -> dict[str, Any]:
    """What a row depends on."""
    whole: Any = OmegaConf.to_container(config, resolve=True)
    dropped = ("cache_dir", "logger", "render", "trail", "resume", "checkpoint_every", "table")
    dropped += ("memory", "memory_limit", "features_on", "plan")
    dropped += ("threads", "objective", "layers", "facets", "swept", "max_side")
    kept = {name: value for name, value in whole.items() if name not in dropped}
    return kept | {"callbacks": {name: value for name, value in whole["callbacks"].items() if name not in WATCHING}}
