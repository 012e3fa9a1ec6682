"""Tracklets, best buddies and saliency against loops over points, written from §3."""

import itertools
import math
from collections import Counter
from dataclasses import fields, replace
from typing import Any, Literal

import numpy as np
import pytest
import torch
from torch import Tensor

from dinotrack.correspondences import (
    alive_in,
    dino_best_buddies,
    frame_pairs,
    nearest_last_frames,
    saliency_masks,
    searched_between,
    table_of,
)
from dinotrack.errors import DinotrackError
from dinotrack.geometry import centres
from dinotrack.optical_flow import Dis, FlowEstimator, PairFlows, Raft, flows_over
from dinotrack.structs import FeatureMap, Grid, Pairs, Tracklets
from dinotrack.tracklets import build_tracklets, chain, limit_drift, new_starts, stacked
from twins import Point, ambiguity_twin, array, cosine, step_twin, within

HEIGHT, WIDTH, FRAMES = 9, 12, 6


class TableFlow:
    """A flow estimator with an answer for every two frames; frame t is filled with the value t."""

    def __init__(self, flows: dict[tuple[int, int], Tensor]) -> None:
        self.settings: dict[str, object] = {"kind": "table"}
        self.flows, self.asked = flows, list[tuple[int, int]]()

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        key = int(source[0, 0, 0, 0]), int(target[0, 0, 0, 0])
        self.asked.append(key)
        return self.flows[key][None]

    def to(self, device: torch.device | str) -> "TableFlow":
        return self


class Batches(PairFlows):
    """A table's flows, `batch` pairs of frames at once; it keeps how many were asked for at a time."""

    def __init__(self, flow: TableFlow, batch: int) -> None:
        super().__init__(flow, numbered_frames())
        self.batch, self.sizes = batch, list[int]()

    def __call__(self, source: Tensor, target: Tensor) -> Tensor:
        self.sizes.append(len(source))
        return super().__call__(source, target)


def numbered_frames(count: int = FRAMES) -> Tensor:
    return torch.arange(count, dtype=torch.uint8)[:, None, None, None].expand(-1, 3, HEIGHT, WIDTH).contiguous()


def smooth(rng: torch.Generator, scale: float) -> Tensor:
    """A smooth random (2, h, w) flow."""
    small = torch.randn(1, 2, 3, 4, generator=rng) * scale
    return torch.nn.functional.interpolate(small, (HEIGHT, WIDTH), mode="bilinear", align_corners=True)[0]


def table_flow(rng: torch.Generator, noise: float = 0.5, count: int = FRAMES) -> TableFlow:
    """Flows that are nearly consistent, with noise that breaks some chains and lets others drift."""
    steps = [smooth(rng, 0.9) for _ in range(count - 1)]
    flows = {}
    for i, j in itertools.combinations(range(count), 2):
        flows[i, j] = torch.stack(steps[i:j]).sum(0) + smooth(rng, noise)
        flows[j, i] = -torch.stack(steps[i:j]).sum(0) + smooth(rng, noise)
    return TableFlow(flows)


def consecutive(flow: TableFlow, count: int = FRAMES) -> tuple[Tensor, Tensor]:
    pairs = range(count - 1)
    return torch.stack([flow.flows[t, t + 1] for t in pairs]), torch.stack([flow.flows[t + 1, t] for t in pairs])


def pixel(point: Point, height: int, width: int) -> tuple[int, int]:
    """Row and column of the pixel that a point is in."""
    return min(max(math.floor(point[1]), 0), height - 1), min(max(math.floor(point[0]), 0), width - 1)


def starts_twin(occupied: np.ndarray, forward: np.ndarray, backward: np.ndarray, limit: float) -> np.ndarray:
    height, width = occupied.shape
    landed = np.zeros_like(occupied)
    for i, j in itertools.product(range(height), range(width)):
        there = step_twin(forward, (j + 0.5, i + 0.5))
        if within(there, height, width):
            landed[pixel(there, height, width)] = True
    out = np.zeros_like(occupied)
    for i, j in itertools.product(range(height), range(width)):
        here = (j + 0.5, i + 0.5)
        error = math.dist(step_twin(forward, step_twin(backward, here)), here)
        out[i, j] = not occupied[i, j] or error >= limit or not landed[i, j]
    return out


def chain_twin(forward: np.ndarray, backward: np.ndarray, gamma: float) -> list[tuple[int, list[Point]]]:
    """(first frame, positions) of every tracklet of two frames or more, point by point."""
    count, _, height, width = forward.shape
    tracklets: list[tuple[int, list[Point]]] = []
    for t in range(count):
        occupied = np.zeros((height, width), dtype=bool)
        for start, points in tracklets:
            if start <= t < start + len(points):
                occupied[pixel(points[t - start], height, width)] = True
        fresh = ~occupied if t == 0 else starts_twin(occupied, forward[t - 1], backward[t - 1], gamma)
        for i, j in zip(*np.nonzero(fresh), strict=True):
            points = [(j + 0.5, i + 0.5)]
            for u in range(t, count):
                there = step_twin(forward[u], points[-1])
                if math.dist(step_twin(backward[u], there), points[-1]) >= gamma or not within(there, height, width):
                    break
                points.append(there)
            tracklets.append((t, points))
    return [(start, points) for start, points in tracklets if len(points) >= 2]


def as_lists(tracklets: Tracklets) -> list[tuple[int, list[list[float]]]]:
    rows = zip(tracklets.start.tolist(), tracklets.offset.tolist(), tracklets.chained.tolist(), strict=True)
    return [(start, tracklets.xy[offset : offset + length].tolist()) for start, offset, length in rows]


def test_new_tracklets_start_where_none_passes_or_the_flow_breaks(rng: torch.Generator) -> None:
    for noise in (0.1, 0.6):
        forward, backward = (f[0] for f in consecutive(table_flow(rng, noise)))
        occupied = torch.rand(HEIGHT, WIDTH, generator=rng) > 0.2
        found = new_starts(occupied, forward, backward, 0.8)
        expected = starts_twin(occupied.numpy(), array(forward), array(backward), 0.8)
        assert np.array_equal(found.numpy(), expected)
        assert occupied[found].any() and not found.all()  # more than the pixels left over, less than all


@pytest.mark.parametrize("gamma", [1.5, 0.4])
def test_chains_are_those_of_a_loop_over_points(gamma: float, rng: torch.Generator) -> None:
    forward, backward = consecutive(table_flow(rng))
    found = as_lists(chain(zip(forward, backward, strict=True), gamma=gamma))
    expected = chain_twin(array(forward), array(backward), gamma)
    assert len(found) == len(expected) > HEIGHT * WIDTH / 2
    assert len({len(points) for _, points in found}) >= 3  # of many lengths
    for (start, xy), (start_twin, points) in zip(found, expected, strict=True):
        assert start == start_twin and np.allclose(xy, points, atol=1e-4)


def test_a_chain_of_whole_pixels_is_exact() -> None:
    forward = torch.zeros(3, 2, 4, 6)
    forward[:, 0] = 1.0
    tracklets = chain(zip(forward, -forward, strict=True))
    assert as_lists(tracklets)[0] == (0, [[0.5, 0.5], [1.5, 0.5], [2.5, 0.5], [3.5, 0.5]])
    assert tracklets.length.tolist() == tracklets.chained.tolist()
    born = tracklets.start[tracklets.start > 0]
    assert len(born) == 8 and set(as_lists(tracklets)[-1][1][0]) <= {0.5, 3.5}  # only in the column that comes in
    assert tracklets.start.dtype == torch.int32 and tracklets.start.diff().min() >= 0


def test_flows_without_a_consistent_point_give_no_tracklets() -> None:
    forward = torch.full((2, 2, 4, 6), 3.0)
    tracklets = chain(zip(forward, forward, strict=True))
    assert len(tracklets) == 0 and tracklets.xy.shape == (0, 2)
    assert len(limit_drift(tracklets, flows_over(numbered_frames(3), TableFlow({})))) == 0


@pytest.mark.parametrize(
    "flow", [TableFlow({}), Dis(), Raft(small=True, pretrained=False)], ids=["table", "dis", "raft"]
)
def test_one_frame_has_no_tracklets(flow: FlowEstimator) -> None:
    tracklets = build_tracklets(numbered_frames(1), flow)
    assert len(tracklets) == 0 and tracklets.size == (WIDTH, HEIGHT)
    forward, backward = stacked(flows_over(numbered_frames(1), flow))
    assert forward.shape == backward.shape == (0, 2, HEIGHT, WIDTH)


def test_flows_are_asked_for_in_both_directions(rng: torch.Generator) -> None:
    flow = table_flow(rng)
    forward, backward = stacked(flows_over(numbered_frames(), flow))
    assert torch.equal(forward, consecutive(flow)[0]) and torch.equal(backward, consecutive(flow)[1])


@pytest.mark.parametrize("gamma_long", [2.5, 1.0, 0.3])
def test_a_tracklet_ends_where_the_direct_flow_disagrees(gamma_long: float, rng: torch.Generator) -> None:
    flow, gamma = table_flow(rng, 0.6), 0.9
    before = chain(zip(*consecutive(flow), strict=True), gamma=gamma)
    after = limit_drift(before, flows_over(numbered_frames(), flow), gamma=gamma, gamma_long=gamma_long)
    flows = {key: array(value) for key, value in flow.flows.items()}
    for n, (start, points) in enumerate(as_lists(before)):
        length = len(points)
        for j in range(start + 2, start + len(points)):
            first, at = (points[0][0], points[0][1]), points[j - start]
            there = step_twin(flows[start, j], first)
            consistent = math.dist(step_twin(flows[j, start], there), first) < gamma
            if consistent and within(there, HEIGHT, WIDTH) and math.dist(there, at) >= gamma_long:
                length = j - start
                break
        assert int(after.length[n]) == length >= 2
    assert torch.equal(after.chained, before.length) and torch.equal(after.xy, before.xy)
    if gamma_long < 2:
        assert (after.length < after.chained).any() and (after.length == after.chained).any()


@pytest.mark.parametrize("gamma_long", [2.5, 1.0, 0.3])
def test_a_tracklet_loses_only_the_positions_that_drifted(gamma_long: float, rng: torch.Generator) -> None:
    """[P]'s rule: later positions that agree with the direct flow again stay."""
    flow, gamma = table_flow(rng, 0.6), 0.9
    before = chain(zip(*consecutive(flow), strict=True), gamma=gamma)
    after = limit_drift(before, flows_over(numbered_frames(), flow), gamma=gamma, gamma_long=gamma_long, drift="drop")
    flows = {key: array(value) for key, value in flow.flows.items()}
    expected = []
    for start, points in as_lists(before):
        for k, at in enumerate(points):
            if k < 2:
                expected.append(False)
                continue
            first = (points[0][0], points[0][1])
            there = step_twin(flows[start, start + k], first)
            consistent = math.dist(step_twin(flows[start + k, start], there), first) < gamma
            expected.append(consistent and within(there, HEIGHT, WIDTH) and math.dist(there, at) >= gamma_long)
    assert after.dropped.tolist() == expected
    assert torch.equal(after.length, before.length) and torch.equal(after.xy, before.xy)
    ended = limit_drift(before, flows_over(numbered_frames(), flow), gamma=gamma, gamma_long=gamma_long)
    index, frame = rows_of(before)
    inside_both = frame < ended.start[index] + ended.length[index]
    assert after.supervises(index, frame)[inside_both].all() and ended.supervises(index, frame).all()
    if gamma_long < 2:
        assert after.supervises(index, frame)[~inside_both].any()  # positions that ending the chain costs


def rows_of(tracklets: Tracklets) -> tuple[Tensor, Tensor]:
    """Chain and frame of every position."""
    chained = tracklets.chained.long()
    index = torch.arange(len(tracklets)).repeat_interleave(chained)
    return index, torch.arange(len(index)) - tracklets.offset[index] + tracklets.start[index]


@pytest.mark.usefixtures("unguarded")
def test_another_drift_rule_is_refused() -> None:
    tracklets = chain([(torch.zeros(2, 4, 6), torch.zeros(2, 4, 6))])
    with pytest.raises(DinotrackError, match="drift='stop' is neither 'end' nor 'drop'"):
        limit_drift(tracklets, flows_over(numbered_frames(2), TableFlow({})), drift="stop")  # type: ignore[arg-type]


def test_the_drift_check_only_asks_for_frames_that_a_tracklet_spans() -> None:
    start, length = torch.tensor([0, 2], dtype=torch.int32), torch.tensor([2, 3], dtype=torch.int32)
    tracklets = Tracklets(start, length, length, torch.full((5, 2), 4.0), (WIDTH, HEIGHT))
    flow = TableFlow({(2, 4): torch.zeros(2, HEIGHT, WIDTH), (4, 2): torch.zeros(2, HEIGHT, WIDTH)})
    limit_drift(tracklets, flows_over(numbered_frames(), flow))
    assert flow.asked == [(2, 4), (4, 2)]


@pytest.mark.parametrize("drift", ["end", "drop"])
@pytest.mark.parametrize("batch", [1, 2, 5])
def test_flows_come_in_batches_and_each_is_asked_for_once(
    batch: int, drift: Literal["end", "drop"], rng: torch.Generator
) -> None:
    """Those that a tracklet spans which no earlier frame has ended, and no others."""
    flow, gamma = table_flow(rng, 0.6), 0.5
    before = chain(zip(*consecutive(flow), strict=True), gamma=gamma)
    limits: dict[str, Any] = {"gamma": gamma, "gamma_long": 0.2, "drift": drift}
    expected = limit_drift(before, flows_over(numbered_frames(), flow), **limits)
    alone, flow.asked = flow.asked, []
    flows = Batches(flow, batch)
    found = limit_drift(before, flows, **limits)
    assert torch.equal(found.length, expected.length) and torch.equal(found.dropped, expected.dropped)
    spanned = set()
    for start, length, chained in zip(
        *(part.tolist() for part in (found.start, found.length, found.chained)), strict=True
    ):
        last = min(length + 1, chained)  # where a chain was ended it was compared
        spanned |= {pair for k in range(2, last) for pair in ((start, start + k), (start + k, start))}
    assert Counter(flow.asked) == Counter(alone) == Counter(spanned)
    assert FRAMES < len(spanned) < (FRAMES - 1) * (FRAMES - 2)  # fewer than there are
    assert max(flows.sizes) == 2 * min(batch, FRAMES - 2) and all(size % 2 == 0 for size in flows.sizes)
    forward, backward = stacked(flows)
    assert torch.equal(forward, consecutive(flow)[0]) and torch.equal(backward, consecutive(flow)[1])


@pytest.mark.parametrize("scale", [True, False])
def test_the_limits_scale_with_the_frame(scale: bool, rng: torch.Generator) -> None:
    flow, factor = table_flow(rng), WIDTH / 854 if scale else 1.0
    limits = {"gamma": 0.8 / factor, "gamma_long": 1.0 / factor}
    found = build_tracklets(numbered_frames(), flow, **limits, scale=scale)
    flows = flows_over(numbered_frames(), flow)
    expected = limit_drift(chain(zip(*consecutive(flow), strict=True), gamma=0.8), flows, gamma=0.8, gamma_long=1.0)
    assert torch.equal(found.length, expected.length) and torch.equal(found.xy, expected.xy)
    assert found.size == (WIDTH, HEIGHT)


def random_tracklets(count: int, frames: int, size: tuple[int, int], rng: torch.Generator) -> Tracklets:
    """Random chains, in part on whole and half pixels, where ties are."""
    start = torch.randint(0, frames - 1, (count,), generator=rng).sort().values
    chained = 2 + (torch.rand(count, generator=rng) * (frames - 1 - start)).long()
    length = 2 + (torch.rand(count, generator=rng) * (chained - 1)).long()
    xy = torch.rand(int(chained.sum()), 2, generator=rng) * torch.tensor(size)
    xy[::2] = xy[::2].floor() + 0.5
    return Tracklets(start.int(), length.int(), chained.int(), xy, size)


def span_twin(tracklets: Tracklets, frame: int, token: Tensor) -> tuple[int, int]:
    """First and last frame of the nearest chain, the earliest of equals."""
    best, span = math.inf, (frame, frame)
    for start, points in as_lists(tracklets):
        if start <= frame < start + len(points):
            distance = math.dist(points[frame - start], token.tolist())
            if distance < best - 1e-9:
                best, span = distance, (start, start + len(points) - 1)
    return span


@pytest.mark.parametrize("count", [400, 60, 3, 0])
def test_the_nearest_tracklet_of_every_token(count: int, rng: torch.Generator) -> None:
    grid, size = Grid(7.0, 7.0), (56, 42)
    tracklets = random_tracklets(count, 6, size, rng)
    for frame, alive in enumerate(alive_in(tracklets, 6)):
        found = nearest_last_frames(tracklets, alive, frame, grid, 5, 7)
        expected = [span_twin(tracklets, frame, token) for token in centres(5, 7, grid)]
        assert [tuple(row) for row in found.tolist()] == expected


def features_of(rng: torch.Generator, frames: int = 4) -> FeatureMap:
    """Features that move a little from frame to frame, so that there are buddies, clear ones and ambiguous ones."""
    base = torch.randn(1, 6, 5, 7, generator=rng)
    base[..., 5:] = base[..., :2]  # what is left is seen on the right again
    values = base + 0.35 * torch.randn(frames, 6, 5, 7, generator=rng)
    return FeatureMap(values.half(), 7.0, 7.0, (56, 42))


@pytest.mark.parametrize(("scale", "side"), [(False, 20.0), (True, 20.0 * 854 / 56)])
def test_best_buddies_are_those_of_loops(scale: bool, side: float, rng: torch.Generator) -> None:
    features, tracklets = features_of(rng), random_tracklets(70, 4, (56, 42), rng)
    tracklets = replace(tracklets, length=tracklets.length.clamp(max=2))  # the filter must not look at these
    found = dino_best_buddies(features, tracklets, side=side, scale=scale)
    tokens, expected = centres(5, 7, features.grid), []
    maps = [[array(values[:, i, j].float()) for i in range(5) for j in range(7)] for values in features.values]
    dropped = 0
    for i, j in itertools.combinations(range(4), 2):
        table = np.array([[cosine(a, b) for b in maps[j]] for a in maps[i]])
        for p, q in itertools.product(range(35), range(35)):
            if table[p].argmax() != q or table[:, q].argmax() != p:
                continue
            if span_twin(tracklets, i, tokens[p])[1] >= j or span_twin(tracklets, j, tokens[q])[0] <= i:
                dropped += 1
                continue
            ratios = [ambiguity_twin(row, array(tokens), 20.0) for row in (table[p], table[:, q])]
            weight = 1 / (1 + math.exp(-(27 * (1 - max(ratios)) - 5.7))) * 2 * max(table[p, q], 0) ** 3
            expected.append((i, j, tokens[p].tolist(), tokens[q].tolist(), weight))
    assert len(found) == len(expected) > 20 and dropped > 20
    assert found.source.tolist() == [row[0] for row in expected]
    assert found.target.tolist() == [row[1] for row in expected]
    assert found.source_xy.tolist() == [row[2] for row in expected]
    assert found.target_xy.tolist() == [row[3] for row in expected]
    assert np.allclose(found.weight, [row[4] for row in expected], atol=1e-4)
    assert found.weight.max() > 0.5 and found.weight.min() < 0.1


@pytest.mark.parametrize("fit", [0, 2, 3, 5, 6])
@pytest.mark.parametrize("limit", [4950, 11])
def test_best_buddies_are_the_same_when_few_frames_fit(fit: int, limit: int, rng: torch.Generator) -> None:
    """To the bit and in the same order: between all pairs of seven frames, or some, with unit rows for `fit` of them."""
    features, tracklets = features_of(rng, 7), random_tracklets(3, 7, (56, 42), rng)
    whole = dino_best_buddies(features, tracklets, max_frame_pairs=limit)
    found = dino_best_buddies(features, tracklets, max_frame_pairs=limit, memory=fit * 4 * 6 * 35)
    assert len(whole) > 50 and all(torch.equal(getattr(found, f.name), getattr(whole, f.name)) for f in fields(Pairs))


def test_where_no_tracklet_lives_nothing_is_dropped(rng: torch.Generator) -> None:
    features = features_of(rng)
    none = random_tracklets(0, 4, (56, 42), rng)
    assert len(dino_best_buddies(features, none, max_frame_pairs=2).source.unique()) <= 2
    everywhere = Tracklets(
        *(torch.tensor([v], dtype=torch.int32) for v in (0, 4, 4)), torch.full((4, 2), 20.0), (56, 42)
    )
    assert len(dino_best_buddies(features, none)) > 0 and len(dino_best_buddies(features, everywhere)) == 0


def test_frame_pairs_are_all_or_a_fixed_random_choice() -> None:
    assert frame_pairs(4, 6) == list(itertools.combinations(range(4), 2))
    some = frame_pairs(40, 50)
    assert some == frame_pairs(40, 50) == sorted(set(some)) and len(some) == 50
    assert all(0 <= i < j < 40 for i, j in some) and some != frame_pairs(40, 50, torch.Generator().manual_seed(1))
    assert max(j - i for i, j in some) > 20


def scene(rng: torch.Generator, sign: float = 1.0) -> tuple[FeatureMap, Tensor]:
    """Features of two kinds, and where the object is: in the middle, larger than what is left of the background."""
    mask = torch.zeros(3, 9, 11, dtype=torch.bool)
    for t in range(3):
        mask[t, 1:8, 1 + t : 9 + t] = True
    kinds = torch.randn(2, 6, generator=rng)
    values = sign * kinds[mask.long()].movedim(-1, 1) * (0.5 + torch.rand(3, 1, 9, 11, generator=rng))
    return FeatureMap((values + 0.1 * torch.randn(values.shape, generator=rng)).half(), 7.0, 7.0, (84, 70)), mask


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("seed", range(4))
def test_saliency_finds_the_object_whatever_the_component_sign(seed: int, sign: float) -> None:
    features, mask = scene(torch.Generator().manual_seed(seed), sign)
    assert (saliency_masks(features) == mask).float().mean() > 0.98


def test_saliency_is_the_first_principal_component(rng: torch.Generator) -> None:
    features, _ = scene(rng)
    noisy = features.values.float() + 0.5 * torch.randn(features.values.shape, generator=rng)
    features = replace(features, values=noisy.half())
    tokens = np.array([array(features.values[t, :, i, j]) for t, i, j in np.ndindex(3, 9, 11)])
    tokens /= np.linalg.norm(tokens, axis=1, keepdims=True)
    centred = tokens - tokens.mean(0)
    score = (centred @ np.linalg.svd(centred)[2][0]).reshape(3, 9, 11)
    options = []
    for component in (score, -score):
        scaled = (component - component.min()) / (component.max() - component.min())
        mask = scaled < 0.6
        border = np.concatenate(
            [mask[:, 0].ravel(), mask[:, -1].ravel(), mask[:, :, 0].ravel(), mask[:, :, -1].ravel()]
        )
        options.append((border.mean(), mask))
        near = np.abs(scaled - 0.6).min()
        assert near > 1e-5  # no value on the threshold: both sides must agree exactly
    expected = min(options, key=lambda option: option[0])[1]
    assert np.array_equal(saliency_masks(features).numpy(), expected)


def test_features_without_contrast_have_some_mask_all_the_same() -> None:
    mask = saliency_masks(FeatureMap(torch.ones(2, 3, 4, 5).half(), 7.0, 7.0, (42, 35)))
    assert mask.shape == (2, 4, 5)


def test_the_table_knows_the_mask_at_each_source(rng: torch.Generator) -> None:
    masks = torch.rand(3, 8, 10, generator=rng) > 0.5
    source = torch.randint(0, 3, (50,), generator=rng)
    xy = torch.rand(2, 50, 2, generator=rng) * torch.tensor([20.0, 16.0])
    pairs = Pairs(source, (source + 1) % 3, xy[0], xy[1], torch.arange(50.0))
    searched = searched_between([(0, 1), (1, 2)], 3)
    assert searched.tolist() == [[False, True, False], [True, False, True], [False, True, False]]
    assert not searched_between([], 3).any()
    table = table_of(pairs, masks, (20, 16), searched)
    assert (
        table.frames == 3
        and torch.equal(table.searched, searched)
        and sorted(table.weight.tolist()) == sorted([*range(50), *range(50)])
    )
    for n in range(100):
        x, y = table.source_xy[n].tolist()
        assert bool(table.foreground[n]) == bool(masks[table.source[n], int(y / 2), int(x / 2)])
