"""Every term of Eq. 5 against loops in float64 (§4), its gradients, and when it counts."""

import itertools
import math
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinotrack import DinotrackError
from dinotrack.structs import Grid, Pairs
from dinotrack.training.batch import Batch
from dinotrack.training.losses import (
    BestBuddyLoss,
    CycleLoss,
    FlowLoss,
    LossTerm,
    LossTerms,
    PriorLoss,
    RefinedBestBuddyLoss,
    Step,
    both_ways,
    by_frames,
)
from dinotrack.training.modules import published_losses
from twins import array, benign_head, bilinear, cosine, huber, match

GRID, SIZE, HEIGHT, WIDTH = Grid(7.0, 7.0), (56, 42), 5, 7


def random_pairs(count: int, rng: torch.Generator, on_tokens: bool = False) -> Pairs:
    """Pairs between three frames, at tokens or anywhere."""
    source = torch.randint(0, 3, (count,), generator=rng)
    target = (source + torch.randint(1, 3, (count,), generator=rng)) % 3
    xy = torch.rand(2, count, 2, generator=rng) * torch.tensor(SIZE)
    if on_tokens:
        cells = torch.randint(0, 100, (2, count, 2), generator=rng) % torch.tensor([WIDTH, HEIGHT])
        xy = cells * GRID.stride + GRID.offset
    return Pairs(source, target, xy[0], xy[1], torch.rand(count, generator=rng) + 0.2)


def make_step(rng: torch.Generator, **pairs: Pairs) -> Step:
    """A step whose features match from frame to frame well enough for positions to spread."""
    base = torch.randn(1, 6, HEIGHT, WIDTH, generator=rng)
    raw = base + 0.5 * torch.randn(3, 6, HEIGHT, WIDTH, generator=rng)
    refined = raw.half().float() + 0.3 * torch.randn(raw.shape, generator=rng)
    empty = {name: Pairs.empty() for name in ("flow", "best_buddies", "refined", "cycle")}
    batch = Batch(
        frames=torch.tensor([2, 5, 9]),
        images=torch.zeros(3, 3, SIZE[1], SIZE[0], dtype=torch.uint8),
        features=raw.half(),
        frame_pairs=torch.zeros(0, 2, dtype=torch.long),
        masks=torch.zeros(3, SIZE[1], SIZE[0], dtype=torch.bool),
        grid=GRID,
        size=SIZE,
        scale_constants=False,
        **{**empty, **pairs},
    )
    return Step(batch, refined.requires_grad_(), benign_head(radius=15.0))


def located(step: Step, pairs: Pairs, scale: float = 1.0) -> np.ndarray:
    """Π(x^i, j) of every pair, each by itself."""
    maps, found = array(step.refined), []
    for n in range(len(pairs)):
        i, j, (x, y) = int(pairs.source[n]), int(pairs.target[n]), pairs.source_xy[n].tolist()
        found.append(match(step.head, bilinear(maps[i], x, y, GRID), maps[j], GRID, scale))
    return np.array(found)


def huber_sum(found: np.ndarray, wanted: Tensor) -> list[float]:
    """Huber losses of x and y, added, in the published code's units."""
    sums = []
    for a, b in zip(found, array(wanted), strict=True):
        units = [[2 * p[k] / (SIZE[k] - 1) - 1 for k in range(2)] for p in (a, b)]
        sums.append(sum(huber(units[0][k], units[1][k]) for k in range(2)))
    return sums


def cell(xy: Tensor) -> tuple[int, int]:
    """Row and column of a token."""
    return round((float(xy[1]) - GRID.offset) / GRID.stride), round((float(xy[0]) - GRID.offset) / GRID.stride)


def contrastive_twin(step: Step, pairs: Pairs, temperature: float = 0.1) -> list[float]:
    """½(l_ij + l_ji) of every pair."""
    maps, out = array(step.refined), []
    for n in range(len(pairs)):
        ends = [(int(pairs.source[n]), cell(pairs.source_xy[n])), (int(pairs.target[n]), cell(pairs.target_xy[n]))]
        losses = []
        for (here, at), (there, goal) in (ends, ends[::-1]):
            all_cells = itertools.product(range(HEIGHT), range(WIDTH))
            scores = {c: math.exp(cosine(maps[here][:, *at], maps[there][:, *c]) / temperature) for c in all_cells}
            losses.append(-math.log(scores[goal] / sum(scores.values())))
        out.append(sum(losses) / 2)
    return out


def current_cosines(step: Step, pairs: Pairs) -> list[float]:
    """Of each pair in the refined features of the step."""
    maps, found = array(step.refined), []
    for n in range(len(pairs)):
        here, there = maps[int(pairs.source[n])], maps[int(pairs.target[n])]
        found.append(cosine(here[:, *cell(pairs.source_xy[n])], there[:, *cell(pairs.target_xy[n])]))
    return found


@pytest.mark.parametrize("scale_constants", [True, False])
def test_positions_are_those_of_each_pair_by_itself(scale_constants: bool, rng: torch.Generator) -> None:
    step, pairs = make_step(rng), random_pairs(40, rng)
    scale, head = (56 / 854, benign_head(radius=15.0 * 854 / 56)) if scale_constants else (1.0, step.head)
    step = Step(replace(step.batch, scale_constants=scale_constants), step.refined, head)
    found = step.locate(pairs)
    assert np.allclose(found.detach(), located(step, pairs, scale), atol=1e-3)
    assert found.std(0).min() > 5  # they spread
    assert step.locate(pairs[:0]).shape == (0, 2)


def test_the_flow_loss_is_a_mean_huber_loss(rng: torch.Generator) -> None:
    pairs = random_pairs(30, rng)
    step = make_step(rng, flow=pairs)
    target = torch.from_numpy(located(step, pairs)).float()
    pairs = replace(pairs, target_xy=torch.where(torch.rand(30, 1, generator=rng) > 0.5, target + 0.3, pairs.target_xy))
    step = Step(replace(step.batch, flow=pairs), step.refined, step.head)
    sums = huber_sum(located(step, pairs), pairs.target_xy)
    assert min(sums) < 2 * (1 / 32) ** 2 / 2 < max(sums)  # both branches of the Huber loss
    assert FlowLoss()(step).item() == pytest.approx(sum(sums) / (2 * 30), rel=1e-4)


def test_the_best_buddy_loss_is_a_weighted_sum(rng: torch.Generator) -> None:
    pairs, other = random_pairs(25, rng, on_tokens=True), random_pairs(9, rng, on_tokens=True)
    step = make_step(rng, best_buddies=pairs, refined=other)
    twins = contrastive_twin(step, pairs)
    losses, cosines = both_ways(step, pairs, 0.1)
    assert np.allclose(losses.detach(), twins, rtol=1e-4)
    assert np.allclose(cosines, current_cosines(step, pairs), atol=1e-6) and not cosines.requires_grad
    expected = sum(float(w) * value for w, value in zip(pairs.weight, twins, strict=True))
    assert BestBuddyLoss()(step).item() == pytest.approx(expected / 700, rel=1e-4)
    assert BestBuddyLoss(divisor=30.0)(step).item() == pytest.approx(expected / 30, rel=1e-4)
    assert BestBuddyLoss(divisor=None)(step).item() == pytest.approx(expected / 25, rel=1e-4)  # [P]
    trust = [2 * max(s, 0.0) ** 3 for s in current_cosines(step, other)]  # of the current Φ, whatever the table says
    assert min(trust) == 0.0 < max(trust)
    expected = sum(w * v for w, v in zip(trust, contrastive_twin(step, other), strict=True))
    assert RefinedBestBuddyLoss()(step).item() == pytest.approx(expected / 900, rel=1e-4)
    hotter = sum(float(w) * v for w, v in zip(pairs.weight, contrastive_twin(step, pairs, 0.5), strict=True))
    assert BestBuddyLoss(temperature=0.5)(step).item() == pytest.approx(hotter / 700, rel=1e-4)


def test_the_best_buddy_loss_reads_pairs_the_same_both_ways(rng: torch.Generator) -> None:
    step, pairs = make_step(rng), random_pairs(25, rng, on_tokens=True)
    for forth, back in zip(both_ways(step, pairs, 0.1), both_ways(step, pairs.flip(), 0.1), strict=True):
        assert torch.allclose(forth, back)


def test_the_cycle_loss_is_half_of_each_direction(rng: torch.Generator) -> None:
    pairs = random_pairs(20, rng)
    step = make_step(rng, cycle=pairs)
    forth = huber_sum(located(step, pairs), pairs.target_xy)
    back = huber_sum(located(step, pairs.flip()), pairs.source_xy)
    total = sum(float(w) * (a + b) / 2 for w, a, b in zip(pairs.weight, forth, back, strict=True))
    assert CycleLoss()(step).item() == pytest.approx(total / (2 * 20), rel=1e-4)


def test_the_prior_is_a_mean_over_tokens_and_frames(rng: torch.Generator) -> None:
    step, total = make_step(rng), 0.0
    refined, raw = array(step.refined), array(step.batch.features.float())
    for t, i, j in np.ndindex(3, HEIGHT, WIDTH):
        a, b = refined[t, :, i, j], raw[t, :, i, j]
        total += abs(1 - math.sqrt(a @ a) / math.sqrt(b @ b)) + abs(1 - cosine(a, b))
    assert PriorLoss()(step).item() == pytest.approx(total / (3 * HEIGHT * WIDTH), rel=1e-5)
    unchanged = Step(step.batch, step.batch.features.float(), step.head)
    assert PriorLoss()(unchanged).item() == pytest.approx(0.0, abs=1e-6)


TERMS: list[tuple[LossTerm, str]] = [
    (FlowLoss(), "flow"),
    (BestBuddyLoss(), "best_buddies"),
    (RefinedBestBuddyLoss(), "refined"),
    (CycleLoss(), "cycle"),
]


@pytest.mark.parametrize(("term", "name"), TERMS)
def test_terms_of_no_pairs_are_zero(term: LossTerm, name: str, rng: torch.Generator) -> None:
    step = make_step(rng)
    assert len(getattr(step.batch, name)) == 0 and term(step).item() == 0.0
    total, _ = LossTerms({name: term, "prior": PriorLoss()})(step, 9999, 10000)
    total.backward()  # the prior alone still has gradients
    assert step.refined.grad is not None and step.refined.grad.isfinite().all()


def doubled(step: Step) -> Step:
    """The step in float64, as far as its terms allow."""
    pairs = {
        name: Pairs(p.source, p.target, p.source_xy.double(), p.target_xy.double(), p.weight.double())
        for name in ("best_buddies", "refined")
        for p in [getattr(step.batch, name)]
    }
    return Step(replace(step.batch, **pairs), step.refined.detach().double().requires_grad_(), step.head)


def test_no_gradient_passes_through_the_weights_of_refined_best_buddies(rng: torch.Generator) -> None:
    """§3: s from the current Φ without gradient, so the slope is that of the same loss with weights that are given."""
    pairs = random_pairs(8, rng, on_tokens=True)
    step = make_step(rng, refined=pairs)
    trust = torch.tensor([2 * max(s, 0.0) ** 3 for s in current_cosines(step, pairs)], dtype=torch.float32)
    given = Step(replace(step.batch, best_buddies=replace(pairs, weight=trust)), step.refined, step.head)
    gradients = [
        torch.autograd.grad(term(part), step.refined)[0]
        for term, part in ((RefinedBestBuddyLoss(), step), (BestBuddyLoss(divisor=900.0), given))
    ]
    assert gradients[0].abs().max() > 0 and torch.allclose(gradients[0], gradients[1], atol=1e-9)


@pytest.mark.parametrize("term", [BestBuddyLoss(), PriorLoss()])
def test_gradients_in_both_frames_are_those_of_finite_differences(term: LossTerm, rng: torch.Generator) -> None:
    pairs = random_pairs(8, rng, on_tokens=True)
    step = doubled(make_step(rng, best_buddies=pairs, refined=pairs))

    def value(refined: Tensor) -> Tensor:
        return term(Step(step.batch, refined, step.head))

    assert torch.autograd.gradcheck(value, (step.refined,), fast_mode=True)
    (gradient,) = torch.autograd.grad(value(step.refined), step.refined)
    assert (gradient.abs().amax((1, 2, 3)) > 0).all()


def directional(
    step: Step, twin: Callable[[Step], float], rng: torch.Generator, width: float = 1e-4
) -> tuple[float, Tensor]:
    """Slope of a float64 twin along a random direction of the features, and that direction."""
    direction = torch.randn(step.refined.shape, generator=rng, dtype=torch.float64)
    values = []
    for sign in (1, -1):
        moved = step.refined.detach().double() + sign * width * direction
        values.append(twin(Step(step.batch, moved, step.head)))
    return (values[0] - values[1]) / (2 * width), direction


@pytest.mark.parametrize("name", ["flow", "cycle"])
def test_gradients_of_positions_are_those_of_the_twins_finite_differences(name: str, rng: torch.Generator) -> None:
    """The slope of the loops in float64: it sees the samples, both frames' features, the refiner and the softmax."""
    pairs = random_pairs(6, rng)
    step = make_step(rng, **{name: pairs})
    term = FlowLoss() if name == "flow" else CycleLoss()
    (gradient,) = torch.autograd.grad(term(step), step.refined)

    def twin(moved: Step) -> float:
        forth = huber_sum(located(moved, pairs), pairs.target_xy)
        if name == "flow":
            return sum(forth) / 12
        back = huber_sum(located(moved, pairs.flip()), pairs.source_xy)
        return sum(float(w) * (a + b) / 2 for w, a, b in zip(pairs.weight, forth, back, strict=True)) / 12

    for _ in range(3):
        slope, direction = directional(step, twin, rng)
        assert (gradient.double() * direction).sum().item() == pytest.approx(slope, rel=1e-2, abs=1e-5)


def test_gradients_reach_the_refiner(rng: torch.Generator) -> None:
    step = make_step(rng, flow=random_pairs(20, rng))
    FlowLoss()(step).backward()
    for parameter in step.head.parameters():
        assert parameter.grad is not None and parameter.grad.isfinite().all()
    first = step.head.cnn_refiner[0].weight.grad
    assert isinstance(first, Tensor) and first.abs().max() > 0


def test_pairs_are_grouped_by_their_frames(rng: torch.Generator) -> None:
    pairs = random_pairs(30, rng)
    groups = by_frames(pairs)
    rows = torch.cat([rows for _, rows in groups])
    assert rows.sort().values.tolist() == list(range(30)) and len(groups) == len({frames for frames, _ in groups})
    for (i, j), rows in groups:
        assert (pairs.source[rows] == i).all() and (pairs.target[rows] == j).all()


@pytest.mark.parametrize(
    ("start", "steps", "first"), [(0, 100, 0), (5000, 10000, 5000), (0.5, 10000, 5000), (0.25, 10, 2), (1.0, 50, 50)]
)
def test_a_term_starts_at_a_step_or_a_share_of_the_run(start: float, steps: int, first: int) -> None:
    assert FlowLoss(start=start).begins(steps) == first


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("start", ["half", -1, -0.5])
def test_a_start_without_sense_is_refused(start: Any) -> None:
    with pytest.raises(DinotrackError, match=f"start={start}: expected a step"):
        CycleLoss(start=start)


def test_terms_count_from_their_start_on_with_their_weights(rng: torch.Generator) -> None:
    step = make_step(rng, flow=random_pairs(5, rng), cycle=random_pairs(5, rng))
    terms = LossTerms({"flow": FlowLoss(2.0), "cycle": CycleLoss(3.0, start=0.5), "off": PriorLoss(weight=0.0)})
    for number, active in ((0, {"flow"}), (49, {"flow"}), (50, {"flow", "cycle"}), (99, {"flow", "cycle"})):
        total, values = terms(step, number, 100)
        assert set(values) == active
        expected = 2 * FlowLoss()(step) + ("cycle" in active) * 3 * CycleLoss()(step)
        assert total.item() == pytest.approx(expected.item())
    total, values = LossTerms({})(step, 0, 10)
    assert total.item() == 0.0 and values == {}


def composition(step: Step) -> dict[str, float]:
    """Every term of §4 in NumPy, from the formulas, for the published constants."""
    batch, maps, raw = step.batch, array(step.refined), array(step.batch.features.float())
    flow = huber_sum(located(step, batch.flow), batch.flow.target_xy)
    forth = huber_sum(located(step, batch.cycle), batch.cycle.target_xy)
    back = huber_sum(located(step, batch.cycle.flip()), batch.cycle.source_xy)
    cycle = sum(float(w) * (a + b) / 2 for w, a, b in zip(batch.cycle.weight, forth, back, strict=True))
    trust = [2 * max(s, 0.0) ** 3 for s in current_cosines(step, batch.refined)]
    lengths, raw_lengths = np.linalg.norm(maps, axis=1), np.linalg.norm(raw, axis=1)
    angles = (maps * raw).sum(1) / (lengths * raw_lengths)
    return {
        "flow": sum(flow) / (2 * len(flow)),
        "best_buddy": float(array(batch.best_buddies.weight) @ contrastive_twin(step, batch.best_buddies)) / 700,
        "refined_best_buddy": float(np.dot(trust, contrastive_twin(step, batch.refined))) / 900,
        "cycle": cycle / (2 * len(batch.cycle)),
        "prior": float((abs(1 - lengths / raw_lengths) + abs(1 - angles)).mean()),
    }


def test_the_composed_loss_is_eq_5_term_by_term(rng: torch.Generator) -> None:
    kinds = {name: random_pairs(12, rng, on_tokens=name in ("best_buddies", "refined")) for name in PAIRS}
    step = make_step(rng, **kinds)
    expected = composition(step)
    weights = {"flow": 1.0, "best_buddy": 25e-5, "refined_best_buddy": 5e-5, "cycle": 0.5, "prior": 1e-4}
    for number, late in ((4999, False), (5000, True)):
        total, terms = LossTerms(published_losses())(step, number, 10_000)
        names = [name for name in expected if late or name not in ("refined_best_buddy", "cycle")]
        assert {name: value.item() for name, value in terms.items()} == pytest.approx(
            {name: expected[name] for name in names}, rel=1e-4, abs=1e-5
        )
        assert total.item() == pytest.approx(sum(weights[name] * expected[name] for name in names), abs=1e-5)


PAIRS = ("flow", "best_buddies", "refined", "cycle")


def test_the_weights_and_starts_are_the_published_ones() -> None:
    found = {name: (term.weight, term.begins(10000)) for name, term in published_losses().items()}
    assert found == {
        "flow": (1.0, 0),
        "best_buddy": (25e-5, 0),
        "refined_best_buddy": (5e-5, 5000),
        "cycle": (0.5, 5000),
        "prior": (1e-4, 0),
    }


def test_a_term_without_a_formula_says_so(rng: torch.Generator) -> None:
    with pytest.raises(TypeError, match="LossTerm defines no loss"):
        LossTerm(1.0)(make_step(rng))
