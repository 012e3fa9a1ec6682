"""Plan a large benchmark from what was measured: the tables of docs/scaling.md.

python scripts/scaling.py measure   # the disk that one video takes, a few minutes; keeps docs/results/scaling.json
python scripts/scaling.py           # only write the page's tables, from that file, speed-M-cpu.json and the README's runs
"""

import json
import math
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
from torch.utils.flop_counter import FlopCounterMode

from dinotrack.networks import DeltaDino
from dinotrack.structs import Grid

ROOT = Path(__file__).resolve().parents[1]
RESULTS, PAGE = ROOT / "docs" / "results", ROOT / "docs" / "scaling.md"
CLIP = "../shared/data/horsejump-high/video"
WORDS = ["run", "experiment=cpu_small", f"video={CLIP}", "steps=5"]
"""What lies on the disk does not depend on the number of steps."""
VIDEOS, FRAMES, WIDTH, HEIGHT, STEPS = 1189, 250, 854, 476, 20_000
"""TAP-Vid-Kinetics: its clips, their frames, the published working size and steps of a video that long."""
M_WIDTH, M_HEIGHT, M_PAIRS = 420, 238, 276
"""What docs/results/speed-M-cpu.json was measured on: benchmarks.inputs.SIZES["M"], all pairs of its frames."""
LAYER, DEPTH, CHANNELS, PATCH, STRIDE, PAIRS = 16, 24, 1024, 14, 7, 4950
"""ViT-L: the features' layer, the depth of the pass that brings saliency too; at most so many frame pairs for best buddies."""
RATES = (20, 60, 180)
"""TFLOP/s that a GPU sustains over a whole run: assumptions, none was measured."""
GPUS = (1, 8, 64)


def measure() -> None:
    """Track one clip, and keep the sizes of all files that it leaves."""
    with tempfile.TemporaryDirectory() as scratch:
        run, cache = Path(scratch) / "run", Path(scratch) / "cache"
        options = [f"hydra.run.dir={run}", f"cache_dir={cache}"]
        subprocess.run([sys.executable, "-m", "dinotrack", *WORDS, "logger=csv", *options], check=True, cwd=ROOT)
        summary = json.loads((run / "summary.json").read_text())
        entries = {path.name.split("-")[0]: path.stat().st_size for path in cache.rglob("*.safetensors")}
        files = {path.name: path.stat().st_size for path in run.iterdir() if path.is_file()}
    about = {name: summary[name] for name in ("working_size", "tokens", "tracklets", "best_buddies", "points")}
    kept = {"command": ["dinotrack", *WORDS], "frames": summary["video"]["frames"], **about}
    kept |= {"cache": entries, "run": files, "commit": summary["environment"]["commit"]}
    (RESULTS / "scaling.json").write_text(json.dumps(kept, indent=2) + "\n")


def read(name: str) -> Any:
    return json.loads((RESULTS / f"{name}.json").read_text())


def tokens(width: int = WIDTH, height: int = HEIGHT) -> int:
    """Of a frame, by default at the published size."""
    return ((height - PATCH) // STRIDE + 1) * ((width - PATCH) // STRIDE + 1)


def blocks(count: int, depth: int) -> float:
    """Operations of a ViT's blocks on so many tokens: projections and MLP, and attention, which grows with their square."""
    return float(depth) * (24 * count * CHANNELS**2 + 4 * count**2 * CHANNELS)


def disk() -> dict[str, float]:
    """Bytes of one video of the benchmark by what they are, scaled from the clip that was measured."""
    kept = read("scaling")
    (width, height), (rows, columns) = kept["working_size"], kept["tokens"]
    pairs = min(PAIRS, FRAMES * (FRAMES - 1) // 2)
    searched = min(
        250, kept["frames"] * (kept["frames"] - 1) // 2
    )  # supervision.max_frame_pairs of experiment=cpu_small
    return {
        "features": 2.0 * FRAMES * CHANNELS * tokens(),
        "tracklets": kept["cache"]["tracklets"] * FRAMES * WIDTH * HEIGHT / (kept["frames"] * width * height),
        "best buddies": kept["cache"]["best_buddies"] * pairs * tokens() / (searched * rows * columns),
        "saliency": float(FRAMES * tokens()),
    }


def delta_dino() -> tuple[float, float]:
    """GFLOP of Delta-DINO at M, counted without being done: of a frame's residual, and of a training step on 8 frames.

    By direct convolutions, as a GPU does them; the rows of speed-M-cpu.json have those of minimal filtering.
    """
    with torch.device("meta"):
        network, images = DeltaDino(CHANNELS), torch.empty(8, 3, M_HEIGHT, M_WIDTH)
    grid = (Grid(STRIDE, PATCH / 2), (M_HEIGHT - PATCH) // STRIDE + 1, (M_WIDTH - PATCH) // STRIDE + 1)
    with FlopCounterMode(display=False) as forward, torch.no_grad():
        network(images[:1], *grid)
    with FlopCounterMode(display=False) as step:
        network(images, *grid).sum().backward()
    return forward.get_total_flops() / 1e9, step.get_total_flops() / 1e9


def operations() -> dict[str, float]:
    """GFLOP of one video of the benchmark by stage, scaled from the operations that were counted at M."""
    counted = {row["stage"]: row["gflop"] for row in read("speed-M-cpu") if "gflop" in row}
    frame, step = delta_dino()
    losses = (counted["step_before"] + counted["step_after"]) / 2 - counted["delta_dino_step"]
    area = WIDTH * HEIGHT / (M_WIDTH * M_HEIGHT)
    deeper = blocks(tokens(), DEPTH) / blocks(tokens(M_WIDTH, M_HEIGHT), LAYER)
    return {
        "features and saliency": counted["features"] * deeper * FRAMES,
        "optical flow (RAFT)": counted["flow_raft"] * 2 * (FRAMES - 1) * area,
        "best buddies": counted["best_buddies"] * PAIRS / M_PAIRS * area**2,
        "fit": (step + losses) * STEPS * area,
        "refined features": frame * FRAMES * area,
    }


def disk_table() -> str:
    """Measured megabytes of one clip, and what follows for one video and for all."""
    kept, planned = read("scaling"), disk()
    measured = {
        "features": "features",
        "tracklets": "tracklets",
        "best buddies": "best_buddies",
        "saliency": "saliency",
    }
    lines = ["| in the cache | measured, MB | one video of Kinetics, MB | all, TB |", "|---|---|---|---|"]
    for name, key in measured.items():
        cells = [
            f"{kept['cache'][key] / 1e6:.1f}",
            f"{planned[name] / 1e6:.0f}",
            f"{VIDEOS * planned[name] / 1e12:.2f}",
        ]
        lines.append(f"| {name} | {' | '.join(cells)} |")
    total = sum(planned.values())
    lines.append(
        f"| **together** | {sum(kept['cache'].values()) / 1e6:.1f} | {total / 1e6:.0f} | {VIDEOS * total / 1e12:.2f} |"
    )
    width, height = kept["working_size"]
    run = ", ".join(
        f"{name} {size / 1e6:.2f}" for name, size in sorted(kept["run"].items(), key=lambda each: -each[1])[:5]
    )
    clip = f"{kept['frames']} frames at {width}×{height}, {kept['tokens'][1]}×{kept['tokens'][0]} tokens"
    return "\n".join(
        [
            *lines,
            "",
            f"(measured: `{' '.join(kept['command'])}`, {clip}; its folder, MB: {run}; commit {kept['commit']})",
        ]
    )


def plan_table() -> str:
    """Operations of one video, and hours on so many GPUs at rates that are assumed."""
    counted = operations()
    total = sum(counted.values())
    lines = [
        "| stage | PFLOP a video |",
        "|---|---|",
        *(f"| {name} | {value / 1e6:.1f} |" for name, value in counted.items()),
    ]
    lines += [f"| **together** | {total / 1e6:.1f} |", ""]
    heads = [
        "| a GPU sustains (assumed) | minutes a video |",
        *(f" {count} GPU{'s' * (count > 1)} |" for count in GPUS),
    ]
    lines += ["".join(heads), "|---" * (2 + len(GPUS)) + "|"]
    for rate in RATES:
        seconds = total / (rate * 1e3)
        hours = [math.ceil(VIDEOS / count) * seconds / 3600 for count in GPUS]
        spans = [f"{each / 24:.1f} days" if each > 48 else f"{each:.1f} h" for each in hours]
        lines.append(f"| {rate} TFLOP/s | {seconds / 60:.0f} | {' | '.join(spans)} |")
    return "\n".join(lines)


def processor_table() -> str:
    """Seconds that clips took on the README's machine, and what follows for all videos on so many of them."""
    lines = [
        f"| clip | frames | s, measured | s for {FRAMES} frames |"
        + "".join(f" {n} such machine{'s' * (n > 1)} |" for n in GPUS)
    ]
    lines.append("|---" * (4 + len(GPUS)) + "|")
    for name in ("horsejump_without_masks", "paragliding", "cat"):
        summary = read(name)["summary"]
        stages = {stage["name"]: stage["seconds"] for stage in summary["stages"]}
        frames = summary["video"]["frames"]
        long = sum(value if stage == "fit" else value * FRAMES / frames for stage, value in stages.items())
        hours = [f"{math.ceil(VIDEOS / count) * long / 3600:.1f} h" for count in GPUS]
        cells = [name.replace("_", " "), str(frames), f"{sum(stages.values()):.0f}", f"{long:.0f}", *hours]
        lines.append(f"| {' | '.join(cells)} |")
    about = read("cat")["summary"]["environment"]
    return "\n".join([*lines, "", f"(`experiment=cpu_small`; commit {about['commit']}; {about['hardware']})"])


TABLES = {"disk": disk_table, "plan": plan_table, "processors": processor_table}


def update_page() -> None:
    """Put the tables between their markers."""
    text = PAGE.read_text()
    for name, make in TABLES.items():
        start, end = f"<!-- {name} -->", f"<!-- /{name} -->"
        before, rest = text.split(start)
        text = f"{before}{start}\n{make()}\n{end}{rest.split(end)[1]}"
    PAGE.write_text(text)


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    update_page()
