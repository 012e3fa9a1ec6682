"""Compare what `dinotrack plan` says of memory with what its stages then hold, each in a process of its own.

python -m scripts.plans [SIZE...] # three sizes, ten minutes; keeps docs/results/plans.json, where others keep their rows
python -m scripts.plans --limited # one size under a limit that its training step does not fit into; kept there, too
python -m scripts.plans --short   # the smallest; keeps nothing
python -m scripts.plans --480p    # plans 1000 frames at 480p with ViT-L and 8 GB, some minutes; keeps docs/results/plan_480p.json
"""

import json
import math
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.memory import ROOT, watched

from dinotrack.data.synthetic import synthetic_clip
from dinotrack.memory import parse_bytes
from dinotrack.mp4 import save_video
from dinotrack.training.stages import commit, hardware

KEPT = ROOT / "docs" / "results" / "plans.json"
LONG = ROOT / "docs" / "results" / "plan_480p.json"
WITHIN = 0.25
"""Share of the measured peak that an estimate may be off."""
SIZES = {
    "small": ["synthetic.frames=24", "synthetic.size=[192,144]", "resolution=192"],
    "wide": ["synthetic.frames=16", "synthetic.size=[480,270]", "resolution=480"],
    "long": ["synthetic.frames=150", "synthetic.size=[112,84]", "+synthetic.points=16", "resolution=112"],
}
COMMON = ["experiment=cpu_small", "video=synthetic", "logger=none", "threads=1", "queries=grid:16", "steps=6"]
LIMITED, LIMIT = "wide", "1.6GB"
"""A size, and a limit that has no room for a training step of it as a whole."""
STAGES = {
    "preprocess": ("features", "optical flow and tracklets", "best buddies"),
    "fit": ("training", "rebuilding pairs", "scores"),
    "track": ("tracks and visibility",),
}
"""What of the plan each command does."""


def compare(name: str, limit: str | None = None) -> list[dict[str, Any]]:
    """Planned and measured megabytes of each command; under a limit, where it has no room for all, the least that it needs."""
    with tempfile.TemporaryDirectory() as scratch:
        place, limits = Path(scratch), [] if limit is None else [f"memory_limit={limit}"]
        words = [*COMMON, *SIZES[name], f"cache_dir={place / 'cache'}", *limits]
        watched(["plan", *words, f"hydra.run.dir={place / 'plan'}"], place / "cache")
        plan = json.loads((place / "plan" / "plan.json").read_text())
        needs = {need["name"]: need for need in plan["needs"]}
        shared = [word for word in words if not word.startswith("queries")]
        track = [f"checkpoint={place / 'fit' / 'tracker.ckpt'}", "queries=grid:16", "render=false", "device=cpu"]
        commands = {
            "preprocess": ["preprocess", *shared],
            "fit": ["fit", *shared],
            "track": ["track", *track, f"cache_dir={place / 'cache'}", *limits],
        }
        rows = []
        for command, stages in STAGES.items():
            found = watched([*commands[command], f"hydra.run.dir={place / command}"], place / "cache")
            planned = max(held_at(needs[stage], plan["room"] if limit else math.inf) for stage in stages) / 1e6
            row = {
                "size": name,
                "command": command,
                "planned_mb": round(planned),
                "measured_mb": round(found["RssAnon"]),
            }
            row |= {"off": round(planned / found["RssAnon"] - 1, 3)} if limit is None else within(limit, row)
            rows.append(row)
            print(rows[-1], flush=True)
    return rows


def held_at(need: dict[str, Any], room: float) -> float:
    """Bytes that a stage is planned to hold where so many may be used."""
    return need["memory"] if need["memory"] <= room else need["memory"] - need["spare"]


def within(limit: str, row: dict[str, Any]) -> dict[str, Any]:
    """Whether what was measured is below a limit."""
    most = parse_bytes(limit) / 1e6
    return {"limit_mb": round(most), "within": row["measured_mb"] <= most}


def plan_long(frames: int = 1000, scene: int = 10, limit: str = "8GB") -> dict[str, Any]:
    """The plan of a long video at the published size, a few frames over and over, by networks with random weights."""
    weights = ["backbone=dinov2_vitl14", "backbone.pretrained=false", "flow.pretrained=false"]
    with tempfile.TemporaryDirectory() as scratch:
        video, place = Path(scratch) / "long.mp4", Path(scratch) / "plan"
        save_video(synthetic_clip(0, scene, (854, 480)).video.frames.repeat(frames // scene, 1, 1, 1), video, 25.0)
        words = [f"video={video}", *weights, f"memory_limit={limit}", "device=cpu", "queries=grid:30"]
        found = watched(["plan", *words, f"cache_dir={place}", f"hydra.run.dir={place}"], place)
        kept = json.loads((place / "plan.json").read_text())
    command = ["dinotrack", "plan", "video=long.mp4", *words[1:]]
    return {"command": command, "seconds": found["seconds"], "held_mb": round(found["RssAnon"]), **kept}


if __name__ == "__main__":
    if "--480p" in sys.argv:
        about = {"commit": commit(), "hardware": hardware()}
        LONG.write_text(json.dumps({**plan_long(), **about}, indent=1) + "\n")
        sys.exit()
    short = "--short" in sys.argv
    asked = ["small"] if short else sys.argv[1:] or [*SIZES]
    about = {"commit": commit(), "hardware": hardware()}
    if "--limited" in sys.argv:
        limited = [{**row, **about} for row in compare(LIMITED, LIMIT)]
        KEPT.write_text(json.dumps({**json.loads(KEPT.read_text()), "limited": limited}, indent=1) + "\n")
        sys.exit(not all(row["within"] for row in limited))
    rows = [{**row, **about} for name in asked for row in compare(name)]
    if not short:
        kept = json.loads(KEPT.read_text())
        others = [row for row in kept["rows"] if row["size"] not in asked]
        KEPT.write_text(json.dumps({**kept, "rows": [*others, *rows]}, indent=1) + "\n")
    worst = max(abs(row["off"]) for row in rows)
    print(f"at most {worst:.0%} off; allowed: {WITHIN:.0%}")
    sys.exit(worst > WITHIN)
