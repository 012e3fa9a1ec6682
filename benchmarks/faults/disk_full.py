"""A disk that is full when a file is to be written, for each file in turn: one line names it, and with room the run goes on.

The disk is a real one of a few megabytes in memory, and its fullness the system's; only the moment is chosen.
"""

import ctypes
import os
import random
import subprocess
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from pathlib import Path
from typing import Any

from lightning.fabric.loggers.csv_logs import _ExperimentWriter

import dinotrack.files
import dinotrack.growing
from benchmarks.faults.tiny import Place, Process, finish, temporary, undisturbed, unlike
from benchmarks.faults.trying import Impossible, Row, Try
from dinotrack import cli

ORDER = ("features-*", "tracklets-*", "best_buddies-*", "config.yaml", "metrics.csv", "resume.ckpt", "tracker.ckpt")
ORDER += ("tracks.npz", "tracks.csv", "overlay.mp4", "metrics.json", "summary.json")
"""The files of a run, in which it writes them."""
SIZE = 2**24
PAGE = 4096
NEW_USER, NEW_MOUNTS = 0x10000000, 0x00020000
"""Of Linux's unshare."""


def tries(root: Path, rng: random.Random, count: int) -> Iterator[Try]:
    whole, _ = undisturbed(root.parent)
    with own_disk(root / "disk") as disk:
        place = Place(disk)
        for name in sorted(rng.sample(ORDER, min(count, len(ORDER))), key=ORDER.index):
            size = next(whole.root.rglob(name)).stat().st_size
            times = rng.randrange(1, 4) if name == "resume.ckpt" else 1
            code = Process(partial(run_out, place, name, size, times), place.log).wait()
            yield Try(name, refused(place, name, code))
            (disk / "ballast").unlink(missing_ok=True)
        yield Try("with room", finish(place) or unlike(place, whole))


def run_out(place: Place, name: str, size: int, times: int) -> None:
    """The run; when it writes a file for the so-manieth time, the disk has room for half of it only."""
    begin, left = dinotrack.files.temporary_beside, [times]

    def fill() -> None:
        left[0] -= 1
        if not left[0]:
            space = os.statvfs(place.root)
            (place.root / "ballast").write_bytes(bytes(max(0, space.f_bavail * space.f_frsize - size // 2)))

    def full(path: Path) -> Path:
        if path.match(name):
            fill()
        return begin(path)

    dinotrack.files.temporary_beside = dinotrack.growing.temporary_beside = full
    if name == "metrics.csv":  # Lightning writes it
        _ExperimentWriter.save = before(_ExperimentWriter.save, fill)
    cli.main(place.words())


def before(save: Callable[..., None], act: Callable[[], None]) -> Any:
    def acting(*arguments: Any) -> None:
        act()
        save(*arguments)

    return acting


def refused(place: Place, name: str, code: int) -> str:
    """What is wrong with the end of a run that found no room for a file."""
    lines = place.said().strip().splitlines()  # of progress bars, too, on another stream
    last = ([line for line in lines if line.startswith("dinotrack: ")] or lines or [""])[-1]
    named = "resume.ckpt" if name == "metrics.csv" else name  # a logger ends no fit, the saving after it does
    start, _, reason = last.partition(": No space left on device; free space")
    if code != 2 or not reason or not Path(start.removeprefix("dinotrack: cannot write ")).match(named):
        return f"exit code {code}: {last[-300:]}"
    return ", ".join(f"left over: {path.name}" for path in temporary(place))


@contextmanager
def own_disk(folder: Path) -> Iterator[Path]:
    """Mount a disk in memory that this process and its children see alone; it is gone with them."""
    folder.mkdir()
    user, group = os.getuid(), os.getgid()
    if ctypes.CDLL(None, use_errno=True).unshare(NEW_MOUNTS | (NEW_USER if user else 0)):
        raise Impossible(f"no disk of its own: {os.strerror(ctypes.get_errno())}")
    if user:
        Path("/proc/self/setgroups").write_text("deny")
        Path("/proc/self/uid_map").write_text(f"0 {user} 1")
        Path("/proc/self/gid_map").write_text(f"0 {group} 1")
    for words in (["--make-rprivate", "/"], ["-t", "tmpfs", "-o", f"size={SIZE}", "tmpfs", str(folder)]):
        if subprocess.run(["mount", *words], check=False, capture_output=True).returncode:
            raise Impossible(f"mount {words[0]} is not allowed")
    try:
        yield folder
    finally:
        subprocess.run(["umount", str(folder)], check=True)


ROW = Row(
    "no room on the disk for a file, each of a run in turn; then room, and the same command",
    "one line that names the file, no temporary file; at last as above",
    tries,
    short=2,
    long=len(ORDER),
)
