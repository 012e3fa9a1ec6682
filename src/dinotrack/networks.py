"""The networks that are fitted to a video: Delta-DINO (Eq. 1) and the tracker head with its CNN refiner (Eq. 2)."""

from collections.abc import Callable, Sequence
from typing import Any, Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float, Int, Shaped, UInt8
from torch import Tensor, nn

from dinotrack.equations import similarity
from dinotrack.errors import DinotrackError
from dinotrack.geometry import centres, resample, window
from dinotrack.layers import BatchNorm, BlurPool
from dinotrack.memory import Budget
from dinotrack.progress import Progress, silent
from dinotrack.structs import Grid
from dinotrack.winograd import Conv5x5


def unit_range(frames: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
    """Images in [0, 1], which Delta-DINO reads."""
    return frames.float() / 255


class Refinement(nn.Module):
    """What makes Φ of raw features: Delta-DINO, or an ablation in its place."""

    settings: dict[str, Any]
    """Plain values that a checkpoint carries, from which the network is made again."""

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse working frames of (W, H) that are too small."""

    def prepare(
        self, frames: UInt8[Tensor, "t 3 h w"], *, budget: Budget = Budget(), progress: Progress = silent
    ) -> None:
        """Compute what depends on the video's working frames but not on the parameters."""

    def compile_parts(self) -> None:
        """Let torch.compile speed up what `refine` runs; names of parameters stay."""
        self.compile()

    def refine(
        self,
        raw: Float[Tensor, "b c h w"],
        images: UInt8[Tensor, "b 3 h2 w2"],
        frames: Int[Tensor, " b"],
        grid: Grid,
    ) -> Float[Tensor, "b c h w"]:
        """Φ of the frames with these numbers, in float32."""
        raise NotImplementedError


class DeltaDino(Refinement):
    """Φ_Δ of Eq. 1: the residual CNN over the RGB frame, sampled at the token centres; zero at the start of a fit.

    The names of its parameters are those of the published weights (§9). With `alignment="published"` output cell u is read as
    if it sat on raster 8u + 0.5, with "centred" where the three BlurPools put it, 8u + 4 (§1). `alone` is the ablation without
    DINO, Φ = Φ_Δ, which wants `zero_start=False`: from features that are all zero no gradient leads away.
    """

    def __init__(
        self,
        channels: int = 1024,
        hidden: Sequence[int] = (64, 128, 256),
        alignment: Literal["published", "centred"] = "published",
        gain: float = 0.05,
        zero_start: bool = True,
        alone: bool = False,
    ) -> None:
        super().__init__()
        if alignment not in ("published", "centred"):
            raise DinotrackError(f"alignment={alignment!r} is neither 'published' nor 'centred'")
        self.stride = 2 ** len(hidden)
        self.offset = 0.5 if alignment == "published" else self.stride / 2
        self.alone = alone
        self.settings = {
            "channels": channels,
            "hidden": list(hidden),
            "alignment": alignment,
            "gain": gain,
            "zero_start": zero_start,
            "alone": alone,
        }
        layers: list[nn.Module] = []
        for before, after in zip([3, *hidden[:-1]], hidden, strict=True):
            layers += [Conv5x5(before, after), BatchNorm(after), nn.ReLU(inplace=True), BlurPool(after)]
        last = Conv5x5(hidden[-1], channels, dilation=2)
        norm = BatchNorm(channels)
        if zero_start and last.bias is not None:
            nn.init.zeros_(last.weight)
            nn.init.zeros_(last.bias)
        nn.init.constant_(norm.weight, gain)
        self.layers = nn.Sequential(*layers, last, norm)

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse frames of (W, H) that are too small for the last layer's reflection padding.

        Raises:
            DinotrackError: when a side is.
        """
        smallest = 4 * self.stride + 1
        if min(size) < smallest:
            raise DinotrackError(
                f"frames of {size[0]}x{size[1]} are too small for Delta-DINO (sides of {smallest} at least); raise resolution"
            )

    def refine(
        self,
        raw: Float[Tensor, "b c h w"],
        images: UInt8[Tensor, "b 3 h2 w2"],
        frames: Int[Tensor, " b"],
        grid: Grid,
    ) -> Float[Tensor, "b c h w"]:
        """Φ = Φ_DINO + Φ_Δ (Eq. 1), in float32 whatever the precision of the network; Φ_Δ by itself if `alone`."""
        residual = self(unit_range(images), grid, *raw.shape[2:]).float()
        return residual if self.alone else residual + raw  # in the residual's layout: channels last

    def forward(
        self, images: Float[Tensor, "b 3 h w"], grid: Grid, height: int, width: int
    ) -> Float[Tensor, "b c h2 w2"]:
        """Residual at the cells of an h×w map on `grid`, from images in [0, 1] at working resolution.

        Raises:
            DinotrackError: when the frames are too small for the last layer's reflection padding.
        """
        self.check_size((images.shape[3], images.shape[2]))
        images = images.contiguous(memory_format=torch.channels_last)
        return resample(self.layers(images).float(), Grid(self.stride, self.offset), grid, height, width)


def normalised_kernel(weight: Float[Tensor, "o i 3 3"], *, smallest: float = 1e-8) -> Float[Tensor, "o i 3 3"]:
    """Each 3×3 kernel divided by the sum of its weights; sums nearer to 0 than `smallest` are set to ±`smallest` [C] (§2)."""
    total = weight.sum((2, 3), keepdim=True)
    sign = torch.where(total < 0, -1.0, 1.0)
    return weight / torch.where(total.abs() < smallest, sign * smallest, total)


class TrackerHead(nn.Module):
    """Π of Eq. 2: similarity maps to positions, by the CNN refiner, a softmax and a local soft-argmax.

    The refiner only runs on the window of cells that Ω and its two 3×3 kernels reach, which is exact: outside Ω nothing counts but
    the softmax's denominator, and that cancels. `fallback="published"` keeps the denominator, and with it the uniform mean over Ω
    where the softmax leaves Ω less than 1e-8 [C]. `peak="refined"` centres Ω on the argmax of H [P] instead of S [C].
    `refine=False` is the raw-feature baseline, H = S; with a `sharpness` H is the softmax of so many times the unclamped
    cosines, as Chrono has it (§8).
    """

    def __init__(
        self,
        radius: float = 35.0,
        refine: bool = True,
        peak: Literal["similarity", "refined"] = "similarity",
        fallback: Literal["normalised", "published"] = "normalised",
        hidden: int = 16,
        sharpness: float | None = None,
    ) -> None:
        super().__init__()
        if refine and sharpness is not None:
            raise DinotrackError(f"sharpness={sharpness} is of the head without a refiner; set refine=False")
        if peak not in ("similarity", "refined"):
            raise DinotrackError(f"peak={peak!r} is neither 'similarity' nor 'refined'")
        if fallback not in ("normalised", "published"):
            raise DinotrackError(f"fallback={fallback!r} is neither 'normalised' nor 'published'")
        self.radius, self.refine, self.peak, self.fallback = radius, refine, peak, fallback
        self.sharpness = sharpness
        self.settings = {"radius": radius, "refine": refine, "peak": peak, "fallback": fallback, "hidden": hidden}
        if sharpness is not None:
            self.settings["sharpness"] = sharpness
        self.cnn_refiner = nn.Sequential(
            nn.Conv2d(1, hidden, 3, padding=1), nn.ReLU(), nn.Conv2d(hidden, 1, 3, padding=1)
        )

    def find(
        self, wanted: Float[Tensor, "n c"], features: Float[Tensor, "c h w"], grid: Grid, scale: float = 1.0
    ) -> Float[Tensor, "n 2"]:
        """Π: raster positions of the wanted features in a frame with these features (Eq. 2)."""
        cosines = similarity(wanted.float(), features.flatten(1).T.float())
        return self(cosines.view(len(wanted), *features.shape[1:]), grid, scale)

    def refined(
        self, maps: Float[Tensor, "n h w"], within: Bool[Tensor, "n h w"] | None = None, padding: int = 1
    ) -> Float[Tensor, "n h2 w2"]:
        """Logits of H. On windows (`padding=0`) cells off the map are `within` = False and count as zero padding does."""
        first, second = self.cnn_refiner[0], self.cnn_refiner[2]
        assert isinstance(first, nn.Conv2d) and isinstance(second, nn.Conv2d)
        hidden = F.relu(F.conv2d(maps[:, None], normalised_kernel(first.weight), first.bias, padding=padding))
        if within is not None:
            hidden = hidden * within[:, None, 1:-1, 1:-1]
        return F.conv2d(hidden, normalised_kernel(second.weight), second.bias, padding=padding).squeeze(1)

    @torch.no_grad()
    def over_refined(self, maps: Float[Tensor, "n h w"], reduce: Callable[[Tensor], Tensor]) -> Shaped[Tensor, " n"]:
        """`reduce` of the whole refined maps, without gradient, some maps at a time: on a CPU as many as its cache holds."""
        bytes_per_map = 4 * self.settings["hidden"] * maps.shape[1] * maps.shape[2]
        at_once = max(1, int((2**28 if maps.is_cuda else 2**21) / bytes_per_map))
        return torch.cat([reduce(self.refined(part)) for part in maps.split(at_once)])

    def forward(self, similarities: Float[Tensor, "n h w"], grid: Grid, scale: float = 1.0) -> Float[Tensor, "n 2"]:
        """Raster positions at working resolution from unclamped cosines; `scale` multiplies the radius R (§0)."""
        maps = similarities.float() if self.sharpness is not None else similarities.float().clamp(min=0)
        whole = self.refine and self.peak == "refined"
        peak = self.over_refined(maps, argmax) if whole else argmax(maps)
        radius = self.radius * scale
        cells, inside = neighbourhood(peak, maps.shape[1:], window(radius, grid.stride), 2 if self.refine else 0)
        patch = maps.flatten(1).gather(1, cells.flatten(1)).view(cells.shape) * inside
        if self.refine:
            logits = self.refined(patch, inside, padding=0)
            cells, inside = cells[:, 2:-2, 2:-2], inside[:, 2:-2, 2:-2]
        else:
            logits = patch.clamp(min=1e-12).log() if self.sharpness is None else self.sharpness * patch
        xy = centres(maps.shape[1], maps.shape[2], grid, maps.device)
        xy_cells, xy_peak = xy[cells], xy[peak]
        disc = inside & ((xy_cells - xy_peak[:, None, None]).norm(dim=-1) <= radius)
        logits = logits.masked_fill(~disc, -torch.inf).flatten(1)
        mass = self.mass(logits, disc.flatten(1), maps) if self.refine else logits.softmax(1)
        # Offsets from the peak, not positions, are averaged: exact in float32 however wide the frame is.
        return xy_peak + torch.einsum(
            "nk,nkd->nd", mass, rearrange(xy_cells, "n a b d -> n (a b) d") - xy_peak[:, None]
        )

    def mass(
        self,
        logits: Float[Tensor, "n k"],
        disc: Bool[Tensor, "n k"],
        maps: Float[Tensor, "n h w"],
        smallest: float = 1e-8,
    ) -> Float[Tensor, "n k"]:
        """H restricted to Ω and normalised there, with the chosen fallback."""
        inner = logits.softmax(1)
        if self.fallback == "normalised":
            return inner
        total = (logits.logsumexp(1) - self.over_refined(maps, logsumexp)).exp()
        uniform = disc / disc.sum(1, keepdim=True)
        return torch.where((total < smallest)[:, None], uniform, inner)


def argmax(maps: Float[Tensor, "n h w"]) -> Int[Tensor, " n"]:
    """Cell of the highest value of each map."""
    return maps.flatten(1).argmax(1)


def logsumexp(maps: Float[Tensor, "n h w"]) -> Float[Tensor, " n"]:
    """Logarithm of the softmax's denominator of each map."""
    return maps.flatten(1).logsumexp(1)


def neighbourhood(
    peak: Int[Tensor, " n"], shape: Sequence[int], half: int, margin: int
) -> tuple[Int[Tensor, "n k k"], Bool[Tensor, "n k k"]]:
    """Cells of the square of half side `half` + `margin` around each peak, and whether they lie on the h×w map."""
    height, width = shape
    reach = torch.arange(-half - margin, half + margin + 1, device=peak.device)
    row = (peak // width)[:, None, None] + reach[:, None]
    column = (peak % width)[:, None, None] + reach
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    return row.clamp(0, height - 1) * width + column.clamp(0, width - 1), inside
