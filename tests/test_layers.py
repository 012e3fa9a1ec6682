"""Delta-DINO's layers against PyTorch's, in float32 and float64: convolutions by minimal filtering, BatchNorm, BlurPool."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinotrack.geometry import resample
from dinotrack.layers import BatchNorm, BlurPool
from dinotrack.networks import DeltaDino
from dinotrack.structs import Grid
from dinotrack.winograd import Conv5x5, Convolution, transforms

SIZES = [(5, 5), (9, 14), (16, 16), (23, 30)]
FORMATS = [torch.channels_last, torch.contiguous_format]


def close(found: Tensor, wanted: Tensor, tolerance: float) -> bool:
    """Whether the norm of the difference is at most `tolerance` of the wanted one's."""
    return float((found - wanted).detach().norm()) <= tolerance * float(wanted.detach().norm())


def test_the_transforms_make_a_correlation(rng: torch.Generator) -> None:
    """From the definition: y[i, j] = Σ d[i + a, j + b] g[a, b], by the three transforms alone."""
    out, kernel, patch = transforms(torch.float64)
    g, d = torch.randn(5, 5, generator=rng).double(), torch.randn(8, 8, generator=rng).double()
    found = (out @ ((kernel @ g.flatten()) * (patch @ d.flatten()))).view(4, 4)
    for i in range(4):
        for j in range(4):
            assert found[i, j].item() == pytest.approx((d[i : i + 5, j : j + 5] * g).sum().item(), abs=1e-12)


@pytest.mark.parametrize("dilation", [1, 2])
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("memory", [1.0, 40e6])
def test_convolution_and_gradients(size: tuple[int, int], dilation: int, memory: float, rng: torch.Generator) -> None:
    """Every size, also those that tiles of 4 do not fill, one tile a part or all at once."""
    reach = 4 * dilation
    images = torch.randn(3, 4, size[0] + reach, size[1] + reach, generator=rng, dtype=torch.float64).requires_grad_()
    weight = torch.randn(6, 4, 5, 5, generator=rng, dtype=torch.float64).requires_grad_()
    bias = torch.randn(6, generator=rng, dtype=torch.float64).requires_grad_()
    found = Convolution.apply(images, weight, bias, dilation, memory)
    wanted = F.conv2d(images, weight, bias, dilation=dilation)
    assert isinstance(found, Tensor) and found.shape == wanted.shape and close(found, wanted, 1e-12)
    upstream = torch.randn(*wanted.shape, generator=rng, dtype=torch.float64)
    every = (images, weight, bias)
    for ours, theirs in zip(
        torch.autograd.grad(found, every, upstream, retain_graph=True),
        torch.autograd.grad(wanted, every, upstream),
        strict=True,
    ):
        assert ours.shape == theirs.shape and close(ours, theirs, 1e-12)
    again = Convolution.apply(images.detach(), weight, bias, dilation, memory)  # images that want no gradient
    assert isinstance(again, Tensor)
    pair = [torch.autograd.grad(result, weight, upstream)[0] for result in (again, found)]
    assert torch.equal(pair[0], pair[1])


@pytest.mark.parametrize(("channels", "outputs", "dilation"), [(64, 128, 1), (128, 64, 2)])
def test_conv5x5_in_float32(channels: int, outputs: int, dilation: int, rng: torch.Generator) -> None:
    """Outputs and gradients to 1e-5 of their norm, against float64, reflection padding included."""
    layer = Conv5x5(channels, outputs, dilation=dilation)
    plain = nn.Conv2d(channels, outputs, 5, padding=2 * dilation, dilation=dilation, padding_mode="reflect").double()
    plain.load_state_dict(layer.state_dict())
    images = torch.randn(2, channels, 26, 33, generator=rng).relu().requires_grad_()
    assert layer.suits(images)
    exact = images.detach().double().requires_grad_()
    found, wanted = layer(images), plain(exact)
    upstream = torch.randn(*wanted.shape, generator=rng)
    ours = torch.autograd.grad(found, [images, *layer.parameters()], upstream)
    theirs = torch.autograd.grad(wanted, [exact, *plain.parameters()], upstream.double())
    assert all(close(a.double(), b, 1e-5) for a, b in zip((found, *ours), (wanted, *theirs), strict=True))


def test_minimal_filtering_is_left_out_where_it_gains_nothing() -> None:
    images = torch.zeros(1, 64, 16, 16)
    assert Conv5x5(64, 64).suits(images)
    assert not Conv5x5(3, 64).suits(torch.zeros(1, 3, 16, 16))  # few channels
    assert not Conv5x5(64, 64).suits(images.double()) and not Conv5x5(64, 64).suits(images.bfloat16())
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert not Conv5x5(64, 64).suits(images)
        assert Conv5x5(64, 64)(images).dtype == torch.bfloat16


@pytest.mark.parametrize("layout", FORMATS)
def test_batch_norm_in_training(layout: torch.memory_format, rng: torch.Generator) -> None:
    """Outputs, gradients and running statistics against float64, twice in a row; channels far from zero."""
    ours, exact = BatchNorm(16), nn.BatchNorm2d(16).double()
    with torch.no_grad():
        for norm in (ours, exact):
            norm.weight.copy_(torch.linspace(0.5, 2, 16))
            norm.bias.copy_(torch.linspace(-1, 1, 16))
    for _ in range(2):
        maps = (torch.randn(4, 16, 90, 60, generator=rng) + 20).contiguous(memory_format=layout).requires_grad_()
        double = maps.detach().double().requires_grad_()
        upstream = torch.randn(*maps.shape, generator=rng)
        found, wanted = ours(maps), exact(double)
        mine = torch.autograd.grad(found, [maps, *ours.parameters()], upstream)
        theirs = torch.autograd.grad(wanted, [double, *exact.parameters()], upstream.double())
        assert all(close(a.double(), b, 1e-5) for a, b in zip((found, *mine), (wanted, *theirs), strict=True))
        assert found.is_contiguous(memory_format=layout)
    for a, b in zip(ours.buffers(), exact.buffers(), strict=True):
        assert torch.allclose(a.double(), b.double(), rtol=1e-5)


def test_batch_norm_is_gradchecked(rng: torch.Generator) -> None:
    from dinotrack.layers import Normalisation

    maps = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64).contiguous(memory_format=torch.channels_last)
    weight, bias = torch.rand(2, 3, generator=rng, dtype=torch.float64).unbind(0)
    inputs = [tensor.detach().clone().requires_grad_() for tensor in (maps, weight, bias)]
    assert torch.autograd.gradcheck(lambda *given: Normalisation.apply(*given, 1e-5)[0], inputs)  # type: ignore[index]


def test_batch_norm_by_running_statistics_is_pytorchs(rng: torch.Generator) -> None:
    ours, plain = BatchNorm(8).eval(), nn.BatchNorm2d(8).eval()
    maps = torch.randn(2, 8, 5, 6, generator=rng).contiguous(memory_format=torch.channels_last)
    assert torch.equal(ours(maps), plain(maps))
    assert ours.state_dict().keys() == plain.state_dict().keys()


@pytest.mark.parametrize("size", [(4, 4), (5, 9), (6, 7), (7, 6), (8, 8)])
@pytest.mark.parametrize("layout", FORMATS)
def test_blur_pool(size: tuple[int, int], layout: torch.memory_format, rng: torch.Generator) -> None:
    blur = BlurPool(3).double()
    maps = torch.randn(2, 3, *size, generator=rng, dtype=torch.float64).contiguous(memory_format=layout)
    maps.requires_grad_()
    found = blur(maps)
    wanted = F.conv2d(F.pad(maps, (1, 2, 1, 2), mode="reflect"), blur.filt, stride=2, groups=3)
    upstream = torch.randn(*wanted.shape, generator=rng, dtype=torch.float64)
    assert torch.allclose(found, wanted, rtol=0, atol=1e-14)
    ours, theirs = (torch.autograd.grad(y, maps, upstream)[0] for y in (found, wanted))
    assert torch.allclose(ours, theirs, rtol=0, atol=1e-14)


def test_a_training_step_keeps_one_array_less_for_blur_and_relu(rng: torch.Generator) -> None:
    """What autograd keeps of a forward pass: per block the convolution's input, its output, and that of the ReLU."""
    kept: dict[int, int] = {}

    def pack(tensor: Tensor) -> Tensor:
        kept[tensor.untyped_storage().data_ptr()] = tensor.untyped_storage().nbytes()
        return tensor

    delta = DeltaDino(8, (32,)).train()
    images = torch.rand(2, 3, 96, 96, generator=rng).contiguous(memory_format=torch.channels_last)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda tensor: tensor):
        delta.layers[:4](images)
    assert sum(size >= 2 * 32 * 96 * 96 * 4 for size in kept.values()) == 2


def test_resampling_stays_in_float32_under_autocast(rng: torch.Generator) -> None:
    maps = torch.randn(1, 8, 10, 12, generator=rng)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = resample(maps, Grid(8.0, 0.5), Grid(7.0, 7.0), 9, 11)
    assert torch.equal(found, resample(maps, Grid(8.0, 0.5), Grid(7.0, 7.0), 9, 11))


def test_a_second_derivative_is_refused(rng: torch.Generator) -> None:
    images, weight = (torch.randn(*shape, generator=rng).requires_grad_() for shape in ((1, 4, 12, 12), (6, 4, 5, 5)))
    found = Convolution.apply(images, weight, torch.zeros(6), 1)
    assert isinstance(found, Tensor)
    (first,) = torch.autograd.grad(found.square().sum(), images, create_graph=True)
    with pytest.raises(RuntimeError, match="once_differentiable"):
        first.sum().backward()
