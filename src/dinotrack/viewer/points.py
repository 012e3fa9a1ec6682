"""Which track of one file answers the same query as which of another."""

from collections import defaultdict, deque
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.structs import Tracks


@dataclass(frozen=True)
class TrackSet:
    """Tracks and what a viewer calls them."""

    name: str
    tracks: Tracks


@dataclass(frozen=True)
class Points:
    """The queries of one or more files, each once: those of the first in its order, then what only later ones have."""

    queries: Float[Tensor, "p 3"]
    """(t, x, y) rows."""
    rows: Int[Tensor, "s p"]
    """The row of each point in each file, -1 where the file lacks it."""

    def __len__(self) -> int:
        return len(self.queries)


def unite(sets: Sequence[TrackSet], tolerance: float = 0.01) -> Points:
    """Match tracks by their queries: the same frame, and x and y equal once rounded to `tolerance` pixels.

    A query that a file asks more than once is matched in order.

    Raises:
        DinotrackError: where files differ in size or number of frames, and so are not of one video.
    """
    first, *others = sets
    for other in others:
        _check_same_video(first, other)
    queries, rows = list(first.tracks.queries.cpu()), [list(range(len(first.tracks)))]
    for other in others:
        waiting: dict[tuple[int, ...], deque[int]] = defaultdict(deque)
        for row, key in enumerate(_keys(other.tracks.queries, tolerance)):
            waiting[key].append(row)
        known = torch.stack(queries) if queries else torch.zeros(0, 3)
        found = [waiting[key].popleft() if waiting[key] else -1 for key in _keys(known, tolerance)]
        extra = sorted(row for left in waiting.values() for row in left)
        queries += [other.tracks.queries[row].cpu() for row in extra]
        rows = [[*earlier, *[-1] * len(extra)] for earlier in rows] + [found + extra]
    return Points(torch.stack(queries) if queries else torch.zeros(0, 3), torch.tensor(rows, dtype=torch.long))


def _keys(queries: Float[Tensor, "n 3"], tolerance: float) -> list[tuple[int, ...]]:
    cells = queries.double().div(queries.new_tensor([1.0, tolerance, tolerance]).double()).round().long()
    return [tuple(cell) for cell in cells.tolist()]


def _check_same_video(first: TrackSet, other: TrackSet) -> None:
    here, there = ((each.tracks.xy.shape[1], *each.tracks.size) for each in (first, other))
    if here != there:
        raise DinotrackError(
            f"{first.name} is of (T, W, H) = {here}, {other.name} of {there}; compare tracks of one video"
        )
