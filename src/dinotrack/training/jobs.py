"""The jobs of a multirun: the record that each leaves, the folder of its values, the number that it returns."""

import hashlib
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import fields
from pathlib import Path
from typing import Any
from urllib.parse import quote

import torch
from hydra.core.hydra_config import HydraConfig
from hydra.types import RunMode
from omegaconf import DictConfig, OmegaConf

from dinotrack.errors import DinotrackError, Stopped
from dinotrack.metrics import BadjaScores, TapVidScores
from dinotrack.sealed import write_json
from dinotrack.signals import Interrupted
from dinotrack.structs import PointTruth

RECORDED = ("fit", "run", "preprocess", "evaluate", "train-chrono")
"""Commands whose jobs leave a record."""
RECORD, RECORDS = "job.json", "jobs"
"""A job's record: a file in its folder, or for clips that share a folder one of the files in this one."""
LONGEST = 200
"""Characters of a folder's name; file systems take 255 bytes."""


def is_job() -> bool:
    """Whether this is a job of a multirun."""
    return HydraConfig.initialized() and HydraConfig.get().mode == RunMode.MULTIRUN


def resumed_by(folder: Path) -> str:
    """The words with which the command of the run in a folder goes on from there; a job's are those of its whole multirun."""
    place = f"hydra.sweep.dir={HydraConfig.get().sweep.dir}" if is_job() else f"hydra.run.dir={folder}"
    return f"{place} resume=true"


def use_threads(config: DictConfig) -> None:
    """Give torch the threads that `threads` asks for."""
    if config.get("threads"):
        torch.set_num_threads(config.threads)


def job_values(config: DictConfig) -> dict[str, Any]:
    """The settings by which this job differs from the others: values, and of config groups the choice."""
    pairs = (str(word).lstrip("+").partition("=") for word in HydraConfig.get().overrides.task)
    texts = {name: value for name, _, value in pairs}
    values = {name: OmegaConf.select(config, name) for name in config.swept if name in texts}
    lists = {name: OmegaConf.to_container(value) for name, value in values.items() if OmegaConf.is_list(value)}
    choices = {name: texts[name] for name, value in values.items() if value is None or OmegaConf.is_dict(value)}
    return {**values, **lists, **choices}


def folder_name(values: Mapping[str, Any]) -> str:
    """A folder's name that says these values."""
    name = quote(",".join(f"{key}={value}" for key, value in values.items()), safe="=,+[]")
    if len(name) <= LONGEST:
        return name
    return f"{name[:LONGEST]}-{hashlib.sha256(name.encode()).hexdigest()[:12]}"


def evaluation_folder(config: DictConfig) -> Path:
    """Where an evaluation's predictions go: of a sweep, to a folder for each combination of values."""
    folder = Path(config.folder)
    if not is_job():
        return folder
    named = any(str(word).startswith("folder=") for word in HydraConfig.get().overrides.task)
    told = ("benchmark.clip", *(() if named else ("method",)))  # the default folder's name has the method
    values = {name: value for name, value in job_values(config).items() if name not in told}
    return folder / folder_name(values) if values else folder


def record_path(command: str, config: DictConfig, folder: Path) -> Path:
    """Where the record of this job lies; `folder` is its own."""
    if command != "evaluate":
        return folder / RECORD
    clip = config.benchmark.clip
    return evaluation_folder(config) / RECORDS / f"{folder_name({'clip': 'all' if clip is None else clip})}.json"


@contextmanager
def recorded(command: str, config: DictConfig, folder: Path) -> Iterator[None]:
    """Keep a job's values and what became of it, so that a report can name those that failed; other runs need no record."""
    if not is_job() or command not in RECORDED:
        yield
        return
    path = record_path(command, config, folder)
    about = {"command": command, "method": config.method.name, "values": job_values(config)}
    about |= {"overrides": [str(word) for word in HydraConfig.get().overrides.task]}
    write_json(path, {**about, "status": "unfinished"})
    try:
        yield
    except BaseException as error:
        status = "unfinished" if isinstance(error, Stopped | Interrupted | KeyboardInterrupt) else "failed"
        write_json(path, {**about, "status": status, "reason": reason_of(error)})
        raise
    write_json(path, {**about, "status": "done"})


def reason_of(error: BaseException) -> str:
    """One line about an error: our own where it is among the causes."""
    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DinotrackError):
        cause = cause.__cause__
    return " ".join((str(cause) if cause else f"{type(error).__name__}: {error}").split())


def check_objective(config: DictConfig, truth: PointTruth) -> None:
    """Let pass a job whose objective its video's ground truth can give.

    Raises:
        DinotrackError: naming the objectives that there are.
    """
    if config.objective is None:
        if is_job() and not HydraConfig.get().sweeper._target_.endswith("BasicSweeper"):
            raise DinotrackError("this sweeper searches for the best number; add objective=aj, or another score")
        return
    if not len(truth):
        raise DinotrackError(
            f"objective={config.objective} needs ground truth; take video=synthetic, truth=joints.json, or dinotrack evaluate"
        )
    scores = [each.name for each in fields(BadjaScores if len(truth.areas) else TapVidScores) if each.type is float]
    if str(config.objective).lower() not in scores:
        raise DinotrackError(f"objective={config.objective}: the ground truth gives {', '.join(scores)}")


def objective_of(config: DictConfig, scores: Mapping[str, Any] | None) -> float | None:
    """The score that `objective` names, of a job's own method; None where none is asked for.

    Raises:
        DinotrackError: for a score that is not there.
    """
    if not scores or config.get("objective") is None:
        return None
    name, own = str(config.objective).lower(), scores[config.method.name]
    values = own if isinstance(own, Mapping) else vars(own)
    if not isinstance(values.get(name), float):
        there = ", ".join(key for key, value in values.items() if isinstance(value, float))
        raise DinotrackError(f"objective={config.objective}: the scores are {there}")
    return values[name]
