"""Compare what `dinotrack plan` says of memory with what its stages then hold, each in a process of its own.

python -m scripts.plans           # three sizes, a few minutes; keeps docs/results/plans.json
python -m scripts.plans --short   # the smallest; keeps nothing
"""

import json
import sys
import tempfile
from pathlib import Path
from typing import Any

from scripts.memory import ROOT, watched

from dinotrack.training.stages import commit, hardware

KEPT = ROOT / "docs" / "results" / "plans.json"
WITHIN = 0.25
"""Share of the measured peak that an estimate may be off."""
SIZES = {
    "small": ["synthetic.frames=24", "synthetic.size=[192,144]", "resolution=192"],
    "wide": ["synthetic.frames=16", "synthetic.size=[480,270]", "resolution=480"],
    "long": ["synthetic.frames=150", "synthetic.size=[112,84]", "resolution=112"],
}
COMMON = ["experiment=cpu_small", "video=synthetic", "logger=none", "threads=1", "queries=grid:16", "steps=6"]
STAGES = {
    "preprocess": ("features", "optical flow and tracklets", "best buddies"),
    "fit": ("training", "rebuilding pairs", "scores"),
    "track": ("tracks and visibility",),
}
"""What of the plan each command does."""


def compare(name: str) -> list[dict[str, Any]]:
    """Planned and measured megabytes of each command."""
    with tempfile.TemporaryDirectory() as scratch:
        place = Path(scratch)
        words = [*COMMON, *SIZES[name], f"cache_dir={place / 'cache'}"]
        watched(["plan", *words, f"hydra.run.dir={place / 'plan'}"], place / "cache")
        needs = {need["name"]: need for need in json.loads((place / "plan" / "plan.json").read_text())["needs"]}
        shared = [word for word in words if not word.startswith("queries")]
        track = [f"checkpoint={place / 'fit' / 'tracker.ckpt'}", "queries=grid:16", "render=false", "device=cpu"]
        commands = {
            "preprocess": ["preprocess", *shared],
            "fit": ["fit", *shared],
            "track": ["track", *track, f"cache_dir={place / 'cache'}"],
        }
        rows = []
        for command, stages in STAGES.items():
            found = watched([*commands[command], f"hydra.run.dir={place / command}"], place / "cache")
            planned = max(needs[stage]["memory"] for stage in stages) / 1e6
            row = {
                "size": name,
                "command": command,
                "planned_mb": round(planned),
                "measured_mb": round(found["RssAnon"]),
            }
            rows.append({**row, "off": round(planned / found["RssAnon"] - 1, 3)})
            print(rows[-1], flush=True)
    return rows


if __name__ == "__main__":
    short = "--short" in sys.argv
    rows = [row for name in (["small"] if short else SIZES) for row in compare(name)]
    if not short:
        KEPT.write_text(json.dumps({"rows": rows, "commit": commit(), "hardware": hardware()}, indent=1) + "\n")
    worst = max(abs(row["off"]) for row in rows)
    print(f"at most {worst:.0%} off; allowed: {WITHIN:.0%}")
    sys.exit(worst > WITHIN)
