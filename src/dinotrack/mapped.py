"""Tensors that lie on disk: mapped, so that a page is read when it is first needed and dropped when memory is."""

import json
import mmap
import os
import platform
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import BinaryIO

import torch
from jaxtyping import Shaped
from safetensors import safe_open
from torch import Tensor

LARGE = 2**26
"""Bytes from which a file is mapped by us."""
ALIGNMENT = 8
"""The data of a safetensors file begin at a multiple of it, as safetensors itself has it."""
_SAME_EVERYWHERE = platform.system() == "Linux" and platform.machine() in ("x86_64", "aarch64")
UNRESERVED = getattr(mmap, "MAP_NORESERVE", 0x4000 if _SAME_EVERYWHERE else 0)
"""A map that asks for no memory; Python has no name for it before 3.13."""

DTYPES = {"F16": torch.float16, "F32": torch.float32, "F64": torch.float64, "BF16": torch.bfloat16}
DTYPES |= {"I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "U8": torch.uint8}
DTYPES |= {"BOOL": torch.bool}
NAMES = {dtype: name for name, dtype in DTYPES.items()}


def map_file(file: BinaryIO, *, private: bool = True) -> mmap.mmap:
    """All bytes of a file; what is written to them stays `private` to this process, and in memory, or goes to the file.

    torch's and safetensors' private maps are refused where the file is larger than memory and swap together.
    """
    kind = mmap.MAP_PRIVATE if private else mmap.MAP_SHARED
    return mmap.mmap(file.fileno(), 0, flags=kind | UNRESERVED, prot=mmap.PROT_READ | mmap.PROT_WRITE)


def tensor_at(content: mmap.mmap, dtype: torch.dtype, shape: Sequence[int], offset: int = 0) -> Shaped[Tensor, "..."]:
    """The tensor that begins so many bytes into a mapped file."""
    count = torch.Size(shape).numel()
    if not count:
        return torch.empty(*shape, dtype=dtype)
    return torch.frombuffer(content, dtype=dtype, count=count, offset=offset).view(*shape)


def plain_bytes(values: Shaped[Tensor, "..."]) -> memoryview:
    """What a tensor is on disk."""
    return values.detach().cpu().contiguous().flatten().view(torch.uint8).numpy().data


def safetensors_head(name: str, dtype: torch.dtype, shape: Sequence[int], metadata: Mapping[str, str]) -> bytes:
    """What stands before the data in a safetensors file of one tensor: the length of a JSON text, and the text."""
    size = torch.Size(shape).numel() * dtype.itemsize
    about = {"dtype": NAMES[dtype], "shape": list(shape), "data_offsets": [0, size]}
    text = json.dumps({"__metadata__": dict(metadata), name: about}, separators=(",", ":")).encode()
    text += b" " * (-len(text) % ALIGNMENT)
    return len(text).to_bytes(8, "little") + text


def read_safetensors(path: str | os.PathLike[str]) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a file, mapped whatever its size.

    Raises:
        SafetensorError, OSError: for a damaged file, or none.
    """
    large = os.path.getsize(path) >= LARGE
    with safe_open(path, framework="np" if large else "pt") as file:  # refuses damaged files
        metadata = file.metadata() or {}
        if (
            not large
        ):  # a map of ours would keep the file open, which a system lets a process do with some hundred files
            return {name: file.get_tensor(name) for name in file.keys()}, metadata  # noqa: SIM118 (no mapping)
    with Path(path).open("rb") as file:
        length = int.from_bytes(file.read(8), "little")
        entries = json.loads(file.read(length))
        content = map_file(file)
    tensors = {}
    for name, about in entries.items():
        if name != "__metadata__":
            offset = 8 + length + about["data_offsets"][0]
            tensors[name] = tensor_at(content, DTYPES[about["dtype"]], about["shape"], offset)
    return tensors, metadata
