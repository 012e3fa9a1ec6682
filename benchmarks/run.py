"""`python -m benchmarks.run [stage ...] --size S|M|L|full --device cpu|cuda`: seconds, memory and operations of each stage.

Each stage is warmed up and repeated; a row has the median, its plain reference's median in the same run and their ratio, the peak
memory of either, the operations counted and the share of the machine's measured matrix rate. Rows go to
docs/results/speed-SIZE-DEVICE.json, a table beside it; stages that are not asked for keep their rows.
"""

import dinotrack  # noqa: F401, I001  (before torch, whose threads then sleep while they wait)

import argparse
import gc
import json
import statistics
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from benchmarks.inputs import SIZES, Inputs, Size
from benchmarks.stages import STAGES, Job, Stage
from dinotrack.files import write_atomically
from dinotrack.training.stages import environment, peak_bytes, start_peak

RESULTS = Path(__file__).resolve().parents[1] / "docs" / "results"
GROWTH = (8, 16, 32, 64)
"""Frames at size S over which growth is measured."""
GROWING = ("tracklets", "best_buddies", "delta_dino", "tracks", "visibility")
"""Stages whose work depends on the number of frames."""


GOALS = {"tracklets": 5, "best_buddies": 7, "step_before": 1.1, "step_after": 1.8, "tracks": 10, "visibility": 50}
"""How many times faster than the published implementation a stage is meant to be, at M on two cores."""
BEYOND = {"step_before": 1.0, "step_after": 2.5}
"""Seconds that a step may take beyond Delta-DINO itself, at M on two cores."""


def timed(job: Job, device: torch.device, repeats: int, warm_up: int = 1) -> tuple[float, float]:
    """Median seconds, and peak memory in MB: of the GPU where it runs there, else of the process."""
    for _ in range(warm_up):
        job()
    gc.collect()
    seconds = []
    start_peak()
    for _ in range(repeats):
        synchronise(device)
        begin = time.perf_counter()
        job()
        synchronise(device)
        seconds.append(time.perf_counter() - begin)
    peak = torch.cuda.max_memory_allocated() if device.type == "cuda" else peak_bytes()
    return statistics.median(seconds), peak / 1e6


def synchronise(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def matrix_rate(device: torch.device, dtype: torch.dtype) -> float:
    """Operations per second of a large product of square matrices, the best of ten."""
    side = 8192 if device.type == "cuda" else 3072
    a = torch.randn(side, side, device=device, dtype=dtype)
    seconds = min(timed(lambda: a @ a, device, repeats=1)[0] for _ in range(10))
    return 2 * side**3 / seconds


def operations(job: Job) -> float:
    """Floating-point operations of products and convolutions, forward and backward."""
    with FlopCounterMode(display=False) as counter:
        job()
    return float(counter.get_total_flops())


def measure(stage: Stage, inputs: Inputs, rate: float, repeats: int, plain: bool) -> dict[str, Any]:
    """The row of a stage."""
    ours, reference = stage.make(inputs)
    seconds, memory = timed(ours, inputs.device, *((1, 0) if stage.once else (repeats, 1)))
    row: dict[str, Any] = {"stage": stage.name, "per": stage.unit, "seconds": seconds / stage.parts, "peak_mb": memory}
    if not stage.once:
        flop = operations(ours)
        row |= {"gflop": flop / stage.parts / 1e9, "share_of_matrix_rate": flop / seconds / rate}
    if plain and reference is not None:
        once = 1 if seconds > 0.5 else repeats
        plain_seconds, row["plain_peak_mb"] = timed(reference, inputs.device, once, warm_up=0)
        row |= {"plain_seconds": plain_seconds / stage.parts, "ratio": plain_seconds / seconds}
    if stage.published is not None:
        row["published_seconds_at_M"] = stage.published
    if stage.published_mb is not None:
        row["published_peak_mb_at_M"] = stage.published_mb
    return row


def growth(name: str, device: torch.device, repeats: int) -> dict[str, Any]:
    """Seconds of a stage at 8 to 64 frames of size S, the linear fit through them, and the exponent between the last two."""
    seconds = []
    for frames in GROWTH:
        small = SIZES["S"]
        inputs = Inputs(Size(frames, small.height, small.width, small.channels, 32), device)
        seconds.append(timed(STAGES[name].make(inputs)[0], device, repeats)[0])
    slope, offset = line(GROWTH, seconds)
    exponent = torch.log2(torch.tensor(seconds[-1] / seconds[-2])).item()
    return {
        "stage": name,
        "frames": list(GROWTH),
        "seconds": seconds,
        "per_frame": slope,
        "offset": offset,
        "exponent": exponent,
    }


def line(x: tuple[int, ...], y: list[float]) -> tuple[float, float]:
    """Slope and offset of the least-squares line."""
    slope, offset = statistics.linear_regression(x, y)
    return slope, offset


def table(rows: list[dict[str, Any]], size: str) -> str:
    """The rows as Markdown; at M beside the published implementation's seconds."""
    titles = ["stage", "per", "seconds", "plain", "ratio", "peak MB", "plain MB", "GFLOP", "of matrix rate"]
    titles += ["published, s", "times", "goal", "published MB"] if size == "M" else []
    lines = ["| " + " | ".join(titles) + " |", "|---" * len(titles) + "|"]
    for row in rows:
        cells = [row["stage"], row["per"], f"{row['seconds']:.3g}", shown(row, "plain_seconds", ".3g")]
        cells += [shown(row, "ratio", ".1f"), f"{row['peak_mb']:.0f}", shown(row, "plain_peak_mb", ".0f")]
        cells += [shown(row, "gflop", ".0f"), shown(row, "share_of_matrix_rate", ".0%").replace("%", " %")]
        if size == "M":
            published = row.get("published_seconds_at_M")
            times = published / row["seconds"] if published else 0.0
            cells += [f"{published:.1f}", f"{times:.1f}", verdict(row["stage"], times)] if published else ["", "", ""]
            cells += [memory_verdict(row)]
        lines.append("| " + " | ".join(cells) + " |")
    return "\n".join([*lines, "", *(beyond(rows) if size == "M" else [])]) + "\n"


def verdict(stage: str, times: float) -> str:
    """Whether a goal is met; a miss is called a miss."""
    if stage not in GOALS:
        return ""
    return f"{GOALS[stage]}{'' if times >= GOALS[stage] else ': MISSED'}"


def memory_verdict(row: dict[str, Any]) -> str:
    """The published implementation's peak, which ours is not meant to exceed."""
    published = row.get("published_peak_mb_at_M")
    return f"{published:.0f}{'' if row['peak_mb'] <= published else ': MISSED'}" if published else ""


def beyond(rows: list[dict[str, Any]]) -> list[str]:
    """What a step takes beyond Delta-DINO's forward, backward and Adam."""
    seconds = {row["stage"]: row["seconds"] for row in rows}
    lines = []
    for stage, goal in BEYOND.items():
        if {stage, "delta_dino_step"} <= seconds.keys():
            more = seconds[stage] - seconds["delta_dino_step"]
            amount = f"{more:.2f} s" if more > 0 else "less than the noise (the two are timed one after the other)"
            lines.append(
                f"- {stage}: {amount} beyond Delta-DINO itself; goal {goal} s{'' if more <= goal else ': MISSED'}"
            )
    return lines


def shown(row: dict[str, Any], name: str, form: str) -> str:
    return format(row[name], form) if name in row else ""


def keep(
    path: Path, rows: list[dict[str, Any]], where: dict[str, Any], key: Callable[[dict[str, Any]], str]
) -> list[Any]:
    """Write rows, beside those of other stages that are there."""
    known = json.loads(path.read_text()) if path.exists() else []
    every = {key(row): row for row in known} | {key(row): {**row, **where} for row in rows}
    order = [every[name] for name in STAGES if name in every]
    write_atomically(path, lambda name: name.write_text(json.dumps(order, indent=1) + "\n"))
    return order


def main(arguments: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.run", description=__doc__)
    parser.add_argument("stages", nargs="*", metavar="stage", help=f"among {', '.join(STAGES)}; default: all")
    parser.add_argument(
        "--size", choices=SIZES, default="M", help="S 12 x 126x224, M 24 x 238x420, L 50 x 238x420, full 100 x 476x854"
    )
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--no-plain", action="store_true", help="leave the plain references out")
    parser.add_argument("--growth", action="store_true", help="seconds against frames at size S instead")
    parser.add_argument("--output", type=Path, default=RESULTS, help="folder of the rows")
    options = parser.parse_args(arguments)
    unknown = set(options.stages) - set(STAGES)
    if unknown:
        parser.error(f"no stage {sorted(unknown)[0]!r}; there are {', '.join(STAGES)}")
    device, rows = torch.device(options.device), []
    kept = ("commit", "hardware", "cpu_threads", "torch")
    about = {name: value for name, value in environment().items() if name in kept}
    file = options.output / f"speed-{'growth' if options.growth else options.size}-{device.type}.json"
    inputs = Inputs(SIZES[options.size], device)
    rate = matrix_rate(device, torch.bfloat16 if device.type == "cuda" else torch.float32)
    print(f"{about['hardware']}, {rate / 1e9:.0f} GFLOP/s in products of matrices")
    for name in options.stages or (GROWING if options.growth else STAGES):
        if options.growth:
            rows.append(growth(name, device, options.repeats))
        else:
            rows.append(measure(STAGES[name], inputs, rate, options.repeats, not options.no_plain))
        print({key: round(v, 4) if isinstance(v, float) else v for key, v in rows[-1].items()}, flush=True)
        every = keep(file, rows, {**about, "matrix_gflops": rate / 1e9}, lambda row: row["stage"])
    if not options.growth:
        file.with_suffix(".md").write_text(table(every, options.size))
        print(table(every, options.size))


if __name__ == "__main__":
    main()
