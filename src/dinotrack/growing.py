"""Tensors whose rows come a few at a time: in memory, in an unnamed file where they would not fit, or as an entry of the cache."""

import hashlib
import os
from contextlib import suppress
from dataclasses import fields, replace
from typing import Any, BinaryIO, Protocol, runtime_checkable

import torch
from jaxtyping import Shaped
from torch import Tensor

from dinotrack.cache import Entry
from dinotrack.files import remove_leftovers, saying_where, temporary_beside
from dinotrack.mapped import map_file, plain_bytes, safetensors_head, tensor_at
from dinotrack.memory import Budget
from dinotrack.sealed import seal, take_as_checked
from dinotrack.spilling import LITTLE, unnamed_file
from dinotrack.structs import FeatureMap
from dinotrack.tensor_struct import metadata_of


@runtime_checkable
class Sink(Protocol):
    """What takes the rows of a tensor, from the first to the last."""

    def add(self, rows: Shaped[Tensor, "n ..."]) -> None:
        """Take the next rows."""
        ...

    def done(self) -> Shaped[Tensor, "t ..."]:
        """All rows, once they are there."""
        ...


class Rows:
    """`count` rows of a tensor used on `device`: there, in the host's memory, or mapped from a file, as the budget has room.

    The file has no name, so that nothing is left of it when the process ends, however it does. In memory they take at most one of
    `part` equal parts of what is left.
    """

    def __init__(
        self, count: int, budget: Budget = Budget(), device: torch.device | str = "cpu", *, part: int = 2
    ) -> None:
        self.count, self.budget, self.device, self.part, self.filled = count, budget, device, part, 0
        self.values: Tensor | None = None
        self.file: BinaryIO | None = None
        self.like = torch.empty(0)

    def add(self, rows: Shaped[Tensor, "n ..."]) -> None:
        """Take the next rows.

        Raises:
            DinotrackError: when the file cannot be written.
        """
        if not len(rows):
            return
        if not self.filled:
            self._begin(rows)
        if self.values is not None:
            self.values[self.filled : self.filled + len(rows)] = rows
        elif self.file is not None:
            with saying_where(self.budget.place):
                self.file.write(plain_bytes(rows))
        self.filled += len(rows)

    def _begin(self, rows: Shaped[Tensor, "n ..."]) -> None:
        self.like = torch.empty(0, *rows.shape[1:], dtype=rows.dtype)
        size = rows[0].numel() * rows.element_size() * self.count
        place = self.budget.device_for(size, self.device, self.part)
        if place is None:
            self.file = unnamed_file(self.budget.place)
        else:
            # Zeros are written, so that memory counts as held before others ask for what is left.
            self.values = torch.empty(self.count, *rows.shape[1:], dtype=rows.dtype, device=place).zero_()

    def done(self) -> Shaped[Tensor, "t ..."]:
        """All rows."""
        assert self.filled == self.count > 0
        if self.file is None:
            assert self.values is not None
            return self.values
        with self.file, saying_where(self.budget.place):
            self.file.flush()
            return tensor_at(map_file(self.file), self.like.dtype, (self.count, *self.like.shape[1:]))


class Columns:
    """Tensors of `count` rows each that are filled together, by name: in memory if the budget has room for all, else on disk."""

    def __init__(self, count: int, budget: Budget = Budget()) -> None:
        self.count, self.budget = count, budget
        self.columns: dict[str, Rows] = {}

    def add(self, **parts: Shaped[Tensor, "n ..."]) -> None:
        """Take the next rows, of every column as many."""
        if not self.columns:
            size = self.count * sum(part.shape[1:].numel() * part.element_size() for part in parts.values())
            room = self.budget if size <= self.budget.share(part=LITTLE) else replace(self.budget, limit=1)
            self.columns = {name: Rows(self.count, room) for name in parts}
        for name, part in parts.items():
            self.columns[name].add(part)

    def done(self) -> dict[str, Tensor]:
        """All columns."""
        return {name: rows.done() for name, rows in self.columns.items()}


def placed(features: FeatureMap, device: torch.device | str, budget: Budget = Budget()) -> FeatureMap:
    """The same features on `device` if the budget has room for them there, else where they are."""
    values = features.values
    if values.device.type == "cpu" and torch.device(device).type != "cpu":
        wanted = budget.device_for(values.nbytes, device)
        return features if wanted is None or wanted.type == "cpu" else features.to(wanted)
    return features.to(device)


class FeatureEntry:
    """The file that `FeatureMap.save` would write of an entry, frame by frame: under a temporary name until it is whole.

    For whoever holds the entry's lock, since what processes that were killed left of it is removed. `plain` are the map's plain
    fields. The checksum is of what was given, as it came. As a context it removes the temporary file when it is left.
    """

    def __init__(self, entry: Entry, count: int, **plain: Any) -> None:
        plain = {field.name: plain[field.name] for field in fields(FeatureMap) if field.name != "values"}
        self.path, self.count, self.metadata = entry.path, count, metadata_of(plain, entry.about)
        self.temporary, self.file = temporary_beside(self.path), None
        self.head, self.digest = b"", hashlib.sha256()

    def __enter__(self) -> "FeatureEntry":
        with saying_where(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            remove_leftovers(self.path, alone=True)
            self.file = self.temporary.open("wb")
        return self

    def __exit__(self, *_: object) -> None:
        if self.file is not None:
            with suppress(OSError):  # of what it could not write before
                self.file.close()
        with suppress(OSError):
            self.temporary.unlink(missing_ok=True)

    def add(self, rows: Shaped[Tensor, "n ..."]) -> None:
        """Write the features of the next frames.

        Raises:
            DinotrackError: when they cannot be written.
        """
        assert self.file is not None
        with saying_where(self.path):
            if not self.head:
                self.head = safetensors_head("values", rows.dtype, (self.count, *rows.shape[1:]), self.metadata)
                self._write(self.head)
            self._write(plain_bytes(rows))

    def _write(self, content: bytes | memoryview) -> None:
        assert self.file is not None
        self.file.write(content)
        self.digest.update(content)

    def done(self) -> Shaped[Tensor, "t ..."]:
        """The whole entry, mapped.

        Raises:
            DinotrackError: when its end cannot be written.
        """
        assert self.file is not None
        with saying_where(self.path):
            seal(self.file, self.head, self.digest.hexdigest())
            self.file.flush()
            os.fsync(self.file.fileno())
            self.file.close()
            os.replace(self.temporary, self.path)
        take_as_checked(self.path)
        return FeatureMap.load(self.path).values
