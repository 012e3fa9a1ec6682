"""From predictions to tables: rows, means, thirds by occlusion, files that other tools open; and the same as torchmetrics."""

import csv
import math
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from dinotrack import DinotrackError, Tracks, scoreboard
from dinotrack.benchmark_metrics import BadjaMetric, TapVidMetric, flattened
from dinotrack.data.export import save_npz
from dinotrack.evaluation import score_tracks
from dinotrack.metrics import TapVidScores, mean_over_videos, tapvid_metrics
from dinotrack.scoreboard import compare, headline, markdown, means_of, occluded_share, rows_of, write_scores
from dinotrack.sealed import write_json
from dinotrack.structs import NO_TRUTH, PointTruth

SIZE = (128, 64)


def truth(seed: int = 0, points: int = 5, frames: int = 8, hidden: float = 0.3) -> PointTruth:
    rng = torch.Generator().manual_seed(seed)
    xy = (torch.rand(points, frames, 2, generator=rng) * torch.tensor(SIZE)).round(decimals=0)  # exact in float32
    visible = torch.rand(points, frames, generator=rng) >= hidden
    visible[:, 0] = True
    queries = torch.cat([torch.zeros(points, 1), xy[:, 0]], 1)
    return PointTruth(queries, xy, visible, torch.arange(frames), torch.zeros(0), SIZE, "strided")


def tracks_off(target: PointTruth, dx: float = 0.0, flip: bool = False) -> Tracks:
    """The truth, moved by `dx` pixels at 256x256 to the right."""
    xy = target.xy + torch.tensor([dx * target.size[0] / 256, 0.0])
    visible = ~target.visible if flip else target.visible
    return Tracks(target.queries, xy, visible, visible.float(), target.size, 25.0)


def predicted(folder: Path, clip: str, target: PointTruth, tracks: Tracks, **about: Any) -> None:
    """A clip's folder as `dinotrack evaluate` leaves it."""
    where = folder / clip
    where.mkdir(parents=True)
    save_npz(tracks, where / "tracks.npz")
    target.save(where / "truth.safetensors")
    stages = [{"name": "fit", "seconds": 2.0, "peak_memory_mb": 10.0, "peak_gpu_memory_mb": 0.0}] * 2
    evaluation = {"benchmark": "b", "method": "m", "clip": clip, "settings": {}, "settings_hash": "5e7", **about}
    environment = {"commit": "abc", "hardware": "2x Test"}
    summary = {"stages": stages, "environment": environment, "evaluation": evaluation}
    write_json(where / "summary.json", summary)


def test_a_perfect_tracker_scores_100_and_one_a_pixel_off_nothing_at_1(tmp_path: Path) -> None:
    predicted(tmp_path, "a", truth(), tracks_off(truth()))
    predicted(tmp_path, "b", truth(1), tracks_off(truth(1), dx=1.0))
    perfect, off = rows_of(tmp_path)
    scores = [name for name in perfect if name.startswith(("delta", "jaccard", "oa", "aj"))]
    assert len(scores) == 13 and all(perfect[name] == 100 for name in scores)
    assert off["delta_1"] == off["jaccard_1"] == 0 and off["delta_2"] == off["oa"] == 100
    assert off["delta_avg"] == off["aj"] == 80


def test_a_row_says_what_was_tracked_and_what_it_cost(tmp_path: Path) -> None:
    predicted(tmp_path, "a", truth(), tracks_off(truth()))
    (row,) = rows_of(tmp_path)
    expected = {"benchmark": "b", "method": "m", "clip": "a", "mode": "strided", "size": "128x64", "frames": 8}
    expected |= {"queries": 5, "seconds": 4.0, "peak_memory_mb": 10.0, "commit": "abc", "hardware": "2x Test"}
    expected |= {"config": str(tmp_path / "a" / "config.yaml"), "settings": "5e7", "group": ""}
    assert expected.items() <= row.items()
    assert row["occlusion"] == pytest.approx(100 * float((~truth().visible).double().mean()), abs=0.01)


def test_a_track_that_is_queried_often_counts_once_in_the_occlusion_rate() -> None:
    one = truth(points=2)
    often = one[torch.tensor([0, 0, 0, 0, 1])]
    assert occluded_share(often) == pytest.approx(occluded_share(one))
    lost = replace(one, xy=one.xy.masked_fill(~one.visible[..., None], math.nan))
    assert occluded_share(lost) == pytest.approx(occluded_share(one))
    assert math.isnan(occluded_share(NO_TRUTH))


def test_clips_fall_into_thirds_by_occlusion(tmp_path: Path) -> None:
    for number, hidden in enumerate([0.9, 0.0, 0.5, 0.1, 0.7, 0.4]):
        target = truth(number, points=40, hidden=hidden)
        predicted(tmp_path, f"c{number}", target, tracks_off(target))
    nothing = truth()[torch.zeros(0, dtype=torch.long)]
    predicted(tmp_path, "b", nothing, tracks_off(nothing))  # no rate, no group, and in nobody's way
    groups = {row["clip"]: row["group"] for row in rows_of(tmp_path)}
    assert groups.pop("b") == ""
    assert groups == {"c1": "low", "c3": "low", "c5": "middle", "c2": "middle", "c4": "high", "c0": "high"}


def test_means_leave_out_clips_without_a_score(tmp_path: Path) -> None:
    nothing = truth()[torch.zeros(0, dtype=torch.long)]
    predicted(tmp_path, "a", truth(), tracks_off(truth(), flip=True))
    predicted(tmp_path, "b", truth(1), tracks_off(truth(1)))
    predicted(tmp_path, "none", nothing, tracks_off(nothing))
    rows = rows_of(tmp_path)
    means = means_of(rows)
    assert means["clips"] == 3 and means["oa"] == 50 and means["delta_avg"] == 100
    assert math.isnan(rows[2]["aj"]) and "–" in markdown(*headline([rows[2]], ("clip",)))


def test_files_hold_every_clip_and_the_tables(tmp_path: Path) -> None:
    for number in range(3):
        predicted(tmp_path / "x", f"c{number}", truth(number), tracks_off(truth(number), dx=float(number)))
    rows = write_scores(tmp_path / "x")
    with open(tmp_path / "x" / "scores.csv", newline="") as file:
        read = list(csv.DictReader(file))
    assert [row["clip"] for row in read] == ["c0", "c1", "c2"]
    assert [float(row["aj"]) for row in read] == pytest.approx([row["aj"] for row in rows], abs=1e-4)
    assert list(read[0])[:3] == ["benchmark", "method", "clip"] and list(read[0])[-1] == "config"
    text = (tmp_path / "x" / "scores.md").read_text()
    mean = sum(row["aj"] for row in rows) / 3
    assert f"| {mean:.1f} |" in text and "| middle |" in text and "| c2 |" in text


def test_no_name_ends_a_cell() -> None:
    text = markdown(["a|b", "reason"], [["1", "no|such\nfile"], ["2", ""]])
    assert text == "| a\\|b | reason |\n| --- | --- |\n| 1 | no\\|such file |\n| 2 |  |\n"


def test_a_clip_that_is_finished_meanwhile_is_in_the_table(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    predicted(tmp_path, "a", truth(), tracks_off(truth()))
    read = scoreboard.clip_row

    def slow(folder: Path) -> dict[str, Any]:
        if not (tmp_path / "b").exists():
            predicted(tmp_path, "b", truth(1), tracks_off(truth(1)))
        return read(folder)

    monkeypatch.setattr(scoreboard, "clip_row", slow)
    assert [row["clip"] for row in write_scores(tmp_path)] == ["a", "b"]


def test_folders_without_predictions_are_left_out_unless_all_are(tmp_path: Path) -> None:
    predicted(tmp_path / "one", "c", truth(), tracks_off(truth()))
    (tmp_path / "two").mkdir()
    compare([tmp_path / "two", tmp_path / "one"], tmp_path / "all")
    assert len((tmp_path / "all.md").read_text().splitlines()) == 3
    with pytest.raises(DinotrackError, match="two has no predictions"):
        compare([tmp_path / "two"])


def test_methods_stand_side_by_side(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    for name, dx in (("one", 0.0), ("two", 3.0)):
        predicted(tmp_path / name, "c", truth(), tracks_off(truth(), dx), method=name)
    compare([tmp_path / "one", tmp_path / "two"], tmp_path / "all")
    assert "two" in capsys.readouterr().out
    lines = (tmp_path / "all.md").read_text().splitlines()
    assert len(lines) == 4 and "| 100.0 |" in lines[2] and "| 60.0 |" in lines[3]
    with open(tmp_path / "all.csv", newline="") as file:
        assert [row["method"] for row in csv.DictReader(file)] == ["one", "two"]


def test_damage_is_named_with_the_folder_to_delete(tmp_path: Path) -> None:
    with pytest.raises(DinotrackError, match="has no predictions; make them with dinotrack evaluate"):
        rows_of(tmp_path)
    predicted(tmp_path, "a", truth(), tracks_off(truth()))
    predicted(tmp_path, "b", truth(points=4), tracks_off(truth(points=5)))
    with pytest.raises(DinotrackError, match="5 tracks of 8 frames for 4 queries"):
        rows_of(tmp_path)
    (tmp_path / "a" / "summary.json").write_text("{}")
    with pytest.raises(DinotrackError, match=r"has no checksum: damaged, .*delete .*a to predict it again"):
        rows_of(tmp_path)


# torchmetrics


@pytest.mark.parametrize("mode", ["strided", "first"])
def test_the_metric_is_the_mean_over_videos(mode: str) -> None:
    metric, scores = TapVidMetric(mode), list[TapVidScores]()
    for seed in range(4):
        target = replace(truth(seed), mode=mode)
        tracks = tracks_off(target, dx=float(seed))
        visible = torch.rand(tracks.visible.shape, generator=torch.Generator().manual_seed(seed)) > 0.4
        arguments = (target.queries, target.xy, target.visible, tracks.xy, visible, SIZE)
        metric.update(*arguments)
        scores.append(tapvid_metrics(*arguments, mode))
    expected = flattened(mean_over_videos(scores))
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == pytest.approx(expected, abs=1e-9)
    metric.reset()
    assert metric.count.sum() == 0


def test_metrics_of_several_processes_add_up_and_survive_a_cast() -> None:
    parts, whole = [TapVidMetric() for _ in range(2)], TapVidMetric()
    for seed in range(4):
        target = truth(seed)
        tracks = tracks_off(target, dx=float(seed))
        for metric in (parts[seed % 2], whole):
            metric.update(target.queries, target.xy, target.visible, tracks.xy, tracks.visible, SIZE)
    for state in ("total", "count"):
        summed = getattr(parts[0], state) + getattr(parts[1], state)
        assert torch.allclose(summed, getattr(whole, state), rtol=0, atol=1e-9)
    assert whole.half().total.dtype == torch.float64


def test_badja_as_a_metric() -> None:
    metric, target = BadjaMetric(), replace(truth(), areas=torch.full((8,), 400.0))
    tracks = tracks_off(target, dx=7.0)  # 3.5 px at this width: within 0.2 · √400 = 4, not within 3
    frames, asked = target.frames, target.queries[:, 0].long()
    metric.update(tracks.xy, target.xy, target.visible, target.areas, frames, asked)
    found = {name: float(value) for name, value in metric.compute().items()}
    assert found == {"delta_seg": 100, "delta_3px": 0, "delta_seg_later": 100, "delta_3px_later": 0}
    assert flattened(score_tracks(target, tracks)) == found


def test_scores_of_no_queries_are_nan_and_add_nothing() -> None:
    metric = TapVidMetric()
    empty = torch.zeros(0, 8, 2), torch.zeros(0, 8, dtype=torch.bool)
    metric.update(torch.zeros(0, 3), *empty, *empty, SIZE)
    target = truth()
    metric.update(target.queries, target.xy, target.visible, target.xy, target.visible, SIZE)
    assert float(metric.compute()["aj"]) == 100
