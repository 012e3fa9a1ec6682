"""Every equation against its naive twin: loops in float64, from the formulas of the method."""

import itertools
import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from jaxtyping import TypeCheckError
from torch import Tensor

from dinotrack.equations import (
    ambiguity,
    best_buddies,
    best_buddy_weight,
    box_overlap,
    confidence,
    contrastive_loss,
    cubed,
    cycle_weight,
    follow,
    forward_backward_error,
    masked_median,
    position_loss,
    priors,
    shared_peaks,
    similarity,
    trajectory_agreement,
    unit,
)
from dinotrack.geometry import centres
from dinotrack.structs import PIXELS, Grid
from twins import ambiguity_twin, array, bilinear, cosine, huber, overlap_twin


def test_the_guard_bites() -> None:
    with pytest.raises(TypeCheckError):
        similarity(torch.zeros(3, 4), torch.zeros(2, 5))
    with pytest.raises(TypeCheckError):
        similarity(torch.zeros(3, 4, 1), torch.zeros(2, 4))
    with pytest.raises(TypeCheckError):
        best_buddies(torch.zeros(3, 4, dtype=torch.long))


def test_similarity_is_the_cosine(rng: torch.Generator) -> None:
    source, target = torch.randn(5, 6, generator=rng), torch.randn(4, 6, generator=rng)
    expected = [[cosine(array(a), array(b)) for b in target] for a in source]
    assert np.allclose(similarity(source, target), expected, atol=1e-6)
    assert similarity(source[:0], target).shape == (0, 4)


def test_a_zero_feature_stays_zero() -> None:
    assert unit(torch.zeros(2, 3)).tolist() == [[0.0] * 3] * 2
    assert torch.allclose(unit(torch.tensor([[3.0, 4.0]])), torch.tensor([[0.6, 0.8]]))


def test_best_buddies_are_mutual_nearest_neighbours(rng: torch.Generator) -> None:
    for shape in ((1, 1), (1, 5), (7, 4), (30, 40)):
        values = torch.randn(shape, generator=rng)
        expected = []
        for i in range(shape[0]):
            j = max(range(shape[1]), key=lambda j: float(values[i, j]))
            if i == max(range(shape[0]), key=lambda i: float(values[i, j])):
                expected.append((i, j))
        source, target = best_buddies(values)
        assert list(zip(source.tolist(), target.tolist(), strict=True)) == expected
        assert expected  # the highest value of all is always mutual


def test_box_overlap_is_intersection_over_union(rng: torch.Generator) -> None:
    a, b = torch.rand(2, 200, 2, generator=rng) * 80
    expected = [overlap_twin(array(p), array(q), 30.0) for p, q in zip(a, b, strict=True)]
    assert np.allclose(box_overlap(*(a - b).unbind(1), 30.0), expected, atol=1e-6)
    assert box_overlap(torch.zeros(1), torch.zeros(1), 30.0).item() == 1.0


@pytest.mark.parametrize("candidates", [400, 12, 1])
@pytest.mark.parametrize(("side", "overlap"), [(60.0, 0.2), (25.0, 0.2), (25.0, 0.6), (300.0, 0.2)])
def test_ambiguity_is_greedy_suppression(side: float, overlap: float, candidates: int, rng: torch.Generator) -> None:
    xy = centres(9, 11, Grid(7.0, 7.0))
    rough = torch.randn(8, 99, generator=rng) * 0.5
    bumps = torch.exp(-torch.cdist(xy[torch.randint(0, 99, (24,), generator=rng)], xy) / 15).view(8, 3, 99).amax(1)
    values = torch.cat([rough, bumps + 0.02 * rough, -rough.abs()])
    found = ambiguity(values, xy, side=side, overlap=overlap, candidates=candidates)
    expected = [ambiguity_twin(array(row), array(xy), side, overlap, candidates) for row in values]
    assert np.allclose(found, expected, atol=1e-6)
    if candidates == 400 and side < 100:
        assert found.max() > 0.5  # some are ambiguous
    if candidates == 1 or side == 300:
        assert found.max() == 0.0  # a single peak is not


@settings(max_examples=60, deadline=None, derandomize=True)
@given(st.lists(st.integers(-100, 100), min_size=6, max_size=40, unique=True), st.floats(7, 60), st.floats(0.05, 0.9))
def test_ambiguity_is_greedy_suppression_whatever_the_similarities(
    values: list[int], side: float, overlap: float
) -> None:
    xy = centres(-(-len(values) // 5), 5, Grid(7.0, 7.0))[: len(values)]
    found = ambiguity(torch.tensor([values]) / 100.0, xy, side=side, overlap=overlap)
    assert found.item() == pytest.approx(ambiguity_twin(np.array(values) / 100, array(xy), side, overlap), abs=1e-5)


def test_best_buddy_weights(rng: torch.Generator) -> None:
    ratio, cosines = torch.rand(50, generator=rng), torch.rand(50, generator=rng) * 2 - 1
    for n in range(50):
        r, s = float(ratio[n]), max(float(cosines[n]), 0.0)
        expected = 1 / (1 + math.exp(-(27 * (1 - r) - 5.7))) * 2 * s**3
        assert best_buddy_weight(ratio, cosines)[n].item() == pytest.approx(expected, abs=1e-6)
        assert cubed(cosines)[n].item() == pytest.approx(2 * s**3, abs=1e-6)


def test_an_ambiguous_pair_weighs_nothing_and_a_clear_one_twice_its_cube() -> None:
    weight = best_buddy_weight(torch.tensor([1.0, 0.0]), torch.tensor([1.0, 1.0]))
    assert weight[0] < 0.01 and weight[1] == pytest.approx(2.0)


def test_contrastive_loss_is_a_negative_log_softmax(rng: torch.Generator) -> None:
    cosines = torch.rand(6, 9, generator=rng, dtype=torch.float64) * 2 - 1
    index = torch.randint(0, 9, (6,), generator=rng)
    for temperature in (0.1, 1.0):
        found = contrastive_loss(cosines, index, temperature=temperature)
        for n in range(6):
            total = sum(math.exp(float(c) / temperature) for c in cosines[n])
            expected = -math.log(math.exp(float(cosines[n, index[n]]) / temperature) / total)
            assert found[n].item() == pytest.approx(expected)
    assert contrastive_loss(cosines[:0], index[:0]).shape == (0,)


def test_position_loss_is_huber_per_coordinate(rng: torch.Generator) -> None:
    a, b = torch.randn(2, 30, 2, generator=rng, dtype=torch.float64) * 0.05
    expected = [[huber(float(p), float(q)) for p, q in zip(*rows, strict=True)] for rows in zip(a, b, strict=True)]
    assert np.allclose(position_loss(a, b), expected)
    assert ((a - b).abs() < 1 / 32).any() and ((a - b).abs() > 1 / 32).any()


def test_cycle_weight() -> None:
    found = cycle_weight(torch.tensor([0.0, 1.0, 4.0]))
    assert found.tolist() == pytest.approx([1.0, 0.8, 0.8 * 0.8 * 0.8 * 0.8])


def test_priors_compare_norms_and_angles(rng: torch.Generator) -> None:
    refined, raw = torch.randn(2, 3, 4, 5, generator=rng, dtype=torch.float64)
    norms, angles = priors(refined, raw)
    for index in np.ndindex(3, 4):
        a, b = array(refined[index]), array(raw[index])
        assert norms[index].item() == pytest.approx(abs(1 - math.sqrt(a @ a) / math.sqrt(b @ b)))
        assert angles[index].item() == pytest.approx(abs(1 - cosine(a, b)))
    assert all(half.abs().max() < 1e-12 for half in priors(raw, raw))


def test_gradients_of_the_differentiable_equations(rng: torch.Generator) -> None:
    def random(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=rng, dtype=torch.float64).requires_grad_()

    a, b, index = random(4, 3), random(5, 3), torch.tensor([0, 4, 2, 2])
    assert torch.autograd.gradcheck(similarity, (a, b))
    assert torch.autograd.gradcheck(lambda s, t: contrastive_loss(similarity(s, t), index), (a, b))
    assert torch.autograd.gradcheck(priors, (a, random(4, 3)))
    assert torch.autograd.gradcheck(position_loss, (random(6, 2), random(6, 2)))
    assert torch.autograd.gradcheck(cubed, (random(6),))


def test_following_a_flow(rng: torch.Generator) -> None:
    flow, back = torch.randn(2, 2, 5, 7, generator=rng) * 2
    xy = torch.rand(40, 2, generator=rng) * torch.tensor([9.0, 7.0]) - 1
    landed, error = forward_backward_error(flow, back, xy)
    assert torch.equal(follow(flow, xy), landed)
    for n in range(40):
        x, y = xy[n].tolist()
        there = np.array([x, y]) + bilinear(array(flow), x, y, PIXELS)
        returned = there + bilinear(array(back), there[0], there[1], PIXELS)
        assert np.allclose(landed[n], there, atol=1e-5)
        assert error[n].item() == pytest.approx(math.dist(returned, (x, y)), abs=1e-4)


def test_the_masked_median_is_torchs(rng: torch.Generator) -> None:
    values, mask = torch.randn(12, 6, 4, generator=rng), torch.rand(12, 6, generator=rng) > 0.5
    mask[0], mask[1] = True, False
    mask[2], mask[2, 3] = False, True
    found = masked_median(values, mask)
    for n in range(12):
        for t in range(4):
            admitted = values[n, mask[n], t]
            assert found[n, t] == (torch.median(admitted) if len(admitted) else torch.inf)


def test_trajectory_agreement(rng: torch.Generator) -> None:
    distances, anchors = torch.rand(10, 7, 7, generator=rng), torch.rand(10, 7, generator=rng) > 0.4
    anchors[0] = False
    disagreement, limit = trajectory_agreement(distances, anchors)
    for q in range(10):
        chosen = [k for k in range(7) if anchors[q, k]]
        if not chosen:
            assert not (disagreement[q] <= limit[q]).any()
            continue
        e = [torch.median(torch.stack([distances[q, k, t] for k in chosen])) for t in range(7)]
        assert disagreement[q].tolist() == e
        assert limit[q] == max(e[k] for k in chosen)
        assert (disagreement[q] <= limit[q])[anchors[q]].all()  # every anchor agrees


def test_confidence_falls_with_the_disagreement_and_with_the_angle(rng: torch.Generator) -> None:
    cosine, apart = torch.rand(4, 5, generator=rng) * 2 - 1, torch.rand(4, 5, generator=rng) * 100
    found = confidence(cosine, apart, scale=20.0)
    for n, t in itertools.product(range(4), range(5)):
        assert float(found[n, t]) == pytest.approx(max(float(cosine[n, t]), 0.0) / (1 + float(apart[n, t]) / 20.0))
    assert confidence(torch.ones(1, 1), torch.zeros(1, 1)).item() == 1.0
    assert confidence(torch.ones(1, 1), torch.full((1, 1), torch.inf)).item() == 0.0
    assert confidence(torch.ones(1, 1), torch.full((1, 1), 35.0)).item() == 0.5  # R of the paper


def test_of_equal_sources_and_targets_the_first_is_the_buddy(rng: torch.Generator) -> None:
    """Coarse values have many ties; a black video has nothing else."""
    for _ in range(20):
        values = torch.randint(0, 3, (7, 9), generator=rng).float()
        rows, expected = values.tolist(), []
        taken: set[int] = set()
        for i, row in enumerate(rows):
            mutual = [j for j, v in enumerate(row) if v == max(row) == max(other[j] for other in rows)]
            if mutual and mutual[0] not in taken:
                taken.add(mutual[0])
                expected.append((i, mutual[0]))
        source, target = best_buddies(values)
        assert list(zip(source.tolist(), target.tolist(), strict=True)) == expected
        ways = [shared_peaks(values, values.amax(1), values.amax(0), few) for few in (0, 9)]  # all at once, one by one
        assert torch.equal(*ways) and ways[0][source].equal(target)
    assert [found.tolist() for found in best_buddies(torch.zeros(5, 4))] == [[0], [0]]


def test_a_value_that_stands_twice_makes_no_pair_where_it_is_not_the_highest() -> None:
    """Row 0 and column 0 have the same highest value, at different places; row 1 has it twice, once as a column's highest."""
    values = torch.tensor([[1.0, 5.0, 2.0], [5.0, 0.0, 0.0], [0.0, 7.0, 0.0]])
    assert [found.tolist() for found in best_buddies(values)] == [[1, 2], [0, 1]]
    twice = torch.tensor([[5.0, 5.0, 0.0], [9.0, 1.0, 8.0]])
    assert [found.tolist() for found in best_buddies(twice)] == [[0, 1], [1, 0]]
