"""Build the tracklets of a thousand frames at 480p within a limit of memory, as a long video's preprocessing does.

python -m scripts.long_tracklets          # a quarter of an hour, 25 GB of disk; keeps docs/results/long_tracklets.json
python -m scripts.long_tracklets --short  # 150 frames of half the size, 150 MB; keeps nothing

The flow is made up, since RAFT takes a day for it here: all pixels move alike, some cells are wrong in each frame, and nothing is
right between two scenes of ten frames. All else is what `dinotrack preprocess` and `fit` do: the video in memory, working frames,
tracklets with their check for drift, through the cache, their table, and draws from it.
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any, ClassVar

import torch
from jaxtyping import Float, UInt8
from scripts.memory import ROOT
from torch import Tensor

from dinotrack.cache import Entry, build_or_load
from dinotrack.growing import Rows
from dinotrack.memory import Budget, Watch, give_back_freed, held
from dinotrack.spilling import LITTLE
from dinotrack.structs import Tracklets
from dinotrack.tracklets import build_tracklets
from dinotrack.training.stages import commit, hardware
from dinotrack.training.tracklet_table import TrackletTable

KEPT = ROOT / "docs" / "results" / "long_tracklets.json"
SCENE = 10


class MadeUpFlow:
    """Motion by the numbers that frames bear: of each pixel alike, but for cells of 8×8 of which a share is wrong."""

    settings: ClassVar[dict[str, Any]] = {"kind": "made up"}

    def __init__(self, wrong: float = 0.03, motion: tuple[float, float] = (1.3, 0.4)) -> None:
        self.wrong, self.motion = wrong, torch.tensor(motion)

    def __call__(self, source: UInt8[Tensor, "b 3 h w"], target: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 2 h w"]:
        return torch.stack([self.between(*pair) for pair in zip(source, target, strict=True)])

    def between(self, source: UInt8[Tensor, "3 h w"], target: UInt8[Tensor, "3 h w"]) -> Float[Tensor, "2 h w"]:
        first, second = (int(frame[0, 0, 0]) + 256 * int(frame[1, 0, 0]) for frame in (source, target))
        height, width = source.shape[1:]
        flow = ((second - first) * self.motion).view(2, 1, 1).repeat(1, height, width)
        rng = torch.Generator().manual_seed(1000 * first + second)
        cells = torch.rand(-(-height // 8), -(-width // 8), generator=rng) < self.wrong
        flow[:, cells.repeat_interleave(8, 0).repeat_interleave(8, 1)[:height, :width]] += 50
        return flow if first // SCENE == second // SCENE else flow + 1000 * (1 + first)

    def to(self, device: torch.device | str) -> "MadeUpFlow":
        return self


def numbered(frames: int, size: tuple[int, int]) -> UInt8[Tensor, "t 3 h w"]:
    """Frames that bear their numbers."""
    made = torch.zeros(frames, 3, size[1], size[0], dtype=torch.uint8)
    made[:, 0] = (torch.arange(frames) % 256).byte()[:, None, None]
    made[:, 1] = (torch.arange(frames) // 256).byte()[:, None, None]
    return made


def build(frames: int, size: tuple[int, int], limit: str | float, folder: Path) -> dict[str, Any]:
    """What is found, and what the process held at most in each part, in MB."""
    budget, video = Budget(limit, folder), numbered(frames, size)
    rows = Rows(frames, budget, part=LITTLE)
    for some in video.split(8):
        rows.add(some)
    working, start = rows.done(), held()
    entry, left = Entry(folder / "tracklets.safetensors", "tracklets", {}), budget.room()
    with Watch.running(0.01) as first:
        tracklets = build_or_load(Tracklets, entry, lambda: build_tracklets(working, MadeUpFlow(), budget=budget))
    with Watch.running(0.01) as second:
        masks = torch.rand(frames, size[1] // 7, size[0] // 7, generator=torch.Generator().manual_seed(0)) > 0.5
        table = TrackletTable.of(tracklets, masks, size)
        rng, drawn = torch.Generator().manual_seed(1), 0
        for _ in range(100):
            chosen = (torch.randint(0, frames - SCENE, (1,), generator=rng) + torch.arange(4)).long()
            drawn += len(table.draw(chosen, True, 256, rng)) + len(table.draw(chosen, False, 256, rng))
    pixels = frames * size[0] * size[1]
    return {
        "frames": frames,
        "size": list(size),
        "limit_mb": limit if isinstance(limit, str) else round(limit / 1e6),
        "tracklets": len(tracklets),
        "positions": len(tracklets.xy),
        "positions_a_pixel": round(len(tracklets.xy) / pixels, 3),
        "confirmed_positions": int(sum(part.sum() for part in tracklets.length.split(2**20))),
        "drawn_pairs": drawn,
        "whole_mb": round(20 * (len(tracklets.xy) + len(tracklets)) / 1e6),
        "before_mb": round(start / 1e6),
        "left_mb": round(left / 1e6),
        "building_mb": round(first.peak / 1e6),
        "table_mb": round(second.peak / 1e6),
        "within": max(first.peak, second.peak) <= start + left,
    }


def build_short(folder: Path) -> dict[str, Any]:
    """Less than half as much memory as tracklets and positions would take at once."""
    frames, size = 150, (427, 238)
    give_back_freed()  # by who ran before in this process
    return build(frames, size, held() + 3 * frames * size[0] * size[1] + 150e6, folder)


if __name__ == "__main__":
    short = "--short" in sys.argv
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as scratch:
        found = build_short(Path(scratch)) if short else build(1000, (854, 476), "8GB", Path(scratch))
    print(json.dumps(found, indent=1))
    if not short:
        KEPT.write_text(json.dumps({**found, "commit": commit(), "hardware": hardware()}, indent=1) + "\n")
    sys.exit(not found["within"])
