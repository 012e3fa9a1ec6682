"""Scores during a fit: when, of what, the best so far; and the fit is the same with them as without."""

from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import dinotrack.training.fit as fitting
from dinotrack import DinotrackError
from dinotrack.data.synthetic import Clip, synthetic_clip
from dinotrack.evaluation import predict, score_tracks, truth_of_clip
from dinotrack.methods.dino_tracker import DinoTracker
from dinotrack.structs import NO_TRUTH, PointTruth
from dinotrack.training.callbacks import TapVidMetrics
from dinotrack.training.config import compose_config
from dinotrack.training.fit import prepare, train
from dinotrack.training.midway import spread
from dinotrack.training.stopping import read_metrics

TINY = ["flow=dis", "backbone=dense_sift", "backbone.stride=4", "resolution=64", "device=cpu", "steps=6", "logger=csv"]
TINY += ["method.delta.hidden=[4,8]", "method.batch.flow_pairs=16", "trainer.log_every_n_steps=1"]


@pytest.fixture(scope="module")
def clip() -> Clip:
    return synthetic_clip(seed=1, frames=6, size=(64, 48), points=8)


def fitted(folder: Path, clip: Clip, truth: PointTruth, *overrides: str) -> tuple[DinoTracker, L.Trainer]:
    config = compose_config("fit", overrides=[*TINY, f"cache_dir={folder.parent / 'cache'}", *overrides])
    trainers: list[L.Trainer] = []
    make = fitting.make_trainer

    def kept(*arguments: Any) -> L.Trainer:
        trainers.append(make(*arguments))
        return trainers[-1]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "make_trainer", kept)
        tracker = train(config, prepare(config, clip.video, truth=truth), folder=folder)
    return tracker, trainers[0]


def test_scores_are_logged_every_so_many_steps_and_change_nothing(clip: Clip, tmp_path: Path) -> None:
    truth = truth_of_clip(clip)
    often = ["callbacks.tapvid.every=2", "callbacks.tapvid.queries=1000"]
    with_scores, trainer = fitted(tmp_path / "a", clip, truth, *often)
    without, _ = fitted(tmp_path / "b", clip, NO_TRUTH, *often)
    weights = [tracker.checkpoint()["state_dict"] for tracker in (with_scores, without)]
    assert all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    rows = [row for row in read_metrics(tmp_path / "a", 100) if row.get("tapvid/aj") not in (None, "")]
    assert len(rows) == 3
    best = 0.0
    for row in rows:
        best = max(best, float(row["tapvid/aj"]))
        assert float(row["tapvid/aj_best"]) == pytest.approx(best)
        assert {"tapvid/delta_avg", "tapvid/oa"} <= row.keys()
    final = score_tracks(truth, predict(with_scores, truth, clip.video.size))
    assert float(rows[-1]["tapvid/aj"]) == pytest.approx(final.aj, abs=1e-4)  # type: ignore[union-attr]
    assert not any("tapvid/aj" in row for row in read_metrics(tmp_path / "b", 100))
    callback = next(each for each in trainer.callbacks if isinstance(each, TapVidMetrics))  # type: ignore[attr-defined]
    again = TapVidMetrics()
    again.load_state_dict(callback.state_dict())
    assert again.best == callback.best and again.best["tapvid/aj"] == pytest.approx(best)


def test_joints_are_scored_as_badja(clip: Clip, tmp_path: Path) -> None:
    truth = truth_of_clip(clip)
    joints = PointTruth(
        truth.queries, truth.xy, truth.visible, truth.frames, torch.full((6,), 90.0), truth.size, "first"
    )
    _, trainer = fitted(tmp_path / "a", clip, joints, "callbacks.tapvid.every=3")
    assert {"badja/delta_seg", "badja/delta_3px", "badja/delta_seg_best"} <= trainer.callback_metrics.keys()


def test_a_bounded_number_of_queries_is_spread_over_all(clip: Clip) -> None:
    truth = truth_of_clip(clip)
    few = spread(truth, 4)
    assert len(few) == 4 and torch.equal(few.queries[0], truth.queries[0])
    assert len(few.queries[:, 0].unique()) > 1  # not only those of the first frame
    assert len(spread(truth, 10**6)) == len(truth) and len(spread(NO_TRUTH, 5)) == 0


@pytest.mark.parametrize("wrong", [{"every": 0}, {"queries": 0}])
def test_numbers_without_sense_are_refused(wrong: dict[str, int]) -> None:
    with pytest.raises(DinotrackError, match=r"tapvid metrics: .*=0: expected"):
        TapVidMetrics(**wrong)
