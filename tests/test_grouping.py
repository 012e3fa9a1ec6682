"""Objects from points: two objects cross, points vanish and go astray, and the paths do not care."""

from collections.abc import Callable
from dataclasses import fields, replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from dinotrack.data.synthetic import synthetic_clip
from dinotrack.errors import DinotrackError
from dinotrack.grouping import ObjectPaths, _turn, group
from dinotrack.structs import Tracks

SIZE, FRAMES = (160, 96), 40


def square(side: float) -> Tensor:
    """36 points of a square, evenly spread, so that their mean is its centre."""
    along = ((torch.arange(6) + 0.5) / 6 - 0.5) * side
    return torch.complex(*(axis.reshape(-1).double() for axis in torch.meshgrid(along, along, indexing="xy")))


def at(x: Tensor) -> Tensor:
    return torch.view_as_real(x.contiguous()).float()


def tracks_of(xy: Tensor, visible: Tensor, rng: torch.Generator, exact: Tensor | None = None) -> Tracks:
    """Tracks queried at a random visible frame of each point, where they are `exact`."""
    row = torch.arange(len(xy))
    frame = (torch.rand(visible.shape, generator=rng) * visible).argmax(1)
    xy = xy.clone()
    xy[row, frame] = (xy if exact is None else exact)[row, frame]
    queries = torch.cat([frame[:, None].float(), xy[row, frame]], 1)
    return Tracks(queries, xy, visible, torch.ones(visible.shape), SIZE, 25.0)


def crossing(rng: torch.Generator, *, astray: bool = True, jitter: float = 0.3) -> tuple[Tracks, Tensor, Tensor]:
    """Two squares that turn and cross, the second before the first: tracks, labels and the true centres (2, T, 2).

    Of each square's points 11 of 36 go astray: every second of them goes over to the other square when they meet, the others
    drift away from their place. Both say that they are visible, also while all good points of the first square are hidden.
    """
    t = torch.arange(FRAMES, dtype=torch.float64)
    centres = torch.stack([torch.complex(20 + 3 * t, 40 + 0.5 * t), torch.complex(140 - 3 * t, 60 - 0.5 * t)])
    turns = torch.polar(torch.ones(2, FRAMES).double(), torch.stack([0.015 * t, -0.01 * t]))
    sides = (26.0, 42.0)
    x = torch.cat([centres[k] + turns[k] * square(sides[k])[:, None] for k in (0, 1)])
    labels = torch.arange(72) // 36
    beside = (x - centres[1]) / turns[1]
    covered = (labels == 0)[:, None] & (beside.real.abs() < 21) & (beside.imag.abs() < 21)
    wrong, visible = x.clone(), ~covered
    if astray:
        bad = torch.cat([torch.randperm(36, generator=rng)[:11], 36 + torch.randperm(36, generator=rng)[:11]])
        meet = int((centres[0] - centres[1]).abs().argmin())
        for index, i in enumerate(bad.tolist()):
            k = i // 36
            if index % 2:
                wrong[i, meet:] += (centres[1 - k] - centres[k])[meet:]
                visible[i, meet - 3 : meet + 3] = True
            else:
                wrong[i] += torch.view_as_complex(4 * torch.randn(FRAMES, 2, generator=rng).cumsum(0).double())
                visible[i] = True
    noise = jitter * torch.randn(72, FRAMES, 2, generator=rng)
    return tracks_of(at(wrong) + noise, visible, rng, exact=at(x)), labels, at(centres)


def off(paths: Tensor, truth: Tensor) -> float:
    """Largest distance in pixels, of all objects in all frames."""
    return float((paths - truth).norm(dim=-1).max())


def plain(tracks: Tracks, labels: Tensor, average: Callable[[Tensor], Tensor]) -> Tensor:
    """`average` over each object's visible points, in each frame that shows any, elsewhere NaN."""
    xy = tracks.xy.masked_fill(~tracks.visible[..., None], torch.nan)
    return torch.stack([average(xy[labels == label]) for label in labels.unique()])


@pytest.mark.parametrize("seed", range(5))
def test_paths_of_crossing_objects(seed: int) -> None:
    """Within a pixel of the true centres in every frame, also while one object is hidden."""
    tracks, labels, truth = crossing(torch.Generator().manual_seed(seed))
    paths = group(tracks, labels)
    assert paths.labels.tolist() == [0, 1]
    assert off(paths.xy, truth) < 1
    covered = ~paths.visible[0]
    assert 3 <= covered.sum() <= 12
    assert paths.visible[1].all()
    assert (paths.points[1] >= 36 - 11).all()
    assert (paths.points[0][covered] < 3).all()


@pytest.mark.parametrize("astray", [True, False])
def test_a_plain_mean_or_median_fails_the_same_test(astray: bool, rng: torch.Generator) -> None:
    """The test above can fail, and does without wrong tracks too: points that vanish are enough."""
    tracks, labels, truth = crossing(rng, astray=astray)
    averages = (lambda xy: xy.nanmean(0), lambda xy: xy.nanmedian(0).values)
    for average in averages:
        paths = plain(tracks, labels, average)
        shown = paths.isfinite().all(-1)
        assert off(paths[shown], truth[shown]) > 5
    assert off(group(tracks, labels).xy, truth) < 1


@pytest.mark.parametrize("seed", range(5))
def test_wrong_tracks_move_no_path_by_a_pixel(seed: int) -> None:
    clean, labels, truth = crossing(torch.Generator().manual_seed(seed), astray=False, jitter=0)
    wrong, _, _ = crossing(torch.Generator().manual_seed(seed), jitter=0)
    found = group(clean, labels).xy
    assert off(found, truth) < 0.02  # not 0: a turn is interpolated along its chord
    assert off(group(wrong, labels).xy, found) < 0.5


def test_paths_in_a_synthetic_clip(rng: torch.Generator) -> None:
    """Objects that bend, grow, turn and go behind a bar: against the mean of all their exact positions, seen or not."""
    clip = synthetic_clip(1, points=120)
    tracks = replace(tracks_of(clip.xy, clip.visible, rng), size=clip.video.size)
    paths = group(tracks, clip.layer)
    truth = torch.stack([clip.xy[clip.layer == label].mean(0) for label in paths.labels])
    error = (paths.xy - truth).norm(dim=-1)[paths.visible]
    naive = (plain(tracks, clip.layer, lambda xy: xy.nanmean(0)) - truth).norm(dim=-1)[paths.visible]
    assert error.mean() < 0.5
    assert error.max() < 3.5  # they bend, and then what is seen does not tell all
    assert naive.mean() > 8 * error.mean()


def test_the_repeated_median_equals_its_twin(rng: torch.Generator) -> None:
    place = torch.view_as_complex(torch.randn(12, 2, generator=rng).double() * 20)
    x = place * complex(0.9, 0.4) + torch.view_as_complex(torch.randn(12, 2, generator=rng).double())
    rows = []
    for i in range(12):
        ratios = [complex(x[i] - x[j]) / complex(place[i] - place[j]) for j in range(12) if j != i]
        rows.append((np.median([r.real for r in ratios]), np.median([r.imag for r in ratios])))
    expected = complex(*(np.median(column) for column in zip(*rows, strict=True)))
    assert complex(_turn(x, place, lever=10)) == pytest.approx(expected)
    x[:5] = 7  # fewer than half of the points
    assert abs(complex(_turn(x, place, lever=10)) - complex(0.9, 0.4)) < 0.15


def test_points_that_cannot_tell_a_turn(rng: torch.Generator) -> None:
    place = torch.view_as_complex(torch.randn(12, 2, generator=rng).double() * 20)
    assert complex(_turn(place, place)) == pytest.approx(1)
    assert _turn(place[:4], place[:4]).isnan()
    assert _turn(place + 90, place + 90).isnan()  # far to one side
    assert _turn(torch.zeros_like(place), place).isnan()  # all at one spot
    assert _turn(place, torch.zeros_like(place)).isnan()


def test_order_of_points_does_not_matter(rng: torch.Generator) -> None:
    tracks, labels, _ = crossing(rng)
    order = torch.randperm(len(tracks), generator=rng)
    one, other = group(tracks, labels), group(tracks[order], labels[order])
    assert torch.allclose(one.xy, other.xy, atol=1e-4)
    for name in ("labels", "visible", "points"):
        assert torch.equal(getattr(one, name), getattr(other, name))


def test_one_point_is_its_own_object() -> None:
    xy = torch.tensor([[[9.0, 9.0], [1.0, 2.0], [9.0, 9.0], [5.0, 2.0], [6.0, 7.0], [9.0, 9.0]]])
    visible = torch.tensor([[False, True, False, True, True, False]])
    paths = group(Tracks(torch.tensor([[1.0, 1.0, 2.0]]), xy, visible, visible.float(), SIZE, 25.0), torch.tensor([7]))
    expected = [[1, 2], [1, 2], [3, 2], [5, 2], [6, 7], [6, 7]]
    assert torch.allclose(paths.xy[0], torch.tensor(expected, dtype=torch.float32))
    assert torch.equal(paths.visible, visible)
    assert paths.points[0].tolist() == visible[0].long().tolist()
    assert paths.labels.tolist() == [7]


def test_least_is_how_many_points_a_frame_needs(rng: torch.Generator) -> None:
    x = 2.0 * torch.arange(10, dtype=torch.float64) + square(20)[:6, None]
    visible = torch.ones(6, 10, dtype=torch.bool)
    visible[1:, 4], visible[3:, 7] = False, False
    queries = torch.cat([torch.zeros(6, 1), at(x)[:, 0]], 1)
    tracks = Tracks(queries, at(x), visible, visible.float(), SIZE, 25.0)
    for least, hidden in ((1, []), (2, [4]), (3, [4]), (4, [4, 7]), (99, [4, 7])):
        paths = group(tracks, torch.zeros(6, dtype=torch.long), least=least)
        assert (~paths.visible[0]).nonzero()[:, 0].tolist() == hidden
        assert torch.allclose(paths.xy[0], at(x).mean(0), atol=1e-4)


def test_points_that_are_never_seen_together_begin_anew(rng: torch.Generator) -> None:
    """Nothing tells where the second half lies on the object: its mean continues the path."""
    x = 2.0 * torch.arange(10, dtype=torch.float64) + square(20)[:8, None]
    visible = (torch.arange(8) < 4)[:, None] ^ (torch.arange(10) >= 5)
    paths = group(tracks_of(at(x), visible, rng), torch.zeros(8, dtype=torch.long))
    assert paths.visible.all()
    steps = paths.xy[0].diff(dim=0)
    assert torch.allclose(steps[[0, 1, 2, 3, 5, 6, 7, 8]], torch.tensor([2.0, 0.0]), atol=1e-4)


def test_a_frame_where_all_points_fall_together(rng: torch.Generator) -> None:
    tracks, labels, _ = crossing(rng, astray=False)
    xy = tracks.xy.clone()
    xy[:, 20] = 5.0
    queries = torch.cat([torch.zeros(72, 1), xy[:, 0]], 1)
    assert group(replace(tracks, xy=xy, queries=queries), labels).xy.isfinite().all()
    xy[3, 11:15], xy[:, 8] = torch.nan, torch.inf
    assert group(replace(tracks, xy=xy, queries=queries), labels).xy.isfinite().all()


def test_never_visible_but_queried(rng: torch.Generator) -> None:
    tracks, labels, _ = crossing(rng)
    paths = group(replace(tracks, visible=torch.zeros_like(tracks.visible)), labels)
    assert paths.xy.isfinite().all()
    assert (paths.points.sum(1) <= 36).all()


def test_masks_and_maps_give_the_label_under_the_query() -> None:
    width, height, frames = 20, 10, 4
    maps = torch.zeros(frames, height, width, dtype=torch.int32)
    maps[0, 2:6, 4:8], maps[0, :, 12:] = 5, 2
    maps[3, 0:3, 0:3] = 5
    # The pixel from (4, 2) to (5, 3) is the first object's: its corner belongs to it, a little less does not.
    queries = torch.tensor([[0, 4, 2], [0, 3.99, 2], [0, 7.99, 5.99], [0, 8, 5], [0, 20, 10], [3, 1, 1], [1, 5, 3]])
    xy = queries[:, None, 1:].expand(-1, frames, -1)
    tracks = Tracks(queries, xy, torch.ones(7, frames).bool(), torch.ones(7, frames), (width, height), 25.0)
    labels = torch.tensor([5, -1, 5, -1, 2, 5, -1])
    expected = group(tracks, labels)
    assert expected.labels.tolist() == [2, 5]
    for kind in (torch.uint8, torch.int16, torch.int64):
        assert same(group(tracks, maps.to(kind)), expected)
    masked = group(tracks, maps == 5)
    assert masked.labels.tolist() == [1]
    assert torch.equal(masked.xy[0], expected.xy[1])
    assert same(group(tracks[:5], maps[0]), group(tracks[:5], labels[:5]))
    with pytest.raises(DinotrackError, match=r"one map \(10, 20\), the queries are on 3 frames"):
        group(tracks, maps[0])


@pytest.mark.parametrize(
    "objects",
    [
        torch.zeros(71, dtype=torch.long),
        torch.zeros(72),
        torch.zeros(72, dtype=torch.bool),
        torch.zeros(FRAMES, 160, 96, dtype=torch.bool),
        torch.zeros(FRAMES - 1, 96, 160, dtype=torch.int32),
        torch.zeros(0, 96, 160, dtype=torch.bool),
        torch.zeros(FRAMES, 96, 160),
    ],
)
def test_other_shapes_and_types_are_refused(objects: Tensor, rng: torch.Generator) -> None:
    tracks, _, _ = crossing(rng)
    with pytest.raises(DinotrackError, match=r"expected whole numbers \(72,\).*\(40, 96, 160\)"):
        group(tracks, objects)


def test_no_point_on_any_object_is_refused(rng: torch.Generator) -> None:
    tracks, labels, _ = crossing(rng)
    with pytest.raises(DinotrackError, match="none of the 72 points"):
        group(tracks, torch.full((72,), -1))
    with pytest.raises(DinotrackError, match="none of the 72 points"):
        group(tracks, torch.zeros(FRAMES, 96, 160, dtype=torch.bool))
    with pytest.raises(DinotrackError, match="none of the 0 points"):
        group(tracks[:0], labels[:0])
    with pytest.raises(DinotrackError, match="least=0"):
        group(tracks, labels, least=0)


def same(a: ObjectPaths, b: ObjectPaths) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(ObjectPaths)]
    return all(torch.equal(x, y) if isinstance(x, Tensor) else x == y for x, y in pairs)


def test_paths_travel(tmp_path: Path, rng: torch.Generator) -> None:
    tracks, labels, _ = crossing(rng)
    paths = group(tracks, labels)
    paths.save(tmp_path / "paths.safetensors")
    assert same(ObjectPaths.load(tmp_path / "paths.safetensors"), paths)
    assert len(paths) == 2
    assert paths[1:].labels.tolist() == [1]
    assert paths[1:].xy.shape == (1, FRAMES, 2)
