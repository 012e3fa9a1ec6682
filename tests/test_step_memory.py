"""What a training step takes beside what it keeps is measured once, so that all of it stays below a limit."""

import tempfile
from pathlib import Path

import pytest
import torch
from scripts import long_step

import dinotrack.spilling
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.geometry import resize_frames
from dinotrack.memory import Budget, give_back_freed, held
from dinotrack.structs import FeatureMap
from dinotrack.training.batch import Batch
from dinotrack.training.config import compose_config
from dinotrack.training.fit import checked, prepare, train
from dinotrack.training.modules import DinoTrackerModule
from dinotrack.training.probing import full_batch, train_step
from dinotrack.training.step_memory import MORE, StepMemory


def test_a_step_is_measured_once_for_each_kind() -> None:
    memory = StepMemory()
    assert memory.reserve("early", 4) is None
    with memory.measured("early"):
        kept = torch.ones(25_000_000)
    assert len(kept) and 0.9e8 < (first := memory.reserve("early", 4)) / MORE < 1.5e8
    with memory.measured("early"):
        kept = torch.ones(50_000_000)
    assert memory.reserve("early", 4) == memory.reserve("early", 2) == first
    assert memory.reserve("early", 6) == pytest.approx(1.5 * first) and memory.reserve("late", 4) is None


def test_a_fit_measures_each_set_of_losses(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """And leaves so much of memory free."""
    reserves, make = list[float | None](), dinotrack.spilling.Spilling.__init__

    def noted(self: object, budget: Budget, least: int, reserve: float | None) -> None:
        reserves.append(reserve)
        make(self, budget, least, reserve)

    monkeypatch.setattr(dinotrack.spilling.Spilling, "__init__", noted)
    words = ["logger=none", f"cache_dir={tmp_path}", "steps=6", "resolution=64", "callbacks.rebuild.every=3"]
    config = compose_config("fit", "tiny", [*words, "method.batch.every=1"])
    train(config, prepare(config, synthetic_clip(0, 4, (64, 48)).video))
    assert [reserve is None for reserve in reserves] == [
        True,
        False,
        False,
        True,
        False,
        False,
    ]  # late losses from 3 on
    assert all(reserve is None or reserve > 1e6 for reserve in reserves)


def setting(size: tuple[int, int] = (320, 240)) -> tuple[DinoTrackerModule, Batch]:
    """Networks and a minibatch of three frames, whose step keeps about 100 MB for its backward pass."""
    config = compose_config("fit", "tiny", ["logger=none", f"resolution={size[0]}", "backbone.stride=7"])
    config.method.delta.hidden = [16, 32, 64, 128]
    data, module = checked(config, synthetic_clip(0, 3, size).video)
    images = resize_frames(data.video.frames, data.working_size)
    with torch.no_grad():
        values = data.backbone(images.float() / 255).half()
    features = FeatureMap(values, data.backbone.grid.stride, data.backbone.grid.offset, data.working_size)
    return module, full_batch(features, images, 3, data.batch)


@pytest.mark.slow
def test_a_step_stays_below_a_limit_that_has_room_for_a_part_of_it() -> None:
    module, batch = setting()
    folder = Path(tempfile.gettempdir())
    least, whole = (train_step(module, batch, budget) for budget in (Budget(1, folder), None))
    assert whole.bytes > 1.3 * least.bytes and least.disk > 1e8
    for reserve, part in ((None, 0.5), (MORE * least.bytes, 0.9), (MORE * least.bytes, 0.5), (MORE * least.bytes, 0.2)):
        give_back_freed()
        room = (1 - part) * least.bytes + part * whole.bytes
        step = train_step(module, batch, Budget(held() + room, folder), reserve)
        assert step.bytes < room, (reserve, part)
        assert reserve is None or part < 0.9 or step.disk < least.disk


@pytest.mark.slow
def test_steps_stay_below_a_limit_beside_what_a_long_fit_holds(tmp_path: Path) -> None:
    """The short form of `python -m scripts.long_step`."""
    found = long_step.short_steps(tmp_path)
    assert found["within"] and found["written_mb"][0] > found["written_mb"][1] > 0
    assert found["before_mb"] < min(found["peaks_mb"])
