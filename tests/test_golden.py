"""experiment=tiny gives what it gave when `python scripts/golden.py --renew` was run last."""

import copy
import importlib.util
import json
from pathlib import Path

import pytest

SCRIPT = Path(__file__).parents[1] / "scripts" / "golden.py"
spec = importlib.util.spec_from_file_location("golden", SCRIPT)
assert spec and spec.loader
golden = importlib.util.module_from_spec(spec)
spec.loader.exec_module(golden)
KEPT = json.loads(golden.KEPT.read_text())


def test_the_golden_run_is_what_it_was() -> None:
    assert golden.differences(golden.golden_run(), KEPT) == []


@pytest.mark.parametrize("name", ["loss/flow", "loss/refined_best_buddy", "loss/total"])
def test_another_loss_is_noticed(name: str) -> None:
    changed = copy.deepcopy(KEPT)
    changed["losses"]["19"][name] *= 1.05
    (line,) = golden.differences(changed, KEPT)
    assert line.startswith(f"{name} at step 19 is ")


def test_other_tracks_are_noticed() -> None:
    for share, step, words in ((1, 0.5, "50 % moved by 0.50"), (10, 3.0, "5 % moved by 3.00")):
        moved = {**KEPT, "tracks": [[x + step * (n % share == 0), y] for n, (x, y) in enumerate(KEPT["tracks"])]}
        assert golden.differences(moved, KEPT) == [f"of the positions {words} pixels or more"]
    assert golden.differences({**KEPT, "tracks": KEPT["tracks"][1:]}, KEPT)
    without = {**KEPT, "losses": {**KEPT["losses"], "4": {}}}
    assert "step 4 has the losses []" in golden.differences(without, KEPT)[0]
