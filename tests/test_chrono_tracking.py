"""`method=chrono`: its head against loops, its tracker on features with known answers, and the commands."""

import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from tests.twins import array

from dinotrack.backbones import extract_features
from dinotrack.chrono import ChronoBackbone
from dinotrack.chrono_head import VisibilityHead, chrono_head, visible_share
from dinotrack.cli import main
from dinotrack.data.export import load_npz
from dinotrack.errors import DinotrackError
from dinotrack.geometry import resize_frames
from dinotrack.methods.chrono import ChronoTracker, load_chrono_tracker, read_visibility
from dinotrack.methods.dino_tracker import FORMAT, load_dino_tracker, read_checkpoint
from dinotrack.networks import TrackerHead
from dinotrack.structs import FeatureMap, Grid, Video
from dinotrack.tools.picture import FittedRun
from dinotrack.tools.picture import main as picture

pytestmark = pytest.mark.usefixtures("three_blocks")

TINY = [
    "method=chrono",
    "backbone=chrono_s14",
    "backbone.layer=2",
    "backbone.width=8",
    "backbone.pretrained=false",
    "method.size=[64,48]",
    "device=cpu",
    "logger=none",
]


def head_twin(cosines: np.ndarray, grid: Grid, sharpness: float = 20.0, within: float = 5) -> np.ndarray:
    """§8: a softmax over the whole map, then its mean over tokens strictly nearer than `within` to the maximum."""
    height, width = cosines.shape
    mass = np.exp(sharpness * (cosines - cosines.max()))
    mass /= mass.sum()
    peak = np.unravel_index(cosines.argmax(), cosines.shape)
    total, where = 0.0, np.zeros(2)
    for i in range(height):
        for j in range(width):
            if math.hypot(i - peak[0], j - peak[1]) < within:
                total += mass[i, j]
                where += mass[i, j] * np.array([grid.offset + grid.stride * j, grid.offset + grid.stride * i])
    return where / total


def test_the_head_is_its_formula(rng: torch.Generator) -> None:
    grid = Grid(4.0, 2.0)
    cosines = torch.rand(20, 13, 17, generator=rng) * 0.6 - 0.3  # cosines below 0 count too
    found = chrono_head(grid.stride)(cosines, grid)
    expected = np.stack([head_twin(array(each), grid) for each in cosines])
    assert (found - torch.from_numpy(expected)).abs().max() < 1e-5 * 68
    wider = np.stack([head_twin(array(each), grid, within=5.01) for each in cosines])
    assert np.abs(wider - expected).max() > 0.01  # tokens at a distance of exactly 5 exist, and do not count


def test_visibility_is_its_formula(rng: torch.Generator) -> None:
    head = VisibilityHead()
    torch.nn.init.normal_(head.weight)
    cosines = (torch.rand(9, 5, 7, generator=rng) * 2 - 1).requires_grad_()
    logits = head(cosines)
    for row, maps in zip(array(logits), array(cosines), strict=True):
        statistics = np.array([maps.mean(), maps.max(), maps.min()])
        np.testing.assert_allclose(row, array(head.weight) @ statistics + array(head.bias), rtol=1e-5, atol=1e-6)
    occluded, far = 1 / (1 + np.exp(-array(logits).T))
    np.testing.assert_allclose(array(visible_share(logits)), (1 - occluded) * (1 - far), rtol=1e-5)
    logits.sum().backward()
    assert cosines.grad is None and head.weight.grad is not None  # the cosines are detached


def test_a_sharpness_is_not_of_the_refiner() -> None:
    with pytest.raises(DinotrackError, match="sharpness=20"):
        TrackerHead(sharpness=20.0)


def shifting(frames: int = 4) -> FeatureMap:
    """Features that are all different, shifted by a token to the right from frame to frame, and round the edge."""
    start = torch.nn.functional.normalize(torch.randn(16, 8, 12), dim=0)
    return FeatureMap(torch.stack([start.roll(t, 2) for t in range(frames)]).half(), 4.0, 2.0, (48, 32))


def tracker(features: FeatureMap, visibility: VisibilityHead, memory: float = 1e9) -> ChronoTracker:
    video = {"path": "", "size": [96, 64], "fps": 25.0}
    settings = {"format": FORMAT, "video": video, "head": {"sharpness": 200.0, "within": 5}}
    return ChronoTracker(features, visibility, settings, memory=memory)


def test_tracks_follow_features_and_come_back_in_the_videos_pixels() -> None:
    visibility = VisibilityHead()
    with torch.no_grad():
        visibility.weight[:] = torch.tensor([[0.0, -40.0, 0.0], [0.0, -40.0, 0.0]])
        visibility.bias[:] = 36.0  # visible from a highest cosine of about 0.9 on
    features = shifting()
    features.values[3] = -features.values[3].flip(0)  # where nothing is found
    queries = torch.tensor([[1.0, 36.0, 20.0], [0.0, 20.0, 36.0]])
    tracks = tracker(features, visibility).track(queries)
    assert (tracks.xy[0, :3] - torch.tensor([[28.0, 20.0], [36.0, 20.0], [44.0, 20.0]])).abs().max() < 0.05
    assert torch.equal(tracks.xy[0, 1], queries[0, 1:]) and torch.equal(tracks.xy[1, 0], queries[1, 1:])
    assert tracks.visible.tolist() == [[True, True, True, False]] * 2
    assert (tracks.confidence[0, 1], tracks.confidence[1, 0]) == (1, 1)
    assert ((tracks.confidence >= 0) & (tracks.confidence <= 1)).all()


def test_memory_and_the_number_of_queries_change_nothing(rng: torch.Generator) -> None:
    features = shifting()
    queries = torch.rand(9, 3, generator=rng) * torch.tensor([0.0, 96.0, 64.0])
    whole, parts = (tracker(features, VisibilityHead(), memory).track(queries) for memory in (1e9, 1e4))
    assert (whole.xy - parts.xy).abs().max() < 1e-4 and (whole.confidence - parts.confidence).abs().max() < 1e-6
    assert len(tracker(features, VisibilityHead()).track(queries[:0])) == 0


def test_visibility_comes_with_the_adapters(tmp_path: Path) -> None:
    weight, path = torch.arange(6.0).view(2, 3), tmp_path / "chrono.safetensors"
    save_file({"model.occ_linear.weight": weight, "model.occ_linear.bias": torch.ones(2)}, path)
    assert torch.equal(read_visibility(path).weight, weight)
    save_file({"adapters.0.norm.weight": weight}, path)
    with pytest.raises(DinotrackError, match="no visibility"):
        read_visibility(path)


BACKBONE = {
    "kind": "chrono",
    "layer": 2,
    "stride": 14,
    "upscale": 3.5,
    "adapted": "all",
    "width": 8,
    "heads": 4,
    "reach": 6,
}


def stranger(path: Path, place: str = "", value: Any = None) -> Path:
    """A checkpoint of method=chrono in which the setting at `place`, or the state_dict, has another value."""
    video = {"path": "a.mp4", "hash": "", "start": 0, "frames": 4, "size": [96, 64], "fps": 25.0, "max_side": None}
    head = {"sharpness": 20.0, "within": 5}
    about: dict[str, Any] = {"format": FORMAT, "method": "chrono", "video": video, "backbone": dict(BACKBONE)}
    about |= {"working_size": [64, 48], "head": head}
    weights = {"visibility.weight": torch.zeros(2, 3), "visibility.bias": torch.zeros(2)}
    content = {"state_dict": weights, "dinotrack": about}
    *outer, last = ["dinotrack", *place.split(".")] if place != "state_dict" else [place]
    inner: Any = content
    for name in outer:
        inner = inner[name]
    if place:
        inner[last] = value
    torch.save(content, path)
    return path


WHOLE = ("layer", "stride", "width", "heads", "reach")
SPOILT: list[tuple[str, Any]] = [
    *(("state_dict", weights) for weights in (
        {},
        {"visibility.weight": torch.zeros(2, 3)},
        {"visibility.weight": torch.zeros(3, 2), "visibility.bias": torch.zeros(2)},
        {"visibility.weight": torch.zeros(2, 3), "visibility.bias": torch.zeros(3)},
        {"visibility.weight": torch.zeros(2, 3), "visibility.bias": torch.zeros(2, dtype=torch.int64)},
        {"visibility.weight": torch.zeros(2, 3), "visibility.bias": torch.zeros(2), "more": torch.zeros(9)},
        {"visibility.weight": torch.zeros(2, 3), "visibility.bias": torch.full((2,), math.nan)},
    )),
    *(("head", head) for head in ([], {"radius": 3.0}, {"sharpness": 20.0, "within": 5, "call": 1})),
    *(("head.sharpness", value) for value in (0, -1.0, "20", None, math.nan, math.inf, True, 10**400)),
    *(("head.within", value) for value in (0, 0.5, "5", None, math.nan, 10**9, [5])),
    *(("working_size", size) for size in ([64], [64, 48, 1], [64.0, 48], [True, 48], [0, 48], 64, "ab")),
    *(("working_size", size) for size in ([16385, 48], [16384, 16384])),
    *((f"backbone.{name}", value) for name in WHOLE for value in (-1, 5000, "4", None, 4.5, True)),
    *(("backbone.upscale", value) for value in (0, 0.1, -3.5, 16.5, math.nan, math.inf, "3.5", None)),
    *(("backbone.adapted", value) for value in ("none", [0.5], ["0"], 3, None, {"0": 1})),
    *(("backbone.mixing", ["attention"]), ("backbone.model", 3), ("backbone.adapters", 3), ("backbone.kind", [])),
    *(("backbone.width", 4096), ("backbone.seed", 2**70), ("backbone", []), ("backbone", {})),
]  # fmt: skip


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize(("place", "value"), SPOILT)
def test_a_strangers_checkpoint_is_refused_in_a_line(tmp_path: Path, place: str, value: Any) -> None:
    path = stranger(tmp_path / "s.ckpt", place, value)
    with pytest.raises(DinotrackError, match=r"s\.ckpt is damaged: its (settings|weights)") as refused:
        load_chrono_tracker(path, Video(torch.zeros(2, 3, 48, 64, dtype=torch.uint8)))
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 400


@pytest.mark.parametrize(
    ("place", "value"),
    [("", None), ("head", {"sharpness": 7, "within": 2.5}), ("backbone.adapted", [0]), ("backbone.upscale", 1)],
)
def test_a_sound_checkpoint_is_read(tmp_path: Path, place: str, value: Any) -> None:
    assert read_checkpoint(stranger(tmp_path / "s.ckpt", place, value))["dinotrack"]["method"] == "chrono"


def call(*words: str) -> None:
    main(list(words))


def test_run_track_and_evaluate(tmp_path: Path) -> None:
    first, second, scores = tmp_path / "run", tmp_path / "track", tmp_path / "evaluate"
    synthetic = ["video=synthetic", "synthetic.frames=3", "synthetic.size=[64,48]"]
    call("run", *TINY, *synthetic, "queries=grid:16", "render=false", f"hydra.run.dir={first}")
    whole = load_npz(first / "tracks.npz")
    assert whole.xy.isfinite().all() and whole.visible.all()  # untrained, every point is visible
    call("track", f"checkpoint={first / 'tracker.ckpt'}", "queries=grid:16", "render=false", f"hydra.run.dir={second}")
    assert torch.equal(load_npz(second / "tracks.npz").xy, whole.xy)
    with pytest.raises(DinotrackError, match="checkpoint of method chrono"):
        load_dino_tracker(first / "tracker.ckpt", Video(torch.zeros(2, 3, 8, 8, dtype=torch.uint8)))
    only = ["benchmark=synthetic", "benchmark.clip=smooth-0", "benchmark.mode=first"]
    call("evaluate", *TINY, *only, f"folder={scores}")
    assert "smooth-0" in (scores / "scores.csv").read_text()


def test_pictures_show_features_without_and_with_adapters(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    synthetic = ["video=synthetic", "synthetic.frames=3", "synthetic.size=[64,48]", "queries=grid:16", "render=false"]
    made = ChronoBackbone(layer=2, width=8, model="vit_small_patch14_dinov2.lvd142m", pretrained=False, upscale=3.5)
    torch.manual_seed(0)
    torch.nn.init.normal_(made.adapters["0"].conv2.weight)
    visibility = {f"visibility.{name}": value for name, value in VisibilityHead().state_dict().items()}
    adapters = {f"adapters.{name}": value for name, value in made.adapters.state_dict().items()}
    save_file({**adapters, **visibility}, tmp_path / "adapters.safetensors")
    call(
        "run", *TINY, *synthetic, f"backbone.adapters={tmp_path / 'adapters.safetensors'}", f"hydra.run.dir={tmp_path}"
    )
    run = FittedRun.open(tmp_path, device="cpu")
    plain = extract_features(made, resize_frames(run.video.frames, (64, 48)))
    assert (run.tracker.features.values.float() - plain.values.float()).abs().max() < 2e-3
    assert (run.raw.values.float() - plain.values.float()).abs().max() > 0.1
    torch.nn.init.zeros_(made.adapters["0"].conv2.weight)
    plain = extract_features(made, resize_frames(run.video.frames, (64, 48)))
    assert (run.raw.values.float() - plain.values.float()).abs().max() < 2e-3
    for kind, words in (("pca", []), ("similarity", ["--query", "0,30,20"]), ("best-buddies", ["--frames", "0,1"])):
        picture([kind, str(tmp_path), str(tmp_path / f"{kind}.png"), "--device", "cpu", *words])
        assert (tmp_path / f"{kind}.png").stat().st_size > 1000
    with pytest.raises(DinotrackError, match="no tracklets"):
        picture(["best-buddies", str(tmp_path), str(tmp_path / "t.png"), "--kind", "tracklets", "--device", "cpu"])


def test_another_backbone_is_refused(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    with pytest.raises(SystemExit):
        main(
            [
                "run",
                *TINY[:1],
                "backbone=dense_sift",
                "video=synthetic",
                "synthetic.frames=2",
                "logger=none",
                f"hydra.run.dir={tmp_path}",
            ]
        )
    assert "take backbone=chrono_s14 or chrono_b14" in capsys.readouterr().err
