"""Training clips: the three sources, what is drawn of them, and files that are refused."""

import importlib.util
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.numpy import save_file

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
