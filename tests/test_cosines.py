"""Cosines between pairs of frames, in blocks and in parts as at once."""

import pytest
import torch

from dinotrack.correspondences import frame_pairs
from dinotrack.cosines import Cosines, ambiguities, by_blocks
from dinotrack.equations import ambiguity, similarity
from dinotrack.geometry import centres
from dinotrack.structs import Grid


@pytest.mark.parametrize("most", range(2, 12))
def test_blocks_touch_few_frames_and_hold_every_pair_once(most: int, rng: torch.Generator) -> None:
    for limit in (1000, 20):
        pairs = frame_pairs(10, limit, rng)
        groups = by_blocks(pairs, 10, most)
        assert sorted(pair for group in groups for pair in group) == pairs
        assert all(len({frame for pair in group for frame in pair}) <= most for group in groups)
        assert most < 10 or groups == [pairs]


ROWS = 4 * 4 * 15
"""Bytes of the unit rows of a frame."""


@pytest.mark.parametrize(("rows", "product"), [(1e9, 256e6), (1.0, 256e6), (3 * ROWS, 2 * 4 * 15**2), (1e9, 1.0)])
@pytest.mark.parametrize("limit", [1000, 6])
def test_cosines_are_of_the_frames_that_they_name(
    rows: float, product: float, limit: int, rng: torch.Generator
) -> None:
    values, pairs = torch.randn(6, 4, 3, 5, generator=rng).half(), frame_pairs(6, limit, rng)
    cosines = Cosines(values, pairs, rows=rows, product=product)
    found = {(i, j): maps.clone() for i, j, maps in cosines}
    assert len(cosines) == len(pairs) and found.keys() == set(pairs)
    for (i, j), maps in found.items():
        expected = similarity(*(values[t].flatten(1).T.float() for t in (i, j)))
        torch.testing.assert_close(maps, expected)


def test_rows_are_made_once_for_each_pair_of_blocks(rng: torch.Generator, monkeypatch: pytest.MonkeyPatch) -> None:
    """Blocks of three of nine frames: the three themselves, and the three pairs of them, of which one block stays each time."""
    made = list[int]()
    monkeypatch.setattr("dinotrack.cosines.unit", lambda rows: made.append(1) or rows)
    values, pairs = torch.randn(9, 4, 3, 5, generator=rng).half(), frame_pairs(9, 1000)
    assert len(list(Cosines(values, pairs))) == 36 and len(made) == 9
    made.clear()
    assert len(list(Cosines(values, pairs, rows=6 * ROWS))) == 36 and len(made) == 3 + 3 + 3 + 3 + 3


@pytest.mark.parametrize("at_once", [1.0, 40.0, 1e9])
def test_ambiguities_are_the_same_in_parts(at_once: float, rng: torch.Generator) -> None:
    maps, xy = torch.rand(12, 35, generator=rng), centres(5, 7, Grid(7.0, 7.0))
    chosen = torch.tensor([0, 3, 4, 11, 7])
    rows = ambiguities(maps, chosen, 0, xy, at_once=at_once, side=20.0)
    columns = ambiguities(maps.T.contiguous(), chosen, 1, xy, at_once=at_once, side=20.0)
    assert torch.equal(rows, ambiguity(maps[chosen], xy, side=20.0)) and torch.equal(columns, rows)
    assert len(ambiguities(maps, chosen[:0], 0, xy, at_once=at_once)) == 0
