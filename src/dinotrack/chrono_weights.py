"""Files of Chrono's trained parts, the published ones and ours: their names, and what each is here (method §9)."""

import re
from pathlib import Path

from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.weights import read_weights

NAMES = (
    (r"(?:model\.)?adapters?\.(\d+)\.(.+)", r"adapters.\1.\2"),
    (r"(?:model\.)?occ_linear\.(.+)", r"visibility.\1"),
    (r"visibility\.(.+)", r"visibility.\1"),
)
"""Patterns of names in a file, and what they are here: `model.adapter.3.conv1.weight` follows the 4th block as
`adapters.3.conv1.weight`, `model.occ_linear.weight` is `visibility.weight` with the rows occlusion and distance."""
IGNORED = ("model.dino.", "dino.")
"""The frozen ViT, which comes from its own file."""


def own_name(name: str) -> str:
    """What a parameter of a file is called here, or "" for one that is not read.

    Raises:
        DinotrackError: for a name that is neither.
    """
    if name.startswith(IGNORED):
        return ""
    for pattern, here in NAMES:
        if re.fullmatch(pattern, name):
            return re.sub(pattern, here, name)
    raise DinotrackError(f"{name} is no parameter of Chrono's adapters or of its visibility")


def read_chrono(path: str | Path) -> dict[str, Tensor]:
    """Parameters of adapters and visibility in a file, by their names here.

    Raises:
        DinotrackError: for an unreadable file, or one of something else.
    """
    try:
        named = {own_name(name): value for name, value in read_weights(path).items()}
    except DinotrackError as error:
        raise DinotrackError(
            f"{path} holds no Chrono adapters: {error}; give a file of train-chrono or a published one"
        ) from error
    return {name: value for name, value in named.items() if name}


def part(weights: dict[str, Tensor], prefix: str) -> dict[str, Tensor]:
    """The parameters below a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in weights.items() if name.startswith(prefix)}
