"""How a minibatch is drawn (§5): what must hold of every draw, and what a thousand draws average to."""

import itertools
from dataclasses import fields, replace

import pytest
import torch
from torch import Tensor

from dinotrack.structs import FeatureMap, Pairs, PairTable, Tracklets
from dinotrack.training.batch import Batch, BatchSettings, Store, draw_frame_pairs, draw_pairs
from dinotrack.training.tracklet_table import TrackletTable

SIZE = (56, 42)


def random_tracklets(count: int, frames: int, rng: torch.Generator) -> Tracklets:
    start = torch.randint(0, frames - 1, (count,), generator=rng).sort().values
    chained = 2 + (torch.rand(count, generator=rng) * (frames - 1 - start)).long()
    length = 2 + (torch.rand(count, generator=rng) * (chained - 1)).long()
    xy = torch.rand(int(chained.sum()), 2, generator=rng) * torch.tensor(SIZE)
    return Tracklets(start.int(), length.int(), chained.int(), xy, SIZE)


def random_table(count: int, frames: int, rng: torch.Generator, foreground: float = 0.5) -> PairTable:
    """Pairs between any two frames, each with a weight of its own to know it by."""
    both = torch.combinations(torch.arange(frames))
    both = torch.cat([both, both.flip(1)])
    source, target = both[torch.randint(0, len(both), (count,), generator=rng)].unbind(1)
    xy = torch.rand(2, count, 2, generator=rng) * torch.tensor(SIZE)
    pairs = Pairs(source, target, xy[0], xy[1], torch.arange(1.0, count + 1))
    return PairTable.build(pairs, torch.rand(count, generator=rng) < foreground, everywhere(frames))


def everywhere(frames: int) -> Tensor:
    return torch.ones(frames, frames, dtype=torch.bool)


def make_store(frames: int = 12, foreground: float = 0.5, tracklets: int = 300, pairs: int = 4000) -> Store:
    rng = torch.Generator().manual_seed(0)
    images = torch.randint(0, 256, (frames, 3, 6, 8), dtype=torch.uint8, generator=rng)
    values = torch.randn(frames, 4, 5, 7, generator=rng).half()
    return Store(
        images=images,
        features=FeatureMap(values, 7.0, 7.0, SIZE),
        flow=TrackletTable(random_tracklets(tracklets, frames, rng), torch.rand(tracklets, generator=rng) < foreground),
        best_buddies=random_table(pairs, frames, rng),
        refined=random_table(pairs, frames, rng),
        cycle=PairTable.empty(frames),
        masks=torch.rand(frames, 6, 8, generator=rng) < foreground,
    )


def draws(store: Store, count: int = 25, seed: int = 0, **settings: int) -> list[Batch]:
    rng = torch.Generator().manual_seed(seed)
    return [store.draw(BatchSettings(**settings), rng) for _ in range(count)]


def positions(tracklets: Tracklets) -> dict[tuple[float, float], tuple[int, int]]:
    """Tracklet and frame of every position that supervises."""
    found = {}
    rows = zip(tracklets.start.tolist(), tracklets.offset.tolist(), tracklets.length.tolist(), strict=True)
    for n, (start, offset, length) in enumerate(rows):
        for k in range(length):
            found[tuple(tracklets.xy[offset + k].tolist())] = (n, start + k)
    return found


@pytest.mark.parametrize(("frames", "most"), [(12, 8), (5, 5), (3, 3), (2, 2)])
def test_frames_are_few_different_and_carry_their_images_and_features(frames: int, most: int) -> None:
    store, seen = make_store(frames), set()
    for batch in draws(store):
        numbers = batch.frames.tolist()
        assert 2 <= len(numbers) <= most and numbers == sorted(set(numbers)) and numbers[-1] < frames
        assert torch.equal(batch.images, store.images[numbers])
        assert torch.equal(batch.features, store.features.values[numbers])
        assert (batch.grid, batch.size, batch.scale_constants) == (store.features.grid, SIZE, True)
        seen |= set(numbers)
    assert seen == set(range(frames))


@pytest.mark.parametrize("frames", [12, 5, 3, 2])
def test_flow_pairs_join_two_frames_of_one_tracklet(frames: int) -> None:
    store = make_store(frames)
    known = positions(store.flow.tracklets)
    for batch in draws(store, 10):
        flow = batch.flow
        assert len(flow) == 512 and (flow.source != flow.target).all() and (flow.weight == 1).all()
        shares = []
        for n in range(len(flow)):
            ends = [known[tuple(xy[n].tolist())] for xy in (flow.source_xy, flow.target_xy)]
            assert ends[0][0] == ends[1][0]
            assert [end[1] for end in ends] == [int(batch.frames[k]) for k in (flow.source[n], flow.target[n])]
            shares.append(bool(store.flow.foreground[ends[0][0]]))
        assert sum(shares) == 256
        assert 0.3 < (flow.source < flow.target).float().mean() < 0.7  # in either direction


def test_flow_pairs_are_spread_over_tracklets_and_frames() -> None:
    """A tracklet on all frames: each ordered pair of different chosen frames is as likely as any other."""
    store = make_store(4, tracklets=6)
    long = torch.full((6,), 4, dtype=torch.int32)
    xy = torch.rand(24, 2)
    tracklets = Tracklets(torch.zeros_like(long), long, long, xy, SIZE)
    store = replace(store, flow=replace(store.flow, tracklets=tracklets))
    counts = torch.zeros(4, 4)
    for batch in draws(store, 20):
        counts.index_put_((batch.flow.source, batch.flow.target), torch.ones(()), accumulate=True)
    share = counts / counts.sum()
    off = ~torch.eye(4, dtype=torch.bool)
    assert not share[~off].any() and (share[off] - 1 / 12).abs().max() < 0.012


def test_dropped_positions_supervise_nothing() -> None:
    store = make_store(12)
    tracklets = store.flow.tracklets
    known = positions(tracklets)
    dropped = torch.arange(len(tracklets.xy)) % 3 == 1
    table = replace(store.flow, tracklets=replace(tracklets, dropped=dropped))
    store = replace(store, flow=table)
    out = {tuple(xy) for xy in tracklets.xy[dropped].tolist()}
    sizes = set()
    for batch in draws(store, 10):
        for xy in (*batch.flow.source_xy.tolist(), *batch.flow.target_xy.tolist()):
            assert tuple(xy) in known and tuple(xy) not in out
        sizes.add(len(batch.flow))
    assert all(100 < size < 350 for size in sizes)  # about (2/3)² of 512


@pytest.mark.parametrize("foreground", [0.0, 1.0])
def test_one_kind_of_tracklets_gets_all_flow_pairs(foreground: float) -> None:
    batches = draws(make_store(foreground=foreground), 10)
    assert all(len(batch.flow) == 512 for batch in batches)


@pytest.mark.parametrize("kind", [True, False])
def test_frame_sets_are_redrawn_until_two_tracklets_lie_on_them(kind: bool) -> None:
    """Only frames 3 to 6 of 40 have tracklets: a single draw of 4 mostly misses them."""
    store, settings = make_store(40, tracklets=10), BatchSettings(draws=300)
    start, length = torch.full((10,), 3, dtype=torch.int32), torch.full((10,), 4, dtype=torch.int32)
    tracklets = Tracklets(start, length, length, torch.rand(40, 2), SIZE)
    store = replace(store, flow=TrackletTable(tracklets, torch.arange(10) < 5))
    for seed in range(20):
        frames, eligible = store.frames_with_tracklets(kind, settings, torch.Generator().manual_seed(seed))
        assert len(frames) == 4 and frames.tolist() == sorted(frames.tolist())
        assert eligible == 5
        assert sum(3 <= t <= 6 for t in frames.tolist()) >= 2
    short = replace(tracklets, length=torch.ones_like(length))
    hopeless = replace(store, flow=replace(store.flow, tracklets=short))
    frames, eligible = hopeless.frames_with_tracklets(kind, settings, torch.Generator().manual_seed(0))
    assert len(frames) == 4 and eligible == 0  # after a bounded number of draws


def test_eligible_tracklets_are_those_with_two_chosen_frames(rng: torch.Generator) -> None:
    store = make_store(12, tracklets=200)
    for seed in range(20):
        chosen, eligible = store.frames_with_tracklets(True, BatchSettings(), torch.Generator().manual_seed(seed))
        table = store.flow
        spans = zip(table.tracklets.start.tolist(), table.tracklets.length.tolist(), strict=True)
        expected = []
        for n, (start, length) in enumerate(spans):
            on = sum(start <= t < start + length for t in chosen.tolist())
            if on >= 2 and table.foreground[n]:
                expected.append(n)
        assert eligible == len(expected)
        drawn = table.draw(chosen, True, 20 * len(expected), rng)
        known = positions(table.tracklets)
        assert {known[tuple(xy)][0] for xy in drawn.source_xy.tolist()} == set(expected)


def rows_by_weight(table: PairTable) -> dict[float, int]:
    return {weight: n for n, weight in enumerate(table.weight.tolist())}


@pytest.mark.parametrize("name", ["best_buddies", "refined"])
def test_best_buddies_come_from_four_frame_pairs_of_the_batch(name: str) -> None:
    store = make_store()
    table: PairTable = getattr(store, name)
    rows, turned = rows_by_weight(table), 0
    for batch in draws(store):
        pairs: Pairs = getattr(batch, name)
        assert len(pairs) > 0 and (pairs.source != pairs.target).all()
        frames = {tuple(sorted(p)) for p in zip(pairs.source.tolist(), pairs.target.tolist(), strict=True)}
        assert 1 <= len(frames) <= 4
        for n in range(len(pairs)):
            row = rows[float(pairs.weight[n])]
            source, target = int(batch.frames[pairs.source[n]]), int(batch.frames[pairs.target[n]])
            assert (int(table.source[row]), int(table.target[row])) == (source, target)
            assert torch.equal(pairs.source_xy[n], table.source_xy[row])
            assert torch.equal(pairs.target_xy[n], table.target_xy[row])
            turned += source > target
    assert turned > 100  # either order of two frames is drawn


def test_no_more_than_179_foreground_and_77_background_pairs_without_topping_up() -> None:
    table = random_table(0, 2, torch.Generator())
    rng = torch.Generator().manual_seed(0)
    for foreground, background in ((500, 500), (500, 10), (20, 500), (0, 90), (0, 0)):
        count = foreground + background
        pairs = Pairs(
            torch.zeros(count, dtype=torch.long),
            torch.ones(count, dtype=torch.long),
            torch.rand(count, 2),
            torch.rand(count, 2),
            torch.arange(float(count)),
        )
        flags = torch.arange(count) < foreground
        for frames, chosen in (([(0, 1)], pairs), ([(1, 0)], pairs.flip())):
            table = PairTable.build(chosen, flags, everywhere(2))
            weights = draw_pairs(table, frames, BatchSettings(), rng).weight.tolist()
            on = [weight for weight in weights if weight < foreground]
            assert len(on) == min(foreground, 179) and len(weights) - len(on) == min(background, 77)
            assert len(set(weights)) == len(weights)  # without replacement
    assert len(draw_pairs(table, [], BatchSettings(), rng)) == 0


def test_frame_pairs_are_different_frames_in_either_order(rng: torch.Generator) -> None:
    frames = torch.tensor([3, 5, 8])
    drawn = draw_frame_pairs(frames, 3000, rng)
    counts = {pair: drawn.count(pair) for pair in itertools.permutations([3, 5, 8], 2)}
    assert sum(counts.values()) == 3000 and all(abs(count - 500) < 100 for count in counts.values())
    assert draw_frame_pairs(torch.tensor([4]), 4, rng) == []


def test_frame_pairs_and_masks_travel_with_the_batch() -> None:
    store = make_store()
    for batch in draws(store):
        assert batch.frame_pairs.shape == (4, 2) and (batch.frame_pairs[:, 0] != batch.frame_pairs[:, 1]).all()
        assert batch.frame_pairs.max() < len(batch.frames)
        assert torch.equal(batch.masks, store.masks[batch.frames])
        between = {(int(i), int(j)) for i, j in batch.frame_pairs}
        for pairs in (
            batch.best_buddies,
            batch.refined,
        ):  # both tables know all pairs of frames, so these are drawn from
            assert set(zip(pairs.source.tolist(), pairs.target.tolist(), strict=True)) <= between


def test_only_frame_pairs_that_a_table_knows_are_drawn_from_it() -> None:
    store, searched = make_store(), torch.zeros(12, 12, dtype=torch.bool)
    searched[torch.arange(11), torch.arange(1, 12)] = True  # each frame to the next
    rows = store.refined.target == store.refined.source + 1
    table = PairTable.build(store.refined.pairs[rows], store.refined.foreground[rows], searched)
    store = replace(store, refined=table)
    seen = set()
    for batch in draws(store, 60):
        source, target = batch.frames[batch.refined.source], batch.frames[batch.refined.target]
        assert (target == source + 1).all() and len(batch.refined) > 0
        seen |= set(zip(source.tolist(), target.tolist(), strict=True))
    assert len(seen) == 11


def test_no_batch_of_a_long_video_is_without_a_searched_pair() -> None:
    """Nine pairs of 100 frames: random sets of frames would meet one in few batches."""
    store, searched = make_store(100), torch.zeros(100, 100, dtype=torch.bool)
    i, j = torch.randperm(100, generator=torch.Generator().manual_seed(4))[:18].view(2, 9)
    searched[i, j] = searched[j, i] = True
    known = Pairs(i, j, torch.zeros(9, 2), torch.zeros(9, 2), torch.ones(9))
    table = PairTable.build(Pairs.cat([known, known.flip()]), torch.zeros(18, dtype=torch.bool), searched)
    before, seen = draws(store, 20, frames_per_set=2), set()
    for batch in draws(replace(store, refined=table, cycle=table), 100, frames_per_set=2):
        assert len(batch.cycle) > 0 and 2 <= len(batch.frames) <= 4
        seen |= {int(t) for t in batch.frames[batch.cycle.source]}
    assert len(seen) == 18 and all(len(batch.cycle) == 0 for batch in before)
    wide = draws(replace(store, refined=table, cycle=table), 100)  # of four frames in a set two are any
    counts = torch.bincount(torch.cat([batch.frames for batch in wide]), minlength=100)
    assert (counts > 0).sum() > 95 and all(len(batch.cycle) > 0 for batch in wide)


def test_tables_without_pairs_give_empty_pairs() -> None:
    store = make_store(pairs=0)
    for batch in draws(store, 3):
        assert len(batch.best_buddies) == len(batch.refined) == len(batch.cycle) == 0
        assert batch.cycle.source_xy.shape == (0, 2) and len(batch.flow) == 512


def test_only_every_so_many_frames_train() -> None:
    batches = draws(make_store(12), every=4)
    assert {t for batch in batches for t in batch.frames.tolist()} == {0, 4, 8}
    assert all(len(batch.flow) == 512 for batch in batches)


def test_a_single_training_frame_has_no_pairs() -> None:
    (batch,) = draws(make_store(5), 1, every=9)
    assert batch.frames.tolist() == [0] and len(batch.flow) == len(batch.best_buddies) == 0


def same(a: Batch, b: Batch) -> bool:
    def equal(x: object, y: object) -> bool:
        if isinstance(x, Tensor) and isinstance(y, Tensor):
            return torch.equal(x, y)
        if isinstance(x, Pairs):
            return all(equal(getattr(x, f.name), getattr(y, f.name)) for f in fields(Pairs))
        return x == y

    return all(equal(getattr(a, f.name), getattr(b, f.name)) for f in fields(Batch))


def test_a_seed_decides_on_every_draw() -> None:
    first, again, other = draws(make_store(), 3), draws(make_store(), 3), draws(make_store(), 3, seed=1)
    assert all(same(a, b) for a, b in zip(first, again, strict=True))
    assert not same(first[0], other[0]) and not same(first[0], first[1])


def test_drawing_leaves_the_global_random_state_alone() -> None:
    torch.manual_seed(0)
    before = torch.get_rng_state()
    draws(make_store(), 2)
    assert torch.equal(torch.get_rng_state(), before)
