"""Measure how memory grows with a video's length: preprocess, fit and track, each in a process of its own.

python scripts/memory.py measure NAME [WORD ...]  # at 50, 200 and 1000 frames, some 20 minutes; keeps docs/results/memory.json
python scripts/memory.py                          # only write the page's table from what is kept

NAME is the row's; WORDs are further overrides of the three commands, as memory_limit=1GB. The video is a row of synthetic clips of
10 frames, so that chains of optical flow end as they do at the cuts of a film. Anonymous memory is what a process alone holds;
file pages are maps of the cache, which the system takes back when it needs them.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

from PIL import Image

from dinotrack.data.synthetic import synthetic_clip
from dinotrack.training.stages import commit, hardware

ROOT = Path(__file__).resolve().parents[1]
KEPT, PAGE = ROOT / "docs" / "results" / "memory.json", ROOT / "docs" / "scaling.md"
FRAMES, SCENE, SIZE = (50, 200, 1000), 10, (112, 84)
COMMON = ["experiment=demo", "flow=dis_fast", "resolution=112", "supervision.max_frame_pairs=100", "threads=1"]
FIT = ["steps=20", "callbacks.rebuild.every=10", "method.visibility.anchor=0.98"]
"""Few anchors, so that visibility, which takes frames squared, is soon done: memory does not depend on them."""
QUERIES = "queries=[[0,30,40],[0,80,20]]"
KINDS = ("RssAnon", "RssFile", "RssShmem")
ENTRIES = ("features", "tracklets", "best_buddies", "saliency")


def write_video(folder: Path, frames: int) -> None:
    """So many frames as pictures, of one scene after the other."""
    folder.mkdir()
    for scene in range(frames // SCENE):
        for number, frame in enumerate(synthetic_clip(scene, SCENE, SIZE).video.frames):
            Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / f"{scene * SCENE + number:05d}.png")


def held(process: int) -> dict[str, float]:
    """What a process has in memory now, in MB."""
    lines = Path(f"/proc/{process}/status").read_text().splitlines()
    found = {line.split(":")[0]: float(line.split()[1]) / 1e3 for line in lines if line.startswith(KINDS)}
    return {kind: found.get(kind, 0.0) for kind in KINDS}


def phase(cache: Path) -> str:
    """What preprocessing is at: the first of its entries that is not in the cache yet, in the order in which it makes them."""
    there = {path.name.split("-")[0] for path in cache.rglob("[!.]*.safetensors")}
    return next((entry for entry in ENTRIES if entry not in there), "rest")


def watched(words: list[str], cache: Path, every: float = 0.01) -> dict[str, Any]:
    """Seconds of a command that must succeed, its peaks in MB, and the anonymous ones while it makes each entry of the cache."""
    begin, peaks, phases = time.perf_counter(), dict.fromkeys(KINDS, 0.0), dict[str, float]()
    environment = {**os.environ, "WANDB_MODE": "disabled"}
    with subprocess.Popen([sys.executable, "-m", "dinotrack", *words], env=environment) as process:
        while process.poll() is None:
            now, at = held(process.pid), phase(cache)
            peaks = {kind: max(peaks[kind], now[kind]) for kind in KINDS}
            phases[at] = max(phases.get(at, 0.0), now["RssAnon"])
            time.sleep(every)
    if process.returncode:
        sys.exit(f"dinotrack {' '.join(words)} failed")
    rounded = {name: round(value, 1) for name, value in peaks.items()}
    parts = {name: round(value, 1) for name, value in phases.items()}
    return {
        "seconds": round(time.perf_counter() - begin, 1),
        **rounded,
        **({"phases": parts} if len(parts) > 1 else {}),
    }


def stages(frames: int, words: list[str]) -> list[dict[str, Any]]:
    """The three commands on a video of so many frames."""
    with tempfile.TemporaryDirectory(dir=os.environ.get("TMPDIR")) as scratch:
        place = Path(scratch)
        write_video(place / "video", frames)
        data = [f"video={place / 'video'}", *COMMON, f"cache_dir={place / 'cache'}", *words]
        track = [f"checkpoint={place / 'fit' / 'tracker.ckpt'}", QUERIES, "render=false", "device=cpu"]
        commands = {
            "preprocess": ["preprocess", *data],
            "fit": ["fit", *data, *FIT, "logger=csv"],
            "track": ["track", *track, f"cache_dir={place / 'cache'}", *words],
        }
        rows = []
        for name, command in commands.items():
            row = watched([*command, f"hydra.run.dir={place / name}"], place / "cache")
            rows.append({"frames": frames, "stage": name, **row})
            print(rows[-1], flush=True)
        entries = {path.name.split("-")[0]: path.stat().st_size for path in place.rglob("*.safetensors")}
    return [*rows, {"frames": frames, "stage": "cache", **entries}]


def measure(name: str, words: list[str]) -> None:
    """Keep the rows of one run under its name."""
    kept = json.loads(KEPT.read_text()) if KEPT.exists() else {}
    rows = [row for frames in FRAMES for row in stages(frames, words)]
    kept[name] = {"words": [*COMMON, *FIT, *words], "rows": rows, "commit": commit(), "hardware": hardware()}
    KEPT.write_text(json.dumps(kept, indent=1) + "\n")


def table() -> str:
    """Peaks of each stage and length, and what a frame adds between the last two lengths."""
    kept = json.loads(KEPT.read_text())
    heads = [f"{frames} frames" for frames in FRAMES]
    lines = ["| run | stage | " + " | ".join(heads) + " | MB a frame |", "|---" * (3 + len(FRAMES)) + "|"]
    for name, run in kept.items():
        for stage in ("preprocess", "fit", "track"):
            of = {row["frames"]: row for row in run["rows"] if row["stage"] == stage}
            cells = [f"{of[frames]['RssAnon']:.0f} + {of[frames]['RssFile']:.0f}" for frames in FRAMES]
            grown = (of[FRAMES[-1]]["RssAnon"] - of[FRAMES[-2]]["RssAnon"]) / (FRAMES[-1] - FRAMES[-2])
            lines.append(f"| {name} | {stage} | {' | '.join(cells)} | {grown:.2f} |")
    commits = ", ".join(f"{name} {run['commit']}" for name, run in kept.items())
    return "\n".join([*lines, "", f"({commits}; {next(iter(kept.values()))['hardware']})"])


def update_page() -> None:
    """Put the table between its markers."""
    start, end = "<!-- memory -->", "<!-- /memory -->"
    before, rest = PAGE.read_text().split(start)
    PAGE.write_text(f"{before}{start}\n{table()}\n{end}{rest.split(end)[1]}")


if __name__ == "__main__":
    if sys.argv[1:2] == ["measure"]:
        measure(sys.argv[2], sys.argv[3:])
    update_page()
