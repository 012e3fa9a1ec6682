"""The hybrid, DINO-Tracker on Chrono's features, and fits that start from earlier ones."""

from pathlib import Path

import pytest
import torch

from dinotrack import load_tracker
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.errors import DinotrackError
from dinotrack.structs import Video
from dinotrack.training.config import compose_config
from dinotrack.training.fit import prepare, train

pytestmark = pytest.mark.usefixtures("three_blocks")

HYBRID = [
    "backbone=chrono_s14",
    "backbone.layer=2",
    "backbone.width=8",
    "backbone.pretrained=false",
    "flow=dis",
    "resolution=84",
    "device=cpu",
    "logger=none",
    "supervision.gamma=50",
    "method.delta.hidden=[4,8]",
    "method.batch.flow_pairs=16",
]


@pytest.fixture(scope="module")
def video() -> Video:
    return synthetic_clip(seed=1, frames=3, size=(64, 48), points=8).video


def fitted(video: Video, folder: Path, *words: str) -> Path:
    """The checkpoint of a fit."""
    config = compose_config("fit", overrides=[*HYBRID, f"cache_dir={folder / 'cache'}", *words])
    tracker = train(config, prepare(config, video))
    tracker.save(folder / "tracker.ckpt")
    return folder / "tracker.ckpt"


def test_dino_tracker_on_chronos_features_is_fitted_saved_and_loaded(video: Video, tmp_path: Path) -> None:
    path = fitted(video, tmp_path, "steps=1")
    tracker = load_tracker(path, video, cache=tmp_path / "cache")
    assert tracker.settings["backbone"]["kind"] == "chrono" and tracker.features.values.shape[1] == 384
    tracks = tracker.track(torch.tensor([[0.0, 30.0, 20.0]]))
    assert tracks.xy.isfinite().all()
    again = load_tracker(path, video, cache=tmp_path / "cache").track(torch.tensor([[0.0, 30.0, 20.0]]))
    assert torch.equal(again.xy, tracks.xy)


def test_a_fit_starts_from_an_earlier_one(video: Video, tmp_path: Path) -> None:
    earlier = torch.load(fitted(video, tmp_path, "steps=2"), weights_only=True)["state_dict"]
    path = tmp_path / "earlier.ckpt"
    (tmp_path / "tracker.ckpt").rename(path)
    start = torch.load(fitted(video, tmp_path, "steps=0", f"init_from={path}"), weights_only=True)["state_dict"]
    assert all(torch.equal(start[name], value) for name, value in earlier.items())
    fresh = torch.load(fitted(video, tmp_path, "steps=0"), weights_only=True)["state_dict"]
    assert not all(torch.equal(fresh[name], value) for name, value in earlier.items())
    with pytest.raises(DinotrackError, match=r"init_from=.*its delta .* does not fit"):
        fitted(video, tmp_path, "steps=0", f"init_from={path}", "method.delta.hidden=[4,4]")
    with pytest.raises(DinotrackError, match="no checkpoint"):
        fitted(video, tmp_path, "steps=0", "init_from=nowhere.ckpt")
