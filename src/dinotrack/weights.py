"""Checkpoint files of frozen networks: read without running what is in them, and told apart by their content."""

import hashlib
import os
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from torch import Tensor

from dinotrack.errors import DinotrackError
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
            f"cannot read checkpoint {path}: {str(error).splitlines()[0] if str(error) else type(error).__name__}; "
            "expected a state dict of plain tensors, as .safetensors or by torch.save(model.state_dict(), file)"
        ) from error
    while isinstance(content, dict) and (inner := [v for k in WRAPPERS if isinstance(v := content.get(k), dict)]):
        content = inner[0]
    named = isinstance(content, dict) and all(isinstance(name, str) for name in content)
    if not (named and content and all(isinstance(value, Tensor) for value in content.values())):
        raise DinotrackError(
            f"checkpoint {path} holds more than named tensors; save it again by torch.save(model.state_dict(), file)"
        )
    return {plain_name(name): value.float() if value.is_floating_point() else value for name, value in content.items()}


def plain_name(name: str) -> str:
    """The name of a weight without the prefixes of training wrappers."""
    for prefix in PREFIXES:
        name = name.removeprefix(prefix)
    return name
