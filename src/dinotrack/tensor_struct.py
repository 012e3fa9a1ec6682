"""The base of the structs: they can be moved, saved and loaded."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import fields, replace
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import torch
from jaxtyping import Shaped
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.files import write_atomically
from dinotrack.mapped import read_safetensors
from dinotrack.sealed import UNSEALED, check_seal, read_head, seal_file

S = TypeVar("S", bound="TensorStruct")


def hash_of(values: Shaped[Tensor, "n ..."]) -> str:
    """SHA-256 of shape and content."""
    digest = hashlib.sha256(str(tuple(values.shape)).encode())
    for part in values:
        digest.update(part.contiguous().numpy(force=True).tobytes())
    return digest.hexdigest()


def metadata_of(plain: Mapping[str, Any], about: Mapping[str, Any]) -> dict[str, str]:
    """What stands in the header of a struct's file beside its tensors: its plain fields, and what the file is about."""
    return {"plain": json.dumps(dict(plain)), "about": json.dumps(dict(about)), "checksum": UNSEALED}


def read_about(path: str | os.PathLike[str]) -> dict[str, Any]:
    """What a struct's file says that it is about, its checksum unread; nothing of a file that cannot be read."""
    try:
        with open(path, "rb") as file:
            header = json.loads(read_head(file)[8:])
        return dict(json.loads(header["__metadata__"]["about"]))
    except (OSError, KeyError, TypeError, ValueError, RecursionError):
        return {}


class TensorStruct:
    """Base of the structs: move them, save and load them as safetensors (plain fields travel as JSON metadata)."""

    __dataclass_fields__: ClassVar[dict[str, Any]]

    def to(self: S, device: torch.device | str) -> S:
        """The same struct with every tensor, also of structs in it, on `device`."""
        movable = (Tensor, TensorStruct)
        moved = {f.name: v.to(device) for f in fields(self) if isinstance(v := getattr(self, f.name), movable)}
        return replace(self, **moved)

    def save(self, path: str | os.PathLike[str], about: Mapping[str, Any] = {}) -> None:
        """Write a safetensors file with a checksum of all that is in it, to a temporary name first.

        `about` is kept beside the fields, for `read_about`.

        Raises:
            DinotrackError: when the file cannot be written; nothing half-written stays.
        """
        values = {f.name: getattr(self, f.name) for f in fields(self)}
        tensors = {k: v.contiguous().cpu() for k, v in values.items() if isinstance(v, Tensor)}
        plain = {k: v for k, v in values.items() if not isinstance(v, Tensor)}

        def write(name: Path) -> None:
            save_file(tensors, name, metadata=metadata_of(plain, about))
            seal_file(name)

        write_atomically(Path(path), write)

    @classmethod
    def load(cls: type[S], path: str | os.PathLike[str]) -> S:
        """Read what `save` wrote; the checksum takes one reading by a process, then tensors are mapped, not read as a whole.

        Raises:
            DinotrackError: when the file is not there, damaged, without a checksum or not of this struct.
        """
        try:
            check_seal(path)
            tensors, metadata = read_safetensors(path)
            plain = json.loads(metadata["plain"])
            plain = {k: tuple(v) if isinstance(v, list) else v for k, v in plain.items()}
            return cls(**tensors, **plain)
        except (SafetensorError, KeyError, TypeError, ValueError, OSError) as error:
            raise DinotrackError(
                f"{path} is not a readable {cls.__name__} file ({error}); delete it to build it again"
            ) from error
