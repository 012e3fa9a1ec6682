"""Inference against loops: positions by Eq. 2, visibility by trajectory agreement (§6); and the chained-flow baseline."""

import itertools
import math
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from dinotrack.errors import DinotrackError
from dinotrack.methods.flow_chain import FlowChainTracker
from dinotrack.methods.raw_features import raw_feature_tracker
from dinotrack.structs import FeatureMap, Tracks, Video
from dinotrack.trackers import FeatureTracker, Tracker, VisibilityRule, check_queries
from twins import array, benign_head, bilinear, cosine, match, step_twin, within

FRAMES, SIZE, WORKING = 5, (112, 84), (56, 42)


def features_of(seed: int = 0, noise: float = 0.5) -> FeatureMap:
    """A scene that shifts by a token a frame, with noise that makes frames differ more or less from the first."""
    rng = torch.Generator().manual_seed(seed)
    wide = torch.randn(6, 5, 7 + FRAMES, generator=rng)
    wide = torch.nn.functional.avg_pool2d(wide[None], 3, stride=1, padding=1)[0]
    values = torch.stack([wide[:, :, t : t + 7] for t in range(FRAMES)])
    strength = noise * torch.rand(FRAMES, 1, 5, 7, generator=rng) ** 2
    return FeatureMap((values + strength * torch.randn(values.shape, generator=rng)).half(), 7.0, 7.0, WORKING)


def some_queries(count: int = 12, seed: int = 1) -> Tensor:
    rng = torch.Generator().manual_seed(seed)
    frame = torch.randint(0, FRAMES, (count, 1), generator=rng)
    queries = torch.cat([frame, torch.rand(count, 2, generator=rng) * torch.tensor(SIZE)], 1)
    queries[0, 1:], queries[1, 1:] = torch.tensor([0.0, 0.0]), torch.tensor(SIZE)  # the frame's corners count
    return queries


def track_twin(tracker: FeatureTracker, query: np.ndarray) -> tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """Working positions, visibility, confidence and cosines of one query (§2, §6)."""
    maps, grid = [array(values.float()) for values in tracker.features.values], tracker.features.grid
    scale = max(WORKING) / 854 if tracker.scale_constants else 1.0

    def locate(feature: np.ndarray, frame: int) -> np.ndarray:
        return match(tracker.head, feature, maps[frame], grid, scale)

    start, own = int(query[0]), query[1:] * np.array(WORKING) / np.array(SIZE)
    wanted = bilinear(maps[start], own[0], own[1], grid)
    xy = [own if t == start else locate(wanted, t) for t in range(FRAMES)]
    along = [bilinear(maps[t], xy[t][0], xy[t][1], grid) for t in range(FRAMES)]
    cosines = [cosine(phi, wanted) for phi in along]
    anchors = [k for k in range(FRAMES) if cosines[k] >= tracker.visibility.anchor]
    d = {(k, t): math.dist(locate(along[t], k), xy[k]) for k in anchors for t in range(FRAMES)}

    def median_at(t: int) -> float:
        return float(torch.median(torch.tensor([d[k, t] for k in anchors], dtype=torch.float64)))

    limit = max(median_at(k) for k in anchors)
    agrees = [median_at(t) <= limit + 1e-6 and cosines[t] >= tracker.visibility.visible for t in range(FRAMES)]
    visible = [agrees[t] or t == start for t in range(FRAMES)]
    reach = tracker.head.radius * scale
    trust = [1.0 if t == start else max(cosines[t], 0) / (1 + median_at(t) / reach) for t in range(FRAMES)]
    return np.array(xy), np.array(visible), np.array(trust), np.array(cosines)


HEADS: list[dict[str, Any]] = [
    {"refine": False, "radius": 20.0},
    {"radius": 15.0},
    {"radius": 15.0, "fallback": "published"},
    {"radius": 15.0, "peak": "refined"},
]


@pytest.mark.parametrize("options", HEADS)
@pytest.mark.parametrize("seed", range(3))
def test_tracks_are_those_of_a_loop(options: dict[str, Any], seed: int) -> None:
    tracker = FeatureTracker(features_of(seed), benign_head(**options), SIZE, 12.5, scale_constants=False)
    queries = some_queries(seed=seed)
    tracks = tracker.track(queries)
    found = []
    for n, query in enumerate(array(queries)):
        xy, visible, confidence, _ = track_twin(tracker, query)
        assert np.allclose(tracks.xy[n], xy * 2, atol=0.02)
        assert np.allclose(tracks.confidence[n], confidence, atol=1e-3)
        found.append(visible)
    agreement = (tracks.visible.numpy() == np.array(found)).mean()
    assert agreement == 1.0
    assert 0.2 < np.array(found).mean() < 0.98  # both kinds are there
    assert (tracks.size, tracks.fps) == (SIZE, 12.5) and torch.equal(tracks.queries, queries)


def test_visibility_needs_agreement_and_likeness_both() -> None:
    """With the cosine's limit out of the way, trajectory agreement alone still hides frames, and the other way round."""
    features, head, queries = features_of(2), benign_head(refine=False, radius=20.0), some_queries(40)
    options = {"scale_constants": False, "visibility": VisibilityRule(0.7, -1.0)}
    agreeing = FeatureTracker(features, head, SIZE, **options).track(queries)  # type: ignore[arg-type]
    tracker = FeatureTracker(features, head, SIZE, scale_constants=False)
    both = tracker.track(queries)
    alike = torch.tensor(np.array([track_twin(tracker, query)[3] >= 0.6 for query in array(queries)]))
    assert torch.equal(both.visible, agreeing.visible & alike | own_frame(queries))
    assert not agreeing.visible.all() and (agreeing.visible & ~both.visible).any()


def test_a_point_without_any_feature_is_visible_in_its_own_frame_alone() -> None:
    features = FeatureMap(torch.zeros(FRAMES, 6, 5, 7).half(), 7.0, 7.0, WORKING)
    queries = some_queries()
    tracks = FeatureTracker(features, benign_head(), SIZE).track(queries)
    assert torch.equal(tracks.visible, own_frame(queries)) and tracks.xy.isfinite().all()


def own_frame(queries: Tensor) -> Tensor:
    return torch.arange(FRAMES) == queries[:, :1]


def test_the_radius_scales_with_the_working_size() -> None:
    queries, factor = some_queries(), 56 / 854
    scaled = FeatureTracker(features_of(), benign_head(radius=15 / factor), SIZE).track(queries)
    fixed = FeatureTracker(features_of(), benign_head(radius=15.0), SIZE, scale_constants=False).track(queries)
    assert torch.allclose(scaled.xy, fixed.xy, atol=1e-3)


def test_the_query_comes_back_at_its_own_frame_to_the_last_bit() -> None:
    queries = some_queries(30)
    tracks = FeatureTracker(features_of(), benign_head(), (111, 83)).track(queries.clamp(max=83))
    rows = torch.arange(30)
    frame = queries[:, 0].long()
    assert torch.equal(tracks.xy[rows, frame], queries.clamp(max=83)[:, 1:])
    assert tracks.visible[rows, frame].all() and torch.allclose(tracks.confidence[rows, frame], torch.ones(30))


@pytest.mark.parametrize("memory", [1.0, 2e4, 1e5])
def test_memory_decides_on_chunks_and_not_on_tracks(memory: float) -> None:
    queries = some_queries(23)
    whole = FeatureTracker(features_of(), benign_head(), SIZE).track(queries)
    parts = FeatureTracker(features_of(), benign_head(), SIZE, memory=memory).track(queries)
    assert torch.allclose(parts.xy, whole.xy, atol=1e-3)
    assert torch.equal(parts.visible, whole.visible) and torch.allclose(parts.confidence, whole.confidence, atol=1e-5)


def test_a_query_alone_has_the_track_that_it_has_among_others() -> None:
    tracker, queries = FeatureTracker(features_of(), benign_head(), SIZE), some_queries(6)
    whole = tracker.track(queries)
    for n in (0, 5):
        alone = tracker.track(queries[n : n + 1])
        assert torch.allclose(alone.xy[0], whole.xy[n], atol=1e-3) and torch.equal(alone.visible[0], whole.visible[n])


def trackers() -> list[Tracker]:
    flow = torch.zeros(FRAMES - 1, 2, 42, 56)
    return [
        FeatureTracker(features_of(), benign_head(), SIZE),
        FeatureTracker(features_of(), benign_head(), SIZE, memory=1.0),
        FlowChainTracker(flow, flow, SIZE, scale_constants=False),
    ]


@pytest.mark.parametrize("index", range(3))
def test_no_queries_have_no_tracks(index: int) -> None:
    tracks = trackers()[index].track(torch.zeros(0, 3))
    assert tracks.xy.shape == (0, FRAMES, 2) and tracks.visible.shape == tracks.confidence.shape == (0, FRAMES)


@pytest.mark.parametrize("index", range(3))
@pytest.mark.parametrize(
    ("query", "message"),
    [
        ((5.0, 1, 1), r"query 1 .* is on no frame of the video; expected t in 0\.\.4"),
        ((-1.0, 1, 1), "is on no frame"),
        ((0.5, 1, 1), "lies between frames"),
        ((0.0, 113, 1), r"lies outside the video; expected x in \[0, 112\], y in \[0, 84\]"),
        ((0.0, 1, -0.5), "lies outside"),
        ((0.0, float("nan"), 1), "is not finite"),
        ((float("inf"), 1, 1), "is not finite"),
    ],
)
def test_queries_off_the_video_are_named(index: int, query: tuple[float, float, float], message: str) -> None:
    with pytest.raises(DinotrackError, match=message):
        trackers()[index].track(torch.tensor([(0.0, 1.0, 1.0), query]))


def test_queries_of_another_shape_are_refused() -> None:
    for shape in ((3,), (2, 2), (0, 4), (1, 2, 3)):
        with pytest.raises(DinotrackError, match=r"expected \(N, 3\) rows"):
            check_queries(torch.zeros(shape), 5, SIZE)


def test_raw_features_are_tracked_without_a_refiner() -> None:
    frames = torch.zeros(FRAMES, 3, SIZE[1], SIZE[0], dtype=torch.uint8)
    tracker = raw_feature_tracker(Video(frames, fps=10.0), features_of(), radius=20.0, scale_constants=False)
    queries = some_queries()
    tracks = tracker.track(queries)
    assert not tracker.head.refine and tracks.fps == 10.0
    for n, query in enumerate(array(queries)):
        assert np.allclose(tracks.xy[n], track_twin(tracker, query)[0] * 2, atol=0.02)


def chain_twin(
    forward: np.ndarray, backward: np.ndarray, start: int, own: tuple[float, float], gamma: float
) -> tuple[np.ndarray, np.ndarray]:
    """Follow one point both ways from its frame until it is lost; then it stays."""
    count, _, height, width = forward.shape
    xy, visible = np.zeros((count + 1, 2)), np.zeros(count + 1, dtype=bool)
    xy[start], visible[start] = own, True
    ways = [(range(start, count), 1, forward, backward), (range(start - 1, -1, -1), -1, backward, forward)]
    for steps, sign, there, back in ways:
        point, lost = own, False
        for t in steps:
            landed = step_twin(there[t], point)
            error = math.dist(step_twin(back[t], landed), point)
            lost = lost or error >= gamma or not within(landed, height, width)
            point = point if lost else landed
            index = t + 1 if sign > 0 else t
            xy[index], visible[index] = point, not lost
    return xy, visible


def flows(rng: torch.Generator, noise: float) -> tuple[Tensor, Tensor]:
    small = torch.randn(FRAMES - 1, 2, 3, 4, generator=rng) * 2
    forward = torch.nn.functional.interpolate(small, (21, 28), mode="bilinear", align_corners=True)
    return forward, -forward + noise * torch.randn(FRAMES - 1, 2, 21, 28, generator=rng)


@pytest.mark.parametrize("noise", [0.1, 0.8])
def test_the_flow_baseline_is_a_loop_over_frames(noise: float, rng: torch.Generator) -> None:
    forward, backward = flows(rng, noise)
    queries = some_queries(40)
    queries[1, 1:] -= 1.0
    tracks = FlowChainTracker(forward, backward, SIZE, 12.5, scale_constants=False).track(queries)
    for n, (t, x, y) in enumerate(queries.tolist()):
        xy, visible = chain_twin(array(forward), array(backward), int(t), (x / 4, y / 4), 1.5)
        assert np.allclose(tracks.xy[n], xy * 4, atol=1e-3)
        assert np.array_equal(tracks.visible[n].numpy(), visible)
        assert torch.equal(tracks.xy[n, int(t)], queries[n, 1:])
    assert torch.equal(tracks.confidence, tracks.visible.float())
    assert 0.3 < tracks.visible.float().mean() < 1.0


def test_a_lost_point_is_not_found_again() -> None:
    forward = torch.zeros(3, 2, 21, 28)
    backward = torch.zeros(3, 2, 21, 28)
    backward[1] = 5.0  # inconsistent between frames 1 and 2 only
    tracks: Tracks = FlowChainTracker(forward, backward, (28, 21), scale_constants=False).track(
        torch.tensor([[0.0, 3, 4], [3.0, 3, 4]])
    )
    assert tracks.visible.tolist() == [[True, True, False, False], [False, False, True, True]]
    assert all(xy == [3.0, 4.0] for xy in itertools.chain(*tracks.xy.tolist()))
