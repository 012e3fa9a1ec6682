"""A byte of the cache that has changed is found, and the entry is built again to the same."""

import copy
import logging
import random
from collections.abc import Iterator
from dataclasses import fields
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from benchmarks.faults.tiny import SMALL
from benchmarks.faults.trying import Row, Try
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.preprocessing import Preprocessed
from dinotrack.sealed import forget_checks, read_head
from dinotrack.structs import Video
from dinotrack.training.config import compose_config, make_data

KINDS = ("features", "tracklets", "best_buddies", "saliency")


class Said(logging.Handler):
    """Keeps what is logged."""

    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.lines = list[str]()

    def emit(self, record: logging.LogRecord) -> None:
        self.lines.append(record.getMessage())


def small_video() -> Video:
    """Six frames, without masks, so that saliency is asked for."""
    return Video(synthetic_clip(seed=1, frames=6, size=(64, 48), points=8).video.frames)


def preprocessed(cache: Path) -> Preprocessed:
    """Features, tracklets, best buddies and saliency of the small video, through the cache; as a new process would read it."""
    forget_checks()
    config: Any = OmegaConf.merge(small_config(), {"cache_dir": str(cache)})
    return make_data(config, small_video()).preprocess()


@lru_cache
def small_config() -> DictConfig:
    return compose_config("run", overrides=SMALL)


def tries(root: Path, rng: random.Random, count: int) -> Iterator[Try]:
    said, log = Said(), logging.getLogger("dinotrack")
    log.addHandler(said)
    whole = copy.deepcopy(preprocessed(root))  # else it would be mapped from the files that are about to be damaged
    for _ in range(count):
        said.lines.clear()
        kind = rng.choice(KINDS)
        path = next(root.rglob(f"{kind}-*.safetensors"))
        where = change(path, rng)
        wrong = unequal(preprocessed(root), whole)
        found = [line for line in said.lines if line.startswith(f"building again: {path} ")]
        if len(found) != 1 or len(said.lines) != 1:
            wrong = f"not found: byte of {path.name}, {where}; {said.lines}"
        yield Try(f"{kind}, {where}", wrong)
    log.removeHandler(said)


def change(path: Path, rng: random.Random) -> str:
    """Change one byte, in three of ten cases of the header: which part it was in."""
    content = bytearray(path.read_bytes())
    with path.open("rb") as file:
        head = len(read_head(file))
    inside = rng.random() < 0.3
    place = rng.randrange(head) if inside else rng.randrange(head, len(content))
    content[place] ^= rng.randrange(1, 256)
    path.write_bytes(content)
    return "header" if inside else "data"


def unequal(one: Any, other: Any) -> str:
    """The field in which two structs differ, to the bit."""
    for field in fields(one):
        ours, theirs = getattr(one, field.name), getattr(other, field.name)
        if isinstance(ours, torch.Tensor):
            if not torch.equal(ours, theirs):
                return field.name
        elif hasattr(ours, "__dataclass_fields__"):
            if inner := unequal(ours, theirs):
                return f"{field.name}.{inner}"
        elif ours != theirs:
            return field.name
    return ""


ROW = Row(
    "a byte of the cache changed at a random place: headers and data of each kind of entry",
    "named in a line and built again, to the same",
    tries,
    short=8,
    long=100,
)
