"""Frozen features of frames, Φ_DINO of Eq. 1 (method §1): ViTs at any stride, layer and facet, and weightless SIFT."""

import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from types import MappingProxyType
from typing import Any, Protocol, runtime_checkable

import torch
from jaxtyping import Float, UInt8
from kornia.feature import DenseSIFTDescriptor
from torch import Tensor

from dinotrack.chrono import ChronoBackbone
from dinotrack.colours import CHANNELS, colour_histograms
from dinotrack.embedding import embed
from dinotrack.errors import DinotrackError, reason_of
from dinotrack.geometry import resample
from dinotrack.growing import Rows, Sink
from dinotrack.memory import Budget
from dinotrack.progress import Progress, silent
from dinotrack.structs import PIXELS, FeatureMap, Grid

LUMA = (0.299, 0.587, 0.114)
"""Weights of red, green and blue in a grey frame (ITU-R BT.601)."""


@runtime_checkable
class Backbone(Protocol):
    """Images in, a map of frozen features out."""

    channels: int
    stride: int
    grid: Grid
    """Where the tokens look: (i, j) at raster (offset + stride * j, offset + stride * i)."""
    settings: dict[str, Any]
    """Plain values from which `build_backbone` makes the same backbone again; part of every cache key."""

    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Features of images in [0, 1], in float32 and without gradient."""
        ...

    def to(self, device: torch.device | str) -> "Backbone": ...

    def final(self) -> "Backbone":
        """The backbone of last-layer tokens at the same stride, for saliency masks (§3)."""
        ...


@runtime_checkable
class ClipBackbone(Backbone, Protocol):
    """One whose features of a frame depend on the frames around it: it reads a video as a whole."""

    def over(
        self, frames: UInt8[Tensor, "t 3 h w"], *, chunk: int, budget: Budget, progress: Progress
    ) -> Iterator[Float[Tensor, "b c h2 w2"]]:
        """Features of all frames in order, `chunk` frames at a time, on the backbone's device."""
        ...


class DenseSift:
    """Dense SIFT descriptors (kornia) of grey frames: no weights, for tests, small machines and baselines.

    kornia pads the maps of pooled bins by a whole number of pixels; the padding chosen here puts the first token as near
    to stride / 2 as it goes, from below, so that the tokens cover the frame: H // stride rows of them where H is a
    multiple of the stride. `scale` multiplies the unit-norm descriptor; the default gives the channels an RMS of 1.
    A `colour` weight above 0 appends soft colour histograms, of that norm against the descriptor's. `centred` subtracts from
    either its mean over channels, so that cosines are correlations: descriptors have no negative entries, and without it even
    unrelated ones are alike.

    Raises:
        DinotrackError: when stride or spatial_bin_size is not a positive whole number, or colour is negative.
    """

    def __init__(
        self,
        stride: int = 7,
        spatial_bin_size: int = 4,
        scale: float = math.sqrt(128),
        rootsift: bool = True,
        colour: float = 0.0,
        centred: bool = False,
        layer: int = 1,
        facet: str = "token",
        checkpoint: str | None = None,
        pretrained: bool = False,
    ) -> None:
        if (layer, facet) != (1, "token") or checkpoint or pretrained:
            raise DinotrackError(
                f"layer={layer}, facet={facet}, checkpoint={checkpoint}, pretrained={pretrained}: dense SIFT has one layer, "
                "the facet token and no weights; choose another backbone for these"
            )
        if colour < 0:
            raise DinotrackError(f"colour={colour}: the weight of colour beside SIFT; expected 0 (none) or more")
        if stride < 1 or spatial_bin_size < 1:
            raise DinotrackError(
                f"stride={stride}, spatial_bin_size={spatial_bin_size}: dense SIFT needs both at least 1"
            )
        self.stride = stride
        self.scale, self.colour, self.centred = scale, colour, centred
        self.channels = 128 + (CHANNELS if colour else 0)
        self.sigma = spatial_bin_size / 3
        self.centre = unpadded_centre(spatial_bin_size)
        padding = max(0, math.ceil(self.centre - stride / 2))
        self.grid = Grid(stride=float(stride), offset=self.centre - padding)
        self.descriptor = DenseSIFTDescriptor(
            spatial_bin_size=spatial_bin_size, rootsift=rootsift, stride=stride, padding=padding
        ).eval()
        self.settings: dict[str, Any] = {
            "kind": "dense_sift",
            "stride": stride,
            "spatial_bin_size": spatial_bin_size,
            "scale": scale,
            "rootsift": rootsift,
            "colour": colour,
            "centred": centred,
        }

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Descriptors of images in [0, 1].

        Raises:
            DinotrackError: when the images have no room for one token.
        """
        height, width = images.shape[-2:]
        if min(height, width) < 2 * self.grid.offset:
            raise DinotrackError(
                f"a {width}x{height} frame has no room for SIFT at stride {self.stride}; raise resolution"
            )
        grey = torch.einsum("bchw,c->bhw", images.float(), images.new_tensor(LUMA, dtype=torch.float32))
        parts = [self.descriptor(grey.unsqueeze(1)) * self.scale]
        if self.colour:
            histograms = colour_histograms(images.float(), self.sigma) * (self.scale * self.colour)
            parts.append(resample(histograms, PIXELS, self.grid, *parts[0].shape[2:]))
        return torch.cat([part - part.mean(1, keepdim=True) if self.centred else part for part in parts], 1)

    def to(self, device: torch.device | str) -> "DenseSift":
        """Move to `device`, in place."""
        self.descriptor.to(device)
        return self

    def final(self) -> "DenseSift":
        """SIFT has one layer."""
        return self


def unpadded_centre(spatial_bin_size: int, spatial_bins: int = 4) -> float:
    """Raster position at which kornia's first dense descriptor looks without padding.

    Its bins' centres are spatial_bin_size apart, the first one at 1/2 of a pixel for odd bins; an even bin's pooling
    window reaches half a pixel further to the left than to the right.
    """
    return (spatial_bins - 1) * spatial_bin_size / 2 + (0.5 if spatial_bin_size % 2 else 0.0)


FACETS = ("token", "query", "key", "value")
Tap = tuple[int, str]
"""(layer, facet) of a ViT."""


class VitBackbone:
    """Tokens of one block of a frozen ViT at any stride, Φ_DINO of Eq. 1 (§1): DINOv2 with or without registers, by timm.

    `layer` counts from 1 and is read before the final norm; `facet` is the block's output or what its attention makes of
    its input, all heads concatenated. Later blocks are not kept. Weights: those of the file `checkpoint` (timm's names or
    Meta's), else with `pretrained` timm's download, else random ones by `seed`.

    Raises:
        DinotrackError: when model, layer, facet or stride do not exist, or the weights cannot be had or do not fit.
    """

    def __init__(
        self,
        model: str = "vit_large_patch14_dinov2.lvd142m",
        layer: int = 16,
        facet: str = "token",
        stride: int = 7,
        checkpoint: str | None = None,
        pretrained: bool = True,
        seed: int = 0,
    ) -> None:
        # timm imports wandb, which `import dinotrack` must not.
        from dinotrack.vits import build_vit, vit_skeleton

        skeleton = vit_skeleton(model)
        self.depth = len(skeleton.blocks)
        if not 1 <= layer <= self.depth:
            raise DinotrackError(f"layer={layer}: {model} has layers 1 to {self.depth}")
        if facet not in FACETS:
            raise DinotrackError(f"facet {facet!r} is unknown; choose one of {', '.join(FACETS)}")
        if stride < 1:
            raise DinotrackError(f"stride={stride}: expected at least 1 pixel")
        self.vit, weights = build_vit(skeleton, model, checkpoint, pretrained, seed)
        self.vit.blocks = self.vit.blocks[:layer]
        self.vit.eval().requires_grad_(False)
        self.vit.patch_embed.proj.stride = (stride, stride)
        self.facet = facet
        self.patch = self.vit.patch_embed.patch_size[0]
        self.channels: int = self.vit.embed_dim
        self.stride = stride
        self.grid = Grid(stride=float(stride), offset=self.patch / 2)
        self.settings: dict[str, Any] = {
            "kind": "vit",
            "model": model,
            "layer": layer,
            "facet": facet,
            "stride": stride,
            "checkpoint": checkpoint,
            "pretrained": pretrained,
            "seed": seed,
            "weights": weights,
        }

    @torch.no_grad()
    def __call__(self, images: Float[Tensor, "b 3 h w"]) -> Float[Tensor, "b c h2 w2"]:
        """Tokens of images in [0, 1], without class and register tokens.

        Raises:
            DinotrackError: when the images are smaller than one patch.
        """
        return self.read(images, [(len(self.vit.blocks), self.facet)])[0]

    @torch.no_grad()
    def read(self, images: Float[Tensor, "b 3 h w"], taps: Sequence[Tap]) -> list[Float[Tensor, "b c h2 w2"]]:
        """Like a call for each of `taps`, in one pass; this backbone has to reach their layers."""
        tokens, shape = self._embed(images)
        found: dict[Tap, Tensor] = {}
        deepest = max(layer for layer, _ in taps)
        for layer, block in enumerate(self.vit.blocks[:deepest], 1):
            for facet in {facet for at, facet in taps if at == layer and facet != "token"}:
                found[layer, facet] = projected(block, facet, tokens)
            if layer < deepest or (layer, "token") in taps:
                tokens = found[layer, "token"] = block(tokens)
            found = {tap: value for tap, value in found.items() if tap in taps}
        patches = (found[tap][:, self.vit.num_prefix_tokens :] for tap in taps)
        return [each.transpose(1, 2).unflatten(2, shape).contiguous() for each in patches]

    def tokens(self, images: Float[Tensor, "b 3 h w"], blocks: int) -> tuple[Float[Tensor, "b n c"], tuple[int, int]]:
        """What the first `blocks` blocks make of images in [0, 1], prefix tokens first; and the patch tokens' rows and columns."""
        tokens, shape = self._embed(images)
        for block in self.vit.blocks[:blocks]:
            tokens = block(tokens)
        return tokens, shape

    def _embed(self, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b n c"], tuple[int, int]]:
        """What enters the first block, prefix tokens first, and the rows and columns of the patch tokens."""
        return embed(self.vit, images)

    def to(self, device: torch.device | str) -> "VitBackbone":
        """Move to `device`, in place."""
        self.vit.to(device)
        return self

    def final(self) -> Backbone:
        """The same ViT's last block, loaded again because this one dropped it."""
        return self if self.tap == self.last else self.reaching(*self.last)

    @property
    def tap(self) -> Tap:
        """The (layer, facet) that a call gives."""
        return self.settings["layer"], self.facet

    @property
    def last(self) -> Tap:
        """The (layer, facet) of `final`."""
        return self.depth, "token"

    def tapped(self, tap: Tap) -> dict[str, Any]:
        """The settings of this ViT with another (layer, facet)."""
        return {**self.settings, "layer": tap[0], "facet": tap[1]}

    def reaching(self, layer: int, facet: str = "token") -> "VitBackbone":
        """The same ViT with blocks up to `layer`, loaded again because this one dropped those above its own.

        Raises:
            DinotrackError: for a layer or facet that it does not have.
        """
        device = self.vit.patch_embed.proj.weight.device
        other = build_backbone(self.tapped((layer, facet))).to(device)
        assert isinstance(other, VitBackbone)
        return other


def projected(block: Any, facet: str, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n c"]:
    """Queries, keys or values that a block's attention makes of its input, all heads concatenated."""
    return block.attn.qkv(block.norm1(tokens)).chunk(3, -1)[FACETS.index(facet) - 1]


def identity(settings: dict[str, Any]) -> dict[str, Any]:
    """What decides the features: settings without the places that weights came from, which their fingerprint stands for."""
    places = ("checkpoint", "pretrained", "seed", "adapters") if "weights" in settings else ()
    return {name: value for name, value in settings.items() if name not in places}


def build_backbone(settings: dict[str, Any]) -> Backbone:
    """The backbone that has these `settings`.

    Raises:
        DinotrackError: when the kind is unknown, or the weights are no longer those that `settings` name.
    """
    options = {name: value for name, value in settings.items() if name not in ("kind", "weights")}
    kinds: dict[str, Any] = {"dense_sift": DenseSift, "vit": VitBackbone, "chrono": ChronoBackbone}
    if settings.get("kind") not in kinds:
        raise DinotrackError(f"backbone kind {settings.get('kind')!r} is unknown; choose one of {', '.join(kinds)}")
    try:
        backbone: Backbone = kinds[settings["kind"]](**options)
    except TypeError as error:
        raise DinotrackError(f"no {settings['kind']} backbone has these settings ({reason_of(error)})") from error
    found, expected = backbone.settings.get("weights"), settings.get("weights", backbone.settings.get("weights"))
    if found != expected:
        raise DinotrackError(f"the backbone's weights are {found}, expected {expected}; give the file they came from")
    return backbone


def extract_features(
    backbone: Backbone,
    frames: UInt8[Tensor, "t 3 h w"],
    into: Sink | None = None,
    *,
    budget: Budget = Budget(),
    chunk: int = 4,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> FeatureMap:
    """Features of a whole video in half precision on the CPU, `chunk` frames at a time.

    They go `into` a sink as they come, by default into memory, or a file beyond what the budget has room for.

    Raises:
        DinotrackError: when a feature leaves half precision's range.
    """
    backbone, settings = backbone.to(device), backbone.settings
    sink = into or Rows(len(frames), budget)
    if isinstance(backbone, ClipBackbone):
        passed = backbone.over(frames, chunk=chunk, budget=budget, progress=progress)
        pour(([maps] for maps in passed), [(settings, sink)])
    else:
        parts = read_parts(lambda images: [backbone(images)], frames, chunk, device, progress)
        pour(parts, [(settings, sink)])
    return feature_map(sink, backbone.grid, frames)


def extract_taps(
    vit: VitBackbone,
    taps: Sequence[Tap],
    frames: UInt8[Tensor, "t 3 h w"],
    into: Mapping[Tap, Sink] = MappingProxyType({}),
    *,
    budget: Budget = Budget(),
    chunk: int = 4,
    device: torch.device | str = "cpu",
    progress: Progress = silent,
) -> dict[Tap, FeatureMap]:
    """Features of a whole video by several (layer, facet) of one ViT, as `extract_features` gives each, in one pass.

    Raises:
        DinotrackError: for a layer or facet that it does not have, or a feature outside half precision's range.
    """
    taps = list(dict.fromkeys(taps))
    unknown = [facet for _, facet in taps if facet not in FACETS]
    if unknown:
        raise DinotrackError(f"facet {unknown[0]!r} is unknown; choose one of {', '.join(FACETS)}")
    layers = sorted(layer for layer, _ in taps)
    if layers[0] < 1 or layers[-1] > len(vit.vit.blocks):
        vit = vit.reaching(layers[0] if layers[0] < 1 else layers[-1])  # which refuses what does not exist
    vit = vit.to(device)
    sinks = {tap: into.get(tap) or Rows(len(frames), budget) for tap in taps}
    named = [(vit.tapped(tap), sink) for tap, sink in sinks.items()]
    pour(read_parts(lambda images: vit.read(images, taps), frames, chunk, device, progress), named)
    return {tap: feature_map(sink, vit.grid, frames) for tap, sink in sinks.items()}


def read_parts(
    read: Callable[[Float[Tensor, "b 3 h w"]], list[Float[Tensor, "b c h2 w2"]]],
    frames: UInt8[Tensor, "t 3 h w"],
    chunk: int,
    device: torch.device | str,
    progress: Progress,
) -> Iterator[list[Float[Tensor, "b c h2 w2"]]]:
    """What `read` makes of `chunk` frames at a time, on `device`."""
    for start in progress(range(0, len(frames), chunk), "features"):
        yield read(frames[start : start + chunk].to(device).float() / 255)


def pour(parts: Iterable[list[Tensor]], sinks: Sequence[tuple[dict[str, Any], Sink]]) -> None:
    """Each map of each part in half precision into its sink; `settings` name it in an error."""
    for maps in parts:
        for values, (settings, sink) in zip(maps, sinks, strict=True):
            half = values.half().cpu()
            if not half.isfinite().all():
                raise DinotrackError(f"{settings} gives features outside half precision's range; choose another layer")
            sink.add(half)


def feature_map(sink: Sink, grid: Grid, frames: UInt8[Tensor, "t 3 h w"]) -> FeatureMap:
    """What a sink was given, as features of these working frames."""
    return FeatureMap(sink.done(), grid.stride, grid.offset, (frames.shape[3], frames.shape[2]))
