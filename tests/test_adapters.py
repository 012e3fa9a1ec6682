"""Temporal adapters against loops in float64, over time windows; the parameters that the method counts."""

import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from tests.twins import array, convolve
from torch import Tensor

from dinotrack.adapters import MIXERS, TemporalAdapter, frame_moments, windowed_attention
from dinotrack.errors import DinotrackError


def adapter(channels: int = 6, **options: object) -> TemporalAdapter:
    """One whose parameters all matter."""
    settings = {"width": 8, "heads": 2, "reach": 2, **options}
    made = TemporalAdapter(channels, **settings)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.3)
    return made


def maps(frames: int = 7, channels: int = 6, rows: int = 8, columns: int = 12) -> Tensor:
    return torch.randn(frames, channels, rows, columns, generator=torch.Generator().manual_seed(3)) + 0.5


def attention_twin(q: np.ndarray, k: np.ndarray, v: np.ndarray, heads: int, reach: int) -> np.ndarray:
    """Attention of one location, frame by frame over its window; (t, c) each."""
    out, size = np.zeros_like(q), q.shape[1] // heads
    for t in range(len(q)):
        near = range(max(0, t - reach), min(len(q), t + reach + 1))
        for head in range(heads):
            of = slice(head * size, (head + 1) * size)
            logits = np.array([q[t, of] @ k[s, of] / math.sqrt(size) for s in near])
            weights = np.exp(logits - logits.max())
            out[t, of] = (weights / weights.sum()) @ v[list(near), of]
    return out


def pool_twin(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    out = np.zeros((len(weight), x.shape[1] // 4, x.shape[2] // 4))
    for i in range(out.shape[1]):
        for j in range(out.shape[2]):
            out[:, i, j] = np.einsum("ocab,cab->o", weight, x[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4]) + bias
    return out


def unpool_twin(x: np.ndarray, weight: np.ndarray, bias: np.ndarray) -> np.ndarray:
    out = np.zeros((weight.shape[1], 4 * x.shape[1], 4 * x.shape[2]))
    for i in range(x.shape[1]):
        for j in range(x.shape[2]):
            cell = np.einsum("coab,c->oab", weight, x[:, i, j]) + bias[:, None, None]
            out[:, 4 * i : 4 * i + 4, 4 * j : 4 * j + 4] = cell
    return out


def adapter_twin(made: TemporalAdapter, x: np.ndarray, heads: int = 2, reach: int = 2) -> np.ndarray:
    """§8, one operation a line."""
    w = {name: array(value) for name, value in made.state_dict().items()}
    x = (x - x.mean()) / math.sqrt(x.var() + 1e-5)
    x = x * w["norm.weight"][:, None, None] + w["norm.bias"][:, None, None]
    x = np.stack([np.maximum(convolve(f, w["conv1.weight"], w["conv1.bias"]), 0) for f in x])
    x = np.stack([np.maximum(pool_twin(f, w["conv_pool.weight"], w["conv_pool.bias"]), 0) for f in x])
    normed = (x - x.mean(1, keepdims=True)) / np.sqrt(x.var(1, keepdims=True) + 1e-5)
    normed = normed * w["norm2.weight"][:, None, None] + w["norm2.bias"][:, None, None]
    mixed = np.zeros_like(x)
    for i in range(x.shape[2]):
        for j in range(x.shape[3]):
            q, k, v = np.split(normed[:, :, i, j] @ w["attn_temp.qkv.weight"].T, 3, 1)
            found = attention_twin(q, k, v, heads, reach)
            mixed[:, :, i, j] = found @ w["attn_temp.proj.weight"].T + w["attn_temp.proj.bias"]
    x = x + mixed
    x = np.stack([np.maximum(unpool_twin(f, w["conv_upsample.weight"], w["conv_upsample.bias"]), 0) for f in x])
    return np.stack([convolve(f, w["conv2.weight"], w["conv2.bias"]) for f in x])


def close(found: Tensor, expected: np.ndarray | Tensor) -> None:
    expected = torch.as_tensor(expected).float()
    assert (found - expected).abs().max() <= 1e-5 * expected.abs().max()


def test_the_adapter_is_its_formula() -> None:
    made = adapter()
    close(made(maps()), adapter_twin(made, array(maps())))


@pytest.mark.parametrize(("frames", "reach", "block"), [(1, 6, 24), (5, 6, 24), (30, 6, 24), (30, 6, 4), (23, 0, 7)])
def test_windowed_attention_is_full_attention_under_a_mask(frames: int, reach: int, block: int) -> None:
    q, k, v = torch.randn(3, 2, frames, 8, generator=torch.Generator().manual_seed(0)).unbind(0)
    time = torch.arange(frames)
    mask = (time[:, None] - time).abs() <= reach
    heads = [x.unflatten(2, (2, 4)).transpose(1, 2) for x in (q, k, v)]
    whole = F.scaled_dot_product_attention(*heads, attn_mask=mask).transpose(1, 2).flatten(2)
    found = windowed_attention(q, k, v, 2, reach, block)
    close(found, whole)
    for location in range(2):
        close(found[location], attention_twin(*(array(x[location]) for x in (q, k, v)), 2, reach))


def test_attention_of_a_thousand_frames_makes_nothing_of_their_square(monkeypatch: pytest.MonkeyPatch) -> None:
    largest, attend = [0], F.scaled_dot_product_attention

    def watched(q: Tensor, k: Tensor, v: Tensor, attn_mask: Tensor) -> Tensor:
        largest[0] = max(largest[0], *(x.numel() for x in (q, k, v, attn_mask)), q.shape[2] * k.shape[2] * len(q))
        return attend(q, k, v, attn_mask=attn_mask)

    monkeypatch.setattr(F, "scaled_dot_product_attention", watched)
    q = torch.randn(1, 1000, 4)
    assert windowed_attention(q, q, q, 1, 6).isfinite().all()
    assert largest[0] < 40 * 1000 < 1000**2


def test_gradients_are_finite_where_the_last_block_is_filled_up() -> None:
    q = torch.randn(1, 25, 4, requires_grad=True)
    windowed_attention(q, q, q, 1, 6).sum().backward()
    assert q.grad is not None and q.grad.isfinite().all() and q.grad.abs().sum() > 0


@pytest.mark.parametrize("mixing", MIXERS)
def test_with_fixed_statistics_only_frames_within_reach_count(mixing: str) -> None:
    made, x = adapter(mixing=mixing), maps(frames=11)
    moments, changed = frame_moments(x), x.clone()
    changed[5] += torch.randn(6, 8, 12)
    moved = (made(changed, moments) - made(x, moments)).abs().amax((1, 2, 3)) > 0
    assert moved.tolist() == [abs(t - 5) <= 2 for t in range(11)]
    assert ((made(changed) - made(x)).abs().amax((1, 2, 3)) > 0).all()  # statistics are the clip's


@pytest.mark.parametrize("mixing", MIXERS)
def test_with_fixed_statistics_parts_of_a_clip_equal_the_whole(mixing: str) -> None:
    made, x = adapter(mixing=mixing), maps(frames=12)
    moments = frame_moments(x)
    close(made(x[1:], moments)[2:], made(x, moments)[3:])
    close(made(x[:8], moments)[:6], made(x, moments)[:6])


@pytest.mark.parametrize("mixing", MIXERS)
def test_the_residual_starts_at_zero_and_learns(mixing: str) -> None:
    made = TemporalAdapter(6, width=8, heads=2, reach=2, mixing=mixing)
    residual = made(maps())
    assert residual.shape == maps().shape and not residual.any()
    (residual - 1).square().sum().backward()
    assert made.conv2.weight.grad is not None and made.conv2.weight.grad.any()


def test_maps_need_not_be_multiples_of_the_pooling() -> None:
    assert adapter()(maps(rows=7, columns=9)).shape == (7, 6, 7, 9)


@pytest.mark.parametrize(("channels", "expected"), [(384, 1_476_480), (768, 2_362_368)])
def test_parameters_are_as_many_as_published(channels: int, expected: int) -> None:
    count = sum(parameter.numel() for parameter in TemporalAdapter(channels).parameters())
    assert count == expected
    assert round(11 * count / 1e6, 2) == {384: 16.24, 768: 25.99}[channels]


@pytest.mark.parametrize(
    ("settings", "message"),
    [({"mixing": "mean"}, "mixing='mean'"), ({"heads": 3}, "heads=3"), ({"reach": -1}, "reach=-1")],
)
def test_wrong_settings_are_named(settings: dict, message: str, unguarded: None) -> None:
    with pytest.raises(DinotrackError, match=message):
        adapter(**settings)
