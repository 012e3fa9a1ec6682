"""Files that tell when they are damaged: of every byte that changes, and of every way to be cut short."""

import random
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file

import dinotrack.sealed
from dinotrack.data.export import load_npz, save_npz
from dinotrack.errors import DinotrackError
from dinotrack.sealed import (
    check_seal,
    digest_of,
    forget_checks,
    load_archive,
    read_head,
    read_json,
    save_archive,
    seal,
    write_json,
)
from dinotrack.structs import FeatureMap, Tracks
from dinotrack.tensor_struct import metadata_of, read_about

CONTENT = {"name": "a", "sizes": (3, 4), "score": 0.1, "nested": {"none": None, "nan": float("nan")}}


def make_features() -> FeatureMap:
    return FeatureMap(torch.rand(2, 3, 4, 5).half(), 7.0, 3.5, (56, 42))


def damaged(content: bytes, count: int) -> list[bytes]:
    """The content with one byte changed, at random places and at both ends, and cut short."""
    rng = random.Random(0)
    places = [0, 7, 8, len(content) - 1, *(rng.randrange(len(content)) for _ in range(count))]
    changed = [content[:p] + bytes([content[p] ^ rng.randrange(1, 256)]) + content[p + 1 :] for p in places]
    return [*changed, *(content[: rng.randrange(len(content))] for _ in range(10)), b""]


def test_every_byte_of_a_struct_counts(tmp_path: Path) -> None:
    path = tmp_path / "features.safetensors"
    make_features().save(path, {"name": "features"})
    content = path.read_bytes()
    check_seal(path)
    for other in damaged(content, 300):
        path.write_bytes(other)
        forget_checks()
        with pytest.raises(DinotrackError, match=r"features\.safetensors is not a readable FeatureMap file"):
            FeatureMap.load(path)


def test_a_file_is_read_for_its_checksum_once_and_again_when_it_has_changed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, read = tmp_path / "features.safetensors", list[int]()

    def counted(*arguments: Any) -> str:
        read.append(1)
        return digest_of(*arguments)

    make_features().save(path)
    monkeypatch.setattr(dinotrack.sealed, "digest_of", counted)
    for _ in range(3):
        FeatureMap.load(path)
    assert len(read) == 1
    make_features().save(path)  # which reads it too
    FeatureMap.load(path)
    assert len(read) == 3


def test_a_file_written_in_pieces_has_the_same_checksum(tmp_path: Path) -> None:
    whole, pieces, features = tmp_path / "whole.safetensors", tmp_path / "pieces.safetensors", make_features()
    features.save(whole, {"name": "features"})
    plain = {"stride": 7.0, "offset": 3.5, "size": (56, 42)}
    save_file({"values": features.values}, pieces, metadata=metadata_of(plain, {"name": "features"}))
    with pieces.open("rb+") as file:
        head = read_head(file)
        digest = dinotrack.sealed.hashlib.sha256(head)
        while rows := file.read(16):
            digest.update(rows)
        seal(file, head, digest.hexdigest())
    assert torch.equal(FeatureMap.load(pieces).values, features.values)
    assert read_about(pieces) == read_about(whole) == {"name": "features"}
    assert read_about(tmp_path / "none") == {}


def test_every_byte_of_a_torch_archive_counts(tmp_path: Path) -> None:
    """Its CRCs find what torch.load would take; bytes between the records mean nothing."""
    path, content = tmp_path / "a.ckpt", {"weights": torch.rand(40, 50), "step": 3}
    torch.save(content, path)
    found, taken = 0, 0
    for other in damaged(path.read_bytes(), 150):
        path.write_bytes(other)
        try:
            again = load_archive(path)
        except Exception:
            found += 1
            continue
        taken += 1
        assert again["step"] == 3 and torch.equal(again["weights"], content["weights"])
    assert found > 0.9 * (found + taken)


def test_every_byte_of_an_npz_counts(tmp_path: Path) -> None:
    path = tmp_path / "tracks.npz"
    before = Tracks(torch.rand(3, 3), torch.rand(3, 9, 2), torch.rand(3, 9) > 0.5, torch.rand(3, 9), (8, 6), 25.0)
    save_npz(before, path)
    for other in damaged(path.read_bytes(), 300):
        path.write_bytes(other)
        try:
            again = load_npz(path)
        except DinotrackError:
            continue
        assert all(torch.equal(getattr(again, name), getattr(before, name)) for name in ("queries", "xy", "visible"))
        assert torch.equal(again.confidence, before.confidence) and (again.size, again.fps) == ((8, 6), 25.0)


def test_every_byte_of_a_json_counts(tmp_path: Path) -> None:
    path = tmp_path / "a.json"
    write_json(path, CONTENT)
    first, taken, said = read_json(path, "delete it"), 0, set[bool]()
    assert first["sizes"] == [3, 4] and "checksum" not in first
    for other in damaged(path.read_bytes(), 300):
        path.write_bytes(other)
        try:
            again = read_json(path, "delete it")
        except DinotrackError as error:
            said.add(str(error).endswith("; delete it") and "a.json" in str(error))
            continue
        taken += 1
        assert str(again) == str(first)  # a space that became a tab, say
    assert taken < 60 and said == {True}


def test_a_json_that_is_not_there_or_not_ours_is_named(tmp_path: Path) -> None:
    with pytest.raises(DinotrackError, match=r"cannot read .*none\.json: No such file .*; run it again"):
        read_json(tmp_path / "none.json", "run it again")
    for text in ("{}", "[]", "3", '{"checksum": 3}'):
        (tmp_path / "a.json").write_text(text)
        with pytest.raises(DinotrackError, match=r"a\.json .*damaged.*; run it again"):
            read_json(tmp_path / "a.json", "run it again")


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
@pytest.mark.parametrize("count", [10, 10**6])
def test_an_archive_that_finds_no_room_says_so(count: int) -> None:
    with pytest.raises(OSError, match="No space left on device"):
        save_archive({"a": torch.ones(count)}, "/dev/full")
