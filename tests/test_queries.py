"""Queries from grids, files, texts and lists; each mistake names its row."""

from pathlib import Path

import numpy as np
import pytest
import torch

from dinotrack.data.queries import check_queries, read_queries
from dinotrack.errors import DinotrackError
from dinotrack.structs import Video

ROWS = [[0.0, 10.5, 20.0], [5.0, 30.0, 40.0]]


def clip(width: int = 100, height: int = 70, masks: bool = False) -> Video:
    frames = torch.zeros(8, 3, height, width, dtype=torch.uint8)
    left = (torch.arange(width) < 40).expand(8, height, width) & (torch.arange(8) < 4)[:, None, None]
    return Video(frames, masks=left) if masks else Video(frames)


def expect(message: str, spec, video: Video | None = None, **kwargs) -> None:
    with pytest.raises(DinotrackError, match=message) as caught:
        read_queries(spec, video or clip(), **kwargs)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize("step", [1, 7, 30, 33.5, 140])
def test_grid_against_its_formula(step: float):
    expected = []
    y = step / 2
    while y < 70:
        x = step / 2
        while x < 100:
            expected.append([3.0, x, y])
            x += step
        y += step
    if expected:
        assert torch.allclose(read_queries(f"grid:{step}", clip(), frame=3), torch.tensor(expected))
    else:
        expect("leaves no point on a 100x70 video", f"grid:{step}")


def test_masked_grid_keeps_the_foreground():
    queries = read_queries("grid:10", clip(masks=True), frame=2, masked=True)
    assert queries[:, 1].unique().tolist() == [5, 15, 25, 35]
    assert len(queries) == 4 * 7
    assert len(read_queries("grid:10", clip(masks=True), frame=2)) == 70


def test_grids_that_cannot_be():
    for spec in ("grid:", "grid:x", "grid:0", "grid:-3", "grid:nan", "grid:inf", "grid:0.001"):
        expect("expected grid:STEP", spec)
    expect(r"expected a frame in 0\.\.7", "grid:10", frame=8)
    expect(r"expected a frame in 0\.\.7", "grid:10", frame=-1)
    expect("has no masks", "grid:10", masked=True)
    expect("foreground of frame 5", "grid:10", clip(masks=True), frame=5, masked=True)
    expect("masked queries need a grid", ROWS, clip(masks=True), masked=True)


def test_every_spec_gives_the_same_rows(tmp_path: Path):
    np.save(tmp_path / "q.npy", np.array(ROWS))
    specs = [
        "0,10.5,20;5,30,40",
        " 0, 10.5, 20; 5, 30, 40; ",
        ROWS,
        tuple(tuple(row) for row in ROWS),
        [[0, "10.5", 20], [5, 30, 40]],
        np.array(ROWS),
        torch.tensor(ROWS, dtype=torch.float64),
        tmp_path / "q.npy",
        str(tmp_path / "q.npy"),
    ]
    for spec in specs:
        queries = read_queries(spec, clip())
        assert queries.dtype == torch.float32
        assert queries.tolist() == ROWS


@pytest.mark.parametrize(
    "text",
    [
        "0,10.5,20\n5,30,40\n",
        "t,x,y\n0,10.5,20\n5,30,40",
        "\ufeff# t, x, y\r\n0, 10.5, 20\r\n\r\n5, 30, 40\r\n",
        "y,name,x,T\n20,ear,10.5,0\n40,tail,30,5\n",
    ],
)
def test_csv(tmp_path: Path, text: str):
    (tmp_path / "q.CSV").write_bytes(text.encode())
    assert read_queries(tmp_path / "q.CSV", clip()).tolist() == ROWS


def test_files_that_hold_no_queries(tmp_path: Path):
    expect(r"no such queries: .*gone\.npy", tmp_path / "gone.npy")
    expect(r"no such queries: .*gone\.csv", str(tmp_path / "gone.csv"))
    for name, content, message in [
        ("a.npy", b"no array", r"a\.npy|cannot read"),
        ("b.npy", b"", "cannot read"),
        ("c.csv", b"\xff\xfe\x00", "cannot read"),
        ("d.csv", b"", "no queries"),
        ("e.csv", b"t,x,y\n", "no queries"),
        ("f.csv", b"a,b,c\n0,1,2\n", "has columns a,b,c; expected t,x,y"),
        ("g.csv", b"0,1,2\n0,one,2\n", r"g\.csv, row 1 is \['0', 'one', '2'\]"),
        ("h.csv", b"0,1,2\n0,1\n", r"h\.csv, row 1"),
        ("i.csv", b"t,x,y\n0,1,2,3\n", r"i\.csv, row 0"),
        ("j.csv", b"0;1;2\n", "expected"),
    ]:
        (tmp_path / name).write_bytes(content)
        expect(message, tmp_path / name)
    np.save(tmp_path / "k.npy", np.array([["a", "b", "c"]]))
    expect("expected numbers", tmp_path / "k.npy")
    np.save(tmp_path / "l.npy", np.array([{}]), allow_pickle=True)
    expect(r"l\.npy", tmp_path / "l.npy")


def test_specs_that_are_none():
    for spec in ("hello", "0,1", "0,1,2;3,4", "file.txt", "0,1,2,3"):
        expect("expected three numbers t, x, y", spec)
    for spec in ("", [], np.zeros((0, 3)), torch.zeros(0, 3)):
        expect("no queries", spec)
    expect("row 1 is", [[0, 1, 2], [0, 1]])
    expect("row 0 is 0", [0, 1, 2])
    expect(r"shape \(3,\)", torch.tensor([0.0, 1.0, 2.0]))
    expect(r"shape \(1, 2\)", np.zeros((1, 2)))


@pytest.mark.parametrize(
    ("row", "message"),
    [
        ([0.0, float("nan"), 2.0], "is not finite"),
        ([float("inf"), 1.0, 2.0], "is not finite"),
        ([1.5, 1.0, 2.0], "between frames"),
        ([8.0, 1.0, 2.0], r"\(8, 1, 2\) is on no frame of the video; expected t in 0\.\.7"),
        ([-1.0, 1.0, 2.0], "is on no frame"),
        ([0.0, -0.1, 2.0], "outside"),
        ([0.0, 100.1, 2.0], r"\(0, 100\.1, 2\) lies outside the video; expected x in \[0, 100\], y in \[0, 70\]"),
        ([0.0, 1.0, -2.0], "outside"),
        ([0.0, 1.0, 70.5], "outside"),
    ],
)
def test_check_names_the_first_wrong_row(row: list[float], message: str):
    queries = torch.tensor([[0.0, 1.0, 2.0], row, row])
    with pytest.raises(DinotrackError, match=f"query 1 .*{message}|{message}") as caught:
        check_queries(queries, 8, (100, 70))
    assert str(caught.value).startswith("query 1 ")
    assert "\n" not in str(caught.value)


def test_check_lets_pass():
    check_queries(torch.tensor([[0.0, 0.0, 0.0], [7.0, 100.0, 70.0]]), 8, (100, 70))
    check_queries(torch.tensor([[7, 100, 70]]), 8, (100, 70))
    check_queries(torch.zeros(0, 3), 8, (100, 70))


@pytest.mark.parametrize("shape", [(3,), (0,), (2, 2), (1, 2, 3)])
def test_check_rejects_other_shapes(shape: tuple[int, ...]):
    with pytest.raises(DinotrackError, match=r"expected \(N, 3\)"):
        check_queries(torch.zeros(shape), 8, (100, 70))
