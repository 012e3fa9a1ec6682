"""The table of ablations: rows, means and standard errors, and going on where it was stopped."""

import csv
import math
import statistics
import subprocess
import sys
from pathlib import Path

import pytest

from dinotrack import DinotrackError
from dinotrack.sealed import write_json
from dinotrack.training.ablations import mean_and_error, read_rows, row_path, summarise, write_table
from dinotrack.training.config import config_folder

COMMON = {"commit": "abc", "hardware": "2x Test", "cpu_threads": 1}


def row(ablation: str, seed: int, aj: float, seconds: float = 1.0) -> dict[str, object]:
    measures = {"delta_avg": aj + 10, "oa": 90.0, "aj": aj, "seconds": seconds}
    return {"clip": "synthetic", "ablation": ablation, "seed": seed, **measures, **COMMON}


def test_means_have_the_standard_error_of_a_mean() -> None:
    values = [3.0, 5.0, 10.0]
    assert mean_and_error(values) == pytest.approx((6.0, statistics.stdev(values) / math.sqrt(3)))
    assert mean_and_error([7.0]) == (7.0, 0.0)


def test_a_line_has_means_and_differences_seed_by_seed() -> None:
    rows = [row("full", 0, 50), row("full", 1, 60), row("no_prior", 1, 58), row("no_prior", 0, 47), row("extra", 9, 70)]
    lines = {line["ablation"]: line for line in summarise(rows)}
    assert list(lines) == ["extra", "full", "no_prior"]  # best first
    line = lines["no_prior"]
    assert (line["runs"], line["aj"], line["aj_se"], line["delta_avg"]) == (2, 52.5, 5.5, 62.5)
    assert (line["aj_vs_full"], line["aj_vs_full_se"]) == (-2.5, 0.5)  # of -3 and -2
    assert lines["full"]["aj_vs_full"] == 0 and "aj_vs_full" not in lines["extra"]  # no full run of that seed
    assert line["commit"] == "abc"


def test_the_table_is_csv_with_every_row_that_is_there(tmp_path: Path) -> None:
    for entry in (row("full", 0, 50), row("raw_features", 0, 40), {**row("full", 0, 1), "clip": "horsejump"}):
        path = row_path(tmp_path, entry)
        write_json(path, entry)
    assert len(read_rows(tmp_path)) == 3
    write_table(tmp_path, tmp_path / "table.csv")
    with open(tmp_path / "table.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(r["clip"], r["ablation"]) for r in rows] == [
        ("horsejump", "full"),
        ("synthetic", "full"),
        ("synthetic", "raw_features"),
    ]
    assert float(rows[2]["aj"]) == 40 and rows[2]["hardware"] == "2x Test"
    path.write_text("{")
    with pytest.raises(DinotrackError, match=r"horsejump-full-0\.json is damaged .*delete it"):
        read_rows(tmp_path)


def test_every_ablation_of_the_sweep_is_a_file_and_all_but_lora_are_in_it() -> None:
    from omegaconf import OmegaConf

    sweep = OmegaConf.load(config_folder() / "ablate.yaml").hydra.sweeper.params
    named = set(sweep.ablation.split(","))
    files = {path.stem for path in (config_folder() / "ablation").glob("*.yaml")}
    assert named == files - {"lora", "alignment_centred"}  # what needs a ViT, and what the experiment does anyway
    assert sweep.seed == "0,1,2,3,4"


@pytest.mark.slow
def test_a_table_goes_on_where_it_was_stopped(tmp_path: Path) -> None:
    words = ["ablate", f"hydra.sweep.dir={tmp_path}", f"cache_dir={tmp_path / 'cache'}", "clip=synthetic", "steps=2"]
    words += ["synthetic.frames=4", "resolution=64", "backbone.stride=4", "seed=7", "queries=grid:40"]

    def ablate(*ablations: str) -> str:
        command = [sys.executable, "-m", "dinotrack", *words, f"ablation={','.join(ablations)}"]
        return subprocess.run(command, check=True, capture_output=True, text=True).stdout

    assert "done before" not in ablate("full", "raw_features")
    before = row_path(tmp_path, {"clip": "synthetic", "ablation": "full", "seed": 7}).stat().st_mtime_ns
    told = ablate("full", "flow_chain", "raw_features")
    assert told.count("done before") == 2
    assert row_path(tmp_path, {"clip": "synthetic", "ablation": "full", "seed": 7}).stat().st_mtime_ns == before
    with open(tmp_path / "ablations.csv", newline="") as file:
        rows = {r["ablation"]: r for r in csv.DictReader(file)}
    assert rows.keys() == {"full", "flow_chain", "raw_features"}
    assert all(
        0 <= float(r["aj"]) <= 100 and float(r["seconds"]) >= 0 for r in rows.values()
    )  # 0.00 of a quick machine
    words.append("losses.flow.weight=3")  # other settings: a row of the old ones does not count
    assert "done before" not in ablate("full")
