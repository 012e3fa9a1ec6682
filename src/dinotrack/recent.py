"""What was made of frames, kept for the next time as long as memory has room for it."""

from collections.abc import Callable
from typing import Generic, Protocol, TypeVar, runtime_checkable


@runtime_checkable
class Sized(Protocol):
    """An array or a tensor."""

    @property
    def nbytes(self) -> int: ...


T = TypeVar("T", bound=Sized)


class Recent(Generic[T]):
    """What was made of the frames that were asked for last, as many as `memory` bytes hold, by their numbers."""

    def __init__(self, memory: float) -> None:
        self.memory = memory
        self.kept: dict[int, T] = {}

    def get(self, number: int, make: Callable[[int], T]) -> T:
        """What `make` makes of a frame's number, which it does if it is not known."""
        found = self.kept.pop(number) if number in self.kept else make(number)
        while self.kept and (len(self.kept) + 1) * found.nbytes > self.memory:
            del self.kept[next(iter(self.kept))]  # a dict keeps the order in which they came
        if found.nbytes <= self.memory:
            self.kept[number] = found
        return found
