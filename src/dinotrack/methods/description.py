"""What a checkpoint says of itself, looked at before anything is made of it: the file may come from a stranger."""

import math
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

import torch
from torch import Tensor

from dinotrack.chrono import Which
from dinotrack.errors import DinotrackError, reason_of
from dinotrack.networks import DeltaDino, TrackerHead
from dinotrack.trackers import VisibilityRule
from dinotrack.weights import stored_whole

LARGEST = 2**20
"""Of a number of pixels or frames."""
LONGEST_SIDE = 2**14
"""Of the frames that Chrono's features are made of."""
LARGEST_AREA = 2**26
"""Of these frames; 8K has half of it."""
WHOLE = {
    "layer": (1, 48),
    "stride": (1, 64),
    "width": (1, 4096),
    "heads": (1, 256),
    "reach": (0, 1000),
    "seed": (0, 2**63 - 1),
}
"""Least and most of what says how large a Chrono backbone is."""
FARTHEST = 256
"""Tokens from a peak that Chrono's head may look."""
CHANNELS = 1536
"""Of the largest DINOv2."""
MOST_WEIGHTS = 2**30
"""About what Chrono's adapters may have; they lie in a file of their own, which is not read before they are made."""
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
        *(_sound_chrono(about) if chrono else ()),
    ]


def _sound_chrono(about: Mapping[str, Any]) -> Iterator[tuple[str, bool]]:
    """Settings of Chrono's head, and those of its backbone that say how large it is; one of another kind looks itself."""
    head, backbone, working = about["head"], about["backbone"], about["working_size"]
    sharpness, within = head.get("sharpness", 20.0), head.get("within", 5)
    yield "head", head.keys() <= {"sharpness", "within"}
    yield "head.sharpness", _number(sharpness) and 0 < sharpness < LARGEST
    yield "head.within", _number(within) and 1 <= within <= FARTHEST
    sides = len(working) == 2 and all(_whole(side) and 1 <= side <= LONGEST_SIDE for side in working)
    yield "working_size", sides and math.prod(working) <= LARGEST_AREA
    yield "backbone.kind", isinstance(backbone.get("kind"), str)
    if backbone.get("kind") != "chrono":
        return
    whole = {"layer": 12, "stride": 14, "width": 128, "heads": 4, "reach": 6, "seed": 0}
    whole |= {name: backbone[name] for name in whole if name in backbone}
    counted = {name: _whole(value) and WHOLE[name][0] <= value <= WHOLE[name][1] for name, value in whole.items()}
    yield from ((f"backbone.{name}", fits) for name, fits in counted.items())
    upscale, adapted = backbone.get("upscale", 1.0), backbone.get("adapted", "all")
    yield "backbone.upscale", _number(upscale) and 0.1 < upscale <= 16
    listed = isinstance(adapted, list | tuple) and all(map(_whole, adapted))
    yield "backbone.adapted", listed or (isinstance(adapted, str) and adapted in get_args(Which))
    for name in ("model", "facet", "mixing"):
        yield f"backbone.{name}", isinstance(backbone.get(name, ""), str)
    for name in ("adapters", "checkpoint"):
        yield f"backbone.{name}", isinstance(backbone.get(name), str | None)
    if all(counted.values()):
        width, locations = whole["width"], {"attention": 0, "conv1d": 1, "conv3d": 9}.get(backbone.get("mixing", ""), 9)
        taps = locations * (2 * whole["reach"] + 1)
        yield "backbone.width", whole["layer"] * width * (18 * CHANNELS + (36 + taps) * width) <= MOST_WEIGHTS


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)


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
    if about.get("method") == "chrono":
        return _check_visibility(weights, path)
    if about["delta"].get("kind") == "lora":
        return None  # it is as large as the backbone has it
    try:
        with torch.device("meta"):
            networks = DeltaDino(**about["delta"]), TrackerHead(**about["head"])
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        reason = reason_of(error)
        raise DinotrackError(f"{path} is damaged: its settings make no networks ({reason}); fit again") from error
    asked = sum(value.numel() for network in networks for value in network.state_dict().values())
    if asked > sum(value.numel() for value in weights.values()) + SPARE:
        raise DinotrackError(f"{path} is damaged: its settings ask for larger networks than its weights; fit again")
    return None


def _check_visibility(weights: Mapping[str, Tensor], path: str | Path) -> None:
    """Let pass the weights of Chrono's visibility, and nothing beside them."""
    shapes = {name: list(value.shape) for name, value in weights.items() if value.is_floating_point()}
    if len(shapes) < len(weights) or shapes != {"visibility.weight": [2, 3], "visibility.bias": [2]}:
        raise DinotrackError(
            f"{path} is damaged: its weights are not those of a visibility, (2, 3) and (2,) of floats; run method=chrono again"
        )
