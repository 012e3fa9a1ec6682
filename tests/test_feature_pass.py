"""Several layers, facets and the saliency masks out of one pass of the ViT, each as it would be alone."""

from pathlib import Path

import pytest
import torch
from torch import Tensor

from dinotrack.backbones import DenseSift, Tap, VitBackbone, extract_features, extract_taps
from dinotrack.correspondences import saliency_masks
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import FeaturePass, Masks
from dinotrack.structs import FeatureMap, Video

MODEL = "vit_small_patch14_dinov2.lvd142m"
LAST = 3

pytestmark = pytest.mark.usefixtures("three_blocks")


def vit(layer: int = 1, facet: str = "token") -> VitBackbone:
    return VitBackbone(MODEL, layer=layer, facet=facet, stride=14, pretrained=False)


@pytest.fixture
def video(rng: torch.Generator) -> Video:
    return Video(torch.randint(0, 256, (5, 3, 28, 42), generator=rng, dtype=torch.uint8))


@pytest.fixture
def passes(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """The number of frames in every forward pass of a ViT."""
    seen: list[int] = []
    embed = VitBackbone._embed

    def counted(self: VitBackbone, images: Tensor) -> tuple[Tensor, tuple[int, int]]:
        seen.append(len(images))
        return embed(self, images)

    monkeypatch.setattr(VitBackbone, "_embed", counted)
    return seen


def of(video: Video, backbone: VitBackbone | DenseSift, cache: Path, beside: tuple[Tap, ...] = ()) -> FeaturePass:
    return FeaturePass(video, video.frames, backbone, cache, beside)


def entries(cache: Path) -> list[str]:
    return sorted(path.name.split("-")[0] for path in cache.rglob("*.safetensors"))


def test_layers_facets_and_saliency_come_from_one_pass(video: Video, tmp_path: Path, passes: list[int]) -> None:
    beside = ((1, "token"), (2, "token"), (2, "key"))
    features = of(video, vit(1), tmp_path, beside).features(saliency=True)
    assert sum(passes) == len(video) and entries(tmp_path) == ["features"] * 3 + ["saliency"]
    others = {tap: of(video, vit(*tap), tmp_path, beside).features() for tap in beside}
    masks = of(video, vit(1), tmp_path).saliency(features)
    assert sum(passes) == len(video)  # all of it was there
    for tap, found in others.items():
        assert torch.equal(found.values, extract_features(vit(*tap), video.frames).values)
    assert torch.equal(others[1, "token"].values, features.values)
    assert torch.equal(masks, saliency_masks(extract_features(vit(LAST), video.frames)))


def test_what_is_there_is_not_made_again(video: Video, tmp_path: Path, passes: list[int]) -> None:
    of(video, vit(2), tmp_path).features()
    path = next(tmp_path.rglob("features-*.safetensors"))
    before = path.stat().st_mtime_ns
    of(video, vit(1), tmp_path, ((1, "token"), (2, "token"))).features()
    assert sum(passes) == 2 * len(video) and path.stat().st_mtime_ns == before


def test_masks_of_the_video_ask_for_no_deeper_layer(video: Video, tmp_path: Path) -> None:
    of(video, vit(1), tmp_path).features(saliency=False)
    assert entries(tmp_path) == ["features"]


def test_another_layer_waits_for_the_lock_of_the_same_pass(video: Video, tmp_path: Path) -> None:
    with of(video, vit(1), tmp_path).locked():
        locks = list(tmp_path.rglob("*.lock"))
    with of(video, vit(2, "key"), tmp_path).locked():
        assert list(tmp_path.rglob("*.lock")) == locks and len(locks) == 1


def test_a_backbone_that_is_no_vit_makes_its_own(video: Video, tmp_path: Path) -> None:
    sift = DenseSift(stride=4)
    found = of(video, sift, tmp_path, ((1, "token"), (2, "token"))).features(saliency=True)
    assert isinstance(found, FeatureMap) and entries(tmp_path) == ["features"]
    assert torch.equal(of(video, sift, tmp_path).saliency(found), saliency_masks(found))
    assert Masks.load(next(tmp_path.rglob("saliency-*.safetensors"))).values.shape == (5, *found.values.shape[2:])


@pytest.mark.parametrize(
    ("tap", "message"),
    [((LAST + 1, "token"), "layer=4"), ((0, "key"), "layer"), ((1, "keys"), "facet 'keys' is unknown")],
)
def test_a_layer_or_facet_that_is_not_there_is_named(tap: Tap, message: str, video: Video) -> None:
    with pytest.raises(DinotrackError, match=message):
        extract_taps(vit(2), [(1, "token"), tap], video.frames)
