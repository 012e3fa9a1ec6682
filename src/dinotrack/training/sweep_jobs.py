"""The jobs of a sweep as they lie on disk: their values, what became of them, scores and costs."""

import csv
import itertools
import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dinotrack.errors import DinotrackError
from dinotrack.scoreboard import ABOUT, COST, clip_row, finished, mean
from dinotrack.training.jobs import RECORD, RECORDS

REPLICATES = ("seed", "synthetic.seed", "video", "benchmark.clip")
"""Settings over whose values a report averages."""


@dataclass(frozen=True)
class Job:
    """One job: `scores` and `losses` by name, `seconds` by stage; all empty without a result."""

    folder: str
    values: dict[str, Any]
    status: str = "done"
    """done, failed, unfinished (running, stopped or killed) or not started."""
    reason: str = ""
    command: str = ""
    overrides: tuple[str, ...] = ()
    scores: dict[str, float] = field(default_factory=dict)
    losses: dict[str, float] = field(default_factory=dict)
    seconds: dict[str, float] = field(default_factory=dict)
    about: dict[str, Any] = field(default_factory=dict)


def read_jobs(folder: Path) -> list[Job]:
    """Every job of the sweeps in a folder, those that failed or never began too, in natural order.

    Raises:
        DinotrackError: when there is none, or a record is damaged.
    """
    records = [*folder.rglob(RECORD), *folder.rglob(f"{RECORDS}/*.json")]
    jobs = [read_job(path, folder) for path in records]
    known = {frozenset(job.overrides) for job in jobs}
    jobs += [Job("", values, "not started") for words, values in planned(folder) if words not in known]
    if not jobs:
        raise DinotrackError(
            f"{folder} holds no jobs of a sweep; make some: dinotrack fit -m hydra.sweep.dir={folder} ..."
        )
    return sorted(jobs, key=lambda job: (not job.folder, [natural(part) for part in (job.folder, str(job.values))]))


def natural(text: str) -> list[tuple[int, str]]:
    """A sorting key by which 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def read_job(record: Path, root: Path) -> Job:
    """The job of a record; one that says done but lacks its results is called failed."""
    try:
        kept = json.loads(record.read_text())
        shared = record.parent.name == RECORDS
        folder = record.parent.parent if shared else record.parent
        clip = kept["values"].get("benchmark.clip")
        name = folder.relative_to(root).as_posix() + (f"/{clip}" if isinstance(clip, str) else "")
        about = {"command": kept["command"], "overrides": tuple(kept["overrides"]), "reason": kept.get("reason", "")}
        job = {"folder": name, "values": kept["values"], "status": kept["status"], **about}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DinotrackError(f"{record} is damaged ({error}); delete it, and run its job again") from error
    if kept["status"] != "done":
        return Job(**job)
    try:
        return Job(**job, **(clips_result(folder, clip) if shared else run_result(folder, kept["method"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Job(**{**job, "status": "failed", "reason": f"its results cannot be read: {error}"})


def run_result(folder: Path, method: str) -> dict[str, Any]:
    """Scores, last losses and seconds of a run's folder."""
    summary = json.loads((folder / "summary.json").read_text())
    scores, losses = {}, {}
    if (folder / "metrics.json").exists():
        own = json.loads((folder / "metrics.json").read_text())[method]
        scores = {name: float(value) for name, value in own.items() if isinstance(value, float | int)}
    if (folder / "metrics.csv").exists():
        with open(folder / "metrics.csv", newline="") as file:
            for row in csv.DictReader(file):
                losses |= {name: float(value) for name, value in row.items() if name.startswith("loss/") and value}
    peak = max((stage["peak_memory_mb"] for stage in summary["stages"]), default=0.0)
    seconds = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
    where = {name: summary["environment"][name] for name in ("commit", "hardware", "cpu_threads")}
    return {"scores": scores, "losses": losses, "seconds": seconds, "about": {"peak_memory_mb": peak, **where}}


def clips_result(folder: Path, clip: str | Sequence[str] | None) -> dict[str, Any]:
    """Means over the clips of a job of `dinotrack evaluate`."""
    names = [clip] if isinstance(clip, str) else clip
    rows = [clip_row(path) for path in finished(folder) if names is None or path.name in names]
    if not rows:
        raise ValueError("no clip is finished")
    scores = {name: mean([row[name] for row in rows]) for name in rows[0] if name not in (*ABOUT, *COST)}
    summaries = [json.loads((folder / row["clip"] / "summary.json").read_text()) for row in rows]
    stages = [(each["name"], each["seconds"]) for summary in summaries for each in summary["stages"]]
    seconds = {name: sum(value for other, value in stages if other == name) for name, _ in stages}
    about = {"peak_memory_mb": max(row["peak_memory_mb"] for row in rows)}
    where = {name: summaries[0]["environment"][name] for name in ("commit", "hardware", "cpu_threads")}
    return {"scores": scores, "seconds": seconds, "about": {**about, **where}}


def planned(folder: Path) -> list[tuple[frozenset[str], dict[str, Any]]]:
    """The overrides of each job that multiruns in a folder set out to do, and its values; searches do not plan."""
    jobs = []
    for path in folder.rglob("multirun.yaml"):
        config = OmegaConf.load(path)
        sweeper: Any = OmegaConf.to_container(OmegaConf.select(config, "hydra.sweeper"), resolve=False)
        if not sweeper["_target_"].endswith("BasicSweeper"):
            continue
        words = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
        given = OverridesParser.create().parse_overrides([*words, *OmegaConf.select(config, "hydra.overrides.task")])
        lists = {
            each.get_key_element(): list(each.sweep_string_iterator())
            if each.is_sweep_override()
            else [each.get_value_element_as_str()]
            for each in given
        }
        for values in itertools.product(*lists.values()):
            pairs = dict(zip(lists, values, strict=True))
            several = {name: value_of(pairs[name]) for name, choices in lists.items() if len(choices) > 1}
            jobs.append((frozenset(f"{name}={value}" for name, value in pairs.items()), several))
    return jobs


def value_of(text: str) -> Any:
    """An override's text as the value that a config gets."""
    return OverridesParser.create().parse_override(f"x={text}").value()
