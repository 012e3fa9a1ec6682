"""Chrono's backbone: DINOv2's features at the start, chunks that equal the whole, and files of adapters."""

from functools import partial
from pathlib import Path

import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from torch import Tensor

from dinotrack.adapters import TemporalAdapter, frame_moments
from dinotrack.backbones import ClipBackbone, VitBackbone, build_backbone, extract_features, identity
from dinotrack.chrono import ChronoBackbone, adapted_blocks
from dinotrack.chrono_weights import own_name, read_chrono
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import FeaturePass
from dinotrack.memory import Budget
from dinotrack.structs import Video

pytestmark = pytest.mark.usefixtures("three_blocks")

MODEL = "vit_small_patch14_dinov2.lvd142m"
REGISTERS = "vit_small_patch14_reg4_dinov2.lvd142m"
SMALL = {"model": MODEL, "layer": 3, "width": 8, "heads": 2, "reach": 2, "pretrained": False}


def chrono(**settings: object) -> ChronoBackbone:
    return ChronoBackbone(**{**SMALL, **settings})


def trained(**settings: object) -> ChronoBackbone:
    """One whose adapters matter."""
    made = chrono(**settings)
    torch.manual_seed(5)
    for parameter in made.adapters.parameters():
        torch.nn.init.normal_(parameter, std=0.1)
    return made


@pytest.fixture
def video(rng: torch.Generator) -> Video:
    return Video(torch.randint(0, 256, (9, 3, 28, 56), generator=rng, dtype=torch.uint8))


def unit_images(video: Video) -> Tensor:
    return video.frames.float() / 255


@pytest.mark.parametrize("model", [MODEL, REGISTERS])
def test_at_the_start_features_are_dinov2s(model: str) -> None:
    made = chrono(model=model)
    dino = VitBackbone(model, layer=3, stride=14, pretrained=False)
    images = torch.rand(2, 3, 42, 56)
    tokens = made.vit.norm(dino.tokens(images, 3)[0][:, made.vit.num_prefix_tokens :])
    expected = F.normalize(tokens, dim=-1).transpose(1, 2).unflatten(2, (3, 4)) * 384**0.5
    assert len(made.adapters) == 2
    assert (made(images) - expected).abs().max() < 1e-5 * expected.abs().max()
    assert made(images).square().mean(1).sub(1).abs().max() < 1e-5


def test_the_sets_of_adapted_blocks(unguarded: None) -> None:
    assert adapted_blocks("all", 12) == list(range(11))
    assert adapted_blocks("early", 12) == [0, 1, 2, 3, 4, 5] and adapted_blocks("later", 12) == [6, 7, 8, 9, 10]
    assert adapted_blocks("alternate", 12) == [0, 2, 4, 6, 8, 10] and adapted_blocks([4, 1], 12) == [1, 4]
    for wrong in ([11], "most"):
        with pytest.raises(DinotrackError, match="adapted="):
            adapted_blocks(wrong, 12)


@pytest.mark.parametrize("adapted", ["all", [1], []])
@pytest.mark.parametrize("model", [MODEL, REGISTERS])
def test_a_video_in_chunks_equals_the_whole(adapted: object, model: str, video: Video) -> None:
    made = trained(model=model, adapted=adapted)
    whole = made(unit_images(video))
    for chunk in (1, 4, 9):
        found = torch.cat(list(made.over(video.frames, chunk=chunk)))
        assert (found - whole).abs().max() < 1e-5 * whole.abs().max()
    nothing = Budget(1, None)  # all tokens on disk
    found = torch.cat(list(made.over(video.frames, budget=nothing)))
    assert (found - whole).abs().max() < 1e-5 * whole.abs().max()


@pytest.mark.parametrize(("adapted", "times"), [([], 0), ([1], 1), ("all", 2)])
def test_what_is_kept_of_each_frame(adapted: object, times: int, video: Video, monkeypatch: pytest.MonkeyPatch) -> None:
    """Tokens behind a block, and those behind the next while they are made."""
    made, kept = chrono(adapted=adapted), list[int]()
    stored = ChronoBackbone._stored

    def noted(self: ChronoBackbone, *arguments: object) -> tuple[Tensor, Tensor]:
        tokens, moments = stored(self, *arguments)
        kept.append(tokens.nbytes)
        return tokens, moments

    monkeypatch.setattr(ChronoBackbone, "_stored", noted)
    (*_, last) = made.over(video.frames)
    assert made.frame_bytes(last.shape[2] * last.shape[3])[0] * len(video) == sum(kept[:2]) and len(kept) == times


def held(made: ChronoBackbone, images: Tensor, moments: dict[str, Tensor] | None = None) -> tuple[Tensor, dict]:
    """Features with each adapter's statistics as given, and those that were used."""
    used: dict[str, Tensor] = {}

    def hold(name: str):
        def hook(_: TemporalAdapter, args: tuple[Tensor]) -> tuple[Tensor, Tensor]:
            used[name] = frame_moments(args[0]) if moments is None else moments[name]
            return args[0], used[name]

        return hook

    handles = [each.register_forward_pre_hook(hold(name)) for name, each in made.adapters.items()]
    with torch.no_grad():
        features = made.features(images)
    for handle in handles:
        handle.remove()
    return features, used


def test_with_fixed_statistics_features_depend_on_adapters_times_reach_frames(rng: torch.Generator) -> None:
    made, images = trained(), torch.rand(15, 3, 28, 28, generator=rng)
    assert made.reach == 4  # two adapters of two frames
    before, moments = held(made, images)
    assert (before - made(images)).abs().max() < 1e-5
    changed = images.clone()
    changed[7] = 1 - changed[7]
    moved = (held(made, changed, moments)[0] - before).abs().amax((1, 2, 3)) > 0
    assert moved.tolist() == [abs(t - 7) <= 4 for t in range(15)]
    # So a chunk with that much context on either side has what the whole has.
    part, _ = held(made, images[1:14], moments)
    assert (part[4:9] - before[5:10]).abs().max() < 1e-5 * before.abs().max()


def test_tokens_lie_where_the_grid_says() -> None:
    enlarged, plain = chrono(upscale=3.5), chrono()
    assert (enlarged.stride, enlarged.grid.stride, enlarged.grid.offset) == (4, 4.0, 2.0)
    assert (plain.stride, plain.grid.stride, plain.grid.offset) == (14, 14.0, 7.0)
    images = torch.rand(2, 3, 16, 24)
    assert enlarged(images).shape == (2, 384, 4, 6)
    bigger = F.interpolate(images, (56, 84), mode="bilinear", align_corners=False)
    assert torch.equal(enlarged(images), plain(bigger))


def test_a_gradient_reaches_every_adapter_and_no_block() -> None:
    made = trained()
    made.features(torch.rand(4, 3, 28, 28)).square().sum(1).sub(
        made.features(torch.rand(4, 3, 28, 28))[:, 0]
    ).sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.adapters.parameters())
    assert all(p.grad is None for p in made.vit.parameters())


def test_bf16_under_autocast_gives_nearly_the_same_and_a_gradient(video: Video) -> None:
    made = trained()
    with torch.autocast("cpu", torch.bfloat16):
        half = made.features(unit_images(video))
    assert half.dtype == torch.float32  # what positions and losses are made of
    assert F.cosine_similarity(half, made(unit_images(video)), dim=1).min() > 0.98
    half[:, 0].sum().backward()
    assert all(p.grad is not None and p.grad.isfinite().all() for p in made.adapters.parameters())


def test_features_go_through_the_cache(video: Video, tmp_path: Path) -> None:
    made = trained()
    assert isinstance(made, ClipBackbone)
    features = FeaturePass(video, video.frames, made, tmp_path, chunk=2).features(saliency=True)
    assert (features.values - extract_features(made, video.frames, chunk=5).values).abs().max() < 5e-3  # half precision
    assert (features.values.float() - made(unit_images(video))).abs().max() < 5e-3
    assert FeaturePass(video, video.frames, made, tmp_path).saliency(features).shape == (9, 2, 4)


def published(path: Path, made: ChronoBackbone) -> Path:
    """A Lightning checkpoint with the published names, of this backbone's adapters."""
    weights = {f"model.adapter.{name}": value for name, value in made.adapters.state_dict().items()}
    weights |= {"model.dino.cls_token": torch.zeros(1, 1, 384)}
    weights |= {"model.occ_linear.weight": torch.ones(2, 3), "model.occ_linear.bias": torch.zeros(2)}
    torch.save({"state_dict": weights, "epoch": 3, "global_step": 100_000}, path)
    return path


def test_published_names_and_shapes_load(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(timm, "create_model", partial(timm.create_model, depth=12))
    made = ChronoBackbone(MODEL, pretrained=False)
    shapes = {name: tuple(value.shape) for name, value in made.adapters.state_dict().items()}
    path = published(tmp_path / "chrono.ckpt", made)
    made.load(str(path))
    assert len(made.adapters) == 11 and read_chrono(path)["visibility.weight"].tolist() == [[1.0] * 3] * 2
    listed = {
        "norm.weight": (384,),
        "norm.bias": (384,),
        "conv1.weight": (128, 384, 3, 3),
        "conv1.bias": (128,),
        "conv_pool.weight": (128, 128, 4, 4),
        "conv_pool.bias": (128,),
        "norm2.weight": (128,),
        "norm2.bias": (128,),
        "attn_temp.qkv.weight": (384, 128),
        "attn_temp.proj.weight": (128, 128),
        "attn_temp.proj.bias": (128,),
        "conv_upsample.weight": (128, 128, 4, 4),
        "conv_upsample.bias": (128,),
        "conv2.weight": (384, 128, 3, 3),
        "conv2.bias": (384,),
    }
    assert shapes == {f"{number}.{name}": shape for number in range(11) for name, shape in listed.items()}
    assert own_name("model.adapter.10.norm.bias") == "adapters.10.norm.bias"
    assert own_name("model.occ_linear.weight") == "visibility.weight" and own_name("model.dino.norm.bias") == ""


def test_a_file_of_adapters_is_read_and_told_apart(video: Video, tmp_path: Path) -> None:
    first = trained()
    path = published(tmp_path / "chrono.ckpt", first)
    again = chrono(adapters=str(path))
    assert torch.equal(again(unit_images(video)), first(unit_images(video)))
    assert identity(again.settings) != identity(first.settings)
    moved = tmp_path / "moved.ckpt"
    moved.write_bytes(path.read_bytes())
    assert identity(chrono(adapters=str(moved)).settings) == identity(again.settings)
    assert torch.equal(build_backbone(again.settings)(unit_images(video)), again(unit_images(video)))
    ours = tmp_path / "chrono.safetensors"
    save_file({f"adapters.{name}": value for name, value in first.adapters.state_dict().items()}, ours)
    assert torch.equal(chrono(adapters=str(ours))(unit_images(video)), first(unit_images(video)))


def test_wrong_settings_and_files_are_named(tmp_path: Path, unguarded: None) -> None:
    path = published(tmp_path / "chrono.ckpt", trained())
    other = tmp_path / "other.safetensors"
    save_file({"layers.0.weight": torch.zeros(1)}, other)
    wrong = [
        ({"layer": 0}, "layer=0"),
        ({"layer": 4}, "layer=4"),
        ({"facet": "key"}, "facet=key"),
        ({"upscale": 3.0}, "upscale=3.0"),
        ({"upscale": 0.0}, "upscale=0.0"),
        ({"adapters": str(path), "width": 16}, "does not fit these adapters"),
        ({"adapters": str(path), "adapted": "early"}, "does not fit these adapters"),
        ({"adapters": str(other)}, "holds no Chrono adapters"),
    ]
    for settings, message in wrong:
        with pytest.raises(DinotrackError, match=message):
            chrono(**settings)
