"""The command `dinotrack`: Hydra mains for what has settings, argparse for small tools."""

import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dinotrack import __version__
from dinotrack.errors import DinotrackError, Stopped, printable
from dinotrack.signals import Interrupted, raised

HYDRA_COMMANDS = {
    "run": "preprocess, fit, track and render a video",
    "plan": "seconds, memory and disk that a run will take, from a short probe",
    "preprocess": "features, optical flow and best buddies of a video into the cache",
    "fit": "preprocess a video and fit a tracker to it",
    "track": "track queries with the checkpoint of a fit",
    "import": "make a checkpoint of weights that the published code fitted",
    "ablate": "the table of baselines and ablations, by a multirun",
    "evaluate": "a benchmark's clips, predicted to disk and scored; with -m a clip a job",
    "train-chrono": "train Chrono's adapters on clips with known tracks",
    "demo": "run on three synthetic videos and compare with two baselines",
}
TOOLS = {
    "render": "draw tracks over their video; several trackers side by side; errors against ground truth",
    "picture": "what the features of a finished fit see: similarity, best-buddies or pca",
    "convert": "tracks as CSV, NPZ, JSON keypoints, for Nuke or for Blender",
    "view": "write a page that plays a run in the browser",
    "export": "write a checkpoint as the two files of the published code",
    "sweep-report": "the jobs of a multirun as CSV, Markdown and a plot",
    "score": "score the predictions of dinotrack evaluate again, and lay methods side by side",
    "make-benchmark": "write our synthetic benchmark as TAP-Vid's files",
}

OUTPUTS = ("hydra.run.dir=", "hydra.sweep.dir=", "folder=", "table=")
"""Overrides that name where results go."""

USAGE = """dinotrack {version}: track any point through a video, trained at test time on that one video

usage: dinotrack COMMAND [key=value ...]

commands:
{commands}

  dinotrack run video=clip.mp4                       tracks.npz, tracks.csv, overlay.mp4, tracker.ckpt
  dinotrack run video=clip.mp4 experiment=cpu_small  without a GPU and without weights
  dinotrack fit video=frames/ masks=masks/           the fit alone
  dinotrack track checkpoint=runs/.../tracker.ckpt queries=points.csv
  dinotrack view runs/run/... --open                 the run in the browser, in one file
  dinotrack evaluate benchmark=synthetic experiment=demo method=raw_features
  dinotrack fit -m video=clip.mp4 losses.best_buddy.weight=1e-4,25e-5
  dinotrack sweep-report runs/fit-sweep/...

`dinotrack COMMAND --help` lists a command's config groups and settings, `--cfg job` prints its whole config.
"""


def main(arguments: Sequence[str] | None = None) -> None:
    """Entry point of the console script."""
    command, *rest = arguments if arguments is not None else sys.argv[1:] or ["--help"]
    if command in ("-h", "--help", "help"):
        print(usage(), end="")
    elif command in ("-V", "--version"):
        print(__version__)
    elif command in HYDRA_COMMANDS:
        hydra_command(command, rest)
    elif command in TOOLS:
        sys.exit(plainly(lambda: tool(command)(rest)))
    else:
        sys.exit(f"dinotrack: there is no command {command!r}; there are {', '.join([*HYDRA_COMMANDS, *TOOLS])}")


def tool(name: str) -> Callable[[Sequence[str]], None]:
    """`main` of the tool's module."""
    return importlib.import_module(f"dinotrack.tools.{name.replace('-', '_')}").main


def usage() -> str:
    commands = {**HYDRA_COMMANDS, **TOOLS}
    width = 2 + max(map(len, commands))
    lines = [f"  {name:<{width}}{what}" for name, what in commands.items()]
    return USAGE.format(version=__version__, commands="\n".join(lines))


def hydra_command(command: str, rest: Sequence[str]) -> None:
    """Run a command under Hydra, which reads the overrides from `sys.argv`."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.errors import CompactHydraException
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from dinotrack.training.config import config_folder
    from dinotrack.training.sweeps import prepared
    from dinotrack.training.words import readable

    before = existing_folders(rest)

    def task(config: DictConfig) -> float | None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", force=True)
        commands = importlib.import_module("dinotrack.training.commands")
        jobs = importlib.import_module("dinotrack.training.jobs")
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        returned: list[float | None] = []

        def job() -> None:
            try:
                with jobs.recorded(command, config, folder):
                    scores = getattr(commands, f"{command.replace('-', '_')}_command")(config, folder)
                    returned.append(jobs.objective_of(config, scores))
            except Interrupted as error:
                raise Stopped(f"stopped by {error}", how_to_go_on(command, folder), error.number) from None

        jobs.use_threads(config)
        # With several devices Lightning begins this command anew for each of the others, by these words.
        sys.argv = [str(Path(__file__).with_name("__main__.py")), command, *words]
        try:
            code = plainly(job)
        finally:
            remove_empty(folder, before)
        if code == DinotrackError.exit_code and hydra_config.mode == RunMode.MULTIRUN:
            # Hydra prints what an exception of this kind says, and no traceback.
            raise CompactHydraException("dinotrack: this job failed, its reason stands above")
        if code:
            sys.exit(code)
        return returned[0]

    words: list[str] = []
    code = plainly(lambda: words.extend(prepared(command, readable(rest))))
    if code:
        sys.exit(code)
    sys.argv = [f"dinotrack {command}", *words]
    try:
        conf = str(config_folder())
    except DinotrackError as error:
        sys.exit(f"dinotrack: {error}")
    code = plainly(hydra.main(version_base="1.3", config_path=conf, config_name=command)(task))
    if code:
        sys.exit(code)


def how_to_go_on(command: str, folder: Path) -> str:
    """What to do after a signal that came where no fit was under way."""
    from dinotrack.training.jobs import resumed_by

    where = f" with {resumed_by(folder)}" if command in ("run", "fit", "train-chrono") else ""
    return f"what was finished is kept, the same command{where} goes on from there"


def plainly(job: Callable[[], object]) -> int:
    """Run a job; an error that is meant for the user becomes one line and its exit code, 2 or that of a signal."""
    try:
        with raised():
            job()
    except Interrupted as error:
        print(f"dinotrack: stopped by {error}", file=sys.stderr)
        return 128 + error.number
    except DinotrackError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"dinotrack: {printable(str(error))}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        cause = user_error(error)
        if cause is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"dinotrack: {printable(str(cause))}", file=sys.stderr)
        return 2
    return 0


def user_error(error: BaseException) -> BaseException | None:
    """What of an error is meant for the user: our own inside Hydra's `instantiate`, or a config that does not hold together."""
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    cause: BaseException | None = error
    while cause is not None and not isinstance(cause, DinotrackError):
        cause = cause.__cause__
    if cause is None and isinstance(error, HydraException | OmegaConfBaseException):
        return error
    return cause


def existing_folders(rest: Sequence[str]) -> set[Path]:
    """The folders on the way to the run folder that are there already, and so are not ours to remove."""
    named = [word.split("=", 1)[1] for word in rest if word.startswith(OUTPUTS)]
    paths = [Path(name).absolute() for name in [*named, "runs/x/y"]]
    return {parent for path in paths for parent in (path, *path.parents) if parent.exists()}


def remove_empty(folder: Path, keep: set[Path]) -> None:
    """Take back the run folder, and the folders that were made for it, where nothing was written."""
    for path in (folder.absolute(), *folder.absolute().parents):
        if path in keep or not path.is_dir() or any(path.iterdir()):
            return
        path.rmdir()
