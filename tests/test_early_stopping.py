"""Held-out points and the end of a fit by them: the same points each time, a fit that is not disturbed, and one that resumes."""

import logging
import os
import signal
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import dinotrack.training.fit as fitting
from dinotrack import DinotrackError, Video
from dinotrack.correspondences import frame_pairs
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.errors import Stopped
from dinotrack.geometry import constant_scale
from dinotrack.methods.dino_tracker import DinoTracker, refine_features
from dinotrack.refined_pairs import PairSearch, follow_features, random_pixels
from dinotrack.training.batch import Store
from dinotrack.training.config import compose_config
from dinotrack.training.early_stopping import SCORE, HeldOut, StopEarly
from dinotrack.training.fit import prepare, train
from dinotrack.training.modules import DinoTrackerModule
from dinotrack.training.stopping import RESUME, read_metrics

TINY = ["flow=dis", "backbone=dense_sift", "backbone.stride=4", "resolution=64", "device=cpu", "steps=10", "logger=csv"]
TINY += ["method.delta.hidden=[4,8]", "method.batch.flow_pairs=16", "trainer.log_every_n_steps=1", "resume=true"]
TINY += ["callbacks.rebuild.every=3", "callbacks.rebuild.frame_pairs=3", "checkpoint_every=100"]
STOPPING = ["callbacks=stop_early", "callbacks.early_stopping.every=2"]
STOPPING += [f"callbacks.early_stopping.held_out.{few}" for few in ("frame_pairs=2", "search.points_background=8")]
NEVER = [*STOPPING, "callbacks.early_stopping.patience=100"]
SOON = [*STOPPING, "callbacks.early_stopping.min_delta=1", "callbacks.early_stopping.patience=2"]
"""No share rises by 1. Checks count from step 4 on: that one is the best so far, two more are waited for."""
SOON += ["callbacks.early_stopping.start=4"]


@pytest.fixture(scope="module")
def video() -> Video:
    return synthetic_clip(seed=1, frames=6, size=(64, 48), points=8).video


class At(L.Callback):
    """Acts in a step, and draws from torch's random numbers in each, as dropout would."""

    def __init__(self, step: int = -1, act: Any = None) -> None:
        self.step, self.act, self.drawn = step, act, list[float]()

    @property
    def steps(self) -> int:
        return len(self.drawn)

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        self.drawn.append(float(torch.rand(())))
        if trainer.global_step == self.step:
            self.act()


def run(folder: Path, video: Video, *overrides: str, beside: L.Callback | None = None) -> DinoTracker:
    config = compose_config("fit", overrides=[*TINY, *overrides])
    make = fitting.make_trainer

    def accompanied(config: Any, steps: int, callbacks: list[L.Callback], *rest: Any) -> L.Trainer:
        return make(config, steps, [*callbacks, *([beside] if beside else [])], *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "make_trainer", accompanied)
        return train(config, prepare(config, video), folder=folder)


def same(a: DinoTracker, b: DinoTracker) -> bool:
    weights = [tracker.checkpoint()["state_dict"] for tracker in (a, b)]
    return all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())


def shares(folder: Path) -> dict[int, float]:
    """What was logged, by how many steps had been done."""
    return {int(row["step"]) + 1: float(row[SCORE]) for row in read_metrics(folder, 100) if row.get(SCORE)}


def prepared(video: Video) -> tuple[Store, DinoTrackerModule]:
    config = compose_config("fit", overrides=TINY)
    data = prepare(config, video)
    torch.manual_seed(0)
    return data.store, fitting.make_module(config, data.backbone)


@torch.no_grad()
@pytest.mark.parametrize("frames", [6, 3])
def test_the_share_is_that_of_single_points_followed_there_and_back(frames: int, video: Video) -> None:
    store, module = prepared(video)
    search = PairSearch(points_foreground=10, points_background=5, gamma=12.0)
    held_out = HeldOut(search, frames=frames, frame_pairs=3, seed=3)
    found = float(held_out.share(store, module.delta, module.head))
    every, own = 6 // frames, torch.Generator().manual_seed(3)
    features = refine_features(store.features, store.images, module.delta, every=every)
    factor, near = constant_scale(features.size), list[bool]()
    assert len(features) == frames
    for a, b in frame_pairs(frames, 3, own):
        for i, j in ((a, b), (b, a)):
            for xy in random_pixels(store.masks[::every][i], search, own):
                here, other = features.values[i], features.values[j]
                there = follow_features(here, other, features.grid, module.head, xy[None], factor)
                back = follow_features(other, here, features.grid, module.head, there, factor)[0]
                near.append(float((back - xy).norm()) <= 12.0 * factor)
    assert found == pytest.approx(sum(near) / len(near), abs=1e-6) and 0 < found < 1


def test_points_are_the_same_every_time_and_another_seed_has_others(video: Video) -> None:
    store, module = prepared(video)
    held_out = HeldOut(PairSearch(20, 10, gamma=12.0), frame_pairs=4)
    first = held_out.share(store, module.delta, module.head)
    torch.rand(7)
    assert held_out.share(store, module.delta, module.head) == first
    others = [HeldOut(held_out.search, frame_pairs=4, seed=n).share(store, module.delta, module.head) for n in range(3)]
    assert any(share != first for share in others)


def test_a_fit_that_is_not_stopped_is_the_same_to_the_bit(video: Video, tmp_path: Path) -> None:
    drawn = At(), At()
    plain = run(tmp_path / "plain", video, beside=drawn[0])
    watched = run(tmp_path / "watched", video, *NEVER, beside=drawn[1])
    assert same(plain, watched) and drawn[0].drawn == drawn[1].drawn
    found = shares(tmp_path / "watched")
    assert sorted(found) == [2, 4, 6, 8, 10] and all(0 <= share <= 1 for share in found.values())
    assert not shares(tmp_path / "plain")


@pytest.fixture(scope="module")
def stopped(video: Video, tmp_path_factory: pytest.TempPathFactory) -> tuple[DinoTracker, Path]:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    return run(folder, video, *SOON), folder


def test_a_fit_stops_after_so_many_checks_without_a_rise(stopped: tuple[DinoTracker, Path]) -> None:
    tracker, folder = stopped
    state = torch.load(folder / RESUME, weights_only=True)
    assert state["global_step"] == 8 and sorted(shares(folder)) == [2, 4, 6, 8]
    weights = tracker.checkpoint()["state_dict"]
    assert all(torch.equal(value, state["state_dict"][name]) for name, value in weights.items())


def test_a_fit_that_stopped_is_not_fitted_again(stopped: tuple[DinoTracker, Path], video: Video) -> None:
    count = At()
    assert same(run(stopped[1], video, *SOON, beside=count), stopped[0])
    assert count.steps == 0


def test_a_resumed_fit_stops_where_an_undisturbed_one_does(
    stopped: tuple[DinoTracker, Path], video: Video, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It was cut when the best share was known and one check had been waited for."""
    folder, count = tmp_path / "run", At()
    with pytest.raises(Stopped, match="at step 7 of 10"):
        run(folder, video, *SOON, beside=At(6, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with caplog.at_level(logging.INFO):
        assert same(run(folder, video, *SOON, beside=count), stopped[0])
    assert count.steps == 1 and shares(folder) == shares(stopped[1])
    assert "the fit ends at step 8 of 10: heldout/cycle_consistent has not risen above" in caplog.text


def test_a_check_before_the_start_is_only_logged(video: Video, tmp_path: Path) -> None:
    run(tmp_path / "run", video, *SOON, "callbacks.early_stopping.start=0.7")
    assert sorted(shares(tmp_path / "run")) == [2, 4, 6, 8, 10]


@pytest.mark.parametrize(
    ("make", "name"),
    [
        (lambda: StopEarly(every=0), "early stopping: every=0"),
        (lambda: StopEarly(patience=0), "early stopping: patience=0"),
        (lambda: HeldOut(frames=1), "held out: frames=1"),
        (lambda: HeldOut(frame_pairs=0), "held out: frame_pairs=0"),
    ],
)
def test_numbers_without_sense_are_refused(make: Any, name: str) -> None:
    with pytest.raises(DinotrackError, match=f"{name}: expected"):
        make()
