"""A run with no memory to spare is the run with all of it: what does not fit lies on disk, or on the host of a GPU."""

from dataclasses import fields, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from scripts import long_tracklets
from torch import Tensor

import dinotrack.cosines
import dinotrack.growing
import dinotrack.spilling
import dinotrack.training.modules
from dinotrack import cli
from dinotrack.correspondences import table_of
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.errors import DinotrackError
from dinotrack.evaluation import truth_of_clip
from dinotrack.geometry import look_up, resize_frames, resize_masks
from dinotrack.growing import Columns
from dinotrack.memory import Budget, held
from dinotrack.methods.dino_tracker import load_dino_tracker
from dinotrack.optical_flow import Dis
from dinotrack.preprocessing import working_frames, working_masks
from dinotrack.structs import Pairs, PairTable, Tracklets, Tracks
from dinotrack.tracklets import build_tracklets
from dinotrack.training.batch import Batch
from dinotrack.training.config import compose_config, make_module
from dinotrack.training.datamodules import VideoDataModule
from dinotrack.training.fit import prepare, train
from dinotrack.training.midway import score_module
from dinotrack.training.tracklet_table import TrackletTable

TINY = ["flow=dis", "backbone=dense_sift", "backbone.stride=4", "resolution=64", "device=cpu", "steps=4", "logger=none"]
TINY += ["method.batch.flow_pairs=16", "method.visibility.anchor=0.5"]
TINY += ["callbacks.rebuild.every=1", "callbacks.rebuild.frame_pairs=5", "callbacks.rebuild.search.gamma=1e5"]
DELTA = ["method.delta.hidden=[4,8]"]
LORA = ["refinement@method.delta=lora", "backbone=dinov2_vits14", "backbone.layer=2", "backbone.stride=14"]
LORA += ["backbone.pretrained=false", "resolution=84"]
CLIP = synthetic_clip(seed=1, frames=7, size=(64, 48), points=8)
QUERIES = torch.tensor([[0.0, 30, 20], [3, 10, 40], [6, 50, 24]])


@pytest.fixture
def files(monkeypatch: pytest.MonkeyPatch) -> list[Path]:
    """The folders of the unnamed files that are made."""
    made, make = list[Path](), dinotrack.spilling.unnamed_file

    def noted(folder: Path) -> Any:
        made.append(folder)
        return make(folder)

    monkeypatch.setattr(dinotrack.growing, "unnamed_file", noted)
    monkeypatch.setattr(dinotrack.spilling, "unnamed_file", noted)
    return made


def equal(one: Any, other: Any) -> bool:
    """Whether two structs hold the same, to the bit."""
    pairs = ((getattr(one, f.name), getattr(other, f.name)) for f in fields(one))
    return all(torch.equal(a, b) if isinstance(a, Tensor) else a == b for a, b in pairs)


def chain(folder: Path, *words: str) -> tuple[Tracks, Tracks, PairTable]:
    """Preprocess, fit and track; tracks of the tracker at once and from its checkpoint, and the pairs that the fit found."""
    config = compose_config("fit", overrides=[*TINY, f"cache_dir={folder}", *words])
    data = prepare(config, CLIP.video)
    tracker = train(config, data)
    tracker.save(folder / "tracker.ckpt")
    again = load_dino_tracker(folder / "tracker.ckpt", CLIP.video, cache=folder, budget=data.budget)
    return tracker.track(QUERIES), again.track(QUERIES), data.store.refined


@pytest.mark.usefixtures("three_blocks")
@pytest.mark.parametrize("words", [DELTA, LORA])
def test_a_bounded_chain_gives_the_same_tracks(
    words: list[str], tmp_path: Path, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    if words is LORA:
        pytest.importorskip("peft", reason="the extra dinotrack[lora] is not installed")
    every = partial(dinotrack.spilling.kept_on_disk, least=0)  # tensors of so small a fit, too
    monkeypatch.setattr(dinotrack.training.modules, "kept_on_disk", every)
    blocks, seen = dinotrack.cosines.by_blocks, list[int]()
    monkeypatch.setattr(dinotrack.cosines, "by_blocks", lambda *of: seen.append(of[2]) or blocks(*of))
    free = chain(tmp_path / "free", *words)
    assert files == [] and seen == [7]
    bounded = chain(tmp_path / "bounded", "memory_limit=1MB", *words)
    assert set(files) == {tmp_path / "bounded"} and len(files) >= 100 and seen == [7, 2]
    assert len(free[2]) > 50 and all(equal(one, other) for one, other in zip(free, bounded, strict=True))
    assert equal(bounded[0], bounded[1])


@pytest.mark.parametrize("drift", ["end", "drop"])
def test_bounded_tracklets_are_the_same(drift: Literal["end", "drop"], tmp_path: Path, files: list[Path]) -> None:
    flow, limits = Dis("fast"), {"gamma": 4.0, "gamma_long": 4.0, "drift": drift}
    free = build_tracklets(CLIP.video.frames, flow, **limits)
    assert files == [] and len(free) > 1000 and (free.length < free.chained).any() != bool(free.dropped.any())
    bounded = build_tracklets(CLIP.video.frames, flow, **limits, budget=Budget(1, tmp_path))
    # rows, first frames, lengths, first rows, positions, confirmed lengths, dropped positions
    assert set(files) == {tmp_path} and len(files) == (6 if drift == "end" else 7)
    assert equal(free, bounded) and not any(tmp_path.iterdir())
    counted = replace(free, rows=torch.zeros(0, dtype=torch.long)).offset
    assert torch.equal(free.rows, counted) and torch.equal(free.offset, counted)
    bounded.save(tmp_path / "tracklets.safetensors")
    assert equal(Tracklets.load(tmp_path / "tracklets.safetensors"), free)


@pytest.mark.slow
def test_many_tracklets_are_built_within_the_limit(tmp_path: Path) -> None:
    found = long_tracklets.build_short(tmp_path)
    assert found["positions"] > 1.4e7 and found["whole_mb"] > 1.5 * found["left_mb"]
    assert found["within"] and found["drawn_pairs"] == 100 * 2 * 256


@pytest.mark.parametrize("at_once", [1, 40, 10**6])
def test_bounded_tables_are_the_same(at_once: int, tmp_path: Path, files: list[Path]) -> None:
    rng = torch.Generator().manual_seed(0)
    source, target = torch.randint(0, 5, (2, 200), generator=rng)
    xy = torch.rand(2, 200, 2, generator=rng) * 40
    pairs = Pairs(source, target, xy[0], xy[1], torch.arange(200.0))
    masks, everywhere = torch.rand(5, 12, 16, generator=rng) > 0.5, torch.ones(5, 5, dtype=torch.bool)
    both = Pairs.cat([pairs, pairs.flip()])
    expected = PairTable.build(both, look_up(masks, both.source, both.source_xy, (40, 40)), everywhere)
    found = table_of(pairs, masks, (40, 40), everywhere, budget=Budget(1, tmp_path), at_once=at_once)
    assert equal(found, expected) and torch.equal(found.offsets, expected.offsets) and len(files) == 6
    assert equal(table_of(pairs, masks, (40, 40), everywhere), expected) and len(files) == 6
    none = table_of(Pairs.empty(), masks, (40, 40), everywhere, budget=Budget(1, tmp_path))
    assert len(none) == 0 and none.frames == 5


def test_columns_are_measured_by_their_rows_also_where_none_comes_first(tmp_path: Path, files: list[Path]) -> None:
    columns = Columns(1000, Budget(1, tmp_path))
    columns.add(source=torch.zeros(0, dtype=torch.long), xy=torch.zeros(0, 2))
    columns.add(source=torch.arange(1000), xy=torch.arange(2000.0).view(1000, 2))
    found = columns.done()
    assert len(files) == 2 and torch.equal(found["source"], torch.arange(1000)) and len(found["xy"]) == 1000
    assert columns.columns["xy"].budget.limit == 1
    half = Columns(
        10**6, Budget(held() + 100 * 10**6, tmp_path)
    )  # 16 MB of 100: more than a sixteenth, less than a half
    half.add(source=torch.zeros(0, dtype=torch.long), xy=torch.zeros(0, 2))
    assert half.columns["source"].budget.limit == 1


def test_tracklets_are_looked_up_some_at_a_time() -> None:
    tracklets = build_tracklets(CLIP.video.frames, Dis("fast"), gamma=4.0, gamma_long=4.0)
    masks = torch.rand(7, 48, 64, generator=torch.Generator().manual_seed(0)) > 0.5
    starts = tracklets.start.long()
    expected = look_up(masks, starts, tracklets.at(torch.arange(len(starts)), starts), (64, 48))
    for at_once in (100, 10**6):
        assert torch.equal(TrackletTable.of(tracklets, masks, (64, 48), at_once=at_once).foreground, expected)


def test_bounded_frames_and_masks_are_the_same(tmp_path: Path, files: list[Path]) -> None:
    tight, size = Budget(1, tmp_path), (56, 42)
    frames = working_frames(CLIP.video, 7, size=size)
    assert torch.equal(frames, resize_frames(CLIP.video.frames, size)) and files == []
    assert torch.equal(working_frames(CLIP.video, 7, size=size, budget=tight), frames) and len(files) == 1
    assert working_frames(CLIP.video, 7, size=(64, 48), budget=tight) is CLIP.video.frames
    masks = torch.rand(11, 6, 8, generator=torch.Generator().manual_seed(0)) > 0.5
    assert torch.equal(working_masks(masks, size, tight), resize_masks(masks, size)) and len(files) == 2
    assert working_masks(masks, (8, 6), tight) is masks and len(files) == 2


def test_unsorted_tracklets_are_refused() -> None:
    start, length = torch.tensor([1, 0], dtype=torch.int32), torch.tensor([2, 2], dtype=torch.int32)
    with pytest.raises(DinotrackError, match="sorted by their first frame"):
        Tracklets(start, length, length, torch.zeros(4, 2), (6, 4)).begun(3)


def test_networks_in_a_fit_are_scored_within_the_bound(tmp_path: Path, files: list[Path]) -> None:
    config = compose_config("fit", overrides=[*TINY, *DELTA, f"cache_dir={tmp_path}"])
    data, truth, scores = prepare(config, CLIP.video), truth_of_clip(CLIP), list[dict[str, float]]()
    module = make_module(config, data.backbone)
    for budget in (Budget(), Budget(1, tmp_path)):
        data.budget = budget
        scores.append(score_module(module, data, truth[:3]))
    assert scores[0] == scores[1] and files == [tmp_path]


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("word", ["memory_limit=lots", "features_on=cloud"])
def test_a_bound_without_sense_is_one_line(word: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folders = [f"cache_dir={tmp_path / 'cache'}", f"hydra.run.dir={tmp_path / 'run'}"]
    with pytest.raises(SystemExit) as caught:
        cli.main(["run", "experiment=tiny", *folders, word])
    lines = capsys.readouterr().err.strip().splitlines()
    assert caught.value.code == 2 and len(lines) == 1 and lines[0].startswith(f"dinotrack: {word}: ")
    assert not any(tmp_path.iterdir())


# --- features beside the device ---------------------------------------------------------------------------------------


def data_of(tmp_path: Path, device: str = "cpu", **budget: Any) -> VideoDataModule:
    config = compose_config("fit", overrides=[*TINY, *DELTA, f"cache_dir={tmp_path}"])
    data = prepare(config, CLIP.video)
    data.budget = Budget(folder=tmp_path, **budget)
    data.store = data.store.on(device, data.budget)
    return data


def test_all_but_the_features_goes_to_a_device_that_has_no_room_for_them(tmp_path: Path) -> None:
    """ "meta" stands for a device of its own."""
    store = data_of(tmp_path, "meta", features="host").store
    assert store.features.values.device.type == "cpu" and len(store.features) == 7
    assert store.images.is_meta and store.masks.is_meta
    for part in (store.flow.tracklets.xy, store.flow.foreground, store.best_buddies.source):
        assert part.device.type == "cpu"  # what is sampled
    assert data_of(tmp_path, "meta", features="device").store.features.values.device.type == "meta"


@pytest.mark.cuda
@pytest.mark.skipif(not torch.cuda.is_available(), reason="no CUDA device")
def test_on_a_gpu_features_on_the_host_give_the_same(tmp_path: Path) -> None:
    """Minibatches are the same to the bit; a fit and its tracks to what a GPU's order of additions allows."""
    batches, tracks = list[Batch](), list[Tracks]()
    for place in ("device", "host"):
        data = data_of(tmp_path, "cuda", features=place)
        assert data.store.features.values.is_cuda == (place == "device")
        batches.append(data.store.draw(data.batch, torch.Generator().manual_seed(0)))
        config = compose_config(
            "fit", overrides=[*TINY, *DELTA, "device=cuda", f"cache_dir={tmp_path}", f"features_on={place}"]
        )
        tracker = train(config, prepare(config, CLIP.video))
        assert tracker.features.values.is_cuda == (place == "device") and tracker.device.type == "cuda"
        tracks.append(tracker.track(QUERIES))
    assert batches[0].features.is_cuda and torch.equal(batches[0].features, batches[1].features)
    assert torch.equal(batches[0].flow.source_xy, batches[1].flow.source_xy)
    assert float((tracks[0].xy - tracks[1].xy).norm(dim=-1).median()) < 0.5
