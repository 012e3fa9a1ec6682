"""The jobs of a sweep as they lie on disk: their values, what became of them, scores and costs."""

import csv
import itertools
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf

from dinotrack.errors import DinotrackError
from dinotrack.scoreboard import ABOUT, COST, clip_row, finished, mean, summary_of
from dinotrack.sealed import file_digest, read_json
from dinotrack.training.jobs import RECORD, RECORDS

REPLICATES = ("seed", "synthetic.seed", "video", "benchmark.clip")
"""Settings over whose values a report averages."""
PLAN = "multirun.yaml"
"""What Hydra writes of a multirun before its first job."""
TOLD = ("swept=", "layers=", "facets=", "benchmark.of=")
"""Words that a multirun adds for its jobs; the same job of another multirun may have others."""
CLIP = "benchmark.clip"

SAME = (
    "resume",
    "threads",
    "device",
    "cache_dir",
    "memory",
    "memory_limit",
    "checkpoint_every",
    "save_tracker",
    "logger",
)
"""Settings that say where and how a job runs, not which one it is, unless the sweep is over their values."""

Words = frozenset[str]


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
    if not folder.is_dir():
        raise DinotrackError(
            f"there is no folder {folder}; give that of a multirun, as runs/fit-sweep/2025-01-31_12-00-00"
        )
    records = [*folder.rglob(RECORD), *folder.rglob(f"{RECORDS}/*.json")]
    jobs = [read_job(path, folder) for path in records]
    known = {asked(job.overrides, job.values) for job in jobs}
    of_clips = [(path, job) for path, job in zip(records, jobs, strict=True) if path.parent.name == RECORDS]
    homes = {of_all_clips(job.overrides, job.values): path.parent.parent for path, job in of_clips}
    for words, values in planned(folder, homes):
        if asked(words, values) not in known:
            jobs.append(unrecorded(words, values, folder, homes))
            known.add(asked(words, values))
    if not jobs:
        raise DinotrackError(
            f"{folder} holds no jobs of a sweep; make some: dinotrack fit -m hydra.sweep.dir={folder} ..."
        )
    return sorted(jobs, key=lambda job: (not job.folder, [natural(part) for part in (job.folder, str(job.values))]))


def asked(overrides: Iterable[str], values: Iterable[str]) -> Words:
    """The overrides by which one job is another one or the same; `values` are the names of what the sweep is over."""
    return frozenset(word for word in overrides if not word.startswith(TOLD) and not is_same(word, values))


def is_same(word: str, values: Iterable[str]) -> bool:
    """Whether a word leaves a job the one that it was."""
    name = word.partition("=")[0].lstrip("+~")
    return name not in values and (name in SAME or name.split(".")[0] == "logger")


def of_all_clips(overrides: Iterable[str], values: Iterable[str]) -> Words:
    """What jobs that share the folder of an evaluation have in common."""
    return frozenset(word for word in asked(overrides, values) if not word.startswith(f"{CLIP}="))


def natural(text: str) -> list[tuple[int, str]]:
    """A sorting key by which 2 comes before 10."""
    return [(int(part), "") if part.isdecimal() else (-1, part) for part in re.split(r"(\d+)", text)]


def read_job(record: Path, root: Path) -> Job:
    """The job of a record; one that says done but lacks its results is called failed."""
    kept = read_json(record, remedy := "delete it, and run its job again")
    try:
        shared = record.parent.name == RECORDS
        folder = record.parent.parent if shared else record.parent
        clip = kept["values"].get(CLIP)
        name = (folder / clip if isinstance(clip, str) else folder).relative_to(root).as_posix()
        about = {"command": kept["command"], "overrides": tuple(kept["overrides"]), "reason": kept.get("reason", "")}
        job = {"folder": name, "values": kept["values"], "status": kept["status"], **about}
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise DinotrackError(f"{record} is damaged ({error}); {remedy}") from error
    if kept["status"] != "done":
        return Job(**job)
    try:
        return Job(**job, **(clips_result(folder, clip) if shared else run_result(folder, kept["method"])))
    except (OSError, ValueError, KeyError, TypeError) as error:
        return Job(**{**job, "status": "failed", "reason": f"its results cannot be read: {error}"})


def run_result(folder: Path, method: str) -> dict[str, Any]:
    """Scores, last losses and seconds of a run's folder."""
    summary = summary_of_run(folder)
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


def summary_of_run(folder: Path) -> dict[str, Any]:
    """The summary of a run's folder, once the files that it lists are known to be what they were.

    Raises:
        DinotrackError: for those that are not.
    """
    summary = read_json(folder / "summary.json", "run the job again")
    for name, digest in summary["files"].items():
        if file_digest(folder / name) != digest:
            raise DinotrackError(f"{folder / name} is damaged: it is not what {folder / 'summary.json'} says")
    return summary


def clips_result(folder: Path, clip: str | Sequence[str] | None) -> dict[str, Any]:
    """Means over the clips of a job of `dinotrack evaluate`."""
    names = [clip] if isinstance(clip, str) else clip
    rows = [clip_row(path) for path in finished(folder) if names is None or path.name in names]
    if not rows:
        raise ValueError("no clip is finished")
    scores = {name: mean([row[name] for row in rows]) for name in rows[0] if name not in (*ABOUT, *COST)}
    summaries = [summary_of(folder / row["clip"]) for row in rows]
    stages = [(each["name"], each["seconds"]) for summary in summaries for each in summary["stages"]]
    seconds = {name: sum(value for other, value in stages if other == name) for name, _ in stages}
    about = {"peak_memory_mb": max(row["peak_memory_mb"] for row in rows)}
    where = {name: summaries[0]["environment"][name] for name in ("commit", "hardware", "cpu_threads")}
    return {"scores": scores, "seconds": seconds, "about": {**about, **where}}


def unrecorded(words: Sequence[str], values: dict[str, Any], root: Path, homes: Mapping[Words, Path]) -> Job:
    """A planned job without a record: it never began, or a command that was no multirun has done its clip since."""
    home, clip = homes.get(of_all_clips(words, values)), values.get(CLIP)
    if home is None or not isinstance(clip, str) or home / clip not in finished(home):
        return Job("", values, "not started", overrides=tuple(words))
    name = (home / clip).relative_to(root).as_posix()
    return Job(name, values, command="evaluate", overrides=tuple(words), **clips_result(home, clip))


def planned(folder: Path, homes: Mapping[Words, Path]) -> list[tuple[Sequence[str], dict[str, Any]]]:
    """The overrides of each job that multiruns in a folder set out to do, and its values; searches do not plan.

    A multirun over methods has its plan above their folders: from there come the jobs that belong into `homes`, folders of
    evaluations by what their jobs have in common.
    """
    above = [place / PLAN for place in (*folder.resolve().parents,)[:2] if homes and (place / PLAN).is_file()]
    jobs = [job for path in folder.rglob(PLAN) for job in plan(path)]
    return jobs + [job for path in above for job in plan(path) if of_all_clips(*job) in homes]


def plan(path: Path) -> list[tuple[Sequence[str], dict[str, Any]]]:
    """The jobs of one multirun, from Hydra's own account of it."""
    config = OmegaConf.load(path)
    sweeper: Any = OmegaConf.to_container(OmegaConf.select(config, "hydra.sweeper"), resolve=False)
    if not sweeper["_target_"].endswith("BasicSweeper"):
        return []
    words = [f"{name}={value}" for name, value in (sweeper.get("params") or {}).items()]
    given = OverridesParser.create().parse_overrides([*words, *OmegaConf.select(config, "hydra.overrides.task")])
    lists = {
        each.get_key_element(): list(each.sweep_string_iterator())
        if each.is_sweep_override()
        else [each.get_value_element_as_str()]
        for each in given
    }
    jobs = []
    for values in itertools.product(*lists.values()):
        pairs = dict(zip(lists, values, strict=True))
        several = {name: value_of(pairs[name]) for name, choices in lists.items() if len(choices) > 1}
        jobs.append(([f"{name}={value}" for name, value in pairs.items()], several))
    return jobs


def value_of(text: str) -> Any:
    """An override's text as the value that a config gets."""
    return OverridesParser.create().parse_override(f"x={text}").value()
