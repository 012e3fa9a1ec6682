"""`python -m benchmarks.throughput`: points per second of Chrono's tracker and of DINO-Tracker's, against the number of queries.

A point is one query in one frame. Features are there before, random and in half precision: for DINO-Tracker those of ViT-L at the
given size, refined, for Chrono those of ViT-B at its published 64x64 tokens. Rows go to docs/results/throughput-SIZE-DEVICE.json.
"""

import dinotrack  # noqa: F401, I001  (before torch, whose threads then sleep while they wait)

import argparse
import json
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import torch

from benchmarks.inputs import SIZES, Inputs
from benchmarks.run import RESULTS, timed
from dinotrack.chrono_head import VisibilityHead
from dinotrack.files import write_atomically
from dinotrack.methods.chrono import ChronoTracker
from dinotrack.structs import FeatureMap
from dinotrack.trackers import FeatureTracker
from dinotrack.training.stages import environment

QUERIES = (16, 64, 256, 1024)
CHRONO_GRID, CHRONO_CHANNELS = 64, 768


def chrono(inputs: Inputs, seed: int = 0) -> ChronoTracker:
    """Chrono's tracker on random features of its own size; frames are 256x256, a token every 4 pixels (§8)."""
    rng = torch.Generator().manual_seed(seed)
    shape = (inputs.size.frames, CHRONO_CHANNELS, CHRONO_GRID, CHRONO_GRID)
    values = torch.randn(shape, generator=rng).half()
    features = FeatureMap(values, 4.0, 2.0, (4 * CHRONO_GRID, 4 * CHRONO_GRID))
    about = {"size": [inputs.size.width, inputs.size.height], "fps": 25.0}
    settings = {"video": about, "head": {"sharpness": 20.0, "within": 5}}
    return ChronoTracker(features, VisibilityHead(), settings).to(inputs.device)


def random_queries(inputs: Inputs, count: int, seed: int = 0) -> torch.Tensor:
    """(count, 3) of (t, x, y) in any frame."""
    rng = torch.Generator().manual_seed(seed)
    t = torch.randint(inputs.size.frames, (count,), generator=rng)
    xy = torch.rand(count, 2, generator=rng) * torch.tensor([inputs.size.width - 1.0, inputs.size.height - 1.0])
    return torch.cat([t[:, None], xy], 1)


def ways(inputs: Inputs) -> dict[str, Callable[[torch.Tensor], Any]]:
    """What is timed, by name: each takes queries."""
    size = (inputs.size.width, inputs.size.height)
    ours, theirs = FeatureTracker(inputs.features, inputs.head, size), chrono(inputs)
    return {
        "chrono": theirs.track,
        "dino_tracker": ours.track,
        "dino_tracker_positions": lambda queries: ours.positions(
            queries[:, 0].long().to(inputs.device), queries[:, 1:].to(inputs.device)
        ),
    }


@torch.no_grad()
def measured(inputs: Inputs, counts: tuple[int, ...], repeats: int) -> list[dict[str, Any]]:
    """Seconds and points per second of each way and number of queries."""
    rows = []
    for count in counts:
        queries = random_queries(inputs, count)
        for name, track in ways(inputs).items():
            seconds, peak = timed(partial(track, queries), inputs.device, repeats)
            rate = count * inputs.size.frames / seconds
            rows.append(
                {"queries": count, "method": name, "seconds": seconds, "points_per_second": rate, "peak_mb": peak}
            )
            print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
    return rows


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.throughput", description=__doc__)
    parser.add_argument("--size", choices=SIZES, default="M", help="of DINO-Tracker's video, and the frames of both")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--queries", type=int, nargs="+", default=QUERIES)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the rows")
    options = parser.parse_args(arguments)
    inputs = Inputs(SIZES[options.size], torch.device(options.device))
    about = {name: environment()[name] for name in ("commit", "hardware", "cpu_threads", "torch")}
    kept = {
        "frames": inputs.size.frames,
        "tokens": {"dino_tracker": list(inputs.size.tokens), "chrono": [CHRONO_GRID] * 2},
        "rows": measured(inputs, tuple(options.queries), options.repeats),
        **about,
    }
    path = options.output / f"throughput-{options.size}-{inputs.device.type}.json"
    write_atomically(path, lambda name: name.write_text(json.dumps(kept, indent=1) + "\n"))


if __name__ == "__main__":
    main()
