"""Checkpoint files of frozen networks: read without running what is in them, and told apart by their content."""

import hashlib
import os
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor

from dinotrack.errors import DinotrackError, reason_of
from dinotrack.sealed import load_archive

WRAPPERS = ("model", "teacher", "state_dict")
"""Keys under which training scripts nest the weights."""
PREFIXES = ("module.", "backbone.")
"""What DistributedDataParallel and DINO's teacher put before each name."""


def fingerprint(path: str | os.PathLike[str]) -> str:
    """SHA-256 of a checkpoint file's content.

    Raises:
        DinotrackError: when the file cannot be read.
    """
    try:
        with open(path, "rb") as file:
            return "sha256:" + hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise DinotrackError(f"cannot read checkpoint {path}: {error.strerror}; check the path") from error


def read_weights(path: str | os.PathLike[str]) -> dict[str, Tensor]:
    """Named tensors of a .safetensors file or of a file by torch.save, in float32, unwrapped and without prefixes.

    Raises:
        DinotrackError: when the file is unreadable or holds anything but plain tensors.
    """
    try:
        if Path(path).suffix == ".safetensors":
            content: Any = load_file(path)
        else:
            content = load_archive(path)
    except (
        Exception
    ) as error:  # torch raises UnpicklingError, EOFError, IndexError, AssertionError, ... for damaged files
        raise DinotrackError(
            f"cannot read checkpoint {path}: {reason_of(error)}; "
            "expected a state dict of plain tensors, as .safetensors or by torch.save(model.state_dict(), file)"
        ) from error
    for _ in WRAPPERS:  # a dict that lies in itself would never end
        inner = [v for k in WRAPPERS if isinstance(v := content.get(k), dict)] if isinstance(content, dict) else []
        content = inner[0] if inner else content
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not (named and content and all(isinstance(value, Tensor) and stored_whole(value) for value in content.values())):
        raise DinotrackError(
            f"checkpoint {path} holds more than named tensors; save it again by torch.save(model.state_dict(), file)"
        )
    return {plain_name(name): value.float() if value.is_floating_point() else value for name, value in content.items()}


def stored_whole(value: Tensor) -> bool:
    """Whether every number of a tensor is in memory by itself: one that is repeated by its strides can claim any size."""
    return value.layout == torch.strided and value.untyped_storage().nbytes() >= value.numel() * value.element_size()


def plain_name(name: str) -> str:
    """The name of a weight without the prefixes of training wrappers."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
