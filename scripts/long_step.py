"""Make training steps of the published size within a limit of memory, beside what a fit of a thousand frames holds.

python -m scripts.long_step          # ten minutes, 15 GB of disk; keeps docs/results/long_step.json
python -m scripts.long_step --short  # a sixteenth of the pixels; keeps nothing

Features are random numbers, and the video and the tables of a long fit a tensor of as many bytes: what a step takes is the same.
Two steps are made as a fit makes them: one that is measured, and one that leaves free what the first needed. After that each step
of the fit is the second.
"""

import json
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import torch
from scripts.memory import ROOT

from dinotrack.memory import Budget, Watch, give_back_freed, held, parse_bytes
from dinotrack.networks import DeltaDino
from dinotrack.structs import FeatureMap
from dinotrack.training.batch import BatchSettings
from dinotrack.training.modules import DinoTrackerModule
from dinotrack.training.planning import Job
from dinotrack.training.probing import Cost, full_batch, train_step
from dinotrack.training.stages import commit, hardware
from dinotrack.training.step_memory import MORE

KEPT, PLAN = ROOT / "docs" / "results" / "long_step.json", ROOT / "docs" / "results" / "plan_480p.json"


def steps(size: Sequence[int], channels: int, beside: float, limit: str | float, folder: Path) -> dict[str, Any]:
    """Seconds of the two steps, and what the process held at most, in MB, with so many bytes held beside them."""
    torch.manual_seed(0)
    module, count = DinoTrackerModule(DeltaDino(channels)), 2 * BatchSettings().frames_per_set
    values = torch.randn(count, channels, (size[1] - 14) // 7 + 1, (size[0] - 14) // 7 + 1).half()
    features = FeatureMap(values, 7.0, 7.0, (size[0], size[1]))
    images = torch.randint(0, 256, (count, 3, size[1], size[0]), dtype=torch.uint8)
    batch = full_batch(features, images, count, BatchSettings())
    ballast = torch.ones(int(beside), dtype=torch.uint8)
    give_back_freed()
    start, budget = held(), Budget(limit, folder)
    peaks, costs, reserve = list[int](), list[Cost](), None
    for _ in range(2):
        with Watch.running(0.01) as watch:
            costs.append(train_step(module, batch, budget, reserve))
        reserve = MORE * costs[0].bytes
        peaks.append(watch.peak)
    assert len(ballast) == int(beside)
    return {
        "size": list(size),
        "channels": channels,
        "frames": count,
        "limit_mb": round(parse_bytes(limit) / 1e6),
        "before_mb": round(start / 1e6),
        "peaks_mb": [round(peak / 1e6) for peak in peaks],
        "written_mb": [round(cost.disk / 1e6) for cost in costs],
        "seconds": [round(cost.seconds, 1) for cost in costs],
        "within": max(peaks) <= parse_bytes(limit),
    }


def short_steps(folder: Path) -> dict[str, Any]:
    """With a room that has place for a part of what a step keeps."""
    give_back_freed()  # by who ran before in this process
    return steps((210, 119), 256, 1e8, held() + 1e8 + 600e6, folder)


def long_steps(folder: Path, limit: str = "8GB") -> dict[str, Any]:
    """Beside the video and the tables that `dinotrack plan` foresees."""
    job = Job(**json.loads(PLAN.read_text())["job"])
    video = 3 * job.frames * job.size[0] * job.size[1]
    return steps(job.working, job.channels, video + job.tables(parse_bytes(limit) - held() - video), limit, folder)


if __name__ == "__main__":
    short = "--short" in sys.argv
    with tempfile.TemporaryDirectory() as scratch:
        found = {**(short_steps if short else long_steps)(Path(scratch)), "commit": commit(), "hardware": hardware()}
    print(json.dumps(found))
    if not short:
        KEPT.write_text(json.dumps(found, indent=1) + "\n")
    sys.exit(not found["within"])
