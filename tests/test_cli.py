"""The commands as a user calls them: results, and one clear line for bad input with nothing left behind."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image

import dinotrack
from dinotrack import cli
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.files import write_atomically

TINY = ["experiment=tiny", "steps=2", "synthetic.frames=9", "synthetic.size=[64,48]", "resolution=64"]


def call(*arguments: str) -> None:
    cli.main(list(arguments))


@pytest.fixture(scope="module")
def finished_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Folder of a tiny `dinotrack run`, with the published radius: its weights go to the published files."""
    folder = tmp_path_factory.mktemp("run") / "results"
    call(
        "run",
        *TINY,
        "method.head.radius=35",
        "queries=grid:16",
        f"hydra.run.dir={folder}",
        f"cache_dir={folder.parent / 'cache'}",
    )
    return folder


def test_run_writes_every_result(finished_run: Path) -> None:
    expected = {
        "tracks.npz",
        "tracks.csv",
        "overlay.mp4",
        "tracker.ckpt",
        "config.yaml",
        "summary.json",
        "metrics.json",
    }
    assert expected <= {path.name for path in finished_run.iterdir()}
    arrays = np.load(finished_run / "tracks.npz")
    points = 4 * 3
    assert arrays["queries"].shape == (points, 3)
    assert arrays["tracks"].shape == (points, 9, 2)
    assert arrays["visible"].dtype == bool
    assert arrays["confidence"].min() >= 0
    assert arrays["confidence"].max() <= 1
    assert arrays["size"].tolist() == [64, 48]
    assert np.array_equal(arrays["tracks"][:, 0], arrays["queries"][:, 1:])
    rows = (finished_run / "tracks.csv").read_text().splitlines()
    assert rows[0] == "point,t,x,y,visible,confidence"
    assert len(rows) == 1 + points * 9


def test_summary_names_stages_with_seconds_and_memory(finished_run: Path) -> None:
    stages = {stage["name"]: stage for stage in json.loads((finished_run / "summary.json").read_text())["stages"]}
    assert {"preprocess", "fit", "track", "render", "score"} <= stages.keys()
    assert all(stage["seconds"] >= 0 and stage["peak_memory_mb"] > 0 for stage in stages.values())
    assert all(stage["cpu_seconds"] >= 0 for stage in stages.values()) and stages["fit"]["cpu_seconds"] > 0


def test_metrics_compare_the_fit_with_both_baselines(finished_run: Path) -> None:
    metrics = json.loads((finished_run / "metrics.json").read_text())
    assert metrics.keys() == {"raw_features", "flow_chain", "dino_tracker"}
    assert all(0 <= scores[key] <= 100 for scores in metrics.values() for key in ("delta_avg", "oa", "aj"))


def test_track_from_the_checkpoint_repeats_the_run(finished_run: Path, tmp_path: Path) -> None:
    checkpoint = finished_run / "tracker.ckpt"
    options = [
        "queries=grid:16",
        f"cache_dir={tmp_path / 'cache'}",
        f"hydra.run.dir={tmp_path / 'again'}",
        "device=cpu",
    ]
    call("track", f"checkpoint={checkpoint}", *options)
    again, first = (np.load(folder / "tracks.npz") for folder in (tmp_path / "again", finished_run))
    np.testing.assert_allclose(again["tracks"], first["tracks"], atol=1e-4)
    assert np.array_equal(again["visible"], first["visible"])


def test_python_api_loads_the_same_tracker(finished_run: Path) -> None:
    tracker = dinotrack.load_tracker(finished_run / "tracker.ckpt")
    queries = torch.tensor([[0.0, 20.0, 30.0], [4.0, 33.5, 8.25]])
    tracks = tracker.track(queries)
    assert torch.equal(tracks.xy[1, 4], queries[1, 1:])
    assert tracks.xy.shape == (2, 9, 2)


def test_fit_from_python_takes_experiment_and_overrides(tmp_path: Path) -> None:
    video = synthetic_clip(seed=3, frames=6, size=(64, 48)).video
    overrides = ["steps=2", "resolution=64", f"cache_dir={tmp_path}"]
    masks = torch.zeros(6, 48, 64, dtype=torch.bool)
    masks[:, 10:30, 20:40] = True
    tracker = dinotrack.fit(video, masks, experiment="tiny", overrides=overrides, progress=False)
    assert isinstance(tracker, dinotrack.DinoTracker)
    tracker.save(tmp_path / "t.ckpt")
    again = dinotrack.load_tracker(tmp_path / "t.ckpt", video, cache=tmp_path)
    queries = torch.tensor([[0.0, 30.0, 20.0]])
    torch.testing.assert_close(again.track(queries).xy, tracker.track(queries).xy)
    torch.load(tmp_path / "t.ckpt", weights_only=True)


def test_fit_names_an_unknown_experiment() -> None:
    video = synthetic_clip(frames=3, size=(64, 48)).video
    with pytest.raises(dinotrack.DinotrackError, match="no_such"):
        dinotrack.fit(video, experiment="no_such", progress=False)


def test_render_draws_over_the_tracked_video(finished_run: Path, tmp_path: Path) -> None:
    path = json.loads((finished_run / "summary.json").read_text())["video"]["path"]
    call_render = [str(finished_run / "tracks.npz"), path, str(tmp_path / "again.mp4")]
    with pytest.raises(SystemExit) as end:
        call("render", *call_render)
    assert end.value.code == 0
    assert dinotrack.load_video(tmp_path / "again.mp4").frames.shape == (
        9,
        3,
        240,
        320,
    )  # tiny videos are shown enlarged


def test_view_writes_the_run_as_a_page(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        call("view", str(finished_run), "--output", str(tmp_path / "view.html"))
    assert end.value.code == 0
    assert (tmp_path / "view.html").read_text().count('class="frame"') == 9


def folder_of_frames(folder: Path, sizes: list[tuple[int, int]]) -> Path:
    folder.mkdir()
    for number, size in enumerate(sizes):
        noise = np.random.default_rng(number).integers(0, 255, (size[1], size[0], 3), dtype=np.uint8)
        Image.fromarray(noise).save(folder / f"{number:03}.png")
    return folder


def bad_inputs(tmp_path: Path) -> dict[str, tuple[list[str], str]]:
    """Name -> overrides, and what the one line must say."""
    text = tmp_path / "not_a_video.mp4"
    text.write_text("hello")
    queries = tmp_path / "nan.csv"
    queries.write_text("t,x,y\n0,nan,3\n")
    masks = folder_of_frames(tmp_path / "masks", [(64, 48)] * 3)
    other = folder_of_frames(tmp_path / "sizes", [(64, 48), (64, 48), (60, 48)])
    one = folder_of_frames(tmp_path / "one", [(64, 48)])
    clip = folder_of_frames(tmp_path / "clip", [(64, 48)] * 9)
    return {
        "no such file": (["video=nowhere.mp4"], "nowhere.mp4"),
        "not a video": ([f"video={text}"], "not_a_video.mp4"),
        "one frame": ([f"video={one}"], "at least 2"),
        "frame sizes": ([f"video={other}"], "002.png"),
        "mask count": ([f"video={clip}", f"masks={masks}"], "3 masks"),
        "query outside": (["queries=[[0,900,3]]"], "query 0"),
        "query time": (["queries=[[99,3,3]]"], "query 0"),
        "NaN query": ([f"queries={queries}"], "query 0"),
        "no weights": (["backbone=dinov2_vits14", "backbone.checkpoint=none.pth"], "none.pth"),
        "no such device": (["device=tpu9000"], "tpu9000"),
        "alignment": (["method.delta.alignment=sideways"], "sideways"),
        "too small": (["resolution=24"], "resolution"),
        "no truth": (["truth=nowhere.json", f"video={clip}"], "truth=nowhere.json"),
    }


CASES = [
    "no such file",
    "not a video",
    "one frame",
    "frame sizes",
    "mask count",
    "query outside",
    "query time",
    "NaN query",
]
CASES += ["no weights", "no such device", "alignment", "too small", "no truth"]


@pytest.mark.usefixtures("unguarded")
@pytest.mark.parametrize("case", CASES)
def test_bad_input_gets_one_line_and_leaves_nothing(
    case: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    overrides, words = bad_inputs(tmp_path)[case]
    run = tmp_path / "runs" / "bad"
    with pytest.raises(SystemExit) as end:
        call("run", *TINY, f"hydra.run.dir={run}", f"cache_dir={tmp_path / 'cache'}", *overrides)
    assert end.value.code == 2
    said = [line for line in capfd.readouterr().err.splitlines() if line.startswith("dinotrack:")]
    assert len(said) == 1
    assert words in said[0]
    assert not run.exists()
    assert not list(tmp_path.rglob("*.ckpt"))


def test_a_video_of_noise_has_no_tracklet(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    clip = folder_of_frames(tmp_path / "clip", [(64, 48)] * 4)
    options = [f"video={clip}", f"hydra.run.dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(SystemExit) as end:
        call("run", *TINY, *options, "supervision.gamma=1e-9", "queries=grid:16")
    assert end.value.code == 2
    assert "no optical-flow tracklet" in capfd.readouterr().err


def test_a_still_video_has_no_best_buddies_and_says_so(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    frame = synthetic_clip(frames=2, size=(64, 48)).video.frames[:1]
    video = dinotrack.Video(frame.expand(5, -1, -1, -1).clone())
    overrides = ["steps=1", "resolution=64", f"cache_dir={tmp_path}"]
    tracker = dinotrack.fit(video, experiment="tiny", overrides=overrides, progress=False)
    assert "no DINO best buddies" in caplog.text
    assert tracker.track(torch.tensor([[0.0, 30.0, 20.0]])).xy.isfinite().all()


def test_full_disk_while_caching_leaves_no_half_written_file(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("dinotrack.tensor_struct.save_file", full)
    with pytest.raises(SystemExit) as end:
        call("preprocess", *TINY, f"hydra.run.dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}")
    assert end.value.code == 2
    assert "No space left" in capfd.readouterr().err
    assert not list(tmp_path.rglob(".*"))  # no temporary file; the features, streamed before, are whole
    for path in tmp_path.rglob("*.safetensors"):
        dinotrack.structs.FeatureMap.load(path)


def test_import_pulls_in_neither_lightning_nor_hydra() -> None:
    code = "import sys, dinotrack; print([m for m in ('lightning', 'hydra', 'omegaconf', 'wandb') if m in sys.modules])"
    found = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert found.stdout.strip() == "[]"


def test_help_names_every_command(capsys: pytest.CaptureFixture[str]) -> None:
    call("--help")
    text = capsys.readouterr().out
    assert all(f"  {name} " in text for name in [*cli.HYDRA_COMMANDS, *cli.TOOLS])


def test_unknown_command_is_named() -> None:
    with pytest.raises(SystemExit, match="trakc"):
        call("trakc")


def test_an_empty_folder_of_the_users_stays(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "empty"
    mine.mkdir(parents=True)
    with pytest.raises(SystemExit):
        call("run", *TINY, "video=nowhere.mp4", f"hydra.run.dir={mine / 'made' / 'run'}")
    assert mine.is_dir()
    assert not list(mine.iterdir())


@pytest.mark.parametrize(
    ("overrides", "words"),
    [
        (["video=???"], "no video given"),
        (["size=96"], "size=96"),
        (["steps=-1"], "steps=-1"),
        (["queries=30"], "'30'"),
        (["masks=3"], "no such masks"),
        (["backbone.checkpoint=x.pth"], "dense SIFT has one layer"),
        (["flow.pretrained=true"], "DIS has no weights"),
    ],
)
def test_other_wrong_settings_get_one_line_too(
    overrides: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    with pytest.raises(SystemExit) as end:
        call("run", *TINY, *overrides, f"hydra.run.dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}")
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert words in error
    assert "Traceback" not in error
    assert not (tmp_path / "run").exists()


def test_part_of_a_synthetic_video_is_scored_on_its_own_frames(tmp_path: Path) -> None:
    options = [
        f"hydra.run.dir={tmp_path / 'run'}",
        f"cache_dir={tmp_path / 'cache'}",
        "render=false",
        "plan=false",
        "queries=grid:16",
    ]
    call("run", *TINY, "start=2", "stop=7", *options)
    scores = json.loads((tmp_path / "run" / "metrics.json").read_text())
    assert scores["flow_chain"]["delta_avg"] > 30  # shifted truth would leave next to nothing


def test_weights_go_out_to_the_published_files_and_come_back(finished_run: Path, tmp_path: Path) -> None:
    with pytest.raises(SystemExit) as end:
        call("export", str(finished_run / "tracker.ckpt"), str(tmp_path / "published"), "--iteration", "20")
    assert not end.value.code
    assert sorted(path.name for path in (tmp_path / "published").iterdir()) == [
        "delta_dino_20.pt",
        "tracker_head_20.pt",
    ]
    common = ["backbone=dense_sift", "backbone.stride=4", "size=[64,48]", f"hydra.run.dir={tmp_path / 'back'}"]
    synthetic = ["video=synthetic", "synthetic.frames=9", "synthetic.size=[64,48]"]
    call("import", f"published={tmp_path / 'published'}", *synthetic, *common)
    options = ["queries=grid:16", "render=false", f"cache_dir={finished_run.parent / 'cache'}"]
    call("track", f"checkpoint={tmp_path / 'back' / 'tracker.ckpt'}", *options, f"hydra.run.dir={tmp_path / 'tracked'}")
    before, after = (np.load(folder / "tracks.npz") for folder in (finished_run, tmp_path / "tracked"))
    # The published head falls back to the mean over Ω where the softmax leaves it; elsewhere nothing changes.
    assert np.median(np.abs(before["tracks"] - after["tracks"])) < 0.01


@pytest.mark.parametrize(
    ("command", "overrides", "words"),
    [
        ("run", ["interpolate=cubic"], "interpolate=cubic: no such interpolation"),
        ("fit", ["method=flow_chain"], "method=flow_chain has nothing to fit; use dinotrack run"),
        ("run", ["method=flow_chain", "method.through=256"], "method.through=256: expected [W, H]"),
        ("fit", ["callbacks.rebuild.every=0"], "rebuild: every=0"),
        ("fit", ["callbacks.rebuild.search.gamma=-1"], "gamma=-1"),
        ("import", ["published=nowhere", "backbone=dense_sift", "video=synthetic"], "nowhere"),
        ("import", ["backbone=dense_sift", "video=synthetic"], "no weights given; add published=folder"),
    ],
)
def test_wrong_settings_of_the_full_method_get_one_line(
    command: str, overrides: list[str], words: str, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    tiny = [] if command == "import" else TINY
    options = [f"hydra.run.dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"]
    with pytest.raises(SystemExit) as end:
        call(command, *tiny, *overrides, *options)
    assert end.value.code == 2
    error = capfd.readouterr().err
    assert words in error and "Traceback" not in error
    assert not list(tmp_path.rglob("*.ckpt"))


def test_hidden_positions_lie_on_a_curve_on_request(finished_run: Path, tmp_path: Path) -> None:
    checkpoint, cache = finished_run / "tracker.ckpt", finished_run.parent / "cache"
    options = [f"checkpoint={checkpoint}", "queries=grid:16", "render=false", f"cache_dir={cache}"]
    call("track", *options, "interpolate=linear", f"hydra.run.dir={tmp_path / 'linear'}")
    before, after = (np.load(folder / "tracks.npz") for folder in (finished_run, tmp_path / "linear"))
    seen = before["visible"]
    assert np.array_equal(before["tracks"][seen], after["tracks"][seen]) and np.array_equal(seen, after["visible"])
    for n, t in zip(*np.nonzero(~seen), strict=True):
        known = np.nonzero(seen[n])[0]
        expected = [np.interp(t, known, before["tracks"][n, known, k]) for k in range(2)]
        assert np.allclose(after["tracks"][n, t], expected, atol=1e-3)


@pytest.mark.slow
def test_a_stopped_fit_goes_on_from_the_command_line(tmp_path: Path) -> None:
    """SIGTERM from outside, as a scheduler sends it; the exit code is the shell's."""
    import signal
    import time

    words = ["fit", *TINY, "steps=4000", "checkpoint_every=2", f"hydra.run.dir={tmp_path / 'run'}"]
    command = [sys.executable, "-m", "dinotrack", *words, f"cache_dir={tmp_path / 'cache'}", "resume=true"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as process:
        while process.poll() is None and not (tmp_path / "run" / "resume.ckpt").exists():
            time.sleep(0.1)
        process.send_signal(signal.SIGTERM)
        _, error = process.communicate(timeout=60)
    assert process.returncode == 128 + signal.SIGTERM
    assert "stopped by SIGTERM at step" in error and "resume=true goes on from there" in error
    reached = torch.load(tmp_path / "run" / "resume.ckpt", weights_only=True)["global_step"]
    assert 2 <= reached < 4000 and not (tmp_path / "run" / "tracker.ckpt").exists()


@pytest.mark.parametrize(
    ("command", "remedy"),
    [
        ("run", "the same command with hydra.run.dir={folder} resume=true goes on from there"),
        ("preprocess", "the same command goes on from there"),
    ],
)
def test_a_signal_outside_a_fit_ends_in_one_line(
    command: str,
    remedy: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    """While features are made, say: what is half written goes, and nothing is left of a run that had kept nothing."""
    import os
    import signal

    half, folder = tmp_path / "half", tmp_path / "run"

    def interrupted(path: Path) -> None:
        path.write_text("half")
        os.kill(os.getpid(), signal.SIGTERM)

    def work(*_: object) -> None:
        write_atomically(half, interrupted)

    monkeypatch.setattr(f"dinotrack.training.commands.{command}_command", work)
    with pytest.raises(SystemExit) as end:
        call(command, *TINY, f"hydra.run.dir={folder}")
    assert end.value.code == 128 + signal.SIGTERM and not [*tmp_path.iterdir()]
    [line] = capsys.readouterr().err.strip().splitlines()
    said = remedy.format(folder=folder)
    assert line == f"dinotrack: stopped by SIGTERM; what was finished is kept, {said}"
