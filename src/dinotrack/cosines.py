"""How alike all tokens of two frames are, for many pairs of frames, in bounded memory."""

from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor

from dinotrack.equations import ambiguity, unit


def by_blocks(pairs: list[tuple[int, int]], frames: int, most: int) -> list[list[tuple[int, int]]]:
    """Sorted pairs of frames in groups that touch at most `most` frames each: between two blocks of frames, or one and itself."""
    side = frames if frames <= most else most // 2
    ordered = sorted(pairs, key=lambda pair: (pair[0] // side, pair[1] // side))  # a stable sort
    return [list(group) for _, group in groupby(ordered, key=lambda pair: (pair[0] // side, pair[1] // side))]


@dataclass(frozen=True)
class Cosines:
    """(i, j, cosines of every token of frame i with every token of j) for pairs of frames, from unit rows on `device`.

    Where not all unit rows fit, pairs come block of frames by block. One product serves several partners of a frame, which the
    processor does faster than one after the other. All products are written to the same memory: cosines are to be used before
    the next ones are asked for.
    """

    features: Float[Tensor, "t c h w"]
    pairs: list[tuple[int, int]]
    """Sorted."""
    device: torch.device | str = "cpu"
    rows: float = 4e9
    """Bytes that unit rows may fill; two frames have to."""
    product: float = 256e6
    """Bytes that one product may fill; at most half of what the rows may."""

    def __len__(self) -> int:
        return len(self.pairs)

    def __iter__(self) -> Iterator[tuple[int, int, Float[Tensor, "n m"]]]:
        count, channels, height, width = self.features.shape
        most = min(count, max(2, int(self.rows / (4 * channels * height * width))))
        maps = torch.empty(most, height * width, channels, device=self.device)
        cells = height * width
        room = maps.new_empty(cells * aligned(self.at_once(maps) * cells))
        place: dict[int, int] = {}
        for group in by_blocks(self.pairs, count, most):
            needed = {frame for pair in group for frame in pair}
            place = {frame: row for frame, row in place.items() if frame in needed}
            spare = sorted(set(range(most)) - set(place.values()), reverse=True)
            for frame in sorted(needed - place.keys()):
                place[frame] = spare.pop()
                maps[place[frame]] = unit(self.features[frame].to(self.device).flatten(1).T.float())
            yield from self.products(maps, place, group, room)

    def at_once(self, maps: Float[Tensor, "k cells c"]) -> int:
        """Partners that one product serves."""
        most = max(Counter(i for i, _ in self.pairs).values(), default=1)
        room = min(self.product, self.rows / 2)
        return min(len(maps), most, max(1, int(room / (4 * maps.shape[1] ** 2))))

    def products(
        self,
        maps: Float[Tensor, "k cells c"],
        place: dict[int, int],
        pairs: list[tuple[int, int]],
        room: Float[Tensor, " r"],
    ) -> Iterator[tuple[int, int, Float[Tensor, "n m"]]]:
        """The pairs of one group, from unit rows at `place` in `maps`."""
        cells, most = maps.shape[1], self.at_once(maps)
        for i, group in groupby(pairs, key=lambda pair: pair[0]):
            partners = [j for _, j in group]
            for start in range(0, len(partners), most):
                some = partners[start : start + most]
                width = len(some) * cells
                product = room[: cells * aligned(width)].view(cells, -1)[:, :width]
                torch.mm(maps[place[i]], rows_of(maps, [place[j] for j in some]).flatten(0, 1).T, out=product)
                for j, similarities in zip(some, product.split(cells, 1), strict=True):
                    yield i, j, similarities


def aligned(width: int, floats: int = 16) -> int:
    """Length of rows that all begin at a multiple of 64 bytes, to which products are written a third faster than to odd ones."""
    return -(-width // floats) * floats


def rows_of(maps: Float[Tensor, "t cells c"], frames: list[int]) -> Float[Tensor, "k cells c"]:
    """Maps of these frames: a view where they follow one another, as all partners of a frame do."""
    if frames == list(range(frames[0], frames[-1] + 1)):
        return maps[frames[0] : frames[-1] + 1]
    return maps[frames]


def ambiguities(
    similarities: Float[Tensor, "n m"],
    index: Int[Tensor, " k"],
    dim: int,
    xy: Float[Tensor, "cells 2"],
    *,
    at_once: float | None = None,
    **peaks: Any,
) -> Float[Tensor, " k"]:
    """`equations.ambiguity` of rows (`dim` 0) or columns (1) with these numbers, of `at_once` similarities at a time.

    Few on a CPU, where large temporaries, between which small results are kept, leave holes in the heap.
    """
    most = at_once or (1e6 if similarities.device.type == "cpu" else 3e7)
    parts = index.split(max(1, int(most / len(xy))))
    chosen = (similarities[:, part].T if dim else similarities[part] for part in parts)
    return torch.cat([ambiguity(rows, xy, **peaks) for rows in chosen])
