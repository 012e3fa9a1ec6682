"""The structs: what their constructors refuse, saving and loading, indexing, and the look-ups of tracklets and pairs."""

import errno
import hashlib
from dataclasses import fields
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

import dinotrack.files
import dinotrack.tensor_struct
from dinotrack.errors import DinotrackError
from dinotrack.feature_pass import Masks
from dinotrack.files import write_atomically
from dinotrack.structs import FeatureMap, Pairs, PairTable, Tracklets, Tracks, Video
from dinotrack.tensor_struct import TensorStruct


def make_video(**more: object) -> Video:
    frames = torch.randint(0, 256, (3, 3, 4, 6), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    return Video(frames, **more)


def make_pairs(count: int, frames: int, rng: torch.Generator) -> Pairs:
    source, target = torch.randint(0, frames, (2, count), generator=rng)
    xy = torch.rand(2, count, 2, generator=rng)
    return Pairs(source, target, xy[0], xy[1], torch.rand(count, generator=rng))


def make_tracklets() -> Tracklets:
    start, length, chained = (torch.tensor(v, dtype=torch.int32) for v in ([0, 0, 2], [3, 2, 2], [4, 2, 3]))
    return Tracklets(start, length, chained, torch.arange(18.0).view(9, 2), (6, 4))


def make_tracks(count: int = 3) -> Tracks:
    queries = torch.tensor([[0.0, 1, 2], [1, 3, 4], [2, 5, 1]])[:count]
    xy = torch.arange(count * 8.0).view(count, 4, 2)
    visible = torch.arange(count * 4).view(count, 4) % 3 > 0
    return Tracks(queries, xy, visible, visible * 0.5, (6, 4), 12.5)


def structs() -> list[TensorStruct]:
    rng = torch.Generator().manual_seed(0)
    pairs = make_pairs(20, 4, rng)
    return [
        make_video(fps=12.5, masks=torch.rand(3, 4, 6, generator=rng) > 0.5, path="a/b é.mp4"),
        make_video(),
        FeatureMap(torch.rand(2, 5, 3, 4, generator=rng).half(), 7.0, 3.5, (30, 24)),
        make_tracklets(),
        Tracklets(*(torch.zeros(0, dtype=torch.int32) for _ in range(3)), torch.zeros(0, 2), (6, 4)),
        pairs,
        Pairs.empty(),
        PairTable.build(pairs, torch.rand(20, generator=rng) > 0.5, torch.ones(4, 4, dtype=torch.bool)),
        PairTable.empty(4),
        Masks(torch.rand(3, 4, 6, generator=rng) > 0.5),
        make_tracks(),
        make_tracks(0),
    ]


def test_a_video_needs_two_frames() -> None:
    with pytest.raises(DinotrackError, match=r"clip\.mp4 has 1 frame"):
        Video(torch.zeros(1, 3, 4, 6, dtype=torch.uint8), path="clip.mp4")


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("shape", [(2, 4, 6), (3, 6, 4), (3, 8, 12)])
def test_a_video_refuses_masks_of_another_shape(shape: tuple[int, int, int]) -> None:
    with pytest.raises(DinotrackError, match=r"\(3, 4, 6\)"):
        make_video(masks=torch.zeros(shape, dtype=torch.bool))


@pytest.mark.parametrize("fps", [0.0, -1.0, float("nan")])
def test_a_video_without_a_frame_rate_gets_25(fps: float) -> None:
    assert make_video(fps=fps).fps == 25.0


def test_a_video_says_its_size_and_slices_with_its_masks() -> None:
    masks = torch.rand(3, 4, 6) > 0.5
    video = make_video(masks=masks, fps=10.0, path="p")
    part = video[1:]
    assert (len(video), video.size, make_video().masks.shape) == (3, (6, 4), (0, 4, 6))
    assert torch.equal(part.frames, video.frames[1:]) and torch.equal(part.masks, masks[1:])
    assert (part.fps, part.path, make_video()[:2].masks.shape) == (10.0, "p", (0, 4, 6))


def test_the_content_hash_is_of_shape_and_pixels_alone() -> None:
    video = make_video()
    assert video.content_hash == hashlib.sha256(b"(3, 3, 4, 6)" + video.frames.numpy().tobytes()).hexdigest()
    other = make_video(fps=3.0, path="elsewhere", masks=torch.ones(3, 4, 6, dtype=torch.bool))
    assert other.content_hash == video.content_hash
    strided = Video(video.frames.permute(0, 2, 3, 1).contiguous().permute(0, 3, 1, 2))
    assert strided.content_hash == video.content_hash
    changed = video.frames.clone()
    changed[2, 2, 3, 5] ^= 1
    assert Video(changed).content_hash != video.content_hash
    assert Video(video.frames.reshape(3, 3, 6, 4)).content_hash != video.content_hash


@pytest.mark.parametrize("index", range(len(structs())))
def test_saving_and_loading_returns_the_same(index: int, tmp_path: Path) -> None:
    struct, path = structs()[index], tmp_path / "new folder" / "struct.safetensors"
    struct.save(path)
    loaded = type(struct).load(path)
    for field in fields(struct):
        before, after = getattr(struct, field.name), getattr(loaded, field.name)
        if isinstance(before, torch.Tensor):
            assert before.dtype == after.dtype and torch.equal(before, after)
        else:
            assert type(before) is type(after) and before == after
    assert [p.name for p in path.parent.iterdir()] == ["struct.safetensors"]


def test_loading_refuses_what_is_not_there_damaged_or_another_struct(tmp_path: Path) -> None:
    path = tmp_path / "tracks.safetensors"
    with pytest.raises(DinotrackError, match=r"tracks\.safetensors is not a readable Tracks file"):
        Tracks.load(path)
    make_tracks().save(path)
    with pytest.raises(DinotrackError, match="not a readable Tracklets file"):
        Tracklets.load(path)
    content = path.read_bytes()
    for damaged in (b"", b"nonsense", content[:40], content[:-3]):
        path.write_bytes(damaged)
        with pytest.raises(DinotrackError, match="delete it to build it again"):
            Tracks.load(path)
    save_file({"xy": torch.zeros(2)}, path)
    with pytest.raises(DinotrackError, match="not a readable Tracks file"):
        Tracks.load(path)


@pytest.mark.parametrize("failing", ["save_file", "replace"])
def test_a_failed_save_leaves_the_old_file_alone(failing: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "tracks.safetensors"
    make_tracks().save(path)
    before = path.read_bytes()

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    monkeypatch.setattr(dinotrack.tensor_struct if failing == "save_file" else dinotrack.files.os, failing, full)
    with pytest.raises(
        DinotrackError, match=r"cannot write .*tracks\.safetensors: No space left on device; free space"
    ):
        make_tracks(1).save(path)
    assert [p.name for p in tmp_path.iterdir()] == ["tracks.safetensors"] and path.read_bytes() == before


def test_an_interrupted_write_leaves_nothing(tmp_path: Path) -> None:
    def interrupted(path: Path) -> None:
        path.write_text("half")
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        write_atomically(tmp_path / "a.json", interrupted)
    assert not list(tmp_path.iterdir())


def test_a_folder_that_is_a_file_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").touch()
    with pytest.raises(DinotrackError, match="cannot write"):
        make_tracks().save(tmp_path / "file" / "tracks.safetensors")


@pytest.mark.parametrize("index", range(len(structs())))
def test_moving_takes_every_tensor_along(index: int) -> None:
    struct = structs()[index]
    moved = struct.to("meta")
    for field in fields(struct):
        before, after = getattr(struct, field.name), getattr(moved, field.name)
        if isinstance(before, torch.Tensor):
            assert before.device.type == "cpu" and after.device.type == "meta" and before.shape == after.shape
        else:
            assert before == after


def test_positions_of_tracklets_are_rows_of_the_ragged_list() -> None:
    tracklets = make_tracklets()
    row = 0
    for n in range(len(tracklets)):
        start, chained = int(tracklets.start[n]), int(tracklets.chained[n])
        assert int(tracklets.offset[n]) == row
        for frame in range(start, start + chained):
            assert torch.equal(tracklets.at(torch.tensor([n]), torch.tensor([frame]))[0], tracklets.xy[row])
            row += 1
    assert row == len(tracklets.xy)


def test_pairs_index_flip_and_join(rng: torch.Generator) -> None:
    pairs = make_pairs(6, 4, rng)
    for index in (slice(1, 4), torch.tensor([3, 0]), pairs.weight > 0.5):
        part = pairs[index]
        for field in fields(Pairs):
            assert torch.equal(getattr(part, field.name), getattr(pairs, field.name)[index])
    flipped = pairs.flip()
    assert torch.equal(flipped.source, pairs.target) and torch.equal(flipped.target_xy, pairs.source_xy)
    assert torch.equal(flipped.weight, pairs.weight) and torch.equal(flipped.flip().source_xy, pairs.source_xy)
    joined = Pairs.cat([pairs, flipped, Pairs.empty()])
    assert len(joined) == 12 and torch.equal(joined[6:].target, pairs.source)
    assert len(Pairs.cat([])) == 0 and Pairs.cat([], "meta").source.device.type == "meta"


def test_a_pair_table_slices_like_a_search_through_all_pairs(rng: torch.Generator) -> None:
    pairs, foreground = make_pairs(200, 4, rng), torch.rand(200, generator=rng) > 0.7
    table = PairTable.build(pairs, foreground, torch.ones(4, 4, dtype=torch.bool))
    assert table.frames == 4
    assert sorted(table.weight.tolist()) == sorted(pairs.weight.tolist())
    for source in range(4):
        for target in range(4):
            for kind in (False, True):
                rows = table.between(source, target, kind)
                wanted = [
                    n
                    for n in range(200)
                    if (int(pairs.source[n]), int(pairs.target[n]), bool(foreground[n])) == (source, target, kind)
                ]
                assert table.weight[rows].tolist() == pairs.weight[wanted].tolist()  # in their old order
                assert torch.equal(table.pairs[rows].source_xy, pairs.source_xy[wanted])
                assert torch.equal(table.foreground[rows], foreground[wanted])


def test_an_empty_pair_table_has_empty_slices() -> None:
    table = PairTable.empty(3)
    assert len(table) == 0 and not table.searched.any() and table.searched.shape == (3, 3)
    assert all(table.between(i, j, k) == slice(0, 0) for i in range(3) for j in range(3) for k in (False, True))


def test_tracks_index_along_their_queries() -> None:
    tracks = make_tracks()
    part = tracks[torch.tensor([2, 0])]
    assert len(part) == 2 and (part.size, part.fps) == (tracks.size, tracks.fps)
    for name in ("queries", "xy", "visible", "confidence"):
        assert torch.equal(getattr(part, name), getattr(tracks, name)[[2, 0]])
    assert len(tracks[tracks.queries[:, 0] > 5]) == 0
