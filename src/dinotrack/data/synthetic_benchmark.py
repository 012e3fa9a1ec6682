"""Our own benchmark: twelve synthetic clips by fixed seeds, all tracks known exactly; and its files in TAP-Vid's formats."""

import json
import pickle
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal

import cv2
import numpy as np

from dinotrack.data import SYNTHETIC, open_synthetic
from dinotrack.data.benchmarks import BenchmarkClip, choose
from dinotrack.data.synthetic import Clip
from dinotrack.data.tapvid import truth_of
from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically
from dinotrack.geometry import rescale
from dinotrack.progress import Progress, silent
from dinotrack.structs import Video, check_mode

KINDS: dict[str, dict[str, Any]] = {
    "smooth": {"bend": 0.0, "hidden": 0.1},
    "deformation": {"bend": 2.5, "hidden": 0.1},
    "occlusion": {"hidden": 0.5},
    "look_alikes": {"look_alikes": True},
}
"""Smooth motion, deformation, long occlusion, objects that look alike: what each changes of `synthetic_clip`."""
FRAMES = (24, 32, 40)
FIRST_SEED = 200
"""Seeds 200 to 211. None was looked at before the first table was made; settings were chosen on 100 to 199."""
SIZE = (96, 72)


def settings(subset: str = "all") -> dict[str, dict[str, Any]]:
    """What `synthetic_clip` is given for each clip, by name; `four` takes the first of each kind.

    Raises:
        DinotrackError: for another subset.
    """
    if subset not in ("all", "four"):
        raise DinotrackError(f"subset={subset!r}; choose all or four")
    numbered = [(kind, number) for kind in KINDS for number in range(len(FRAMES))]
    return {
        f"{kind}-{number}": {"seed": FIRST_SEED + index, "frames": FRAMES[number], "size": list(SIZE), **KINDS[kind]}
        for index, (kind, number) in enumerate(numbered)
        if subset == "all" or number == 0
    }


class SyntheticBenchmark:
    """The clips of `settings`, made when they are opened. `mode` and `stride` are those of `sample_queries`."""

    def __init__(self, subset: str = "all", *, mode: str = "strided", stride: int = 5) -> None:
        check_mode(mode)
        self.settings, self.mode, self.stride = settings(subset), mode, stride

    def names(self) -> list[str]:
        return list(self.settings)

    def open(self, name: str) -> BenchmarkClip:
        clip = self.clip(name)
        shares = rescale(clip.xy.double(), clip.video.size, (1, 1))
        truth = truth_of(shares, clip.visible, clip.video.size, self.mode, self.stride)
        return BenchmarkClip(name, Video(clip.video.frames, clip.video.fps, path=clip.video.path), truth)

    def clip(self, name: str) -> Clip:
        """The clip with its masks and tracks.

        Raises:
            DinotrackError: when there is none of that name.
        """
        chosen = self.settings[choose(name, self.names(), "the synthetic benchmark")]
        return open_synthetic(SYNTHETIC + json.dumps(chosen, separators=(",", ":")))


Format = Literal["davis", "list", "shards"]
FORMATS: tuple[Format, ...] = ("davis", "list", "shards")


def write_benchmark(
    folder: Path,
    formats: Sequence[Format] = FORMATS,
    subset: str = "all",
    *,
    jpeg: bool = False,
    progress: Progress = silent,
) -> list[Path]:
    """Write the clips as TAP-Vid's files have them: a dict (DAVIS), a list (RGB-Stacking), shards of lists (Kinetics).

    With `jpeg`, videos of shards are lists of JPEG bytes, as Kinetics' are; otherwise every file holds the exact pixels.

    Raises:
        DinotrackError: for an unknown format or subset, or a file that cannot be written.
    """
    unknown = set(formats) - set(FORMATS)
    if unknown:
        raise DinotrackError(f"no format {sorted(unknown)[0]!r}; choose among {', '.join(FORMATS)}")
    if jpeg and "shards" not in formats:
        raise DinotrackError("only the frames of shards can be JPEG; choose that format")
    benchmark = SyntheticBenchmark(subset)
    clips = {name: stored(benchmark.clip(name)) for name in progress(benchmark.names(), "clips")}
    written: list[Path] = []
    if "davis" in formats:
        written.append(dump(clips, folder / "synthetic_davis.pkl"))
    if "list" in formats:
        written.append(dump(list(clips.values()), folder / "synthetic_list.pkl"))
    if "shards" in formats:
        for old in (folder / "shards").glob(
            "????_of_????.pkl"
        ):  # of another subset, they would be read with the new ones
            old.unlink()
        each = [{**clip, "video": encoded(clip["video"])} if jpeg else clip for clip in clips.values()]
        parts = [each[start : start + 3] for start in range(0, len(each), 3)]
        for number, part in enumerate(parts):
            written.append(dump(part, folder / "shards" / f"{number:04d}_of_{len(parts):04d}.pkl"))
    return written


def stored(clip: Clip) -> dict[str, np.ndarray]:
    """A clip as TAP-Vid's files have it; shares in double precision, so that positions come back as they were."""
    return {
        "video": clip.video.frames.permute(0, 2, 3, 1).contiguous().numpy(),
        "points": rescale(clip.xy.double(), clip.video.size, (1, 1)).numpy(),
        "occluded": (~clip.visible).numpy(),
    }


def encoded(video: np.ndarray, quality: int = 95) -> list[bytes]:
    """Each frame as a JPEG file's bytes."""
    options = [cv2.IMWRITE_JPEG_QUALITY, quality]
    return [cv2.imencode(".jpg", cv2.cvtColor(frame, cv2.COLOR_RGB2BGR), options)[1].tobytes() for frame in video]


def dump(content: Any, path: Path) -> Path:
    write_atomically(path, lambda name: name.write_bytes(pickle.dumps(content, protocol=4)))
    return path
