"""Pictures of a fit: the right things at the right places."""

import lightning as L
import numpy as np
import pytest
import torch

from dinotrack import DinotrackError, Tracks, Video
from dinotrack.structs import FeatureMap
from dinotrack.training.pictures import (
    GAP,
    Pictures,
    buddies,
    buddies_picture,
    heat,
    middle,
    overlay_picture,
    panel_size,
    similarity_picture,
    spread_colours,
)

SIZE = (64, 48)
WIDTH, HEIGHT = panel_size(SIZE)


@pytest.fixture
def video() -> Video:
    return Video(torch.full((4, 3, 48, 64), 90, dtype=torch.uint8))


@pytest.fixture
def shifted() -> FeatureMap:
    """Features of their own for each token of frame 0; in frame t all are t tokens further right."""
    first = torch.eye(12 * 16).view(12 * 16, 12, 16)
    return FeatureMap(torch.stack([first.roll(t, 2) for t in range(4)]).half(), 4.0, 2.0, SIZE)


def test_the_middle_is_the_deepest_point_of_the_first_foreground() -> None:
    masks = torch.zeros(4, 48, 64, dtype=torch.bool)
    masks[2, 10:31, 20:41] = True  # a square of 21, its centre's pixel is (30, 20)
    masks[2, 12, 50:60] = True  # and a line, which pulls the mean away
    masks[3] = True
    assert middle(masks, (128, 96)).tolist() == [[2.0, 61.0, 41.0]]
    assert middle(torch.zeros(4, 5, 5, dtype=torch.bool), (5, 5)).tolist() == [[0.0, 2.5, 2.5]]


def test_heat_marks_where_a_map_is_highest() -> None:
    values = torch.zeros(48, 64)
    values[30, 50] = 1
    canvas = heat(np.zeros((480, 640, 3), np.uint8), values)
    white = (canvas == 255).all(2).nonzero()
    assert abs(np.mean(white[1]) - 505) < 1 and abs(np.mean(white[0]) - 305) < 1
    assert canvas[10, 10, 2] > canvas[10, 10, 0], "blue where it is low"
    assert canvas[305, 505, 0] > canvas[305, 505, 2], "red where it is high"


def test_a_similarity_picture_finds_the_query_in_the_other_frame(video: Video, shifted: FeatureMap) -> None:
    query = torch.tensor([[0.0, 10.0, 22.0]])  # token (2, 5); in frame 2 token (4, 5), at x = 18
    picture = similarity_picture(video, {"raw": shifted, "refined": shifted}, query, 2)
    assert picture.shape == (3, HEIGHT, 3 * WIDTH + 2 * GAP)
    assert (picture[:, :, WIDTH : WIDTH + GAP] == 255).all()
    below, pixel = 40, WIDTH / SIZE[0]  # the names; a working pixel, and a token's centre lies between two
    for panel, x in enumerate((10.0, 18.0, 18.0)):
        start = panel * (WIDTH + GAP)
        white = (picture[:, below:, start : start + WIDTH] == 255).all(0).nonzero().float()
        assert white.mean(0).tolist() == pytest.approx([22 / 48 * HEIGHT - below, x / 64 * WIDTH], abs=pixel / 2 + 1)


def test_buddies_are_mutual_neighbours_and_stay_on_the_foreground(shifted: FeatureMap) -> None:
    masks = torch.zeros(4, 48, 64, dtype=torch.bool)
    masks[0, :24] = True
    source, target = buddies(shifted, masks, (0, 3), 1000)
    moved = (source + torch.tensor([12.0, 0])) % torch.tensor([64.0, 48.0])
    assert torch.equal(target, moved) and source[:, 1].max() < 24 and len(source) == 6 * 16
    source, _ = buddies(shifted, torch.zeros_like(masks), (0, 3), 7)
    assert len(source) == 7 and source[0].tolist() == [2, 2] and source[-1].tolist() == [62, 46]


def test_a_picture_of_buddies_has_a_row_for_each_kind(video: Video, shifted: FeatureMap) -> None:
    masks = torch.zeros(4, 48, 64, dtype=torch.bool)
    picture = buddies_picture(video, {"raw": shifted, "refined": shifted}, masks, (0, 1), 5)
    assert picture.shape == (3, 2 * HEIGHT + GAP, 2 * WIDTH + GAP)
    grey = (picture == 90).all(0)
    assert 0.5 < grey.float().mean() < 0.99, "lines on grey frames"


def test_an_overlay_shows_each_frame_once_with_its_points(video: Video) -> None:
    xy = torch.tensor([[20.0, 20], [24, 20], [28, 20], [32, 20]])[None]
    tracks = Tracks(torch.tensor([[0.0, 20, 20]]), xy, torch.ones(1, 4).bool(), torch.ones(1, 4), SIZE, 25.0)
    picture = overlay_picture(video, tracks, (0, 3, 3))
    assert picture.shape == (3, HEIGHT, 2 * WIDTH + GAP)
    for panel, x in enumerate((20, 32)):
        part = picture[:, 60:, panel * (WIDTH + GAP) :][:, :, :WIDTH]
        drawn = (part != 90).any(0).nonzero().float()
        assert drawn[:, 1].max() == pytest.approx(x / 64 * WIDTH, abs=8)
    two = Video(video.frames[:2])
    short = Tracks(tracks.queries, xy[:, :2], torch.ones(1, 2).bool(), torch.ones(1, 2), SIZE, 25.0)
    assert overlay_picture(two, short, (1, 0)).shape == picture.shape


def test_colours_go_along_the_diagonal_and_none_are_none() -> None:
    blue, _, red = spread_colours(torch.tensor([[0.1, 0.1], [0.5, 0.5], [0.9, 0.9]]))
    assert blue[2] > blue[0] and red[0] > red[2]
    assert spread_colours(torch.zeros(0, 2)) == []


@pytest.mark.parametrize("wrong", [{"every": -1}, {"points": 0}, {"pairs": 0}, {"every": 1.5}])
def test_wrong_settings_are_named(wrong: dict[str, int], unguarded: None) -> None:
    with pytest.raises(DinotrackError, match=f"pictures: {next(iter(wrong))}="):
        Pictures(**wrong)  # type: ignore[arg-type]


@pytest.mark.parametrize(
    ("settings", "words"),
    [({"query": [0, 70, 5]}, "outside the video"), ({"query": [9, 5, 5]}, "0..3"), ({"target": 4}, "target=4.*0..3")],
)
def test_a_query_off_the_video_is_refused_before_the_fit(settings: dict[str, object], words: str, video: Video) -> None:
    class Module:
        data = type("Data", (), {"video": video})

    with pytest.raises(DinotrackError, match=words):
        Pictures(**settings).on_fit_start(L.Trainer(logger=False), Module())  # type: ignore[arg-type]
