"""Loggers: what lies in a W&B run folder, and that no logger's failure is a fit's."""

import csv
import json
import logging
import pickle
import re
import socket
import struct
import threading
from collections.abc import Callable, Iterator
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hydra.errors import InstantiationException
from lightning.pytorch.loggers import CSVLogger, Logger
from omegaconf import OmegaConf
from PIL import Image

from dinotrack import DinotrackError, Tracks, Video, cli, load_video
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.data.synthetic_benchmark import stored
from dinotrack.methods.dino_tracker import DinoTracker
from dinotrack.training import commands
from dinotrack.training import weights_and_biases as wb
from dinotrack.training.commands import run_command
from dinotrack.training.config import compose_config
from dinotrack.training.fit import prepare, train
from dinotrack.training.jobs import resumed_by
from dinotrack.training.loggers import Guarded, RunLoggers, show_picture, shows_pictures, unguarded

TINY = ["flow=dis", "backbone=dense_sift", "backbone.stride=4", "resolution=64", "device=cpu", "steps=4"]
TINY += ["method.delta.hidden=[4,8]", "method.batch.flow_pairs=16", "trainer.log_every_n_steps=2"]
TINY += ["method.head.radius=72"]  # more than a token, else the refiner has no gradient
TINY += ["callbacks.rebuild.every=1", "callbacks.rebuild.frame_pairs=3", "callbacks.rebuild.search.gamma=1e5"]
TINY += ["callbacks.pictures.every=3", "callbacks.pictures.points=4", "callbacks.tapvid.every=2"]
KEY = "0" * 40


@pytest.fixture(scope="module")
def video() -> Video:
    return synthetic_clip(seed=1, frames=6, size=(64, 48), points=8).video


@pytest.fixture(scope="module")
def cache(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("cache")


def fitted(video: Video, cache: Path, folder: Path, *overrides: str) -> DinoTracker:
    folder.mkdir(exist_ok=True)
    config = compose_config("fit", overrides=[*TINY, f"cache_dir={cache}", "video=x", *overrides])
    return train(config, prepare(config, video), folder=folder)


def weights(tracker: DinoTracker) -> dict[str, torch.Tensor]:
    return tracker.checkpoint()["state_dict"]


Fit, IsPlain = Callable[..., DinoTracker], Callable[[DinoTracker], bool]


@pytest.fixture
def fit(video: Video, cache: Path, tmp_path: Path) -> Fit:
    """A fit to the video with further overrides, in the folder `run`."""
    return lambda *overrides: fitted(video, cache, tmp_path / "run", *overrides)


@pytest.fixture(scope="module")
def is_plain(video: Video, cache: Path, tmp_path_factory: pytest.TempPathFactory) -> IsPlain:
    """Whether a tracker has the weights of the fit without any logger."""
    plain = weights(fitted(video, cache, tmp_path_factory.mktemp("plain") / "run", "logger=none"))
    return lambda tracker: all(torch.equal(value, plain[name]) for name, value in weights(tracker).items())


class Fake(Logger):
    """Remembers what it is told, and raises in the methods that are named in `failing`."""

    def __init__(self, failing: tuple[str, ...] = ()) -> None:
        super().__init__()
        self.failing, self.told = failing, dict[str, list[Any]]()
        self.note("init")

    def note(self, method: str, *what: Any) -> None:
        self.told.setdefault(method, []).append(what)
        if method in self.failing:
            raise OSError(28, "No space left on device")

    @property
    def experiment(self) -> None:
        self.note("experiment")

    def after_save_checkpoint(self, checkpoint_callback: Any) -> None:
        self.note("after_save_checkpoint")

    @property
    def name(self) -> str:
        self.note("name")
        return "fake"

    @property
    def version(self) -> str:
        self.note("version")
        return "0"

    @property
    def save_dir(self) -> str:
        self.note("save_dir")
        return "folder"

    def log_metrics(self, metrics: Any, step: int | None = None) -> None:
        self.note("log_metrics", dict(metrics), step)

    def log_hyperparams(self, params: Any, *_: Any) -> None:
        self.note("log_hyperparams", params)

    def log_image(self, key: str, images: list[Any], step: int | None = None) -> None:
        self.note("log_image", key, images, step)

    def log_graph(self, model: Any, input_array: Any = None) -> None:
        self.note("log_graph")

    def save(self) -> None:
        self.note("save")

    def finalize(self, status: str) -> None:
        self.note("finalize", status)


MADE: list[Fake] = []


def make_fake(failing: list[str] | None = None) -> Fake:
    """What a config's `_target_` names."""
    fake = Fake.__new__(Fake)
    MADE.append(fake)
    fake.__init__(tuple(failing or ()))
    return fake


def fake_logger(*failing: str) -> str:
    return f"+logger.fake={{_target_: {__name__}.make_fake, failing: [{','.join(failing)}]}}"


@pytest.mark.parametrize("method", ["init", "log_metrics", "log_image", "save"])
def test_a_fit_outlives_a_logger_that_raises(
    method: str, fit: Fit, is_plain: IsPlain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    tracker = fit("logger=csv", fake_logger(method))
    assert is_plain(tracker)
    assert len(MADE[-1].told[method]) == 1, "left alone once it has raised"
    said = [record.getMessage() for record in caplog.records if "logger" in record.getMessage()]
    assert said == ["logger fake failed (OSError: [Errno 28] No space left on device); the fit goes on without it"]
    assert "loss/flow" in (tmp_path / "run" / "metrics.csv").read_text(), "the other loggers go on"


CALLS: dict[str, Callable[[Logger], object]] = {
    "name": lambda logger: logger.name,
    "version": lambda logger: logger.version,
    "save_dir": lambda logger: logger.save_dir,
    "experiment": lambda logger: logger.experiment,  # type: ignore[attr-defined]
    "log_metrics": lambda logger: logger.log_metrics({"a": 1.0}, step=3),
    "log_hyperparams": lambda logger: logger.log_hyperparams({"a": 1}),
    "log_image": lambda logger: show_picture(logger, "a", torch.zeros(3, 4, 5, dtype=torch.uint8), 3),
    "log_graph": lambda logger: logger.log_graph(torch.nn.Identity()),
    "after_save_checkpoint": lambda logger: logger.after_save_checkpoint(None),  # type: ignore[arg-type]
    "save": lambda logger: logger.save(),
    "finalize": lambda logger: logger.finalize("success"),
}


@pytest.mark.parametrize("method", CALLS)
def test_every_call_of_a_guarded_logger_is_passed_on_and_may_fail(
    method: str, caplog: pytest.LogCaptureFixture
) -> None:
    calm, bad = Fake(), Fake((method,))
    CALLS[method](Guarded("calm", lambda: calm))
    assert len(calm.told[method]) == 1 and not caplog.records
    guarded = Guarded("bad", lambda: bad)
    for _ in range(2):
        assert CALLS[method](guarded) is None
    assert len(bad.told[method]) == 1 and len(caplog.records) == 1
    assert unguarded(guarded) is None and not shows_pictures(guarded)
    for call in CALLS.values():
        assert call(guarded) is None


def test_an_interrupt_is_not_held_back() -> None:
    def interrupt(_: Logger) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        Guarded("calm", Fake).do(interrupt)


def test_what_a_logger_is_told(fit: Fit, is_plain: IsPlain) -> None:
    tracker = fit("logger=none", fake_logger())
    assert is_plain(tracker)
    told = MADE[-1].told
    assert told["log_hyperparams"][0][0]["losses"]["cycle"]["weight"] == 0.5
    late = {step: metrics for metrics, step in told["log_metrics"]}[3]
    terms = {"flow", "best_buddy", "refined_best_buddy", "cycle", "prior"}
    assert {f"loss/{name}" for name in terms} | {"loss/total"} <= late.keys()
    assert sum(late[f"share/{name}"] for name in terms) == pytest.approx(1)
    weight = {"flow": 1, "best_buddy": 25e-5, "refined_best_buddy": 5e-5, "cycle": 0.5, "prior": 1e-4}
    for name in terms:
        assert late[f"share/{name}"] == pytest.approx(
            weight[name] * late[f"loss/{name}"] / late["loss/total"], rel=1e-4
        )
    assert (late["lr/delta"], late["lr/refiner"]) == (pytest.approx(0.01), pytest.approx(0.01))
    assert late["gradient/delta"] > 0 and late["gradient/refiner"] > 0
    assert late["speed/steps_per_second"] > 0 and late["memory/process_mb"] > 10
    assert late["batch/flow"] == 16 and late["batch/best_buddies"] > 0
    assert late["batch/refined"] > 0 and 0 < late["batch/cycle"] <= 4 * 256
    assert late["pairs/cycle_share"] == 1, "with a limit that all pass"
    steps = {(key, step) for key, _, step in told["log_image"]}
    assert steps == {(f"pictures/{n}", s) for n in ("overlay", "similarity", "best_buddies") for s in (0, 2, 3)}
    assert all(i.dtype == np.uint8 and i.ndim == 3 and i.shape[2] == 3 for _, [i], _ in told["log_image"])
    assert {status for (status,) in told["finalize"]} == {"success"}


def test_the_share_of_cycle_consistent_points_is_below_one_for_a_limit(fit: Fit) -> None:
    for mode in ("callbacks.rebuild.frame_pairs=3", "callbacks.rebuild.frame_pairs=batch"):
        fit("logger=none", fake_logger(), mode, "callbacks.rebuild.search.gamma=20")
        late = {step: metrics for metrics, step in MADE[-1].told["log_metrics"]}[3]
        assert 0 < late["pairs/cycle_share"] < 1
        assert 0 < late["batch/cycle"] < 4 * 256 and late["batch/refined"] > 0


def test_pictures_can_be_switched_off_and_scalars_follow_the_interval(fit: Fit) -> None:
    off = ["callbacks.pictures.every=0", "trainer.log_every_n_steps=9", "callbacks.tapvid.every=9"]
    fit("logger=none", fake_logger(), *off)
    assert "log_image" not in MADE[-1].told
    assert [step for _, step in MADE[-1].told["log_metrics"]] == [3], "a fit that is shorter logs its last step"


class Still:
    """A tracker of what does not move."""

    def track(self, queries: torch.Tensor, **_: Any) -> Tracks:
        seen = torch.ones(len(queries), 6)
        return Tracks(queries, queries[:, None, 1:].repeat(1, 6, 1), seen.bool(), seen, (64, 48), 25.0)


def test_a_fit_ends_with_an_overlay_for_loggers_that_show_videos(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    told = list[tuple[str, list[str]]]()
    monkeypatch.setattr(Fake, "log_video", lambda self, key, videos, **_: told.append((key, videos)), raising=False)
    monkeypatch.setattr(commands, "fitted", lambda run: (None, Still()))
    monkeypatch.setattr(commands, "scores_of", lambda *_: {})
    small = ["video=synthetic", "synthetic.frames=6", "synthetic.size=[64,48]", "logger=none"]
    fake = fake_logger()
    for name, more in (("on", [fake]), ("off", [fake, "callbacks.pictures.every=0"]), ("none", [])):
        (tmp_path / name).mkdir()
        commands.fit_command(compose_config("fit", overrides=[*TINY, *small, *more]), tmp_path / name)
    assert told == [("final/overlay", [str(tmp_path / "on" / "overlay.mp4")])]
    assert len(load_video(tmp_path / "on" / "overlay.mp4")) == 6
    assert not (tmp_path / "off" / "overlay.mp4").exists() and not (tmp_path / "none" / "overlay.mp4").exists()
    monkeypatch.setattr(Still, "track", lambda *_: 1 / 0)
    commands.fit_command(compose_config("fit", overrides=[*TINY, *small, fake]), tmp_path / "on")
    assert "the final overlay failed (ZeroDivisionError" in caplog.text and len(told) == 1


def test_pictures_that_fail_are_warned_of_once(
    fit: Fit, is_plain: IsPlain, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    def no_memory(*_: Any) -> Any:
        raise torch.OutOfMemoryError("CUDA out of memory")

    monkeypatch.setattr("dinotrack.training.pictures.buddies_picture", no_memory)
    tracker = fit("logger=none", fake_logger())
    assert is_plain(tracker)
    assert "log_image" not in MADE[-1].told
    assert [r.getMessage() for r in caplog.records if "pictures failed" in r.getMessage()] == [
        "pictures failed (OutOfMemoryError: CUDA out of memory); the fit goes on without"
    ]


@pytest.fixture(scope="module")
def wandb_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a `dinotrack run` that was logged to W&B offline."""
    folder = tmp_path_factory.mktemp("wandb") / "results"
    folder.mkdir()
    small = ["video=synthetic", "synthetic.frames=6", "synthetic.size=[64,48]", "queries=grid:16", "plan=false"]
    where = ["logger.wandb.mode=offline", "logger.wandb.log_model=true", f"cache_dir={folder.parent / 'cache'}"]
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("WANDB_DISABLE_GIT", "true")
        run_command(compose_config("run", overrides=[*TINY, *small, *where]), folder)
    return folder


def records(folder: Path) -> Iterator[Any]:
    """What the file of a W&B run holds: protobuf records in LevelDB's log format, blocks of 32 KiB after 7 bytes."""
    from wandb.proto.wandb_internal_pb2 import Record

    [path] = folder.glob("wandb/offline-run-*/run-*.wandb")
    content, at, whole, block = path.read_bytes(), 7, b"", 1 << 15
    assert content[:4] == b":W&B"
    while at + 7 <= len(content):
        if block - at % block < 7:  # the rest of a block that no header fits into
            at += block - at % block
            continue
        _, length, kind = struct.unpack_from("<IHB", content, at)
        whole += content[at + 7 : at + 7 + length]
        at += 7 + length
        if kind in (1, 4):  # a full record, or the last part of one
            record = Record()
            record.ParseFromString(whole)
            whole = b""
            yield record


def history(folder: Path) -> list[dict[str, Any]]:
    """Its rows of metrics; what is more than a number is a mapping."""
    return [plain_values(record.history.item) for record in records(folder) if record.HasField("history")]


def plain_values(items: Any) -> dict[str, Any]:
    """Items with a key, or a path of keys, and a value in JSON."""
    values: dict[str, Any] = {}
    for item in items:
        *path, name = item.nested_key or [item.key]
        place = values
        for part in path:
            place = place.setdefault(part, {})
        place[name] = json.loads(item.value_json)
    return values


def test_a_wandb_run_holds_every_scalar(wandb_run: Path) -> None:
    rows = history(wandb_run)
    names = {name for row in rows for name in row}
    with open(wandb_run / "metrics.csv", newline="") as file:
        of_csv = list(csv.DictReader(file))
    assert set(of_csv[0]) - {"step"} <= names
    expected = {
        "loss/total",
        "share/flow",
        "share/cycle",
        "lr/delta",
        "lr/refiner",
        "gradient/delta",
        "gradient/refiner",
    }
    expected |= {"speed/steps_per_second", "memory/process_mb", "pairs/cycle_share", "batch/flow", "batch/cycle"}
    expected |= {"tapvid/delta_avg", "tapvid/oa", "tapvid/aj", "tapvid/aj_best"}
    assert expected <= names
    assert {f"final/{m}/aj" for m in ("raw_features", "flow_chain", "dino_tracker")} <= names
    losses = {row["trainer/global_step"]: row["loss/total"] for row in rows if "loss/total" in row}
    assert losses == {int(row["step"]): pytest.approx(float(row["loss/total"])) for row in of_csv if row["loss/total"]}


def test_a_wandb_run_holds_pictures_overlay_table_and_checkpoint(wandb_run: Path) -> None:
    logged = {name: value for row in history(wandb_run) for name, value in row.items() if isinstance(value, dict)}
    [run] = wandb_run.glob("wandb/offline-run-*")
    for name in ("overlay", "similarity", "best_buddies"):
        path = run / "files" / logged[f"pictures/{name}"]["filenames"][0]
        picture = np.asarray(Image.open(path))
        assert picture.shape[2] == 3 and picture.std() > 10
        assert len(list(path.parent.glob(f"{name}_*.png"))) == 3, "at the start, after 3 steps and at the end"
    video = (
        logged["final/overlay"]["videos"][0]["path"]
        if "videos" in logged["final/overlay"]
        else logged["final/overlay"]["path"]
    )
    assert (run / "files" / video).read_bytes() == (wandb_run / "overlay.mp4").read_bytes()
    table = json.loads((run / "files" / logged["final/scores"]["path"]).read_text())
    scores = json.loads((wandb_run / "metrics.json").read_text())
    assert table["columns"][0] == "method"
    assert {row[0]: row[table["columns"].index("aj")] for row in table["data"]} == {
        method: pytest.approx(values["aj"]) for method, values in scores.items()
    }
    artifacts = [record.request.log_artifact.artifact for record in records(wandb_run) if record.HasField("request")]
    artifacts += [record.artifact for record in records(wandb_run) if record.HasField("artifact")]
    assert any(a.type == "model" and a.name.startswith("tracker-") for a in artifacts)


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two small clips as TAP-Vid-DAVIS has them."""
    path = tmp_path_factory.mktemp("benchmark") / "davis.pkl"
    made = {f"clip{seed}": stored(synthetic_clip(seed, 6, (64, 48), points=6)) for seed in range(2)}
    path.write_bytes(pickle.dumps(made))
    return path


def evaluate(davis: Path, folder: Path, *more: str) -> list[dict[str, str]]:
    """Rows of the scores that `dinotrack evaluate` writes."""
    benchmark = ["benchmark=tapvid_davis", f"benchmark.path={davis}", "benchmark.resolution=null"]
    cli.main(["evaluate", *more, *benchmark, f"folder={folder}", f"cache_dir={davis.parent / 'cache'}", *TINY])
    with open(folder / "scores.csv", newline="") as file:
        return list(csv.DictReader(file))


def test_an_evaluations_wandb_run_holds_its_means_and_a_table_of_clips(
    davis: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("WANDB_DISABLE_GIT", "true")
    folder = tmp_path / "raw"
    words = ["-m", "method=raw_features", "logger=wandb", "logger.wandb.mode=offline"]
    rows = evaluate(davis, folder, *words)
    assert len(list(folder.glob("wandb/offline-run-*"))) == 1, "of two jobs the last one tells"
    [run] = [record.run for record in records(folder) if record.HasField("run")][:1]
    assert (run.display_name, run.run_group) == ("raw", str(folder)[-wb.LONGEST :])
    logged = {name: value for row in history(folder) for name, value in row.items()}
    for name in ("delta_avg", "oa", "aj"):
        mean = sum(float(row[name]) for row in rows) / 2
        assert logged[f"final/raw_features/{name}"] == pytest.approx(mean, abs=1e-3)
    assert logged["final/raw_features/clips"] == 2
    [files] = folder.glob("wandb/offline-run-*/files")
    table = json.loads((files / logged["final/clips"]["path"]).read_text())
    found = [dict(zip(table["columns"], row, strict=True)) for row in table["data"]]
    assert [row["clip"] for row in found] == ["clip0", "clip1"]
    assert [row["aj"] for row in found] == [pytest.approx(float(row["aj"]), abs=1e-3) for row in rows]
    assert not (folder / "metrics.csv").exists()


def test_each_fit_of_an_evaluation_ends_with_its_clips_scores(davis: Path, tmp_path: Path) -> None:
    MADE.clear()
    fake = [fake_logger(), "callbacks.pictures.every=0", "callbacks.tapvid.every=9"]
    [row] = evaluate(davis, tmp_path / "fitted", "benchmark.clip=clip0", *fake)
    of_clip, of_all = (fake.told["log_metrics"][-1][0] for fake in MADE)
    for told in (of_clip, of_all):
        assert told["final/dino_tracker/aj"] == pytest.approx(float(row["aj"]), abs=1e-3)
    assert "final/dino_tracker/clips" in of_all and "final/dino_tracker/clips" not in of_clip
    assert [fake.told["finalize"][-1] for fake in MADE] == [("success",)] * 2


def test_a_wandb_run_has_the_config_and_the_folders_name(wandb_run: Path) -> None:
    [run] = [record.run for record in records(wandb_run) if record.HasField("run")][:1]
    assert (run.display_name, run.project) == ("results", "dinotrack")
    config = plain_values(run.config.update)
    for record in records(wandb_run):
        if record.HasField("config"):
            config |= plain_values(record.config.update)
    kept = OmegaConf.to_container(OmegaConf.load(wandb_run / "config.yaml"))
    assert isinstance(kept, dict) and config["losses"] == kept["losses"] and config["steps"] == 4


def lines(caplog: pytest.LogCaptureFixture) -> list[tuple[str, str]]:
    return [(r.levelname, r.getMessage()) for r in caplog.records if r.getMessage().startswith(("W&B", "logger"))]


def test_a_folder_that_cannot_be_written_is_left_to_the_other_loggers(
    fit: Fit, is_plain: IsPlain, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (tmp_path / "file").write_text("no folder")
    places = [f"logger.wandb.save_dir={tmp_path / 'file' / 'wandb'}", "logger.wandb.mode=offline"]
    tracker = fit(*places, f"+logger.csv2={{_target_: {CSV}, save_dir: ../file/csv}}")
    assert is_plain(tracker)
    assert [line.split(" (")[0] for _, line in lines(caplog)] == ["logger wandb failed", "logger csv2 failed"]
    assert (tmp_path / "run" / "metrics.csv").exists()


CSV = "lightning.pytorch.loggers.CSVLogger"


@pytest.fixture
def refused() -> str:
    """Address of a server that is not there."""
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        return f"http://127.0.0.1:{free.getsockname()[1]}"


@pytest.fixture
def silent_server() -> Iterator[str]:
    """Address of a server that takes a call and says nothing."""
    with socket.socket() as listening:
        listening.bind(("127.0.0.1", 0))
        listening.listen()
        yield f"http://127.0.0.1:{listening.getsockname()[1]}"


class Refuses(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        self.send_error(404)

    def log_message(self, format: str, *args: Any) -> None:
        pass


@pytest.fixture
def speaking_server() -> Iterator[str]:
    """Address of a server that answers, if with an error."""
    server = HTTPServer(("127.0.0.1", 0), Refuses)
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield f"http://127.0.0.1:{server.server_port}"
    server.shutdown()
    thread.join()
    server.server_close()


def test_a_server_is_reached_when_it_answers_in_time(refused: str, silent_server: str, speaking_server: str) -> None:
    assert wb.answers(speaking_server, 10)
    assert not wb.answers(refused, 10)
    assert not wb.answers(silent_server, 0.2)
    assert not wb.answers("http://no.such.host.invalid", 0.2)


def test_a_name_that_is_looked_up_for_ever_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    hanging = threading.Event()

    def hang(*_: Any, **__: Any) -> None:
        hanging.wait(20)
        raise OSError

    monkeypatch.setattr(wb, "urlopen", hang)
    assert not wb.answers("http://x", 0.05)
    hanging.set()


def test_keys_are_found_where_wandb_looks(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("NETRC", str(tmp_path / "netrc"))
    assert not wb.logged_in("https://api.wandb.ai")
    (tmp_path / "netrc").write_text("machine api.wandb.ai login user password " + KEY)
    assert wb.logged_in("https://api.wandb.ai") and wb.logged_in("https://api.other.wandb.ai")
    assert not wb.logged_in("https://wandb.example.org")
    (tmp_path / "netrc").write_text("no netrc")
    assert not wb.logged_in("https://api.wandb.ai")
    monkeypatch.setenv("WANDB_API_KEY", KEY)
    assert wb.logged_in("https://wandb.example.org")


@pytest.mark.parametrize(
    ("mode", "keyed", "reached", "expected"),
    [
        ("auto", False, False, wb.NOT_LOGGED_IN),
        ("online", False, True, wb.NOT_LOGGED_IN),
        ("auto", True, False, "server cannot be reached"),
        ("auto", True, True, ""),
        ("online", True, True, ""),
        ("offline", True, True, "as asked"),
    ],
)
def test_why_a_run_is_offline(
    mode: str, keyed: bool, reached: bool, expected: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(wb, "logged_in", lambda _: keyed)
    monkeypatch.setattr(wb, "answers", lambda *_: reached)
    assert wb.reason_for_offline(mode, "server", 1.0) == expected


class Run:
    """Stands in for a run of W&B."""

    def __init__(self, mode: str, folder: Path) -> None:
        self.mode, self.url, self.config = mode, "https://wandb.ai/x/y/z", dict[str, Any]()
        self.settings = type("Settings", (), {"sync_dir": str(folder / f"{mode}-run")})()

    def define_metric(self, *_: Any, **__: Any) -> None:
        pass


@pytest.mark.parametrize(
    ("environment", "mode", "keyed", "reached", "refuses", "level", "says"),
    [
        ("", "auto", False, True, False, "INFO", "W&B: offline (not logged in) in {offline}{sync}"),
        ("online", "auto", False, True, False, "WARNING", "W&B: offline (not logged in) in {offline}{sync}"),
        ("", "auto", True, True, False, "INFO", "W&B: online at https://wandb.ai/x/y/z; its files are in {online}"),
        ("", "auto", True, False, False, "WARNING", "W&B: offline (SERVER cannot be reached) in {offline}{sync}"),
        ("", "auto", True, True, True, "WARNING", "W&B: offline (SERVER: key refused) in {offline}{sync}"),
        ("offline", "auto", True, True, False, "INFO", "W&B: offline (as asked) in {offline}{sync}"),
        ("offline", "online", True, True, False, "INFO", "W&B: online at https://wandb.ai/x/y/z; its files are in {online}"),
        ("disabled", "auto", True, True, False, "INFO", "W&B: disabled"),
        ("online", "disabled", True, True, False, "INFO", "W&B: disabled"),
    ],
)  # fmt: skip
def test_one_line_says_where_a_run_is(
    environment: str,
    mode: Any,
    keyed: bool,
    reached: bool,
    refuses: bool,
    level: str,
    says: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:
    def started(how: str, *_: Any) -> Run:
        if refuses and how == "online":
            raise ValueError("key\nrefused")
        return Run(how, Path("results"))

    monkeypatch.setenv("WANDB_MODE", environment)
    monkeypatch.setattr(wb, "started", started)
    monkeypatch.setattr(wb, "logged_in", lambda _: keyed)
    monkeypatch.setattr(wb, "answers", lambda *_: reached)
    caplog.set_level(logging.INFO)
    logger = wb.open_wandb(str(tmp_path), mode=mode)
    assert (logger is None) == (says == "W&B: disabled")
    [(found_level, found)] = lines(caplog)
    import wandb

    server = wandb.setup().settings.base_url
    sync = "; upload it with: wandb sync results/offline-run"
    places = {how: f"results/{how}-run" for how in ("offline", "online")}
    assert (found_level, found.replace(server, "SERVER")) == (level, says.format(**places, sync=sync))


def test_an_unknown_mode_is_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("WANDB_MODE", "sometimes")
    with pytest.raises(DinotrackError, match=r"'sometimes' is none of .*offline"):
        wb.open_wandb(str(tmp_path))
    typed = compose_config("fit", overrides=["video=x", "logger.wandb.mode=offlin"])
    with pytest.raises(DinotrackError, match=r"'offlin' is none of .*offline"):
        RunLoggers(typed, tmp_path)  # not first when a fit begins, where loggers may fail
    RunLoggers(compose_config("fit", overrides=["video=x", "logger=[wandb,tensorboard]"]), tmp_path)


def test_a_sweep_names_and_groups_its_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert wb.named(str(tmp_path / "clip"), None, None) == {"name": "clip", "group": None}
    assert wb.named(str(tmp_path / "clip"), "mine", "ours") == {"name": "mine", "group": "ours"}
    jobs: list[dict[str, str | None]] = []
    advice = set[str]()

    def note(config: Any, folder: Path) -> None:
        advice.update((cli.how_to_go_on("fit", folder), resumed_by(folder)))
        jobs.append(wb.named(str(folder), config.logger.wandb.name, config.logger.wandb.group))

    monkeypatch.setattr("dinotrack.training.commands.fit_command", note)
    words = ["fit", "-m", "video=x", "seed=1,2", "cache_dir=c", "logger.wandb.timeout=3", "+benchmark.of=2"]
    cli.main([*words, f"hydra.sweep.dir={tmp_path / 'sweep'}"])
    group = str(tmp_path / "sweep")[-wb.LONGEST :]
    assert jobs == [{"name": f"video=x seed={seed}", "group": group} for seed in (1, 2)]
    again = f"hydra.sweep.dir={tmp_path / 'sweep'} resume=true"
    assert advice == {again, f"what was finished is kept, the same command with {again} goes on from there"}
    assert resumed_by(tmp_path) == f"hydra.run.dir={tmp_path} resume=true"


def test_a_fit_that_goes_on_is_logged_to_its_run(tmp_path: Path) -> None:
    assert wb.earlier_run(str(tmp_path)) is None
    folder = tmp_path / "wandb" / "offline-run-20250102_030405-ab12cd34"
    folder.mkdir(parents=True)
    (tmp_path / "wandb" / "latest-run").symlink_to(folder.name)
    assert wb.earlier_run(str(tmp_path)) == "ab12cd34"


def test_loggers_are_a_list_and_none_is_none(tmp_path: Path) -> None:
    def labels(*overrides: str) -> list[str]:
        loggers = RunLoggers(
            compose_config("fit", overrides=["video=x", "logger.wandb.mode=disabled", *overrides]), tmp_path
        )
        return [logger.label for logger in loggers.open()]

    assert list(compose_config("fit").logger) == ["csv", "wandb"]
    assert labels() == ["csv"], "W&B is disabled in tests"
    both = compose_config("fit", overrides=["logger=[wandb,tensorboard]"])
    assert list(both.logger) == ["csv", "wandb", "tensorboard"]
    none = compose_config("fit", overrides=["logger=none"])
    assert RunLoggers(none, tmp_path).open() == []
    assert RunLoggers(both, None).open() == [], "without a run folder there is nowhere to log to"


def test_a_class_that_is_not_there_is_an_error_of_the_config(tmp_path: Path) -> None:
    config = compose_config("fit", overrides=["video=x", "logger=csv", "+logger.mine._target_=no.such.Class"])
    with pytest.raises(InstantiationException, match=r"no\.such\.Class"):
        RunLoggers(config, tmp_path).open()


def test_tensorboard_holds_scalars_pictures_and_the_table(video: Video, cache: Path, tmp_path: Path) -> None:
    events = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator", reason="an extra")
    folder = tmp_path / "run"
    folder.mkdir()
    config = compose_config("fit", overrides=[*TINY, f"cache_dir={cache}", "video=x", "logger=tensorboard"])
    with RunLoggers(config, folder) as loggers:
        train(config, prepare(config, video), folder=folder, loggers=loggers)
        loggers.results({"dino_tracker": {"aj": 12.5, "per_threshold": [1.0]}}, None, None)
    found = events.EventAccumulator(str(folder / "tensorboard"), size_guidance={"images": 0}).Reload()
    assert {"loss/total", "share/flow", "gradient/delta", "final/dino_tracker/aj"} <= set(found.Tags()["scalars"])
    assert [image.step for image in found.Images("pictures/overlay")] == [0, 2, 3]
    [text] = found.Tensors("final/scores/text_summary")
    assert b"| dino_tracker | 12.5 |" in text.tensor_proto.string_val[0]
    assert (folder / "metrics.csv").exists()


def documented() -> list[str]:
    """Settings of W&B that docs/logging.md names: `.name` after `logger.wandb.project` is another one."""
    text = (Path(__file__).parents[1] / "docs" / "logging.md").read_text().split("## What is logged")[0]
    found = {name.strip(".") for name in re.findall(r"`(?:logger\.wandb)?(\.[a-z_]+)", text)}
    return sorted(found)


def test_the_documented_settings_of_wandb_compose_and_reach_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    names = documented()
    assert {"mode", "timeout", "upload_timeout", "project", "name", "group", "log_model"} <= set(names)
    own = {"mode": "offline", "timeout": 3.0, "upload_timeout": 4.0, "project": "p", "name": "n", "group": "g"}
    own |= {"log_model": True}
    words = [f"logger.wandb.{name}={own[name]}" for name in names] + ["+logger.wandb.tags=[a,b]"]
    config = compose_config("fit", overrides=["video=x", *words])
    started: list[Any] = []

    def start(*given: Any) -> Run:
        started.append(given)
        return Run("offline", tmp_path)

    monkeypatch.setattr(wb, "started", start)
    [_, logger] = RunLoggers(config, tmp_path).open()
    [(mode, timeout, upload_timeout, options)] = started
    assert (mode, timeout, upload_timeout) == ("offline", 3.0, 4.0)
    assert [options[name] for name in ("project", "name", "group", "tags")] == ["p", "n", "g", ["a", "b"]]
    assert logger.inner is not None and logger.inner._log_model is True  # type: ignore[attr-defined]


def test_a_resumed_logger_of_csv_is_found_behind_its_guard(tmp_path: Path) -> None:
    [guarded] = RunLoggers(compose_config("fit", overrides=["video=x", "logger=csv"]), tmp_path).open()
    assert isinstance(unguarded(guarded), CSVLogger)
    assert guarded.save_dir == str(tmp_path) and guarded.log_dir == f"{tmp_path}/"
