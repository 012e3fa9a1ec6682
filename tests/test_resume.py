"""A fit that was stopped at any step goes on in its folder, and ends as if nothing had happened."""

import csv
import os
import signal
import subprocess
import sys
import threading
from functools import partial
from pathlib import Path
from typing import Any

import lightning as L
import pytest
import torch

import dinotrack.spilling
import dinotrack.training.fit as fitting
import dinotrack.training.modules
from dinotrack import DinotrackError, Video
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.errors import Stopped
from dinotrack.methods.dino_tracker import DinoTracker
from dinotrack.signals import Interrupted, StopSignals, raised
from dinotrack.training.batch import Store
from dinotrack.training.config import compose_config
from dinotrack.training.fit import prepare, train
from dinotrack.training.stopping import RESUME

TINY = ["flow=dis", "backbone=dense_sift", "backbone.stride=4", "resolution=64", "device=cpu", "steps=8"]
TINY += ["method.delta.hidden=[4,8]", "method.batch.flow_pairs=16", "trainer.log_every_n_steps=1"]
TINY += ["callbacks.rebuild.every=2", "callbacks.rebuild.frame_pairs=3", "callbacks.rebuild.search.gamma=1e5"]
TINY += ["checkpoint_every=3"]


@pytest.fixture(scope="module")
def video() -> Video:
    return synthetic_clip(seed=1, frames=6, size=(64, 48), points=8).video


class Meddle(L.Callback):
    """Does something after a step."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def on_before_optimizer_step(self, trainer: L.Trainer, *_: Any) -> None:
        if trainer.global_step == self.step:
            self.act()


def run(
    folder: Path, video: Video, *overrides: str, meddle: L.Callback | None = None, cache: Path | None = None
) -> DinoTracker:
    """A fit in `folder`, as the commands make it; what comes before it is read from the cache after the first."""
    elsewhere = [f"cache_dir={cache}"] if cache else []
    settings = [*TINY, *elsewhere, "resume=true", *overrides]
    config = compose_config("fit", overrides=settings)
    make = fitting.make_trainer

    def meddled(config: Any, steps: int, callbacks: list[L.Callback], *rest: Any) -> L.Trainer:
        return make(config, steps, [*callbacks, *([meddle] if meddle else [])], *rest)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(fitting, "make_trainer", meddled)
        return train(config, prepare(config, video), folder=folder)


def same(a: DinoTracker, b: DinoTracker) -> bool:
    """Networks, and the refined features, to the bit."""
    weights = [tracker.checkpoint()["state_dict"] for tracker in (a, b)]
    equal = all(torch.equal(value, weights[1][name]) for name, value in weights[0].items())
    return equal and torch.equal(a.features.values, b.features.values)


def metrics(folder: Path) -> list[dict[str, str]]:
    """What is logged of each step, but for seconds and memory; when a table was rebuilt, Lightning repeats its size in rows of
    its own choice."""
    with open(folder / "metrics.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    other = ("pairs/", "speed/", "memory/")
    return [{name: value for name, value in row.items() if value and not name.startswith(other)} for row in rows]


@pytest.fixture(scope="module")
def undisturbed(video: Video, tmp_path_factory: pytest.TempPathFactory) -> tuple[DinoTracker, Path]:
    folder = tmp_path_factory.mktemp("undisturbed") / "run"
    return run(folder, video), folder


def fail() -> None:
    raise RuntimeError("out of luck")


@pytest.mark.parametrize("step", [2, 3, 5, 7])  # before the first saving, and before and after the first rebuild
def test_after_an_exception_a_fit_ends_as_if_undisturbed(
    step: int, undisturbed: tuple[DinoTracker, Path], video: Video, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="out of luck"):
        run(folder, video, meddle=Meddle(step, fail))
    assert (folder / RESUME).exists() == (step >= 3)
    assert same(run(folder, video), undisturbed[0])
    assert metrics(folder) == metrics(undisturbed[1])


@pytest.mark.parametrize("step", [3, 5])
def test_a_fit_with_no_memory_to_spare_goes_on_as_if_undisturbed(
    step: int, undisturbed: tuple[DinoTracker, Path], video: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a step takes is measured anew then, so that other tensors lie on disk."""
    every = partial(dinotrack.spilling.kept_on_disk, least=0)
    monkeypatch.setattr(dinotrack.training.modules, "kept_on_disk", every)
    folder = tmp_path / "run"
    with pytest.raises(RuntimeError, match="out of luck"):
        run(folder, video, "memory_limit=1MB", meddle=Meddle(step, fail))
    assert same(run(folder, video, "memory_limit=1MB"), undisturbed[0])
    assert metrics(folder) == metrics(undisturbed[1])


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_a_fit_between_two_steps(
    number: signal.Signals, undisturbed: tuple[DinoTracker, Path], video: Video, tmp_path: Path
) -> None:
    folder, before = tmp_path / "run", [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)]
    with pytest.raises(Stopped, match=rf"{number.name} at step 5 of 8.*resume=true goes on") as caught:
        run(folder, video, meddle=Meddle(4, lambda: os.kill(os.getpid(), number)))
    assert caught.value.exit_code == 128 + number
    assert torch.load(folder / RESUME, weights_only=True)["global_step"] == 5  # the step was finished
    assert [signal.getsignal(n) for n in (signal.SIGTERM, signal.SIGINT)] == before
    assert same(run(folder, video), undisturbed[0])
    assert metrics(folder) == metrics(undisturbed[1])


def test_a_signal_while_a_batch_is_drawn_waits_for_the_step(
    undisturbed: tuple[DinoTracker, Path], video: Video, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    draw, drawn = Store.draw, list[int]()

    def interrupted(self: Store, *arguments: Any) -> Any:
        drawn.append(1)
        if len(drawn) == 5:  # of step 4, one past the last saving
            os.kill(os.getpid(), signal.SIGTERM)
        return draw(self, *arguments)

    monkeypatch.setattr(Store, "draw", interrupted)
    with pytest.raises(Stopped, match="at step 5 of 8"):
        run(tmp_path / "run", video)
    assert torch.load(tmp_path / "run" / RESUME, weights_only=True)["global_step"] == 5
    assert same(run(tmp_path / "run", video), undisturbed[0])


def test_a_signal_in_the_last_step_stops_what_would_follow(
    undisturbed: tuple[DinoTracker, Path], video: Video, tmp_path: Path
) -> None:
    with pytest.raises(Stopped, match="at step 8 of 8"):
        run(tmp_path / "run", video, meddle=Meddle(7, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert same(run(tmp_path / "run", video), undisturbed[0])


def test_what_draws_from_torchs_random_numbers_goes_on_with_the_same(video: Video, tmp_path: Path) -> None:
    """Dropout of a LoRA fit, for one: the loader must not take a number that an undisturbed run would not."""
    drawn: list[float] = []

    class Draws(Meddle):
        def on_before_optimizer_step(self, trainer: L.Trainer, *rest: Any) -> None:
            drawn.append(float(torch.rand(())))
            super().on_before_optimizer_step(trainer, *rest)

    run(tmp_path / "whole", video, meddle=Draws(-1, fail))
    whole = drawn.copy()
    drawn.clear()
    with pytest.raises(Stopped):
        run(tmp_path / "run", video, meddle=Draws(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    run(tmp_path / "run", video, meddle=Draws(-1, fail))
    assert drawn == whole and len(whole) == 8


def test_a_fit_without_the_configs_rebuild_resumes_at_a_rebuilding_step(video: Video, tmp_path: Path) -> None:
    none = ["~callbacks.rebuild", "checkpoint_every=4"]  # the module's own search, from step 4 on
    settings = [word for word in TINY if not word.startswith("callbacks")]
    with pytest.MonkeyPatch.context() as patch:
        patch.setitem(globals(), "TINY", settings)
        whole = run(tmp_path / "whole", video, *none)
        with pytest.raises(RuntimeError):
            run(tmp_path / "run", video, *none, meddle=Meddle(4, fail))
        assert same(run(tmp_path / "run", video, *none), whole)


def test_a_diverged_fit_does_not_overwrite_what_can_be_resumed(video: Video, tmp_path: Path) -> None:
    class Spoil(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, *_: Any) -> None:
            if trainer.global_step == 6:
                next(pl_module.parameters()).data.fill_(float("nan"))

    with pytest.raises(DinotrackError, match=r"diverged .*lower method\.module\.lr"):
        run(tmp_path / "run", video, meddle=Spoil())  # type: ignore[arg-type]
    kept = torch.load(tmp_path / "run" / RESUME, weights_only=True)
    assert kept["global_step"] <= 6 and all(value.isfinite().all() for value in kept["state_dict"].values())


def test_a_fit_may_be_stopped_again_and_again(
    undisturbed: tuple[DinoTracker, Path], video: Video, tmp_path: Path
) -> None:
    folder = tmp_path / "run"
    for step in (1, 4, 6):
        with pytest.raises(Stopped):
            run(folder, video, meddle=Meddle(step, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert same(run(folder, video), undisturbed[0])


def test_the_published_way_of_searching_resumes_too(video: Video, tmp_path: Path) -> None:
    published = ["callbacks.rebuild.every=1", "callbacks.rebuild.frame_pairs=batch"]
    whole, folder = run(tmp_path / "whole", video, *published), tmp_path / "run"
    with pytest.raises(Stopped):
        run(folder, video, *published, meddle=Meddle(5, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    assert same(run(folder, video, *published), whole)


def test_two_runs_are_equal_to_the_bit_and_a_seed_changes_them(
    undisturbed: tuple[DinoTracker, Path], video: Video, tmp_path: Path
) -> None:
    assert same(run(tmp_path / "again", video, "resume=false"), undisturbed[0])
    assert not same(run(tmp_path / "other", video, "seed=1"), undisturbed[0])


def test_after_a_fit_signals_do_what_they_did_before(video: Video, tmp_path: Path) -> None:
    numbers = (signal.SIGTERM, signal.SIGINT)
    before = [signal.getsignal(number) for number in numbers]
    assert before[0] == signal.SIG_DFL
    run(tmp_path / "run", video, "steps=1")
    with pytest.raises(RuntimeError, match="out of luck"):
        run(tmp_path / "other", video, "steps=1", meddle=Meddle(0, fail))
    assert [signal.getsignal(number) for number in numbers] == before


def test_a_signal_after_the_last_saving_stops_what_follows(video: Video, tmp_path: Path) -> None:
    class Late(L.Callback):
        def on_train_end(self, *_: Any) -> None:
            os.kill(os.getpid(), signal.SIGTERM)

    with raised(), pytest.raises(Interrupted):
        run(tmp_path / "run", video, "steps=1", meddle=Late())  # type: ignore[arg-type]


def test_a_finished_fit_is_not_fitted_again(
    undisturbed: tuple[DinoTracker, Path], video: Video, tmp_path: Path
) -> None:
    tracker, folder = undisturbed
    assert same(run(folder, video, meddle=Meddle(7, fail), cache=tmp_path / "cache"), tracker)


def test_without_resume_a_fit_starts_anew(video: Video, tmp_path: Path) -> None:
    with pytest.raises(Stopped):
        run(tmp_path / "run", video, meddle=Meddle(4, lambda: os.kill(os.getpid(), signal.SIGTERM)))
    with pytest.raises(RuntimeError, match="out of luck"):
        run(tmp_path / "run", video, "resume=false", meddle=Meddle(0, fail))


def test_other_settings_are_refused_by_name(
    undisturbed: tuple[DinoTracker, Path], video: Video, tmp_path: Path
) -> None:
    folder, cache = undisturbed[1], tmp_path / "cache"
    for change, words in (
        ("losses.flow.weight=3", r"losses\.flow\.weight was 1\.0, is 3"),
        ("steps=9", "steps was 8, is 9"),
        ("callbacks.rebuild.every=3", r"callbacks\.rebuild\.every was 2, is 3"),
        ("backbone.spatial_bin_size=3", "backbone.spatial_bin_size was 4, is 3"),
    ):
        with pytest.raises(DinotrackError, match=words + r".*give the same settings, or another folder for the run"):
            run(folder, video, change, cache=cache)
    with pytest.raises(DinotrackError, match="video was"):
        run(folder, Video(video.frames.flip(0), masks=video.masks), cache=cache)


def test_a_damaged_state_is_named(video: Video, tmp_path: Path) -> None:
    (tmp_path / "run").mkdir()
    for content in (b"", b"no checkpoint"):
        (tmp_path / "run" / RESUME).write_bytes(content)
        with pytest.raises(DinotrackError, match=r"cannot resume from .*resume\.ckpt .*delete it to start again"):
            run(tmp_path / "run", video)


def test_a_second_signal_is_not_held_back(monkeypatch: pytest.MonkeyPatch) -> None:
    sent: list[int] = []
    monkeypatch.setattr("dinotrack.signals.os.kill", lambda _, number: sent.append(number))
    before, signals = signal.getsignal(signal.SIGTERM), StopSignals()
    signals.install()
    signals.note(signal.SIGTERM, None)
    assert (signals.received, sent) == (signal.SIGTERM, [])
    signals.note(signal.SIGTERM, None)
    assert sent == [signal.SIGTERM] and signal.getsignal(signal.SIGTERM) == before


def test_signals_are_left_alone_outside_the_main_thread() -> None:
    before, signals = signal.getsignal(signal.SIGTERM), StopSignals()
    thread = threading.Thread(target=signals.install)
    thread.start()
    thread.join()
    assert signal.getsignal(signal.SIGTERM) == before and signals.before == {}


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_a_compiled_fit_is_the_same_fit(tmp_path: Path) -> None:
    """torch.compile changes the last bits, not the method; its checkpoint has the same names. In processes without type checks.

    Adam steps by the learning rate whatever a gradient's size, so that a few weights, of hardly any gradient, go the other way.
    """
    found = []
    for on in ("false", "true"):
        words = ["fit", "experiment=tiny", "steps=3", f"compile={on}", f"hydra.run.dir={tmp_path / on}"]
        command = [sys.executable, "-m", "dinotrack", *words, f"cache_dir={tmp_path / 'cache'}"]
        subprocess.run(command, check=True, capture_output=True)
        found.append(torch.load(tmp_path / on / "tracker.ckpt", weights_only=True)["state_dict"])
    assert found[0].keys() == found[1].keys()
    apart = torch.cat([(value.float() - found[1][name].float()).abs().flatten() for name, value in found[0].items()])
    assert (
        apart < 1e-3
    ).float().mean() > 0.95 and apart.max() < 2 * 3 * 0.01 + 1e-3  # three steps of lr=0.01, either way
