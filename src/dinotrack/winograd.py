"""5×5 convolutions by minimal filtering, F(4×4, 5×5): 64 products where the definition has 400. For float32 on a CPU.

Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks" (CVPR 2016), with the polynomials of Toom and Cook. An image is
cut into tiles of 8×8 that overlap by 4; tile, kernel and result are related by y = Aᵀ[(G g Gᵀ) ⊙ (Bᵀ d B)]A, and the sum over input
channels of the products ⊙ is 64 products of matrices. A dilated image is d² interleaved ones.
"""

from collections.abc import Iterator
from fractions import Fraction
from functools import cache
from itertools import product
from typing import Any

import torch
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable

OUTPUTS, TAPS = 4, 5
SIDE = OUTPUTS + TAPS - 1
POINTS = tuple(Fraction(p) for p in ("0", "1", "-1", "2", "-2", "1/2", "-1/2"))
"""Where the polynomials are compared, beside infinity: small numbers, whose powers lose few bits."""


def times(p: list[Fraction], q: list[Fraction]) -> list[Fraction]:
    """Product of two polynomials, coefficients from the constant one up."""
    result = [Fraction(0)] * (len(p) + len(q) - 1)
    for (i, a), (j, b) in product(enumerate(p), enumerate(q)):
        result[i + j] += a * b
    return result


@cache
def transforms(dtype: torch.dtype) -> tuple[Tensor, Tensor, Tensor]:
    """Aᵀ⊗Aᵀ (16, 64), G⊗G (64, 25) and Bᵀ⊗Bᵀ (64, 64): they act on flattened tiles, kernels and patches.

    Of each point a, Aᵀ and G have powers of a, Bᵀ has Π(x - b) over the other points b, and G divides by its value at a. Rows of Bᵀ
    are brought to length 1 and those of G stretched in turn.
    """
    outputs, kernel, patch = [], [], []
    for a in POINTS:
        others = [Fraction(1)]
        for b in POINTS:
            others = others if a == b else times(others, [-b, Fraction(1)])
        value = sum(c * a**k for k, c in enumerate(others))
        outputs.append([a**k for k in range(OUTPUTS)])
        kernel.append([a**k / value for k in range(TAPS)])
        patch.append([*others, Fraction(0)])
    every = [Fraction(1)]
    for a in POINTS:
        every = times(every, [-a, Fraction(1)])
    infinity = Fraction(1)
    outputs.append([Fraction(0)] * (OUTPUTS - 1) + [infinity])
    kernel.append([Fraction(0)] * (TAPS - 1) + [infinity])
    patch.append(every)
    a, g, b = (
        torch.tensor([[float(v) for v in row] for row in m], dtype=torch.float64) for m in (outputs, kernel, patch)
    )
    length = b.norm(dim=1, keepdim=True)
    one = (a.T.contiguous(), g * length, b / length)
    whole = [torch.kron(matrix, matrix).to(dtype) for matrix in one]
    return whole[0], whole[1], whole[2]


def cut(
    images: Float[Tensor, "b h w c"], side: int, rows: int, columns: int, dilation: int
) -> Float[Tensor, "side side b d d rows columns c"]:
    """A view of the tiles of `side`, 4 apart, of each of the d² interleaved images; those of 8 overlap."""
    channels = images.shape[3]
    b, y, x, c = images.stride()
    apart = OUTPUTS * dilation
    sizes = (side, side, len(images), dilation, dilation, rows, columns, channels)
    strides = (y * dilation, x * dilation, b, y, x, y * apart, x * apart, c)
    return images.as_strided(sizes, strides, images.storage_offset())


def parts(images: int, rows: int, tiles_a_row: int, at_once: int) -> Iterator[tuple[slice, slice]]:
    """Images and rows of tiles, about `at_once` tiles together: what one product works on."""
    some_rows = min(rows, max(1, at_once // tiles_a_row))
    some_images = max(1, at_once // (rows * tiles_a_row))
    for image in range(0, images, some_images):
        for row in range(0, rows, some_rows):
            yield slice(image, image + some_images), slice(row, row + some_rows)


class Convolution(torch.autograd.Function):
    """(b, c, h, w) images, already padded, and (o, c, 5, 5) kernels to (b, o, h - 4d, w - 4d), channels last in memory.

    The transformed patches, four times the images, are made again for the gradient. `memory` bytes hold what one product reads and
    writes: about what a processor's last cache holds.
    """

    @staticmethod
    def forward(ctx: Any, images: Tensor, weight: Tensor, bias: Tensor, dilation: int, memory: float = 40e6) -> Tensor:
        out, kernels, patch = transforms(images.dtype)
        b, c, height, width = images.shape
        height, width, o = height - 4 * dilation, width - 4 * dilation, len(weight)
        rows, columns = (-(-side // (OUTPUTS * dilation)) for side in (height, width))
        at_once = max(1, int(memory / (SIDE**2 * (c + o) * images.element_size())))
        padded = images.new_zeros(b, (OUTPUTS * rows + 4) * dilation, (OUTPUTS * columns + 4) * dilation, c)
        padded[:, : images.shape[2], : images.shape[3]] = images.movedim(1, 3)
        factors = (kernels @ weight.permute(2, 3, 1, 0).reshape(TAPS**2, c * o)).view(SIDE**2, c, o)
        result = images.new_empty(b, OUTPUTS * rows * dilation, OUTPUTS * columns * dilation, o)
        patches, tiles = (
            cut(whole, side, rows, columns, dilation) for whole, side in ((padded, SIDE), (result, OUTPUTS))
        )
        for image, row in parts(b, rows, columns * dilation**2, at_once):
            transformed = (patch @ patches[:, :, image, :, :, row].reshape(SIDE**2, -1)).view(SIDE**2, -1, c)
            tile = tiles[:, :, image, :, :, row]
            tile.copy_((out @ (transformed @ factors).view(SIDE**2, -1)).view(tile.shape)).add_(bias)
        ctx.save_for_backward(padded, factors)
        ctx.shape, ctx.geometry = images.shape, (rows, columns, dilation, at_once)
        return result[:, :height, :width].contiguous().movedim(3, 1)  # dense, as BatchNorm is fast for

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        padded, factors = ctx.saved_tensors
        out, kernels, patch = transforms(padded.dtype)
        rows, columns, dilation, at_once = ctx.geometry
        (b, _, height, width), (_, c, o) = ctx.shape, factors.shape
        whole = padded.new_zeros(b, OUTPUTS * rows * dilation, OUTPUTS * columns * dilation, o)
        whole[:, : gradient.shape[2], : gradient.shape[3]] = gradient.movedim(1, 3)
        tiles, patches = (cut(what, side, rows, columns, dilation) for what, side in ((whole, OUTPUTS), (padded, SIDE)))
        wanted = ctx.needs_input_grad[0]  # not by the first layer, whose images are given
        of_images, of_factors = torch.zeros_like(padded) if wanted else padded, torch.zeros_like(factors)
        # An 8×8 patch is four 4×4 quarters, each of which tiles the plane: sums without overlap.
        corner = [(y, x) for y in (0, OUTPUTS) for x in (0, OUTPUTS)]
        quarters = [
            cut(of_images[:, y * dilation :, x * dilation :], OUTPUTS, rows, columns, dilation) for y, x in corner
        ]
        for image, row in parts(b, rows, columns * dilation**2, at_once):
            some = (slice(None), slice(None), image, slice(None), slice(None), row)
            of_products = (out.T @ tiles[some].reshape(OUTPUTS**2, -1)).view(SIDE**2, -1, o)
            transformed = (patch @ patches[some].reshape(SIDE**2, -1)).view(SIDE**2, -1, c)
            of_factors.baddbmm_(transformed.transpose(1, 2), of_products)
            if not wanted:
                continue
            of_patches = patch.T @ (of_products @ factors.transpose(1, 2)).view(SIDE**2, -1)
            of_patches = of_patches.view(patches[some].shape)
            for (y, x), quarter in zip(corner, quarters, strict=True):
                quarter[some] += of_patches[y : y + OUTPUTS, x : x + OUTPUTS]
        of_weight = (kernels.T @ of_factors.view(SIDE**2, -1)).view(TAPS, TAPS, c, o).permute(3, 2, 0, 1)
        images = of_images[:, :height, :width].contiguous().movedim(3, 1) if wanted else None
        return images, of_weight, gradient.sum((0, 2, 3)), None, None


class Conv5x5(nn.Conv2d):
    """`nn.Conv2d` with 5×5 kernels, stride 1 and reflection padding of its own size; by minimal filtering where that is faster.

    That is in float32 on a CPU, with enough channels; elsewhere PyTorch's convolution runs. They differ by less than 1e-5
    of the norm.
    """

    def __init__(self, channels: int, outputs: int, *, dilation: int = 1, fewest: int = 32) -> None:
        super().__init__(channels, outputs, 5, padding=2 * dilation, dilation=dilation, padding_mode="reflect")
        self.fewest = fewest

    def _conv_forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        if not self.suits(input):
            return super()._conv_forward(input, weight, bias)
        padded = nn.functional.pad(input, self._reversed_padding_repeated_twice, mode="reflect")
        result = Convolution.apply(padded, weight, bias, self.dilation[0])
        assert isinstance(result, Tensor)
        return result

    def suits(self, images: Tensor) -> bool:
        """Whether minimal filtering is to be used."""
        few = min(self.in_channels, self.out_channels) < self.fewest
        plain = images.device.type == "cpu" and images.dtype == torch.float32 and not torch.is_autocast_enabled("cpu")
        return plain and not few and not torch.compiler.is_compiling()
