"""The scores of method §7: by hand on a few points, and against loops written from the formulas."""

import math

import pytest
import torch

from dinotrack.data.queries import sample_queries
from dinotrack.errors import DinotrackError
from dinotrack.metrics import (
    THRESHOLDS,
    TapVidScores,
    badja_metrics,
    mean_over_videos,
    occlusion_rate,
    tapvid_metrics,
)

NAN = math.nan


def random_tracks(seed, points=12, frames=11, size=(480, 270)):
    generator = torch.Generator().manual_seed(seed)
    scale = torch.tensor(size, dtype=torch.float64)
    gt = torch.rand(points, frames, 2, generator=generator, dtype=torch.float64) * scale
    error = torch.randn(points, frames, 2, generator=generator, dtype=torch.float64)
    error *= torch.rand(points, frames, 1, generator=generator, dtype=torch.float64) * 15
    seen, claimed = (torch.rand(points, frames, generator=generator) < 0.7 for _ in range(2))
    return gt, seen, gt + error, claimed


def loop_queries(gt, seen, mode, stride):
    queries, index = [], []
    for t in range(gt.shape[1]):
        for n in range(len(gt)):
            if (mode == "strided" and t % stride == 0 and seen[n, t]) or (
                mode == "first" and seen[n, t] and not any(seen[n, :t])
            ):
                queries.append([float(t), *gt[n, t].tolist()])
                index.append(n)
    return queries, index


def loop_tapvid(queries, gt, seen, pred, claimed, size, mode):
    right = total = visible = 0
    within, hits, false = ([0] * 5 for _ in range(3))
    for n in range(len(gt)):
        for t in range(gt.shape[1]):
            asked = int(queries[n, 0])
            if (mode == "strided" and t == asked) or (mode == "first" and t <= asked):
                continue
            v, p = bool(seen[n, t]), bool(claimed[n, t])
            total += 1
            right += v == p
            visible += v
            dx = (float(pred[n, t, 0]) - float(gt[n, t, 0])) * 256 / size[0]
            dy = (float(pred[n, t, 1]) - float(gt[n, t, 1])) * 256 / size[1]
            for k, threshold in enumerate((1, 2, 4, 8, 16)):
                near = math.hypot(dx, dy) < threshold
                within[k] += v and near
                hits[k] += v and p and near
                false[k] += p and not (v and near)
    delta = [100 * w / visible for w in within]
    jaccard = [100 * h / (visible + f) for h, f in zip(hits, false, strict=True)]
    return delta, sum(delta) / 5, 100 * right / total, jaccard, sum(jaccard) / 5


@pytest.mark.parametrize("mode", ["strided", "first"])
@pytest.mark.parametrize("seed", [0, 1, 2])
def test_tapvid_twin(seed, mode):
    size = (480, 270)
    gt, seen, pred, claimed = random_tracks(seed, size=size)
    queries, index = sample_queries(gt, seen, mode)
    wanted, rows = loop_queries(gt, seen, mode, 5)
    assert queries.tolist() == wanted
    assert index.tolist() == rows
    scores = tapvid_metrics(queries, gt[index], seen[index], pred[index], claimed[index], size, mode)
    delta, average, oa, jaccard, aj = loop_tapvid(
        queries, gt[index], seen[index], pred[index], claimed[index], size, mode
    )
    assert scores.delta.tolist() == pytest.approx(delta, abs=1e-9)
    assert scores.jaccard.tolist() == pytest.approx(jaccard, abs=1e-9)
    assert (scores.delta_avg, scores.oa, scores.aj) == pytest.approx((average, oa, aj), abs=1e-9)
    shuffled = torch.randperm(len(index), generator=torch.Generator().manual_seed(seed))
    order = index[shuffled]
    again = tapvid_metrics(queries[shuffled], gt[order], seen[order], pred[order], claimed[order], size, mode)
    assert again.aj == pytest.approx(scores.aj, abs=1e-9)
    assert torch.allclose(again.delta, scores.delta)


def hand_worked():
    """Three points in four frames at 256x256, each asked in frame 0; the errors and claims are in the tests' comments."""
    gt = torch.full((3, 4, 2), 100.0)
    seen = torch.tensor([[1, 1, 1, 1], [1, 1, 0, 1], [1, 0, 0, 0]], dtype=torch.bool)
    pred = gt.clone()
    pred[0, 1:, 0] += torch.tensor([0.5, 1.0, 3.0])
    pred[1, 1:, 1] += torch.tensor([7.9, 0.0, 20.0])
    claimed = torch.tensor([[1, 1, 1, 0], [1, 1, 1, 1], [1, 0, 1, 0]], dtype=torch.bool)
    return gt, seen, pred, claimed


def test_tapvid_by_hand():
    gt, seen, pred, claimed = hand_worked()
    queries = torch.tensor([[0.0, 100.0, 100.0]]).repeat(3, 1)
    scores = tapvid_metrics(queries, gt, seen, pred, claimed, (256, 256))
    # Visible: errors 0.5, 1, 3 (not claimed), 7.9, 20. Occluded: 4, of which 2 are claimed.
    assert scores.delta.tolist() == pytest.approx([20, 40, 60, 80, 80])
    assert scores.delta_avg == pytest.approx(56)
    assert scores.oa == pytest.approx(100 * 6 / 9)
    # TP of the claimed ones: 1, 2, 2, 3, 3. FP: 2 occluded, and of the 4 claimed and visible those too far: 3, 2, 2, 1, 1.
    jaccard = [100 * tp / (5 + fp) for tp, fp in zip((1, 2, 2, 3, 3), (5, 4, 4, 3, 3), strict=True)]
    assert scores.jaccard.tolist() == pytest.approx(jaccard)
    assert scores.aj == pytest.approx(sum(jaccard) / 5)


def test_modes_differ_in_the_frames_before_the_query():
    gt, seen, pred, claimed = hand_worked()
    queries = torch.tensor([[2.0, 100.0, 100.0]])
    strided = tapvid_metrics(queries, gt[:1], seen[:1], pred[:1], claimed[:1], (256, 256))
    first = tapvid_metrics(queries, gt[:1], seen[:1], pred[:1], claimed[:1], (256, 256), "first")
    assert strided.delta.tolist() == pytest.approx([200 / 3, 200 / 3, 100, 100, 100])
    assert first.delta.tolist() == pytest.approx([0, 0, 100, 100, 100])
    assert (strided.oa, first.oa) == pytest.approx((200 / 3, 0))


@pytest.mark.parametrize("mode", ["strided", "first"])
def test_a_perfect_tracker_has_100(mode):
    gt, seen, _, _ = random_tracks(4)
    queries, index = sample_queries(gt, seen, mode)
    scores = tapvid_metrics(queries, gt[index], seen[index], gt[index], seen[index], (480, 270), mode)
    assert scores.delta.tolist() == scores.jaccard.tolist() == [100.0] * 5
    assert scores.delta_avg == scores.oa == scores.aj == 100.0


def test_thresholds_are_strict_at_256():
    gt, seen, _, _ = random_tracks(5, size=(512, 1024))
    gt = gt.round()
    queries, index = sample_queries(gt, seen, "first")
    for k, threshold in enumerate(THRESHOLDS):
        for offset in ((2.0 * threshold, 0.0), (0.0, 4.0 * threshold)):
            pred = gt[index] + torch.tensor(offset, dtype=gt.dtype)
            scores = tapvid_metrics(queries, gt[index], seen[index], pred, seen[index], (512, 1024), "first")
            assert scores.delta.tolist() == [0.0] * (k + 1) + [100.0] * (4 - k)


def test_positions_that_are_not_numbers_are_misses():
    gt, seen, _, _ = random_tracks(6)
    queries, index = sample_queries(gt, seen, "first")
    scores = tapvid_metrics(queries, gt[index], seen[index], gt[index] * NAN, seen[index], (480, 270), "first")
    assert scores.delta_avg == scores.aj == 0
    assert scores.oa == 100


def test_nothing_to_score_is_nan():
    empty = torch.zeros(0, 4, 2), torch.zeros(0, 4, dtype=torch.bool)
    queries, index = sample_queries(*empty)
    assert queries.shape == (0, 3)
    assert index.shape == (0,)
    scores = tapvid_metrics(queries, *empty, *empty, (256, 256))
    assert scores.delta.isnan().all()
    assert scores.jaccard.isnan().all()
    assert all(math.isnan(score) for score in (scores.delta_avg, scores.oa, scores.aj))
    hidden = torch.zeros(2, 4, 2), torch.zeros(2, 4, dtype=torch.bool)
    assert all(len(sample_queries(*hidden, mode)[0]) == 0 for mode in ("strided", "first"))


def test_sample_queries_by_hand():
    seen = torch.tensor([[0, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    xy = torch.arange(24.0).reshape(3, 4, 2)
    queries, index = sample_queries(xy, seen, "strided", stride=2)
    assert queries.tolist() == [[0, 8, 9], [2, 4, 5]]
    assert index.tolist() == [1, 0]
    queries, index = sample_queries(xy, seen, "first")
    assert queries.tolist() == [[0, 8, 9], [1, 2, 3]]
    assert index.tolist() == [1, 0]


def test_occlusion_rate_is_a_share_of_frames():
    seen = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 1], [0, 0, 0, 0]], dtype=torch.bool)
    assert occlusion_rate(seen).tolist() == [0, 0.5, 1]
    assert occlusion_rate(seen[:0]).shape == (0,)


def test_mismatches_are_refused():
    gt, seen, pred, claimed = random_tracks(0)
    queries = torch.zeros(len(gt), 3)
    with pytest.raises(DinotrackError, match="mode"):
        tapvid_metrics(queries, gt, seen, pred, claimed, (9, 9), "last")
    with pytest.raises(DinotrackError, match="mode"):
        sample_queries(gt, seen, "last")
    with pytest.raises(DinotrackError, match="ground truth"):
        tapvid_metrics(queries, gt, seen, pred[1:], claimed[1:], (9, 9))
    with pytest.raises(DinotrackError, match="ground truth"):
        tapvid_metrics(queries, gt, seen, pred[:, 1:], claimed[:, 1:], (9, 9))
    with pytest.raises(DinotrackError, match="stride"):
        sample_queries(gt, seen, stride=0)
    with pytest.raises(DinotrackError, match="no videos"):
        mean_over_videos([])


# BADJA


def loop_badja(pred, gt, seen, areas, frames, query_frames, own):
    hits_seg = hits_px = total = 0
    for n in range(len(gt)):
        for f, number in enumerate(frames.tolist()):
            if number == 0 or not seen[n, f] or (not own and number == int(query_frames[n])):
                continue
            distance = math.dist(pred[n, f].tolist(), gt[n, f].tolist())
            total += 1
            hits_seg += distance < 0.2 * math.sqrt(float(areas[f]))
            hits_px += distance < 3
    return 100 * hits_seg / total, 100 * hits_px / total


@pytest.mark.parametrize("seed", [0, 1])
def test_badja_twin(seed):
    gt, seen, pred, _ = random_tracks(seed, points=8, frames=6, size=(854, 480))
    frames = torch.tensor([0, 2, 7, 8, 18, 26])
    areas = torch.tensor([900.0, 2500.0, 400.0, 1600.0, 3600.0, 100.0])
    query_frames = frames[seen.int().argmax(1)]
    scores = badja_metrics(pred, gt, seen, areas, frames, query_frames)
    found = scores.delta_seg, scores.delta_3px, scores.delta_seg_later, scores.delta_3px_later
    wanted = [loop_badja(pred, gt, seen, areas, frames, query_frames, own) for own in (True, False)]
    assert found == pytest.approx((*wanted[0], *wanted[1]), abs=1e-9)
    order = torch.randperm(8, generator=torch.Generator().manual_seed(seed))
    assert badja_metrics(pred[order], gt[order], seen[order], areas, frames, query_frames[order]) == scores


def test_badja_by_hand():
    frames, areas = torch.tensor([0, 4, 9]), torch.tensor([100.0, 100.0, 400.0])
    seen = torch.tensor([[1, 1, 1], [0, 1, 1]], dtype=torch.bool)
    gt = torch.zeros(2, 3, 2)
    pred = gt.clone()
    pred[..., 0] = torch.tensor([[50.0, 2.0, 3.0], [50.0, 0.0, 4.0]])
    scores = badja_metrics(pred, gt, seen, areas, frames, torch.tensor([0, 4]))
    # Limits of δ_seg are 2 and 4 px, strictly: 2 misses, 3 hits, 0 (the query's own frame) hits, 4 misses. Frame 0 is out.
    assert (scores.delta_seg, scores.delta_3px) == (50, 50)
    assert (scores.delta_seg_later, scores.delta_3px_later) == pytest.approx((100 / 3, 100 / 3))


def test_badja_empty_and_mismatched():
    none = torch.zeros(0, 3, 2), torch.zeros(0, 3, 2), torch.zeros(0, 3, dtype=torch.bool)
    scores = badja_metrics(*none, torch.ones(3), torch.arange(3), torch.zeros(0, dtype=torch.long))
    assert math.isnan(scores.delta_seg)
    assert math.isnan(scores.delta_3px_later)
    one = torch.zeros(1, 3, 2), torch.ones(1, 3, dtype=torch.bool)
    frames, asked = torch.arange(3), torch.zeros(1, dtype=torch.long)
    with pytest.raises(DinotrackError, match="2 foreground areas"):
        badja_metrics(one[0], *one, torch.ones(2), frames, asked)
    with pytest.raises(DinotrackError, match="ground truth"):
        badja_metrics(one[0][:, :2], *one, torch.ones(3), frames, asked)


def test_means_leave_out_videos_without_a_score():
    def scores(value):
        return TapVidScores(torch.full((5,), value, dtype=torch.float64), value, 40.0, torch.full((5,), 10.0), 10.0)

    mean = mean_over_videos([scores(20.0), scores(NAN), scores(60.0)])
    assert mean.delta.tolist() == [40.0] * 5
    assert (mean.delta_avg, mean.oa, mean.aj) == (40, 40, 10)
