"""The cache's keys and its entries' fate, and preprocessing, which fills it."""

import errno
import logging
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

import dinotrack.files
import dinotrack.tensor_struct
from dinotrack.cache import Entry, build_or_load, cache_entry, default_cache
from dinotrack.correspondences import dino_best_buddies, saliency_masks
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import Masks
from dinotrack.files import temporary_beside
from dinotrack.geometry import look_up, resize_frames
from dinotrack.preprocessing import Preprocessed, Supervision, preprocess, working_frames
from dinotrack.sealed import forget_checks
from dinotrack.structs import FeatureMap, Grid, Pairs, Tracks, Video
from dinotrack.tracklets import build_tracklets

ENTRY = {"size": [56, 42], "gamma": 1.5}


class Colours:
    """A backbone of mean colours, that counts how often it is asked."""

    channels, stride, grid = 6, 7, Grid(7.0, 3.5)

    def __init__(self, layer: int = 1) -> None:
        self.settings: dict[str, Any] = {"kind": "colours", "layer": layer}
        self.calls = 0
        self.last: Colours | None = None

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        pooled = F.avg_pool2d(images - 0.5, 7)
        return torch.cat([pooled, pooled.square() * self.settings["layer"]], 1)

    def to(self, device: torch.device | str) -> "Colours":
        return self

    def final(self) -> "Colours":
        self.last = self.last or Colours(layer=12)
        return self.last


class Pan:
    """The flow of a scene that moves by a pixel a frame."""

    def __init__(self, step: float = 1.0, error: float = 0.0) -> None:
        self.settings: dict[str, Any] = {"kind": "pan", "step": step}
        self.step, self.error, self.calls = step, error, 0

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        self.calls += 1
        sign = 1.0 if self.number(source) < self.number(target) else -1.0
        flow = torch.zeros(len(source), 2, *source.shape[2:])
        flow[:, 0] = sign * self.step * abs(self.number(source) - self.number(target)) + self.error
        return flow

    def number(self, frames: Tensor) -> int:
        return int(frames[0, 0, 0, 0])

    def to(self, device: torch.device | str) -> "Pan":
        return self


def make_video(frames: int = 4, size: tuple[int, int] = (56, 42), seed: int = 0, **more: Any) -> Video:
    rng = torch.Generator().manual_seed(seed)
    pictures = torch.randint(0, 256, (frames, 3, size[1] // 7, size[0] // 7), generator=rng).float()
    pictures = F.interpolate(pictures, (size[1], size[0])).byte()
    pictures[:, :, :7, :7] = torch.arange(frames, dtype=torch.uint8)[:, None, None, None]  # the frame's number
    return Video(pictures, **more)


def run(video: Video, cache: Path, **more: Any) -> tuple[Preprocessed, Colours, Pan]:
    backbone, flow = more.pop("backbone", Colours()), more.pop("flow", Pan())
    return preprocess(video, backbone, flow, cache, resolution=more.pop("resolution", 56), **more), backbone, flow


def names(folder: Path) -> set[str]:
    return {path.name.split("-")[0] for path in folder.rglob("*.safetensors")}


def test_the_key_is_of_the_video_the_name_and_every_setting(tmp_path: Path) -> None:
    video = make_video()
    entries = [
        cache_entry(tmp_path, video, "tracklets", ENTRY),
        cache_entry(tmp_path, video, "features", ENTRY),
        cache_entry(tmp_path, video, "tracklets", {**ENTRY, "gamma": 1.6}),
        cache_entry(tmp_path, video, "tracklets", {**ENTRY, "more": None}),
        cache_entry(tmp_path, make_video(seed=1), "tracklets", ENTRY),
        cache_entry(tmp_path, video[:3], "tracklets", ENTRY),
    ]
    assert len({entry.path for entry in entries}) == len(entries)
    same = replace(video, path="elsewhere", fps=3.0)
    assert cache_entry(tmp_path, same, "tracklets", {"gamma": 1.5, "size": (56, 42)}) == entries[0]
    assert entries[0].path.name.startswith("tracklets-") and entries[0].path.parent.parent == tmp_path


def test_where_the_cache_lies(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("DINOTRACK_CACHE", str(tmp_path / "mine"))
    assert default_cache() == tmp_path / "mine"
    monkeypatch.setenv("DINOTRACK_CACHE", "")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "xdg"))
    assert default_cache() == tmp_path / "xdg" / "dinotrack"
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setenv("HOME", str(tmp_path))
    assert default_cache() == tmp_path / ".cache" / "dinotrack"


def entry_in(folder: Path, **settings: Any) -> Entry:
    return cache_entry(folder, make_video(), "pairs", settings)


class Builder:
    """Builds pairs and counts."""

    def __init__(self) -> None:
        self.calls = 0

    def __call__(self) -> Pairs:
        self.calls += 1
        xy = torch.rand(5, 2, generator=torch.Generator().manual_seed(0))
        return Pairs(torch.arange(5), torch.arange(5) + 1, xy, xy + 1, torch.ones(5))


def test_an_entry_is_built_once(tmp_path: Path) -> None:
    entry, build = entry_in(tmp_path / "a"), Builder()
    first, second = build_or_load(Pairs, entry, build), build_or_load(Pairs, entry, build)
    assert build.calls == 1 and torch.equal(first.source_xy, second.source_xy)


@pytest.mark.parametrize("damage", ["cut", "empty", "nonsense", "another struct", "a byte", "unsealed"])
def test_a_damaged_entry_is_named_and_built_again(
    damage: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    entry, build = entry_in(tmp_path), Builder()
    build_or_load(Pairs, entry, build)
    path, content = entry.path, entry.path.read_bytes()
    if damage == "another struct":
        Tracks(torch.zeros(0, 3), torch.zeros(0, 4, 2), torch.zeros(0, 4).bool(), torch.zeros(0, 4), (6, 4), 1.0).save(
            path
        )
    elif damage == "unsealed":  # as any other program writes them
        save_file({name: getattr(build(), name) for name in ("source", "target")}, path, metadata={"plain": "{}"})
        build.calls -= 2
    else:
        flipped = content[:-7] + bytes([content[-7] ^ 1]) + content[-6:]
        path.write_bytes({"cut": content[:-7], "empty": b"", "nonsense": b"\xff" * 200, "a byte": flipped}[damage])
    forget_checks()
    with caplog.at_level(logging.WARNING):
        again = build_or_load(Pairs, entry, build)
    assert build.calls == 2 and len(again) == 5
    assert Pairs.load(path).source_xy.equal(again.source_xy) and path.stat().st_size == len(content)
    assert "building again" in caplog.text and str(path) in caplog.text
    caplog.clear()
    build_or_load(Pairs, entry, build)
    assert build.calls == 2 and not caplog.text


def test_an_entry_of_another_version_is_built_again_in_its_place(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    before, build = entry_in(tmp_path), Builder()
    build_or_load(Pairs, before, build)
    monkeypatch.setattr(dinotrack.cache, "FORMAT", 99)
    with caplog.at_level(logging.WARNING):
        build_or_load(Pairs, entry_in(tmp_path), build)
        build_or_load(Pairs, entry_in(tmp_path), build)
    assert build.calls == 2 and len(list(tmp_path.rglob("*.safetensors"))) == 1
    [line] = caplog.messages
    assert f"format was {before.about['format']}, is 99" in line and "building again" in line


def test_an_entry_under_another_ones_name_is_not_taken_for_it(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    entry, build = entry_in(tmp_path, gamma=2.0), Builder()
    build_or_load(Pairs, entry_in(tmp_path, gamma=1.0), build)
    entry_in(tmp_path, gamma=1.0).path.rename(entry.path)
    build_or_load(Pairs, entry, build)
    assert build.calls == 2 and "settings.gamma was 1.0, is 2.0" in caplog.text


def test_other_settings_are_said_in_a_quiet_line(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    build = Builder()
    with caplog.at_level(logging.INFO):
        build_or_load(Pairs, entry_in(tmp_path, gamma=1.0, box=3), build)
        assert not caplog.messages
        build_or_load(Pairs, entry_in(tmp_path, gamma=2.0, box=4), build)
        build_or_load(Pairs, entry_in(tmp_path, gamma=2.0, box=3), build)
        build_or_load(Pairs, entry_in(tmp_path, gamma=2.0, box=3), build)
    assert [record.levelname for record in caplog.records] == ["INFO", "INFO"]
    assert "settings.box was 3, is 4; settings.gamma was 1.0, is 2.0" in caplog.messages[0]
    assert caplog.messages[1].count("was") == 1  # of the two that are there, one is nearer


def test_what_a_killed_builder_left_goes_when_the_entry_is_built(tmp_path: Path) -> None:
    entry = entry_in(tmp_path)
    entry.path.parent.mkdir(parents=True)
    ours = temporary_beside(entry.path)
    machine, number, _ = ours.stem.rsplit("-", 3)[1:]
    elsewhere = ours.with_name(ours.name.replace(f"-{machine}-{number}", "-abcdef-7"))
    other = ours.with_name(ours.name.replace(entry.path.stem, "other"))
    for path in (ours, elsewhere, other):
        path.write_bytes(b"half of it")
    build_or_load(Pairs, entry, Builder())
    assert {path.name for path in entry.path.parent.iterdir()} == {
        entry.path.name,
        entry.path.with_suffix(".lock").name,
        other.name,
    }


@pytest.mark.parametrize("failing", ["save_file", "replace"])
def test_a_full_disk_is_one_clear_line_and_leaves_no_file(
    failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr(dinotrack.tensor_struct if failing == "save_file" else dinotrack.files.os, failing, full)
    with pytest.raises(DinotrackError) as caught:
        build_or_load(Pairs, entry_in(tmp_path / "new"), Builder())
    assert "No space left on device; free space or choose another folder" in str(caught.value)
    assert "\n" not in str(caught.value) and not [
        path for path in tmp_path.rglob("*") if path.is_file() and path.stat().st_size
    ]


def test_preprocessing_is_its_parts_and_happens_once(tmp_path: Path) -> None:
    video, supervision = make_video(), Supervision(box=14.0, gamma=2.0, scale_constants=False)
    first, backbone, flow = run(video, tmp_path, supervision=supervision)
    assert backbone.calls > 0 and flow.calls > 0
    assert names(tmp_path) == {"features", "tracklets", "best_buddies", "saliency"}
    expected = (backbone(video.frames.float() / 255)).half()
    assert torch.equal(first.features.values, expected) and first.features.size == (56, 42)
    tracklets = build_tracklets(video.frames, Pan(), gamma=2.0, scale=False)
    assert torch.equal(first.tracklets.xy, tracklets.xy) and len(tracklets) > 100
    pairs = dino_best_buddies(first.features, tracklets, side=14.0, scale=False)
    assert sorted(first.best_buddies.weight.tolist()) == sorted(pairs.weight.tolist())
    final = FeatureMap(backbone.final()(video.frames.float() / 255).half(), 7.0, 3.5, (56, 42))
    assert torch.equal(first.masks, saliency_masks(final))
    table = first.best_buddies
    assert torch.equal(table.foreground, look_up(first.masks, table.source, table.source_xy, (56, 42)))

    second, backbone, flow = run(video, tmp_path, supervision=supervision)
    assert backbone.calls == flow.calls == 0 and backbone.final().calls == 0
    assert torch.equal(second.tracklets.xy, first.tracklets.xy) and torch.equal(second.masks, first.masks)
    assert torch.equal(second.best_buddies.weight, table.weight) and torch.equal(second.frames, first.frames)


@pytest.mark.parametrize(
    ("change", "built"),
    [
        ({"backbone": Colours(layer=2)}, {"features", "best_buddies"}),
        ({"flow": Pan(step=0.5)}, {"tracklets", "best_buddies"}),
        ({"supervision": Supervision(gamma=100.0)}, {"tracklets", "best_buddies"}),
        ({"supervision": Supervision(gamma=99.0, gamma_long=40.0)}, {"tracklets", "best_buddies"}),
        ({"supervision": Supervision(gamma=99.0, drift="drop")}, {"tracklets", "best_buddies"}),
        ({"supervision": Supervision(gamma=99.0, box=50.0)}, {"best_buddies"}),
        ({"supervision": Supervision(gamma=99.0, overlap=0.3)}, {"best_buddies"}),
        ({"supervision": Supervision(gamma=99.0, candidates=10)}, {"best_buddies"}),
        ({"supervision": Supervision(gamma=99.0, max_frame_pairs=2)}, {"best_buddies"}),
        ({"supervision": Supervision(gamma=99.0, scale_constants=False)}, {"tracklets", "best_buddies"}),
        ({"size": (56, 35)}, {"features", "tracklets", "best_buddies", "saliency"}),
    ],
)
def test_a_setting_rebuilds_what_depends_on_it(change: dict[str, Any], built: set[str], tmp_path: Path) -> None:
    video = make_video()
    run(video, tmp_path, supervision=Supervision(gamma=99.0))
    before = set(tmp_path.rglob("*.safetensors"))
    run(video, tmp_path, **{"supervision": Supervision(gamma=99.0), **change})
    new = set(tmp_path.rglob("*.safetensors")) - before
    assert {path.name.split("-")[0] for path in new} == built


def test_own_masks_are_taken_in_place_of_saliency(tmp_path: Path) -> None:
    masks = torch.zeros(4, 42, 56, dtype=torch.bool)
    masks[:, :, 28:] = True
    done, backbone, _ = run(make_video(masks=masks), tmp_path, supervision=Supervision(gamma=99.0))
    assert torch.equal(done.masks, masks) and backbone.last is None
    assert "saliency" not in names(tmp_path)
    assert torch.equal(done.best_buddies.foreground, done.best_buddies.source_xy[:, 0] >= 28)


def test_a_backbone_of_last_layer_tokens_is_asked_once(tmp_path: Path) -> None:
    backbone = Colours(layer=12)
    done, _, _ = run(make_video(), tmp_path, backbone=backbone, supervision=Supervision(gamma=99.0))
    assert backbone.last is not None and backbone.last.calls == 0
    assert torch.equal(done.masks, saliency_masks(done.features))


def test_a_video_that_no_flow_connects_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DinotrackError, match=r"no optical-flow tracklet found in clip\.mp4"):
        run(make_video(path="clip.mp4"), tmp_path, flow=Pan(error=50.0))


def test_working_frames_have_the_asked_size() -> None:
    video = make_video(size=(112, 70))
    assert working_frames(video, 7, 56).shape == (4, 3, 35, 56)
    assert torch.equal(working_frames(video, 7, size=(63, 49)), resize_frames(video.frames, (63, 49)))
    assert working_frames(video, 7, 112) is video.frames


def test_flow_sees_frames_on_the_device_of_the_run(tmp_path: Path) -> None:
    """A flow network on the GPU needs its frames there; what comes back is on the CPU."""

    class Picky(Pan):
        def __init__(self) -> None:
            super().__init__()
            self.device = torch.device("cpu")

        def __call__(self, source: Tensor, target: Tensor) -> Tensor:
            assert source.device.type == target.device.type == self.device.type
            return super().__call__(source, target).to(self.device)

        def to(self, device: torch.device | str) -> "Pan":
            self.device = torch.device(device)
            return self

    device = "cuda" if torch.cuda.is_available() else "cpu"
    done, _, flow = run(make_video(), tmp_path, flow=Picky(), device=device, supervision=Supervision(gamma=99.0))
    assert isinstance(flow, Picky) and flow.device.type == device
    assert done.tracklets.xy.device.type == done.best_buddies.source.device.type == "cpu"


def test_the_key_has_the_flows_settings_on_the_device_of_the_run(tmp_path: Path) -> None:
    """RAFT has another precision on a GPU."""

    class Exacting(Pan):
        def to(self, device: torch.device | str) -> "Pan":
            return Pan(step=0.5)

    run(make_video(), tmp_path, flow=Exacting(), supervision=Supervision(gamma=99.0))
    _, _, flow = run(make_video(), tmp_path, flow=Pan(step=0.5), supervision=Supervision(gamma=99.0))
    assert flow.calls == 0


def test_masks_are_saved_like_any_struct(tmp_path: Path) -> None:
    masks = Masks(torch.rand(2, 3, 4) > 0.5)
    masks.save(tmp_path / "m.safetensors")
    assert torch.equal(Masks.load(tmp_path / "m.safetensors").values, masks.values)
