"""Every input of `benchmarks.tried` does what docs/inputs.md says: it works, says what is wrong,
or is refused in one line."""

import json
from pathlib import Path

import pytest
import torch
from benchmarks.tried.cases import FAILED, REFUSED, SAYS, WORKS, Case, Outcome, tried
from benchmarks.tried.run import KEPT, PAGE, kept, quick_cases, tables
from benchmarks.tried.runs import of_runs

from dinotrack import DinotrackError, Video, load_video
from dinotrack.data.video import _fitted
from dinotrack.visualization import draw_tracks

QUICK = quick_cases()
COSTLY = [case for case in QUICK if any(word in case.name for word in ("HEVC", "AV1", "VP9", "4K", "JPEG 2000"))]
"""Whose encoders take seconds."""
BRIEF = [case for case in of_runs() if case.name in ("flow_chain: black", "raw_features: two frames")]
REST = [case for case in of_runs() if case not in BRIEF]


def check(outcome: Outcome) -> None:
    assert outcome.as_expected, f"{outcome.status}: {outcome.said} {outcome.lines}"


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize(
    "case", [pytest.param(case, id=case.id, marks=[pytest.mark.slow] * (case in COSTLY)) for case in QUICK]
)
def test_tried(case: Case, tmp_path: Path) -> None:
    check(tried(case, tmp_path))


@pytest.mark.parametrize("case", BRIEF, ids=[case.id for case in BRIEF])
def test_whole_runs(case: Case, tmp_path: Path) -> None:
    check(tried(case, tmp_path))


@pytest.mark.slow
@pytest.mark.parametrize("case", REST, ids=[case.id for case in REST])
def test_more_whole_runs(case: Case, tmp_path: Path) -> None:
    check(tried(case, tmp_path))


def test_the_page_shows_what_was_written_down() -> None:
    """`python -m benchmarks.tried.run` writes both; every case is there, and none did anything else than expected."""
    content, page = json.loads(KEPT.read_text()), PAGE.read_text()
    found = {(row["group"], row["input"]) for row in content["rows"]}
    assert found == {(case.group, case.name) for case in [*QUICK, *BRIEF, *REST]}
    assert all(row["as_expected"] and row["happened"] != FAILED for row in content["rows"])
    assert all(table in page for table in tables(content).values())


def test_a_wrong_result_a_silence_and_a_traceback_are_noticed(tmp_path: Path) -> None:
    def refuses(_: object) -> str:
        raise DinotrackError("a.mp4 is wrong; mend it")

    def breaks(_: object) -> str:
        raise KeyError("x")

    def outcome(act: object, expected: str, words: str = "") -> Outcome:
        return tried(Case("g", "n", lambda folder: folder, act, expected, words), tmp_path)  # type: ignore[arg-type]

    assert outcome(refuses, REFUSED, "mend it").as_expected
    assert not outcome(refuses, REFUSED, "another remedy").as_expected
    assert not outcome(refuses, WORKS).as_expected
    assert outcome(breaks, WORKS).status == FAILED and not outcome(breaks, WORKS).as_expected
    assert not outcome(lambda _: "done", SAYS, "a line").as_expected
    assert "done" in str(kept([outcome(lambda _: "done", WORKS)])["rows"])


def test_scaled_frames_keep_positions_in_the_files_pixels(tmp_path: Path) -> None:
    """Queries, tracks, masks and the overlay of a video that was read smaller."""
    from benchmarks.tried.films import film, write

    path = write(tmp_path / "a.mkv", "ffv1", "bgr0", film(3, 400, 200))
    video = load_video(path, max_side=100)
    assert (video.size, video.frame_size, video.max_side) == ((400, 200), (100, 50), 100)
    assert load_video(path, max_side=400).max_side is None
    again = load_video(path, max_side=video.max_side)
    assert torch.equal(again.frames, video.frames) and again.content_hash == video.content_hash
    part = video[1:]
    assert part.size == (400, 200) and part.to("cpu").size == (400, 200)
    part.save(tmp_path / "v.safetensors")
    assert Video.load(tmp_path / "v.safetensors").size == (400, 200)


@pytest.mark.parametrize(
    ("size", "side", "expected"),
    [((3840, 2160), 1920, (1920, 1080)), ((2160, 3840), 1920, (1080, 1920)), ((640, 480), 1920, (640, 480))],
)
def test_fitted_keeps_the_aspect(size: tuple[int, int], side: int, expected: tuple[int, int]) -> None:
    assert _fitted(size, side) == expected and _fitted(size, None) == size and _fitted((9999, 2), 16) == (16, 1)


def test_frames_that_would_not_fit_memory_are_refused_before_they_are_read(tmp_path: Path) -> None:
    from benchmarks.tried.films import film, write

    path = write(tmp_path / "a.mp4", "libx264", "yuv420p", film(12))
    with pytest.raises(DinotrackError, match=r"a\.mp4 has 12 frames that take 0\.0 GB at 64x48; .* give max_side=32"):
        load_video(path, most=12 * 64 * 48 * 3 - 1)
    assert len(load_video(path, most=12 * 64 * 48 * 3)) == 12
    assert len(load_video(path, stop=4, most=4 * 64 * 48 * 3)) == 4
    with pytest.raises(DinotrackError, match="max_side=3: expected at least 16"):
        load_video(path, max_side=3)


def test_the_overlay_of_a_scaled_video_is_drawn_where_the_point_is() -> None:
    """A query at three quarters of a 400-pixel video lies at three quarters of its 100-pixel frames."""
    from dinotrack import Tracks

    video = Video(torch.zeros(2, 3, 50, 100, dtype=torch.uint8), full_size=(400, 200))
    xy = torch.tensor([300.0, 100.0]).expand(1, 2, 2).clone()
    tracks = Tracks(torch.tensor([[0.0, 300.0, 100.0]]), xy, torch.ones(1, 2) > 0, torch.ones(1, 2), (400, 200), 25.0)
    drawn = draw_tracks(video, tracks)
    assert drawn.shape == video.frames.shape
    y, x = drawn[1].amax(0).nonzero().float().mean(0).tolist()
    assert abs(x - 75) < 1 and abs(y - 25) < 1
