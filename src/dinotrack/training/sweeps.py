"""The words of a multirun before Hydra reads them: one clip a job, what differs between jobs, what they can share."""

import re
from collections.abc import Sequence
from importlib.util import find_spec
from itertools import pairwise
from pathlib import Path
from typing import Any

from hydra.core.override_parser.overrides_parser import OverridesParser
from hydra.core.override_parser.types import Override
from hydra.errors import HydraException
from omegaconf import DictConfig, OmegaConf

from dinotrack.data.clips import clips_of
from dinotrack.errors import DinotrackError
from dinotrack.training.config import compose_config
from dinotrack.training.evaluating import one_clip_a_job
from dinotrack.training.jobs import RECORDED
from dinotrack.training.words import quoted

MULTIRUN = ("-m", "--multirun")
SHOWS = ("--cfg", "-c", "--info", "-i", "--help", "-h", "--hydra-help")
"""Flags of Hydra's that show something in place of a run."""
CHOOSERS = ("sweep=", "hydra/sweeper=", "videos=")
"""Words that ask for many jobs."""
OF_VIDEOS = ("run", "fit", "preprocess")
"""Commands of one video, which take a folder of them."""
OPTUNA = "hydra/sweeper=optuna"
EXTRAS = {
    "hydra/launcher=local": ("hydra_joblib_launcher", "sweep"),
    "hydra/launcher=joblib": ("hydra_joblib_launcher", "sweep"),
    "hydra/launcher=submitit_local": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=submitit_slurm": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=slurm_local": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=slurm": ("hydra_submitit_launcher", "slurm"),
    "hydra/launcher=ray": ("hydra_ray_launcher", "ray"),
    OPTUNA: ("hydra_optuna_sweeper", "sweep"),
    "sweep=optuna": ("hydra_optuna_sweeper", "sweep"),
    "sweep=search": ("hydra_optuna_sweeper", "sweep"),
}
"""Choice: the Hydra plugin it needs, and the extra of dinotrack that brings it."""


def prepared(command: str, words: Sequence[str]) -> list[str]:
    """The words of a command as Hydra shall read them; a multirun gets its clips, and the settings that its jobs share.

    Raises:
        DinotrackError: for a missing plugin, videos that are not there, or words that cannot be read.
    """
    check_plugins(words)
    asked = command == "ablate" or any(word.startswith(CHOOSERS) and not word.endswith("=null") for word in words)
    if not any(word in MULTIRUN for word in words) and (not asked or any(word.startswith("-") for word in words)):
        return list(words)
    shown = [word for word in words if word.partition("=")[0] in SHOWS]
    if shown:
        raise DinotrackError(f"{shown[0]} shows what one job would have, -m begins many; leave one of them out")
    # Hydra reads the mode in a config too late to let lists on the command line through; and its parser of the command line wants
    # the overrides in one row.
    words = ["--multirun", *one_video_a_job(command, [word for word in words if word not in MULTIRUN])]
    if command not in RECORDED:
        return words
    words = with_search(words)
    chosen = sweep_of(command, words)
    searches = chosen is not None and not chosen.hydra.sweeper._target_.endswith("BasicSweeper")
    if command == "evaluate" and not searches:  # a search wants one number for all clips
        words = one_clip_a_job(words)
    params = dict((chosen.hydra.sweeper.params if chosen is not None else None) or {})
    given = parsed([f"{name}={value}" for name, value in params.items()]) | parsed(words)
    more = [*shared_settings(given), *(folder_of_all(given) if command == "evaluate" else [])]
    return beside(words, more)


def check_plugins(words: Sequence[str]) -> None:
    """Let pass choices whose Hydra plugin is installed.

    Raises:
        DinotrackError: naming the extra that brings it.
    """
    for word in words:
        plugin, extra = EXTRAS.get(word, ("", ""))
        if plugin and find_spec(f"hydra_plugins.{plugin}") is None:
            raise DinotrackError(f"{word} needs a plugin of Hydra; pip install 'dinotrack[{extra}]' brings it")


def parsed(words: Sequence[str]) -> dict[str, Override]:
    """The overrides among words, by name.

    Raises:
        DinotrackError: for one that cannot be read.
    """
    plain = [word for word in words if "=" in word and not word.startswith("-")]
    try:
        return {each.key_or_group: each for each in OverridesParser.create().parse_overrides(plain)}
    except HydraException as error:
        raise DinotrackError(f"an override cannot be read: {str(error).splitlines()[0]}") from error


def with_search(words: Sequence[str]) -> list[str]:
    """Words that choose Optuna alone with our settings of a search, and with our search space where they name none."""
    if OPTUNA not in words or any(word.startswith("sweep=") for word in words):
        return list(words)
    own = any(each.is_sweep_override() for each in parsed(words).values())
    return beside(words, ["sweep=search" if own else "sweep=optuna"])


def sweep_of(command: str, words: Sequence[str]) -> DictConfig | None:
    """The config of the sweep that words choose, with Hydra's own part; None where they choose none.

    Raises:
        DinotrackError: when there is no such sweep.
    """
    chosen = [word for word in words if word.startswith(("sweep=", "hydra/sweeper=", "hydra.sweeper."))]
    if not chosen:
        return None
    named = [word.split("=", 1)[1] for word in words if word.startswith("--config-dir=")]
    named += [after for word, after in pairwise(words) if word in ("--config-dir", "-cd")]
    if named:  # where a sweep of the user's own may lie
        chosen.append(f"hydra.searchpath=[{','.join(quoted(f'file://{Path(name).absolute()}') for name in named)}]")
    return compose_config(command, overrides=chosen, with_hydra=True)


def shared_settings(given: dict[str, Override]) -> list[str]:
    """What every job of a sweep is told: the names of what differs, and the layers and facets that one pass can give all."""
    swept = [name for name, each in given.items() if each.is_sweep_override() and not name.startswith("hydra")]
    words = [f"swept=[{','.join(quoted(name) for name in swept)}]"]
    if {"backbone", "backbone.model", "experiment", "ablation"} & set(swept):
        return words  # another backbone may not have these layers
    for name, key in (("backbone.layer", "layers"), ("backbone.facet", "facets")):
        if name in swept and key not in given and given[name].is_discrete_sweep():
            words.append(f"{key}=[{','.join(given[name].sweep_string_iterator())}]")
    return words


def folder_of_all(given: dict[str, Override]) -> list[str]:
    """For an evaluation whose `folder` is another one for some jobs: that Hydra's plan goes to the folder above them all.

    Raises:
        DinotrackError: where the words name a folder for the plan; a report would not find the jobs there.
    """
    if "hydra.sweep.dir" in given:
        raise DinotrackError("hydra.sweep.dir: the jobs of an evaluation lie in folder=; give that instead")
    swept = {name for name, each in given.items() if each.is_sweep_override()}
    folder = str(given["folder"].value()) if "folder" in given else default_folder()
    read = {name for found in re.findall(r"\$\{([\w.]+)\}", folder) for name in (found, found.split(".")[0])}
    if not read & swept:
        return []
    above = Path(f"{folder.partition('${')[0]}_").parent
    return [f"hydra.sweep.dir={quoted(str(above))}"]


def default_folder() -> str:
    """Where an evaluation goes, by which settings."""
    settings: Any = OmegaConf.to_container(compose_config("evaluate"))
    return settings["folder"]


def one_video_a_job(command: str, words: Sequence[str]) -> list[str]:
    """Words with `videos=FOLDER`, or a pattern of files, spelt out as a list of `video=`.

    Raises:
        DinotrackError: when there is none, or the command takes none.
    """
    asked = [word for word in words if word.startswith("videos=")]
    if not asked:
        return list(words)
    if command not in OF_VIDEOS or len(asked) > 1 or any(word.startswith("video=") for word in words):
        raise DinotrackError(f"{asked[-1]}: expected once, in place of video=, and for {', '.join(OF_VIDEOS)}")
    names = [quoted(str(path)) for path in clips_of(asked[0].removeprefix("videos=").strip("'\""))]
    of_one = [word for word in words if word.startswith(("masks=", "truth=")) or is_query_file(word)]
    if of_one and len(names) > 1:
        raise DinotrackError(
            f"{of_one[0]} is of one video, {asked[0]} are {len(names)}; start those that have one on their own"
        )
    listed = f"video={','.join(names)}"
    return [listed if word == asked[0] else word for word in words]


def is_query_file(word: str) -> bool:
    """Whether a word names points of one video, not a grid that any video has."""
    name, _, value = word.partition("=")
    return name == "queries" and Path(value.strip("'\"")).suffix.lower() in (".csv", ".json", ".npy", ".npz", ".txt")


def beside(words: Sequence[str], more: Sequence[str]) -> list[str]:
    """Words with further overrides among the others: the parser of the command line wants them in one row."""
    place = next((index for index, word in enumerate(words) if "=" in word and not word.startswith("-")), len(words))
    return [*words[:place], *more, *words[place:]]
