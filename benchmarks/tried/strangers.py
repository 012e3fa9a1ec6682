"""Files that were made to do harm: they run nothing, leave no folder and take no memory."""

import io
import os
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import torch
import yaml

from benchmarks.tried.cases import REFUSED, Case
from benchmarks.tried.files import header, plain
from benchmarks.tried.films import FRAMES, HEIGHT, WIDTH, film
from dinotrack import DinotrackError, Tracks, Video
from dinotrack.data.badja import read_badja
from dinotrack.data.dino_tracker_file import DinoTrackerFile
from dinotrack.data.export import load_csv, load_npz, save_csv, save_npz
from dinotrack.data.keypoints import load_json, save_json
from dinotrack.data.pickles import read_pickle
from dinotrack.data.tapvid import TapVid
from dinotrack.methods.dino_tracker import DinoTracker, load_networks, read_checkpoint
from dinotrack.networks import DeltaDino, TrackerHead
from dinotrack.structs import FeatureMap
from dinotrack.training.config import read_run_config
from dinotrack.viewer import TrackSet, write_view
from dinotrack.weights import read_weights


def tracks() -> Tracks:
    xy = torch.arange(2.0 * FRAMES * 2).reshape(2, FRAMES, 2)
    queries = torch.cat([torch.zeros(2, 1), xy[:, 0]], 1)
    return Tracks(queries, xy, torch.ones(2, FRAMES) > 0, torch.ones(2, FRAMES), (WIDTH, HEIGHT), 25.0)


def checkpoint(folder: Path, change: Callable[[dict[str, Any]], Any] = lambda _: None) -> Path:
    """A tracker.ckpt, as a stranger may have changed it."""
    delta, head = DeltaDino(8, (4, 4)), TrackerHead(hidden=2)
    about = {
        "format": 1,
        "method": "dino_tracker",
        "video": {"path": "film.mp4", "start": 0, "hash": "", "frames": FRAMES, "size": [WIDTH, HEIGHT], "fps": 25.0},
        "backbone": {"kind": "dense_sift"},
        "working_size": [WIDTH, HEIGHT],
        "delta": delta.settings,
        "head": head.settings,
        "scale_constants": True,
        "visibility": {},
    }
    content = DinoTracker(
        FeatureMap(torch.zeros(FRAMES, 8, 6, 8).half(), 8.0, 4.0, (WIDTH, HEIGHT)), delta, head, about
    ).checkpoint()
    change(content)
    torch.save(content, folder / "tracker.ckpt")
    return folder / "tracker.ckpt"


class Runs:
    """What a hostile pickle holds."""

    def __reduce__(self) -> Any:
        return os.system, ("touch ran",)


def of_strangers() -> list[Case]:
    """Tracks, benchmarks, checkpoints, configs and names that were made to do harm."""
    group = "from strangers"

    def bomb(folder: Path) -> Path:
        """A few bytes that say they are five gigabytes."""
        with zipfile.ZipFile(folder / "t.npz", "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr("tracks.npy", header((5 * 10**9,), "|u1"))
            archive.filelist[0].file_size = 5 * 10**9
        return folder / "t.npz"

    def named(name: Any, video_idx: bool = False) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            of_clip = {
                "video": film().permute(0, 2, 3, 1).numpy(),
                "points": np.zeros((1, FRAMES, 2)),
                "occluded": np.zeros((1, FRAMES)),
            }
            content = {"videos": [{"video_idx": name}]} if video_idx else {name: of_clip}
            (folder / "b.pkl").write_bytes(pickle.dumps(content))
            return folder / "b.pkl"

        return make

    def spoilt(change: Callable[[dict[str, Any]], Any]) -> Callable[[Path], Path]:
        return lambda folder: checkpoint(folder, change)

    def squeezed(folder: Path) -> Path:
        whole = checkpoint(folder)
        with zipfile.ZipFile(whole) as old, zipfile.ZipFile(folder / "small.ckpt", "w", zipfile.ZIP_DEFLATED) as new:
            for entry in old.infolist():
                new.writestr(entry.filename, old.read(entry))
        return folder / "small.ckpt"

    def config(**parts: Any) -> Callable[[Path], Path]:
        return lambda folder: plain("config.yaml", yaml.safe_dump(parts))(folder)

    def networks(path: Path) -> str:
        load_networks(read_checkpoint(path), path)
        return "read"

    def page(name: str) -> str:
        folder = Path(name).parent
        video = Video(film(), 25.0, path=name)
        write_view(video, [TrackSet(Path(name).name, tracks())], folder / "view.html")
        text = (folder / "view.html").read_text(encoding="utf-8")
        assert "<img" not in text and text.count("</script>") == FRAMES + 2, "a name became part of the page"
        (folder / "view.html").unlink()
        return "a page on which the name is text"

    def saved(save: Callable[[Tracks, Path], None], name: str) -> Callable[[Path], Path]:
        def make(folder: Path) -> Path:
            save(tracks(), folder / name)
            return folder / name

        return make

    def replaced(make: Callable[[Path], Path], old: str, new: str) -> Callable[[Path], Path]:
        def changed(folder: Path) -> Path:
            path = make(folder)
            path.write_text(path.read_text().replace(old, new))
            return path

        return changed

    def set_weight(content: dict[str, Any], value: torch.Tensor) -> None:
        content["state_dict"][next(iter(content["state_dict"]))] = value

    hostile = "</script><img src=x onerror=alert(1)>.mp4"
    as_csv: Callable[[Path], Any] = lambda path: load_csv(path, (WIDTH, HEIGHT))  # noqa: E731
    names: Callable[[Path], Any] = lambda path: TapVid(path).names()  # noqa: E731
    numbers: Callable[[Path], Any] = lambda path: DinoTrackerFile(path).names()  # noqa: E731
    as_json, as_text = saved(save_json, "t.json"), saved(save_csv, "t.csv")
    deep = "[" * 100_000
    rows: list[tuple[str, Callable[[Path], Any], Callable[[Any], Any], str]] = [
        ("a pickle that runs a command", plain("b.pkl", pickle.dumps(Runs())), read_pickle, "it names posix.system"),
        ("weights that run a command", plain("w.pt", pickle.dumps(Runs())), read_weights, "cannot read checkpoint"),
        (
            "a checkpoint that runs a command",
            spoilt(lambda c: c.update(a=Runs())),
            networks,
            "not a readable checkpoint",
        ),
        (
            "a config that runs a command",
            config(flow={"_target_": "os.system", "_args_": ["touch ran"]}),
            read_run_config,
            "os.system",
        ),
        (
            "a config that reaches through our modules",
            config(flow={"_target_": "dinotrack.structs.os.system"}),
            read_run_config,
            "none of dinotrack's own",
        ),
        (
            "a config that is put together",
            config(flow="${oc.create:'{_target_: os.system}'}"),
            read_run_config,
            "none of dinotrack's own",
        ),
        (
            "a config of aliases",
            plain("config.yaml", "a: &a [1]\nb: [*a, *a]\n"),
            read_run_config,
            "not as a run writes it",
        ),
        ("a config that is no YAML", plain("config.yaml", "a: [1\nb: }"), read_run_config, "config.yaml is damaged"),
        ("a clip named ../../x", named("../../x"), names, r"clip named '\.\./\.\./x'"),
        ("a clip named /etc/x", named("/etc/x"), names, "clip named '/etc/x'"),
        ("a clip named ..", named(".."), names, r"clip named '\.\.'"),
        ("a clip named jobs", named("jobs"), names, "clip named 'jobs'"),
        ("a clip of 300 letters", named("x" * 300), names, "clip named 'xxx"),
        ("a video_idx of ../x", named("../x", True), numbers, r"clip named '\.\./x'"),
        ("tracks that grow to 5 GB", bomb, load_npz, r"t\.npz grows to 5\.0 GB"),
        ("tracks of infinite size", _npz(size=[np.inf, 5]), load_npz, "expected whole pixels"),
        ("tracks at no frame rate", _npz(fps=np.nan), load_npz, "a rate above 0"),
        ("tracks of 10^12 points", _npz(queries=None), load_npz, "is no .npz file of tracks"),
        ("JSON of 100 000 brackets", plain("t.json", deep), load_json, "cannot read the keypoints"),
        (
            "JSON of 10^9 pixels",
            replaced(as_json, '"width": 64', '"width": 1000000000'),
            load_json,
            "expected whole pixels",
        ),
        ("joints of 100 000 brackets", plain("j.json", deep), read_badja, "cannot read the joints"),
        ("CSV of frame 2000000000", replaced(as_text, "1,11,", "1,2000000000,"), as_csv, "expected at most"),
        ("a checkpoint that is compressed", squeezed, networks, "it is compressed"),
        (
            "a checkpoint of repeated weights",
            spoilt(lambda c: set_weight(c, torch.zeros(1).expand(10**12))),
            networks,
            "larger than the file",
        ),
        (
            "a checkpoint of NaN",
            spoilt(lambda c: set_weight(c, torch.full((4,), torch.nan))),
            networks,
            "are not finite",
        ),
        (
            "a checkpoint of 10^9 channels",
            spoilt(lambda c: c["dinotrack"]["delta"].update(channels=10**9)),
            networks,
            "larger networks",
        ),
        (
            "a checkpoint without settings",
            spoilt(lambda c: c["dinotrack"].pop("video")),
            networks,
            "its settings lack 'video'",
        ),
        (
            "a checkpoint of size 0",
            spoilt(lambda c: c["dinotrack"].update(working_size=[0, 0])),
            networks,
            "no sound size",
        ),
        (
            "a checkpoint of another method",
            spoilt(lambda c: c["dinotrack"]["head"].update(call="x")),
            networks,
            "make no networks",
        ),
    ]
    refused = [Case(group, name, make, _told(act), REFUSED, words) for name, make, act, words in rows]
    return [
        *refused,
        Case(group, "a video named </script><img ...>, viewed", lambda folder: f"{folder}/{hostile}", page),
        Case(group, "a checkpoint as it was written", checkpoint, networks),
    ]


def _told(act: Callable[[Any], Any]) -> Callable[[Any], str]:
    """Reads, and looks whether a command was run."""

    def watched(made: Any) -> str:
        try:
            return f"a {type(act(made)).__name__}"
        except DinotrackError:
            ran = Path("ran")
            if ran.exists():
                ran.unlink()
                raise AssertionError("a command was run") from None
            raise

    return watched


def _npz(**changed: Any) -> Callable[[Path], Path]:
    """A file of tracks with some arrays changed; None for a header of 10^12 rows."""

    def make(folder: Path) -> Path:
        save_npz(tracks(), folder / "t.npz")
        with np.load(folder / "t.npz") as file:
            arrays = {name: file[name] for name in file.files}
        with zipfile.ZipFile(folder / "t.npz", "w") as archive:
            for name, values in {**arrays, **changed}.items():
                buffer = io.BytesIO(header((10**12, 3), "<f4") if values is None else b"")
                if values is not None:
                    np.save(buffer, values)
                archive.writestr(f"{name}.npy", buffer.getvalue())
        return folder / "t.npz"

    return make
