"""Layers of Delta-DINO between its convolutions, kind to memory and, on a CPU, exact with channels last."""

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn
from torch.autograd.function import once_differentiable


class BlurPool(nn.Module):
    """Anti-aliased downsampling by 2: [1,3,3,1]⊗[1,3,3,1]/64 after reflection padding of 1 left / top, 2 right / bottom (§1)."""

    filt: Tensor

    def __init__(self, channels: int) -> None:
        super().__init__()
        taps = torch.tensor([1.0, 3.0, 3.0, 1.0]) / 8
        self.register_buffer("filt", (taps[:, None] * taps).expand(channels, 1, 4, 4).clone())

    def forward(self, maps: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h2 w2"]:
        blurred = Blur.apply(maps, self.filt)
        assert isinstance(blurred, Tensor)
        return blurred


class Blur(torch.autograd.Function):
    """BlurPool's arithmetic. It is linear and its filter fixed, so that nothing need be kept for the gradient.

    `F.conv2d` by itself would keep the padded maps.
    """

    @staticmethod
    def forward(ctx: Any, maps: Tensor, filt: Tensor) -> Tensor:
        ctx.save_for_backward(filt)
        ctx.size = maps.shape[2:]
        return F.conv2d(F.pad(maps, (1, 2, 1, 2), mode="reflect"), filt.to(maps), stride=2, groups=len(filt))

    @staticmethod
    def backward(ctx: Any, gradient: Tensor) -> tuple[Tensor, None]:  # pyright: ignore[reportIncompatibleMethodOverride]
        (filt,) = ctx.saved_tensors
        # With an even side the last padded row is read by no output: it has no gradient.
        extra = [side % 2 for side in ctx.size]
        padded = F.conv_transpose2d(
            gradient, filt.to(gradient), stride=2, groups=len(filt), output_padding=(1 - extra[0], 1 - extra[1])
        )
        for axis, side in ((2, ctx.size[0]), (3, ctx.size[1])):
            for border, inner in ((0, 2), (side + 1, side - 1), (side + 2, side - 2)):
                padded.select(axis, inner).add_(padded.select(axis, border))
            padded = padded.narrow(axis, 1, side)
        return padded, None


class BatchNorm(nn.BatchNorm2d):
    """`nn.BatchNorm2d`, whose sums in training are right on a CPU with channels last too.

    There PyTorch adds a channel's values up one by one in float32: outputs and gradients of 8 maps of 238×420 are 6e-5 off. Here
    parts are added up pairwise, and their sums in double precision.
    """

    def __init__(self, channels: int) -> None:
        super().__init__(channels)

    def forward(self, input: Float[Tensor, "b c h w"]) -> Float[Tensor, "b c h w"]:
        plain = input.device.type == "cpu" and input.dtype == torch.float32 and not torch.compiler.is_compiling()
        several = input.numel() > input.shape[1]  # of one value there is no variance, which PyTorch says best
        if not (self.training and plain and several and input.is_contiguous(memory_format=torch.channels_last)):
            return super().forward(input)
        result, mean, variance = Normalisation.apply(input, self.weight, self.bias, self.eps)  # type: ignore[misc]
        self.track(mean, variance, input.numel() / len(mean))
        return result

    @torch.no_grad()
    def track(self, mean: Float[Tensor, " c"], variance: Float[Tensor, " c"], count: float) -> None:
        """Move the running statistics towards the batch's, the variance as that of a sample."""
        assert self.running_mean is not None and self.running_var is not None and self.num_batches_tracked is not None
        assert self.momentum is not None
        self.num_batches_tracked.add_(1)
        self.running_mean.lerp_(mean, self.momentum)
        self.running_var.lerp_(variance * (count / (count - 1)), self.momentum)


class Normalisation(torch.autograd.Function):
    """BatchNorm of channels-last maps by the batch's own mean and (biased) variance, which are given back too."""

    @staticmethod
    def forward(ctx: Any, maps: Tensor, weight: Tensor, bias: Tensor, eps: float) -> tuple[Tensor, Tensor, Tensor]:
        rows = as_rows(maps)
        mean, variance = mean_and_variance(rows)
        slope = (variance + eps).rsqrt()
        scale = weight * slope
        result = torch.empty_like(maps)  # not a view of its rows: a ReLU may work in place on it
        for part, out in zip(in_parts(rows), in_parts(as_rows(result)), strict=True):
            torch.addcmul(bias - mean * scale, part, scale, out=out)
        ctx.save_for_backward(maps, weight, mean, slope)
        ctx.mark_non_differentiable(mean, variance)
        return result, mean, variance

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, gradient: Tensor, *_: Tensor) -> tuple[Tensor | None, ...]:  # pyright: ignore[reportIncompatibleMethodOverride]
        maps, weight, mean, slope = ctx.saved_tensors
        rows, of_result = as_rows(maps), as_rows(gradient)
        pairs = list(zip(in_parts(rows), in_parts(of_result), strict=True))
        of_bias, of_weight = total([(g.sum(0), ((part - mean) * g).sum(0)) for part, g in pairs]).to(rows)
        of_weight = of_weight * slope
        # weight * slope * (g - mean of g - x̂ * mean of g x̂), as a line in x and g
        scale, tilt = weight * slope, -weight * slope.square() * of_weight / len(rows)
        offset = -scale * of_bias / len(rows) - tilt * mean
        result = torch.empty_like(maps)
        for (part, g), out in zip(pairs, in_parts(as_rows(result)), strict=True):
            torch.addcmul(offset, part, tilt, out=out).addcmul_(g, scale)
        return result, of_weight, of_bias, None


def as_rows(maps: Tensor) -> Float[Tensor, "n c"]:
    """The cells of all maps one by one; a view where channels are last in memory."""
    return maps.movedim(1, 3).reshape(-1, maps.shape[1])


def in_parts(rows: Float[Tensor, "n c"], values: int = 2**19) -> tuple[Tensor, ...]:
    """Rows, some at a time: 2 MB, what a processor's cache holds."""
    return rows.split(max(1, values // rows.shape[1]))


def mean_and_variance(rows: Float[Tensor, "n c"]) -> tuple[Float[Tensor, " c"], Float[Tensor, " c"]]:
    """Mean and biased variance of each column, in one pass: of distances from the mean of the first rows, lest digits cancel."""
    parts = in_parts(rows)
    near = parts[0].mean(0)
    moments = total([(away.sum(0), away.square().sum(0)) for away in (part - near for part in parts)]) / len(rows)
    return near + moments[0].to(rows), (moments[1] - moments[0].square()).to(rows)


def total(parts: Sequence[tuple[Tensor, Tensor]]) -> Float[Tensor, "2 c"]:
    """Sums of either tensor, in double precision."""
    return torch.stack([torch.stack(pair) for pair in parts]).sum(0, dtype=torch.float64)
