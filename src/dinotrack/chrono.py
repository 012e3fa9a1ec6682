"""Chrono's features (method §8): a frozen DINOv2 whose blocks are followed by temporal adapters."""

import math
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, nullcontext
from functools import partial
from typing import Any, Literal

import torch
import torch.nn.functional as F
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from dinotrack.adapters import POOL, Mixing, TemporalAdapter, frame_moments
from dinotrack.chrono_weights import part, read_chrono
from dinotrack.embedding import embed
from dinotrack.errors import DinotrackError
from dinotrack.growing import Rows
from dinotrack.memory import Budget
from dinotrack.progress import Progress, silent
from dinotrack.structs import Grid
from dinotrack.weights import fingerprint

Which = Literal["all", "early", "later", "alternate"]
Read = Callable[[slice], Float[Tensor, "b n c"]]
"""Tokens of some frames."""


def adapted_blocks(which: Which | Sequence[int], depth: int) -> list[int]:
    """Numbers, from 0, of the blocks that an adapter follows: of `depth` blocks never the last.

    Raises:
        DinotrackError: for another word, or a number that is not there.
    """
    every = list(range(depth - 1))
    named = {
        "all": every,
        "early": every[: depth // 2],
        "later": every[depth // 2 :],
        "alternate": every[::2],
    }
    if isinstance(which, str):
        if which not in named:
            raise DinotrackError(f"adapted={which!r}: choose {', '.join(named)}, or a list of numbers")
        return named[which]
    if not set(which) <= set(every):
        raise DinotrackError(f"adapted={list(which)}: blocks 0 to {depth - 2} can have an adapter, the last can not")
    return sorted(set(which))


class ChronoBackbone:
    """Tokens after the final norm, all of one length, of a frozen DINOv2 with a temporal adapter after blocks that `adapted` names.

    Frames are enlarged by `upscale` first; `stride` is the ViT's, in pixels of the enlarged frame, the backbone's own in those of
    the frame. `layer` is the number of blocks that are kept. Adapters have the weights of the file `adapters`, else they are zero:
    the features then are DINOv2's. The ViT's weights come as `VitBackbone`'s do. The length is such that channels have an RMS of 1,
    which Delta-DINO's settings expect; cosines do not know it.

    Raises:
        DinotrackError: when model, layer, facet, stride or adapted blocks do not exist, or weights cannot be had or do not fit.
    """

    def __init__(
        self,
        model: str = "vit_base_patch14_dinov2.lvd142m",
        layer: int = 12,
        facet: str = "token",
        stride: int = 14,
        upscale: float = 1.0,
        adapted: Which | Sequence[int] = "all",
        mixing: Mixing = "attention",
        width: int = 128,
        heads: int = 4,
        reach: int = 6,
        adapters: str | None = None,
        checkpoint: str | None = None,
        pretrained: bool = True,
        seed: int = 0,
    ) -> None:
        # timm imports wandb, which `import dinotrack` must not.
        from dinotrack.vits import build_vit, vit_skeleton

        skeleton = vit_skeleton(model)
        _check(model, layer, len(skeleton.blocks), facet, stride, upscale)
        self.vit, weights = build_vit(skeleton, model, checkpoint, pretrained, seed)
        self.vit.blocks = self.vit.blocks[:layer]
        self.vit.eval().requires_grad_(False)
        self.vit.patch_embed.proj.stride = (stride, stride)
        self.channels: int = self.vit.embed_dim
        adapted = adapted if isinstance(adapted, str) else [int(number) for number in adapted]
        chosen = adapted_blocks(adapted, layer)
        with torch.random.fork_rng(devices=[]):  # the same start whoever asks
            torch.manual_seed(seed)
            made = {str(number): TemporalAdapter(self.channels, width, heads, reach, mixing) for number in chosen}
        self.adapters = nn.ModuleDict(made)
        self.reach = len(chosen) * reach
        """Frames before and after a frame on which its features depend, statistics apart."""
        self.upscale = upscale
        self.stride = round(stride / upscale)
        self.grid = Grid(stride=stride / upscale, offset=self.vit.patch_embed.patch_size[0] / 2 / upscale)
        if adapters is not None:
            self.load(adapters)
            weights = f"{weights} {fingerprint(adapters)}"
        self.settings: dict[str, Any] = {
            "kind": "chrono",
            "model": model,
            "layer": layer,
            "facet": facet,
            "stride": stride,
            "upscale": upscale,
            "adapted": adapted,
            "mixing": mixing,
            "width": width,
            "heads": heads,
            "reach": reach,
            "adapters": adapters,
            "checkpoint": checkpoint,
            "pretrained": pretrained,
            "seed": seed,
            "weights": weights,
        }

    def load(self, path: str) -> None:
        """Give the adapters the weights of a file.

        Raises:
            DinotrackError: when it is unreadable, or of other adapters.
        """
        found = part(read_chrono(path), "adapters.")
        try:
            self.adapters.load_state_dict(found)
        except RuntimeError as error:
            what = " ".join(str(error).split())[:200]
            raise DinotrackError(
                f"{path} does not fit these adapters ({what}); set backbone.model, adapted, mixing and width to the file's"
            ) from error

    def frame_bytes(self, cells: int) -> tuple[int, int]:
        """Bytes a frame, of so many tokens, that `over` keeps of all frames: where the budget has room, and in memory.

        The former are tokens behind a block and those behind the next adapted one, the latter pooled maps while they are mixed:
        normalised, as queries, keys and values, and these in blocks.
        """
        tokens = 4 * self.channels * (cells + self.vit.num_prefix_tokens)
        widths = [
            adapter.conv1.out_channels for adapter in self.adapters.children() if isinstance(adapter, TemporalAdapter)
        ]
        return 2 * tokens if len(widths) > 1 else tokens * len(widths), 11 * 4 * max(
            widths, default=0
        ) * cells // POOL**2

    @property
    def device(self) -> torch.device:
        return self.vit.patch_embed.proj.weight.device

    def to(self, device: torch.device | str) -> "ChronoBackbone":
        """Move to `device`, in place."""
        self.vit.to(device)
        self.adapters.to(device)
        return self

    def final(self) -> "ChronoBackbone":
        """Itself: its features are the last layer's."""
        return self

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Features of the consecutive frames of a clip, in [0, 1]."""
        with self.precision():
            return self.features(images)

    def features(self, images: Float[Tensor, "t 3 h w"]) -> Float[Tensor, "t c h2 w2"]:
        """Features of a whole clip at once, with a gradient for the adapters.

        Raises:
            DinotrackError: when the enlarged frames are smaller than a patch.
        """
        tokens, shape = self._entering(images)
        for blocks, adapter in self._segments():
            tokens = _through(blocks, tokens)
            if adapter is not None:
                tokens = self._added(tokens, adapter(self._maps(tokens, shape)))
        return self._leaving(tokens, shape)

    @torch.no_grad()
    def over(
        self,
        frames: UInt8[Tensor, "t 3 h w"],
        *,
        chunk: int = 4,
        budget: Budget = Budget(),
        progress: Progress = silent,
    ) -> Iterator[Float[Tensor, "b c h2 w2"]]:
        """Features of a whole video, `chunk` frames at a time; equal to `features` of all at once.

        The video goes through the network adapter by adapter, because an adapter needs the statistics of all frames. Tokens of all
        frames lie meanwhile where the budget has room; each block runs once a frame.
        """
        parts = [slice(start, start + chunk) for start in range(0, len(frames), chunk)]
        shape = self._entering(self._images(frames[:1]))[1]
        read: Read = lambda which: self._entering(self._images(frames[which]))[0]  # noqa: E731
        *segments, (last, _) = self._segments()
        for blocks, adapter in progress(segments, "features"):
            assert adapter is not None
            with self.precision():
                stored, moments = self._stored(read, blocks, parts, len(frames), shape, budget)
                pooled = [adapter.reduce(self._maps(stored[which].to(self.device), shape), moments) for which in parts]
                read = partial(self._read, stored, adapter, adapter.mix(torch.cat(pooled)), shape)
        for which in parts:
            with self.precision():
                values = self._leaving(_through(last, read(which)), shape)
            yield values

    def _stored(
        self,
        read: Read,
        blocks: Sequence[nn.Module],
        parts: Sequence[slice],
        count: int,
        shape: tuple[int, int],
        budget: Budget,
    ) -> tuple[Float[Tensor, "t n c"], Float[Tensor, "t 2"]]:
        """Tokens of all frames behind `blocks`, and the moments of each frame's patches."""
        rows, moments = Rows(count, budget, self.device), []
        for which in parts:
            tokens = _through(blocks, read(which))
            moments.append(frame_moments(self._maps(tokens, shape)))
            rows.add(tokens)
        return rows.done(), torch.cat(moments)

    def _read(
        self,
        stored: Float[Tensor, "t n c"],
        adapter: TemporalAdapter,
        mixed: Float[Tensor, "t k h w"],
        shape: tuple[int, int],
        which: slice,
    ) -> Float[Tensor, "b n c"]:
        """Stored tokens of some frames with what the adapter has for them."""
        return self._added(stored[which].to(self.device), adapter.expand(mixed[which], shape))

    def _segments(self) -> list[tuple[list[nn.Module], TemporalAdapter | None]]:
        """Blocks up to and including one that an adapter follows, and that adapter; the last have none."""
        segments, blocks = [], list[nn.Module]()
        for number, block in enumerate(self.vit.blocks):
            blocks.append(block)
            if str(number) in self.adapters:
                segments.append((blocks, self.adapters[str(number)]))
                blocks = []
        return [*segments, (blocks, None)]

    def _images(self, frames: UInt8[Tensor, "b 3 h w"]) -> Float[Tensor, "b 3 h w"]:
        return frames.to(self.device).float() / 255

    def _entering(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b n c"], tuple[int, int]]:
        """What enters the first block, and the rows and columns of patch tokens, of images enlarged bilinearly."""
        if self.upscale != 1:
            size = [round(side * self.upscale) for side in images.shape[2:]]
            images = F.interpolate(images, size, mode="bilinear", align_corners=False)
        return embed(self.vit, images)

    def _maps(self, tokens: Float[Tensor, "b n c"], shape: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Patch tokens as a map."""
        return tokens[:, self.vit.num_prefix_tokens :].transpose(1, 2).unflatten(2, shape)

    def _added(self, tokens: Float[Tensor, "b n c"], residual: Float[Tensor, "b c h w"]) -> Float[Tensor, "b n c"]:
        """Tokens with a residual on the patches; nothing on class and register tokens."""
        return tokens + F.pad(residual.flatten(2).transpose(1, 2), (0, 0, self.vit.num_prefix_tokens, 0))

    def _leaving(self, tokens: Float[Tensor, "b n c"], shape: tuple[int, int]) -> Float[Tensor, "b c h w"]:
        """Features out of what the last block made."""
        return F.normalize(self._maps(self.vit.norm(tokens).float(), shape), dim=1) * math.sqrt(self.channels)

    def precision(self) -> AbstractContextManager[Any]:
        """bf16 on a GPU (§8)."""
        return torch.autocast("cuda", torch.bfloat16) if self.device.type == "cuda" else nullcontext()


def _through(blocks: Sequence[nn.Module], tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    for block in blocks:
        tokens = block(tokens)
    return tokens


def _check(model: str, layer: int, depth: int, facet: str, stride: int, upscale: float) -> None:
    if not 1 <= layer <= depth:
        raise DinotrackError(f"layer={layer}: {model} has layers 1 to {depth}")
    if facet != "token":
        raise DinotrackError(f"facet={facet}: Chrono has the facet token alone; take a DINOv2 backbone for others")
    own = stride / upscale if upscale > 0 else 0
    if own < 1 or abs(own - round(own)) > 1e-9:
        raise DinotrackError(
            f"stride={stride}, upscale={upscale}: a token every {own:g} pixels; expected a whole number, as 14 / 3.5 = 4"
        )
