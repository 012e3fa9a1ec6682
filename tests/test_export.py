"""Tracks to .npz and .csv: what is written is what NumPy and csv read, and what is no such file is named."""

import csv
from dataclasses import fields
from pathlib import Path

import numpy as np
import pytest
import torch

from dinotrack.data.export import load_npz, save_csv, save_npz
from dinotrack.errors import DinotrackError
from dinotrack.structs import Tracks


def tracks(n: int = 3, t: int = 4) -> Tracks:
    generator = torch.Generator().manual_seed(0)
    return Tracks(
        queries=torch.rand(n, 3, generator=generator),
        xy=torch.rand(n, t, 2, generator=generator) * 100 - 10,
        visible=torch.rand(n, t, generator=generator) > 0.5,
        confidence=torch.rand(n, t, generator=generator),
        size=(80, 60),
        fps=29.97,
    )


def same(a: Tracks, b: Tracks) -> bool:
    pairs = [(getattr(a, f.name), getattr(b, f.name)) for f in fields(Tracks)]
    return all(torch.equal(x, y) and x.dtype == y.dtype if isinstance(x, torch.Tensor) else x == y for x, y in pairs)


@pytest.mark.parametrize("n", [3, 0])
@pytest.mark.parametrize("name", ["a.npz", "without_ending", "other.bin"])
def test_npz_round_trip(tmp_path: Path, n: int, name: str):
    save_npz(tracks(n), tmp_path / "new" / name)
    assert [f.name for f in (tmp_path / "new").iterdir()] == [name]
    assert same(load_npz(tmp_path / "new" / name), tracks(n))


def test_npz_as_numpy_sees_it(tmp_path: Path):
    save_npz(tracks(), tmp_path / "a.npz")
    with np.load(tmp_path / "a.npz", allow_pickle=False) as file:
        assert set(file.files) == {"queries", "tracks", "visible", "confidence", "size", "fps"}
        assert file["visible"].dtype == np.bool_
        assert file["tracks"].shape == (3, 4, 2)
        assert file["size"].tolist() == [80, 60]
        assert file["fps"] == 29.97
        np.testing.assert_array_equal(file["tracks"], tracks().xy.numpy())


def test_half_precision_tracks_are_written_in_full(tmp_path: Path):
    full = tracks()
    half = Tracks(full.queries, full.xy.bfloat16(), full.visible, full.confidence.half(), full.size, full.fps)
    save_npz(half, tmp_path / "a.npz")
    save_csv(half, tmp_path / "a.csv")
    assert torch.equal(load_npz(tmp_path / "a.npz").xy, half.xy.float())


def test_files_that_are_no_tracks(tmp_path: Path):
    good = {"queries": np.zeros((2, 3)), "tracks": np.zeros((2, 5, 2)), "visible": np.ones((2, 5), bool)}
    good |= {"confidence": np.zeros((2, 5)), "size": np.array([8, 6]), "fps": np.array(25.0)}
    np.savez(tmp_path / "good.npz", **good)
    assert len(load_npz(tmp_path / "good.npz")) == 2
    wrong = {
        "no such tracks": None,
        "holds no tracks": {"queries": good["queries"]},
        r"tracks is .*\(2, 5, 3\)": good | {"tracks": np.zeros((2, 5, 3))},
        r"tracks is .*\(2,\)": good | {"tracks": np.zeros(2)},
        "tracks is": good | {"tracks": np.zeros(())},
        r"visible is .*expected numbers of shape \(2, 5\)": good | {"visible": np.ones((2, 4), bool)},
        r"size is .*\(3,\)": good | {"size": np.zeros(3)},
        r"fps is": good | {"fps": np.array("fast")},
        r"is no \.npz": good | {"queries": np.array([{}, {}])},
    }
    for k, (message, arrays) in enumerate(wrong.items()):
        if arrays is not None:
            np.savez(tmp_path / f"{k}.npz", **arrays)
        with pytest.raises(DinotrackError, match=message) as caught:
            load_npz(tmp_path / f"{k}.npz")
        assert "\n" not in str(caught.value)
        assert f"{k}.npz" in str(caught.value)


@pytest.mark.parametrize("content", [b"", b"hello", b"PK\x03\x04 cut off"])
def test_bytes_that_are_no_npz(tmp_path: Path, content: bytes):
    (tmp_path / "a.npz").write_bytes(content)
    with pytest.raises(DinotrackError, match=r"is no \.npz file of tracks"):
        load_npz(tmp_path / "a.npz")


def test_a_bare_array_is_no_npz(tmp_path: Path):
    np.save(tmp_path / "a.npy", np.zeros((2, 3)))
    with pytest.raises(DinotrackError, match=r"is no \.npz file of tracks"):
        load_npz(tmp_path / "a.npy")


def test_csv_line_by_line(tmp_path: Path):
    expected = tracks()
    save_csv(expected, tmp_path / "a.csv")
    with (tmp_path / "a.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert list(rows[0]) == ["point", "t", "x", "y", "visible", "confidence"]
    assert len(rows) == 12
    for k, row in enumerate(rows):
        n, t = divmod(k, 4)
        assert (row["point"], row["t"]) == (str(n), str(t))
        assert row["visible"] == str(int(expected.visible[n, t]))
        assert float(row["x"]) == pytest.approx(expected.xy[n, t, 0].item(), abs=1e-4)
        assert float(row["y"]) == pytest.approx(expected.xy[n, t, 1].item(), abs=1e-4)
        assert float(row["confidence"]) == pytest.approx(expected.confidence[n, t].item(), abs=1e-4)


def test_csv_of_no_tracks_is_its_header(tmp_path: Path):
    save_csv(tracks(0), tmp_path / "a.csv")
    assert (tmp_path / "a.csv").read_text() == "point,t,x,y,visible,confidence\n"


@pytest.mark.parametrize("save", [save_npz, save_csv])
def test_a_place_that_cannot_be_written(tmp_path: Path, save):
    (tmp_path / "a").mkdir()
    with pytest.raises(DinotrackError, match="cannot write"):
        save(tracks(), tmp_path / "a")
    assert [f.name for f in tmp_path.iterdir()] == ["a"]
