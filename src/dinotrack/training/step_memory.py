"""What training steps take of memory beside what their forward passes keep: measured, so that a limit on memory holds."""

from collections.abc import Hashable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field

from dinotrack.memory import Budget, Watch, give_back_freed

MORE = 1.1
"""So many times what was measured is left free: no two minibatches are the same."""


@dataclass
class StepMemory:
    """Bytes that steps of each kind (the losses that count) took at most, measured at the first step of that kind.

    At that step nearly all that the forward pass keeps lies on disk, unless there is plenty of memory.
    """

    known: dict[Hashable, tuple[float, int]] = field(default_factory=lambda: dict[Hashable, tuple[float, int]]())
    """Bytes, and frames in the minibatch that was measured."""
    frames: int = 1
    """Of the minibatch at hand."""

    def reserve(self, kind: Hashable, frames: int) -> float | None:
        """Bytes to leave free for a step of a minibatch of so many frames; None before the first of its kind is through."""
        self.frames = frames
        if kind not in self.known:
            return None
        taken, measured = self.known[kind]
        return MORE * taken * max(1.0, frames / measured)

    @contextmanager
    def measured(self, kind: Hashable, budget: Budget = Budget()) -> Iterator[None]:
        """Watch the step that is made inside, if it is the first of its kind; give back first what earlier ones freed."""
        known = self.reserve(kind, self.frames)
        if known is None or budget.room() < 2 * known:
            give_back_freed()
        if known is not None:
            yield
            return
        with Watch.running() as watch:
            before = watch.peak
            yield
        self.known[kind] = watch.peak - before, self.frames
