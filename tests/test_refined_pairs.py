"""Pairs that refined features find, against loops in float64 (§3), and their shares (§5)."""

import itertools

import numpy as np
import pytest
import torch
from torch import Tensor

from dinotrack import DinotrackError
from dinotrack.networks import TrackerHead
from dinotrack.refined_pairs import PairSearch, cycle_pairs, pick, random_pixels, refined_best_buddies
from dinotrack.structs import FeatureMap, Grid, Pairs
from twins import array, benign_head, bilinear, cosine, match

GRID, SIZE, HEIGHT, WIDTH = Grid(7.0, 7.0), (56, 42), 5, 7
BETWEEN = [(0, 1), (1, 0), (2, 0)]
EVERY = PairSearch(10_000, 10_000)


def make_features(rng: torch.Generator, noise: float = 0.5) -> FeatureMap:
    """Three frames that resemble each other."""
    base = torch.randn(1, 6, HEIGHT, WIDTH, generator=rng)
    values = base + noise * torch.randn(3, 6, HEIGHT, WIDTH, generator=rng)
    return FeatureMap(values.half(), 7.0, 7.0, SIZE)


def make_masks(rng: torch.Generator) -> Tensor:
    return torch.rand(3, SIZE[1], SIZE[0], generator=rng) < 0.4


def test_refined_best_buddies_are_mutual_nearest_neighbours_weighted_by_their_cosine(rng: torch.Generator) -> None:
    features, masks = make_features(rng), make_masks(rng)
    found = refined_best_buddies(features, masks, BETWEEN, EVERY, rng)
    maps, expected = array(features.values.float()), {}
    cells = list(itertools.product(range(HEIGHT), range(WIDTH)))
    for i, j in BETWEEN:
        table = np.array([[cosine(maps[i][:, *a], maps[j][:, *b]) for b in cells] for a in cells])
        for a, b in itertools.product(range(len(cells)), repeat=2):
            if table[a].argmax() == b and table[:, b].argmax() == a:
                expected[i, j, cells[a], cells[b]] = 2 * max(table[a, b], 0.0) ** 3
    centres = [[7.0 + 7.0 * column, 7.0 + 7.0 * row] for row, column in cells]
    number = {tuple(centre): cell for centre, cell in zip(centres, cells, strict=True)}
    got = {}
    for n in range(len(found)):
        ends = (number[tuple(xy[n].tolist())] for xy in (found.source_xy, found.target_xy))
        got[(int(found.source[n]), int(found.target[n]), *ends)] = float(found.weight[n])
    assert len(found) == len(expected) > 20
    assert got == pytest.approx(expected, abs=1e-5)


def twin_cycles(
    features: FeatureMap, head: TrackerHead, starts: np.ndarray, i: int, j: int, scale: float
) -> list[tuple[np.ndarray, np.ndarray, float]]:
    """Start, Π(start, j) and cycle error, in pixels at a long side of 854, of each start."""
    maps, out = array(features.values.float()), []
    for start in starts:
        forth = match(head, bilinear(maps[i], *start, GRID), maps[j], GRID, scale)
        back = match(head, bilinear(maps[j], *forth, GRID), maps[i], GRID, scale)
        out.append((start, forth, float(np.linalg.norm(back - start)) / scale))
    return out


@pytest.mark.parametrize("scale", [True, False])
def test_cycle_pairs_come_back_to_within_gamma(scale: bool, rng: torch.Generator) -> None:
    features, masks, factor = make_features(rng, 0.3), make_masks(rng), 56 / 854 if scale else 1.0
    head, search = benign_head(radius=12.0 / factor), PairSearch(60, 30, gamma=8.0 / factor)
    with torch.random.fork_rng():
        found = cycle_pairs(features, head, masks, BETWEEN, search, torch.Generator().manual_seed(3), scale=scale)
        again = torch.Generator().manual_seed(3)
        starts = [(i, j, array(random_pixels(masks[i], search, again))) for i, j in BETWEEN]
    expected = [(i, j, *row) for i, j, points in starts for row in twin_cycles(features, head, points, i, j, factor)]
    kept = [row for row in expected if row[4] <= search.gamma]
    assert 20 < len(kept) < len(expected) == 270 and len(found) == len(kept)
    for n, (i, j, start, forth, error) in enumerate(kept):
        assert (int(found.source[n]), int(found.target[n])) == (i, j)
        assert np.allclose(found.source_xy[n], start) and np.allclose(found.target_xy[n], forth, atol=1e-2)
        assert float(found.weight[n]) == pytest.approx(0.8**error, abs=1e-2)


def test_random_pixels_are_pixel_centres_of_either_class(rng: torch.Generator) -> None:
    mask = make_masks(rng)[0]
    xy = random_pixels(mask, PairSearch(179, 77), rng)
    assert len(xy) == 256 and (xy % 1 == 0.5).all()
    on = [bool(mask[int(y), int(x)]) for x, y in xy]
    assert sum(on) == 179 and len({tuple(p) for p in xy.tolist()}) == 256
    alone = random_pixels(torch.zeros(4, 5, dtype=torch.bool), PairSearch(179, 7), rng)
    assert len(alone) == 7  # no topping up
    everything = random_pixels(torch.zeros(4, 5, dtype=torch.bool), EVERY, rng)
    assert sorted(map(tuple, everything.tolist())) == sorted((x + 0.5, y + 0.5) for x in range(5) for y in range(4))


def test_shares_bound_best_buddies_by_the_mask_at_their_source(rng: torch.Generator) -> None:
    features, masks = make_features(rng, 0.0), torch.zeros(3, SIZE[1], SIZE[0], dtype=torch.bool)
    masks[0, :, :28] = True  # identical frames: every token is its own best buddy
    found = refined_best_buddies(features, masks, [(0, 1), (1, 0)], PairSearch(6, 4), rng)
    forth = found[found.source == 0]
    assert int((forth.source_xy[:, 0] < 28).sum()) == 6 and len(forth) == 10
    assert len(found[found.source == 1]) == 4


def test_both_ways_are_the_two_directions_together(rng: torch.Generator) -> None:
    features, masks, head = make_features(rng, 0.3), make_masks(rng), benign_head(radius=12.0)
    forth, back = [(0, 1), (0, 2)], [(1, 0), (2, 0)]

    def rows(pairs: Pairs) -> set[tuple[float, ...]]:
        columns = (
            pairs.source[:, None],
            pairs.target[:, None],
            pairs.source_xy,
            pairs.target_xy,
            pairs.weight[:, None],
        )
        return {tuple(round(value, 3) for value in row) for row in torch.cat(columns, 1).tolist()}

    each = [refined_best_buddies(features, masks, way, EVERY, rng) for way in (forth, back)]
    together = refined_best_buddies(features, masks, forth, EVERY, rng, both=True)
    assert rows(together) == rows(Pairs.cat(each)) and len(together) == len(each[0]) + len(each[1])
    search = PairSearch(10_000, 10_000, gamma=1e9)
    each = [cycle_pairs(features, head, masks, way, search, rng) for way in (forth, back)]
    assert rows(cycle_pairs(features, head, masks, forth, search, rng, both=True)) == rows(Pairs.cat(each))


def test_draws_repeat_only_among_very_many(rng: torch.Generator) -> None:
    for count in (0, 3, 50, 5000):
        picked = pick(count, 50, rng)
        assert len(picked) == min(count, 50) == len(set(picked.tolist()))
    many = pick(10_000, 50, rng)
    assert len(many) == 50 and int(many.min()) >= 0 and int(many.max()) < 10_000


def test_no_frame_pairs_and_no_pixels_give_no_pairs(rng: torch.Generator) -> None:
    features, masks, head = make_features(rng), make_masks(rng), benign_head()
    nobody = PairSearch(0, 0)
    for between, search in (([], EVERY), (BETWEEN, nobody)):
        assert len(refined_best_buddies(features, masks, between, search, rng)) == 0
        assert len(cycle_pairs(features, head, masks, between, search, rng)) == 0


@pytest.mark.parametrize("wrong", [{"points_foreground": -1}, {"points_background": -2}, {"gamma": 0.0}])
def test_settings_without_sense_are_refused(wrong: dict[str, float]) -> None:
    with pytest.raises(DinotrackError, match=f"{next(iter(wrong))}={next(iter(wrong.values()))}"):
        PairSearch(**wrong)  # type: ignore[arg-type]
