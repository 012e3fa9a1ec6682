"""Names of files, as a user types them after `video=`."""

import os
from collections.abc import Callable
from contextlib import chdir
from pathlib import Path

from benchmarks.tried.cases import REFUSED, Case
from benchmarks.tried.films import film
from dinotrack import load_video, save_video
from dinotrack.training.config import compose_config
from dinotrack.training.words import readable

NAMES = {
    "spaces and an equals sign": "my clip=1.mp4",
    "accents and Chinese": "ü漢字.mp4",
    "an emoji": "\U0001f600.mp4",
    "a new line": "a\nb.mp4",
    "a percent sign": "100%.mp4",
    "a pattern of FFmpeg": "a%03d.mp4",
    "brackets": "cl[1](2){3}.mp4",
    "a single quote": "it's.mp4",
    "double quotes": '"q".mp4',
    "a dollar sign": "$HOME.mp4",
    "an interpolation": "${x}.mp4",
    "commas and semicolons": "a,b;c.mp4",
    "a tilde": "~x.mp4",
    "a backslash": "a\\b.mp4",
    "spaces at its ends": " a.mp4 ",
    "a star": "*.mp4",
    "a tag": "<b>.mp4",
    "a number": "1.5",
    "true": "true",
    "a colon": "a:b.mp4",
    "a protocol of FFmpeg": "concat:a.mp4",
    "a hash": "a#b.mp4",
    "a minus in front": "-x.mp4",
    "an equals sign in front": "=.mp4",
    "what a terminal obeys": "a\x1b[31mb.mp4",
    "250 letters": "x" * 246 + ".mp4",
}


def of_names() -> list[Case]:
    """A video by each name, through Hydra's grammar."""
    group = "names"

    def make(name: str) -> Callable[[Path], Path]:
        def made(folder: Path) -> Path:
            save_video(film()[:3], folder / "film.mp4", 25.0)
            return (folder / "film.mp4").rename(folder / name)

        return made

    def asked(path: Path) -> str:
        with chdir(path.parent):
            config = compose_config("run", "tiny", readable([f"video={path.name}"]))
            assert config.video == path.name, f"{config.video!r} in place of {path.name!r}"
            return f"{len(load_video(config.video))} frames"

    cases = [Case(group, what, make(name), asked) for what, name in NAMES.items()]
    unknown = os.fsdecode(b"\xff.mp4")
    cases.append(Case(group, "bytes that are no text", make(unknown), asked, REFUSED, "is no name in Unicode"))
    absent = Case(
        group, "one that is not there", lambda folder: folder / "a(b.mp4", asked, REFUSED, "an override cannot be read"
    )
    return [*cases, absent]
