"""Low-rank updates of a ViT's last blocks, the ablation that takes Delta-DINO's place (method §1)."""

from copy import deepcopy
from typing import Any

import torch
from jaxtyping import Float, Int, UInt8
from torch import Tensor, nn

from dinotrack.backbones import VitBackbone
from dinotrack.errors import DinotrackError
from dinotrack.growing import Rows
from dinotrack.memory import Budget
from dinotrack.networks import Refinement
from dinotrack.progress import Progress, silent
from dinotrack.structs import Grid


class SplitQkv(nn.Module):
    """timm's fused projection as three layers with its weights: a low-rank update of the fused matrix would share A."""

    def __init__(self, fused: nn.Linear) -> None:
        super().__init__()
        biases = (None,) * 3 if fused.bias is None else fused.bias.chunk(3)
        self.q, self.k, self.v = map(linear, fused.weight.chunk(3), biases)

    def forward(self, tokens: Float[Tensor, "b n c"]) -> Float[Tensor, "b n d"]:
        return torch.cat([self.q(tokens), self.k(tokens), self.v(tokens)], -1)


def linear(weight: Float[Tensor, "d c"], bias: Float[Tensor, " d"] | None) -> nn.Linear:
    """A layer with a copy of these weights."""
    layer = nn.Linear(weight.shape[1], weight.shape[0], bias=bias is not None, device="meta")
    layer.weight = nn.Parameter(weight.detach().clone(), requires_grad=False)
    if bias is not None:
        layer.bias = nn.Parameter(bias.detach().clone(), requires_grad=False)
    return layer


def add_adapters(blocks: nn.ModuleList, rank: int, alpha: float, dropout: float) -> None:
    """Make q, k and v of each block W·x + alpha / rank · B·A·dropout(x), B = 0, A random; in place, by peft.

    Raises:
        DinotrackError: when peft is not installed.
    """
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise DinotrackError(f"LoRA needs peft ({error}); pip install 'dinotrack[lora]'") from error
    options: dict[str, Any] = {"r": rank, "lora_alpha": alpha, "lora_dropout": dropout}  # peft types alpha as int
    inject_adapter_in_model(LoraConfig(**options, target_modules=["q", "k", "v"]), blocks)


def freeze(module: nn.Module) -> None:
    """Turn parameters that are not trained into buffers that no state dict holds; they still move with the module."""
    for part in module.modules():
        for name, parameter in list(part.named_parameters(recurse=False)):
            if not parameter.requires_grad:
                delattr(part, name)
                part.register_buffer(name, parameter.detach(), persistent=False)


class LoraVit(Refinement):
    """Φ as tokens of a ViT whose last `blocks` kept blocks get rank-`rank` updates of q, k and v (§1), in place of Φ_Δ.

    With layer 16 and 2 blocks these are blocks 15 and 16. The tuned blocks are copies: the backbone stays as it is. The earlier
    ones are frozen, so `prepare` runs them once; its tokens, in half precision, are Φ's only difference from Φ_DINO at the
    start of a fit. Parameters and state dict are the low-rank matrices alone.

    Raises:
        DinotrackError: when the backbone is no ViT or read at another facet than its tokens, blocks, rank, alpha or dropout
            are out of range, or peft is not installed.
    """

    def __init__(
        self, backbone: VitBackbone, rank: int = 8, alpha: float = 0.5, dropout: float = 0.1, blocks: int = 2
    ) -> None:
        super().__init__()
        check_backbone(backbone, blocks)
        if rank < 1:
            raise DinotrackError(f"rank={rank}: expected at least 1; the paper takes 8")
        if not (alpha > 0 and 0 <= dropout < 1):
            raise DinotrackError(f"alpha={alpha}, dropout={dropout}: expected alpha above 0 and dropout in [0, 1)")
        self.backbone = backbone  # no module: the frozen ViT is neither moved nor saved with this one
        self.settings: dict[str, Any] = {
            "kind": "lora",
            "rank": rank,
            "alpha": alpha,
            "dropout": dropout,
            "blocks": blocks,
        }
        self.tuned = nn.ModuleList(deepcopy(block) for block in backbone.vit.blocks[-blocks:])
        for block in self.tuned:
            attention: Any = block.attn
            attention.qkv = SplitQkv(attention.qkv)
        add_adapters(self.tuned, rank, alpha, dropout)
        freeze(self.tuned)
        self.shape = (0, 0)
        device = backbone.vit.patch_embed.proj.weight.device
        # No buffer: those of a long video stay in the host's memory, or on disk.
        self.tokens = torch.zeros(0, 0, backbone.channels, device=device).half()

    def check_size(self, size: tuple[int, int]) -> None:
        """Refuse frames of (W, H) that are smaller than the ViT's patch.

        Raises:
            DinotrackError: when a side is.
        """
        patch = self.backbone.patch
        if min(size) < patch:
            raise DinotrackError(
                f"a {size[0]}x{size[1]} frame is smaller than the ViT's patch of {patch} px; raise resolution"
            )

    @torch.no_grad()
    def prepare(
        self,
        frames: UInt8[Tensor, "t 3 h w"],
        *,
        chunk: int = 4,
        budget: Budget = Budget(),
        progress: Progress = silent,
    ) -> None:
        """Run the frozen blocks over all frames of the video, on the backbone's device, and keep what enters the tuned ones.

        It is kept there, or in the host's memory or on disk where the budget has no room for it.

        Raises:
            DinotrackError: when the frames are smaller than a patch, or a token leaves half precision's range.
        """
        self.check_size((frames.shape[3], frames.shape[2]))
        vit = self.backbone.vit
        device, shape = vit.patch_embed.proj.weight.device, self.shape
        kept = Rows(len(frames), budget, device)
        for start in progress(range(0, len(frames), chunk), "LoRA tokens"):
            images = frames[start : start + chunk].to(device).float() / 255
            tokens, shape = self.backbone.tokens(images, len(vit.blocks) - len(self.tuned))
            half = tokens.half()
            if not half.isfinite().all():
                raise DinotrackError(
                    "the ViT's tokens leave half precision's range; choose another layer or more blocks"
                )
            kept.add(half)
        self.tokens, self.shape = kept.done(), shape

    def frame_bytes(self, cells: int) -> int:
        """Bytes a frame, of so many tokens, that `prepare` keeps, where the budget has room."""
        return 2 * self.backbone.channels * (cells + self.backbone.vit.num_prefix_tokens)

    def compile_parts(self) -> None:
        """The tuned blocks are what runs in a step."""
        for block in self.tuned:
            block.compile()

    def refine(
        self,
        raw: Float[Tensor, "b c h w"],
        images: UInt8[Tensor, "b 3 h_px w_px"],
        frames: Int[Tensor, " b"],
        grid: Grid,
    ) -> Float[Tensor, "b c h w"]:
        """Φ of `frames`, numbers in the video that was prepared, in float32; `raw` only says what shape is expected.

        Raises:
            DinotrackError: when `prepare` has not been given a video of this size and length.
        """
        if tuple(raw.shape[2:]) != self.shape or bool((frames >= len(self.tokens)).any()):
            expected = f"frames up to {int(frames.max())} with {raw.shape[2]}x{raw.shape[3]} tokens"
            found = f"{len(self.tokens)} frames with {self.shape[0]}x{self.shape[1]}"
            raise DinotrackError(
                f"LoRA is prepared for {found}, asked for {expected}; call prepare with the video's frames"
            )
        tokens = self.tokens[frames.to(self.tokens.device)].to(frames.device).float()
        for block in self.tuned:
            tokens = block(tokens)
        patches = tokens[:, self.backbone.vit.num_prefix_tokens :].float()
        return patches.transpose(1, 2).unflatten(2, self.shape).contiguous()


def check_backbone(backbone: VitBackbone, blocks: int) -> None:
    """Refuse what has no last `blocks` blocks whose output is read.

    Raises:
        DinotrackError: when it does not.
    """
    if not isinstance(backbone, VitBackbone):
        kind = getattr(backbone, "settings", {}).get("kind", type(backbone).__name__)
        raise DinotrackError(f"LoRA tunes a ViT, not {kind}; take backbone=dinov2_vits14 or another of dinov2_*")
    if backbone.facet != "token":
        raise DinotrackError(f"LoRA tunes a block's output, not its {backbone.facet}; set facet to token")
    kept = len(backbone.vit.blocks)
    if not 1 <= blocks <= kept:
        raise DinotrackError(f"blocks={blocks}: the backbone, of layer {kept}, has 1 to {kept} blocks to tune")
