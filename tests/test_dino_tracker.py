"""DINO-Tracker from given weights: refined features, and a checkpoint that comes back, or is refused by name."""

import errno
import os
import pickle
from dataclasses import replace
from pathlib import Path
from typing import Any

import lightning as L
import numpy as np
import pytest
import torch
from torch import Tensor, nn
from torch.utils.data import DataLoader

import dinotrack
import dinotrack.files
from dinotrack.backbones import DenseSift, extract_features
from dinotrack.cache import cache_entry
from dinotrack.data.video import save_video
from dinotrack.errors import DinotrackError
from dinotrack.methods.dino_tracker import (
    DinoTracker,
    assemble,
    describe,
    load_dino_tracker,
    read_checkpoint,
    refine_features,
)
from dinotrack.networks import DeltaDino
from dinotrack.structs import FeatureMap, Grid, Pairs, Video
from dinotrack.trackers import VisibilityRule
from dinotrack.training.batch import Batch
from dinotrack.training.modules import DinoTrackerModule
from twins import array, benign_head

SIZE, WORKING = (64, 48), (56, 42)


def make_video(seed: int = 0, **more: Any) -> Video:
    rng = torch.Generator().manual_seed(seed)
    rough = torch.rand(1, 3, 8, 14, generator=rng)
    wide = nn.functional.interpolate(rough, (48, 84), mode="bicubic").mul(255).clamp(0, 255).byte()[0]
    return Video(torch.stack([wide[:, :, 4 * t : 4 * t + 64] for t in range(4)]), **more)


def random_delta() -> DeltaDino:
    torch.manual_seed(0)
    delta = DeltaDino(128, hidden=(4, 4, 4))
    for module in delta.layers[-2:]:
        nn.init.normal_(module.weight, std=0.3)  # type: ignore[arg-type]
    return delta


def make_tracker(video: Video, delta: DeltaDino | None = None) -> DinoTracker:
    backbone, delta, head = DenseSift(), delta or random_delta(), benign_head(radius=15.0)
    frames = dinotrack.geometry.resize_frames(video.frames, WORKING)
    raw = extract_features(backbone, frames)
    rule = VisibilityRule(0.75, 0.5)
    about = describe(video, backbone, WORKING, delta, head, scale_constants=False, visibility=rule)
    return assemble(raw, frames, delta, head, about)


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Video:
    """A video with a file to its name."""
    path = tmp_path_factory.mktemp("video") / "clip.npy"
    return make_video(path=str(path), fps=12.5)


@pytest.fixture(scope="module")
def tracker(video: Video) -> DinoTracker:
    return make_tracker(video)


@pytest.fixture
def checkpoint(tracker: DinoTracker, tmp_path: Path) -> Path:
    path = tmp_path / "run" / "tracker.ckpt"
    tracker.save(path)
    return path


QUERIES = torch.tensor([[0.0, 30, 20], [1, 10, 40], [3, 64, 48], [2, 5.5, 7.25]])


def same_tracks(a: DinoTracker, b: DinoTracker) -> bool:
    first, second = a.track(QUERIES), b.track(QUERIES)
    names = ("queries", "xy", "visible", "confidence")
    assert (first.size, first.fps) == (second.size, second.fps)
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in names)


def test_refined_features_are_raw_ones_and_the_residual(rng: torch.Generator) -> None:
    delta = random_delta().train()
    raw = FeatureMap(torch.randn(5, 128, 6, 8, generator=rng).half(), 7.0, 3.5, WORKING)
    frames = torch.randint(0, 256, (5, 3, 42, 56), dtype=torch.uint8, generator=rng)
    statistics = {name: value.clone() for name, value in delta.state_dict().items()}
    found = refine_features(raw, frames, delta, chunk=2)
    assert delta.training and all(torch.equal(value, statistics[name]) for name, value in delta.state_dict().items())
    with torch.no_grad():
        residual = delta.eval()(frames.float() / 255, Grid(7.0, 3.5), 6, 8)
    assert residual.abs().max() > 0.1
    assert np.allclose(array(found.values.float()), array(raw.values.float()) + array(residual), atol=5e-3)
    assert found.values.dtype == torch.float16 and (found.grid, found.size) == (raw.grid, raw.size)
    other = refine_features(raw, frames, delta, every=2, chunk=2)
    assert torch.allclose(other.values, found.values[::2], atol=2e-3)


def test_without_dino_the_residual_stands_alone(rng: torch.Generator) -> None:
    delta = DeltaDino(8, (2, 2), zero_start=False, alone=True).eval()
    raw, images = torch.randn(2, 8, 6, 8, generator=rng), torch.randint(0, 256, (2, 3, 42, 56), dtype=torch.uint8)
    found = delta.refine(raw, images, torch.arange(2), Grid(7.0, 3.5))
    assert torch.equal(found, delta.refine(torch.zeros_like(raw), images, torch.arange(2), Grid(7.0, 3.5)))
    assert found.abs().max() > 1e-3 and found.std() > 0  # there is something to learn from


def test_without_a_fit_refined_features_are_the_raw_ones(video: Video, rng: torch.Generator) -> None:
    raw = FeatureMap(torch.randn(4, 8, 6, 8, generator=rng).half(), 7.0, 3.5, SIZE)
    assert torch.equal(refine_features(raw, video.frames, DeltaDino(8, (2, 2, 2))).values, raw.values)


def test_a_saved_tracker_comes_back_and_tracks_the_same(
    tracker: DinoTracker, checkpoint: Path, video: Video, tmp_path: Path
) -> None:
    loaded = load_dino_tracker(checkpoint, video, cache=tmp_path / "cache")
    assert same_tracks(tracker, loaded)
    assert (loaded.scale_constants, loaded.visibility, loaded.fps) == (False, VisibilityRule(0.75, 0.5), 12.5)
    assert loaded.head.radius == 15.0 and loaded.delta.settings == tracker.delta.settings
    loaded.save(tmp_path / "again.ckpt")  # and a loaded one can be saved
    assert same_tracks(tracker, load_dino_tracker(tmp_path / "again.ckpt", video, cache=tmp_path / "cache"))
    assert len(list((tmp_path / "cache").rglob("features-*"))) == 1


def test_a_checkpoint_is_small_plain_and_found_by_its_path(
    tracker: DinoTracker, checkpoint: Path, video: Video, session_cache: Path
) -> None:
    content = torch.load(checkpoint, weights_only=True)
    assert set(content) == {"state_dict", "dinotrack"}
    assert all(name.startswith(("delta.layers.", "head.cnn_refiner.")) for name in content["state_dict"])
    networks = sum(value.nbytes for value in content["state_dict"].values())
    assert checkpoint.stat().st_size < networks + 60_000  # no features
    np.save(video.path, video.frames.permute(0, 2, 3, 1).numpy())
    settings = {"backbone": DenseSift().settings, "size": [42, 56]}
    assert same_tracks(tracker, dinotrack.load_tracker(checkpoint, video))
    assert cache_entry(session_cache, video, "features", settings).path.exists()


def test_a_checkpoint_without_a_video_path_asks_for_the_video(tmp_path: Path, tracker: DinoTracker) -> None:
    nameless = make_tracker(make_video(), tracker.delta)
    nameless.save(tmp_path / "tracker.ckpt")
    with pytest.raises(DinotrackError, match="fitted to a video without a path; give the video"):
        dinotrack.load_tracker(tmp_path / "tracker.ckpt")


def test_the_video_is_read_again_from_the_path_in_the_checkpoint(tmp_path: Path, tracker: DinoTracker) -> None:
    save_video(make_video().frames, tmp_path / "clip.mp4", 12.5)
    video = dinotrack.load_video(tmp_path / "clip.mp4")
    written = make_tracker(video, tracker.delta)
    written.save(tmp_path / "tracker.ckpt")
    assert same_tracks(written, dinotrack.load_tracker(tmp_path / "tracker.ckpt"))


def test_another_video_is_refused_by_name(checkpoint: Path, video: Video) -> None:
    changed = video.frames.clone()
    changed[0, 0, 0, 0] ^= 1
    for other in (Video(changed, path="other.mp4"), replace(video[:3], path="other.mp4")):
        with pytest.raises(DinotrackError) as caught:
            load_dino_tracker(checkpoint, other)
        message = str(caught.value)
        for part in ("tracker.ckpt was fitted to", "clip.npy (4 frames of 64x48", "not to other.mp4", "fit again"):
            assert part in message
        assert video.content_hash[:12] in message and other.content_hash[:12] in message and "\n" not in message
    renamed = replace(video, path="renamed.mp4", fps=1.0)
    assert load_dino_tracker(checkpoint, renamed).frames == 4  # only its pixels count


def test_another_backbone_is_refused(checkpoint: Path, video: Video) -> None:
    with pytest.raises(DinotrackError, match=r"was fitted on backbone .*not "):
        load_dino_tracker(checkpoint, video, backbone=DenseSift(spatial_bin_size=3))
    assert load_dino_tracker(checkpoint, video, backbone=DenseSift()).frames == 4


class Bomb:
    """What unpickles to a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("by", ["torch", "pickle"])
def test_code_in_a_checkpoint_is_refused_and_not_run(by: str, tmp_path: Path, video: Video) -> None:
    path, trace = tmp_path / "tracker.ckpt", tmp_path / "was-here"
    content = {"state_dict": {}, "dinotrack": {"format": 1, "bomb": Bomb(trace)}}
    if by == "torch":
        torch.save(content, path)
    else:
        path.write_bytes(pickle.dumps(content, protocol=2))
    with pytest.raises(DinotrackError, match=r"tracker\.ckpt is not a readable checkpoint .*fit again"):
        load_dino_tracker(path, video)
    assert not trace.exists()


@pytest.mark.parametrize("keep", [0, 10, 1000, -20])
def test_a_damaged_checkpoint_is_refused(keep: int, checkpoint: Path) -> None:
    checkpoint.write_bytes(checkpoint.read_bytes()[:keep])
    with pytest.raises(DinotrackError, match=r"tracker\.ckpt is not a readable checkpoint"):
        read_checkpoint(checkpoint)


def test_what_is_no_checkpoint_is_refused(tmp_path: Path, tracker: DinoTracker, checkpoint: Path) -> None:
    with pytest.raises(DinotrackError, match="no checkpoint at"):
        read_checkpoint(tmp_path / "nowhere.ckpt")
    with pytest.raises(DinotrackError, match="no checkpoint at"):
        read_checkpoint(tmp_path)
    path = tmp_path / "other.ckpt"
    for content in ({"state_dict": {}}, [1, 2], torch.zeros(3), {"state_dict": {}, "dinotrack": 3}):
        torch.save(content, path)
        with pytest.raises(DinotrackError, match="holds no dinotrack tracker"):
            read_checkpoint(path)
    content = torch.load(checkpoint, weights_only=True)
    torch.save({**content, "dinotrack": {**content["dinotrack"], "format": 99}}, path)
    with pytest.raises(DinotrackError, match="checkpoint format 99, this version reads 1"):
        read_checkpoint(path)


@pytest.mark.parametrize("name", ["delta.layers.0.weight", "head.cnn_refiner.2.bias"])
def test_weights_that_do_not_fit_their_settings_are_refused(name: str, checkpoint: Path, video: Video) -> None:
    content = torch.load(checkpoint, weights_only=True)
    part = name.split(".")[0]
    for weights in (
        {**content["state_dict"], name: torch.zeros(7)},
        {key: value for key, value in content["state_dict"].items() if key != name},
    ):
        torch.save({**content, "state_dict": weights}, checkpoint)
        with pytest.raises(DinotrackError, match=f"is damaged: its {part} weights do not fit its settings"):
            load_dino_tracker(checkpoint, video)


def test_a_full_disk_leaves_the_last_checkpoint_alone(
    tracker: DinoTracker, checkpoint: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = checkpoint.read_bytes()

    def full(*_: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dinotrack.files.os, "replace", full)
    with pytest.raises(DinotrackError, match=r"cannot write .*tracker\.ckpt: No space left on device"):
        tracker.save(checkpoint)
    assert [p.name for p in checkpoint.parent.iterdir()] == ["tracker.ckpt"] and checkpoint.read_bytes() == before


def one_batch(tracker: DinoTracker, video: Video) -> Batch:
    nothing = Pairs.empty()
    pairs = Pairs(torch.tensor([0]), torch.tensor([1]), *torch.full((2, 1, 2), 20.0), torch.ones(1))
    frames = dinotrack.geometry.resize_frames(video.frames, WORKING)
    features = tracker.features
    masks, between = torch.ones(4, 42, 56, dtype=torch.bool), torch.tensor([[0, 1]])
    all_pairs = (pairs, nothing, nothing, nothing)
    return Batch(torch.arange(4), frames, features.values, *all_pairs, between, masks, features.grid, WORKING)


class Described(DinoTrackerModule):
    """The module with a description of its own, so that it needs no data module."""

    def on_fit_start(self) -> None:
        pass

    def configure_callbacks(self) -> list[L.Callback]:
        return []


def test_a_checkpoint_of_lightnings_trainer_loads_too(tracker: DinoTracker, video: Video, tmp_path: Path) -> None:
    module = Described(random_delta(), benign_head(radius=15.0))
    module.description = dict(tracker.settings)
    quiet: dict[str, Any] = dict.fromkeys(("logger", "enable_progress_bar", "enable_model_summary"), False)
    trainer = L.Trainer(max_steps=2, accelerator="cpu", enable_checkpointing=False, default_root_dir=tmp_path, **quiet)
    loader: DataLoader[Batch] = DataLoader([one_batch(tracker, video)] * 2, batch_size=None)  # type: ignore[arg-type]
    trainer.fit(module, loader)
    trainer.save_checkpoint(tmp_path / "last.ckpt")
    assert {"optimizer_states", "lr_schedulers"} <= read_checkpoint(tmp_path / "last.ckpt").keys()
    loaded = load_dino_tracker(tmp_path / "last.ckpt", video, cache=tmp_path / "cache")
    expected = make_tracker(video, module.delta)
    expected.head.load_state_dict(module.head.state_dict())
    assert same_tracks(loaded, expected) and not same_tracks(loaded, tracker)


def test_settings_and_weights_are_those_of_the_fit(tracker: DinoTracker, video: Video) -> None:
    about = tracker.settings
    assert about["video"] == {
        "path": video.path,
        "start": 0,
        "hash": video.content_hash,
        "frames": 4,
        "size": [64, 48],
        "max_side": None,
        "fps": 12.5,
    }
    assert (about["working_size"], about["backbone"]) == ([56, 42], DenseSift().settings)
    weights: dict[str, Tensor] = tracker.checkpoint()["state_dict"]
    assert torch.equal(weights["head.cnn_refiner.0.weight"], tracker.head.state_dict()["cnn_refiner.0.weight"])


def test_a_clip_of_a_video_is_found_again_by_its_first_frame(tmp_path: Path, tracker: DinoTracker) -> None:
    frames = make_video().frames
    save_video(torch.cat([frames, frames.flip(0)]), tmp_path / "clip.mp4", 12.5)
    written = make_tracker(dinotrack.load_video(tmp_path / "clip.mp4", start=3, stop=6), tracker.delta)
    written.save(tmp_path / "tracker.ckpt")
    assert dinotrack.load_tracker(tmp_path / "tracker.ckpt").settings["video"]["start"] == 3
