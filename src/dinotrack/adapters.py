"""Chrono's temporal adapters (method §8): what one block's patch tokens are told of the frames around theirs."""

from collections.abc import Callable, Sequence
from typing import Literal

import torch
import torch.nn.functional as F
from einops import rearrange
from jaxtyping import Bool, Float
from torch import Tensor, nn

from dinotrack.errors import DinotrackError
from dinotrack.geometry import without_autocast

POOL = 4
"""Tokens along a side of the cells over which adapters attend."""
Mixing = Literal["attention", "conv1d", "conv3d"]


def frame_moments(maps: Float[Tensor, "t c h w"]) -> Float[Tensor, "t 2"]:
    """Mean and variance of each frame's values, out of which `ClipNorm` makes those of the clip; in float32."""
    variance, mean = torch.var_mean(maps.float(), dim=(1, 2, 3), correction=0)
    return torch.stack([mean, variance], 1)


class ClipNorm(nn.Module):
    """GroupNorm(1) over a whole clip: its statistics span channels, frames and space (§8).

    They are handed in as the moments of all frames of the clip, so that some frames at a time are normalised like the whole.
    """

    def __init__(self, channels: int, eps: float = 1e-5) -> None:
        super().__init__()
        self.weight, self.bias, self.eps = nn.Parameter(torch.ones(channels)), nn.Parameter(torch.zeros(channels)), eps

    def forward(self, maps: Float[Tensor, "b c h w"], moments: Float[Tensor, "t 2"]) -> Float[Tensor, "b c h w"]:
        """`maps` of some frames of the clip whose frames have these `moments`."""
        mean, within = moments.double().mean(0)
        variance = within + (moments[:, 0].double() - mean).square().mean()
        scale = self.weight * (variance + self.eps).rsqrt().float()
        shift = self.bias - mean.float() * scale
        return maps.float() * scale[:, None, None] + shift[:, None, None]


def band(frames: int, block: int, reach: int, device: torch.device | str = "cpu") -> Bool[Tensor, "n block keys"]:
    """Which of the keys `block` + 2 `reach` wide around each block of queries a query sees: those within its window and the clip.

    Queries that only fill the last block up see something too: a softmax over nothing would be no number.
    """
    starts = torch.arange(0, frames, block, device=device)[:, None, None]
    query = starts + torch.arange(block, device=device)[:, None]
    key = starts + torch.arange(-reach, block + reach, device=device)
    near = (key - query).abs() <= reach
    return (near & (key >= 0) & (key < frames)) | (query >= frames)


def windowed_attention(
    q: Float[Tensor, "l t c"],
    k: Float[Tensor, "l t c"],
    v: Float[Tensor, "l t c"],
    heads: int,
    reach: int,
    block: int = 24,
) -> Float[Tensor, "l t c"]:
    """Attention over time at each location l, of each frame over those within ± `reach`, truncated at the ends.

    Blocks of queries meet the keys around them: time and memory are linear in the number of frames.
    """
    frames = q.shape[1]
    block = min(block, frames)
    spare = -frames % block
    mask = band(frames, block, reach, q.device)
    blocks = rearrange(F.pad(q, (0, 0, 0, spare)), "l (n b) (h d) -> n (l h) b d", b=block, h=heads)
    around = (F.pad(x, (0, 0, reach, spare + reach)).unfold(1, block + 2 * reach, block) for x in (k, v))
    keys, values = (rearrange(x, "l n (h d) k -> n (l h) k d", h=heads) for x in around)
    found = F.scaled_dot_product_attention(blocks, keys, values, attn_mask=mask[:, None])
    return rearrange(found, "n (l h) b d -> l (n b) (h d)", h=heads)[:, :frames]


class TemporalAttention(nn.Module):
    """Attention over time at each location (§8): qkv without bias, projection with bias, no positional encoding."""

    def __init__(self, width: int, heads: int, reach: int) -> None:
        super().__init__()
        self.heads, self.reach = heads, reach
        self.qkv = nn.Linear(width, 3 * width, bias=False)
        self.proj = nn.Linear(width, width)

    def forward(self, x: Float[Tensor, "t h w c"]) -> Float[Tensor, "t h w c"]:
        q, k, v = self.qkv(rearrange(x, "t h w c -> (h w) t c")).chunk(3, -1)
        mixed = self.proj(windowed_attention(q, k, v, self.heads, self.reach))
        return rearrange(mixed, "(h w) t c -> t h w c", h=x.shape[1])


class TimeConvolution(nn.Module):
    """1D convolution over the same window of frames at each location: an ablation of attention."""

    def __init__(self, width: int, heads: int, reach: int) -> None:
        super().__init__()
        self.conv = nn.Conv1d(width, width, 2 * reach + 1, padding=reach)

    def forward(self, x: Float[Tensor, "t h w c"]) -> Float[Tensor, "t h w c"]:
        return rearrange(self.conv(rearrange(x, "t h w c -> (h w) c t")), "(h w) c t -> t h w c", h=x.shape[1])


class SpaceTimeConvolution(nn.Module):
    """3D convolution over the same window of frames and 3×3 locations: an ablation of attention."""

    def __init__(self, width: int, heads: int, reach: int) -> None:
        super().__init__()
        self.conv = nn.Conv3d(width, width, (2 * reach + 1, 3, 3), padding=(reach, 1, 1))

    def forward(self, x: Float[Tensor, "t h w c"]) -> Float[Tensor, "t h w c"]:
        return rearrange(self.conv(rearrange(x, "t h w c -> 1 c t h w")), "1 c t h w -> t h w c")


MIXERS: dict[str, Callable[[int, int, int], nn.Module]] = {
    "attention": TemporalAttention,
    "conv1d": TimeConvolution,
    "conv3d": SpaceTimeConvolution,
}


class TemporalAdapter(nn.Module):
    """The residual on one block's patch tokens (§8), zero at the start; names of parameters are those of published weights (§9).

    `reduce`, `mix` and `expand` are its three stages: the first and the last look at each frame alone, so a long video goes
    through them some frames at a time, and only the pooled maps of all frames have to be together.
    """

    def __init__(
        self, channels: int, width: int = 128, heads: int = 4, reach: int = 6, mixing: Mixing = "attention"
    ) -> None:
        super().__init__()
        if mixing not in MIXERS:
            raise DinotrackError(f"mixing={mixing!r} is unknown; choose one of {', '.join(MIXERS)}")
        if width < 1 or heads < 1 or width % heads or reach < 0:
            raise DinotrackError(
                f"width={width}, heads={heads}, reach={reach}: heads have to divide width, reach be 0 or more"
            )
        self.norm = ClipNorm(channels)
        self.conv1 = nn.Conv2d(channels, width, 3, padding=1)
        self.conv_pool = nn.Conv2d(width, width, POOL, stride=POOL)
        self.norm2 = nn.LayerNorm(width)
        self.attn_temp = MIXERS[mixing](width, heads, reach)
        self.conv_upsample = nn.ConvTranspose2d(width, width, POOL, stride=POOL)
        self.conv2 = nn.Conv2d(width, channels, 3, padding=1)
        nn.init.zeros_(self.conv2.weight)
        assert self.conv2.bias is not None
        nn.init.zeros_(self.conv2.bias)

    def forward(
        self, maps: Float[Tensor, "t c h w"], moments: Float[Tensor, "m 2"] | None = None
    ) -> Float[Tensor, "t c h w"]:
        """Residual of a whole clip; `moments` hold its statistics fixed."""
        pooled = self.reduce(maps, frame_moments(maps) if moments is None else moments)
        return self.expand(self.mix(pooled), maps.shape[2:])

    def reduce(self, maps: Float[Tensor, "b c h w"], moments: Float[Tensor, "t 2"]) -> Float[Tensor, "b k h2 w2"]:
        """Normalised by the clip's moments, convolved and pooled; cells that reach over the border see zeros there."""
        with without_autocast(maps.device.type):  # the norm in float32
            normed = self.norm(maps, moments)
        hidden = self.conv1(normed).relu()
        height, width = maps.shape[2:]
        return self.conv_pool(F.pad(hidden, (0, -width % POOL, 0, -height % POOL))).relu()

    def mix(self, pooled: Float[Tensor, "t k h w"]) -> Float[Tensor, "t k h w"]:
        """x + Attention(LayerNorm(x)) over time, at each location; needs all frames that the window reaches."""
        return pooled + self.attn_temp(self.norm2(pooled.movedim(1, -1))).movedim(-1, 1)

    def expand(self, mixed: Float[Tensor, "b k h2 w2"], shape: Sequence[int]) -> Float[Tensor, "b c h w"]:
        """The residual at `shape` = rows and columns of tokens."""
        fine = self.conv_upsample(mixed).relu()
        return self.conv2(fine[..., : shape[0], : shape[1]])
