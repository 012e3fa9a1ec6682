"""LoRA: its projection against plain matrices, its start at the frozen features, what is trained and what is saved."""

import copy
import sys
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from dinotrack.backbones import DenseSift, VitBackbone
from dinotrack.errors import DinotrackError
from dinotrack.lora import LoraVit, SplitQkv

MODEL = "vit_small_patch14_reg4_dinov2.lvd142m"  # with five prefix tokens, where leaving one off would show
NAMES = [f"tuned.{i}.attn.qkv.{part}.lora_{m}.default.weight" for i in (0, 1) for part in "qkv" for m in "AB"]


@pytest.fixture(scope="module")
def backbone() -> VitBackbone:
    """A ViT of three blocks whose layer scales matter; timm's own start of 1e-5 would hide attention."""
    backbone = VitBackbone(MODEL, layer=3, pretrained=False)
    generator = torch.Generator().manual_seed(7)
    for name, value in backbone.vit.named_parameters():
        if name.endswith(("gamma", "bias")) or "token" in name:
            value.uniform_(-0.5, 0.5, generator=generator)
    return backbone


@pytest.fixture
def frames(rng: torch.Generator) -> Tensor:
    return torch.randint(0, 256, (5, 3, 28, 42), dtype=torch.uint8, generator=rng)


def lora_vit(backbone: VitBackbone, frames: Tensor | None = None, **options: Any) -> LoraVit:
    """A LoraVit, prepared when frames are given."""
    pytest.importorskip("peft", reason="the extra dinotrack[lora] is not installed")
    lora = LoraVit(backbone, **options)
    if frames is not None:
        lora.prepare(frames)
    return lora


def scatter(lora: LoraVit, rng: torch.Generator) -> None:
    """Give every low-rank matrix values that show, B too."""
    for parameter in lora.parameters():
        parameter.data = torch.randn(parameter.shape, generator=rng) / 2


def features(lora: LoraVit, frames: Tensor, index: list[int]) -> Tensor:
    shape = lora.backbone(frames[:1].float() / 255).shape[1:]
    return lora.refine(torch.zeros(len(index), *shape), frames[index], torch.tensor(index), lora.backbone.grid)


# --- the maths --------------------------------------------------------------------------------------------------------


def test_projection_and_gradients_are_those_of_plain_matrices(backbone: VitBackbone, rng: torch.Generator) -> None:
    lora = lora_vit(backbone, rank=2, alpha=0.5).eval()
    scatter(lora, rng)
    split, fused = copy.deepcopy(lora.tuned[1].attn.qkv).double(), backbone.vit.blocks[2].attn.qkv
    tokens = torch.randn(1, 4, 384, dtype=torch.float64, generator=rng)
    upstream = torch.randn(1, 4, 3 * 384, dtype=torch.float64, generator=rng)
    result = split(tokens)
    result.backward(upstream)
    weight, bias = fused.weight.double(), fused.bias.double()
    for part, name in enumerate("qkv"):
        rows = slice(384 * part, 384 * (part + 1))
        layer = getattr(split, name)
        a, b = (matrix["default"].weight for matrix in (layer.lora_A, layer.lora_B))
        grad_a, grad_b = torch.zeros_like(a), torch.zeros_like(b)
        for x, y, g in zip(tokens[0], result[0, :, rows], upstream[0, :, rows], strict=True):
            low = torch.stack([sum(a[r, c] * x[c] for c in range(384)) for r in range(2)])
            expected = weight[rows] @ x + bias[rows] + 0.5 / 2 * (b[:, 0] * low[0] + b[:, 1] * low[1])
            torch.testing.assert_close(y, expected)
            grad_b += 0.5 / 2 * torch.outer(g, low)
            grad_a += 0.5 / 2 * torch.outer(b.T @ g, x)
        torch.testing.assert_close(a.grad, grad_a.detach())
        torch.testing.assert_close(b.grad, grad_b.detach())


def test_split_projection_is_the_fused_one(rng: torch.Generator) -> None:
    tokens = torch.randn(2, 7, 12, generator=rng)
    for bias in (True, False):
        fused = nn.Linear(12, 36, bias=bias)
        torch.testing.assert_close(SplitQkv(fused)(tokens), fused(tokens))


def test_updates_are_of_q_k_v_of_the_last_blocks_alone(
    backbone: VitBackbone, frames: Tensor, rng: torch.Generator, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The twin: the same backbone with W + alpha / rank · B·A written into the rows of q, k and v of blocks 2 and 3."""
    monkeypatch.setattr(Tensor, "half", Tensor.float)  # updates as large as these would amplify the rounding
    lora = lora_vit(backbone, frames, rank=4, alpha=2.0).eval()
    scatter(lora, rng)
    twin = copy.deepcopy(backbone)
    for block, tuned in zip(twin.vit.blocks[1:], lora.tuned, strict=True):
        for part, name in enumerate("qkv"):
            layer = getattr(tuned.attn.qkv, name)
            update = layer.lora_B["default"].weight @ layer.lora_A["default"].weight * (2.0 / 4)
            block.attn.qkv.weight[384 * part : 384 * (part + 1)] += update.detach()
    expected = twin(frames[[3, 0]].float() / 255)
    assert (expected - backbone(frames[[3, 0]].float() / 255)).abs().max() > 0.1
    torch.testing.assert_close(features(lora, frames, [3, 0]), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("blocks", [1, 3])
def test_start_is_the_frozen_features_to_half_precision(
    backbone: VitBackbone, frames: Tensor, blocks: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    lora = lora_vit(backbone, blocks=blocks).eval()
    lora.prepare(frames, chunk=2)
    start, frozen = features(lora, frames, [4, 1, 2]), backbone(frames[[4, 1, 2]].float() / 255)
    assert start.dtype == torch.float32
    assert lora.tokens.dtype == torch.float16
    assert lora.tokens.nbytes == len(frames) * lora.frame_bytes(start.shape[2] * start.shape[3])
    torch.testing.assert_close(start, frozen, atol=1e-2, rtol=1e-2)
    monkeypatch.setattr(Tensor, "half", Tensor.float)  # what is left when nothing is rounded
    lora.prepare(frames)
    torch.testing.assert_close(features(lora, frames, [4, 1, 2]), frozen, atol=1e-5, rtol=1e-5)


# --- training ---------------------------------------------------------------------------------------------------------


def test_training_moves_features_and_nothing_frozen(backbone: VitBackbone, frames: Tensor) -> None:
    images = frames.float() / 255
    raw, weights = backbone(images), {name: value.clone() for name, value in backbone.vit.state_dict().items()}
    lora = lora_vit(backbone, frames)
    frozen = {name: value.clone() for name, value in lora.named_buffers()}
    optimizer = torch.optim.Adam(lora.parameters(), lr=0.01)
    target, losses = features(lora.eval(), frames, [0, 2]).detach() + 0.5, []
    for _ in range(8):
        loss = (features(lora.train(), frames, [0, 2]) - target).square().mean()
        losses.append(loss.item())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.9 * losses[0]
    assert (features(lora.eval(), frames, [0, 2]) - raw[[0, 2]]).abs().max() > 0.05
    assert all(torch.equal(value, frozen[name]) for name, value in lora.named_buffers())
    assert all(torch.equal(value, weights[name]) for name, value in backbone.vit.state_dict().items())
    assert torch.equal(backbone(images), raw)
    assert not any(parameter.requires_grad for parameter in backbone.vit.parameters())


def test_dropout_is_in_training_alone(backbone: VitBackbone, frames: Tensor, rng: torch.Generator) -> None:
    lora = lora_vit(backbone, frames, dropout=0.5)
    scatter(lora, rng)
    first, second = (features(lora.train(), frames, [0]) for _ in range(2))
    assert not torch.equal(first, second)
    first, second = (features(lora.eval(), frames, [0]) for _ in range(2))
    assert torch.equal(first, second)
    without = lora_vit(backbone, frames, dropout=0.0)
    without.load_state_dict(lora.state_dict())
    assert torch.equal(features(without.train(), frames, [0]), first)


def test_tokens_and_frozen_weights_follow_the_module(backbone: VitBackbone, frames: Tensor) -> None:
    lora = lora_vit(backbone, frames).to("meta")
    held = [*lora.parameters(), *lora.buffers()]
    assert all(tensor.device.type == "meta" for tensor in held)
    assert all(parameter.device.type == "cpu" for parameter in backbone.vit.parameters())


# --- checkpoints ------------------------------------------------------------------------------------------------------


def test_state_is_the_low_rank_matrices(backbone: VitBackbone, frames: Tensor) -> None:
    lora = lora_vit(backbone, frames)
    state = lora.state_dict()
    assert list(state) == NAMES
    assert [name for name, _ in lora.named_parameters()] == NAMES
    assert all(parameter.requires_grad for parameter in lora.parameters())
    for name, value in state.items():
        assert value.shape == ((8, 384) if "lora_A" in name else (384, 8))
    assert sum(value.numel() for value in state.values()) == 2 * 3 * 2 * 8 * 384
    settings = {"kind": "lora", "rank": 8, "alpha": 0.5, "dropout": 0.1, "blocks": 2}
    assert lora.settings == settings


def test_state_round_trip_is_exact(backbone: VitBackbone, frames: Tensor, rng: torch.Generator, tmp_path: Any) -> None:
    lora = lora_vit(backbone, frames).eval()
    scatter(lora, rng)
    torch.save(nn.ModuleDict({"delta": lora}).state_dict(), tmp_path / "weights.pt")  # as a part of a larger module
    options = {name: value for name, value in lora.settings.items() if name != "kind"}
    again = lora_vit(backbone, frames, **options).eval()
    assert not torch.equal(features(again, frames, [1, 3]), features(lora, frames, [1, 3]))
    nn.ModuleDict({"delta": again}).load_state_dict(torch.load(tmp_path / "weights.pt"), strict=True)
    assert torch.equal(features(again, frames, [1, 3]), features(lora, frames, [1, 3]))


def test_state_of_another_lora_is_refused(backbone: VitBackbone) -> None:
    lora = lora_vit(backbone)
    state = lora.state_dict()
    with pytest.raises(RuntimeError, match="Missing key"):
        lora.load_state_dict({name: value for name, value in state.items() if name != NAMES[0]})
    with pytest.raises(RuntimeError, match="Unexpected key"):
        lora.load_state_dict({**state, "tuned.0.norm1.weight": torch.zeros(384)})
    with pytest.raises(RuntimeError, match="size mismatch"):
        lora.load_state_dict(lora_vit(backbone, rank=4).state_dict())


# --- errors -----------------------------------------------------------------------------------------------------------


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"blocks": 0}, r"blocks=0.*1 to 3"),
        ({"blocks": 4}, r"blocks=4.*layer 3"),
        ({"rank": 0}, "rank=0"),
        ({"alpha": 0.0}, r"alpha=0\.0"),
        ({"dropout": 1.0}, r"dropout=1\.0"),
        ({"backbone": DenseSift()}, "not dense_sift"),
        ({"backbone": nn.Identity()}, "not Identity"),
    ],
)
def test_lora_refuses(backbone: VitBackbone, options: dict[str, Any], message: str) -> None:
    with pytest.raises(DinotrackError, match=message):
        LoraVit(**{"backbone": backbone, **options})


def test_lora_refuses_other_facets(backbone: VitBackbone) -> None:
    keys = copy.copy(backbone)
    keys.facet = "key"
    with pytest.raises(DinotrackError, match="not its key"):
        LoraVit(keys)


def test_missing_peft_names_the_extra(backbone: VitBackbone, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(DinotrackError, match=r"pip install 'dinotrack\[lora\]'"):
        LoraVit(backbone)


def test_refining_needs_the_prepared_video(backbone: VitBackbone, frames: Tensor) -> None:
    lora = lora_vit(backbone)
    with pytest.raises(DinotrackError, match=r"prepared for 0 frames.*call prepare"):
        features(lora, frames, [0])
    lora.prepare(frames[:2])
    with pytest.raises(DinotrackError, match=r"prepared for 2 frames with 3x5.*up to 2"):
        features(lora, frames, [0, 2])
    with pytest.raises(DinotrackError, match="4x5"):
        lora.refine(torch.zeros(1, 384, 4, 5), frames[:1], torch.tensor([0]), backbone.grid)


def test_small_frames_and_huge_tokens_are_refused(backbone: VitBackbone, frames: Tensor) -> None:
    lora = lora_vit(backbone)
    lora.check_size((14, 14))
    with pytest.raises(DinotrackError, match="13x14"):
        lora.check_size((13, 14))
    with pytest.raises(DinotrackError, match="42x13"):
        lora.prepare(frames[:, :, :13])
    lora.backbone = copy.deepcopy(backbone)
    lora.backbone.vit.blocks[0].ls1.gamma.fill_(1e6)
    with pytest.raises(DinotrackError, match="half precision"):
        lora.prepare(frames)
    assert len(lora.tokens) == 0
