"""Optimisation as published (§5): Adam, the decay of its learning rates, precision."""

from pathlib import Path
from typing import Any, Literal

import lightning as L
import pytest
import torch

from dinotrack import DinotrackError
from dinotrack.backbones import DenseSift
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.networks import DeltaDino
from dinotrack.optical_flow import Dis
from dinotrack.training.batch import BatchSettings
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.modules import DinoTrackerModule
from twins import benign_head


def fit(tmp_path: Path, steps: int, callback: L.Callback, precision: Any = "32-true", **options: Any) -> None:
    video = synthetic_clip(seed=1, frames=4, size=(64, 48), points=8).video
    settings = BatchSettings(flow_pairs=16)
    data = VideoDataModule(video, DenseSift(4), Dis(), cache=tmp_path, resolution=64, batch=settings)
    module = DinoTrackerModule(DeltaDino(128, (4, 8)), benign_head(radius=100.0), **options)
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = L.Trainer(max_steps=steps, accelerator="cpu", callbacks=[callback], precision=precision, **quiet)
    trainer.fit(module, data)


class Rates(L.Callback):
    """Learning rates of both parts at each step, and how far Adam then moved their weights at most."""

    def __init__(self) -> None:
        self.rates: list[dict[str, float]] = []

    def on_before_optimizer_step(self, trainer: L.Trainer, _: Any, optimizer: torch.optim.Optimizer) -> None:
        assert isinstance(optimizer, torch.optim.Adam)
        self.rates.append({group["name"]: group["lr"] for group in optimizer.param_groups})


@pytest.mark.parametrize("part", ["delta", "refiner", "both"])
def test_a_part_decays_by_its_factor_every_so_many_steps(
    part: Literal["delta", "refiner", "both"], tmp_path: Path
) -> None:
    watch = Rates()
    fit(tmp_path, 7, watch, lr=0.02, decay=0.5, decay_every=3, decay_on=part)
    falling = [0.02 * 0.5 ** (step // 3) for step in range(7)]
    for name in ("delta", "refiner"):
        expected = falling if part in (name, "both") else [0.02] * 7
        assert [rates[name] for rates in watch.rates] == pytest.approx(expected)


def test_the_published_rates_are_the_default() -> None:
    module = DinoTrackerModule(DeltaDino(8, (2, 2)))
    assert [module.decayed(step) for step in (0, 39, 40, 79, 80, 9999)] == pytest.approx(
        [1, 1, 0.999, 0.999, 0.998001, 0.999**249]
    )


@pytest.mark.usefixtures("unguarded")
def test_another_part_is_refused() -> None:
    with pytest.raises(DinotrackError, match="decay_on='head' is none of 'delta', 'refiner', 'both'"):
        DinoTrackerModule(DeltaDino(8, (2, 2)), decay_on="head")  # type: ignore[arg-type]


def test_mixed_precision_keeps_positions_and_losses_in_float32(tmp_path: Path) -> None:
    seen: list[torch.dtype] = []
    maps: list[torch.dtype] = []

    class Types(L.Callback):
        def on_train_start(self, trainer: L.Trainer, pl_module: DinoTrackerModule) -> None:  # type: ignore[override]
            last = pl_module.delta.layers[-1]
            last.register_forward_hook(lambda part, inputs, _: seen.append(inputs[0].dtype) if part.training else None)
            pl_module.head.register_forward_pre_hook(lambda _, inputs: maps.append(inputs[0].dtype))

        def on_train_batch_end(self, trainer: L.Trainer, pl_module: L.LightningModule, outputs: Any, *_: Any) -> None:
            assert outputs["loss"].dtype == torch.float32 and outputs["loss"].isfinite()

    fit(tmp_path, 2, Types(), precision="bf16-mixed")
    assert seen == [torch.bfloat16] * 2  # the convolution before it ran in bf16; pairs are searched in float32
    assert set(maps) == {torch.float32}
