"""Pictures of a fit: the right things of the right frames; how they are drawn is tested in test_pictures."""

import lightning as L
import pytest
import torch

from dinotrack import DinotrackError, Video
from dinotrack.structs import FeatureMap
from dinotrack.training.pictures import Pictures, buddies_picture, middle
from dinotrack.visualization import Look

SIZE = (64, 48)


@pytest.fixture
def video() -> Video:
    return Video(torch.full((4, 3, 48, 64), 90, dtype=torch.uint8))


@pytest.fixture
def shifted() -> Look:
    """Features of their own for each token of frame 0; in frame t all are t tokens further right."""
    first = torch.eye(12 * 16).view(12 * 16, 12, 16)
    features = FeatureMap(torch.stack([first.roll(t, 2) for t in range(4)]).half(), 4.0, 2.0, SIZE)
    return Look("raw", features, torch.full((4, 2), torch.nan))


def test_the_middle_is_the_deepest_point_of_the_first_foreground() -> None:
    masks = torch.zeros(4, 48, 64, dtype=torch.bool)
    masks[2, 10:31, 20:41] = True  # a square of 21, its centre's pixel is (30, 20)
    masks[2, 12, 50:60] = True  # and a line, which pulls the mean away
    masks[3] = True
    assert middle(masks, (128, 96)).tolist() == [[2.0, 61.0, 41.0]]
    assert middle(torch.zeros(4, 5, 5, dtype=torch.bool), (5, 5)).tolist() == [[0.0, 2.5, 2.5]]


def test_buddies_start_on_the_foreground_if_any_do(video: Video, shifted: Look) -> None:
    """Lines are on the left frame's upper half alone where that is the foreground, everywhere without one."""
    masks = torch.zeros(4, 48, 64, dtype=torch.bool)
    masks[0, :24] = True
    for given, low in ((masks, False), (torch.zeros_like(masks), True)):
        picture = buddies_picture(video, shifted, given, (0, 1), 1000)
        left = picture[:, -(picture.shape[2] // 2) * 48 // 64 :, : picture.shape[2] // 2 - 4]  # without the bar
        lower = left[:, 3 * left.shape[1] // 5 :]
        assert bool((lower != 90).any()) is low
        assert (left[:, : left.shape[1] // 2] != 90).any()


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
