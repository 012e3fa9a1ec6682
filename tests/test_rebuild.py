"""When refined pairs are searched during a fit, what is handed on, and what a user is told when it never happens."""

import logging
import re
from typing import Any

import lightning as L
import pytest
import torch

from dinotrack import DinotrackError
from dinotrack.backbones import DenseSift
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.networks import DeltaDino
from dinotrack.optical_flow import Dis
from dinotrack.refined_pairs import PairSearch
from dinotrack.structs import PairTable
from dinotrack.training.batch import BatchSettings
from dinotrack.training.callbacks import RebuildPairs
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.losses import CycleLoss, FlowLoss, LossTerm, PriorLoss, RefinedBestBuddyLoss, Step
from dinotrack.training.modules import DinoTrackerModule
from dinotrack.training.rebuild import rebuilt_tables, searched_batch
from twins import benign_head

STEPS = 8


def make_data(every: int = 1) -> VideoDataModule:
    video = synthetic_clip(seed=1, frames=6, size=(64, 48), points=8).video
    batch = BatchSettings(flow_pairs=16, every=every)
    data = VideoDataModule(video, DenseSift(4), Dis(), resolution=64, batch=batch)
    data.setup("fit")
    return data


def make_module(**terms: LossTerm) -> DinoTrackerModule:
    torch.manual_seed(0)
    terms = terms or {"flow": FlowLoss(), "rfn": RefinedBestBuddyLoss(), "cycle": CycleLoss()}
    return DinoTrackerModule(DeltaDino(128, (4, 8)), benign_head(radius=100.0), terms)


def fit(data: VideoDataModule, module: DinoTrackerModule, *callbacks: L.Callback, steps: int = STEPS) -> None:
    quiet: dict[str, Any] = dict.fromkeys(
        ("logger", "enable_progress_bar", "enable_model_summary", "enable_checkpointing"), False
    )
    trainer = L.Trainer(max_steps=steps, accelerator="cpu", callbacks=list(callbacks), **quiet)
    trainer.fit(module, data)


class Watch(L.Callback):
    """What each step was given."""

    def __init__(self) -> None:
        self.refined, self.cycle, self.tables = list[int](), list[int](), list[PairTable]()

    def on_train_batch_start(self, trainer: L.Trainer, pl_module: L.LightningModule, batch: Any, *_: Any) -> None:
        self.refined.append(len(batch.refined))
        self.cycle.append(len(batch.cycle))
        self.tables.append(trainer.datamodule.store.refined)  # type: ignore[attr-defined]


@pytest.mark.parametrize(
    ("start", "every", "due"),
    [(0.5, 2, [4, 6]), (3, 3, [3, 6]), (0, 1, [0, 1, 2, 3, 4, 5, 6, 7]), (0, 5, [0, 5]), (1.0, 1, []), (7, 9, [7])],
)
def test_pairs_are_searched_from_start_on_at_every_interval(start: float, every: int, due: list[int]) -> None:
    callback, watch = RebuildPairs(start=start, every=every, frame_pairs=6), Watch()
    assert [step for step in range(20) if callback.due(step, STEPS)] == due
    fit(make_data(), make_module(), callback, watch)
    changed = [n for n in range(1, STEPS) if watch.tables[n] is not watch.tables[n - 1]]
    assert changed == [n for n in due if n > 0]
    assert [count > 0 for count in watch.refined] == [n >= (due[0] if due else STEPS) for n in range(STEPS)]


def test_the_table_of_a_step_serves_that_very_step() -> None:
    """Nothing is fetched ahead: the batch of step 4 already has pairs that were found before it."""
    watch = Watch()
    fit(make_data(), make_module(), RebuildPairs(start=4, frame_pairs=15), watch)
    assert watch.refined[:4] == watch.cycle[:4] == [0] * 4 and min(watch.refined[4:]) > 0


def test_tables_hold_shares_of_each_searched_frame_pair_in_both_directions() -> None:
    data, module, rng = make_data(every=2), make_module(), torch.Generator().manual_seed(0)
    before = [value.clone() for value in module.state_dict().values()]
    module.train()
    search, wanted = PairSearch(9, 5, gamma=1e6), {"refined", "cycle"}
    tables = rebuilt_tables(data.store, module.delta, module.head, search, rng, wanted, count=2, every=2)
    assert set(tables) == wanted and module.delta.training
    assert all(torch.equal(a, b) for a, b in zip(before, module.state_dict().values(), strict=True))
    for name, table in tables.items():
        between = {(int(i), int(j)) for i, j in table.searched.nonzero()}
        assert len(between) == 4 and all((j, i) in between for i, j in between)
        assert {t for pair in between for t in pair} <= {0, 2, 4}
        found = set(zip(table.source.tolist(), table.target.tolist(), strict=True))
        assert found == between
        for i, j in between:
            for foreground, most in ((True, 9), (False, 5)):
                rows = table.between(i, j, foreground)
                assert rows.stop - rows.start <= most
                if name == "cycle":  # candidates are plenty, and any error is let through
                    on = int(data.store.masks[i].sum() if foreground else (~data.store.masks[i]).sum())
                    assert rows.stop - rows.start == min(most, on)


def test_only_what_weighted_terms_read_is_searched() -> None:
    data = make_data()
    fit(data, make_module(rfn=RefinedBestBuddyLoss(), cycle=CycleLoss(weight=0.0)), RebuildPairs(frame_pairs=3))
    assert len(data.store.refined) > 0 and len(data.store.cycle) == 0
    assert make_module(flow=FlowLoss(), prior=PriorLoss()).losses.reads == set()


def test_the_module_brings_the_search_along_unless_the_trainer_has_one() -> None:
    data, module = make_data(), make_module()
    fit(data, module, steps=4)
    assert len(data.store.refined) > 0  # default: from half-way on
    mine = RebuildPairs(start=1.0)
    data = make_data()
    fit(data, module, mine, steps=4)
    assert [c for c in module.trainer.callbacks if isinstance(c, RebuildPairs)] == [mine]  # type: ignore[attr-defined]
    assert len(data.store.refined) == 0


def test_in_batch_pairs_are_found_in_the_steps_own_features() -> None:
    data, module, rng = make_data(), make_module(), torch.Generator().manual_seed(0)
    batch = data.store.draw(data.batch, rng)
    refined = module.delta.refine(batch.features, batch.images, batch.frames, batch.grid)
    found = searched_batch(batch, refined, module.head, PairSearch(9, 5, gamma=1e6), rng, {"refined", "cycle"})
    between = {(int(i), int(j)) for i, j in batch.frame_pairs}
    for pairs in (found.refined, found.cycle):
        assert set(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True)) == between
        assert not pairs.target_xy.requires_grad
    # The first half of the cycle loss is exactly 0 for pairs found in the same features (§4).
    step = Step(found, refined, module.head)
    assert torch.allclose(step.locate(found.cycle), found.cycle.target_xy, atol=1e-4)


def test_every_1_on_the_batchs_own_frame_pairs_fills_no_table() -> None:
    data, module = make_data(), make_module()
    losses: list[set[str]] = []

    class Terms(L.Callback):
        def on_train_batch_end(self, trainer: L.Trainer, *_: Any) -> None:
            losses.append({n for n, v in trainer.callback_metrics.items() if n.startswith("loss/") and float(v)})

    fit(data, module, RebuildPairs(start=4, every=1, frame_pairs="batch"), Terms())
    assert len(data.store.refined) == len(data.store.cycle) == 0
    assert all("loss/rfn" not in step for step in losses[:4])
    assert all({"loss/rfn", "loss/cycle"} <= step for step in losses[4:])


WRONG = [{"every": 0}, {"frame_pairs": 0}, {"frame_pairs": "batch", "every": 5}, {"frame_pairs": "all"}, {"chunk": 0}]


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("wrong", WRONG)
def test_intervals_without_sense_are_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises(DinotrackError, match="rebuild: "):
        RebuildPairs(**wrong)


def test_of_a_whole_fit_there_is_nothing_to_say(caplog: pytest.LogCaptureFixture) -> None:
    with caplog.at_level(logging.WARNING, "dinotrack"):
        fit(make_data(), make_module(), RebuildPairs())
    assert not caplog.records


@pytest.mark.parametrize(
    ("term", "callback", "words"),
    [
        (CycleLoss(start=500), RebuildPairs(), "losses.term has weight 0.5 but never counts in 8 steps: start=500"),
        (
            CycleLoss(),
            RebuildPairs(start=500),
            r"never counts in 8 steps: its pairs are never searched \(rebuild.start\)",
        ),
        (PriorLoss(start=1.0), RebuildPairs(), "losses.term has weight 0.0001 but never counts in 8 steps: start=1.0"),
    ],
)
def test_a_weighted_term_that_never_starts_is_named(
    term: LossTerm, callback: RebuildPairs, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, "dinotrack"):
        fit(make_data(), make_module(term=term, flow=FlowLoss()), callback)
    (record,) = caplog.records
    assert re.search(words, record.getMessage())


def test_a_loss_that_is_no_number_stops_the_fit_before_it_spoils_the_weights() -> None:
    class Broken(FlowLoss):
        def __call__(self, step: Any) -> torch.Tensor:
            return super().__call__(step) * (float("nan") if module.global_step == 3 else 1.0)

    module = make_module(flow=Broken(), prior=PriorLoss())
    with pytest.raises(DinotrackError, match=r"diverged at step 3: flow = nan; lower method\.module\.lr"):
        fit(make_data(), module)
    assert all(parameter.isfinite().all() for parameter in module.parameters())
