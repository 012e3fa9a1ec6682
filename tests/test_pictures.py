"""Pictures of features and of several trackers: what is marked lies where it is, and colours mean the same everywhere."""

import json
import shlex
from dataclasses import replace
from pathlib import Path
from typing import Any

import av
import numpy as np
import pytest
import torch
from PIL import Image
from torch import Tensor

from dinotrack import cli
from dinotrack.data import open_video
from dinotrack.data.export import load_npz, save_npz
from dinotrack.errors import DinotrackError
from dinotrack.geometry import at_pixels
from dinotrack.mp4 import save_video
from dinotrack.structs import FeatureMap, Grid, Pairs, PointTruth, Tracklets, Tracks, Video
from dinotrack.tools import picture, render
from dinotrack.visualization import (
    Look,
    best_buddies_between,
    compare_tracks,
    draw_matches,
    heat_frames,
    on_mask,
    pca_frames,
    similarity_maps,
    similarity_picture,
    spread,
    tile,
    titled,
    tracklets_between,
)
from dinotrack.visualization.layout import panel_size, title_bar
from dinotrack.visualization.pen import Pen

SIZE, WORKING = (640, 480), (64, 48)
GRID = Grid(stride=4.0, offset=2.0)
ROWS, COLUMNS = 12, 16


def clip(count: int = 4, size: tuple[int, int] = SIZE, level: int = 0) -> Video:
    return Video(torch.full((count, 3, size[1], size[0]), level, dtype=torch.uint8), fps=12.0)


def moving_feature(count: int = 4, channels: int = 8) -> FeatureMap:
    """One cell that has a feature of its own, at row 3 and column 2 + frame; all others are alike."""
    values = torch.zeros(count, channels, ROWS, COLUMNS)
    values[:, 0] = 1.0
    for t in range(count):
        values[t, 0, 3, 2 + t], values[t, 1, 3, 2 + t] = 0.1, 1.0
    return FeatureMap(values.half(), GRID.stride, GRID.offset, WORKING)


def place(t: int) -> Tensor:
    """Raster position of the cell's centre in frame t, in pixels of the video, ten to one of the working size."""
    return torch.tensor([2.0 + 4 * (2 + t), 2.0 + 4 * 3]) * 10


def query(t: int = 0) -> Tensor:
    return torch.cat([torch.tensor([float(t)]), place(t)])


# --- similarity


def test_similarity_map_is_highest_at_the_same_feature():
    features = moving_feature()
    maps = similarity_maps(features, torch.tensor([0.0, 10.0, 14.0]), [0, 3])
    assert maps.shape == (2, ROWS, COLUMNS)
    assert [int(each.argmax()) for each in maps] == [3 * COLUMNS + 2, 3 * COLUMNS + 5]
    here, there = features.values[0, :, 3, 2].float(), features.values[3, :, 0, 0].float()
    assert maps[1, 0, 0].item() == pytest.approx((here @ there / here.norm() / there.norm()).item(), abs=1e-3)


def test_at_pixels_puts_a_cell_where_its_centre_is():
    maps = torch.zeros(1, 1, ROWS, COLUMNS)
    maps[0, 0, 3, 5] = 1.0
    wide = at_pixels(maps, GRID, WORKING, SIZE)[0, 0]
    row, column = divmod(int(wide.argmax()), SIZE[0])
    assert (column + 0.5, row + 0.5) == pytest.approx((220, 140), abs=6)  # the peak is flat, half a working pixel wide
    weights = wide / wide.sum()
    assert (weights.sum(0) * (torch.arange(640) + 0.5)).sum().item() == pytest.approx(220, abs=0.5)
    assert (weights.sum(1) * (torch.arange(480) + 0.5)).sum().item() == pytest.approx(140, abs=0.5)


def test_heat_is_red_at_the_peak_and_blue_away_from_it():
    features = moving_feature()
    maps = similarity_maps(features, torch.tensor([0.0, 10.0, 14.0]), [0, 1, 2, 3])
    heat = heat_frames(clip(level=128).frames, maps, features).int()
    for t in range(4):
        x, y = place(t).int().tolist()
        peak, away = heat[t, :, y, x], heat[t, :, 400, 500]
        assert peak[0] > peak[2] + 50
        assert away[2] >= away[0]
        warmth = heat[t, 0] - heat[t, 2]
        row, column = divmod(int(warmth.float().argmax()), SIZE[0])
        assert abs(column - x) <= 30
        assert abs(row - y) <= 30


def test_heat_has_one_scale_for_all_frames():
    features = moving_feature(2)
    maps = torch.zeros(2, ROWS, COLUMNS)
    maps[0, 2, 2], maps[1, 2, 2] = 1.0, 0.5
    both = heat_frames(clip(2).frames, maps, features).int()
    red = both[:, 0, 100, 100]
    assert red[0] > red[1] + 20 or both[0, 1, 100, 100] < both[1, 1, 100, 100]  # red against green, not red twice
    assert not torch.equal(both[0], both[1])
    assert torch.isfinite(heat_frames(clip(2).frames, torch.ones(2, ROWS, COLUMNS), features).float()).all()


def panels_of(picture: Tensor, count: int, size: tuple[int, int]) -> list[Tensor]:
    """The panels of a row under their titles."""
    bar = picture.shape[2] - size[1]
    return [picture[:, :, bar:, k * (size[0] + 4) : k * (size[0] + 4) + size[0]] for k in range(count)]


def white_ring(panel: Tensor) -> tuple[float, float]:
    """Middle of what is white in a panel."""
    rows, columns = (panel.amin(0) > 230).nonzero().float().unbind(1)
    return (columns.min().item() + columns.max().item() + 1) / 2, (rows.min().item() + rows.max().item() + 1) / 2


def test_similarity_picture_marks_query_and_prediction():
    features, said = moving_feature(), torch.stack([place(t) + torch.tensor([40.0, 8.0]) for t in range(4)])
    picture = similarity_picture(clip(level=60), query(), [Look("raw", features, said)], [3], widest=1280)
    size = panel_size(SIZE, 2, widest=1280)
    assert size == SIZE
    source, heat = (panel[0] for panel in panels_of(picture, 2, size))
    assert white_ring(source) == pytest.approx(tuple(place(0).tolist()), abs=1)
    assert source[0, int(place(0)[1]), int(place(0)[0])] > 200  # its red middle
    radius = Pen.of(size).radius
    x, y = (place(3) + torch.tensor([40.0, 8.0])).tolist()
    across = heat[:, int(y), int(x + 4 * radius) - 2 : int(x + 4 * radius) + 3].amin(0)
    assert across.max() > 180  # the ring, and its rim on either side
    assert across[[0, -1]].max() < 100
    px, py = place(3).int().tolist()
    assert heat[:, py, px].min() > 200  # the middle of the cross


def test_similarity_picture_leaves_out_a_prediction_that_there_is_not():
    features = moving_feature()
    nowhere, somewhere = torch.full((4, 2), torch.nan), torch.stack([place(t) for t in range(4)])
    pictures = [similarity_picture(clip(), query(), [Look("a", features, said)], [0]) for said in (nowhere, somewhere)]
    assert (pictures[0] != pictures[1]).any()


def test_similarity_picture_refuses_what_is_not_there():
    look = Look("a", moving_feature(), torch.zeros(4, 2))
    with pytest.raises(DinotrackError, match="lies outside the video"):
        similarity_picture(clip(), torch.tensor([0.0, 700.0, 3.0]), [look], [0])
    with pytest.raises(DinotrackError, match="expected some of 0 to 3"):
        similarity_picture(clip(), query(), [look], [4])
    with pytest.raises(DinotrackError, match="no features"):
        similarity_picture(clip(), query(), [], [0])


# --- matches


def test_best_buddies_are_mutual_nearest_neighbours():
    values = torch.eye(6)[torch.tensor([[0, 1, 2, 3], [2, 0, 4, 5]])].transpose(1, 2)[:, :, None]  # 1 × 4 cells
    pairs = best_buddies_between(FeatureMap(values.half(), 4.0, 2.0, (16, 4)), 0, 1)
    found = sorted((a, b) for a, b in zip(pairs.source_xy[:, 0].tolist(), pairs.target_xy[:, 0].tolist(), strict=True))
    assert found[0] == (2.0, 6.0)  # feature 0: cell 0 to cell 1
    assert (10.0, 2.0) in found  # feature 2: cell 2 to cell 0
    assert pairs.weight.max() == 2
    with pytest.raises(DinotrackError, match="expected some of 0 to 1"):
        best_buddies_between(FeatureMap(values.half(), 4.0, 2.0, (16, 4)), 0, 2)


def test_tracklets_between_two_frames_live_in_both():
    xy = torch.arange(18).view(9, 2).float()
    numbers = [torch.tensor(each) for each in ([0, 1, 0], [4, 2, 2], [4, 3, 2])]
    tracklets = Tracklets(*numbers, xy, (64, 48))
    pairs = tracklets_between(tracklets, 0, 1)
    assert (pairs.source_xy.tolist(), pairs.target_xy.tolist()) == ([[0, 1], [14, 15]], [[2, 3], [16, 17]])
    assert tracklets_between(tracklets, 1, 3).source_xy.tolist() == [[2, 3]]  # the second supervises two frames only
    back = tracklets_between(tracklets, 3, 1)
    assert (back.source_xy.tolist(), back.target_xy.tolist()) == ([[6, 7]], [[2, 3]])
    dropped = torch.zeros(9, dtype=torch.bool)
    dropped[1] = True
    assert len(tracklets_between(Tracklets(*numbers, xy, (64, 48), dropped), 0, 1)) == 1


def some_pairs(n: int = 1000) -> Pairs:
    generator = torch.Generator().manual_seed(1)
    zeros = torch.zeros(n, dtype=torch.long)
    here, there = (torch.rand(n, 2, generator=generator) * torch.tensor(WORKING) for _ in range(2))
    return Pairs(zeros, zeros + 1, here, there, torch.rand(n, generator=generator))


def test_spread_keeps_the_heaviest_all_over():
    pairs = some_pairs()
    chosen = spread(pairs, 48)
    assert 40 <= len(chosen) <= 60
    assert chosen.weight.min() > 0.5
    squares = {(int(x // 16), int(y // 16)) for x, y in chosen.source_xy.tolist()}
    assert len(squares) == 12  # every sixteen-pixel square of 64 × 48
    assert len(spread(pairs[:3], 48)) == 3
    assert len(spread(pairs[:0], 48)) == 0
    alike = pairs[torch.zeros(100, dtype=torch.long)]
    assert len(spread(alike, 5)) == 1


def test_pairs_on_the_mask():
    masks = torch.zeros(2, 48, 64, dtype=torch.bool)
    masks[0, :, :32] = True
    assert (on_mask(some_pairs(), masks, WORKING).source_xy[:, 0] < 32).all()


@pytest.mark.parametrize("layout", ["beside", "below"])
def test_matches_have_their_ends_where_the_points_are(layout: Any):
    one = torch.tensor([[10.0, 14.0]]), torch.tensor([[50.0, 30.0]])
    index = torch.tensor([0])
    pairs = Pairs(index, index + 1, *one, torch.ones(1))
    widest = 1280 if layout == "beside" else 640
    drawn = draw_matches(clip(2, level=90), pairs, WORKING, 0, 1, layout=layout, widest=widest)
    dx, dy = (644, 0) if layout == "beside" else (0, 484)
    assert drawn.shape == (3, 480 + dy, 640 + dx)
    assert drawn[:, 140, 100].tolist() == drawn[:, 300 + dy, 500 + dx].tolist() == [255, 0, 0]
    middle = drawn[:, (140 + 300 + dy) // 2, (100 + 500 + dx) // 2].int()
    assert middle[0] > 150 > middle[1]
    assert drawn[:, 20, 20].tolist() == [90, 90, 90]
    bar = draw_matches(clip(2), pairs, WORKING, 0, 1, layout=layout, title="two frames").shape[1]
    assert bar > draw_matches(clip(2), pairs, WORKING, 0, 1, layout=layout).shape[1]


def test_no_matches_leave_the_frames():
    drawn = draw_matches(clip(2, level=90), some_pairs()[:0], WORKING, 0, 1, widest=1280)
    assert (drawn[:, :, :640] == 90).all()


# --- principal components


def scene(count: int = 5, channels: int = 12) -> FeatureMap:
    """Four kinds of cells on a background; the kinds move from frame to frame."""
    generator = torch.Generator().manual_seed(3)
    kinds = torch.randn(5, channels, generator=generator)
    values = kinds[0].view(1, channels, 1, 1).expand(count, -1, ROWS, COLUMNS).clone()
    for t in range(count):
        for k in range(1, 5):
            values[t, :, 2 * k : 2 * k + 2, t + k : t + k + 3] = kinds[k].view(-1, 1, 1)
    values += 0.01 * torch.randn(values.shape, generator=generator)
    return FeatureMap(values.half(), GRID.stride, GRID.offset, WORKING)


def test_components_have_one_colour_for_a_feature_in_all_frames():
    frames = pca_frames(scene(), SIZE)
    assert frames.shape == (5, 3, 480, 640)
    seen = []
    for k in range(1, 5):
        x, y = [40 * (k + 1) + 20 + 40 * t for t in range(5)], 40 * (2 * k) + 40
        colours = torch.stack([frames[t, :, y, x[t]] for t in range(5)]).int()
        assert (colours - colours[0]).abs().max() <= 12
        seen.append(colours[0])
    background = frames[0, :, 470, 630].int()
    for a, one in enumerate([*seen, background]):
        for other in [*seen, background][a + 1 :]:
            assert (one - other).abs().max() > 40


def test_components_do_not_depend_on_the_sign_of_an_axis(monkeypatch: pytest.MonkeyPatch):
    from dinotrack.visualization import pca

    before, components = pca_frames(scene(), WORKING), pca.principal_components
    monkeypatch.setattr(pca, "principal_components", lambda *given: -components(*given))
    assert torch.equal(pca_frames(scene(), WORKING), before)


def test_components_of_few_channels_and_of_nothing_but_one_colour():
    features = scene(2, 2)
    assert pca_frames(features, WORKING).shape == (2, 3, 48, 64)
    flat = FeatureMap(torch.ones(2, 4, ROWS, COLUMNS).half(), GRID.stride, GRID.offset, WORKING)
    frames = pca_frames(flat, WORKING)
    assert (frames == frames[:, :, :1, :1]).all()


# --- layout


def test_titles_are_cut_to_their_width():
    short, long = title_bar("raw", 300, 12), title_bar("raw " * 100, 300, 12)
    assert short.shape == long.shape
    assert long[:, :3].max() == long[0, 0].max()  # nothing at the very edge
    assert short.max() > 200
    assert np.array_equal(title_bar("a\nb", 300, 12), title_bar("a b", 300, 12))
    assert title_bar("anything", 5, 12).shape[1] == 5
    frames = titled(clip(2, level=77).frames, "one")
    assert (frames[:, :, -480:] == 77).all()


def test_tile_fills_rows():
    panels = [torch.full((2, 3, 10, 20), 10 * k, dtype=torch.uint8) for k in range(3)]
    sheet = tile(panels, 2, gap=4)
    assert sheet.shape == (2, 3, 24, 44)
    assert [int(sheet[0, 0, y, x]) for y, x in ((5, 5), (5, 30), (20, 5))] == [0, 10, 20]
    assert sheet[0, :, 12, 5].tolist() == [24, 24, 27]
    for wrong in ([], [panels[0], panels[1][:, :, 1:]]):
        with pytest.raises(DinotrackError, match="expected some of one size"):
            tile(wrong)


def test_panels_of_a_row_stay_within_their_width():
    assert panel_size((854, 480), 1) == (854, 480)
    assert panel_size((854, 480), 3) == (640, 360)
    assert panel_size((64, 48), 2) == (320, 240)
    assert all(side % 2 == 0 and side >= 16 for side in panel_size((4001, 9), 4))


# --- several trackers, and the commands


def tracks_at(x: float, y: float, count: int = 4) -> Tracks:
    xy = torch.tensor([x, y]).expand(1, count, 2)
    ones = torch.ones(1, count)
    return Tracks(torch.tensor([[0.0, x, y]]), xy, ones.bool(), ones, SIZE, 12.0)


def test_compared_tracks_are_each_in_their_panel():
    both = [tracks_at(100.5, 200.5), tracks_at(400.5, 300.5)]
    drawn = compare_tracks(clip(), both, ["ours", "theirs"], widest=1280)
    bar = drawn.shape[2] - 480
    assert drawn.shape[3] == 2 * 640 + 4
    body = drawn[0, :, bar:].amax(0)
    assert body[200, 100] > 200
    assert body[300, 644 + 400] > 200
    assert body[300, 400] == body[200, 644 + 100] == 0
    assert drawn[0, :, :bar, :640].max() > 200  # letters
    below = compare_tracks(clip(), both, columns=1, widest=640, frames=[2])
    assert below.shape == (1, 3, 2 * 480 + 4, 640)
    for titles in (["one"], ["a", "b", "c"]):
        with pytest.raises(DinotrackError, match="expected one title for each"):
            compare_tracks(clip(), both, titles)


@pytest.fixture
def files(tmp_path: Path) -> Path:
    """A folder of frames with two tracks files and a truth."""
    for t in range(4):
        Image.fromarray(np.full((480, 640, 3), 60, np.uint8)).save(tmp_path / f"{t}.png")
    (tmp_path / "video").mkdir()
    for file in tmp_path.glob("*.png"):
        file.rename(tmp_path / "video" / file.name)
    save_npz(tracks_at(100.5, 200.5), tmp_path / "a.npz")
    save_npz(tracks_at(400.5, 300.5), tmp_path / "b.npz")
    true = tracks_at(100.5, 200.5)
    save_npz(Tracks(true.queries, true.xy + 100, *(true.visible, true.confidence), SIZE, 12.0), tmp_path / "true.npz")
    return tmp_path


def call(*words: str | Path) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    assert end.value.code == 0


def decoded(path: Path) -> tuple[Any, Tensor]:
    """Stream and frames of a video file."""
    with av.open(str(path)) as container:
        stream = container.streams.video[0]
        about = (stream.codec_context.name, stream.codec_context.pix_fmt, stream.width, stream.height)
        frames = [torch.from_numpy(frame.to_ndarray(format="rgb24")) for frame in container.decode(video=0)]
    return about, torch.stack(frames).permute(0, 3, 1, 2)


def test_render_compares_trackers_in_a_video_that_browsers_play(files: Path):
    words = ["--compare", files / "b.npz", "--title", "ours", "--title", "theirs", "--colour", "rainbow"]
    call("render", files / "a.npz", files / "video", files / "out.mp4", *words)
    about, frames = decoded(files / "out.mp4")
    assert about[:2] == ("h264", "yuv420p")
    assert about[2:] == (1284, frames.shape[2])
    assert frames.shape[2] % 2 == 0
    assert len(frames) == 4
    bar = titled(clip(2).frames, "x").shape[2] - 480
    assert frames[1, 0, bar + 200, 100] > 200 > frames[1, 0, bar + 300, 400]
    assert frames[1, 0, bar + 300, 644 + 400] > 200
    boxes = (files / "out.mp4").read_bytes()
    assert boxes.index(b"moov") < boxes.index(b"mdat")


def test_render_shows_errors_in_a_picture(files: Path):
    call(
        "render",
        files / "a.npz",
        files / "video",
        files / "out.png",
        "--truth",
        files / "true.npz",
        "--frames",
        "0,2,3",
    )
    picture = torch.from_numpy(np.array(Image.open(files / "out.png"))).permute(2, 0, 1)
    bar = titled(clip(2).frames, "x").shape[2] - 480
    assert picture.shape == (3, 2 * (480 + bar) + 4, 2 * 640 + 4)
    bars = [picture[:, top : top + bar, left : left + 640] for left, top in ((0, 0), (644, 0), (0, 484 + bar))]
    for k, t in enumerate((0, 2, 3)):
        assert torch.equal(bars[k], titled(clip(2).frames, f"frame {t}")[0, :, :bar])
    for left, top in ((0, 0), (644, 0), (0, 484 + bar)):
        r, g, b = picture[:, bar + top + 250, left + 150].tolist()  # halfway between (100, 200) and (200, 300)
        assert r > 150 > max(g, b)
    assert (picture[:, 484 + bar :, 644:] == 24).all()


def test_render_reads_the_truth_of_an_evaluation(files: Path):
    true = load_npz(files / "true.npz")
    PointTruth(
        true.queries, true.xy[:, 1:2], true.visible[:, 1:2], torch.tensor([1]), torch.zeros(0), SIZE, "first"
    ).save(files / "truth.safetensors")
    call("render", files / "a.npz", files / "video", files / "x.png", "--truth", files / "truth.safetensors")
    call("render", files / "a.npz", files / "video", files / "y.png")
    with_truth, without = (np.array(Image.open(files / name)).astype(int) for name in ("x.png", "y.png"))
    changed = np.abs(with_truth - without).max(2) > 60
    half = changed.shape[0] // 2
    assert changed[:half, 644:].any()  # frame 1, and no other
    assert not changed[:half, :640].any()
    assert not changed[half + 2 :].any()


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--title", "one", "--title", "two"], "--title is given 2 times for 1 tracks"),
        (["--frames", "1,x"], "expected whole numbers between commas"),
        (["--frames", "9"], "expected some of 0 to 3"),
        (["--colour", "blue"], "invalid choice"),
        (["--truth", "b.npz"], "give the truth of the same queries"),
        (["--columns", "0", "--title", "a"], "expected one title for each"),
        (["--compare", "c.npz"], "c.npz of (2, 640, 480)"),
    ],
)
def test_render_says_what_is_wrong(files: Path, capsys: Any, monkeypatch: Any, words: list[str], message: str):
    monkeypatch.chdir(files)
    save_npz(tracks_at(1.0, 1.0, count=2), files / "c.npz")
    with pytest.raises(SystemExit) as end:
        cli.main(["render", "a.npz", "video", "out.mp4", *words])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not (files / "out.mp4").exists()


def test_render_refuses_other_endings_before_it_draws(files: Path, capsys: Any):
    with pytest.raises(SystemExit):
        cli.main(["render", str(files / "a.npz"), "no such video", "out.gif"])
    assert "expected a name that ends in .mp4, .m4v, .mov, .png" in capsys.readouterr().err


def make_run(folder: Path, path: str, size: tuple[int, int] = SIZE, **about: Any) -> Path:
    """A run folder, as far as `render` reads it."""
    folder.mkdir()
    save_npz(replace(tracks_at(10.5, 20.5), size=size), folder / "tracks.npz")
    (folder / "summary.json").write_text(json.dumps({"video": {"path": path, **about}}))
    return folder


def test_render_knows_the_video_of_a_run_folder(files: Path, monkeypatch: Any):
    frames = make_run(files / "frames", str(files / "video"))
    path = 'synthetic:{"seed":1,"frames":6,"size":[64,48]}'
    synthetic = make_run(files / "made", path, (64, 48), start=2, hash=open_video(path, start=2).content_hash)
    monkeypatch.chdir(files)
    call("render", frames / "tracks.npz", files / "video", files / "expected.png")
    call("render", frames, files / "a.png")
    call("render", frames, "--trail", "10", files / "b.png")
    call("render", frames / "tracks.npz", "--video", files / "video", files / "c.png")
    call("render", frames, files / "video", files / "d.png")
    expected = (files / "expected.png").read_bytes()
    assert [(files / f"{name}.png").read_bytes() == expected for name in "abcd"] == [True] * 4
    call("render", synthetic, files / "e.png")
    call("render", synthetic / "tracks.npz", "synthetic", files / "f.png")
    call("render", synthetic / "tracks.npz", path, "--start", "2", files / "g.png")
    whole = {(files / f"{name}.png").read_bytes() for name in "efg"}
    assert len(whole) == 1 and whole != {expected}
    call("render", synthetic)
    assert len(decoded(files / "overlay.mp4")[1]) == 4


def test_render_wants_the_video_that_it_cannot_know(files: Path, capsys: Any):
    changed = make_run(files / "changed", str(files / "video"), hash="0")
    clip = files / "clip.mp4"
    save_video(open_video(str(files / "video")).frames, clip, 12.0)
    own = make_run(files / "own", str(clip))
    cases = {
        "does not say which video was tracked; give it": (files / "a.npz",),
        "does not say which synthetic video": (files / "a.npz", "synthetic"),
        "does not show from frame 0 on what": (changed, files / "out.mp4"),
        "is the video that was tracked; give the picture another name": (own, clip),
        "expected at most VIDEO and OUTPUT": (own, clip, files / "out.mp4", "more"),
        "expected at most OUTPUT": (own, clip, files / "out.mp4", "--video", clip),
    }
    before = clip.read_bytes()
    for message, words in cases.items():
        with pytest.raises(SystemExit) as end:
            cli.main(["render", *map(str, words)])
        assert end.value.code == 2 and message in capsys.readouterr().err
    assert clip.read_bytes() == before and not (files / "out.mp4").exists()


@pytest.mark.parametrize("page", ["README.md", "docs/pictures.md"])
def test_documented_commands_are_understood(page: str):
    tools = {"render": render.parse, "picture": picture.parse}
    lines = [line.split() for line in (Path(__file__).parents[1] / page).read_text().splitlines()]
    commands = [line for line in lines if line[:1] == ["dinotrack"] and line[1] in tools]
    assert {line[1] for line in commands} == set(tools)
    for _, tool, *words in commands:
        tools[tool](shlex.split(" ".join(words), comments=True))


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny fit."""
    folder = tmp_path_factory.mktemp("pictures") / "run"
    tiny = [
        "experiment=tiny",
        "steps=2",
        "synthetic.frames=6",
        "synthetic.size=[64,48]",
        "resolution=64",
        "logger=none",
    ]
    cli.main(["fit", *tiny, f"hydra.run.dir={folder}"])
    return folder


def test_pictures_of_a_run_folder(run: Path, tmp_path: Path, capsys: Any):
    call("picture", "similarity", run, tmp_path / "s.png", "--query", "0,30.5,20", "--frames", "4", "--device", "cpu")
    width, height = Image.open(tmp_path / "s.png").size
    assert width == 3 * 320 + 8
    assert height > 240
    call("picture", "best-buddies", run, tmp_path / "b.png", "--kind", "tracklets", "--kind", "refined", "--foreground")
    assert Image.open(tmp_path / "b.png").size[0] == 2 * 320 + 4
    assert "their pass is made again" not in capsys.readouterr().err
    other = tmp_path / "cache"
    call("picture", "pca", run / "tracker.ckpt", tmp_path / "p.mp4", "--device", "cpu", "--cache", other)
    assert f"the features are not in {other}: their pass is made again" in capsys.readouterr().err
    about, frames = decoded(tmp_path / "p.mp4")
    assert about[:3] == ("h264", "yuv420p", 3 * 320 + 8)
    assert len(frames) == 6
    call("picture", "similarity", run, tmp_path / "s.mp4", "--query", "1,30.5,20")
    assert len(decoded(tmp_path / "s.mp4")[1]) == 6
    call("picture", "pca", run, tmp_path / "p.png")
    assert Image.open(tmp_path / "p.png").size[0] == 3 * 320 + 8


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["similarity", "{run}", "--query", "0,300,3"], "lies outside the video"),
        (["similarity", "{run}", "--query", "0,3"], "expected t,x,y"),
        (["similarity", "{run}", "--query", "0,3,3", "--frames", "6"], "expected some of 0 to 5"),
        (["similarity", "nowhere", "--query", "0,3,3"], "nowhere has no tracker.ckpt; give the folder"),
        (["best-buddies", "{run}", "--frames", "1"], "expected two, source and target"),
        (["best-buddies", "{run}", "a.mp4"], "expected a name that ends in .png"),
        (["best-buddies", "{run}", "--count", "0"], "--count 0: expected at least 1"),
        (["pca", "{run}", "--device", "abacus"], "torch knows no such device"),
    ],
)
def test_picture_says_what_is_wrong(
    run: Path, tmp_path: Path, capsys: Any, monkeypatch: Any, words: list[str], message: str
):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(SystemExit) as end:
        cli.main(["picture", *(word.format(run=run) for word in words)])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
