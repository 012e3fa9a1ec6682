"""From images to what enters a ViT's first block, at any stride and size (method §1)."""

import math
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor

from dinotrack.errors import DinotrackError

IMAGENET_MEAN, IMAGENET_STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
"""What DINOv2 normalises its images by."""


def embed(vit: Any, images: Float[Tensor, "b 3 h w"]) -> tuple[Float[Tensor, "b n c"], tuple[int, int]]:
    """What enters the first block of a timm ViT, prefix tokens first, and the rows and columns of the patch tokens.

    Raises:
        DinotrackError: when the images are smaller than one patch.
    """
    height, width = images.shape[-2:]
    patch, positions = vit.patch_embed.patch_size[0], vit.pos_embed
    if min(height, width) < patch:
        raise DinotrackError(
            f"a {width}x{height} frame is smaller than the ViT's patch of {patch} px; raise resolution"
        )
    assert positions is not None  # vit_skeleton saw to it
    mean, std = (images.new_tensor(values).view(3, 1, 1) for values in (IMAGENET_MEAN, IMAGENET_STD))
    patches = vit.patch_embed.proj((images - mean) / std)
    rows, columns = patches.shape[-2:]
    patches = vit.patch_embed.norm(patches.flatten(2).transpose(1, 2))
    prefix = torch.cat([token for token in (vit.cls_token, vit.reg_token) if token is not None], 1)
    spare = positions.shape[1] - math.prod(vit.patch_embed.grid_size)
    prefix = torch.cat([prefix[:, :spare] + positions[:, :spare], prefix[:, spare:]], 1)
    patches = patches + resize_positions(positions[:, spare:], vit.patch_embed.grid_size, rows, columns)
    return vit.norm_pre(torch.cat([prefix.expand(len(images), -1, -1), patches], 1)), (rows, columns)


def resize_positions(
    positions: Float[Tensor, "1 n c"], grid_size: tuple[int, int], rows: int, columns: int
) -> Float[Tensor, "1 m c"]:
    """Position embedding for rows × columns tokens: bicubic by (rows + 0.1) / 37, as DINO does (§1).

    The 0.1 guards DINO's output size against rounding; it shifts the samples too, hence it stays.
    """
    maps = positions.transpose(1, 2).unflatten(2, grid_size)
    scale = ((rows + 0.1) / grid_size[0], (columns + 0.1) / grid_size[1])
    return F.interpolate(maps, scale_factor=scale, mode="bicubic", align_corners=False).flatten(2).transpose(1, 2)
