"""Tracks for other programs: parsed back by readers written from those programs' own rules, not from the writers."""

import json
import math
import re
import sys
from dataclasses import replace
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import pytest
import torch

from dinotrack import cli
from dinotrack.data.blender import save_blender
from dinotrack.data.export import load_csv, load_npz, point_ids, save_csv, save_npz, visible_only
from dinotrack.data.keypoints import load_json, load_numbered_json, save_json
from dinotrack.data.nuke import save_nuke, save_nuke_text
from dinotrack.errors import DinotrackError
from dinotrack.structs import Tracks

SIZE, FRAMES = (80, 60), 5


def tracks(n: int = 3) -> Tracks:
    """Random tracks; point 0 is hidden in frames 2 and 3, point 1 has no position in frames 0 and 4."""
    generator = torch.Generator().manual_seed(0)
    xy = torch.rand(n, FRAMES, 2, generator=generator) * torch.tensor(SIZE)
    visible, confidence = torch.ones(n, FRAMES, dtype=torch.bool), torch.rand(n, FRAMES, generator=generator) * 0.9
    if n:
        visible[0, 2:4] = False
    if n > 1:
        xy[1, [0, 4]] = math.nan
        visible[1, [0, 4]] = False
    asked = torch.arange(n) % 2 + 1
    rows = torch.arange(n)
    confidence[rows, asked] = 1.0
    queries = torch.cat([asked[:, None].float(), xy[rows, asked]], 1)
    return Tracks(queries, xy, visible, confidence, SIZE, 29.97)


def call(*words: str | Path) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main([str(word) for word in words])
    assert end.value.code == 0


def same(found: Tracks, expected: Tracks) -> None:
    assert found.size == expected.size
    assert torch.equal(found.visible, expected.visible)
    for name in ("queries", "xy", "confidence"):
        torch.testing.assert_close(getattr(found, name), getattr(expected, name), atol=6e-5, rtol=0, equal_nan=True)


# --- JSON and CSV


@pytest.mark.parametrize("n", [3, 1, 0])
@pytest.mark.parametrize("first_frame", [0, 1001])
def test_json_round_trip(tmp_path: Path, n: int, first_frame: int):
    save_json(tracks(n), tmp_path / "a.json", first_frame=first_frame)
    found = load_json(tmp_path / "a.json")
    same(found, tracks(n))
    assert found.fps == 29.97


def test_json_is_what_the_schema_says(tmp_path: Path):
    expected = tracks()
    save_json(expected, tmp_path / "a.json", ids=[4, 0, 9], first_frame=1)
    content = json.loads((tmp_path / "a.json").read_text(), parse_constant=pytest.fail)
    assert {key: content[key] for key in ("width", "height", "frames", "first_frame")} == {
        "width": 80,
        "height": 60,
        "frames": FRAMES,
        "first_frame": 1,
    }
    assert [point["id"] for point in content["points"]] == [4, 0, 9]
    first, second = content["points"][0], content["points"][1]
    assert [v for _, _, v in first["keypoints"]] == [2, 2, 1, 1, 2]
    assert [v for _, _, v in second["keypoints"]] == [0, 2, 2, 2, 0]
    assert second["keypoints"][0] == [0, 0, 0]
    assert first["keypoints"][2][:2] == pytest.approx(expected.xy[0, 2].tolist(), abs=1e-4)
    assert first["query"]["frame"] == 2  # t = 1, counted from 1


def test_json_that_is_none_of_ours(tmp_path: Path):
    save_json(tracks(), tmp_path / "good.json")
    good = json.loads((tmp_path / "good.json").read_text())
    wrong: dict[str, Any] = {
        "no such keypoints": None,
        "cannot read the keypoints": "{",
        "is None version None": [1],
        "version 2; expected": good | {"version": 2},
        r"is damaged \('points'\)": {key: value for key, value in good.items() if key != "points"},
        "is damaged": good | {"points": [{"keypoints": [[1, 2]], "confidence": [1], "query": None}]},
    }
    for k, (message, content) in enumerate(wrong.items()):
        if content is not None:
            (tmp_path / f"{k}.json").write_text(content if isinstance(content, str) else json.dumps(content))
        with pytest.raises(DinotrackError, match=message):
            load_json(tmp_path / f"{k}.json")


def test_json_has_no_frame_rate_that_is_no_number(tmp_path: Path):
    with pytest.raises(DinotrackError, match="of nan frames per second"):
        save_json(replace(tracks(), fps=math.nan), tmp_path / "a.json")


@pytest.mark.parametrize("n", [3, 1])
def test_csv_round_trip(tmp_path: Path, n: int):
    save_csv(tracks(n), tmp_path / "a.csv", ids=[7, 8, 30][:n])
    same(load_csv(tmp_path / "a.csv", SIZE), tracks(n))


def test_csv_with_lines_left_out_and_in_any_order(tmp_path: Path):
    save_csv(tracks(), tmp_path / "a.csv")
    header, *lines = (tmp_path / "a.csv").read_text().splitlines()
    kept = [line for line in lines if "nan" not in line]
    (tmp_path / "b.csv").write_text("\ufeff" + "\r\n".join([header, *reversed(kept)]), encoding="utf-8")
    found = load_csv(tmp_path / "b.csv", SIZE)
    assert torch.equal(found.xy.isfinite(), tracks().xy.isfinite())
    torch.testing.assert_close(found.xy, tracks().xy, atol=6e-5, rtol=0, equal_nan=True)


def test_csv_of_no_tracks(tmp_path: Path):
    save_csv(tracks(0), tmp_path / "a.csv")
    assert load_csv(tmp_path / "a.csv", SIZE).xy.shape == (0, 0, 2)


HEADER = "point,t,x,y,visible,confidence\n"


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "begins with ''"),
        ("t,x,y\n0,1,2\n", "begins with 't,x,y'"),
        (HEADER + "0,0,1,2,1\n", "has 5 columns"),
        (HEADER + "0,zero,1,2,1,1\n", r"no \.csv file of tracks"),
        (HEADER + "0,-1,1,2,1,1\n", "whole numbers from 0"),
        (HEADER + "0,0.5,1,2,1,1\n", "whole numbers from 0"),
        (HEADER + "0,0,1,2,2,1\n", "0 or 1 for visible"),
        (HEADER + "0,0,1,2,1,1\n0,0,3,4,1,1\n", "two lines of one point"),
        (HEADER + "0,0,1,2,1,1\n1,2000000000,3,4,1,1\n", "at most 100000000 positions"),
        (HEADER + "nan,0,1,2,1,1\n", "whole numbers from 0"),
    ],
)
def test_csv_that_is_none_of_ours(tmp_path: Path, text: str, message: str):
    (tmp_path / "a.csv").write_text(text)
    with pytest.raises(DinotrackError, match=message):
        load_csv(tmp_path / "a.csv", SIZE)


def test_ids_must_tell_points_apart():
    for ids in ([1, 1, 2], [0, 1], [-1, 0, 1]):
        with pytest.raises(DinotrackError, match="expected a different number"):
            point_ids(tracks(), ids)


# --- Nuke


def tcl_words(text: str) -> list[str]:
    """Tcl's list syntax: words between blanks, braces that nest, quotes."""
    words, k = [], 0
    while k < len(text):
        if text[k].isspace():
            k += 1
        elif text[k] == "{":
            depth, start = 1, k + 1
            while depth:
                k += 1
                depth += {"{": 1, "}": -1}.get(text[k], 0)
            words.append(text[start:k])
            k += 1
        elif text[k] == '"':
            end = text.index('"', k + 1)
            words.append(text[k + 1 : end])
            k = end + 1
        else:
            end = re.compile(r"[\s{}]|$").search(text, k).start()  # type: ignore[union-attr]
            words.append(text[k:end])
            k = end
    return words


def curve(text: str) -> dict[int, float]:
    """Keys of a Nuke curve of which each is written with its frame."""
    words = [word for word in text.split() if word not in ("curve", "K")]
    assert len(words) % 2 == 0
    assert all(word.startswith("x") for word in words[::2])
    return {int(x[1:]): float(value) for x, value in zip(words[::2], words[1::2], strict=True)}


def nuke_tracks(path: Path) -> dict[str, dict[str, dict[int, float]]]:
    """Tracks of the Tracker4 of a script."""
    lines = [line for line in path.read_text().splitlines() if not line.startswith("#")]
    words = tcl_words("\n".join(lines))
    assert words[:3] == ["version", "7.0", "v1"]
    assert words[3] == "Tracker4"
    knobs = tcl_words(words[4])
    named = dict(zip(knobs[::2], knobs[1::2], strict=True))
    head, columns, rows = tcl_words(named["tracks"])
    table = [tcl_words(column) for column in tcl_words(columns)]
    count = head.split()
    assert [int(word) for word in count] == [1, len(table), len(tcl_words(rows))]
    assert len(table) == 31
    found = {}
    for row in tcl_words(rows):
        cells = tcl_words(row)
        assert len(cells) == len(table)
        values = {column[3]: cell for column, cell in zip(table, cells, strict=True)}
        found[values["name"]] = {key: curve(values[key]) for key in ("track_x", "track_y", "enable")}
    return found


@pytest.mark.parametrize("first_frame", [1, 1001])
def test_nuke_script_has_every_position_in_nukes_terms(tmp_path: Path, first_frame: int):
    expected = tracks()
    save_nuke(expected, tmp_path / "a.nk", ids=[3, 5, 12], first_frame=first_frame)
    found = nuke_tracks(tmp_path / "a.nk")
    assert list(found) == ["point_0003", "point_0005", "point_0012"]
    for row, curves in enumerate(found.values()):
        known = [t for t in range(FRAMES) if expected.xy[row, t].isfinite().all()]
        assert list(curves["track_x"]) == list(curves["track_y"]) == [first_frame + t for t in known]
        for t in known:
            x, y = expected.xy[row, t].tolist()
            assert curves["track_x"][first_frame + t] == pytest.approx(x, abs=1e-4)
            assert curves["track_y"][first_frame + t] == pytest.approx(60 - y, abs=1e-4)  # from the bottom edge up
    assert found["point_0003"]["enable"] == {first_frame: 1, first_frame + 2: 0, first_frame + 4: 1}


def test_nuke_pixel_centres(tmp_path: Path):
    """The centre of the top-left pixel is (0.5, H - 0.5) in Nuke, that of the bottom-left one (0.5, 0.5)."""
    corners = tracks(2)
    corners.xy[0], corners.xy[1] = torch.tensor([0.5, 0.5]), torch.tensor([0.5, 59.5])
    save_nuke(corners, tmp_path / "a.nk")
    found = nuke_tracks(tmp_path / "a.nk")
    assert (found["point_0000"]["track_x"][1], found["point_0000"]["track_y"][1]) == (0.5, 59.5)
    assert found["point_0001"]["track_y"][1] == 0.5


def test_nuke_script_of_nothing_has_an_empty_table(tmp_path: Path):
    save_nuke(tracks(0), tmp_path / "a.nk")
    assert nuke_tracks(tmp_path / "a.nk") == {}
    lost = tracks(1)
    lost.xy[:] = math.nan
    save_nuke(lost, tmp_path / "b.nk")
    assert nuke_tracks(tmp_path / "b.nk") == {}


def test_nuke_text_is_three_numbers_a_line(tmp_path: Path):
    expected = tracks()
    files = save_nuke_text(visible_only(expected), tmp_path / "a.txt", first_frame=101)
    assert [file.name for file in files] == ["a.0000.txt", "a.0001.txt", "a.0002.txt"]
    for row, file in enumerate(files):
        lines = [line for line in file.read_text().splitlines() if line.strip() and line[0] not in "#;/"]
        keys = [[float(word) for word in re.split("[ ,:]", line)] for line in lines]
        assert [int(t) - 101 for t, _, _ in keys] == expected.visible[row].nonzero().flatten().tolist()
        for t, x, y in keys:
            assert (x, 60 - y) == pytest.approx(tuple(expected.xy[row, int(t) - 101].tolist()), abs=1e-4)
    with pytest.raises(DinotrackError, match="no point has a position"):
        save_nuke_text(tracks(0), tmp_path / "b.txt")


# --- Blender


class Markers(dict[int, SimpleNamespace]):
    def insert_frame(self, frame: int, *, co: tuple[float, float]) -> SimpleNamespace:
        """As Blender: one marker a frame, a later one takes its place; `co` by its name only."""
        self[frame] = SimpleNamespace(co=co, mute=False)
        return self[frame]


class FakeTracks(dict[str, SimpleNamespace]):
    def new(self, *, name: str, frame: int) -> SimpleNamespace:
        """As Blender: a new track has a marker at `frame` already, in the corner."""
        self[name] = SimpleNamespace(markers=Markers({frame: SimpleNamespace(co=(0.0, 0.0), mute=False)}))
        return self[name]


class FakeBlender(ModuleType):
    """The part of `bpy` that the script uses, with one clip that is open and one that can be loaded."""

    def __init__(self, size: tuple[int, int], *, opened: int = 1) -> None:
        super().__init__("bpy")
        self.clip = SimpleNamespace(size=size, tracking=SimpleNamespace(tracks=FakeTracks()))
        self.loaded: list[str] = []
        clips = type("Clips", (list,), {"load": self.load})([self.clip] * opened)
        self.data = SimpleNamespace(movieclips=clips)
        self.context = SimpleNamespace(scene=SimpleNamespace(active_clip=None))

    def load(self, path: str) -> SimpleNamespace:
        self.loaded.append(path)
        return self.clip


def run_in_blender(
    script: Path, patch: pytest.MonkeyPatch, words: tuple[str, ...] = (), size: tuple[int, int] = SIZE, opened: int = 1
) -> FakeBlender:
    blender = FakeBlender(size, opened=opened)
    patch.setitem(sys.modules, "bpy", blender)
    patch.setattr(sys, "argv", ["blender", "--python", str(script), *words])
    exec(compile(script.read_text(), str(script), "exec"), {"__name__": "__main__"})
    return blender


@pytest.mark.parametrize("first_frame", [1, 31])
def test_blender_script_makes_every_marker(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, first_frame: int):
    expected = tracks()
    save_blender(expected, tmp_path / "a.py", ids=[0, 5, 7], first_frame=first_frame)
    found = run_in_blender(tmp_path / "a.py", monkeypatch).clip.tracking.tracks
    assert list(found) == ["point_0000", "point_0005", "point_0007"]
    for row, track in enumerate(found.values()):
        assert list(track.markers) == [first_frame + t for t in range(FRAMES + 1)]
        for t in range(FRAMES):
            marker = track.markers[first_frame + t]
            assert marker.mute is not bool(expected.visible[row, t])
            if expected.xy[row, t].isfinite().all():
                x, y = expected.xy[row, t].tolist()
                assert (marker.co[0] * 80, (1 - marker.co[1]) * 60) == pytest.approx((x, y), abs=1e-4)
        assert track.markers[first_frame + FRAMES].mute
    held = found["point_0005"].markers
    assert held[first_frame].co == held[first_frame + 1].co  # where it will first be
    assert held[first_frame + 4].co == held[first_frame + 3].co  # where it last was


def test_blender_pixel_centres(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    """The centre of the top-left pixel lies half a pixel from the left and from the top of a clip whose origin is below."""
    corner = tracks(1)
    corner.xy[0] = torch.tensor([0.5, 0.5])
    save_blender(corner, tmp_path / "a.py")
    markers = run_in_blender(tmp_path / "a.py", monkeypatch).clip.tracking.tracks["point_0000"].markers
    assert markers[1].co == pytest.approx((0.5 / 80, 59.5 / 60), abs=1e-6)


def test_blender_script_chooses_its_clip(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Any):
    save_blender(tracks(1), tmp_path / "a.py")
    monkeypatch.chdir(tmp_path)
    loaded = run_in_blender(tmp_path / "a.py", monkeypatch, ("--", "clip.mp4"), opened=0).loaded
    assert loaded == [str(tmp_path / "clip.mp4")]
    with pytest.raises(RuntimeError, match="2 movie clips are open"):
        run_in_blender(tmp_path / "a.py", monkeypatch, opened=2)
    run_in_blender(tmp_path / "a.py", monkeypatch, size=(160, 120))  # a proxy or an upscaled clip: shares stay
    assert not capsys.readouterr().out
    run_in_blender(tmp_path / "a.py", monkeypatch, size=(60, 80))
    assert "the clip is 60x80, the tracks are of 80x60" in capsys.readouterr().out


@pytest.mark.parametrize("name", ['"""; raise SystemExit #.py', "{data!r}.py", "a\nb.py"])
def test_hostile_names_do_not_enter_the_script(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, name: str):
    save_blender(tracks(1), tmp_path / name)
    assert "point_0000" in run_in_blender(tmp_path / name, monkeypatch).clip.tracking.tracks


def test_blender_script_of_points_without_positions_makes_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch):
    lost = tracks(2)
    lost.xy[0] = math.nan
    save_blender(lost, tmp_path / "a.py")
    assert list(run_in_blender(tmp_path / "a.py", monkeypatch).clip.tracking.tracks) == ["point_0001"]


# --- dinotrack convert


def test_convert_goes_round(tmp_path: Path):
    """NPZ to JSON to CSV to NPZ."""
    save_npz(tracks(), tmp_path / "a.npz")
    call("convert", tmp_path / "a.npz", tmp_path / "b.json", "--first-frame", "1")
    call("convert", tmp_path / "b.json", tmp_path / "c.csv")
    call("convert", tmp_path / "c.csv", tmp_path / "d.npz", "--size", "80x60", "--fps", "29.97")
    same(load_npz(tmp_path / "d.npz"), tracks())


def test_numbers_of_points_and_frames_go_round(tmp_path: Path, capsys: Any):
    save_npz(tracks(), tmp_path / "a.npz")
    call("convert", tmp_path / "a.npz", tmp_path / "b.json", "--points", "2,1", "--first-frame", "1001")
    call("convert", tmp_path / "b.json", tmp_path / "c.nk")
    found = nuke_tracks(tmp_path / "c.nk")
    assert list(found) == ["point_0002", "point_0001"]
    assert list(found["point_0001"]["track_x"]) == [1002, 1003, 1004]
    call("convert", tmp_path / "b.json", tmp_path / "d.csv")
    call("convert", tmp_path / "d.csv", tmp_path / "e.json", "--size", "80x60")
    assert load_numbered_json(tmp_path / "e.json")[1:] == ([1, 2], 0)
    call("convert", tmp_path / "b.json", tmp_path / "f.json", "--points", "1", "--first-frame", "7")
    same(load_json(tmp_path / "f.json"), load_json(tmp_path / "b.json")[[1]])
    assert load_numbered_json(tmp_path / "f.json")[1:] == ([1], 7)
    with pytest.raises(SystemExit):
        cli.main(["convert", str(tmp_path / "b.json"), str(tmp_path / "g.nk"), "--points", "0"])
    assert "b.json has points 2, 1" in capsys.readouterr().err


def test_a_run_that_began_later_has_the_frames_of_the_whole_clip(tmp_path: Path, capsys: Any):
    folder = tmp_path / "run.csv"  # a folder, whatever it is called
    folder.mkdir()
    save_npz(tracks(), folder / "tracks.npz")
    (folder / "summary.json").write_text(json.dumps({"video": {"path": "clip.mp4", "start": 30}}))
    for number, source in enumerate((folder, folder / "tracks.npz")):
        call("convert", source, tmp_path / f"{number}.nk")
        assert capsys.readouterr().err == "--first-frame 31: the run began at start=30\n"
        assert list(nuke_tracks(tmp_path / f"{number}.nk")["point_0001"]["track_x"]) == [32, 33, 34]
    call("convert", folder, tmp_path / "told.nk", "--first-frame", "1")
    assert list(nuke_tracks(tmp_path / "told.nk")["point_0001"]["track_x"]) == [2, 3, 4]
    call("convert", folder, tmp_path / "a.json")
    assert load_numbered_json(tmp_path / "a.json")[2] == 0 and not capsys.readouterr().err
    (folder / "summary.json").write_text("{")
    with pytest.raises(SystemExit):
        cli.main(["convert", str(folder), str(tmp_path / "b.nk")])
    assert "is damaged" in (said := capsys.readouterr().err) and "--first-frame" in said


def test_json_whose_numbers_do_not_tell_points_apart(tmp_path: Path):
    save_json(tracks(), tmp_path / "a.json")
    good = (tmp_path / "a.json").read_text()
    for wrong in ('"id": 0', '"id": "1"', '"id": null', '"id": -3'):
        (tmp_path / "b.json").write_text(good.replace('"id": 1', wrong))
        with pytest.raises(DinotrackError, match=r"b.json (has points \[0, (0|-3), 2\]|is damaged)"):
            load_json(tmp_path / "b.json")


def test_convert_keeps_the_numbers_of_chosen_points(tmp_path: Path, capsys: Any):
    save_npz(tracks(), tmp_path / "a.npz")
    call("convert", tmp_path / "a.npz", tmp_path / "b.nk", "--points", "2,0", "--visible-only", "--first-frame", "1001")
    found = nuke_tracks(tmp_path / "b.nk")
    assert list(found) == ["point_0002", "point_0000"]
    assert list(found["point_0000"]["track_x"]) == [1001, 1002, 1005]
    assert capsys.readouterr().out.split() == [str(tmp_path / "b.nk")]
    call("convert", tmp_path / "a.npz", tmp_path / "c.dat", "--format", "blender", "--points", "1")
    compile((tmp_path / "c.dat").read_text(), "c.dat", "exec")
    call("convert", tmp_path / "a.npz", tmp_path / "d.txt", "--points", "2")
    assert [file.name for file in tmp_path.glob("d*")] == ["d.0002.txt"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["b.xyz"], "expected a name that ends in .npz, .csv"),
        (["b.csv", "--first-frame", "1"], "frames of .csv always count from 0"),
        (["b.json", "--size", "80x60"], "--size is needed for tracks in a .csv, and only there"),
        (["b.json", "--points", "0,0"], "a number is given twice"),
        (["b.json", "--points", "a"], "expected whole numbers between commas"),
        (["b.json", "--points", "0,3"], "--points 3: "),
    ],
)
def test_convert_says_what_is_wrong(tmp_path: Path, capsys: Any, words: list[str], message: str):
    save_npz(tracks(), tmp_path / "a.npz")
    with pytest.raises(SystemExit) as end:
        cli.main(["convert", str(tmp_path / "a.npz"), str(tmp_path / words[0]), *words[1:]])
    assert end.value.code == 2
    assert message in capsys.readouterr().err
    assert [file.name for file in tmp_path.iterdir()] == ["a.npz"]
