"""The networks: Delta-DINO against loops and §1's numbers, the tracker head against the whole-map computation of Eq. 2."""

import itertools
import math

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch import Tensor, nn

from dinotrack.errors import DinotrackError
from dinotrack.geometry import centres
from dinotrack.networks import BlurPool, DeltaDino, TrackerHead, neighbourhood, normalised_kernel
from dinotrack.structs import Grid
from twins import array, benign_head, bilinear, divided, locate, refine

TOKENS = Grid(7.0, 7.0)


def small_delta(alignment: str = "published", seed: int = 0) -> DeltaDino:
    """A Delta-DINO whose last layer is no longer zero and whose norms have seen something."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        delta = DeltaDino(channels=5, hidden=(2, 3, 4), alignment=alignment)
        for module in delta.layers:
            if isinstance(module, nn.Conv2d):
                nn.init.normal_(module.weight, std=0.3)
            if isinstance(module, nn.BatchNorm2d):
                for values in (module.weight, module.running_var):
                    nn.init.uniform_(values, 0.5, 1.5)
                for values in (module.bias, module.running_mean):
                    nn.init.normal_(values, std=0.2)
    return delta


def correlate(maps: np.ndarray, weight: np.ndarray, bias: np.ndarray, padding: int, dilation: int) -> np.ndarray:
    """5×5 cross-correlation of (c, h, w) maps after reflection padding."""
    height, width = maps.shape[1:]
    padded = np.pad(maps, ((0, 0), (padding, padding), (padding, padding)), mode="reflect")
    out = np.zeros((len(weight), height, width)) + bias[:, None, None]
    for a, b in itertools.product(range(5), range(5)):
        seen = padded[:, a * dilation : a * dilation + height, b * dilation : b * dilation + width]
        out += np.einsum("oc,chw->ohw", weight[:, :, a, b], seen)
    return out


def blur(maps: np.ndarray) -> np.ndarray:
    """[1,3,3,1]⊗[1,3,3,1]/64 at every second pixel, reflection padding 1 left / top, 2 right / bottom."""
    padded = np.pad(maps, ((0, 0), (1, 2), (1, 2)), mode="reflect")
    height, width = ((padded.shape[k] - 4) // 2 + 1 for k in (1, 2))
    out = np.zeros((len(maps), height, width))
    for i, j in itertools.product(range(height), range(width)):
        for a, b in itertools.product(range(4), range(4)):
            out[:, i, j] += (1, 3, 3, 1)[a] * (1, 3, 3, 1)[b] / 64 * padded[:, 2 * i + a, 2 * j + b]
    return out


def delta_twin(delta: DeltaDino, images: Tensor, training: bool) -> np.ndarray:
    """The layers of §1 in float64, (b, c, h, w)."""
    weights = {name: array(value) for name, value in delta.layers.state_dict().items()}
    maps = array(images)
    for first in (0, 4, 8, 12):
        last = first == 12
        conv = (weights[f"{first}.weight"], weights[f"{first}.bias"], 4 if last else 2, 2 if last else 1)
        maps = np.stack([correlate(image, *conv) for image in maps])
        norm = f"{first + 1}."
        mean = maps.mean((0, 2, 3)) if training else weights[norm + "running_mean"]
        var = maps.var((0, 2, 3)) if training else weights[norm + "running_var"]
        gain, shift = (weights[norm + name][:, None, None] for name in ("weight", "bias"))
        maps = (maps - mean[:, None, None]) / np.sqrt(var + 1e-5)[:, None, None] * gain + shift
        if not last:
            maps = np.stack([blur(image) for image in np.maximum(maps, 0)])
    return maps


@pytest.mark.parametrize("shape", [(8, 10), (7, 9), (3, 4)])
def test_blurpool_is_a_blur_at_every_second_pixel(shape: tuple[int, int], rng: torch.Generator) -> None:
    maps = torch.randn(2, 3, *shape, generator=rng)
    found = BlurPool(3)(maps)
    assert np.allclose(found, np.stack([blur(array(image)) for image in maps]), atol=1e-6)
    assert found.shape[2:] == (-(-shape[0] // 2), -(-shape[1] // 2))
    assert torch.allclose(BlurPool(3)(torch.ones(1, 3, *shape)), torch.ones(1))


def test_delta_dino_has_the_published_parameters_and_map_sizes() -> None:
    with torch.device("meta"):
        delta, images = DeltaDino(), torch.zeros(1, 3, 476, 854)
    assert sum(p.numel() for p in delta.parameters()) == 7_586_816
    shapes = []
    for layer in delta.layers:
        layer.register_forward_hook(lambda module, _, out: shapes.append((type(module), *out.shape[1:])))
    assert delta(images, TOKENS, 67, 121).shape == (1, 1024, 67, 121)
    pooled = [shape[1:] for shape in shapes if shape[0] is BlurPool]
    assert pooled == [(64, 238, 427), (128, 119, 214), (256, 60, 107)]
    assert shapes[-1][1:] == (1024, 60, 107)


def test_delta_dino_has_the_names_and_shapes_of_the_published_weights() -> None:
    with torch.device("meta"):
        found = {name: tuple(value.shape) for name, value in DeltaDino().state_dict().items()}
    expected: dict[str, tuple[int, ...]] = {}
    widths = (3, 64, 128, 256, 1024)
    for layer, (before, after) in zip((0, 4, 8, 12), itertools.pairwise(widths), strict=True):
        expected |= {f"layers.{layer}.weight": (after, before, 5, 5), f"layers.{layer}.bias": (after,)}
        names = ("weight", "bias", "running_mean", "running_var")
        expected |= {f"layers.{layer + 1}.{name}": (after,) for name in names}
        expected |= {f"layers.{layer + 1}.num_batches_tracked": ()}
        if layer < 12:
            expected |= {f"layers.{layer + 3}.filt": (after, 1, 4, 4)}
    assert found == expected


def test_delta_dinos_norms_and_start_are_the_published_ones() -> None:
    delta = DeltaDino(channels=6, hidden=(2, 3, 4))
    norms = [module for module in delta.layers if isinstance(module, nn.BatchNorm2d)]
    assert {(norm.eps, norm.momentum) for norm in norms} == {(1e-5, 0.1)}
    assert [norm.weight.unique().tolist() for norm in norms] == [[1.0], [1.0], [1.0], [pytest.approx(0.05)]]
    last = delta.layers[12]
    assert isinstance(last, nn.Conv2d) and not last.weight.any() and last.bias is not None and not last.bias.any()


@pytest.mark.parametrize("training", [True, False])
def test_the_residual_is_zero_at_the_start_and_can_leave_it(training: bool, rng: torch.Generator) -> None:
    delta = DeltaDino(channels=6, hidden=(8, 8, 8)).train(training)
    residual = delta(torch.rand(2, 3, 42, 49, generator=rng), TOKENS, 5, 6)
    assert residual.shape == (2, 6, 5, 6) and not residual.any()
    (residual * torch.randn(residual.shape, generator=rng)).sum().backward()
    last = delta.layers[12]
    assert isinstance(last, nn.Conv2d) and last.weight.grad is not None and last.weight.grad.abs().max() > 0


@pytest.mark.parametrize("training", [True, False])
@pytest.mark.parametrize("alignment", ["published", "centred"])
def test_delta_dino_is_the_network_of_the_method(alignment: str, training: bool, rng: torch.Generator) -> None:
    delta, images = small_delta(alignment).train(training), torch.rand(2, 3, 42, 49, generator=rng)
    maps = delta_twin(delta, images, training)
    found = delta(images, TOKENS, 5, 6)
    assert maps.shape == (2, 5, 6, 7)
    for frame, (i, j) in itertools.product(range(2), itertools.product(range(5), range(6))):
        x, y = 7 + 7 * j, 7 + 7 * i
        # [C] reads cell (x - 0.5) / 8, the centred option (x - 4) / 8 (§1).
        shift = 0.5 if alignment == "published" else 4.0
        expected = bilinear(maps[frame], (x - shift) / 8, (y - shift) / 8, Grid(1.0, 0.0))
        assert np.allclose(found[frame, :, i, j].detach(), expected, atol=1e-5)


def sensitivity_centre(
    delta: DeltaDino, images: Tensor, grid: Grid, cell: tuple[int, int], shape: tuple[int, int]
) -> Tensor:
    """Raster position (x, y) around which the pixels lie that one cell of the residual depends on."""
    images = images.clone().requires_grad_()
    delta(images, grid, *shape)[0, :, cell[0], cell[1]].sum().backward()
    assert images.grad is not None
    weight = images.grad[0].sum(0).double()
    xy = centres(*weight.shape, Grid(1.0, 0.5)).double()
    return weight.flatten() @ xy / weight.sum()


@pytest.mark.parametrize(("alignment", "off"), [("centred", 0.0), ("published", 3.5)])
def test_where_delta_dino_looks(alignment: str, off: float) -> None:
    """With even, positive kernels a cell's centre of sensitivity is where it looks: cell u at 8u + 4, whatever is claimed."""
    delta = DeltaDino(channels=1, hidden=(1, 1, 1), alignment=alignment).eval()
    for module in delta.layers:
        if isinstance(module, nn.Conv2d):
            nn.init.constant_(module.weight, 0.01)
            nn.init.constant_(module.bias, 0.1)  # type: ignore[arg-type]
    images = torch.full((1, 3, 160, 168), 0.5)
    for u in (9, 11):
        own = Grid(delta.stride, delta.offset)  # its own cells, no interpolation
        looks = sensitivity_centre(delta, images, own, (9, u), (20, 21))
        assert torch.allclose(looks, torch.tensor([8.0 * u + 4, 8.0 * 9 + 4], dtype=torch.float64), atol=1e-3)
    token = torch.tensor([7 + 7 * 12.0, 7 + 7 * 11.0], dtype=torch.float64)
    looks = sensitivity_centre(delta, images, TOKENS, (11, 12), (21, 23))
    assert torch.allclose(looks, token + off, atol=1e-3)


def test_delta_dino_refuses_frames_too_small_for_its_padding() -> None:
    delta = small_delta().eval()
    assert delta(torch.rand(1, 3, 33, 33), TOKENS, 3, 3).shape == (1, 5, 3, 3)
    with pytest.raises(DinotrackError, match=r"frames of 40x32 are too small for Delta-DINO \(sides of 33 at least\)"):
        delta(torch.rand(1, 3, 32, 40), TOKENS, 3, 4)


@pytest.mark.usefixtures("unguarded")
def test_unknown_options_are_refused() -> None:
    with pytest.raises(DinotrackError, match="alignment='middle' is neither 'published' nor 'centred'"):
        DeltaDino(4, (2, 2, 2), alignment="middle")  # type: ignore[arg-type]
    with pytest.raises(DinotrackError, match="peak='both' is neither"):
        TrackerHead(peak="both")  # type: ignore[arg-type]
    with pytest.raises(DinotrackError, match="fallback='none' is neither"):
        TrackerHead(fallback="none")  # type: ignore[arg-type]


def test_the_refiner_has_305_parameters_with_the_published_names() -> None:
    head = TrackerHead()
    assert sum(p.numel() for p in head.parameters()) == 305
    assert {name: tuple(value.shape) for name, value in head.state_dict().items()} == {
        "cnn_refiner.0.weight": (16, 1, 3, 3),
        "cnn_refiner.0.bias": (16,),
        "cnn_refiner.2.weight": (1, 16, 3, 3),
        "cnn_refiner.2.bias": (1,),
    }
    assert (head.radius, head.peak) == (35.0, "similarity")


def test_kernels_are_divided_by_their_sums(rng: torch.Generator) -> None:
    weight = torch.randn(4, 3, 3, 3, generator=rng)
    assert np.allclose(normalised_kernel(weight), divided(array(weight)), rtol=1e-4)
    assert torch.allclose(normalised_kernel(weight).sum((2, 3)), torch.ones(4, 3), atol=1e-4)


def test_sums_near_zero_are_kept_away_from_it() -> None:
    weight = torch.zeros(3, 1, 3, 3, dtype=torch.float64)
    weight[:, 0, 0, 0], weight[:, 0, 1, 1] = 1.0, torch.tensor([0, 5e-9, -5e-9], dtype=torch.float64) - 1
    found = normalised_kernel(weight)[:, 0]
    assert np.allclose(found[:, 0, 0], [1e8, 1e8, -1e8])
    assert np.allclose(found, divided(array(weight))[:, 0])
    assert normalised_kernel(torch.zeros(1, 1, 3, 3)).isfinite().all()


def test_gradients_pass_through_the_kernels_sums(rng: torch.Generator) -> None:
    weight = torch.randn(2, 2, 3, 3, generator=rng, dtype=torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(normalised_kernel, (weight,))
    (gradient,) = torch.autograd.grad(normalised_kernel(weight)[0, 0, 1, 1], weight)
    total, value = weight[0, 0].sum(), weight[0, 0, 1, 1]
    assert gradient[0, 0, 0, 0].item() == pytest.approx((-value / total**2).item())  # zero, were the sum a constant


def test_the_refiner_starts_like_any_convolution_of_pytorch() -> None:
    torch.manual_seed(3)
    head = TrackerHead()
    torch.manual_seed(3)
    expected = nn.Sequential(nn.Conv2d(1, 16, 3), nn.ReLU(), nn.Conv2d(16, 1, 3))
    for found, wanted in zip(head.cnn_refiner.parameters(), expected.parameters(), strict=True):
        assert torch.equal(found, wanted)


def similarity_maps(height: int, width: int, rng: torch.Generator) -> Tensor:
    """Cosines with peaks at every corner, at the borders and inside; smooth ones, rough ones, negative ones."""
    places = [
        (0, 0),
        (0, width - 1),
        (height - 1, 0),
        (height - 1, width - 1),
        (0, width // 2),
        (height // 2, width - 1),
    ]
    places += [(1, 1), (height // 2, width // 2), (height - 2, width // 3)]
    xy = centres(height, width, Grid(1.0, 0.0))
    peaks = torch.tensor([[x, y] for y, x in places], dtype=torch.float32)
    bumps = torch.exp(-torch.cdist(peaks, xy) / 4).view(-1, height, width)
    rough = torch.rand(len(bumps), height, width, generator=rng) * 0.6 - 0.3
    return torch.cat([0.7 * bumps + rough, bumps, 2 * rough, -rough.abs()]).clamp(-1, 1)


@pytest.mark.parametrize("scale", [1.0, 0.5])
@pytest.mark.parametrize("fallback", ["normalised", "published"])
@pytest.mark.parametrize(("refine", "peak"), [(True, "similarity"), (True, "refined"), (False, "similarity")])
def test_the_head_on_a_window_is_the_head_on_the_whole_map(
    refine: bool, peak: str, fallback: str, scale: float, rng: torch.Generator
) -> None:
    head = benign_head(refine=refine, peak=peak, fallback=fallback)
    maps = similarity_maps(13, 17, rng)
    found = head(maps, TOKENS, scale)
    expected = np.stack([locate(head, array(one), TOKENS, scale) for one in maps])
    assert np.allclose(found.detach(), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("shape", [(1, 1), (1, 9), (2, 3), (9, 1)])
def test_the_head_takes_maps_smaller_than_its_window(shape: tuple[int, int], rng: torch.Generator) -> None:
    head, maps = benign_head(), torch.rand(3, *shape, generator=rng)
    expected = np.stack([locate(head, array(one), TOKENS) for one in maps])
    assert np.allclose(head(maps, TOKENS).detach(), expected, rtol=1e-5, atol=1e-5)
    assert head(maps[:0], TOKENS).shape == (0, 2)


def test_the_window_is_exact_for_fresh_refiners_with_large_weights(rng: torch.Generator) -> None:
    maps = similarity_maps(13, 17, rng)
    for seed in range(4):
        torch.manual_seed(seed)
        head = TrackerHead().double()
        expected = np.stack([locate(head, array(one), TOKENS) for one in maps])
        # The head computes maps in float32; logits in the hundreds magnify its rounding.
        largest = max(float(np.abs(refine(head, np.maximum(array(one), 0))).max()) for one in maps)
        head = head.float()
        assert np.abs(array(head(maps, TOKENS)) - expected).max() < 1e-5 * max(1.0, largest)


def test_gradients_on_the_window_are_those_of_the_whole_map(rng: torch.Generator) -> None:
    head, maps = benign_head(), similarity_maps(11, 12, rng)[:18].requires_grad_()
    pull = torch.randn(18, 2, generator=rng)
    found = torch.autograd.grad((head(maps, TOKENS) * pull).sum(), [maps, *head.parameters()])
    whole = benign_head().double()
    doubled = maps.detach().double().requires_grad_()
    kernels = [w / w.sum((2, 3), keepdim=True) for w in (whole.cnn_refiner[0].weight, whole.cnn_refiner[2].weight)]  # type: ignore[attr-defined]
    clamped = doubled.clamp(min=0)
    hidden = F.relu(F.conv2d(clamped[:, None], kernels[0], whole.cnn_refiner[0].bias, padding=1))  # type: ignore[arg-type]
    heat = F.conv2d(hidden, kernels[1], whole.cnn_refiner[2].bias, padding=1).flatten(1).softmax(1)  # type: ignore[arg-type]
    xy = centres(11, 12, TOKENS).double()
    disc = torch.cdist(xy[clamped.flatten(1).argmax(1)], xy) <= 35
    located = (heat * disc) @ xy / (heat * disc).sum(1, keepdim=True)
    expected = torch.autograd.grad((located * pull).sum(), [doubled, *whole.parameters()])
    for a, b in zip(found, expected, strict=True):
        assert (a - b).abs().max() <= 1e-4 * b.abs().max().clamp(min=1)


def test_the_published_fallback_is_the_uniform_mean_of_the_disc() -> None:
    head = TrackerHead(fallback="published", hidden=1)
    sharp = torch.full((1, 1, 3, 3), 12.0)
    sharp[0, 0, 1, 1] = 1 - 8 * 12.0  # an inverted peak, of sum 1
    flat = torch.zeros(1, 1, 3, 3)
    flat[0, 0, 1, 1] = 1.0
    with torch.no_grad():
        for convolution, weight in ((head.cnn_refiner[0], flat), (head.cnn_refiner[2], sharp)):
            convolution.weight.copy_(weight)  # type: ignore[union-attr]
            convolution.bias.zero_()  # type: ignore[union-attr]
    maps = torch.zeros(1, 15, 25)
    maps[0, 7, 4] = 1.0  # the peak of S; its refined neighbours have logits of 12
    maps[0, 6:9, 19:22] = 0.9
    maps[0, 7, 20] = 0.0  # refined to 86, outside Ω: the softmax leaves Ω nothing
    found = head(maps, TOKENS)[0].detach()
    assert np.allclose(found, locate(head, array(maps[0]), TOKENS), atol=1e-4)
    disc = [(7 + 7 * j, 7 + 7 * i) for i in range(15) for j in range(25) if math.hypot(i - 7, j - 4) <= 5]
    assert np.allclose(found, np.mean(disc, 0), atol=1e-4)
    head.fallback = "normalised"
    better = head(maps, TOKENS)[0].detach()
    assert np.allclose(better, locate(head, array(maps[0]), TOKENS), atol=1e-4)
    assert abs(float(better[0] - found[0])) > 1e-3  # on the left the disc meets the border


def test_cells_exactly_a_radius_away_belong_to_the_disc() -> None:
    head = TrackerHead(refine=False)
    maps = torch.zeros(1, 13, 13)
    maps[0, 6, 6], maps[0, 6, 11], maps[0, 6, 12] = 0.5, 0.4, 0.3  # 35 px away, and 42 px
    expected = (0.5 * (7 + 42) + 0.4 * (7 + 77)) / 0.9
    assert head(maps, TOKENS)[0].tolist() == pytest.approx([expected, 49.0], abs=1e-4)


def test_a_map_without_similarity_gives_a_position_all_the_same() -> None:
    for refined in (True, False):
        found = TrackerHead(refine=refined)(-torch.ones(1, 9, 9), TOKENS)
        assert found.isfinite().all() and (found >= 7).all() and (found <= 63).all()


def test_the_neighbourhood_of_a_peak(rng: torch.Generator) -> None:
    peak = torch.tensor([0, 7 * 5 + 3, 6 * 8 + 7])
    cells, inside = neighbourhood(peak, (7, 8), 1, 2)
    assert cells.shape == inside.shape == (3, 7, 7)
    for n, (a, b) in itertools.product(range(3), itertools.product(range(7), range(7))):
        row, column = int(peak[n]) // 8 + a - 3, int(peak[n]) % 8 + b - 3
        within = 0 <= row < 7 and 0 <= column < 8
        assert bool(inside[n, a, b]) == within
        assert 0 <= int(cells[n, a, b]) < 56
        if within:
            assert int(cells[n, a, b]) == row * 8 + column


@pytest.mark.parametrize("fallback", ["normalised", "published"])
@pytest.mark.parametrize("total", [1e-2, 1e-4, 1e-6, 1e-9, 0.0])
def test_a_fit_survives_kernels_that_nearly_cancel(total: float, fallback: str, rng: torch.Generator) -> None:
    torch.manual_seed(0)
    head = TrackerHead(fallback=fallback)  # type: ignore[arg-type]
    with torch.no_grad():
        for convolution in (head.cnn_refiner[0], head.cnn_refiner[2]):
            weight = convolution.weight  # type: ignore[union-attr]
            weight[0, 0] += (total - weight[0, 0].sum()) / 9
            largest = normalised_kernel(weight).abs().max()
            assert largest > min(1 / max(total, 1e-7), 1e3) / 20
    maps, wanted = similarity_maps(13, 17, rng), torch.rand(36, 2, generator=rng) * 90
    maps.requires_grad_()
    optimizer = torch.optim.Adam([*head.parameters(), maps], lr=0.01)
    for _ in range(12):
        optimizer.zero_grad()
        F.huber_loss(head(maps, TOKENS) / 60, wanted / 60, delta=1 / 32).backward()
        optimizer.step()
        assert all(p.isfinite().all() for p in [*head.parameters(), maps])
    assert head(maps, TOKENS).isfinite().all()
