"""Training clips: the three sources, what is drawn of them, and files that are refused."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file
from safetensors.torch import save_file as save_torch

from dinotrack.data import point_clips
from dinotrack.data.augmentation import augmented_colours, chosen_queries, crop_box, cropped, training_clip
from dinotrack.data.pickles import read_npy_dict
from dinotrack.data.point_clips import ExportedClips, KubricClips, PointClip, SyntheticClips, open_clips
from dinotrack.errors import DinotrackError
from dinotrack.training.chrono_data import ClipSettings, TrainingClips


def dots(frames: int = 4, size: tuple[int, int] = (40, 30)) -> PointClip:
    """A white dot of one pixel a point and frame on black; the points are the dots' centres."""
    rng = np.random.default_rng(0)
    xy = rng.integers(2, [size[0] - 2, size[1] - 2], (6, frames, 2)) + 0.5
    pictures = torch.zeros(frames, 3, size[1], size[0], dtype=torch.uint8)
    for point in xy:
        for t, (x, y) in enumerate(point):
            pictures[t, :, int(y), int(x)] = 255
    occluded = torch.zeros(6, frames, dtype=torch.bool)
    return PointClip(pictures, torch.from_numpy(xy).float(), occluded, torch.full((6,), -1))


def arrays(clip: PointClip) -> dict[str, np.ndarray]:
    """As an exported file has them; the first point is asked for in frame 1, the others in frame 0."""
    asked = np.array([1, 0, 0, 0, 0, 0])
    places = clip.xy.numpy()[np.arange(6), asked]
    return {
        "video": clip.frames.permute(0, 2, 3, 1).contiguous().numpy(),
        "query_points": np.concatenate([asked[:, None], places[:, ::-1]], 1).astype(np.float32),
        "target_points": clip.xy.numpy(),
        "occluded": clip.occluded.numpy(),
    }


def kubric_folder(folder: Path, clip: PointClip, **changes: Any) -> Path:
    """A clip as CoTracker's Kubric lies on disk."""
    (folder / "0007" / "frames").mkdir(parents=True)
    content = {"coords": clip.xy.numpy(), "visibility": clip.occluded.numpy(), **changes}
    np.save(folder / "0007" / "0007.npy", content, allow_pickle=True)  # type: ignore[arg-type]
    for t, frame in enumerate(clip.frames):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(folder / "0007" / "frames" / f"{t}.png")
    return folder


def test_the_three_sources_give_the_same_kind_of_clip(tmp_path: Path) -> None:
    clip = dots()
    for name in ("exported", "safe"):
        (tmp_path / name).mkdir()
    np.savez(tmp_path / "exported" / "0.npz", **arrays(clip))
    save_file(arrays(clip), tmp_path / "safe" / "0.safetensors")
    kubric_folder(tmp_path / "kubric", clip)
    kinds = {"exported": ExportedClips, "safe": ExportedClips, "kubric": KubricClips}
    for name, kind in kinds.items():
        clips = open_clips(str(tmp_path / name), {})
        assert isinstance(clips, kind) and len(clips) == 1
        assert torch.equal(clips[0].frames, clip.frames) and torch.equal(clips[0].xy, clip.xy)
        assert torch.equal(clips[0].occluded, clip.occluded)
        assert clips[0].query.tolist() == ([-1] * 6 if name == "kubric" else [1, 0, 0, 0, 0, 0])
    clips = open_clips("synthetic", {"frames": 3, "size": (32, 24), "points": 8})
    assert isinstance(clips, SyntheticClips) and clips[0].frames.shape == (3, 3, 24, 32)
    assert clips[0].occluded.shape == (8, 3) and not torch.equal(clips[0].frames, clips[1].frames)


def test_files_that_are_no_clips_are_named(tmp_path: Path) -> None:
    with pytest.raises(DinotrackError, match="no clips there"):
        open_clips(str(tmp_path), {})
    np.savez(tmp_path / "0.npz", video=np.zeros((2, 4, 4, 3), np.uint8))
    with pytest.raises(DinotrackError, match="expected video"):
        open_clips(str(tmp_path), {})[0]
    wrong = arrays(dots())
    np.savez(tmp_path / "0.npz", **{**wrong, "occluded": wrong["occluded"][:, :-1]})
    with pytest.raises(DinotrackError, match="expected video"):
        open_clips(str(tmp_path), {})[0]
    (tmp_path / "0.npz").write_bytes(b"PK")
    with pytest.raises(DinotrackError, match="file of clip"):
        open_clips(str(tmp_path), {})[0]
    clips = open_clips(str(kubric_folder(tmp_path / "kubric", dots(), coords=np.zeros((6, 3, 2)))), {})
    with pytest.raises(DinotrackError, match="do not belong together"):
        clips[0]


def typed(name: str, kind: Any) -> dict[str, np.ndarray]:
    return {name: arrays(dots())[name].astype(kind)}


WRONG: dict[str, dict[str, np.ndarray]] = {
    "occluded is text": typed("occluded", "U5"),
    "occluded is complex": typed("occluded", complex),
    "positions are complex": typed("target_points", complex),
    "positions are truths": typed("target_points", bool),
    "queries are text": typed("query_points", "U9"),
    "frames are floats": typed("video", np.float32),
    "frames are of 16 bit": typed("video", np.uint16),
    "frames are signed": typed("video", np.int8),
    "frames have no width": {"video": np.zeros((4, 30, 0, 3), np.uint8)},
    "frames have no height": {"video": np.zeros((4, 0, 40, 3), np.uint8)},
    "no points": {name: values[:0] for name, values in arrays(dots()).items() if name != "video"},
    "no frames": {
        "video": np.zeros((0, 30, 40, 3), np.uint8),
        "target_points": np.zeros((6, 0, 2)),
        "occluded": np.zeros((6, 0), bool),
    },
    "many dimensions": {"occluded": np.zeros((1,) * 32)},
}


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("case", WRONG)
def test_a_clip_of_other_kinds_is_refused_in_a_line(tmp_path: Path, case: str) -> None:
    np.savez(tmp_path / "0.npz", **{**arrays(dots()), **WRONG[case]})
    with pytest.raises(DinotrackError, match=r"0\.npz .*export it again") as refused:
        open_clips(str(tmp_path), {})[0]
    assert "\n" not in str(refused.value) and len(str(refused.value)) < 900


@pytest.mark.parametrize("kind", [torch.bfloat16, torch.complex64])
def test_a_safetensors_clip_of_other_kinds_is_refused(tmp_path: Path, kind: torch.dtype) -> None:
    content = {name: torch.from_numpy(values) for name, values in arrays(dots()).items()}
    content["target_points"] = content["target_points"].to(kind)
    save_torch(content, tmp_path / "0.safetensors")
    with pytest.raises(DinotrackError, match=r"0\.safetensors.*export it again"):
        open_clips(str(tmp_path), {})[0]


def test_clips_of_another_machine_and_of_other_numbers_are_read(tmp_path: Path) -> None:
    clip = dots()
    kinds = {"query_points": ">f8", "target_points": ">f4", "occluded": ">i4", "video": "u1"}
    np.savez(tmp_path / "0.npz", **{name: values.astype(kinds[name]) for name, values in arrays(clip).items()})
    read = open_clips(str(tmp_path), {})[0]
    assert torch.equal(read.xy, clip.xy) and torch.equal(read.occluded, clip.occluded)
    assert torch.equal(read.frames, clip.frames) and read.query.tolist() == [1, 0, 0, 0, 0, 0]
    big = kubric_folder(
        tmp_path / "kubric", clip, coords=clip.xy.numpy().astype(">f8"), visibility=clip.occluded[..., None].numpy()
    )
    assert torch.equal(open_clips(str(big), {})[0].xy, clip.xy)


@pytest.mark.parametrize("source", ["exported", "kubric"])
def test_a_point_without_a_position_is_occluded(tmp_path: Path, source: str) -> None:
    clip, content = dots(), arrays(dots())
    places = content["target_points"]
    places[0, 1, 0], places[1, 2, 1], places[2, 3, 0] = np.nan, np.inf, -1e30
    content["query_points"][0] = np.nan
    content["query_points"][1:3, 0] = 9, -np.inf
    if source == "kubric":
        kubric_folder(tmp_path, clip, coords=places)
    else:
        np.savez(tmp_path / "0.npz", **content)
    read = open_clips(str(tmp_path), {})[0]
    assert read.occluded.nonzero().tolist() == [[0, 1], [1, 2], [2, 3]]
    assert read.xy.isfinite().all() and not read.xy[read.occluded].any()
    assert torch.equal(read.xy[~read.occluded], clip.xy[~read.occluded])
    assert read.query.tolist() == [-1] * 3 + ([-1] * 3 if source == "kubric" else [0] * 3)


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize(
    "changes",
    [
        {"coords": np.zeros((6, 4, 2), complex)},
        {"coords": [[1, 2]]},
        {"coords": None},
        {"visibility": np.zeros((6, 4), "S3")},
        {"visibility": np.zeros((6, 4, 0), bool)},
        {"coords": np.zeros((0, 4, 2)), "visibility": np.zeros((0, 4), bool)},
        {"coords": np.zeros((6, 5, 2)), "visibility": np.zeros((6, 5), bool)},
    ],
)
def test_kubrics_truth_of_other_kinds_is_refused_before_a_frame_is_read(
    tmp_path: Path, changes: dict[str, Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(point_clips, "open_picture", None)
    clips = open_clips(str(kubric_folder(tmp_path, dots(), **changes)), {})
    with pytest.raises(DinotrackError, match=r"0007.*(get it again|is refused)"):
        clips[0]


def test_kubrics_frames_are_read_with_bounds(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    clips = open_clips(str(kubric_folder(tmp_path, dots())), {})
    frame = tmp_path / "0007" / "frames" / "2.png"
    Image.new("RGB", (41, 30)).save(frame)
    with pytest.raises(DinotrackError, match=r"2\.png is 41x30, 0\.png is 40x30"):
        clips[0]
    frame.write_bytes(frame.read_bytes()[:50])
    with pytest.raises(DinotrackError, match=r"cannot read the picture .*2\.png"):
        clips[0]
    monkeypatch.setattr("dinotrack.data.pictures.MOST_PIXELS", 1000)
    with pytest.raises(DinotrackError, match=r"0\.png is 40x30; expected at most"):
        clips[0]
    monkeypatch.undo()
    monkeypatch.setattr(point_clips, "MOST_BYTES", 10_000)
    with pytest.raises(DinotrackError, match="shorten the clip"):
        clips[0]


class Harmful:
    def __reduce__(self) -> Any:
        return print, ("run",)


def test_nothing_in_an_object_array_is_run(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "0.npy"
    np.save(path, {"coords": Harmful()}, allow_pickle=True)  # type: ignore[arg-type]
    with pytest.raises(DinotrackError, match="print"):
        read_npy_dict(path)
    assert capsys.readouterr().out == ""
    np.save(path, np.zeros(3))
    with pytest.raises(DinotrackError, match="not of one object"):
        read_npy_dict(path)
    path.write_bytes(b"nothing")
    with pytest.raises(DinotrackError, match="damaged"):
        read_npy_dict(path)


def test_crops_keep_points_on_what_they_show() -> None:
    clip = dots()
    part = cropped(clip, (5, 3, 20, 15), (40, 30))
    for point in range(6):
        for t in range(4):
            x, y = part.xy[point, t]
            if part.occluded[point, t]:
                assert not (0 <= x < 40 and 0 <= y < 30)
            else:  # twice as large: the dot covers the four pixels around the point
                assert part.frames[t, 0, int(y), int(x)] > 60
    assert 0 < part.occluded.sum() < 24


def test_crops_have_the_areas_and_aspects_of_the_method() -> None:
    boxes = np.array([crop_box((256, 256), np.random.default_rng(seed)) for seed in range(300)])
    left, top, width, height = boxes.T
    assert (left >= 0).all() and (top >= 0).all() and (left + width <= 256).all() and (top + height <= 256).all()
    area, aspect = width * height / 256**2, width / height
    assert 0.29 < area.min() < 0.35 and 0.9 < area.max() <= 1
    assert 0.49 < aspect.min() < 0.6 and 1.7 < aspect.max() < 2.01
    assert crop_box((100, 1), np.random.default_rng(0), tries=1) == (0, 0, 100, 1)


def test_colours_are_one_draw_for_the_clip_and_stay_in_range() -> None:
    images = torch.rand(1, 3, 6, 5).expand(4, -1, -1, -1)
    changed = augmented_colours(images, np.random.default_rng(1), jitter=1.0, grey=0.0)
    assert (changed - changed[:1]).abs().max() < 1e-6 and (changed - images).abs().max() > 0.01
    assert changed.min() >= 0 and changed.max() <= 1
    grey = augmented_colours(images, np.random.default_rng(1), jitter=0.0, grey=1.0)
    assert (grey - grey[:, :1]).abs().max() < 1e-6
    assert torch.equal(augmented_colours(images, np.random.default_rng(1), jitter=0.0, grey=0.0), images)
    shares = [torch.equal(augmented_colours(images, np.random.default_rng(s)), images) for s in range(200)]
    assert 0.08 < np.mean(shares) < 0.25  # (1 - 0.8) (1 - 0.2)


def test_queries_are_visible_and_their_own_where_they_can_be() -> None:
    clip = dots()
    clip.occluded[0] = True  # never visible
    clip.occluded[1, :3] = True
    clip.query[1], clip.query[2] = 0, 2
    number, query = chosen_queries(clip, 12, np.random.default_rng(0))
    assert sorted(number.tolist()) == sorted([1, 2, 3, 4, 5] * 2 + number.tolist()[10:])
    assert not clip.occluded[number, query].any()
    assert query[number == 1].tolist() == [3] * int((number == 1).sum())  # hidden in its own frame
    assert query[number == 2].tolist() == [2] * int((number == 2).sum())
    clip.occluded[:] = True
    with pytest.raises(DinotrackError, match="without visible points"):
        chosen_queries(clip, 4, np.random.default_rng(0))


def test_a_training_clip_follows_from_seed_and_number() -> None:
    settings = ClipSettings(frames=3, size=(24, 24), points=5)
    clips = TrainingClips(SyntheticClips(4, (32, 24), 8), settings, length=6)
    first, again, other = clips[2], clips[2], clips[3]
    assert torch.equal(first.images, again.images) and torch.equal(first.xy, again.xy)
    assert not torch.equal(first.images, other.images)
    assert first.images.shape == (3, 3, 24, 24) and first.xy.shape == (5, 3, 2) and first.occluded.shape == (5, 3)
    assert (first.occluded[torch.arange(5), first.query] == 0).all()


def test_clips_of_a_folder_come_once_a_turn(tmp_path: Path) -> None:
    clips = TrainingClips(ExportedClips([tmp_path / str(n) for n in range(5)]), ClipSettings(), length=10)
    turns = [[clips.number(index) for index in range(first, first + 5)] for first in (0, 5)]
    assert sorted(turns[0]) == sorted(turns[1]) == list(range(5)) and turns[0] != turns[1]


def test_without_augmentation_a_clip_of_the_size_is_itself() -> None:
    clip = dots()
    made = training_clip(clip, np.random.default_rng(0), size=(40, 30), points=6, augment=False)
    assert torch.equal((made.images * 255).round().byte(), clip.frames)
    assert sorted(made.xy[:, 0].tolist()) == sorted(clip.xy[:, 0].tolist())


def test_kubrics_examples_become_files_that_are_read(tmp_path: Path) -> None:
    path = Path(__file__).parents[1] / "scripts" / "export_kubric.py"
    spec = importlib.util.spec_from_file_location("export_kubric", path)
    assert spec and spec.loader
    script = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(script)
    clip = dots()
    example = {**arrays(clip), "video": arrays(clip)["video"] / 127.5 - 1}
    assert script.write_clips(iter([example] * 3), tmp_path, 2) == 2
    clips = open_clips(str(tmp_path), {})
    assert len(clips) == 2 and torch.equal(clips[1].frames, clip.frames) and torch.equal(clips[1].xy, clip.xy)
