"""Where and how tracks are drawn: to a hundredth of a pixel where it matters, by looking at pixels where it does not."""

from dataclasses import replace
from pathlib import Path

import av
import numpy as np
import pytest
import torch
from PIL import Image

from dinotrack.errors import DinotrackError
from dinotrack.structs import PointTruth, Tracks, Video
from dinotrack.visualization import (
    confidence_colours,
    contact_sheet,
    draw_tracks,
    opencv_points,
    render_overlay,
    row_colours,
    save_png,
    start_colours,
)
from dinotrack.visualization.pen import Pen

SIZE = (64, 48)


def clip(count: int = 6, size: tuple[int, int] = SIZE, level: int = 0) -> Video:
    return Video(torch.full((count, 3, size[1], size[0]), level, dtype=torch.uint8), fps=12.0)


def still(*xy: tuple[float, float], count: int = 6, size: tuple[int, int] = SIZE, visible: bool = True) -> Tracks:
    """Tracks that do not move."""
    points = torch.tensor(xy, dtype=torch.float32).reshape(-1, 2)
    n = len(points)
    queries = torch.cat([torch.zeros(n, 1), points], 1)
    shape = (n, count)
    return Tracks(
        queries, points[:, None].expand(n, count, 2), torch.full(shape, visible), torch.ones(shape), size, 12.0
    )


def moving(count: int = 6, speed: float = 6.0) -> Tracks:
    """One track going right along y = 24.5."""
    x = 10.5 + speed * torch.arange(count)
    xy = torch.stack([x, torch.full_like(x, 24.5)], -1)[None]
    shape = (1, count)
    return Tracks(torch.tensor([[0.0, 10.5, 24.5]]), xy, torch.ones(shape).bool(), torch.ones(shape), SIZE, 12.0)


def centroid(frame: torch.Tensor) -> tuple[float, float]:
    """Brightness-weighted mean (x, y) in raster coordinates, by loops."""
    total = sx = sy = 0.0
    grey = frame.double().sum(0)
    for row in range(grey.shape[0]):
        for column in range(grey.shape[1]):
            weight = grey[row, column].item()
            total, sx, sy = total + weight, sx + weight * (column + 0.5), sy + weight * (row + 0.5)
    return sx / total, sy / total


def test_opencv_points_are_pixel_indices():
    points = opencv_points(torch.tensor([[10.5, 20.5], [10.0, 0.5], [0.53125, 0.5]]))
    assert (points / 16).tolist() == [[10, 20], [9.5, 0], [0, 0]]


@pytest.mark.parametrize("visible", [True, False])
@pytest.mark.parametrize("x", [10.5, 10.75, 11.0, 11.25, 11.5])
def test_a_point_lies_where_it_is(x: float, visible: bool):
    drawn = draw_tracks(clip(), still((x, 20.5), visible=visible))
    assert centroid(drawn[0]) == pytest.approx((x, 20.5), abs=0.08)


def test_a_point_at_a_pixels_centre_is_symmetric_about_it():
    drawn = draw_tracks(clip(), still((10.5, 20.5)), min_radius=4.3)[0].amax(0)
    rows, columns = (drawn > 40).any(1).nonzero(), (drawn > 40).any(0).nonzero()
    assert drawn[20, 10] == drawn.max() > 0
    assert (rows.min() + rows.max(), columns.min() + columns.max()) == (2 * 20, 2 * 10)


def test_visible_points_are_filled_and_occluded_ones_hollow():
    radius = 8.0
    filled = draw_tracks(clip(), still((32.5, 24.5)), min_radius=radius)[0]
    hollow = draw_tracks(clip(), still((32.5, 24.5), visible=False), min_radius=radius)[0]
    assert filled[:, 24, 32].sum() > 0
    assert hollow[:, 24, 32].sum() == 0
    assert hollow[:, 24, 40].sum() > 0


def test_discs_have_their_area_and_soft_edges():
    video, tracks = clip(2, (1600, 100)), still((800.5, 50.5), count=2, size=(1600, 100))
    drawn = draw_tracks(video, tracks)[0].double().amax(0) / 255
    assert drawn.sum().item() == pytest.approx(np.pi * 8**2, rel=0.15)  # 1600 / 200
    assert ((drawn > 0.1) & (drawn < 0.9)).any()
    small = draw_tracks(clip(), still((32.5, 24.5)))[0].double().amax(0) / 255
    assert np.pi * 2**2 < small.sum().item() < np.pi * 3.5**2  # OpenCV adds up to half a pixel


@pytest.mark.parametrize(
    "xy", [(-0.5, 10.0), (64.0, 10.0), (10.0, 48.0), (10.0, -3.0), (float("nan"), 3.0), (1e30, 3.0)]
)
def test_points_outside_are_not_drawn(xy: tuple[float, float]):
    assert draw_tracks(clip(), still(xy)).sum() == 0


def test_points_at_the_very_edge_are_drawn():
    for xy in [(0.0, 0.0), (63.9, 47.9), (0.0, 47.9)]:
        assert draw_tracks(clip(), still(xy))[0].sum() > 0


def test_trails_fade_and_end():
    drawn = draw_tracks(clip(8), moving(8), trail=3)[7].double().amax(0)
    head = 10.5 + 6 * 7
    levels = [drawn[24, int(head - 6 * (age - 0.5))].item() for age in range(1, 6)]
    assert levels[0] > levels[1] > levels[2] > 0
    assert levels[3] == levels[4] == 0
    assert levels[0] > 200


def test_no_trail_means_points_only():
    drawn = draw_tracks(clip(8), moving(8), trail=0)[7].amax(0)
    assert drawn[24, : 10 + 6 * 7 - 5].sum() == 0


def test_trails_are_not_drawn_through_occlusion():
    tracks = moving(8)
    tracks.visible[:, 4] = False
    drawn = draw_tracks(clip(8), tracks, trail=5)[7].amax(0)
    assert drawn[24, 10 + 27] == drawn[24, 10 + 21] == 0  # frames 4 to 5 and 3 to 4
    assert drawn[24, 10 + 33] > 0


def test_every_thins_the_tracks():
    tracks = still((10.5, 10.5), (30.5, 10.5), (50.5, 10.5))
    drawn = draw_tracks(clip(), tracks, every=2)[0].amax(0)
    assert [drawn[10, x].item() > 0 for x in (10, 30, 50)] == [True, False, True]


def test_no_tracks_leave_the_video_and_drawing_never_changes_it():
    video = clip(level=90)
    assert torch.equal(draw_tracks(video, still()), video.frames)
    channels_last = Video(torch.full((3, 48, 64, 3), 90, dtype=torch.uint8).permute(0, 3, 1, 2))
    drawn = draw_tracks(channels_last, still((10.5, 10.5), count=3), trail=0)
    assert (drawn != 90).any()
    assert (channels_last.frames == 90).all()


def test_colours_tell_starts_apart():
    corners = still((0.0, 0.0), (64.0, 0.0), (0.0, 48.0), (64.0, 48.0), (32.0, 24.0))
    colours = start_colours(corners).astype(int)
    distances = np.abs(colours[:, None] - colours[None]).sum(-1)
    assert distances[~np.eye(5, dtype=bool)].min() > 60
    assert start_colours(still()).shape == (0, 3)
    assert draw_tracks(clip(), corners[:1])[0][:, 0, 0].tolist() == [255, 0, 0]


def test_tracks_of_another_video_are_refused():
    with pytest.raises(DinotrackError, match=r"\(5, 64, 48\), the video is \(6, 64, 48\)"):
        draw_tracks(clip(), still((1.0, 1.0), count=5))
    with pytest.raises(DinotrackError, match="draw them on their own video"):
        draw_tracks(clip(), still((1.0, 1.0), size=(48, 64)))
    for settings in ({"trail": -1}, {"every": 0}):
        with pytest.raises(DinotrackError, match="expected trail >= 0 and every >= 1"):
            draw_tracks(clip(), still((1.0, 1.0)), **settings)


def test_overlay_is_a_video_at_the_videos_rate(tmp_path: Path):
    render_overlay(clip(8), moving(8), tmp_path / "a.mp4")
    with av.open(str(tmp_path / "a.mp4")) as container:
        assert container.streams.video[0].average_rate == 12
        frames = [frame.to_ndarray(format="rgb24") for frame in container.decode(video=0)]
    assert len(frames) == 8
    assert frames[7].shape == (240, 320, 3)  # five times the size, because 64 pixels show nothing
    assert frames[7][5 * 24, 5 * (10 + 42)].max() > 150 > 50 > frames[0][5 * 24, 5 * (10 + 42)].max()


def test_contact_sheet_shows_evenly_spaced_frames():
    frames = torch.arange(15, dtype=torch.uint8)[:, None, None, None].expand(15, 3, 30, 60) * 10
    sheet = contact_sheet(frames, columns=3, count=8, width=20)
    assert sheet.shape == (3, 3 * 10, 3 * 20)
    cells = [sheet[0, 10 * r + 5, 20 * c + 10].item() for r in range(3) for c in range(3)]
    assert cells == [0, 20, 40, 60, 80, 100, 120, 140, 0]
    for r in range(3):
        for c in range(3):
            assert (sheet[:, 10 * r : 10 * r + 10, 20 * c : 20 * c + 20] == cells[3 * r + c]).all()


def test_contact_sheet_of_few_frames():
    assert contact_sheet(clip(2).frames, width=16).shape == (3, 12, 32)
    assert contact_sheet(clip(2).frames[:1], width=16).shape == (3, 12, 16)
    with pytest.raises(DinotrackError, match="no contact sheet of 0 frames"):
        contact_sheet(clip(2).frames[:0])
    with pytest.raises(DinotrackError, match="columns=0"):
        contact_sheet(clip(2).frames, columns=0)


def test_png_round_trip(tmp_path: Path):
    picture = torch.randint(0, 256, (3, 5, 7), dtype=torch.uint8)
    save_png(picture, tmp_path / "new" / "a.png")
    assert np.array_equal(np.array(Image.open(tmp_path / "new" / "a.png")), picture.permute(1, 2, 0).numpy())
    assert [f.name for f in (tmp_path / "new").iterdir()] == ["a.png"]


def truth_of(tracks: Tracks, *offset: float, frames: tuple[int, ...] = (0, 1, 2, 3, 4, 5)) -> PointTruth:
    """The tracks' queries, truly lying `offset` away from where the tracks have them."""
    xy = tracks.xy[:, list(frames)] + torch.tensor(offset)
    shape = xy.shape[:2]
    numbers = torch.tensor(frames)
    return PointTruth(tracks.queries, xy, torch.ones(shape).bool(), numbers, torch.zeros(0), tracks.size, "first")


def reds(frame: torch.Tensor) -> torch.Tensor:
    """(row, column) of the pixels that are red and hardly anything else."""
    r, g, b = frame.int()
    return ((r > 180) & (g < 90) & (b < 90)).nonzero()


def test_error_lines_go_from_the_point_to_the_truth():
    tracks = still((20.5, 20.5))
    tracks.queries[:, 1:] = torch.tensor([63.9, 47.9])  # a start that is not red
    truth = truth_of(tracks, 24.0, 0.0)
    drawn = draw_tracks(clip(), tracks, truth=truth)[0]
    found = reds(drawn)
    assert set(found[:, 0].tolist()) <= {19, 20, 21}
    assert found[:, 1].min() <= 24
    assert found[:, 1].max() >= 38  # then the cross begins
    assert drawn[:, 20, 44].min() > 200  # the middle of the white cross
    assert drawn[:, 20, 54].max() == 0


def test_error_lines_only_where_the_truth_is_visible_and_annotated():
    tracks = still((20.5, 20.5), (20.5, 40.5))
    tracks.queries[:, 1:] = torch.tensor([63.9, 47.9])
    truth = truth_of(tracks, 20.0, 0.0, frames=(1, 4))
    truth.visible[1] = False
    drawn = draw_tracks(clip(), tracks, truth=truth)
    assert [len(reds(frame)) > 0 for frame in drawn] == [False, True, False, False, True, False]
    assert reds(drawn[1])[:, 0].max() < 30  # none from the second point
    thinned = draw_tracks(clip(), tracks, truth=truth, every=2)
    assert torch.equal(reds(thinned[1]), reds(drawn[1]))


def test_truth_of_another_size_is_scaled():
    tracks = still((20.5, 20.5))
    tracks.queries[:, 1:] = torch.tensor([63.9, 47.9])
    truth = truth_of(tracks, 24.0, 0.0)
    scale = torch.tensor([2.0, 3.0])
    queries = torch.cat([truth.queries[:, :1], truth.queries[:, 1:] * scale], 1)
    larger = replace(truth, queries=queries, xy=truth.xy * scale, size=(128, 144))
    assert torch.equal(draw_tracks(clip(), tracks, truth=larger), draw_tracks(clip(), tracks, truth=truth))


def test_truth_of_other_queries_is_refused():
    tracks = still((20.5, 20.5), (30.5, 20.5))
    for wrong in (
        truth_of(tracks, 0.0, 0.0)[:1],
        replace(truth_of(tracks, 0.0, 0.0), queries=tracks.queries + 2.0),
        replace(truth_of(tracks, 0.0, 0.0), frames=torch.arange(6) + 1),
    ):
        with pytest.raises(DinotrackError, match="give the truth of the same queries"):
            draw_tracks(clip(), tracks, truth=wrong)


def test_a_prediction_far_outside_still_has_its_line():
    tracks = still((1e7, 20.5))
    drawn = draw_tracks(clip(), tracks, truth=replace(truth_of(tracks, 0.0, 0.0), xy=torch.full((1, 6, 2), 20.5)))
    assert reds(drawn[0])[:, 1].max() == 63


def test_rainbow_goes_by_row():
    colours = row_colours(still((5.0, 40.0), (60.0, 40.0), (5.0, 10.0), (5.0, 25.0)))
    assert colours[2].tolist() == [255, 0, 0]
    assert colours[0].tolist() == colours[1].tolist() == [255, 0, 255]
    assert colours[3].tolist() == [0, 255, 128]  # halfway, 150°
    assert row_colours(still((5.0, 40.0), (9.0, 40.0))).tolist() == [[255, 0, 0]] * 2
    assert row_colours(still()).shape == (0, 3)


def test_confidence_colours_each_frame():
    tracks = still((20.5, 20.5))
    tracks.confidence[0] = torch.tensor([0.0, 0.5, 1.0, float("nan"), 2.0, -1.0])
    low, middle, high = [213, 60, 0], [240, 228, 66], [0, 158, 255]
    assert confidence_colours(tracks)[0].tolist() == [low, middle, high, low, high, low]
    drawn = draw_tracks(clip(), tracks, colour="confidence")
    assert [frame[:, 20, 20].tolist() for frame in drawn[:3]] == [low, middle, high]
    with pytest.raises(DinotrackError, match="colour='blue'; choose start, rainbow, confidence"):
        draw_tracks(clip(), tracks, colour="blue")


def test_chosen_frames_are_those_of_the_whole():
    every = draw_tracks(clip(8), moving(8), trail=3)
    assert torch.equal(draw_tracks(clip(8), moving(8), trail=3, frames=[7, 2]), every[[7, 2]])
    for wrong in ([8], [-1], []):
        with pytest.raises(DinotrackError, match="expected some of 0 to 7"):
            draw_tracks(clip(8), moving(8), frames=wrong)


def test_marks_grow_with_the_picture():
    """The same scene at four times the size has marks of four times the size, also in its title."""
    small, large = Pen.of((480, 320)), Pen.of((4 * 480, 4 * 320))
    assert (small.radius, large.radius) == (2.5, 9.6)
    assert large.line > small.line
    assert large.thin > small.thin
    assert large.font > small.font
    areas = []
    for side in (800, 3200):
        tracks = still((side / 2, 50.5), count=2, size=(side, 100))
        areas.append(int((draw_tracks(clip(2, (side, 100)), tracks)[0].amax(0) > 127).sum()))
    assert areas[1] / areas[0] == pytest.approx(16, rel=0.25)
