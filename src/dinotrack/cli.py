"""The command `dinotrack`: Hydra mains for what has settings, argparse for small tools."""

import argparse
import importlib
import logging
import os
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from dinotrack import __version__
from dinotrack.errors import DinotrackError

HYDRA_COMMANDS = {
    "run": "preprocess, fit, track and render a video",
    "preprocess": "features, optical flow and best buddies of a video into the cache",
    "fit": "preprocess a video and fit a tracker to it",
    "track": "track queries with the checkpoint of a fit",
    "import": "make a checkpoint of weights that the published code fitted",
    "ablate": "the table of baselines and ablations, by a multirun",
    "evaluate": "a benchmark's clips, predicted to disk and scored; with -m a clip a job",
    "demo": "run on three synthetic videos and compare with two baselines",
}
TOOLS = {
    "render": "draw tracks over their video",
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
        tools = {"render": render, "export": export, "score": score, "make-benchmark": make_benchmark}
        tools["sweep-report"] = sweep_report
        sys.exit(plainly(lambda: tools[command](rest)))
    else:
        sys.exit(f"dinotrack: there is no command {command!r}; there are {', '.join([*HYDRA_COMMANDS, *TOOLS])}")


def usage() -> str:
    lines = [f"  {name:<14}{what}" for name, what in {**HYDRA_COMMANDS, **TOOLS}.items()]
    return USAGE.format(version=__version__, commands="\n".join(lines))


def hydra_command(command: str, rest: Sequence[str]) -> None:
    """Run a command under Hydra, which reads the overrides from `sys.argv`."""
    import hydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.types import RunMode
    from omegaconf import DictConfig

    from dinotrack.training.config import config_folder
    from dinotrack.training.sweeps import prepared

    before = existing_folders(rest)

    def task(config: DictConfig) -> float | None:
        logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", force=True)
        commands = importlib.import_module("dinotrack.training.commands")
        jobs = importlib.import_module("dinotrack.training.jobs")
        hydra_config = HydraConfig.get()
        folder = Path(hydra_config.runtime.output_dir)
        returned: list[float | None] = []

        def job() -> None:
            with jobs.recorded(command, config, folder):
                scores = getattr(commands, f"{command}_command")(config, folder)
                returned.append(jobs.objective_of(config, scores))

        jobs.use_threads(config)
        try:
            code = plainly(job)
        finally:
            remove_empty(folder, before)
        if code == DinotrackError.exit_code and hydra_config.mode == RunMode.MULTIRUN:
            raise DinotrackError("this job failed, its reason stands above")
        if code:
            sys.exit(code)
        return returned[0]

    words: list[str] = []
    code = plainly(lambda: words.extend(prepared(command, rest)))
    if code:
        sys.exit(code)
    sys.argv = [f"dinotrack {command}", *words]
    try:
        conf = str(config_folder())
    except DinotrackError as error:
        sys.exit(f"dinotrack: {error}")
    hydra.main(version_base="1.3", config_path=conf, config_name=command)(task)()


def plainly(job: Callable[[], object]) -> int:
    """Run a job; an error that is meant for the user becomes one line and its exit code, 2 or that of a signal."""
    try:
        job()
    except DinotrackError as error:
        if os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"dinotrack: {' '.join(str(error).split())}", file=sys.stderr)
        return error.exit_code
    except Exception as error:
        cause = user_error(error)
        if cause is None or os.environ.get("HYDRA_FULL_ERROR") == "1":
            raise
        print(f"dinotrack: {' '.join(str(cause).split())}", file=sys.stderr)
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


def render(rest: Sequence[str]) -> None:
    """`dinotrack render tracks.npz video [overlay.mp4]`."""
    parser = argparse.ArgumentParser(prog="dinotrack render", description=TOOLS["render"])
    parser.add_argument("tracks", type=Path, help="tracks.npz of a run folder")
    parser.add_argument("video", help="the video file or folder of frames that was tracked")
    parser.add_argument("output", type=Path, nargs="?", default=Path("overlay.mp4"), help="default: overlay.mp4")
    parser.add_argument("--trail", type=int, default=10, help="frames of a track that stay behind each point")
    parser.add_argument("--every", type=int, default=1, help="draw only every so many-th point")
    parser.add_argument("--start", type=int, default=0, help="first frame, where a part of the video was tracked")
    options = parser.parse_args(rest)

    from dinotrack.data import open_video
    from dinotrack.data.export import load_npz
    from dinotrack.progress import shown
    from dinotrack.visualization import render_overlay

    tracks = load_npz(options.tracks)
    video = open_video(options.video, start=options.start, stop=options.start + tracks.xy.shape[1])
    if tracks.xy.shape[1] != len(video) or tracks.size != video.size:
        raise DinotrackError(
            f"{options.tracks} has {tracks.xy.shape[1]} frames of {tracks.size}, "
            f"{options.video} has {len(video)} of {video.size}; give the video that was tracked"
        )
    render_overlay(video, tracks, options.output, trail=options.trail, every=options.every, progress=shown)
    print(options.output)


def export(rest: Sequence[str]) -> None:
    """`dinotrack export tracker.ckpt folder [--iteration N]`."""
    parser = argparse.ArgumentParser(prog="dinotrack export", description=TOOLS["export"])
    parser.add_argument("checkpoint", type=Path, help="tracker.ckpt of a run folder")
    parser.add_argument(
        "folder", type=Path, help="where delta_dino_N.pt and tracker_head_N.pt go; best one of their own"
    )
    parser.add_argument(
        "--iteration", type=int, default=10000, help="the N of their names; the published code takes the highest"
    )
    options = parser.parse_args(rest)

    from dinotrack.methods.published import export_checkpoint

    logging.basicConfig(level=logging.INFO, format="%(levelname)s: %(message)s", force=True)
    for path in export_checkpoint(options.checkpoint, options.folder, options.iteration):
        print(path)


def score(rest: Sequence[str]) -> None:
    """`dinotrack score FOLDER... [--output NAME]`."""
    parser = argparse.ArgumentParser(prog="dinotrack score", description=TOOLS["score"])
    parser.add_argument(
        "folders", type=Path, nargs="+", help="folders of dinotrack evaluate; each gets scores.csv and .md"
    )
    parser.add_argument("--output", type=Path, help="write the table of all folders as OUTPUT.csv and OUTPUT.md too")
    options = parser.parse_args(rest)

    from dinotrack.scoreboard import compare

    if options.output and not options.output.name:
        parser.error(f"--output {options.output}: expected a name, as runs/all for runs/all.csv and runs/all.md")
    compare(options.folders, options.output)


def sweep_report(rest: Sequence[str]) -> None:
    """`dinotrack sweep-report FOLDER [--output NAME] [--no-plot]`."""
    parser = argparse.ArgumentParser(prog="dinotrack sweep-report", description=TOOLS["sweep-report"])
    parser.add_argument("folder", type=Path, help="folder of a multirun, as runs/fit-sweep/2025-01-31_12-00-00")
    parser.add_argument("--output", type=Path, help="write OUTPUT.csv, .md and .png in place of FOLDER/report.*")
    parser.add_argument("--no-plot", action="store_true", help="CSV and Markdown alone, which need no matplotlib")
    options = parser.parse_args(rest)

    from dinotrack.training.sweep_report import write_report

    for path in write_report(options.folder, options.output, plot=not options.no_plot):
        print(path)


def make_benchmark(rest: Sequence[str]) -> None:
    """`dinotrack make-benchmark FOLDER [--format davis] [--subset four] [--jpeg]`."""
    parser = argparse.ArgumentParser(prog="dinotrack make-benchmark", description=TOOLS["make-benchmark"])
    parser.add_argument("folder", type=Path, help="where the files go")
    parser.add_argument(
        "--format",
        choices=("davis", "list", "shards", "all"),
        default="all",
        help="a dict as TAP-Vid-DAVIS, a list as RGB-Stacking, shards as Kinetics; default: all three",
    )
    parser.add_argument("--subset", choices=("all", "four"), default="all", help="twelve clips, or one of each kind")
    parser.add_argument(
        "--jpeg", action="store_true", help="frames of the shards as JPEG bytes; the pixels change a little"
    )
    options = parser.parse_args(rest)

    from dinotrack.data.synthetic_benchmark import FORMATS, write_benchmark
    from dinotrack.progress import shown

    formats = FORMATS if options.format == "all" else (options.format,)
    for path in write_benchmark(options.folder, formats, options.subset, jpeg=options.jpeg, progress=shown):
        print(path)
