"""The page's making: what goes in comes out of it again, nothing of it is code, and what does not fit is named in one line."""

import base64
import hashlib
import io
import json
import re
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from dinotrack import cli
from dinotrack.data import synthetic_clip
from dinotrack.data.export import save_npz
from dinotrack.errors import DinotrackError
from dinotrack.structs import Tracks, Video
from dinotrack.viewer import Objects, TrackSet, open_sources, read_objects, write_view
from dinotrack.viewer.points import unite

ARRAYS = ("queries", "xy", "visible", "confidence")
HOSTILE = "</script><img src=x onerror=alert(1)>&\u2028'\""
SYNTHETIC = 'synthetic:{"seed":1,"frames":5,"size":[48,32]}'


def video(frames: int = 5, size: tuple[int, int] = (48, 32), path: str = "clip.mp4") -> Video:
    generator = torch.Generator().manual_seed(0)
    blocks = torch.randint(0, 256, (frames, 3, size[1] // 8, size[0] // 8), generator=generator, dtype=torch.uint8)
    return Video(blocks.repeat_interleave(8, 2).repeat_interleave(8, 3), 24.0, path=path)


def tracks(count: int = 4, frames: int = 5, size: tuple[int, int] = (48, 32), seed: int = 0) -> Tracks:
    generator = torch.Generator().manual_seed(seed)
    xy = torch.rand(count, frames, 2, generator=generator) * torch.tensor(size)
    visible = torch.rand(count, frames, generator=generator) > 0.4
    queries = torch.cat([torch.zeros(count, 1), xy[:, 0]], 1)
    return Tracks(queries, xy, visible, torch.rand(count, frames, generator=generator), size, 24.0)


class Scripts(HTMLParser):
    """Elements of a page by what a browser would make of it: texts of scripts and styles, and all tags."""

    def __init__(self, page: str) -> None:
        super().__init__()
        self.tags: list[str] = []
        self.inside = False
        self.texts: list[tuple[dict[str, str | None], str]] = []
        self.feed(page)

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.tags.append(tag)
        self.texts.append((dict(attrs) | {"tag": tag}, ""))
        self.inside = True

    def handle_endtag(self, tag: str) -> None:
        self.inside = False

    def handle_data(self, data: str) -> None:
        if self.inside:
            attributes, text = self.texts.pop()
            self.texts.append((attributes, text + data))

    def of(self, **wanted: str) -> list[str]:
        return [text for attributes, text in self.texts if wanted.items() <= attributes.items()]


def parsed(path: Path) -> tuple[dict[str, Any], list[Image.Image], Scripts]:
    scripts = Scripts(path.read_text(encoding="utf-8"))
    (data,) = scripts.of(id="data")
    pictures = [Image.open(io.BytesIO(base64.b64decode(text))) for text in scripts.of(**{"class": "frame"})]
    return json.loads(data), pictures, scripts


def array(text: str, kind: str, *shape: int) -> np.ndarray:
    return np.frombuffer(base64.b64decode(text), kind).reshape(shape)


def test_arrays_and_frames_come_out_as_they_went_in(tmp_path: Path) -> None:
    clip, expected = video(), tracks()
    write_view(clip, [TrackSet("a", expected)], tmp_path / "view.html")
    data, pictures, _ = parsed(tmp_path / "view.html")
    (found,) = data["sets"]
    assert np.array_equal(array(data["queries"], "<f4", 4, 3), expected.queries.numpy())
    assert np.array_equal(array(found["xy"], "<f4", 4, 5, 2), expected.xy.numpy())
    assert np.array_equal(array(found["visible"], "u1", 4, 5), expected.visible.numpy())
    assert np.array_equal(array(found["confidence"], "<f4", 4, 5), expected.confidence.numpy())
    assert (data["frames"], data["size"], data["fps"], data["points"]) == (5, [48, 32], 24.0, 4)
    assert len(pictures) == 5
    for picture, frame in zip(pictures, clip.frames, strict=True):
        middles = np.asarray(picture)[4::8, 4::8].astype(int)  # colour is kept at half the resolution
        assert np.abs(middles - frame.permute(1, 2, 0).numpy()[4::8, 4::8]).mean() < 12


@pytest.mark.parametrize(("side", "kept"), [(24, (24, 16)), (47, (47, 31)), (960, (48, 32))])
def test_long_sides_are_capped_and_small_videos_stay(tmp_path: Path, side: int, kept: tuple[int, int]) -> None:
    write_view(video(), [TrackSet("a", tracks())], tmp_path / "view.html", max_side=side)
    data, pictures, _ = parsed(tmp_path / "view.html")
    assert {picture.size for picture in pictures} == {kept}
    assert data["size"] == [48, 32]  # positions stay in the video's own pixels


def test_hostile_names_stay_text(tmp_path: Path) -> None:
    objects = Objects((HOSTILE,), torch.zeros(4, dtype=torch.long))
    sets = [TrackSet(HOSTILE, tracks()), TrackSet("b", tracks())]
    write_view(video(path=f"/{HOSTILE}"), sets, tmp_path / "view.html", objects=objects)
    data, _, scripts = parsed(tmp_path / "view.html")
    assert data["objects"]["names"] == [HOSTILE]
    assert data["sets"][0]["name"] == HOSTILE
    assert "img" not in scripts.tags
    assert scripts.tags.count("script") == 1 + 5 + 1


@pytest.mark.parametrize(
    ("path", "title"),
    [
        ("/a/horse/clip.mp4", "clip.mp4"),
        ("/a/horse/video", "horse/video"),
        ("", "video"),
        (SYNTHETIC, "synthetic video"),
    ],
)
def test_the_title_says_which_video(tmp_path: Path, path: str, title: str) -> None:
    write_view(video(path=path), [TrackSet("a", tracks())], tmp_path / "view.html")
    assert parsed(tmp_path / "view.html")[0]["title"] == title


def test_the_policy_allows_this_script_and_style_and_nothing_else(tmp_path: Path) -> None:
    write_view(video(), [TrackSet("a", tracks())], tmp_path / "view.html")
    page = (tmp_path / "view.html").read_text(encoding="utf-8")
    (policy,) = re.findall(r'Content-Security-Policy" content="([^"]*)"', page)
    directives = dict(part.strip().split(" ", 1) for part in policy.split(";"))
    _, _, scripts = parsed(tmp_path / "view.html")
    code = next(
        text for attributes, text in scripts.texts if attributes.keys() == {"tag"} and attributes["tag"] == "script"
    )
    (style,) = scripts.of(tag="style")
    for name, text in (("script-src", code), ("style-src", style)):
        digest = base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()
        assert directives.pop(name) == f"'sha256-{digest}'"
    assert directives == {"default-src": "'none'", "img-src": "data:", "base-uri": "'none'", "form-action": "'none'"}


def test_what_is_not_finite_becomes_no_broken_json(tmp_path: Path) -> None:
    broken = tracks()
    broken.xy[0, 2] = torch.nan
    broken.confidence[:] = torch.nan
    write_view(video(), [TrackSet("a", broken)], tmp_path / "view.html")
    data, _, _ = parsed(tmp_path / "view.html")
    assert data["confidence"] == [0.0, 1.0]
    assert np.isnan(array(data["sets"][0]["xy"], "<f4", 4, 5, 2)[0, 2]).all()


def test_files_are_matched_by_their_queries_in_any_order() -> None:
    a = tracks(6)
    b = a[[4, 2, 5, 0]]
    extra = tracks(2, seed=1)
    joined = [torch.cat([getattr(part, name) for part in (b, extra)]) for name in ARRAYS]
    b = Tracks(*joined, a.size, a.fps)
    points = unite([TrackSet("a", a), TrackSet("b", b)])
    assert points.rows.tolist() == [[0, 1, 2, 3, 4, 5, -1, -1], [3, -1, 1, -1, 0, 2, 4, 5]]
    assert torch.equal(points.queries, torch.cat([a.queries, extra.queries]))


def test_a_query_that_is_asked_twice_is_matched_in_order() -> None:
    a = tracks(2)[[0, 0, 1]]
    assert unite([TrackSet("a", a), TrackSet("b", a[[0, 1]])]).rows.tolist() == [[0, 1, 2], [0, 1, -1]]


def test_queries_of_another_frame_are_others() -> None:
    a, b = tracks(1), tracks(1)
    b.queries[0, 0] = 1
    assert unite([TrackSet("a", a), TrackSet("b", b)]).rows.tolist() == [[0, -1], [-1, 0]]


def test_a_second_file_is_nan_where_it_lacks_a_point(tmp_path: Path) -> None:
    a = tracks()
    write_view(video(), [TrackSet("a", a), TrackSet("b", a[[2]])], tmp_path / "view.html")
    data, _, _ = parsed(tmp_path / "view.html")
    xy = array(data["sets"][1]["xy"], "<f4", 4, 5, 2)
    assert np.array_equal(xy[2], a.xy[2].numpy())
    assert np.isnan(xy[[0, 1, 3]]).all()
    assert array(data["sets"][1]["rows"], "<i4", 4).tolist() == [-1, -1, 0, -1]


@pytest.mark.parametrize("empty", [[True, False], [False, True], [True, True]])
def test_files_without_tracks_are_pages_too(tmp_path: Path, empty: list[bool]) -> None:
    sets = [TrackSet("x", tracks(0 if none else 4)) for none in empty]
    write_view(video(), sets, tmp_path / "view.html")
    assert parsed(tmp_path / "view.html")[0]["points"] == (0 if all(empty) else 4)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"path": "tracks.npz"}, "ends in .html"),
        ({"max_side": 2}, "max_side=2"),
        ({"quality": 0}, "quality=0"),
        ({"sets": [TrackSet("a", tracks(frames=4))]}, "give the video that was tracked"),
        ({"sets": []}, "0 files of tracks"),
        ({"sets": [TrackSet("a", tracks()), TrackSet("b", tracks(size=(64, 48)))]}, "compare tracks of one video"),
    ],
)
def test_what_does_not_fit_is_named_and_leaves_nothing(tmp_path: Path, change: dict[str, Any], message: str) -> None:
    given = {"sets": [TrackSet("a", tracks())], "path": "view.html"} | change
    sets, path = given.pop("sets"), tmp_path / given.pop("path")
    with pytest.raises(DinotrackError, match=message) as caught:
        write_view(video(), sets, path, **given)
    assert "\n" not in str(caught.value)
    assert not list(tmp_path.iterdir())


def test_labels_maps_masks_and_names_say_which_object(tmp_path: Path) -> None:
    clip, points = video(), tracks()
    np.save(tmp_path / "labels.npy", np.array([7, -1, 10, 7]))
    found = read_objects(tmp_path / "labels.npy", points, clip)
    assert (found.names, found.of.tolist()) == (("7", "10"), [0, -1, 1, 0])
    maps = np.zeros((5, 32, 48), np.uint8)
    maps[0, :, 24:] = 2
    np.save(tmp_path / "maps.npy", maps)
    right = (points.queries[:, 1] >= 24).tolist()
    assert read_objects(tmp_path / "maps.npy", points, clip).of.tolist() == [0 if there else -1 for there in right]
    (tmp_path / "masks").mkdir()
    for t, each in enumerate(maps > 0):
        Image.fromarray(each.astype(np.uint8) * 255).save(tmp_path / "masks" / f"{t}.png")
    assert read_objects(tmp_path / "masks", points, clip).of.tolist() == [0 if there else -1 for there in right]
    (tmp_path / "names.csv").write_text("point,object\n3,rider\n0,horse\n1,\n")
    found = read_objects(tmp_path / "names.csv", points, clip)
    assert (found.names, found.of.tolist()) == (("horse", "rider"), [0, -1, -1, 1])


@pytest.mark.parametrize(
    ("name", "content", "message"),
    [
        ("gone.npy", None, "no such objects"),
        ("gone.csv", None, "no such objects"),
        ("text.npy", b"hello", "cannot read the objects"),
        ("far.csv", b"point,object\n4,horse\n", "line 2: point is '4'"),
        ("other.csv", b"id,object\n1,horse\n", "line 2: point is ''"),
        ("floats.npy", np.zeros(4), "float64"),
        ("short.npy", np.zeros(3, int), r"expected whole numbers \(4,\)"),
    ],
)
def test_objects_that_cannot_be_read(tmp_path: Path, name: str, content: Any, message: str) -> None:
    if isinstance(content, bytes):
        (tmp_path / name).write_bytes(content)
    elif content is not None:
        np.save(tmp_path / name, content)
    with pytest.raises(DinotrackError, match=message) as caught:
        read_objects(tmp_path / name, tracks(), video())
    assert "\n" not in str(caught.value)


@pytest.fixture
def run_folder(tmp_path: Path) -> Path:
    """What `dinotrack run` leaves of a synthetic video, as far as the viewer reads it."""
    return make_run(tmp_path / "run")


def make_run(folder: Path, path: str = SYNTHETIC, **about: Any) -> Path:
    folder.mkdir()
    clip = synthetic_clip(seed=1, frames=5, size=(48, 32)).video
    save_npz(tracks(), folder / "tracks.npz")
    summary = {"video": {"path": path, "start": 0, "hash": clip.content_hash} | about}
    (folder / "summary.json").write_text(json.dumps(summary))
    return folder


def called(*arguments: str | Path) -> int:
    with pytest.raises(SystemExit) as end:
        cli.main(["view", *map(str, arguments)])
    assert isinstance(end.value.code, int)
    return end.value.code


def test_view_writes_a_page_into_the_run_folder(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(run_folder) == 0
    assert capsys.readouterr().out.strip() == str(run_folder / "view.html")
    data, pictures, _ = parsed(run_folder / "view.html")
    assert (data["title"], data["sets"][0]["name"], len(pictures)) == ("synthetic video", "run", 5)


def test_a_name_that_is_no_text_is_shown_as_far_as_it_is(tmp_path: Path) -> None:
    name = b"a\xff.mp4".decode("utf-8", "surrogateescape")  # as Python has what a file system says
    write_view(video(path=name), [TrackSet(name, tracks())], tmp_path / "view.html")
    data, _, _ = parsed(tmp_path / "view.html")
    assert (data["title"], data["sets"][0]["name"]) == (name, name)
    assert "<title>a?.mp4" in (tmp_path / "view.html").read_text(encoding="utf-8")


def test_view_takes_a_file_another_to_compare_and_objects(run_folder: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other")
    np.save(tmp_path / "labels.npy", np.arange(4))
    options = ["--compare", other, "--objects", tmp_path / "labels.npy", "--output", tmp_path / "deep" / "a.html"]
    assert called(run_folder / "tracks.npz", *options) == 0
    data, _, _ = parsed(tmp_path / "deep" / "a.html")
    assert [each["name"] for each in data["sets"]] == ["run", "other"]
    assert data["objects"]["names"] == ["0", "1", "2", "3"]


def test_a_part_of_a_video_begins_at_its_start(tmp_path: Path) -> None:
    longer = SYNTHETIC.replace('"frames":5', '"frames":9')
    hashed = synthetic_clip(seed=1, frames=9, size=(48, 32)).video[3:8].content_hash
    folder = make_run(tmp_path / "run", longer, start=3, hash=hashed)
    opened, _ = open_sources(folder)
    assert (opened.start, opened.content_hash) == (3, hashed)
    again, _ = open_sources(folder, video=longer, start=2)
    assert again.start == 2
    assert open_sources(folder, video="synthetic")[0].content_hash == hashed


def test_a_video_that_moved_or_changed_wants_its_place(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    moved = make_run(tmp_path / "moved", str(tmp_path / "clip.mp4"))
    changed = make_run(tmp_path / "changed", hash="0")
    unknown = make_run(tmp_path / "unknown", "")
    damaged = make_run(tmp_path / "damaged")
    (damaged / "summary.json").write_text("{")
    cases = {
        moved: "is not there any more",
        changed: "does not show",
        unknown: "does not say which",
        damaged: "is damaged",
    }
    for folder, message in cases.items():
        assert called(folder) == 2
        said = capsys.readouterr().err
        assert message in said
        assert "--video" in said
        assert said.count("\n") == 1
        caplog.clear()
        assert called(folder, "--video", SYNTHETIC) == (2 if folder == damaged else 0)
        warned = [record.getMessage() for record in caplog.records]
        assert len(warned) == (folder == changed) and all("encoded again; else give another" in each for each in warned)
        capsys.readouterr()


def test_a_run_of_another_video_is_not_compared(run_folder: Path, tmp_path: Path) -> None:
    other = make_run(tmp_path / "other", hash="0")
    with pytest.raises(DinotrackError, match=r"what .*other was tracked in"):
        open_sources(run_folder, other)


def test_folders_without_tracks_and_files_that_are_none(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "fit").mkdir()
    (tmp_path / "text.npz").write_text("hello")
    cases = {"fit": "has no tracks.npz", "text.npz": "is no .npz file of tracks", "gone": "no such tracks"}
    for source, message in cases.items():
        assert called(tmp_path / source, "--video", SYNTHETIC) == 2
        said = capsys.readouterr().err
        assert message in said
        assert said.count("\n") == 1


def test_another_video_is_refused(run_folder: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert called(run_folder, "--video", SYNTHETIC.replace("[48,32]", "[64,48]")) == 2
    assert "give the video that was tracked" in capsys.readouterr().err
