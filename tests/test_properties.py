"""What must hold for any numbers: conversions go round, scores do not ask for an order, chunks change nothing.

That a fit goes on as if nothing had happened, however often it was stopped, stands in test_resume.py.
"""

import math
from dataclasses import replace
from typing import Any

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from dinotrack import Tracks
from dinotrack.backbones import DenseSift, extract_features
from dinotrack.data import synthetic_clip
from dinotrack.data.benchmarks import in_pixels
from dinotrack.data.blender import blender_points
from dinotrack.data.export import load_csv, load_npz, save_csv, save_npz
from dinotrack.data.keypoints import load_json, save_json
from dinotrack.data.nuke import nuke_keys
from dinotrack.data.video import _fitted
from dinotrack.evaluation import score_tracks
from dinotrack.geometry import (
    cell_centres,
    centres,
    corners,
    inside,
    linear_weights,
    look_up,
    nearest_cell,
    normalise,
    read_field,
    resample,
    rescale,
    resize_masks,
    sample,
    to_index,
)
from dinotrack.methods.dino_tracker import refine_features
from dinotrack.metrics import badja_metrics, tapvid_metrics
from dinotrack.networks import DeltaDino
from dinotrack.structs import Grid, PointTruth
from dinotrack.trackers import FeatureTracker
from twins import benign_head

some = settings(max_examples=60, derandomize=True, deadline=None, database=None)
"""The same numbers in every run."""
grids = st.builds(Grid, st.floats(0.25, 32), st.floats(-8, 32))
sizes = st.tuples(st.integers(2, 4096), st.integers(2, 4096))
sides = st.integers(1, 40)


def positions(seed: int, count: int, size: tuple[int, int], beyond: float = 0.0) -> Tensor:
    """Raster positions on a frame of (W, H) `size`, in double precision, or a share `beyond` of it around."""
    rng = torch.Generator().manual_seed(seed)
    share = torch.rand(count, 2, generator=rng, dtype=torch.float64) * (1 + 2 * beyond) - beyond
    return share * torch.tensor(size, dtype=torch.float64)


@some
@given(seed=st.integers(0, 99), source=sizes, target=sizes)
def test_rescaling_goes_round(seed: int, source: tuple[int, int], target: tuple[int, int]) -> None:
    xy = positions(seed, 20, source)
    there = rescale(xy, source, target)
    assert torch.allclose(rescale(there, target, source), xy, rtol=1e-12)
    assert torch.equal(inside(there, target), inside(xy, source))
    corner = torch.tensor([source], dtype=torch.float64)
    assert torch.allclose(rescale(corner, source, target), torch.tensor([target], dtype=torch.float64))


@some
@given(seed=st.integers(0, 99), size=sizes)
def test_shares_of_the_frame_go_round(seed: int, size: tuple[int, int]) -> None:
    """TAP-Vid's positions."""
    shares = positions(seed, 20, (1, 1), beyond=0.1)
    assert torch.allclose(rescale(in_pixels(shares, size), size, (1, 1)), shares, rtol=1e-12)


@some
@given(seed=st.integers(0, 99), size=sizes)
def test_the_losses_units_go_round(seed: int, size: tuple[int, int]) -> None:
    xy, extent = positions(seed, 20, size), torch.tensor(size, dtype=torch.float64) - 1
    assert torch.allclose((normalise(xy, size) + 1) / 2 * extent, xy, rtol=1e-9, atol=1e-9)


@some
@given(grid=grids, height=sides, width=sides)
def test_cells_and_their_centres_go_round(grid: Grid, height: int, width: int) -> None:
    xy = centres(height, width, grid)
    cells = torch.arange(height * width)
    assert torch.equal(nearest_cell(xy, grid, height, width), cells)
    assert torch.allclose(cell_centres(cells, width, grid), xy, atol=1e-4)
    expected = torch.stack([cells % width, cells // width], -1).float()
    assert torch.allclose(to_index(xy, grid), expected, atol=1e-3)


@some
@given(seed=st.integers(0, 99), grid=grids, height=sides, width=sides)
def test_the_nearest_cell_is_at_most_half_a_stride_away(seed: int, grid: Grid, height: int, width: int) -> None:
    low = torch.tensor([grid.offset, grid.offset], dtype=torch.float64)
    xy = low + positions(seed, 30, (width, height)) * grid.stride - grid.stride / 2
    back = cell_centres(nearest_cell(xy, grid, height, width), width, grid)
    assert ((back - xy).abs() <= grid.stride * (0.5 + 1e-6)).all()


@some
@given(seed=st.integers(0, 99), grid=grids, height=sides, width=sides)
def test_the_four_cells_around_a_position_average_to_it(seed: int, grid: Grid, height: int, width: int) -> None:
    """What bilinear weights are for; positions beyond the outermost centres are clamped to them."""
    extent = torch.tensor([width - 1, height - 1], dtype=torch.float64)
    index = positions(seed, 30, (1, 1)) * extent
    xy = index * grid.stride + grid.offset
    cells, weights = corners(xy, grid, height, width)
    middle = (cell_centres(cells, width, grid).double() * weights[..., None]).sum(1)
    assert torch.allclose(middle, xy, atol=1e-4 * max(1.0, grid.stride * max(height, width)))


@some
@given(seed=st.integers(0, 99), grid=grids, height=st.integers(2, 12), width=st.integers(2, 12))
def test_two_ways_of_sampling_agree_and_return_the_map(seed: int, grid: Grid, height: int, width: int) -> None:
    rng = torch.Generator().manual_seed(seed)
    maps = torch.randn(1, 2, height, width, generator=rng)
    frame = torch.zeros(height * width, dtype=torch.long)
    at_centres = sample(maps, frame, centres(height, width, grid), grid)
    assert torch.allclose(at_centres, maps[0].flatten(1).T, atol=1e-3)
    spread = positions(seed, 25, (width, height), beyond=0.5).float() * grid.stride + grid.offset
    exact = sample(maps, torch.zeros(25, dtype=torch.long), spread, grid)
    assert torch.allclose(read_field(maps[0], spread, grid), exact, atol=2e-3)


@some
@given(seed=st.integers(0, 99), grid=grids, height=st.integers(1, 9), width=st.integers(1, 9))
def test_resampling_to_the_same_grid_is_nothing(seed: int, grid: Grid, height: int, width: int) -> None:
    maps = torch.randn(1, 2, height, width, generator=torch.Generator().manual_seed(seed))
    assert torch.allclose(resample(maps, grid, grid, height, width), maps, atol=1e-5)
    weights = linear_weights(width, grid, replace(grid, stride=grid.stride / 2), 2 * width)
    assert torch.allclose(weights.sum(1), torch.ones(2 * width)) and weights.min() >= 0


@some
@given(seed=st.integers(0, 99), height=st.integers(1, 12), width=st.integers(1, 12), times=st.integers(1, 5))
def test_masks_go_round_and_are_looked_up_alike(seed: int, height: int, width: int, times: int) -> None:
    """A mask that is enlarged a whole number of times comes back, and says the same of every position."""
    masks = torch.rand(2, height, width, generator=torch.Generator().manual_seed(seed)) > 0.5
    large = resize_masks(masks, (times * width, times * height))
    assert torch.equal(resize_masks(large, (width, height)), masks)
    xy = positions(seed, 30, (640, 480)).float()
    frame = torch.arange(30) % 2
    assert torch.equal(look_up(large, frame, xy, (640, 480)), look_up(masks, frame, xy, (640, 480)))


@some
@given(size=sizes, side=st.integers(16, 5000))
def test_scaling_down_as_read_is_idempotent(size: tuple[int, int], side: int) -> None:
    """What makes the frames of a checkpoint's video the same when it is read again by the side that they have."""
    fitted = _fitted(size, side)
    assert max(fitted) <= max(side, 16) and max(fitted) <= max(size)
    assert _fitted(size, max(fitted)) == fitted
    assert fitted == size or max(fitted) == side


@st.composite
def any_tracks(draw: st.DrawFn) -> Tracks:
    """Tracks with positions that are known, unknown, occluded; also none."""
    seed, count, frames = draw(st.integers(0, 10_000)), draw(st.integers(0, 5)), draw(st.integers(1, 6))
    rng = torch.Generator().manual_seed(seed)
    size = (draw(st.integers(2, 2000)), draw(st.integers(2, 2000)))
    xy = torch.rand(count, frames, 2, generator=rng) * torch.tensor(size)
    visible = torch.rand(count, frames, generator=rng) > 0.4
    asked = torch.randint(0, frames, (count,), generator=rng)
    queries = torch.cat([asked[:, None].float(), xy[torch.arange(count), asked]], 1)
    lost = torch.rand(count, frames, generator=rng) < 0.2
    lost[torch.arange(count), asked] = False
    visible[torch.arange(count), asked] = True
    confidence = torch.rand(count, frames, generator=rng) * 0.9
    confidence[torch.arange(count), asked] = 1.0
    return Tracks(queries, xy.masked_fill(lost[..., None], math.nan), visible & ~lost, confidence, size, 24.0)


def same(a: Tracks, b: Tracks, near: float) -> bool:
    values = [(getattr(a, name), getattr(b, name)) for name in ("queries", "xy", "confidence")]
    close = all(x.shape == y.shape and torch.allclose(x, y, atol=near, equal_nan=True) for x, y in values)
    return close and torch.equal(a.visible, b.visible) and (a.size, a.fps) == (b.size, b.fps)


@settings(some, max_examples=30)
@given(tracks=any_tracks())
def test_tracks_come_back_from_every_file(tracks: Tracks, tmp_path_factory: pytest.TempPathFactory) -> None:
    folder = tmp_path_factory.mktemp("tracks")
    save_npz(tracks, folder / "t.npz")
    assert same(load_npz(folder / "t.npz"), tracks, 0)
    save_json(tracks, folder / "t.json", first_frame=1001)
    assert same(load_json(folder / "t.json"), tracks, 1e-4)
    save_csv(tracks, folder / "t.csv")
    if len(tracks):
        assert same(load_csv(folder / "t.csv", tracks.size, tracks.fps), tracks, 1e-4)


@settings(some, max_examples=30)
@given(tracks=any_tracks(), first=st.integers(-5, 2000))
def test_positions_come_back_from_nukes_and_blenders_units(tracks: Tracks, first: int) -> None:
    width, height = tracks.size
    known = tracks.xy.isfinite().all(-1)
    for keys in nuke_keys(tracks, first_frame=first):
        row = int(keys.name.removeprefix("point_"))
        frames = torch.tensor(keys.frames) - first
        assert torch.equal(frames, known[row].nonzero().flatten())
        back = torch.tensor([keys.x, [height - y for y in keys.y]]).T.float()
        assert torch.allclose(back, tracks.xy[row, frames], atol=1e-3)
    for point in blender_points(tracks, first_frame=first):
        row = int(point["name"].removeprefix("point_"))
        for frame, x, y, muted in point["markers"][:-1]:
            if not muted:
                assert torch.allclose(
                    torch.tensor([x * width, (1 - y) * height]), tracks.xy[row, frame - first], atol=1e-3
                )


def scored(seed: int, points: int, frames: int) -> dict[str, Any]:
    rng = torch.Generator().manual_seed(seed)
    truth = torch.rand(points, frames, 2, generator=rng, dtype=torch.float64) * 200
    error = torch.randn(points, frames, 2, generator=rng, dtype=torch.float64) * 6
    seen, claimed = (torch.rand(points, frames, generator=rng) > 0.3 for _ in range(2))
    asked = torch.randint(0, frames, (points,), generator=rng)
    queries = torch.cat([asked[:, None].double(), truth[torch.arange(points), asked]], 1)
    return {"queries": queries, "truth": truth, "seen": seen, "said": truth + error, "claimed": claimed, "asked": asked}


def numbers(scores: Any) -> list[float]:
    return [value for each in vars(scores).values() for value in torch.as_tensor(each).double().flatten().tolist()]


@some
@given(
    seed=st.integers(0, 999),
    points=st.integers(1, 12),
    frames=st.integers(2, 9),
    mode=st.sampled_from(["strided", "first"]),
)
def test_scores_do_not_depend_on_the_order_of_points(seed: int, points: int, frames: int, mode: str) -> None:
    case = scored(seed, points, frames)
    order = torch.randperm(points, generator=torch.Generator().manual_seed(seed))
    areas, annotated = torch.rand(frames) * 5000, torch.arange(frames)
    found = []
    for rows in (torch.arange(points), order):
        q, truth, seen, said, claimed, asked = (case[name][rows] for name in case)
        found.append(
            numbers(tapvid_metrics(q, truth, seen, said, claimed, (256, 200), mode))
            + numbers(badja_metrics(said, truth, seen, areas, annotated, asked))
        )
    assert torch.equal(torch.tensor(found[0]).nan_to_num(-1), torch.tensor(found[1]).nan_to_num(-1))


@settings(some, max_examples=20)
@given(seed=st.integers(0, 999), factor=st.sampled_from([0.5, 2.0, 4.0]))
def test_scores_do_not_depend_on_the_size_that_tracks_are_in(seed: int, factor: float) -> None:
    """A tracker that worked in other pixels, and said so, is scored alike."""
    case, size = scored(seed, 6, 5), (256, 200)
    truth = PointTruth(case["queries"], case["truth"], case["seen"], torch.arange(5), torch.zeros(0), size, "strided")
    tracks = Tracks(case["queries"], case["said"], case["claimed"], case["claimed"].double(), size, 25.0)
    scaled = replace(tracks, xy=tracks.xy * factor, size=(int(256 * factor), int(200 * factor)))
    assert numbers(score_tracks(truth, scaled)) == pytest.approx(numbers(score_tracks(truth, tracks)), nan_ok=True)


FRAMES = synthetic_clip(seed=2, frames=5, size=(64, 48), points=8).video.frames


@pytest.fixture(scope="module")
def features() -> Any:
    return extract_features(DenseSift(stride=4), FRAMES)


@pytest.mark.parametrize("chunk", [1, 2, 3, 99])
def test_features_do_not_depend_on_the_chunk(chunk: int, features: Any) -> None:
    assert torch.equal(extract_features(DenseSift(stride=4), FRAMES, chunk=chunk).values, features.values)


@pytest.mark.parametrize("chunk", [1, 2, 99])
def test_refined_features_do_not_depend_on_the_chunk(chunk: int, features: Any) -> None:
    delta = DeltaDino(features.values.shape[1], (4, 4), zero_start=False)
    whole = refine_features(features, FRAMES, delta, chunk=5)
    assert torch.equal(refine_features(features, FRAMES, delta, chunk=chunk).values, whole.values)


@settings(some, max_examples=8)
@given(memory=st.floats(1, 1e7), order=st.permutations(range(5)))
def test_tracks_do_not_depend_on_memory_or_order(memory: float, order: list[int]) -> None:
    raw, head = extract_features(DenseSift(stride=4), FRAMES), benign_head()
    queries = torch.tensor([[0.0, 10, 12], [1, 30, 20], [4, 50, 40], [2, 5, 44], [3, 33, 7]])
    whole = FeatureTracker(raw, head, (64, 48)).track(queries)
    found = FeatureTracker(raw, head, (64, 48), memory=memory).track(queries[order])
    assert torch.allclose(found.xy, whole.xy[order], atol=1e-3) and torch.equal(found.visible, whole.visible[order])
