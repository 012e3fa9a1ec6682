"""Readers of the benchmarks' files: every format gives the same clips, and what is wrong in one is named with clip and field."""

import json
import pickle
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import pytest
import torch
from PIL import Image

from dinotrack import DinotrackError
from dinotrack.data import synthetic_benchmark
from dinotrack.data.badja import SCORED_JOINTS, Badja
from dinotrack.data.benchmarks import Benchmark, BenchmarkClip, plain_name, tracked_size
from dinotrack.data.dino_tracker_file import DinoTrackerFile
from dinotrack.data.pickles import read_pickle
from dinotrack.data.queries import sample_queries
from dinotrack.data.reopening import reopened
from dinotrack.data.synthetic_benchmark import FORMATS, KINDS, SyntheticBenchmark, settings, write_benchmark
from dinotrack.data.tapvid import TapVid
from dinotrack.data.video import load_video
from dinotrack.evaluation import predict, score_tracks, truth_of_joints
from dinotrack.structs import PointTruth, Tracks

DATA = Path(__file__).parents[1].parent / "shared" / "data"
SIZE = (40, 30)


def entry(frames: int = 6, tracks: int = 3, seed: int = 0) -> dict[str, Any]:
    numbers = np.random.default_rng(seed)
    return {
        "video": numbers.integers(0, 256, (frames, SIZE[1], SIZE[0], 3), dtype=np.uint8),
        "points": numbers.random((tracks, frames, 2)),
        "occluded": numbers.random((tracks, frames)) < 0.3,
    }


def saved(path: Path, content: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(pickle.dumps(content))
    return path


def clips(benchmark: Benchmark) -> list[BenchmarkClip]:
    return [benchmark.open(name) for name in benchmark.names()]


def same_truth(a: PointTruth, b: PointTruth, tolerance: float = 0.0) -> bool:
    near = all(
        x.shape == y.shape and torch.allclose(x.double(), y.double(), rtol=0, atol=tolerance)
        for x, y in ((a.queries, b.queries), (a.xy, b.xy), (a.areas, b.areas))
    )
    return near and torch.equal(a.visible, b.visible) and torch.equal(a.frames, b.frames) and a.size == b.size


# TAP-Vid


@pytest.mark.parametrize("mode", ["strided", "first"])
def test_a_clip_is_what_its_arrays_say(mode: str, tmp_path: Path) -> None:
    stored = entry()
    benchmark = TapVid(
        saved(tmp_path / "davis.pkl", {"goat": stored, "bus": entry(seed=1)}), resolution=None, mode=mode
    )
    assert benchmark.names() == ["goat", "bus"]
    clip = benchmark.open("goat")
    assert torch.equal(clip.video.frames.permute(0, 2, 3, 1), torch.from_numpy(stored["video"]))
    xy, visible = torch.from_numpy(stored["points"] * np.array(SIZE)), torch.from_numpy(~stored["occluded"])
    queries, track = sample_queries(xy, visible, mode)
    assert torch.allclose(clip.truth.queries, queries) and torch.allclose(clip.truth.xy, xy[track])
    assert torch.equal(clip.truth.visible, visible[track]) and clip.truth.mode == mode
    assert clip.truth.frames.tolist() == list(range(6)) and clip.truth.areas.shape == (0,)
    assert len(clip.video.masks) == 0


def test_dict_list_shards_and_folders_of_dicts_hold_the_same(tmp_path: Path) -> None:
    entries = [entry(seed=seed) for seed in range(4)]
    pictures = {**entries[3], "video": [cv2.imencode(".png", f[..., ::-1])[1].tobytes() for f in entries[3]["video"]]}
    saved(tmp_path / "shards" / "0000_of_0002.pkl", entries[:2])
    saved(tmp_path / "shards" / "0001_of_0002.pkl", [entries[2], pictures])
    saved(tmp_path / "split" / "robotap_split0.pkl", {f"clip{n}": e for n, e in enumerate(entries[:3])})
    saved(tmp_path / "split" / "robotap_split1.pkl", {"clip3": entries[3]})
    single = saved(tmp_path / "list.pkl", entries)
    benchmarks = [TapVid(path, resolution=None) for path in (single, tmp_path / "shards", tmp_path / "split")]
    assert benchmarks[0].names() == [f"list-{n:04d}" for n in range(4)]
    assert benchmarks[1].names() == [f"{n:04d}_of_0002-{k:04d}" for n in range(2) for k in range(2)]
    assert benchmarks[2].names() == [f"clip{n}" for n in range(4)]
    for a, b, c in zip(*(clips(benchmark) for benchmark in benchmarks), strict=True):
        assert torch.equal(a.video.frames, b.video.frames) and torch.equal(a.video.frames, c.video.frames)
        assert same_truth(a.truth, b.truth) and same_truth(a.truth, c.truth)


def test_jpeg_frames_are_decoded_in_rgb(tmp_path: Path) -> None:
    red = np.zeros((2, 32, 32, 3), np.uint8)
    red[..., 0] = 250
    coded = [cv2.imencode(".jpg", frame[..., ::-1])[1].tobytes() for frame in red]
    for video in (coded, np.array(coded, dtype=object)):
        stored = {**entry(frames=2), "video": video}
        frames = TapVid(saved(tmp_path / "a.pkl", [stored]), resolution=None).open("a-0000").video.frames
        assert (frames.float() - torch.tensor([250.0, 0, 0])[:, None, None]).abs().max() < 6


@pytest.mark.parametrize(
    ("resolution", "size"), [(256, (256, 256)), (15 * 2, (40, 30)), (20, (27, 20)), (480, (40, 30))]
)
def test_resolutions(resolution: int, size: tuple[int, int], tmp_path: Path) -> None:
    """256 squeezes as TAP-Vid does, others shrink the short side; positions come along."""
    path = saved(tmp_path / "a.pkl", [entry()])
    clip, plain = (TapVid(path, resolution=r).open("a-0000") for r in (resolution, None))
    assert clip.video.size == clip.truth.size == size
    share = clip.truth.xy / torch.tensor(size), plain.truth.xy / torch.tensor(SIZE)
    assert torch.allclose(*share)
    with pytest.raises(DinotrackError, match=r"benchmark\.resolution=8"):
        tracked_size(SIZE, 8)


def change(field: str, value: Any) -> dict[str, Any]:
    return {**entry(), field: value}


def moved(x: float, y: float, occluded: bool) -> dict[str, Any]:
    stored = entry()
    stored["points"][1, 4] = x, y
    stored["occluded"][1, 4] = occluded
    return stored


@pytest.mark.parametrize(
    ("stored", "message"),
    [
        (
            change("points", np.zeros((3, 5, 2))),
            r"points is float64 \(3, 5, 2\); expected numbers of shape \(any, 6, 2\)",
        ),
        (change("points", np.zeros((3, 6))), r"points is float64 \(3, 6\)"),
        (change("points", [[1], [1, 2]]), "points is"),
        (change("occluded", np.zeros((2, 6), bool)), r"occluded is bool \(2, 6\); expected numbers of shape \(3, 6\)"),
        (change("occluded", np.full((3, 6), 2)), "occluded has values other than true and false"),
        (change("video", np.zeros((6, 30, 40), np.uint8)), r"video is uint8 \(6, 30, 40\)"),
        (change("video", np.zeros((6, 30, 40, 3), np.float32)), "video is float32 .*; expected uint8"),
        (change("video", [b"no picture"] * 6), "frame 0 of video is no readable picture"),
        (change("video", np.zeros((6, 0, 0, 3), np.uint8)), r"video is uint8 \(6, 0, 0, 3\)"),
        (change("video", 3), r"video is int64 \(\)"),
        (change("video", [3] * 6), "frame 0 of video is no readable picture"),
        (change("video", []), "video has pictures of different sizes, or none"),
        (moved(1.11, 0.5, False), r"points has visible track 1 at \(1\.11, 0\.5\) .* in frame 4"),
        (moved(0.5, -0.2, False), r"points has visible track 1 at \(0\.5, -0\.2\)"),
        (moved(float("nan"), 0.5, False), r"points has visible track 1 at \(nan, 0\.5\)"),
        ({"video": entry()["video"]}, "no occluded, points; expected"),
        (3, "no occluded, points, video"),
    ],
)
def test_what_is_wrong_is_named_with_clip_and_field(stored: Any, message: str, tmp_path: Path) -> None:
    benchmark = TapVid(saved(tmp_path / "a.pkl", {"fine": entry(), "odd": stored}), resolution=None)
    with pytest.raises(DinotrackError, match=rf"a\.pkl, clip odd: .*{message}"):
        benchmark.open("odd")
    assert len(benchmark.open("fine").video) == 6


@pytest.mark.parametrize(("x", "y"), [(float("nan"), 0.5), (-30.0, 4.0), (float("inf"), 0.0)])
def test_occluded_points_may_lie_anywhere(x: float, y: float, tmp_path: Path) -> None:
    clip = TapVid(saved(tmp_path / "a.pkl", [moved(x, y, True)]), resolution=None).open("a-0000")
    still = {"queries": clip.truth.queries.float(), "visible": clip.truth.visible, "size": SIZE, "fps": 25.0}
    tracks = Tracks(xy=clip.truth.xy.float(), confidence=clip.truth.visible.float(), **still)  # type: ignore[arg-type]
    scores = score_tracks(clip.truth, tracks)
    assert scores.delta_avg == scores.oa == scores.aj == 100  # type: ignore[union-attr]


def test_queries_a_little_outside_are_asked_at_the_edge(tmp_path: Path) -> None:
    stored = moved(1.08, -0.05, False)
    stored["occluded"][1], stored["points"][1] = False, (1.08, -0.05)
    truth = TapVid(saved(tmp_path / "a.pkl", [stored]), resolution=None, mode="first").open("a-0000").truth
    at_edge = (truth.queries[:, 1:] == torch.tensor([40.0, 0.0])).all(1)
    assert int(at_edge.sum()) == 1
    assert torch.allclose(truth.xy[at_edge][0, 0], torch.tensor([1.08 * 40, -0.05 * 30]).double())


def test_wrong_files_and_clips_are_named(tmp_path: Path) -> None:
    with pytest.raises(DinotrackError, match=r"no folder .*absent"):
        TapVid(tmp_path / "absent").names()
    with pytest.raises(DinotrackError, match=r"has no \*\.pkl"):
        TapVid(tmp_path).names()
    with pytest.raises(DinotrackError, match="holds a int; expected a dict or a list"):
        TapVid(saved(tmp_path / "a.pkl", 3)).names()
    with pytest.raises(DinotrackError, match="has no clip 'b'; it has a-0000"):
        TapVid(saved(tmp_path / "a.pkl", [entry()])).open("b")
    with pytest.raises(DinotrackError, match="mode='last'"):
        TapVid(tmp_path, mode="last")
    for name in ("../escape", "/root", "a/b", ".hidden", "", "scores.csv"):
        with pytest.raises(DinotrackError, match="has a clip named"):
            TapVid(saved(tmp_path / "a.pkl", {name: entry()})).names()
        with pytest.raises(DinotrackError, match="has a clip named"):
            plain_name(name, "a file")


def test_one_name_twice_is_refused(tmp_path: Path) -> None:
    with pytest.raises(DinotrackError, match="two clips of one name"):
        TapVid(saved(tmp_path / "a.pkl", {7: entry(), "7": entry()})).names()
    path, video = published_file(tmp_path)
    saved(path, {"videos": [video, video]})
    with pytest.raises(DinotrackError, match="two videos of one video_idx"):
        DinoTrackerFile(path).names()


def test_only_the_file_of_a_clip_is_read(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number in range(3):
        saved(tmp_path / f"split{number}.pkl", {f"clip{number}": entry(seed=number)})
    benchmark, read = TapVid(tmp_path, resolution=None), list[str]()
    monkeypatch.setattr("dinotrack.data.tapvid.read_pickle", lambda path: read.append(path.stem) or read_pickle(path))
    names = benchmark.names()
    read.clear()
    for name in names:
        benchmark.open(name)
    assert read == ["split0", "split1", "split2"]


# The published benchmark file


def published_file(folder: Path, with_masks: bool = False, **changes: Any) -> tuple[Path, dict[str, Any]]:
    """Video 7 with two query frames; its frames are half as large as the file says."""
    numbers = np.random.default_rng(0)
    frames = folder / "7" / "video"
    frames.mkdir(parents=True)
    for number in range(5):
        Image.fromarray(numbers.integers(0, 256, (30, 40, 3), dtype=np.uint8)).save(frames / f"{number:05d}.png")
    targets = {0: numbers.random((2, 5, 2)) * (80, 60), 3: numbers.random((1, 5, 2)) * (80, 60)}
    video = {
        "video_idx": 7,
        "h": 60,
        "w": 80,
        "query_points": {frame: [list(track[frame]) for track in tracks] for frame, tracks in targets.items()},
        "target_points": targets,
        "occluded": {0: numbers.random((2, 5)) < 0.5, 3: numbers.random((1, 5)) < 0.5},
    }
    if with_masks:
        video["segmentations"] = numbers.integers(0, 2, (5, 60, 80))
    return saved(folder / "benchmark.pkl", {"videos": [{**video, **changes}]}), video


def test_the_published_file_with_its_folders(tmp_path: Path) -> None:
    path, video = published_file(tmp_path)
    benchmark = DinoTrackerFile(path)
    assert benchmark.names() == ["7"]
    clip = benchmark.open("7")
    assert clip.video.size == SIZE and clip.truth.size == (80, 60) and len(clip.video) == 5 and clip.weights == ""
    assert clip.truth.queries[:, 0].tolist() == [0, 0, 3]
    expected = np.concatenate([video["target_points"][0], video["target_points"][3]])
    assert np.allclose(clip.truth.xy.numpy(), expected)
    assert np.allclose(clip.truth.queries[:, 1:].numpy(), [expected[0, 0], expected[1, 0], expected[2, 3]])
    assert np.array_equal(~clip.truth.visible.numpy(), np.concatenate([video["occluded"][0], video["occluded"][3]]))
    assert len(clip.truth.areas) == 0
    (tmp_path / "7" / "models" / "dino_tracker").mkdir(parents=True)
    assert DinoTrackerFile(path).open("7").weights == str(tmp_path / "7" / "models" / "dino_tracker")
    assert DinoTrackerFile(path, resolution=256).open("7").video.size == (256, 256)


def test_with_segmentations_it_is_scored_as_badja(tmp_path: Path) -> None:
    path, video = published_file(tmp_path, with_masks=True)
    truth = DinoTrackerFile(path, tmp_path).open("7").truth
    assert np.allclose(truth.areas.numpy(), video["segmentations"].sum((1, 2)))
    for off, score in ((1.4, 100), (1.6, 0)):  # of the frames' pixels, half as many as the file's
        xy = truth.xy.float() / 2 + torch.tensor([off, 0.0])
        tracks = Tracks(truth.queries.float(), xy, truth.visible, truth.visible.float(), SIZE, 25.0)
        assert score_tracks(truth, tracks).delta_3px == score  # type: ignore[union-attr]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"w": 0}, "video 7: w is 0"),
        ({"video_idx": "../7"}, "has a clip named '../7'"),
        ({"h": "tall"}, "video 7: h is 'tall'"),
        ({"query_points": {9: [[1, 2]]}}, "video 7: query_points name frame 9 of 5"),
        ({"target_points": {0: np.zeros((2, 5, 2))}}, "query_points name frame"),
        ({"target_points": {0: np.zeros((2, 4, 2)), 3: np.zeros((1, 5, 2))}}, r"target_points is float64 \(2, 4, 2\)"),
        ({"query_points": [1]}, "query_points is no dict of query frames"),
        ({"query_points": {0: [[1, 2], [300, 2]], 3: [[1, 2]]}}, "query_points has visible track 1"),
        ({"segmentations": np.zeros((2, 3, 3))}, r"segmentations is float64 \(2, 3, 3\)"),
    ],
)
def test_wrong_entries_of_the_published_file_are_named(changes: dict[str, Any], message: str, tmp_path: Path) -> None:
    path, _ = published_file(tmp_path, **changes)
    with pytest.raises(DinotrackError, match=message):
        DinoTrackerFile(path).open("7")
    with pytest.raises(DinotrackError, match="no list of videos"):
        DinoTrackerFile(saved(tmp_path / "b.pkl", {"a": 1})).names()


# BADJA


def badja_folder(folder: Path, first: int = 3) -> None:
    """Two animals in BADJA's and DAVIS's folders; frames are numbered from 3 on, every other one annotated."""
    for name in ("bear", "cow-2"):
        for kind in ("JPEGImages", "Annotations"):
            where = folder / "DAVIS" / kind / "Full-Resolution" / name
            where.mkdir(parents=True)
            for number in range(6):
                picture = np.zeros((36, 64, 3) if kind == "JPEGImages" else (36, 64), np.uint8)
                picture[: 6 * number + 6] = 255
                Image.fromarray(picture).save(where / f"{first + number:05d}.png")
        annotated = [
            {
                "image_path": f"DAVIS/{name}/{first + number:05d}.jpg",
                "joints": [[54.0 * joint % 1080, 10.0 * joint + number] for joint in range(37)],
                "visibility": [number > 0 or joint % 2 == 0 for joint in range(37)],
            }
            for number in (0, 2, 5)
        ]
        (folder / "joint_annotations").mkdir(exist_ok=True)
        (folder / "joint_annotations" / f"{name}.json").write_text(json.dumps(annotated))


def test_badja_from_its_own_folders(tmp_path: Path) -> None:
    badja_folder(tmp_path)
    benchmark = Badja(tmp_path)
    assert benchmark.names() == ["bear", "cow-2"]
    clip = benchmark.open("cow-2")
    assert clip.video.size == clip.truth.size == (854, 480) and len(clip.video.masks) == 0
    assert clip.truth.frames.tolist() == [0, 2, 5]  # by the files' names, not by their numbers
    assert torch.allclose(clip.truth.areas, torch.tensor([6.0, 18, 36]).double() / 36 * 854 * 480)
    shown = [joint for joint in SCORED_JOINTS if joint % 2 == 0], [joint for joint in SCORED_JOINTS if joint % 2]
    assert len(clip.truth) == 20
    assert (clip.truth.queries[:, 0] == 0).sum() == len(shown[0]) and (clip.truth.queries[:, 0] == 2).sum() == len(
        shown[1]
    )
    row = SCORED_JOINTS.index(14)
    assert clip.truth.xy[row, 1].tolist() == pytest.approx([142 * 854 / 1920, 54 * 14 * 480 / 1080], rel=1e-6)


def test_badja_is_scored_at_854_whatever_it_is_tracked_at(tmp_path: Path) -> None:
    badja_folder(tmp_path)
    small, large = (Badja(tmp_path, size=size).open("bear") for size in ((427, 240), (854, 480)))
    assert small.video.size == (427, 240) and same_truth(small.truth, large.truth)


def test_badja_leaves_out_what_has_no_frames(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    badja_folder(tmp_path)
    (tmp_path / "joint_annotations" / "rs_dog.json").write_text("[]")
    (tmp_path / "joint_annotations" / "._bear.json").write_text("of another system")
    assert Badja(tmp_path).names() == ["bear", "cow-2"]
    assert "no frames of rs_dog" in caplog.text
    with pytest.raises(DinotrackError, match="has no frames of any annotated video"):
        Badja(tmp_path, frames="elsewhere/{name}").names()


def test_badja_names_what_does_not_fit(tmp_path: Path) -> None:
    badja_folder(tmp_path)
    for pattern in ("x.json", "/abs/{name}.json"):
        with pytest.raises(
            DinotrackError, match=r"benchmark\.joints=.*; expected a path below benchmark\.path with {name}"
        ):
            Badja(tmp_path, joints=pattern)
    with pytest.raises(DinotrackError, match="has no clip 'dog'; it has bear, cow-2"):
        Badja(tmp_path).open("dog")
    (tmp_path / "DAVIS" / "JPEGImages" / "Full-Resolution" / "bear" / "00008.png").unlink()
    (tmp_path / "DAVIS" / "Annotations" / "Full-Resolution" / "bear" / "00008.png").unlink()
    with pytest.raises(DinotrackError, match=r"bear\.json annotates frame 8; the video has 5, 3 to 7"):
        Badja(tmp_path).open("bear")


@pytest.mark.skipif(not (DATA / "horsejump-high").is_dir(), reason="needs ../shared/data/horsejump-high")
def test_horsejump_through_the_general_reader_is_what_its_own_reader_says() -> None:
    patterns = {"joints": "{name}/badja.json", "frames": "{name}/video", "masks": "{name}/masks"}
    benchmark = Badja(DATA, **patterns)
    assert benchmark.names() == ["horsejump-high"]
    clip = benchmark.open("horsejump-high")
    folder = DATA / "horsejump-high"
    video = load_video(folder / "video", folder / "masks")
    assert torch.equal(clip.video.frames, video.frames)
    assert same_truth(clip.truth, truth_of_joints(video, folder / "badja.json"))


# Our own


def test_twelve_clips_by_fixed_seeds_three_of_each_kind() -> None:
    every = settings()
    assert len(every) == 12 and [value["seed"] for value in every.values()] == list(range(200, 212))
    assert {name.rsplit("-", 1)[0] for name in every} == set(KINDS) and len(KINDS) == 4
    assert all(24 <= value["frames"] <= 40 for value in every.values())
    assert list(settings("four")) == [f"{kind}-0" for kind in KINDS]
    assert settings("four").items() <= every.items()
    with pytest.raises(DinotrackError, match="subset='five'"):
        settings("five")


def test_each_kind_is_what_its_name_says() -> None:
    benchmark = SyntheticBenchmark("four")
    opened = {name: benchmark.open(name) for name in benchmark.names()}
    hidden = {name: 1 - float(clip.truth.visible.double().mean()) for name, clip in opened.items()}
    assert max(hidden, key=lambda name: hidden[name]) == "occlusion-0"
    assert all(len(clip.video.masks) == 0 and len(clip.truth) > 100 for clip in opened.values())
    assert all(clip.video.path.startswith("synthetic:") for clip in opened.values())


def test_written_files_are_read_back_as_the_same_clips(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(synthetic_benchmark, "FRAMES", (6,))
    written = write_benchmark(tmp_path, subset="four")
    assert [path.relative_to(tmp_path).as_posix() for path in written] == [
        "synthetic_davis.pkl",
        "synthetic_list.pkl",
        "shards/0000_of_0002.pkl",
        "shards/0001_of_0002.pkl",
    ]
    direct = clips(SyntheticBenchmark("four"))
    for path in (written[0], written[1], tmp_path / "shards"):
        for ours, theirs in zip(direct, clips(TapVid(path, resolution=None)), strict=True):
            assert torch.equal(ours.video.frames, theirs.video.frames)
            assert same_truth(ours.truth, theirs.truth, tolerance=1e-4)
            noise = torch.randn(ours.truth.xy.shape, generator=torch.Generator().manual_seed(0))
            tracks = Tracks(
                ours.truth.queries.float(),
                (ours.truth.xy + noise).float(),
                torch.rand(ours.truth.visible.shape, generator=torch.Generator().manual_seed(1)) > 0.3,
                torch.ones(ours.truth.visible.shape),
                ours.video.size,
                25.0,
            )
            scores = score_tracks(ours.truth, tracks), score_tracks(theirs.truth, tracks)
            assert scores[0].aj == pytest.approx(scores[1].aj, abs=1e-9)  # type: ignore[union-attr]
            assert scores[0].oa == scores[1].oa  # type: ignore[union-attr]
    lossy = write_benchmark(tmp_path / "jpeg", ("shards",), "four", jpeg=True)
    again = clips(TapVid(lossy[0].parent, resolution=None))[0]
    assert 0 < (again.video.frames.float() - direct[0].video.frames.float()).abs().mean() < 6


@pytest.mark.usefixtures("unguarded")
def test_another_format_is_refused(tmp_path: Path) -> None:
    assert set(FORMATS) == {"davis", "list", "shards"}
    with pytest.raises(DinotrackError, match="no format 'zip'"):
        write_benchmark(tmp_path, ("zip",), "four")  # type: ignore[arg-type]
    with pytest.raises(DinotrackError, match="only the frames of shards can be JPEG"):
        write_benchmark(tmp_path, ("davis",), "four", jpeg=True)


class Still:
    """Every point stays where it was asked, always visible."""

    def __init__(self, frames: int, size: tuple[int, int]) -> None:
        self.frames, self.size = frames, size

    def track(self, queries: torch.Tensor, *, progress: Any = None) -> Tracks:
        xy = queries[:, None, 1:].expand(-1, self.frames, -1)
        visible = torch.ones(len(queries), self.frames, dtype=torch.bool)
        return Tracks(queries, xy, visible, visible.float(), self.size, 25.0)


def test_queries_are_asked_in_the_videos_own_pixels() -> None:
    truth = SyntheticBenchmark("four").open("smooth-0").truth
    double = (2 * truth.size[0], 2 * truth.size[1])
    tracks = predict(Still(24, double), truth, double)
    assert torch.allclose(tracks.queries[:, 1:].double(), 2 * truth.queries[:, 1:].double())
    own = score_tracks(truth, predict(Still(24, truth.size), truth, truth.size))
    assert score_tracks(truth, tracks).aj == pytest.approx(own.aj)  # type: ignore[union-attr]


def test_what_a_summary_says_opens_the_clip_again(tmp_path: Path) -> None:
    target = "dinotrack.data.synthetic_benchmark.SyntheticBenchmark"
    again = reopened({"_target_": target, "subset": "four", "mode": "first"}, "smooth-0")
    assert again.content_hash == SyntheticBenchmark("four").open("smooth-0").video.content_hash
    gone = {"_target_": "dinotrack.data.tapvid.TapVid", "path": str(tmp_path / "gone.pkl"), "mode": "first"}
    for source, message in (
        ({"_target_": "os.system", "command": "true"}, "'os.system', which is not dinotrack's; give --video"),
        ({}, "which is not dinotrack's"),
        ({"_target_": target, "colour": 1}, "cannot read clip smooth-0"),
        (gone, "cannot be read again .*gone.*--video"),
    ):
        with pytest.raises(DinotrackError, match=message):
            reopened(source, "smooth-0")
