"""Backbones: where each token looks, what it is (against a twin from the formulas), weights, and every way to go wrong."""

import json
import math
from functools import cache
from pathlib import Path

import pytest
import timm
import torch
from kornia.feature import DenseSIFTDescriptor
from safetensors.torch import save_file
from torch import Tensor

from dinotrack.backbones import (
    FACETS,
    LUMA,
    Backbone,
    DenseSift,
    VitBackbone,
    build_backbone,
    extract_features,
)
from dinotrack.embedding import resize_positions
from dinotrack.errors import DinotrackError

PLAIN = "vit_small_patch14_dinov2.lvd142m"
REGISTERS = "vit_small_patch14_reg4_dinov2.lvd142m"
Weights = dict[str, Tensor]


@cache
def timm_weights(model: str) -> Weights:
    """Random weights whose layer scales and biases matter; timm's own starts would hide attention and class token."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(7)
        vit = timm.create_model(model, num_classes=0)
        for name, value in vit.state_dict().items():
            if name.endswith(("gamma", "bias")) or "token" in name or "pos_embed" in name:
                value.uniform_(-0.5, 0.5)
    return {name: value.half().float() for name, value in vit.state_dict().items()}


def meta_weights(model: str) -> Weights:
    """The same network under the names of Meta's files, which give the class token a position in every variant."""
    weights = {**timm_weights(model), "mask_token": torch.zeros(1, 384)}
    if model == REGISTERS:
        own = torch.full((1, 1, 384), 0.25)
        weights["register_tokens"] = weights.pop("reg_token")
        weights["cls_token"] = weights["cls_token"] - own
        weights["pos_embed"] = torch.cat([own, weights["pos_embed"]], 1)
    return weights


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Checkpoint files in timm's naming, in half precision to be quick."""
    folder = tmp_path_factory.mktemp("weights")
    paths = {model: folder / f"{model}.safetensors" for model in (PLAIN, REGISTERS)}
    for model, path in paths.items():
        save_file({name: value.half() for name, value in timm_weights(model).items()}, path)
    return paths


@pytest.fixture(scope="module")
def plain(files: dict[str, Path]) -> VitBackbone:
    return VitBackbone(PLAIN, layer=2, checkpoint=str(files[PLAIN]))


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.rand(*shape, generator=torch.Generator().manual_seed(seed))


# --- where tokens look ------------------------------------------------------------------------------------------------


def sensitivity(backbone: Backbone, height: int, width: int, axis: int) -> tuple[Tensor, int]:
    """How much each pixel row (axis 0) or column (1) changes the middle token along that axis, and that token's index."""
    extent = (height, width)[axis]
    image = noise(3, height, width)
    changed = image.expand(extent, -1, -1, -1).clone()
    for pixel in range(extent):
        changed[pixel].select(1 + axis, pixel).copy_(noise(3, (width, height)[axis], seed=1 + pixel))
    features, reference = backbone(changed), backbone(image[None])
    row, column = (size // 2 for size in reference.shape[-2:])
    difference = (features - reference)[..., row, column].norm(dim=1)
    return difference, (row, column)[axis]


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize(
    ("stride", "spatial_bin_size"), [(3, 4), (4, 4), (7, 4), (14, 4), (4, 3), (7, 3), (7, 5), (8, 6)]
)
def test_sift_tokens_look_where_the_grid_says(stride: int, spatial_bin_size: int, axis: int) -> None:
    backbone = DenseSift(stride=stride, spatial_bin_size=spatial_bin_size)
    change, index = sensitivity(backbone, 48, 56, axis)
    pixels = torch.arange(len(change)) + 0.5
    expected = backbone.grid.offset + backbone.grid.stride * index
    support = pixels[change > 1e-4]
    assert (support[0] + support[-1]) / 2 == pytest.approx(expected)
    assert (change * pixels).sum() / change.sum() == pytest.approx(expected, abs=1.0)


@pytest.mark.parametrize("axis", [0, 1])
@pytest.mark.parametrize("stride", [7, 14, 5])
def test_vit_tokens_look_where_the_grid_says(plain: VitBackbone, stride: int, axis: int) -> None:
    vit, projection = plain.vit, plain.vit.patch_embed.proj
    before = vit.blocks, projection.stride
    vit.blocks = torch.nn.ModuleList([torch.nn.Identity()])  # no attention: a token sees its own patch and nothing else
    projection.stride = (stride, stride)
    try:
        change, index = sensitivity(plain, 42, 56, axis)
    finally:
        vit.blocks, projection.stride = before
    seen = torch.arange(len(change))[change > 0] + 0.5
    assert len(seen) == 14
    assert seen.mean() == pytest.approx(plain.grid.offset + stride * index)


def test_attention_keeps_tokens_in_place(plain: VitBackbone) -> None:
    image = noise(1, 3, 42, 56)
    changed = image.clone()
    changed[..., 16:19, 30:33] = 1 - changed[..., 16:19, 30:33]  # seen by rows 1, 2 (from 7, 14) and columns 3, 4 alone
    difference = (plain(changed) - plain(image)).norm(dim=1)[0]
    strongest = difference.flatten().topk(4).indices.sort().values.tolist()
    assert strongest == [1 * 7 + 3, 1 * 7 + 4, 2 * 7 + 3, 2 * 7 + 4]


# --- dense SIFT -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("stride", [4, 7])
def test_sift_is_kornias_dense_one_at_every_stride_th_pixel(stride: int) -> None:
    images = noise(2, 3, 42, 63)
    backbone = DenseSift(stride=stride, scale=2.5)
    grey = sum(weight * images[:, i] for i, weight in enumerate(LUMA))
    dense = DenseSIFTDescriptor()(
        torch.as_tensor(grey).unsqueeze(1)
    ).detach()  # pixel (y, x) looks at raster 5 + (y, x)
    features = backbone(images)
    for i in range(1, features.shape[2] - 1):
        for j in range(1, features.shape[3] - 1):
            y, x = (int(backbone.grid.offset + stride * k) - 5 for k in (i, j))
            if 0 <= y < dense.shape[2] and 0 <= x < dense.shape[3]:
                torch.testing.assert_close(features[:, :, i, j], 2.5 * dense[:, :, y, x], atol=1e-5, rtol=1e-4)


@pytest.mark.parametrize("stride", [2, 4, 7, 8])
def test_sift_covers_the_frame(stride: int) -> None:
    backbone = DenseSift(stride=stride)
    height, width = 6 * stride, 9 * stride
    features = backbone(noise(1, 3, height, width))
    assert features.shape == (1, backbone.channels, 6, 9)
    last = backbone.grid.offset + stride * 8
    assert backbone.grid.offset <= stride / 2
    assert width - last <= stride / 2 + 1


def test_sift_channels_have_unit_rms_and_no_gradient() -> None:
    features = DenseSift()(noise(1, 3, 56, 56).requires_grad_())
    assert features.square().mean() == pytest.approx(1, abs=1e-3)
    assert features.dtype == torch.float32
    assert not features.requires_grad


@pytest.mark.parametrize("rootsift", [True, False])
def test_sift_of_a_flat_frame_is_finite(rootsift: bool) -> None:
    assert DenseSift(rootsift=rootsift)(torch.full((1, 3, 28, 28), 0.5)).isfinite().all()


# --- the ViT against its formulas -------------------------------------------------------------------------------------


def bicubic_weights(size: int, source: int) -> Tensor:
    """(size, source) matrix of cubic convolution, A = -0.75, for the scale factor (size + 0.1) / source."""
    a, matrix = -0.75, torch.zeros(size, source, dtype=torch.float64)
    for i in range(size):
        x = (i + 0.5) * source / (size + 0.1) - 0.5
        for k in range(math.floor(x) - 1, math.floor(x) + 3):
            d = abs(x - k)
            near = (a + 2) * d**3 - (a + 3) * d**2 + 1
            far = a * d**3 - 5 * a * d**2 + 8 * a * d - 4 * a
            matrix[i, min(max(k, 0), source - 1)] += near if d <= 1 else far
    return matrix


def layer_norm(x: Tensor, w: Weights, name: str) -> Tensor:
    x = (x - x.mean(1, keepdim=True)) / (x.var(1, unbiased=False, keepdim=True) + 1e-6).sqrt()
    return x * w[name + ".weight"] + w[name + ".bias"]


def linear(x: Tensor, w: Weights, name: str) -> Tensor:
    return x @ w[name + ".weight"].T + w[name + ".bias"]


def vit_twin(w: Weights, image: Tensor, layer: int, stride: int) -> dict[str, Tensor]:
    """Every facet of one image, (c, h, w), in float64: DINOv2 ViT-S written out patch by patch and head by head."""
    w = {name: value.double() for name, value in w.items()}
    mean, std = torch.tensor([[0.485, 0.456, 0.406], [0.229, 0.224, 0.225]], dtype=torch.float64)
    image = (image.double() - mean.view(3, 1, 1)) / std.view(3, 1, 1)
    rows, columns = ((side - 14) // stride + 1 for side in image.shape[1:])
    positions = w["pos_embed"][0]
    grid = positions[-37 * 37 :].reshape(37, 37, 384)
    grid = torch.einsum("ia,jb,abc->ijc", bicubic_weights(rows, 37), bicubic_weights(columns, 37), grid)
    tokens = [w["cls_token"][0, 0] + (positions[0] if len(positions) == 1370 else 0)]
    tokens += list(w["reg_token"][0]) if "reg_token" in w else []
    for i in range(rows):
        for j in range(columns):
            patch = image[:, stride * i : stride * i + 14, stride * j : stride * j + 14]
            kernel, bias = w["patch_embed.proj.weight"], w["patch_embed.proj.bias"]
            tokens.append((kernel * patch).sum((1, 2, 3)) + bias + grid[i, j])
    x = torch.stack(tokens)
    found: dict[str, Tensor] = {}
    for k in range(layer):
        block = f"blocks.{k}."
        query, key, value = linear(layer_norm(x, w, block + "norm1"), w, block + "attn.qkv").chunk(3, 1)
        found |= {"query": query, "key": key, "value": value}
        heads = []
        for h in range(6):
            part = slice(64 * h, 64 * h + 64)
            heads.append((query[:, part] @ key[:, part].T / 8).softmax(1) @ value[:, part])
        x = x + w[block + "ls1.gamma"] * linear(torch.cat(heads, 1), w, block + "attn.proj")
        hidden = linear(layer_norm(x, w, block + "norm2"), w, block + "mlp.fc1")
        hidden = 0.5 * hidden * (1 + torch.erf(hidden / math.sqrt(2)))
        x = x + w[block + "ls2.gamma"] * linear(hidden, w, block + "mlp.fc2")
    found["token"] = x
    return {facet: t[-rows * columns :].T.reshape(384, rows, columns) for facet, t in found.items()}


@pytest.mark.parametrize(("model", "layer"), [(PLAIN, 2), (REGISTERS, 3)])
def test_vit_equals_its_formulas_at_stride_7(files: dict[str, Path], model: str, layer: int) -> None:
    images = noise(2, 3, 45, 62)
    twins = [vit_twin(timm_weights(model), image, layer, 7) for image in images]
    for facet in FACETS if model == PLAIN else ("token",):
        backbone = VitBackbone(model, layer, facet, checkpoint=str(files[model]))
        features = backbone(images)
        assert features.shape == (2, backbone.channels, 5, 7)
        assert not features.requires_grad
        assert features.dtype == torch.float32
        expected = torch.stack([twin[facet] for twin in twins]).float()
        torch.testing.assert_close(features, expected, atol=2e-4, rtol=1e-3)


@pytest.mark.parametrize("size", [(37, 37), (5, 61), (67, 121)])
def test_positions_are_bicubic_with_the_tenth_of_a_token(size: tuple[int, int]) -> None:
    positions = noise(1, 37 * 37, 3)
    expected = torch.einsum(
        "ia,jb,abc->ijc",
        bicubic_weights(size[0], 37),
        bicubic_weights(size[1], 37),
        positions.double().reshape(37, 37, 3),
    )
    found = resize_positions(positions, (37, 37), *size)
    torch.testing.assert_close(found, expected.reshape(1, -1, 3).float(), atol=1e-4, rtol=1e-4)


def test_vit_keeps_no_later_blocks(plain: VitBackbone) -> None:
    assert len(plain.vit.blocks) == 2
    assert not any(parameter.requires_grad for parameter in plain.vit.parameters())


# --- weights ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("model", [PLAIN, REGISTERS])
def test_metas_and_timms_files_give_the_same_features(files: dict[str, Path], tmp_path: Path, model: str) -> None:
    image = noise(1, 3, 28, 35)
    path = tmp_path / "meta.pth"
    nested = {"teacher": {f"backbone.{name}": value.half() for name, value in meta_weights(model).items()}}
    torch.save(nested, path)
    found, expected = (VitBackbone(model, 1, checkpoint=str(p)) for p in (path, files[model]))
    torch.testing.assert_close(found(image), expected(image), atol=1e-2 if model == REGISTERS else 1e-6, rtol=1e-3)
    assert found.settings["weights"] != expected.settings["weights"]


@pytest.mark.usefixtures("three_blocks")
def test_random_weights_follow_the_seed_alone() -> None:
    image = noise(1, 3, 14, 21)
    state = torch.get_rng_state()
    first = VitBackbone(PLAIN, 1, pretrained=False, seed=3)
    assert torch.equal(torch.get_rng_state(), state)
    torch.rand(5)
    again = build_backbone(first.settings)
    other = VitBackbone(PLAIN, 1, pretrained=False, seed=4)
    assert torch.equal(first(image), again(image))
    assert not torch.equal(first(image), other(image))
    assert first.settings["weights"] == "random:3"


def test_settings_are_plain_and_rebuild_the_backbone(plain: VitBackbone) -> None:
    image = noise(1, 3, 28, 28)
    for backbone in (plain, DenseSift(stride=4, spatial_bin_size=3, scale=2.0, rootsift=False)):
        settings = json.loads(json.dumps(backbone.settings))
        again = build_backbone(settings)
        assert again.settings == backbone.settings
        assert again.grid == backbone.grid
        assert torch.equal(again(image), backbone(image))


def test_final_gives_the_last_layers_tokens(plain: VitBackbone) -> None:
    final = plain.final()
    assert final.settings["layer"] == 12
    assert final.settings["facet"] == "token"
    assert final.settings["weights"] == plain.settings["weights"]
    assert final.grid == plain.grid
    assert final.final() is final
    sift = DenseSift()
    assert sift.final() is sift


# --- whole videos -----------------------------------------------------------------------------------------------------


def test_features_of_a_video_do_not_depend_on_the_chunk() -> None:
    frames = (noise(5, 3, 28, 42) * 255).byte()
    seen: list[tuple[str, int]] = []

    def progress(items: range, description: str) -> range:
        seen.append((description, len(items)))
        return items

    whole = extract_features(DenseSift(), frames, chunk=5)
    parts = extract_features(DenseSift(), frames, chunk=2, progress=progress)
    assert torch.equal(whole.values, parts.values)
    assert seen == [("features", 3)]
    assert whole.values.dtype == torch.float16
    assert whole.values.shape == (5, 128, 4, 6)
    assert (whole.grid, whole.size) == (DenseSift().grid, (42, 28))
    torch.testing.assert_close(whole.values[3].float(), DenseSift()(frames[3:4].float() / 255)[0], atol=1e-2, rtol=1e-3)


def test_features_beyond_half_precision_are_refused() -> None:
    with pytest.raises(DinotrackError, match="half precision"):
        extract_features(DenseSift(scale=1e7), (noise(2, 3, 28, 28) * 255).byte())


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        ({"model": "vit_tiny_nonsense"}, "has no model"),
        ({"model": "vit_small_patch14_dinov2.nonsense"}, "nonsense"),
        ({"model": "resnet18"}, "no ViT"),
        ({"layer": 0}, "layers 1 to 12"),
        ({"layer": 13}, "layers 1 to 12"),
        ({"facet": "head"}, "token, query, key, value"),
        ({"stride": 0}, "at least 1"),
        ({"checkpoint": "missing.pth"}, "missing.pth"),
    ],
)
def test_vit_refuses(settings: dict, message: str) -> None:
    with pytest.raises(DinotrackError, match=message):
        VitBackbone(**{"model": PLAIN, "layer": 1, "pretrained": False, **settings})


class Harmful:
    """What only an unrestricted unpickler would bring back."""


def test_vit_refuses_files_that_are_no_weights_of_it(files: dict[str, Path], tmp_path: Path) -> None:
    path = tmp_path / "weights.pth"

    def refuses(message: str, file: Path = path, model: str = PLAIN) -> None:
        with pytest.raises(DinotrackError, match=message) as caught:
            VitBackbone(model, 1, checkpoint=str(file))
        assert "\n" not in str(caught.value)

    path.write_bytes(b"no checkpoint")
    refuses("cannot read")
    path.with_suffix(".safetensors").write_bytes(b"no checkpoint")
    refuses("cannot read", path.with_suffix(".safetensors"))
    path.write_bytes(b"")
    refuses("cannot read")
    refuses("cannot read", tmp_path)
    torch.save({"model": Harmful()}, path)
    refuses("cannot read")
    torch.save({"epoch": 3, "cls_token": torch.zeros(1)}, path)
    refuses("more than named tensors")
    torch.save({"cls_token": torch.zeros(1)}, path)
    refuses("no patch embedding")
    torch.save({"patch_embed.proj.weight": torch.zeros(768, 3, 14, 14)}, path)
    refuses("set backbone.model")
    torch.save({n: v.half() for n, v in timm_weights(PLAIN).items() if not n.startswith("blocks.11.")}, path)
    refuses("Missing key")
    refuses("is not of vit_small_patch14_dinov2", files[REGISTERS])
    refuses("is not of vit_small_patch14_reg4_dinov2", files[PLAIN], REGISTERS)


def test_vit_names_the_ways_out_without_a_network(monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def offline(model: str, pretrained: bool = False, **options: object) -> torch.nn.Module:
        if pretrained:
            raise FileNotFoundError("no network")
        return create(model, pretrained=False, **options)

    monkeypatch.setattr(timm, "create_model", offline)
    with pytest.raises(DinotrackError, match=r"backbone.checkpoint=FILE.*dense_sift.*backbone.pretrained=false"):
        VitBackbone(PLAIN, 1)


def test_weights_that_changed_since_are_noticed(plain: VitBackbone) -> None:
    with pytest.raises(DinotrackError, match="sha256:old"):
        build_backbone({**plain.settings, "weights": "sha256:old"})


def test_small_frames_and_unknown_kinds_are_refused(plain: VitBackbone) -> None:
    with pytest.raises(DinotrackError, match="13x14"):
        plain(noise(1, 3, 14, 13))
    with pytest.raises(DinotrackError, match="no room"):
        DenseSift(stride=16)(noise(1, 3, 10, 10))
    with pytest.raises(DinotrackError, match="at least 1"):
        DenseSift(stride=0)
    with pytest.raises(DinotrackError, match="'hog'"):
        build_backbone({"kind": "hog"})
