"""Whole runs of `dinotrack` on videos that show next to nothing."""

import contextlib
import io
from collections.abc import Callable
from pathlib import Path

import numpy as np
import torch
from jaxtyping import UInt8
from torch import Tensor

from benchmarks.tried.cases import SAYS, WORKS, Case
from dinotrack import DinotrackError, cli, save_video
from dinotrack.data import synthetic_clip

TINY = ("experiment=tiny", "logger=none", "steps=4", "queries=grid:16", "baselines=false")


def ran(path: Path, *words: str) -> str:
    """Through the console script, in this process; every position must be a number."""
    place, said = path.parent / "run", io.StringIO()
    options = [*TINY, *words, f"video={path}", f"hydra.run.dir={place}", f"cache_dir={path.parent / 'cache'}"]
    code: object = 0
    with contextlib.redirect_stderr(said), contextlib.redirect_stdout(io.StringIO()):
        try:
            cli.main(["run", *options])
        except SystemExit as end:
            code = end.code
    if code:
        lines = [line for line in said.getvalue().splitlines() if line.startswith("dinotrack: ")]
        assert code == DinotrackError.exit_code and len(lines) == 1, said.getvalue()[-2000:]
        raise DinotrackError(lines[0].removeprefix("dinotrack: "))
    with np.load(place / "tracks.npz") as file:
        assert np.isfinite(file["tracks"]).all() and np.isfinite(file["confidence"]).all(), "a position is no number"
        return f"{len(file['queries'])} tracks over {file['tracks'].shape[1]} frames"


def of_runs() -> list[Case]:
    """Each method on each."""
    group = "whole runs"
    moving = synthetic_clip(seed=0, frames=8, size=(96, 72)).video.frames
    other = synthetic_clip(seed=9, frames=4, size=(96, 72)).video.frames
    noise = torch.randint(0, 256, moving.shape, generator=torch.Generator().manual_seed(0), dtype=torch.uint8)
    films: dict[str, tuple[UInt8[Tensor, "t 3 h w"], str]] = {
        "one static frame repeated": (moving[:1].repeat(8, 1, 1, 1), "one picture in all 8 frames"),
        "black": (torch.zeros_like(moving), "one picture in all 8 frames"),
        "white": (torch.full_like(moving, 255), "one picture in all 8 frames"),
        "two frames": (moving[:2], ""),
        "noise": (noise, ""),
        "a cut to another scene": (torch.cat([moving[:4], other]), ""),
        "black from the middle on": (torch.cat([moving[:4], torch.zeros_like(other)]), ""),
    }

    def saved(frames: UInt8[Tensor, "t 3 h w"]) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            save_video(frames, folder / "film.mp4", 25.0, crf=0)
            return folder / "film.mp4"

        return make

    cases = []
    for method in ("dino_tracker", "raw_features", "flow_chain"):
        for name, (frames, words) in films.items():
            unsupervised = method == "dino_tracker" and (words or len(frames) == 2)  # no best buddies: it says so
            expected = SAYS if words or unsupervised else WORKS
            case = Case(
                group,
                f"{method}: {name}",
                saved(frames),
                lambda path, m=method: ran(path, f"method={m}"),
                expected,
                words,
            )
            cases.append(case)
    return cases
