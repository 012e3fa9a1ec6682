"""The plain ViTs of timm (DINOv2, with and without registers) with weights from a file, a download or a seed."""

from typing import Any

import timm
import torch
from timm.models.vision_transformer import VisionTransformer, checkpoint_filter_fn
from torch.overrides import TorchFunctionMode

from dinotrack.errors import DinotrackError
from dinotrack.weights import fingerprint, read_weights

WAYS_OUT = (
    "give a file (backbone.checkpoint=FILE: Meta's .pth or timm's .safetensors), fill the Hugging Face cache on a machine "
    "with a network and copy it, take backbone=dense_sift, or random weights by backbone.pretrained=false"
)


def build_vit(
    skeleton: VisionTransformer, model: str, checkpoint: str | None, pretrained: bool, seed: int
) -> tuple[VisionTransformer, str]:
    """The ViT with the weights of `checkpoint`, else timm's, else random ones; and the fingerprint of those weights.

    Raises:
        DinotrackError: when the weights cannot be had, or do not fit.
    """
    if checkpoint is not None:
        return load_checkpoint(skeleton, model, checkpoint), fingerprint(checkpoint)
    if pretrained:
        vit = download(model)
        origin: Any = vit.pretrained_cfg
        return vit, f"timm:{origin['architecture']}.{origin['tag']}"
    return random_vit(model, seed), f"random:{seed}"


class Weightless(TorchFunctionMode):
    """Parameters made inside have a shape but no memory.

    `torch.device("meta")` would move torch.linspace too, out of which timm up to 1.0.20 at least reads numbers.
    """

    factories = (torch.empty, torch.zeros, torch.ones, torch.randn)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        device = {"device": "meta"} if func in self.factories else {}
        return func(*args, **{**(kwargs or {}), **device})


def vit_skeleton(model: str) -> VisionTransformer:
    """The ViT that timm calls `model`, without memory for its weights.

    Raises:
        DinotrackError: when timm does not know it, or it is no ViT with learned positions and class token.
    """
    choices = "take one of timm's DINOv2, e.g. vit_small_patch14_dinov2.lvd142m or vit_base_patch14_reg4_dinov2.lvd142m"
    if not timm.is_model(model):
        raise DinotrackError(f"timm {timm.__version__} has no model {model!r}; {choices}")
    try:
        with Weightless():
            vit = create(model)
    except (RuntimeError, ValueError) as error:
        raise DinotrackError(f"timm cannot build {model!r} ({error}); {choices}") from error
    if not isinstance(vit, VisionTransformer) or vit.pos_embed is None or vit.cls_token is None:
        raise DinotrackError(f"{model!r} is no ViT with a class token and learned positions; {choices}")
    return vit


def create(model: str, pretrained: bool = False) -> Any:
    """timm's model without classifier; Any, because timm types it as a bare module."""
    return timm.create_model(model, pretrained=pretrained, num_classes=0)


def random_vit(model: str, seed: int) -> VisionTransformer:
    """A ViT with random weights; the global random state stays as it is."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return create(model)


def download(model: str) -> VisionTransformer:
    """A ViT with timm's weights, from the Hugging Face cache or hub.

    Raises:
        DinotrackError: when they cannot be had.
    """
    try:
        return create(model, pretrained=True)
    except Exception as error:  # the hub's client raises its own, requests', httpx' and the system's errors
        raise DinotrackError(f"no weights for {model} ({type(error).__name__}: no network?); {WAYS_OUT}") from error


def load_checkpoint(vit: VisionTransformer, model: str, path: str) -> VisionTransformer:
    """Give a skeleton the weights of a file with timm's or Meta's names.

    Raises:
        DinotrackError: when the file is unreadable, or of another model.
    """
    heads = ("head.", "fc_norm.", "dino_head.", "ibot_head.")
    content = {name: value for name, value in read_weights(path).items() if not name.startswith(heads)}
    remedy = f"set backbone.model to the file's model, or give a file of {model}"
    patches = content.get("patch_embed.proj.weight")
    expected = vit.patch_embed.proj.weight.shape
    if patches is None or patches.shape != expected:  # timm would resample another patch size silently
        found = "no patch embedding" if patches is None else f"a patch embedding of {tuple(patches.shape)}"
        raise DinotrackError(f"checkpoint {path} has {found}, {model} needs {tuple(expected)}; {remedy}")
    try:
        vit.load_state_dict(checkpoint_filter_fn(content, vit), strict=True, assign=True)
    except (RuntimeError, KeyError, ValueError) as error:
        what = " ".join(str(error).split())[:200]
        raise DinotrackError(f"checkpoint {path} is not of {model} ({what}); {remedy}") from error
    return vit
