"""What a run will take, said before it begins."""

import json
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from scripts import plans

from dinotrack.data.synthetic import synthetic_clip
from dinotrack.memory import Budget
from dinotrack.training.config import compose_config
from dinotrack.training.fit import checked
from dinotrack.training.planning import (
    BUDDIES,
    POSITIONS,
    TRACKLETS,
    Job,
    Plan,
    as_json,
    duration,
    encoded_bytes,
    plan,
    plan_table,
    planned,
    show_plan,
    size,
)
from dinotrack.training.probing import Cost, Probe, cost_of, probe

JOB = Job(
    frames=100,
    size=(1920, 1080),
    working=(854, 476),
    tokens=(67, 121),
    channels=1024,
    frame_pairs=4950,
    steps=10_000,
    batch_frames=8,
    rebuilds=10,
    rebuilt_pairs=500,
    queries=600,
    chunk_bytes=1e9,
    encoded=1.0,
)
COST = Cost(2.0, 1e8)
PROBE = Probe(
    (67, 121), 1024, COST, COST, COST, COST, (Cost(1.0, 1e9), Cost(2.0, 2e9)), (Cost(1.0, 5e8), Cost(2.0, 7e8)), COST
)


@pytest.fixture(autouse=True)
def much_is_free(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dinotrack.training.planning.free_memory", lambda: 32_000_000_000)


def needs(found: Plan) -> dict[str, tuple[float, float]]:
    return {need.name: (need.memory, need.memory - need.spare) for need in found.needs}


def test_a_stage_costs_what_its_parts_do() -> None:
    found = plan(JOB, PROBE, Budget(), start=5e8)
    seconds = {need.name: need.seconds for need in found.needs}
    assert seconds["features"] == (200.0, 200.0)
    assert seconds["optical flow and tracklets"] == (99 * 4.0, 4950 * 4.0)  # to the next frame, or between all
    assert seconds["best buddies"] == (9900.0, 9900.0)
    assert seconds["training"] == (10_000 * 4.0,) * 2  # 1 s of two frames, half a second for each of six more
    memory = needs(found)
    start = 5e8 + 4 * 100 * 854 * 476  # with working frames and masks
    assert memory["features"][0] == start + 4e8  # four frames at once
    cells, pixels = 67 * 121, 854 * 476
    tables = 5 * 0.15 * 100 * pixels + 2 * 37 * 0.2 * cells * 4950 + 4 * 37 * 0.2 * cells * 500 + 48 * 100**2
    assert memory["training"][0] == pytest.approx(start + tables + 1e9 + 6 * 5e8)
    flows = 100 * pixels * (20 * 2 + 1 + 20 * 0.15) + 2 * pixels * 250 + 2e8
    assert memory["optical flow and tracklets"][0] == pytest.approx(start + flows)
    assert memory["rebuilding pairs"][0] - memory["rebuilding pairs"][1] == 2 * 100 * cells * 1024
    assert {need.name: need.disk for need in found.needs}["features"] == 2 * 100 * cells * 1024
    more = needs(plan(JOB, replace(PROBE, frame_pair=Cost(2.0, 9e8)), Budget(), start=5e8))
    assert more["best buddies"][0] - memory["best buddies"][0] == 9e8 - 4 * cells**2  # the probe's product is the run's


@pytest.mark.parametrize("encoded", [1.0, 32.0])
def test_what_is_of_all_frames_can_lie_on_disk(encoded: float) -> None:
    """Of a thousand frames at the published size, or of ten thousand, each stage fits into what is there for a hundred."""
    tight = Budget("6.5GB")
    found = {
        count: plan(replace(JOB, frames=count, encoded=encoded), PROBE, tight, start=5e8)
        for count in (100, 1000, 10_000)
    }
    for count in (1000, 10_000):
        assert found[count].aside["working frames"] == 3 * count * 854 * 476
        flow = "optical flow and tracklets"
        whole, least = needs(found[count])[flow]
        assert whole > 10e9 and 0.5e9 < least < 6.5e9
        lines = [line for line in found[count].lines() if line.startswith(flow)]
        assert "positions on tracklets will lie on disk" in lines[0] and "temporary files of" in lines[1]
        temporary = {need.name: need.temporary for need in found[count].needs}[flow]
        assert 16 * 2 * count * 854 * 476 < temporary < 24 * 2 * count * 854 * 476
    short = {need.name: need.temporary for need in found[100].needs}
    assert not any(short.values()) or short[flow] < 20 * 2 * 100 * 854 * 476
    assert max(least for _, least in needs(found[1000]).values()) < 6.5e9


def test_the_queries_of_a_ground_truth_are_a_stage_of_their_own() -> None:
    without, scored = (plan(replace(JOB, scored=count), PROBE, Budget(), start=5e8).needs for count in (0, 600))
    stages = {need.name: need for need in scored}
    assert [need.name for need in without] == [name for name in stages if name != "scores"]
    same = replace(stages["tracks and visibility"], name="scores")
    assert stages["scores"] == same
    few = {need.name: need for need in plan(replace(JOB, scored=1), PROBE, Budget(), start=5e8).needs}["scores"]
    assert few.memory < same.memory and few.seconds[1] < same.seconds[1]


def test_what_does_not_fit_is_named_with_a_remedy() -> None:
    fits = replace(plan(JOB, replace(PROBE, short_step=PROBE.step), Budget(), start=5e8), room=1e12)
    assert not fits.short() and not list(fits.lines())
    lines = list(replace(fits, room=4e9).lines())
    assert any(line.startswith("best buddies: ") and "block of frames by block" in line for line in lines)
    worst = next(line for line in lines if line.startswith("training needs"))
    assert "5.41 GB" in worst and "4 GB may be used" in worst
    assert worst.endswith("lower resolution to about 734, or method.batch.frames_per_set")
    assert not any("frames_per_set" in line for line in lines if line != worst)


def test_a_gpus_memory_is_planned_beside_the_hosts() -> None:
    on_gpu = replace(COST, device=3e8)
    steps = (Cost(1.0, 1e8, 1e9), Cost(2.0, 1e8, 2e9))
    gpu = Probe((67, 121), 1024, on_gpu, on_gpu, on_gpu, on_gpu, steps, steps, on_gpu)
    found = plan(JOB, gpu, Budget(), start=5e8, device_room=4e9)
    device = {need.name: need.device for need in found.needs}
    assert device["features"] == 4 * 3e8 and device["training"] == 1e9 + 6 * 5e8
    assert 3e8 < device["best buddies"] < 3e9 and device["tracks and visibility"] > 3e8
    many = plan(replace(JOB, frames=1000, encoded=32.0), gpu, Budget(), start=5e8, device_room=4e9)
    flows = {need.name: need.device for need in many.needs}["optical flow and tracklets"]
    followed = 250 * 2 * 854 * 476
    assert (
        flows == 3 * 1000 * 854 * 476 + 5e8 + 6e8 + followed
    )  # an eighth of what is free for what RAFT keeps, one pair
    batch = plan(replace(JOB, frames=1000, encoded=32.0, flow_batch=4), gpu, Budget(), start=5e8, device_room=4e9)
    assert {need.name: need.device for need in batch.needs}["optical flow and tracklets"] == flows + 3 * 6e8
    of_steps = [need for need in found.needs if need.name == "training"]
    [line] = list(replace(found, room=1e12, device_room=3.5e9, needs=of_steps).lines())
    assert line.startswith(
        "training needs 4 GB of the GPU's memory, of which 3.5 GB are free; lower resolution to about 798"
    )
    slow = plan(replace(JOB, frames=1000, encoded=32.0), gpu, Budget("3GB"), start=5e8, device_room=1e12)
    kept = {need.name: need.device for need in slow.needs}["optical flow and tracklets"] - (flows - 5e8)
    assert kept == pytest.approx((3e9 - 5e8) / 8)  # the host's limit bounds it, too
    table = plan_table(found)
    assert [column.header for column in table.columns] == ["stage", "time", "memory", "GPU memory", "disk"]
    on_cpu = plan(JOB, PROBE, Budget(), start=5e8)
    assert "GPU memory" not in [column.header for column in plan_table(on_cpu).columns]


@pytest.mark.parametrize(
    ("bytes_", "text"), [(12, "12 B"), (1234, "1.23 kB"), (5.6e7, "56 MB"), (8e9, "8 GB"), (2e12, "2 TB")]
)
def test_bytes_as_one_reads_them(bytes_: float, text: str) -> None:
    assert size(bytes_) == text


def test_seconds_as_one_reads_them() -> None:
    assert duration((3.0, 3.0)) == "3 s"
    assert duration((60.0, 600.0)) == "60 s to 10 min"
    assert duration((7200.0, 7200.0)) == "2 h"


def test_a_cost_is_time_and_what_is_held_meanwhile() -> None:
    def job() -> None:
        kept = torch.ones(25_000_000)
        time.sleep(0.3)  # the watch looks now and then
        assert len(kept)

    cost = cost_of(job)
    assert 0.9e8 < cost.bytes < 1.3e8 and cost.seconds > 0


def test_a_plan_of_a_video_and_what_is_kept_of_it(tmp_path: Path) -> None:
    config = compose_config("plan", "tiny", ["logger=none", f"cache_dir={tmp_path / 'cache'}"])
    video, lines = synthetic_clip(0, 5, (56, 42)).video, list[str]()
    config.resolution = 56
    found = planned(config, video, queries=7)
    show_plan(found, lines.append)
    assert lines[0].startswith("5 frames of 56x42 at 56x40") and "7 queries" in lines[1]
    kept = json.loads(json.dumps(as_json(found)))
    assert kept["job"]["frame_pairs"] == 10 and len(kept["needs"]) == 6 and kept["lines"] == []
    assert not (tmp_path / "cache").exists()


def test_a_limit_below_what_is_held_is_called_short(tmp_path: Path) -> None:
    words = ["logger=none", "memory_limit=100MB", f"cache_dir={tmp_path / 'cache'}"]
    config = compose_config("plan", "tiny", words)
    config.resolution = 56
    lines = list(planned(config, synthetic_clip(0, 5, (56, 42)).video, queries=7).lines())
    said = ("may be used", "do not fit", "will lie on disk", "temporary files of")
    assert len(lines) >= 6 and all(any(part in line for part in said) for line in lines)


def test_a_refinement_that_must_be_prepared_is_planned_too(tmp_path: Path) -> None:
    vit = ["backbone=dinov2_vits14", "backbone.pretrained=false", "backbone.layer=4", "backbone.stride=14"]
    words = ["ablation=lora", *vit, "~method.delta.hidden", "logger=none", f"cache_dir={tmp_path}"]
    config = compose_config("plan", "tiny", words)
    assert len(planned(config, synthetic_clip(0, 3, (56, 42)).video, queries=2).needs) == 6


def test_what_chrono_and_lora_keep_of_all_frames_is_planned() -> None:
    plain, chrono, lora = (
        plan(replace(JOB, **more), PROBE, Budget(), start=5e8)
        for more in ({}, {"passing": (10**7, 10**6)}, {"prepared": 10**7})
    )
    assert needs(chrono)["features"][0] - needs(plain)["features"][0] == 1.1e9
    assert needs(lora)["features"] == needs(plain)["features"]
    for stage in ("training", "rebuilding pairs", "tracks and visibility"):
        assert needs(lora)[stage][0] - needs(plain)[stage][0] == 1e9
    tight = plan(replace(JOB, passing=(10**7, 10**6), prepared=3 * 10**7), PROBE, Budget("1.5GB"), start=5e8)
    features = tight.needs[0]
    assert features.spare == features.temporary == 1e9 and tight.aside["tokens for LoRA"] == 3e9
    lines = list(tight.lines())
    assert "tokens for LoRA of 3 GB will lie on disk" in lines
    assert any(line.startswith("features: ") and "tokens between its adapters" in line for line in lines)


def test_files_that_are_gone_in_the_end_are_a_column_of_the_table() -> None:
    tight, free = (plan(JOB, PROBE, Budget(limit), start=5e8) for limit in ("4GB", None))
    columns = [[*plan_table(found).columns] for found in (tight, free)]
    assert [part[-1].header for part in columns] == ["temporary", "disk"]
    cells = dict(zip(columns[0][0].cells, columns[0][-1].cells, strict=True))
    assert cells["features"] == "" and cells["rebuilding pairs"] == "1.66 GB"


def test_the_probe_holds_no_step_that_the_limit_has_no_room_for(tmp_path: Path) -> None:
    """It then knows the step by what lay in memory and on disk, and writes beside the cache that it does not make."""
    seen = list[tuple[float, Path]]()

    def probed(limit: str | None) -> Probe:
        seen.clear()
        words = ["logger=none", "resolution=96", f"cache_dir={tmp_path / 'not' / 'there'}", f"memory_limit={limit}"]
        data, module = checked(compose_config("plan", "tiny", words), synthetic_clip(0, 4, (96, 72)).video)
        return probe(data, module)

    free, tight = probed("null"), probed("100MB")
    assert all(step.disk > 0 for step in (*free.short_step, *tight.short_step))
    assert [step.disk for step in free.step] == [0, 0]
    for whole, short in zip(tight.step, tight.short_step, strict=True):
        assert whole.bytes == short.bytes + short.disk and whole.seconds == short.seconds
    assert not any(tmp_path.iterdir())


@pytest.mark.slow
def test_estimates_are_within_a_quarter_of_what_each_command_then_holds() -> None:
    """The smallest of three sizes; `python -m scripts.plans` measures all and keeps them."""
    rows = plans.compare("small")
    assert [row["command"] for row in rows] == ["preprocess", "fit", "track"]
    assert max(abs(row["off"]) for row in rows) < plans.WITHIN


def test_the_kept_estimates_of_three_sizes_are_within_a_quarter() -> None:
    rows = json.loads(plans.KEPT.read_text())["rows"]
    assert {row["size"] for row in rows} == {*plans.SIZES} and len(rows) == 9
    for row in rows:
        assert row["off"] == pytest.approx(row["planned_mb"] / row["measured_mb"] - 1, abs=2e-3)
        assert abs(row["off"]) < plans.WITHIN, row


def test_a_step_that_does_not_fit_lays_what_it_keeps_on_disk() -> None:
    found = plan(JOB, PROBE, Budget("4.5GB"), start=5e8)
    whole, least = needs(found)["training"]
    assert whole > 4.5e9 > least and whole - least == pytest.approx(1e9 + 6 * 5e8 - (5e8 + 6 * 1e8))
    [line] = [line for line in found.lines() if line.startswith("training")]
    assert line.endswith("what a step keeps for its backward pass will lie on disk")
    slower = replace(PROBE, short_step=(Cost(2.0, 5e8, disk=4e8), Cost(4.0, 7e8, disk=8e8)))
    for room, seconds, written in (("4.5GB", (40_000.0, 80_000.0), 16e8), ("9GB", (40_000.0, 40_000.0), 0.0)):
        [need] = [need for need in plan(JOB, slower, Budget(room), start=5e8).needs if need.name == "training"]
        assert need.seconds == seconds and need.temporary == written


def test_single_positions_that_drift_are_planned() -> None:
    ends, drops = (plan(replace(JOB, dropped=dropped), PROBE, Budget(), start=5e8) for dropped in (False, True))
    name, positions = "optical flow and tracklets", 2 * 100 * 854 * 476
    assert needs(drops)[name][0] - needs(ends)[name][0] == positions
    disk = [{need.name: need.disk for need in found.needs}[name] for found in (ends, drops)]
    assert disk[1] - disk[0] == positions


def test_frames_and_masks_count_where_they_are_made() -> None:
    own = plan(replace(JOB, resized=False, masked=False), PROBE, Budget(), start=5e8)
    made = plan(JOB, PROBE, Budget(), start=5e8)
    assert needs(made)["features"][0] - needs(own)["features"][0] == 4 * 100 * 854 * 476
    tight = Budget("2GB")
    short, none = (plan(replace(JOB, resized=each, masked=each), PROBE, tight, start=5e8) for each in (True, False))
    assert list(short.aside) == ["working frames"] and not none.aside
    assert next(short.lines()) == "working frames of 122 MB will lie on disk" != next(none.lines())


@pytest.mark.parametrize(
    ("settings", "expected"),
    [({"kind": "dis"}, 1.0), ({"kind": "raft"}, 32.0), ({"kind": "raft", "precision": "float16"}, 16.0)],
)
def test_what_an_estimator_keeps_of_a_frame(settings: dict[str, str], expected: float) -> None:
    assert encoded_bytes(settings) == expected


def test_the_numbers_of_a_video_are_about_those_of_real_clips() -> None:
    rows = json.loads((plans.ROOT / "docs" / "results" / "counts.json").read_text())["rows"]
    assert len(rows) == 3
    for name, taken in (("positions", POSITIONS), ("tracklets", TRACKLETS), ("best_buddies", BUDDIES)):
        most = max(row[name] for row in rows)
        assert 0.95 * most < taken < 2 * most


def test_refined_features_that_lie_on_disk_are_said() -> None:
    tight, free = (plan(JOB, PROBE, Budget(limit), start=5e8) for limit in ("4GB", None))
    stages = ("rebuilding pairs", "tracks and visibility")
    for found, expected in ((tight, 2.0 * 100 * 67 * 121 * 1024), (free, 0.0)):
        assert [need.temporary for need in found.needs if need.name in stages] == [expected] * 2
    assert "rebuilding pairs: temporary files of 1.66 GB, where memory has no room" in list(tight.lines())
