"""Whatever bytes a file holds, a reader reads it or raises our own error, in one line; hypothesis makes the bytes."""

import json
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from benchmarks.tried.films import film, write
from benchmarks.tried.strangers import checkpoint
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from PIL import Image
from safetensors.numpy import save_file as save_arrays
from safetensors.torch import save_file

from dinotrack import DinotrackError, Tracks, Video, load_video
from dinotrack.data import open_synthetic
from dinotrack.data.badja import read_badja
from dinotrack.data.dino_tracker_file import DinoTrackerFile
from dinotrack.data.export import load_csv, load_npz, save_csv, save_npz
from dinotrack.data.keypoints import load_json, save_json
from dinotrack.data.masks import load_masks
from dinotrack.data.pickles import read_pickle
from dinotrack.data.point_clips import ExportedClips, KubricClips
from dinotrack.data.queries import read_queries
from dinotrack.data.tapvid import TapVid
from dinotrack.methods.dino_tracker import load_networks, read_checkpoint
from dinotrack.training.config import read_run_config
from dinotrack.viewer import open_sources, read_objects
from dinotrack.weights import read_weights

SMALL = film(4, 24, 16)
CLIP = Video(SMALL, 25.0, path="film.mp4")
TRACKS = Tracks(
    torch.tensor([[0.0, 5, 5], [1, 3, 4]]),
    torch.arange(16.0).reshape(2, 4, 2),
    torch.ones(2, 4) > 0,
    torch.ones(2, 4),
    (24, 16),
    25.0,
)

few = settings(
    max_examples=6,
    derandomize=True,  # the same bytes in every run
    deadline=None,
    database=None,
    suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow],
)
"""The slow tests have more; a search for a day is `python -m benchmarks.fuzz`."""

edits = st.lists(st.tuples(st.floats(0, 1, exclude_max=True), st.integers(0, 255)), max_size=8)
spans = st.tuples(st.floats(0, 1), st.floats(0, 1))


def changed(data: bytes, places: list[tuple[float, int]], span: tuple[float, float], how: str) -> bytes:
    """A file with some bytes replaced, and a part of it left out, doubled or all that stays."""
    content = bytearray(data)
    for place, value in places:
        content[int(place * len(content))] = value
    low, high = sorted(int(share * len(content)) for share in span)
    parts = {
        "edit": content,
        "cut": content[:high],
        "drop": content[:low] + content[high:],
        "double": content[:high] + content[low:],
        "keep": content[low:high],
    }
    return bytes(parts[how])


def networks(path: Path) -> Any:
    return load_networks(read_checkpoint(path), path)


def pictures(path: Path) -> Any:
    folder = path.with_name("m")
    folder.mkdir(exist_ok=True)
    for number in range(len(CLIP)):
        (folder / f"{number}{path.suffix}").write_bytes(path.read_bytes())
    return load_masks(folder, CLIP)


def run_folder(path: Path) -> Any:
    save_npz(TRACKS, path.with_name("tracks.npz"))
    return open_sources(path.parent)


def saved(save: Callable[[Path], Any]) -> Callable[[Path], bytes]:
    def made(path: Path) -> bytes:
        save(path)
        return path.read_bytes()

    return made


def kubric(path: Path) -> Any:
    frames = path.parent / "frames"
    frames.mkdir(exist_ok=True)
    for number in range(len(CLIP)):
        PICTURE.save(frames / f"{number}.png")
    path.rename(path.parent / f"{path.parent.name}.npy")
    return KubricClips([path.parent])[0]


def dumped(content: Any) -> Callable[[Path], bytes]:
    return lambda _: pickle.dumps(content) if not isinstance(content, bytes) else content


ENTRY = {"video": SMALL.permute(0, 2, 3, 1).numpy(), "points": np.zeros((2, 4, 2)), "occluded": np.zeros((2, 4), bool)}
JOINT = {"image_path": "a/00001.png", "joints": [[1, 2]] * 37, "visibility": [1] * 37}
VIDEO = {"video_idx": 0, "h": 16, "w": 24, "query_points": {0: [[1, 2]]}}
ABOUT = {"video": {"path": 'synthetic:{"frames":4,"size":[24,16]}', "start": 0, "max_side": None}}
PICTURE = Image.fromarray(SMALL[0].permute(1, 2, 0).numpy())
POINTS = {
    "query_points": np.zeros((2, 3), np.float32),
    "target_points": np.zeros((2, 4, 2)),
    "occluded": np.eye(2, 4) > 0,
}
TRAINING = {"video": ENTRY["video"].copy(), **POINTS}
TRUTH: Any = {"coords": POINTS["target_points"], "visibility": POINTS["occluded"]}
Reader = tuple[str, Callable[[Path], bytes], Callable[[Path], Any]]
READERS: dict[str, Reader] = {
    "tracks, npz": (".npz", saved(lambda path: save_npz(TRACKS, path)), load_npz),
    "tracks, csv": (".csv", saved(lambda path: save_csv(TRACKS, path)), lambda path: load_csv(path, (24, 16))),
    "tracks, json": (".json", saved(lambda path: save_json(TRACKS, path)), load_json),
    "tracks, safetensors": (".safetensors", saved(TRACKS.save), Tracks.load),
    "queries, csv": (".csv", dumped(b"t,x,y\n0,3,4\n1,5.5,6\n"), lambda path: read_queries(path, CLIP)),
    "queries, npy": (".npy", saved(lambda path: np.save(path, [[0, 3, 4.0]])), lambda path: read_queries(path, CLIP)),
    "masks, npy": (
        ".npy",
        saved(lambda path: np.save(path, np.eye(16, 24)[None] > np.zeros((4, 1, 1)))),
        lambda path: load_masks(path, CLIP),
    ),
    "masks, png": (".png", saved(PICTURE.save), pictures),
    "masks, jpg": (".jpg", saved(PICTURE.save), pictures),
    "objects, csv": (".csv", dumped(b"point,object\n0,a\n1,b\n"), lambda path: read_objects(path, TRACKS, CLIP)),
    "objects, npy": (".npy", saved(lambda path: np.save(path, [0, -1])), lambda path: read_objects(path, TRACKS, CLIP)),
    "a pickle": (".pkl", dumped({"a": np.arange(3.0), "b": [1, "x", b"y", None]}), read_pickle),
    "TAP-Vid": (".pkl", dumped({"a": ENTRY}), lambda path: [TapVid(path).open(name) for name in TapVid(path).names()]),
    "DINO-Tracker's file": (".pkl", dumped({"videos": [VIDEO]}), lambda path: DinoTrackerFile(path).names()),
    "BADJA": (".json", dumped(json.dumps([JOINT]).encode()), read_badja),
    "weights, pt": (".pt", saved(lambda path: torch.save({"a": torch.zeros(3)}, path)), read_weights),
    "weights, safetensors": (".safetensors", saved(lambda path: save_file({"a": torch.zeros(3)}, path)), read_weights),
    "a checkpoint": (".ckpt", lambda path: checkpoint(path.parent).read_bytes(), networks),
    "a config": (
        ".yaml",
        dumped(b"flow: {_target_: dinotrack.optical_flow.Dis}\nsize: [64, 48]\nvideo: a.mp4\n"),
        read_run_config,
    ),
    "a summary": ("summary.json", dumped(json.dumps(ABOUT).encode()), run_folder),
    "a synthetic path": (
        ".txt",
        dumped(b'{"frames":4,"size":[24,16]}'),
        lambda path: open_synthetic("synthetic:" + path.read_text("latin1")),
    ),
    "a training clip, npz": (
        ".npz",
        saved(lambda path: np.savez(path, **TRAINING)),
        lambda path: ExportedClips([path])[0],
    ),
    "a training clip, safetensors": (
        ".safetensors",
        saved(lambda path: save_arrays(TRAINING, path)),
        lambda path: ExportedClips([path])[0],
    ),
    "a training clip, npy": (".npy", saved(lambda path: np.save(path, TRUTH, allow_pickle=True)), kubric),
    "a video, mp4": (".mp4", saved(lambda path: write(path, "mpeg4", "yuv420p", SMALL)), load_video),
    "a video, mkv": (".mkv", saved(lambda path: write(path, "ffv1", "bgr0", SMALL)), load_video),
    "a video, gif": (".gif", saved(lambda path: write(path, "gif", "rgb8", SMALL)), load_video),
    "a video, avi": (".avi", saved(lambda path: write(path, "mjpeg", "yuvj420p", SMALL)), load_video),
}


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """Each file as it should be."""
    made = {}
    for number, (name, (ending, make, _)) in enumerate(READERS.items()):
        made[name] = make(tmp_path_factory.mktemp(f"whole{number}") / f"file{ending}")
    return made


def refusal(read: Callable[[], Any]) -> str:
    """What a reader says that refuses what it is given; empty where it reads it. Another error than our own goes on."""
    try:
        read()
    except DinotrackError as error:
        return str(error)
    return ""


def attempt(name: str, data: bytes, folder: Path) -> None:
    ending, _, read = READERS[name]
    path = folder / (ending if ending == "summary.json" else f"file{ending}")
    path.write_bytes(data)
    refused = refusal(lambda: read(path))
    assert "\n" not in refused and len(refused) < 900


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("name", READERS)
def test_a_file_as_it_should_be_is_read(name: str, whole: dict[str, bytes], tmp_path: Path) -> None:
    ending, _, read = READERS[name]
    path = tmp_path / (ending if ending == "summary.json" else f"file{ending}")
    path.write_bytes(whole[name])
    read(path)


@pytest.mark.usefixtures("unguarded")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
@few
@given(places=edits, span=spans, how=st.sampled_from(["edit", "cut", "drop", "double", "keep"]))
def test_a_changed_file_is_read_or_refused(
    name: str, whole: dict[str, bytes], tmp_path: Path, places: Any, span: Any, how: str
) -> None:
    attempt(name, changed(whole[name], places, span, how), tmp_path)


@pytest.mark.slow
@pytest.mark.usefixtures("unguarded")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
@settings(few, max_examples=60)
@given(places=edits, span=spans, how=st.sampled_from(["edit", "cut", "drop", "double", "keep"]))
def test_many_changed_files_are_read_or_refused(
    name: str, whole: dict[str, bytes], tmp_path: Path, places: Any, span: Any, how: str
) -> None:
    attempt(name, changed(whole[name], places, span, how), tmp_path)


@pytest.mark.usefixtures("unguarded")
@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", READERS)
@settings(few, max_examples=3)
@given(data=st.binary(max_size=300))
def test_any_bytes_are_read_or_refused(name: str, tmp_path: Path, data: bytes) -> None:
    attempt(name, data, tmp_path)


rows = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=3), inner, max_size=2),
    max_leaves=12,
)


@pytest.mark.usefixtures("unguarded")
@settings(few, max_examples=40)
@given(spec=rows)
def test_any_value_is_queries_or_refused(spec: Any) -> None:
    refused = refusal(lambda: read_queries(spec, CLIP))
    assert len(refused) < 900
    if not refused:
        found = read_queries(spec, CLIP)
        assert found.ndim == 2 and found.shape[1] == 3 and len(found) and found.isfinite().all()


@settings(few, max_examples=40)
@given(
    content=st.recursive(
        st.none() | st.booleans() | st.integers(-5, 5) | st.floats() | st.text(max_size=4),
        lambda inner: (
            st.lists(inner, max_size=3)
            | st.dictionaries(
                st.sampled_from(
                    ["format", "version", "width", "height", "fps", "frames", "first_frame", "points", "query"]
                ),
                inner,
            )
        ),
        max_leaves=15,
    )
)
def test_json_of_other_kinds_is_refused(content: Any, tmp_path_factory: pytest.TempPathFactory) -> None:
    path = tmp_path_factory.mktemp("json") / "t.json"
    if isinstance(content, dict):
        content |= {"format": "dinotrack-keypoints", "version": 1}
    path.write_text(json.dumps([content, content] if not isinstance(content, dict) else content))
    for read in (load_json, read_badja):
        assert "\n" not in refusal(lambda read=read: read(path))
