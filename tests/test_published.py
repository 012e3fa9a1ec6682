"""Checkpoints of the published code: every name of §9, there and back to the last bit, and whatever else is refused by name."""

import logging
import os
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from dinotrack.backbones import DenseSift
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import video_features
from dinotrack.methods.dino_tracker import DinoTracker, assemble, describe, load_dino_tracker
from dinotrack.methods.published import (
    export_checkpoint,
    export_networks,
    export_published,
    import_published,
    load_published,
    read_published,
)
from dinotrack.networks import DeltaDino, Refinement, TrackerHead
from dinotrack.preprocessing import working_frames
from dinotrack.structs import Grid, Video
from dinotrack.trackers import FeatureTracker
from twins import benign_head

SIZE, WORKING = (128, 96), (112, 84)
HIDDEN = (4, 3, 5)
QUERIES = torch.tensor([[0.0, 30, 20], [1, 10, 70], [3, 128, 96], [2, 55.5, 37.25], [2, 0, 0]])
Weights = dict[str, Tensor]


def blur(channels: int) -> Tensor:
    taps = torch.tensor([1.0, 3.0, 3.0, 1.0])
    return (taps[:, None] * taps / 64).repeat(channels, 1, 1, 1)


def published_delta(channels: int = 1024, hidden: tuple[int, ...] = (64, 128, 256), seed: int = 0) -> Weights:
    """Random weights under the names and shapes of §9."""
    rng = torch.Generator().manual_seed(seed)
    weights, before = {}, 3
    for block, after in enumerate([*hidden, channels]):
        bound = 1 / (5 * before**0.5)
        weights[f"layers.{4 * block}.weight"] = torch.randn(after, before, 5, 5, generator=rng) * bound
        weights[f"layers.{4 * block}.bias"] = torch.randn(after, generator=rng) * 0.1
        weights[f"layers.{4 * block + 1}.weight"] = torch.rand(after, generator=rng) + 0.5
        weights[f"layers.{4 * block + 1}.bias"] = torch.randn(after, generator=rng) * 0.1
        weights[f"layers.{4 * block + 1}.running_mean"] = torch.randn(after, generator=rng) * 0.1
        weights[f"layers.{4 * block + 1}.running_var"] = torch.rand(after, generator=rng) + 0.5
        weights[f"layers.{4 * block + 1}.num_batches_tracked"] = torch.tensor(10000)
        if block < len(hidden):
            weights[f"layers.{4 * block + 3}.filt"] = blur(after)
        before = after
    return weights


def published_head() -> Weights:
    return {name: value.detach() for name, value in benign_head().state_dict().items()}


def write(folder: Path, delta: Weights, head: Weights, iteration: int = 10000) -> Path:
    folder.mkdir(parents=True, exist_ok=True)
    torch.save(delta, folder / f"delta_dino_{iteration}.pt")
    torch.save(head, folder / f"tracker_head_{iteration}.pt")
    return folder


def make_video() -> Video:
    rng = torch.Generator().manual_seed(0)
    rough = torch.rand(1, 3, 16, 28, generator=rng)
    wide = nn.functional.interpolate(rough, (96, 168), mode="bicubic").mul(255).clamp(0, 255).byte()[0]
    return Video(torch.stack([wide[:, :, 5 * t : 5 * t + 128] for t in range(4)]), fps=12.5, path="clip.mp4")


@pytest.fixture(scope="module")
def video() -> Video:
    return make_video()


@pytest.fixture(scope="module")
def backbone() -> DenseSift:
    """At a stride at which Ω has several tokens on these small frames, so that the refiner counts."""
    return DenseSift(stride=3)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return write(tmp_path / "models", published_delta(128, HIDDEN), published_head())


def same_tracks(a: FeatureTracker, b: FeatureTracker) -> bool:
    first, second = a.track(QUERIES), b.track(QUERIES)
    return all(torch.equal(getattr(first, name), getattr(second, name)) for name in ("xy", "visible", "confidence"))


def same_files(a: Weights, b: Weights) -> bool:
    return list(a) == list(b) and all(a[name].dtype == b[name].dtype and torch.equal(a[name], b[name]) for name in a)


SHAPES = {
    "layers.0.weight": (64, 3, 5, 5),
    "layers.4.weight": (128, 64, 5, 5),
    "layers.8.weight": (256, 128, 5, 5),
    "layers.12.weight": (1024, 256, 5, 5),
    "layers.3.filt": (64, 1, 4, 4),
    "layers.7.filt": (128, 1, 4, 4),
    "layers.11.filt": (256, 1, 4, 4),
    **{f"layers.{4 * block}.bias": (after,) for block, after in enumerate((64, 128, 256, 1024))},
    **{
        f"layers.{4 * block + 1}.{name}": shape
        for block, after in enumerate((64, 128, 256, 1024))
        for name, shape in {
            **dict.fromkeys(("weight", "bias", "running_mean", "running_var"), (after,)),
            "num_batches_tracked": (),
        }.items()
    },
}
HEAD_SHAPES = {
    "cnn_refiner.0.weight": (16, 1, 3, 3),
    "cnn_refiner.0.bias": (16,),
    "cnn_refiner.2.weight": (1, 16, 3, 3),
    "cnn_refiner.2.bias": (1,),
}


class Wide:
    """A backbone of as many channels as the published one's."""

    channels, stride, grid = 1024, 14, Grid(14.0, 7.0)
    settings: dict[str, Any] = {"kind": "wide"}  # noqa: RUF012
    calls = 0

    def __call__(self, images: Tensor) -> Tensor:
        self.calls += 1
        cells = nn.functional.avg_pool2d(images, 14)
        return torch.cat([cells.repeat(1, 341, 1, 1), cells[:, :1]], 1).cos()

    def to(self, device: torch.device | str) -> "Wide":
        return self

    def final(self) -> "Wide":
        return self


def test_the_published_files_have_these_names_shapes_and_types_there_and_back(tmp_path: Path, video: Video) -> None:
    delta, head = published_delta(), published_head()
    folder = write(tmp_path / "theirs", delta, head)
    tracker = load_published(folder, video, Wide(), size=(112, 84), cache=tmp_path / "cache")
    assert sum(p.numel() for p in tracker.delta.parameters()) == 7_586_816
    assert sum(p.numel() for p in tracker.head.parameters()) == 305
    written = export_published(tracker, tmp_path / "ours")
    assert [path.name for path in written] == ["delta_dino_10000.pt", "tracker_head_10000.pt"]
    assert sorted(path.name for path in (tmp_path / "ours").iterdir()) == [path.name for path in written]
    found = [torch.load(path, weights_only=True) for path in written]
    for weights, shapes, original in zip(found, (SHAPES, HEAD_SHAPES), (delta, head), strict=True):
        assert {name: tuple(value.shape) for name, value in weights.items()} == shapes
        counters = {name for name, value in weights.items() if value.dtype == torch.int64}
        assert counters == {name for name in shapes if name.endswith("num_batches_tracked")}
        assert all(value.dtype == torch.float32 for name, value in weights.items() if name not in counters)
        assert weights.keys() == original.keys() and all(torch.equal(weights[name], original[name]) for name in weights)
    tracks = tracker.track(QUERIES)
    assert tracks.xy.isfinite().all() and tracks.xy.shape == (5, 4, 2)


def test_published_weights_are_read_as_the_published_code_does(folder: Path, video: Video, backbone: DenseSift) -> None:
    tracker = load_published(folder, video, backbone, size=WORKING)
    assert tracker.delta.settings["alignment"] == "published" and tracker.delta.offset == 0.5  # type: ignore[attr-defined]
    assert (tracker.head.fallback, tracker.head.peak, tracker.head.radius) == ("published", "similarity", 35.0)
    assert (tracker.visibility.anchor, tracker.visibility.visible, tracker.shift) == (0.7, 0.6, 0.0)
    assert tracker.features.size == WORKING and not tracker.delta.training
    content = import_published(folder, video, backbone)
    assert content["dinotrack"]["working_size"] == [854, 476]  # whatever the video's size


def ours(video: Video, backbone: DenseSift, hidden: tuple[int, ...] = HIDDEN, **more: Any) -> DinoTracker:
    """A tracker of ours, assembled without any file."""
    torch.manual_seed(3)
    delta = DeltaDino(128, hidden, zero_start=False, gain=0.5)
    head = benign_head(fallback="published", **more)
    frames = working_frames(video, backbone.stride, size=WORKING)
    raw = video_features(video, frames, backbone, Path(os.environ["DINOTRACK_CACHE"]))
    return assemble(raw, frames, delta, head, describe(video, backbone, WORKING, delta, head))


@pytest.mark.parametrize("options", [{}, {"hidden": (4, 6)}, {"hidden": (2,)}])
def test_an_exported_tracker_comes_back_with_the_same_tracks(
    options: dict[str, Any], tmp_path: Path, video: Video, backbone: DenseSift
) -> None:
    tracker = ours(video, backbone, **options)
    export_published(tracker, tmp_path / "a", 500)
    loaded = load_published(tmp_path / "a", video, backbone, size=WORKING)
    assert same_tracks(tracker, loaded)
    export_published(loaded, tmp_path / "b", 500)
    for name in ("delta_dino_500.pt", "tracker_head_500.pt"):
        assert same_files(*(torch.load(tmp_path / at / name, weights_only=True) for at in "ab"))
    swapped = (tmp_path / "a" / "delta_dino_500.pt", tmp_path / "other.pt")
    torch.save({name: value.flip(0) for name, value in published_head().items()}, tmp_path / "other.pt")
    assert not same_tracks(tracker, load_published(swapped, video, backbone, size=WORKING))  # the head counts
    with torch.no_grad():
        weights = loaded.delta.state_dict()
        torch.save({name: value.flip(0) for name, value in weights.items()}, tmp_path / "other.pt")
    swapped = (tmp_path / "other.pt", tmp_path / "a" / "tracker_head_500.pt")
    assert not same_tracks(tracker, load_published(swapped, video, backbone, size=WORKING))  # and Delta-DINO


def test_another_width_of_the_head_goes_there_and_back(tmp_path: Path) -> None:
    delta, head = DeltaDino(8, (2, 2)), TrackerHead(hidden=5)
    export_networks(delta, head, tmp_path)
    _, found = read_published(tmp_path)
    assert found.settings["hidden"] == 5
    assert same_files(dict(head.state_dict()), dict(found.state_dict()))


def test_an_imported_tracker_is_saved_as_a_checkpoint_of_ours(
    folder: Path, video: Video, backbone: DenseSift, tmp_path: Path
) -> None:
    for index_positions in (False, True):
        options: dict[str, Any] = {"size": WORKING, "index_positions": index_positions}
        tracker = load_published(folder, video, backbone, **options)
        tracker.save(tmp_path / "saved.ckpt")
        torch.save(import_published(folder, video, backbone, **options), tmp_path / "imported.ckpt")
        for name in ("saved.ckpt", "imported.ckpt"):
            loaded = load_dino_tracker(tmp_path / name, video)
            assert same_tracks(tracker, loaded) and loaded.shift == tracker.shift == 0.5 * index_positions
            assert loaded.settings == tracker.settings


def test_an_import_computes_no_features(tmp_path: Path, video: Video) -> None:
    backbone = Wide()
    import_published(write(tmp_path, published_delta(1024, (2, 2)), published_head()), video, backbone)
    assert backbone.calls == 0


def test_positions_are_pixel_indices_inside_when_asked(folder: Path, video: Video, backbone: DenseSift) -> None:
    """x - 0.5 on the way in, + 0.5 on the way out, in pixels of the working frames."""
    plain = load_published(folder, video, backbone, size=WORKING)
    shifted = load_published(folder, video, backbone, size=WORKING, index_positions=True)
    half = torch.tensor([0.5 * SIZE[0] / WORKING[0], 0.5 * SIZE[1] / WORKING[1]])
    inner = QUERIES[[0, 1, 3]]
    moved = inner.clone()
    moved[:, 1:] -= half
    expected, found = plain.track(moved), shifted.track(inner)
    assert torch.allclose(found.xy, expected.xy + half, atol=1e-3)
    assert torch.equal(found.visible, expected.visible)
    assert torch.allclose(found.confidence, expected.confidence, atol=1e-4)
    unmoved = plain.track(inner)
    assert (found.xy - unmoved.xy).abs().max() > 0.1  # it is no empty option
    whole = shifted.track(QUERIES)  # the frame's corners are queries too
    rows, frames = torch.arange(len(QUERIES)), QUERIES[:, 0].long()
    assert torch.equal(whole.xy[rows, frames], QUERIES[:, 1:]) and whole.visible[rows, frames].all()


def test_a_checkpoint_from_before_the_shift_has_none(
    folder: Path, video: Video, backbone: DenseSift, tmp_path: Path
) -> None:
    content = import_published(folder, video, backbone, size=WORKING)
    assert content["dinotrack"].pop("shift") == 0.0
    torch.save(content, tmp_path / "old.ckpt")
    assert same_tracks(
        load_dino_tracker(tmp_path / "old.ckpt", video), load_published(folder, video, backbone, size=WORKING)
    )


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_other_precisions_become_float32(dtype: torch.dtype, tmp_path: Path) -> None:
    delta, head = published_delta(16, HIDDEN), published_head()
    written = [{name: value.to(dtype) for name, value in weights.items()} for weights in (delta, head)]
    found = read_published(write(tmp_path, *written))
    for network, weights, original in zip(found, written, (delta, head), strict=True):
        state = network.state_dict()
        assert same_files(dict(state), {name: weights[name].to(original[name].dtype) for name in original})
        assert all(value.dtype in (torch.float32, torch.int64) for value in state.values())


def test_safetensors_and_single_files_are_read_too(tmp_path: Path) -> None:
    delta, head = published_delta(16, HIDDEN), published_head()
    files = (tmp_path / "delta_dino_7.safetensors", tmp_path / "tracker_head_7.safetensors")
    for path, weights in zip(files, (delta, head), strict=True):
        save_file(weights, path)
    for source in (tmp_path, str(tmp_path), files):
        networks = read_published(source)
        for network, weights in zip(networks, (delta, head), strict=True):
            assert same_files({name: network.state_dict()[name] for name in weights}, weights)


def bias(networks: tuple[DeltaDino, TrackerHead]) -> list[float]:
    delta, head = (network.state_dict() for network in networks)
    return [float(delta["layers.0.bias"][0]), float(head["cnn_refiner.2.bias"])]


def test_the_latest_iteration_is_found_by_number_and_others_by_name(tmp_path: Path) -> None:
    for iteration in (9, 10, 2500, 10000):
        delta, head = published_delta(4, (2, 2)), published_head()
        delta["layers.0.bias"][0] = head["cnn_refiner.2.bias"][0] = iteration
        write(tmp_path, delta, head, iteration)
    torch.save({}, tmp_path / "delta_dino_best.pt")
    torch.save({}, tmp_path / "old_delta_dino_20000.pt")
    assert bias(read_published(tmp_path)) == [10000, 10000]
    assert bias(read_published(tmp_path, 9)) == [9, 9]
    with pytest.raises(
        DinotrackError, match=r"has no delta_dino_5\.pt and no tracker_head_5\.pt; .*: 9, 10, 2500, 10000"
    ):
        read_published(tmp_path, 5)
    (tmp_path / "tracker_head_10000.pt").unlink()
    with pytest.raises(
        DinotrackError, match=r"has no tracker_head_10000\.pt; iterations with both files: 9, 10, 2500$"
    ):
        read_published(tmp_path)  # half a checkpoint is not passed over without a word
    assert bias(read_published(tmp_path, 2500)) == [2500, 2500]
    (tmp_path / "empty").mkdir()
    for nothing in (tmp_path / "empty", tmp_path / "nowhere", tmp_path / "delta_dino_9.pt"):
        with pytest.raises(DinotrackError, match=rf"no delta_dino_<iteration>\.pt .* in {re.escape(str(nothing))}"):
            read_published(nothing)
    with pytest.raises(DinotrackError, match="cannot read checkpoint"):
        read_published((tmp_path / "delta_dino_9.pt", tmp_path / "tracker_head_10000.pt"))


def without(name: str) -> Callable[[Weights], Weights]:
    return lambda weights: {key: value for key, value in weights.items() if key != name}


def with_(name: str, value: Tensor) -> Callable[[Weights], Weights]:
    return lambda weights: {**weights, name: value}


sharp = torch.zeros(4, 1, 4, 4)
sharp[:, :, 1, 1] = 1
BROKEN: list[tuple[Callable[[Weights], Weights], str]] = [
    (without("layers.4.weight"), r"missing: layers\.4\.weight; give"),
    (without("layers.9.running_var"), r"missing: layers\.9\.running_var; give"),
    (without("layers.3.filt"), r"missing: layers\.3\.filt; give"),
    (with_("layers.2.weight", torch.ones(4)), r"unexpected: layers\.2\.weight; give"),
    (with_("norm.weight", torch.ones(4)), r"unexpected: norm\.weight; give"),
    (
        with_("layers.0.weight", torch.ones(4, 3, 3, 3)),
        r"layers\.0\.weight \(4, 3, 3, 3\) in place of \(4, 3, 5, 5\); give",
    ),
    (with_("layers.12.bias", torch.ones(7)), r"shape: layers\.12\.bias \(7,\) in place of \(16,\); give"),
    (
        with_("layers.7.filt", torch.ones(3, 1, 3, 3)),
        r"shape: layers\.7\.filt \(3, 1, 3, 3\) in place of \(3, 1, 4, 4\); give",
    ),
    (with_("layers.3.filt", sharp), r"another filter than .*/64: layers\.3\.filt; give"),
    (with_("layers.13.bias", torch.full((16,), torch.nan)), r"not finite: layers\.13\.bias; give"),
    (
        with_("layers.0.bias", torch.ones(4, dtype=torch.int8)),
        r"kind: layers\.0\.bias torch\.int8 in place of torch\.float32",
    ),
    (lambda _: {"a": torch.ones(2)}, r"missing: layers\.0\.weight, .*; unexpected: a; give"),
]


@pytest.mark.parametrize(("change", "message"), BROKEN)
def test_every_name_shape_and_filter_is_checked(
    change: Callable[[Weights], Weights], message: str, tmp_path: Path
) -> None:
    delta = published_delta(16, HIDDEN)
    read_published(write(tmp_path, delta, published_head()))
    write(tmp_path, change(delta), published_head())
    with pytest.raises(
        DinotrackError, match=rf"delta_dino_10000\.pt is no DeltaDino as published: .*{message}"
    ) as caught:
        read_published(tmp_path)
    assert "\n" not in str(caught.value)


def test_the_head_is_checked_as_well(tmp_path: Path) -> None:
    delta, head = published_delta(16, HIDDEN), published_head()
    for broken, message in (
        (without("cnn_refiner.2.bias")(head), r"missing: cnn_refiner\.2\.bias; give"),
        (with_("cnn_refiner.2.weight", torch.ones(1, 8, 3, 3))(head), r"\(1, 8, 3, 3\) in place of \(1, 16, 3, 3\)"),
        (delta, r"missing: cnn_refiner\.0\.weight, .*; unexpected: layers\.0\.weight"),
    ):
        write(tmp_path, delta, broken)
        with pytest.raises(
            DinotrackError, match=rf"tracker_head_10000\.pt is no TrackerHead as published: .*{message}"
        ):
            read_published(tmp_path)


def test_a_file_of_something_else_is_refused_before_networks_of_its_widths_are_made(tmp_path: Path) -> None:
    weights = {f"layers.{n}.weight": torch.ones(2**12, 1) for n in range(100)}
    write(tmp_path, weights, published_head())
    with pytest.raises(DinotrackError, match=r"as published: missing: .* and \d+ more; unexpected: ") as caught:
        read_published(tmp_path)
    assert len(str(caught.value)) < 10_000


class Bomb:
    """What unpickles to a command."""

    def __init__(self, target: Path) -> None:
        self.target = target

    def __reduce__(self) -> tuple[Any, ...]:
        return os.mkdir, (str(self.target),)


@pytest.mark.parametrize("name", ["delta_dino_10000.pt", "tracker_head_10000.pt"])
def test_what_is_more_than_tensors_is_refused_and_not_run(name: str, folder: Path, tmp_path: Path) -> None:
    trace, path = tmp_path / "was-here", folder / name
    content = torch.load(path, weights_only=True)
    torch.save({**content, "bomb": Bomb(trace)}, path)
    with pytest.raises(DinotrackError, match=rf"{name}"):
        read_published(folder)
    assert not trace.exists()
    torch.save({**content, "iteration": 3}, path)
    with pytest.raises(DinotrackError, match=rf"{name} holds more than named tensors"):
        read_published(folder)
    path.write_bytes(path.read_bytes()[:-30])
    with pytest.raises(DinotrackError, match=rf"cannot read checkpoint .*{name}"):
        read_published(folder)


def test_a_backbone_of_other_channels_and_too_small_a_size_are_refused(
    folder: Path, video: Video, backbone: DenseSift
) -> None:
    with pytest.raises(DinotrackError, match=r"features of 128 channels, .*'wide'.* have 1024; give the backbone"):
        load_published(folder, video, Wide(), size=WORKING)
    with pytest.raises(DinotrackError, match=r"features of 128 channels, .*'wide'.* have 1024; give the backbone"):
        import_published(folder, video, Wide())
    with pytest.raises(DinotrackError, match="frames of 32x84 are too small"):
        load_published(folder, video, backbone, size=(32, 84))
    with pytest.raises(DinotrackError, match="frames of 84x32 are too small"):
        import_published(folder, video, backbone, size=(84, 32))


class Other(Refinement):
    """An ablation in place of Delta-DINO."""


def broken_delta() -> DeltaDino:
    delta = DeltaDino(8, (2, 2))
    nn.init.constant_(delta.layers[0].weight, torch.inf)  # type: ignore[arg-type]
    return delta


@pytest.mark.parametrize(
    ("delta", "head", "message"),
    [
        (
            DeltaDino(8, (2, 2), alignment="centred"),
            TrackerHead(),
            "alignment=centred, .*method.delta.alignment=published",
        ),
        (DeltaDino(8, (2, 2), alone=True), TrackerHead(), "without DINO"),
        (Other(), TrackerHead(), "refined by Other, published files hold Delta-DINO"),
        (DeltaDino(8, (2, 2)), TrackerHead(refine=False), "refine=false"),
        (broken_delta(), TrackerHead(), r"not finite: layers\.0\.weight"),
    ],
)
def test_what_the_published_code_would_misread_is_not_exported(
    delta: Refinement, head: TrackerHead, message: str, tmp_path: Path
) -> None:
    with pytest.raises(DinotrackError, match=f"cannot be exported: .*{message}"):
        export_networks(delta, head, tmp_path / "new")
    assert not (tmp_path / "new").exists()


def test_a_checkpoint_is_exported_without_its_video(tmp_path: Path, video: Video, backbone: DenseSift) -> None:
    tracker, path = ours(video, backbone), tmp_path / "tracker.ckpt"
    tracker.save(path)
    written = export_checkpoint(path, tmp_path / "a", 7)
    assert [file.name for file in written] == ["delta_dino_7.pt", "tracker_head_7.pt"]
    for file, expected in zip(written, export_published(tracker, tmp_path / "b", 7), strict=True):
        assert same_files(torch.load(file, weights_only=True), torch.load(expected, weights_only=True))
    content = tracker.checkpoint()
    content["dinotrack"] = {**content["dinotrack"], "delta": {"kind": "lora", "rank": 8}}
    torch.save(content, path)
    with pytest.raises(
        DinotrackError, match=r"tracker\.ckpt cannot be exported: it refines features by lora, .*Delta-DINO"
    ):
        export_checkpoint(path, tmp_path / "c")
    assert not (tmp_path / "c").exists()


def test_no_negative_iteration_is_exported_and_every_reason_is_named(tmp_path: Path) -> None:
    delta, head = DeltaDino(8, (2, 2), alignment="centred"), TrackerHead(refine=False)
    with pytest.raises(DinotrackError, match=r"iteration=-1: .*; .*alignment=centred.*; .*refine=false"):
        export_networks(delta, head, tmp_path, -1)


def test_a_folder_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DinotrackError, match=r"cannot write .*file/delta_dino_10000\.pt"):
        export_networks(DeltaDino(8, (2, 2)), TrackerHead(), tmp_path / "file")


def test_what_the_reader_must_set_is_warned_of(
    tmp_path: Path, video: Video, backbone: DenseSift, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.WARNING)
    export_networks(DeltaDino(), TrackerHead(fallback="published"), tmp_path / "same")
    assert not caplog.records
    export_networks(DeltaDino(8, (2, 2)), TrackerHead(20.0, peak="refined"), tmp_path / "other")
    (record,) = caplog.records
    for part in (
        "channels=8 (there: 1024)",
        "hidden=[2, 2]",
        "head.radius=20.0 (there: 35.0)",
        "head.fallback=normalised",
    ):
        assert part in record.getMessage()
    assert "head.peak=refined" in record.getMessage() and "backbone" not in record.getMessage()
    caplog.clear()
    tracker = ours(video, backbone)
    tracker.settings["shift"] = 0.5
    export_published(tracker, tmp_path / "tracker")
    (record,) = caplog.records
    for part in ("working_size=[112, 84]", "shift=0.5 (there: 0.0)", "backbone.kind=dense_sift", "backbone.stride=3"):
        assert part in record.getMessage()
    assert "visibility" not in record.getMessage() and "fallback" not in record.getMessage()


def test_files_that_the_published_code_trips_over_are_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    networks = DeltaDino(), TrackerHead(fallback="published")
    export_networks(*networks, tmp_path, 5)
    export_networks(*networks, tmp_path, 10)
    assert not caplog.records
    (tmp_path / "tracker.ckpt").write_text("")
    export_networks(*networks, tmp_path)
    assert "fails here: tracker.ckpt; move" in caplog.records[0].getMessage()


def test_an_export_replaces_the_files_of_its_iteration_alone(tmp_path: Path) -> None:
    torch.manual_seed(1)
    first, second = (DeltaDino(8, (2, 2), zero_start=False) for _ in range(2))
    export_networks(first, TrackerHead(), tmp_path, 1)
    export_networks(first, TrackerHead(), tmp_path, 2)
    export_networks(second, TrackerHead(), tmp_path, 2)
    assert bias(read_published(tmp_path, 1))[0] == float(first.state_dict()["layers.0.bias"][0])
    assert bias(read_published(tmp_path, 2))[0] == float(second.state_dict()["layers.0.bias"][0])
    assert len(list(tmp_path.iterdir())) == 4
