"""Every fast path equals its plain reference; the harness writes rows and tables of what it timed."""

import copy
import json
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from benchmarks import reference, run, stages, throughput
from benchmarks.inputs import SIZES, Inputs, Size
from benchmarks.stages import STAGES, Stage, dense_chains, full_step

from dinotrack.correspondences import dino_best_buddies
from dinotrack.structs import Pairs
from dinotrack.trackers import FeatureTracker
from dinotrack.tracklets import build_tracklets
from dinotrack.training.batch import BatchSettings
from dinotrack.training.losses import LossTerms, Step
from dinotrack.training.modules import published_losses

TINY = Size(frames=6, height=70, width=350, channels=24, queries=12)  # wide enough for R to span two tokens


@pytest.fixture(scope="module")
def inputs() -> Inputs:
    return Inputs(TINY, torch.device("cpu"))


def test_tracklets(inputs: Inputs) -> None:
    scale = TINY.width / 854
    found = build_tracklets(inputs.frames, inputs.flow)
    dense = torch.full((len(found), TINY.frames, 2), torch.nan)
    for n, (start, length, row) in enumerate(zip(found.start, found.length, found.offset, strict=True)):
        dense[n, int(start) : int(start + length)] = found.xy[int(row) : int(row + length)]
    plain = reference.tracklets(inputs.frames, inputs.flow, 1.5 * scale, 2.5 * scale)
    assert plain.shape == dense.shape and len(found) > 1000
    assert torch.allclose(plain, dense, rtol=0, atol=1e-4, equal_nan=True)
    assert (found.length < found.chained).any() and (found.length == found.chained).any()


def test_best_buddies(inputs: Inputs) -> None:
    found = dino_best_buddies(inputs.features, inputs.tracklets)
    plain = reference.best_buddies(inputs.features, dense_chains(inputs), 60 * inputs.scale)
    forwards = Pairs.cat([pairs for pairs in plain if len(pairs) and int(pairs.source[0]) < int(pairs.target[0])])
    backwards = Pairs.cat([pairs for pairs in plain if len(pairs) and int(pairs.source[0]) > int(pairs.target[0])])
    assert len(found) > 20
    assert torch.equal(found.source_xy, forwards.source_xy) and torch.equal(found.target_xy, forwards.target_xy)
    assert torch.equal(found.source, forwards.source) and torch.equal(found.target, forwards.target)
    assert torch.allclose(found.weight, forwards.weight, rtol=1e-4, atol=1e-6)
    assert len(backwards) == len(forwards)  # the same pairs, read from the other end


def test_delta_dino(inputs: Inputs) -> None:
    delta, raw = inputs.delta.eval(), inputs.features
    with torch.no_grad():
        found = delta.refine(raw.values, inputs.frames, torch.arange(TINY.frames), raw.grid)
        plain = reference.delta_dino(delta, inputs.frames, raw)
    assert torch.allclose(found, plain, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("late", [False, True])
def test_a_training_step(late: bool, inputs: Inputs) -> None:
    """The loss and its gradients, full pair counts, both halves of the run.

    Delta-DINO has SiLU in place of ReLU here: of units that lie within rounding of a ReLU's kink two right ways of computing may
    take either side, and one such unit changes a gradient by more than 1e-5.
    """
    delta, head, batch = copy.deepcopy(inputs.delta).train(), inputs.head, inputs.batch
    for number, layer in enumerate(delta.layers):
        if isinstance(layer, torch.nn.ReLU):
            delta.layers[number] = torch.nn.SiLU()
    assert len(batch.flow) == 512 and len(batch.best_buddies) >= 5
    assert not late or (len(batch.refined) > 10 and len(batch.cycle) > 10)
    parameters = [*delta.parameters(), *head.parameters()]
    refined = delta.refine(batch.features, batch.images, batch.frames, batch.grid)
    ours, terms = LossTerms(published_losses())(Step(batch, refined, head), 7000 if late else 0, 10_000)
    gradients = torch.autograd.grad(ours, parameters)
    plain = reference.step_loss(batch, delta, head, late, inputs.scale)
    expected = torch.autograd.grad(plain, parameters)
    assert set(terms) == {"flow", "best_buddy", "prior"} | ({"refined_best_buddy", "cycle"} if late else set())
    assert float(ours.detach()) == pytest.approx(float(plain.detach()), rel=1e-5)
    largest = max(float(gradient.norm()) for gradient in expected)
    for found, wanted in zip(gradients, expected, strict=True):
        assert float((found - wanted).norm()) <= 1e-5 * largest


def test_a_step_waits_for_no_device(inputs: Inputs) -> None:
    """On the meta device, where whatever needs a value or a number of values from the device fails, as `.item()` and masks do."""
    delta, head = copy.deepcopy(inputs.delta).train().to("meta"), copy.deepcopy(inputs.head).to("meta")
    adam = torch.optim.Adam([*delta.parameters(), *head.parameters()])
    batch = inputs.store.to("meta").draw(BatchSettings(), torch.Generator().manual_seed(0))
    assert batch.features.is_meta and len(batch.refined) > 10 and len(batch.cycle) > 10
    refined = delta.refine(batch.features, batch.images, batch.frames, batch.grid)
    loss, terms = LossTerms(published_losses())(Step(batch, refined, head), 7000, 10_000)
    loss.backward()
    adam.step()
    assert len(terms) == 5 and all(value.is_meta for value in terms.values())
    for waiting in (loss.item, refined.nonzero, lambda: refined[refined > 0], refined.cpu):
        with pytest.raises((RuntimeError, NotImplementedError), match=r"(?i)meta"):
            waiting()


def test_tracks_and_visibility(inputs: Inputs) -> None:
    tool = FeatureTracker(inputs.features, inputs.head, (TINY.width, TINY.height))
    queries = inputs.queries
    frame = queries[:, 0].long()
    found = tool.positions(frame, queries[:, 1:])
    with torch.no_grad():
        plain = reference.tracks(inputs.features, inputs.head, queries, inputs.scale)
        assert torch.allclose(found, plain, rtol=0, atol=1e-4)
        visible, _ = tool.judge(frame, found)
        assert torch.equal(visible, reference.visible(inputs.features, inputs.head, queries, found, inputs.scale))
    assert 0.2 < visible.float().mean() < 1


@pytest.mark.parametrize("name", [name for name in STAGES if name not in ("features", "flow_raft", "whole_run")])
def test_every_stage_runs(name: str, inputs: Inputs) -> None:
    ours, plain = STAGES[name].make(inputs)
    ours()
    if plain is not None:
        plain()


@pytest.mark.slow
def test_the_whole_run(inputs: Inputs, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(stages.WHOLE_STEPS, "cpu", 2)
    tracks = STAGES["whole_run"].make(inputs)[0]()
    assert tracks.xy.shape == (12, 6, 2) and tracks.xy.isfinite().all()


def test_rows_and_table_are_kept_beside_those_of_other_stages(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(SIZES, "M", TINY)
    monkeypatch.setattr(run, "matrix_rate", lambda *_: 1e9)
    once = Stage("whole_run", "the video", lambda _: (torch.zeros(1).sum, None), once=True)
    monkeypatch.setitem(STAGES, "whole_run", once)
    for stage in ("whole_run", "tracks", "delta_dino"):
        run.main([stage, "--size", "M", "--repeats", "1", "--output", str(tmp_path)])
    *rows, whole = json.loads((tmp_path / "speed-M-cpu.json").read_text())
    assert [row["stage"] for row in rows] == ["delta_dino", "tracks"]
    assert whole["stage"] == "whole_run" and "gflop" not in whole
    for row in rows:
        assert row["seconds"] > 0 and row["ratio"] == pytest.approx(row["plain_seconds"] / row["seconds"])
        assert row["gflop"] > 0 and row["peak_mb"] > 0 and row["commit"] and row["matrix_gflops"] == 1
    text = (tmp_path / "speed-M-cpu.md").read_text()
    assert "| delta_dino | the video |" in text and "47.7" in text
    with pytest.raises(SystemExit):
        run.main(["nonsense"])
    assert "no stage 'nonsense'" in capsys.readouterr().err


def test_growth_is_a_line_and_an_exponent(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(SIZES, "S", TINY)
    monkeypatch.setattr(run, "GROWTH", (2, 4))
    row = run.growth("tracks", torch.device("cpu"), 1)
    assert row["frames"] == [2, 4] and len(row["seconds"]) == 2
    slope, offset = run.line((1, 2, 3), [3.0, 5.0, 7.0])
    assert (slope, offset) == pytest.approx((2, 1))


def test_without_late_losses_a_step_is_another(inputs: Inputs) -> None:
    """So that the two stages of the table are two."""
    small = replace(inputs, seed=3)
    assert full_step(small, late=False)[0]() != full_step(small, late=True)[0]()


def test_points_per_second_of_every_way_and_number_of_queries(inputs: Inputs, tmp_path: Path) -> None:
    rows = throughput.measured(inputs, (1, 3), repeats=1)
    assert [(row["queries"], row["method"]) for row in rows] == [
        (n, way) for n in (1, 3) for way in throughput.ways(inputs)
    ]
    assert all(row["points_per_second"] * row["seconds"] == pytest.approx(row["queries"] * TINY.frames) for row in rows)
    queries = throughput.random_queries(inputs, 5)
    tracks = {name: way(queries) for name, way in throughput.ways(inputs).items()}
    assert torch.equal(tracks["chrono"].xy[torch.arange(5), queries[:, 0].long()], queries[:, 1:])
    assert tracks["dino_tracker_positions"].shape == tracks["dino_tracker"].xy.shape == (5, TINY.frames, 2)
