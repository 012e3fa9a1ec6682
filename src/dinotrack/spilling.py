"""Tensors that go to unnamed files where a budget has no room for them, while they are made."""

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cached_property
from mmap import mmap
from pathlib import Path
from typing import Any, BinaryIO
from weakref import WeakValueDictionary

import torch
from jaxtyping import Shaped
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from dinotrack.errors import DinotrackError
from dinotrack.files import saying_where
from dinotrack.mapped import map_file, plain_bytes, tensor_at
from dinotrack.memory import Budget

PART = 8
"""One of so many equal parts of what is left is what each of these tensors may take of memory."""
LITTLE = 16
"""The same of tensors that are read a little at a time: working frames, masks, tables of pairs."""

AMPLE, LEAST = 32, 4
"""A step of a fit takes less, and more, than so many times the largest tensor that it keeps."""

BLOCK = 2**24


def unnamed_file(folder: Path) -> Any:
    """A file that no one else sees, in `folder` or, where that cannot be written, in the system's folder for such files."""
    with suppress(OSError):
        folder.mkdir(parents=True, exist_ok=True)
        return tempfile.TemporaryFile(dir=folder)
    with saying_where(Path(tempfile.gettempdir())):
        return tempfile.TemporaryFile()


def zeros(shape: tuple[int, ...], dtype: torch.dtype, budget: Budget = Budget()) -> Shaped[Tensor, "..."]:
    """A tensor of zeros on the CPU that is then written at random places: in memory, or mapped from an unnamed file.

    Its place on the disk is taken at once, as far as the file system can: a page of a map that finds the disk full would end the
    process.

    Raises:
        DinotrackError: when the disk has no room for it either.
    """
    size = torch.Size(shape).numel() * dtype.itemsize
    if size <= budget.share(part=PART):
        return torch.empty(shape, dtype=dtype).zero_()  # written, so that it counts as held from now on
    return zeros_on_disk(shape, dtype, budget)


def zeros_on_disk(shape: tuple[int, ...], dtype: torch.dtype, budget: Budget) -> Shaped[Tensor, "..."]:
    """A tensor of zeros mapped from an unnamed file.

    Raises:
        DinotrackError: when the disk has no room for it.
    """
    with saying_where(budget.place), unnamed_file(budget.place) as file:
        reserve(file, torch.Size(shape).numel() * dtype.itemsize)
        return tensor_at(map_file(file, private=False), dtype, shape)


@contextmanager
def kept_on_disk(
    budget: Budget = Budget(), *, least: int = 2**20, reserve: float | None = None
) -> "Iterator[Spilling]":
    """Inside, what a forward pass on a CPU keeps for the backward one goes to unnamed files where memory gets short.

    Values are the same, and strides where a tensor is dense, so that gradients are the same to the bit.

    Raises:
        DinotrackError: when the disk has no room either.
    """
    spilling = Spilling(budget, least, reserve)
    with torch.autograd.graph.saved_tensors_hooks(spilling.pack, unpack):
        yield spilling


def unpack(kept: Tensor | tuple[Tensor, torch.Size]) -> Tensor:
    """What `Spilling.pack` was given."""
    return kept if isinstance(kept, Tensor) else kept[0].expand(kept[1])


class Spilling:
    """What of a forward pass lies in unnamed files for the backward one.

    Memory is short where less of it is left than `reserve` bytes, which the rest of the forward pass and the backward pass need;
    None is ample, `AMPLE` times the largest tensor. Where the disk has no room, memory is taken down to `LEAST` times it. Tensors
    below `least` bytes stay there, and parameters, which are there anyway. What several steps of the forward pass keep is written
    once, and of what a tensor repeats (`expand`) one. Changes that autograd cannot see, by `.data` or numpy, are not seen here
    either.
    """

    def __init__(self, budget: Budget, least: int, reserve: float | None) -> None:
        self.budget, self.least, self.reserve = budget, max(1, least), reserve
        self.largest = 0
        self.bytes = 0
        """Written so far."""
        self.known = WeakValueDictionary[tuple[Any, ...], Tensor]()
        """Those that are still needed, by what they were made of; a storage's number is no other's while it is referred to."""

    def pack(self, values: Tensor) -> Tensor | tuple[Tensor, torch.Size]:
        """What autograd is to keep in the place of `values`: them, or what lies on disk and how often it is repeated."""
        if isinstance(values, torch.nn.Parameter):
            return values
        values = values.detach()  # an output that knows what made it would keep that alive, and be kept alive by it
        if values.layout != torch.strided or values.device.type != "cpu":
            return values
        once = values[tuple(slice(1) if stride == 0 else slice(None) for stride in values.stride())]
        if min(once.nbytes, values.untyped_storage().nbytes()) < self.least:
            return values
        self.largest = max(self.largest, values.nbytes)
        room, least = self.budget.room(), LEAST * self.largest
        if room >= (AMPLE * self.largest if self.reserve is None else max(self.reserve, least)):
            return values
        place = once.dtype, once.storage_offset(), once.shape, once.stride(), once.is_conj(), once.is_neg()
        made_of = (StorageWeakRef(values.untyped_storage()), values._version, *place)
        if (found := self.known.get(made_of)) is None:
            try:
                self.known[made_of] = found = self.written(once)
            except DinotrackError:
                if room < least:
                    raise
                return values  # no room on the disk, but in memory
        return found, values.shape

    def written(self, values: Tensor) -> Tensor:
        """The same in an unnamed file."""
        like = torch.empty_like(values, device="meta")  # dense, in the same order
        flat = zeros_on_disk((like.numel(),), values.dtype, self.budget)
        self.bytes += flat.nbytes
        return flat.as_strided(like.shape, like.stride()).copy_(values)


def reserve(file: BinaryIO, size: int) -> None:
    """Make an empty file as long as that, with the disk's blocks for all of it."""
    if hasattr(os, "posix_fallocate"):
        os.posix_fallocate(file.fileno(), 0, size)
        return
    for start in range(0, size, BLOCK):
        file.write(bytes(min(BLOCK, size - start)))
    file.flush()


class Pile:
    """Tensors one after the other, those that `memory` bytes have room for in memory, the others in an unnamed file.

    They are read once all are there. `memory` is a part of what the budget has left, unless it is given.
    """

    def __init__(self, budget: Budget = Budget(), memory: float | None = None) -> None:
        self.place = budget.place
        self.memory = budget.share(part=PART) if memory is None else memory
        self.kept: list[Tensor | tuple[int, torch.dtype, torch.Size]] = []
        self.file: Any = None

    def __len__(self) -> int:
        return len(self.kept)

    def add(self, values: Shaped[Tensor, "..."]) -> None:
        """Put one more on it.

        Raises:
            DinotrackError: when the file cannot be written.
        """
        if values.nbytes <= self.memory:
            self.memory -= values.nbytes
            self.kept.append(values.cpu())
            return
        with saying_where(self.place):
            self.file = file = self.file or unnamed_file(self.place)
            self.kept.append((file.tell(), values.dtype, values.shape))
            file.write(plain_bytes(values))

    def __getitem__(self, index: int) -> Shaped[Tensor, "..."]:
        found = self.kept[index]
        if isinstance(found, Tensor):
            return found
        offset, dtype, shape = found
        return tensor_at(self.content, dtype, shape, offset)

    @cached_property
    def content(self) -> mmap:
        """What is on disk."""
        assert self.file is not None
        with saying_where(self.place):
            self.file.flush()
            return map_file(self.file)

    def drop(self, index: int) -> None:
        """Forget one that is not needed again."""
        self.kept[index] = torch.empty(0)
