"""What a checkpoint says of itself, looked at before anything is made of it: the file may come from a stranger."""

import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from dinotrack.errors import DinotrackError, reason_of
from dinotrack.networks import DeltaDino, TrackerHead
from dinotrack.trackers import VisibilityRule
from dinotrack.weights import stored_whole

LARGEST = 2**20
"""Of a number of pixels or frames."""
SPARE = 2**24
"""Weights that networks may have beyond those of the file before they are made and found not to fit."""


def check_description(about: Mapping[str, Any], path: str | Path) -> None:
    """Let pass settings of the kinds that `describe` writes.

    Raises:
        DinotrackError: naming the first that is absent or something else.
    """
    try:
        wrong = [name for name, fits in _sound(about) if not fits]
    except KeyError as error:
        raise DinotrackError(f"{path} is damaged: its settings lack {reason_of(error)}; fit again") from error
    except (TypeError, ValueError, AttributeError, OverflowError) as error:
        raise DinotrackError(f"{path} is damaged: its settings are none ({reason_of(error)}); fit again") from error
    if wrong:
        raise DinotrackError(f"{path} is damaged: its settings have no sound {wrong[0]}; fit again")


def _sound(about: Mapping[str, Any]) -> list[tuple[str, bool]]:
    """Every setting that is read before the networks are made, and whether it is of its kind."""
    video, working, chrono = about["video"], about["working_size"], about.get("method") == "chrono"
    rule = VisibilityRule() if chrono else VisibilityRule(**about["visibility"])
    sides = [*video["size"], *working]
    whole = {"frames": video["frames"], "start": video["start"], "max_side": video.get("max_side") or 16}
    numbers = {"fps": video["fps"], "shift": about.get("shift", 0.0), "radius": about["head"].get("radius", 1.0)}
    numbers |= {"anchor": rule.anchor, "visible": rule.visible}
    return [
        *((name, isinstance(video[name], str)) for name in ("path", "hash")),
        *((name, isinstance(about[name], dict)) for name in ("backbone", "head", *(() if chrono else ("delta",)))),
        *((name, isinstance(value, int) and 0 <= value < LARGEST) for name, value in whole.items()),
        *((name, math.isfinite(value) and abs(value) < LARGEST) for name, value in numbers.items()),
        ("size", len(sides) == 4 and all(isinstance(side, int) and 0 < side < LARGEST for side in sides)),
        ("scale_constants", chrono or isinstance(about["scale_constants"], bool)),
    ]


def check_weights(about: Mapping[str, Any], weights: Mapping[Any, Any], path: str | Path) -> None:
    """Let pass finite weights that are all in the file, and settings that ask for no larger networks than these.

    Raises:
        DinotrackError: for others, before networks are made.
    """
    if not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in weights.items()):
        raise DinotrackError(f"{path} is damaged: its weights are no named tensors; fit again")
    if not all(stored_whole(value) for value in weights.values()):
        raise DinotrackError(f"{path} is damaged: its weights are larger than the file; fit again")
    try:
        finite = all(value.isfinite().all() for value in weights.values())
    except RuntimeError:  # of a type without arithmetic
        finite = False
    if not finite:
        raise DinotrackError(f"{path} is damaged: its weights are not finite; fit again with a lower method.module.lr")
    if about.get("method") == "chrono" or about["delta"].get("kind") == "lora":
        return  # Chrono's head has three weights; LoRA is as large as the backbone has it
    try:
        with torch.device("meta"):
            networks = DeltaDino(**about["delta"]), TrackerHead(**about["head"])
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = reason_of(error)
        raise DinotrackError(f"{path} is damaged: its settings make no networks ({reason}); fit again") from error
    asked = sum(value.numel() for network in networks for value in network.state_dict().values())
    if asked > sum(value.numel() for value in weights.values()) + SPARE:
        raise DinotrackError(f"{path} is damaged: its settings ask for larger networks than its weights; fit again")
