"""The golden run, experiment=tiny: its losses at chosen steps and its tracks, kept in tests/golden.

python scripts/golden.py          # compare with what is kept
python scripts/golden.py --renew  # keep this run instead, after a change that is meant to change results; say why in the commit

It runs in a process of its own with one thread and AVX2's instructions, whatever else the processor has: sums in another order
find other best buddies now and then, from which other pairs are drawn.
"""

import csv
import json
import math
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

from dinotrack.training.commands import run_command
from dinotrack.training.config import compose_config

KEPT = Path(__file__).resolve().parents[1] / "tests" / "golden" / "tiny.json"
STEPS = (4, 9, 14, 19)
TOLERANCE = {"loss": 0.02, "median": 0.05, "most": 1.0}
"""Relative for losses; of tracks, in pixels, of half and of 95 % of the positions. Others with AVX2 differ by far less."""
SAME = {"OMP_NUM_THREADS": "1", "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_CBWR": "AVX2"}
"""Has torch and its libraries add up in the same order on each machine."""


def golden_run() -> dict[str, Any]:
    """Losses and tracks of experiment=tiny in a process of its own."""
    with tempfile.TemporaryDirectory() as scratch:
        found = Path(scratch) / "found.json"
        subprocess.run([sys.executable, __file__, "--keep", str(found)], env={**os.environ, **SAME}, check=True)
        return json.loads(found.read_text())


def run_here() -> dict[str, Any]:
    """Losses and tracks of experiment=tiny, from an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) / "run"
        folder.mkdir()
        overrides = ["logger=csv", f"cache_dir={scratch}/cache", "queries=grid:16"]
        overrides += ["render=false", "baselines=false", "plan=false"]
        run_command(compose_config("run", "tiny", overrides), folder)
        with open(folder / "metrics.csv", newline="") as file:
            rows = {int(row["step"]): row for row in csv.DictReader(file)}
        with open(folder / "tracks.csv", newline="") as file:
            tracks = [[round(float(row[name]), 3) for name in ("x", "y")] for row in csv.DictReader(file)]
    losses = {
        str(step): {name: float(value) for name, value in rows[step].items() if name.startswith("loss/") and value}
        for step in STEPS
    }
    return {"losses": losses, "tracks": tracks}


def differences(found: dict[str, Any], kept: dict[str, Any]) -> list[str]:
    """Where a run is not the kept one."""
    wrong = []
    for step, terms in kept["losses"].items():
        if found["losses"][step].keys() != terms.keys():
            wrong.append(f"step {step} has the losses {sorted(found['losses'][step])}, not {sorted(terms)}")
            continue
        for name, value in terms.items():
            new = found["losses"][step][name]
            if not math.isclose(new, value, rel_tol=TOLERANCE["loss"], abs_tol=1e-7):
                wrong.append(f"{name} at step {step} is {new:.6g}, was {value:.6g}")
    if len(found["tracks"]) != len(kept["tracks"]):
        return [*wrong, f"{len(found['tracks'])} positions, were {len(kept['tracks'])}"]
    apart = sorted(math.dist(a, b) for a, b in zip(found["tracks"], kept["tracks"], strict=True))
    for name, share in (("median", 0.5), ("most", 0.95)):
        moved = apart[int(share * (len(apart) - 1))]
        if moved > TOLERANCE[name]:
            wrong.append(f"of the positions {100 - 100 * share:.0f} % moved by {moved:.2f} pixels or more")
    return wrong


if __name__ == "__main__":
    if sys.argv[1:2] == ["--keep"]:  # the process of its own
        Path(sys.argv[2]).write_text(json.dumps(run_here()))
        sys.exit()
    run = golden_run()
    if sys.argv[1:] == ["--renew"]:
        KEPT.write_text(json.dumps(run, indent=1) + "\n")
    else:
        sys.exit("\n".join(differences(run, json.loads(KEPT.read_text()))))
