"""`dinotrack evaluate` as a user calls it: clips are skipped, jobs spread, a killed one goes on, scores come from the disk."""

import csv
import os
import pickle
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser

from dinotrack import DinotrackError, cli
from dinotrack.data import synthetic_benchmark
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.data.synthetic_benchmark import stored
from dinotrack.methods.dino_tracker import read_checkpoint
from dinotrack.methods.published import export_checkpoint
from dinotrack.sealed import forget_checks
from dinotrack.training.evaluating import first_to_log, one_clip_a_job
from dinotrack.viewer import open_sources

SIZE, FRAMES = (64, 48), 5
TINY = ["experiment=tiny", "steps=3", "resolution=64", "method.batch.flow_pairs=16", "method.delta.hidden=[4,8]"]
TINY += ["trainer.log_every_n_steps=1"]
RAW = ["experiment=tiny", "resolution=64", "method=raw_features"]


MANY = bytes.fromhex("89504e470d0a1a0a0000000d49484452000186a0000186a0080200000000000000")
"""The head of a picture of 100 000 x 100 000 pixels."""


@pytest.fixture(scope="module")
def davis(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Three small clips as TAP-Vid-DAVIS has them."""
    made = {f"clip{seed}": stored(synthetic_clip(seed, FRAMES, SIZE, points=6)) for seed in range(3)}
    path = tmp_path_factory.mktemp("benchmark") / "davis.pkl"
    path.write_bytes(pickle.dumps(made))
    return path


def words(davis: Path, folder: Path, *more: str) -> list[str]:
    benchmark = ["benchmark=tapvid_davis", f"benchmark.path={davis}", "benchmark.resolution=null"]
    return ["evaluate", *benchmark, f"folder={folder}", f"cache_dir={folder.parent / 'cache'}", *more]


def scores(folder: Path) -> list[dict[str, str]]:
    """Rows of the table, without what a second run of the same cannot repeat."""
    with open(folder / "scores.csv", newline="") as file:
        rows = list(csv.DictReader(file))
    return [{k: v for k, v in row.items() if not k.startswith(("seconds", "peak", "config"))} for row in rows]


@pytest.fixture(scope="module")
def evaluated(davis: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The three clips tracked by raw features."""
    folder = tmp_path_factory.mktemp("evaluated") / "raw"
    cli.main(words(davis, folder, *RAW))
    return folder


@pytest.fixture
def raw(evaluated: Path, tmp_path: Path) -> Path:
    """A copy of it that a test may change."""
    return shutil.copytree(evaluated, tmp_path / "raw")


def test_every_method_predicts_skips_and_scores(
    davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    folder = tmp_path / "fitted"
    cli.main(words(davis, folder, *TINY))
    first = scores(folder)
    assert [row["clip"] for row in first] == ["clip0", "clip1", "clip2"]
    assert {row["group"] for row in first} == {"low", "middle", "high"}
    assert all(0 <= float(row["aj"]) <= 100 and row["benchmark"] == "tapvid_davis" for row in first)
    kept = {path.name for path in (folder / "clip1").iterdir()}
    assert kept == {"config.yaml", "summary.json", "tracks.npz", "truth.safetensors", "tracker.ckpt", "metrics.csv"}
    assert read_checkpoint(folder / "clip1" / "tracker.ckpt")["dinotrack"]["video"]["frames"] == FRAMES
    before = (folder / "clip0" / "tracks.npz").stat().st_mtime_ns
    capsys.readouterr()
    cli.main(words(davis, folder, *TINY))
    assert capsys.readouterr().out.count("done before") == 3
    assert (folder / "clip0" / "tracks.npz").stat().st_mtime_ns == before and scores(folder) == first
    for method in ("raw_features", "flow_chain"):
        cli.main(words(davis, tmp_path / method, "experiment=tiny", "resolution=64", f"method={method}"))
        assert {row["method"] for row in scores(tmp_path / method)} == {method}


def test_score_needs_neither_the_benchmark_nor_a_fit(raw: Path, tmp_path: Path) -> None:
    first = scores(raw)
    (raw / "scores.csv").unlink()
    shown, [tracked] = open_sources(raw / "clip1")  # as view and render do
    assert (
        shown.content_hash == synthetic_clip(1, FRAMES, SIZE, points=6).video.content_hash and tracked.name == "clip1"
    )
    with pytest.raises(DinotrackError, match=r"what .*clip0 was tracked in"):
        open_sources(raw / "clip1", raw / "clip0")
    moved = raw.rename(tmp_path / "elsewhere")
    with pytest.raises(SystemExit) as done:
        cli.main(["score", str(moved), "--output", str(tmp_path / "all")])
    assert done.value.code == 0 and scores(moved) == first
    assert (tmp_path / "all.md").is_file() and (tmp_path / "all.csv").is_file()


def test_clips_by_name_in_several_jobs_make_one_table(
    davis: Path,
    evaluated: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.chdir(tmp_path)
    capsys.readouterr()
    cli.main(words(davis, tmp_path / "jobs", *RAW, "-m"))
    assert scores(tmp_path / "jobs") == scores(evaluated)
    out = " ".join(capsys.readouterr().out.split())
    assert "1 of 3 clips are done; meanwhile, dinotrack score" in out and out.count("scores.csv has each") == 1
    cli.main(words(davis, tmp_path / "named", *RAW, "benchmark.clip=[clip2,clip0]"))
    assert [row["clip"] for row in scores(tmp_path / "named")] == ["clip0", "clip2"]


def test_of_jobs_that_end_at_once_one_tells_the_loggers(tmp_path: Path) -> None:
    rows = [{"clip": "a", "aj": 1.0}, {"clip": "b", "aj": float("nan")}]
    assert [first_to_log(tmp_path / "x", rows) for _ in range(3)] == [True, False, False]
    assert first_to_log(tmp_path / "x", [{**rows[0], "aj": 2.0}]), "these are others"


def test_a_multirun_lists_the_clips_unless_some_are_named(davis: Path) -> None:
    asked = ["-m", *words(davis, Path("x"))[1:], "method=raw_features,flow_chain", "benchmark.mode=first"]
    clips = ["benchmark.clip='clip0','clip1','clip2'", "benchmark.of=3"]
    assert one_clip_a_job(asked) == ["-m", *clips, *asked[1:]]
    assert one_clip_a_job([*asked[1:], "-m"])[0].startswith("benchmark.clip=")
    odd = type("Odd", (), {"names": lambda self: ["it's", "a,b", "${x}"]})
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("dinotrack.training.evaluating.benchmark_of", lambda config: odd())
        [given] = OverridesParser.create().parse_overrides(one_clip_a_job(asked)[1:2])
    each = [f"x={value}" for value in given.sweep_string_iterator()]
    assert [one.value() for one in OverridesParser.create().parse_overrides(each)] == ["it's", "a,b", "\\${x}"]
    named = [*asked, "benchmark.clip=clip0,clip2"]
    assert one_clip_a_job(named) == named
    assert one_clip_a_job(["-m", "benchmark=synthetic", "benchmark.subset=four"])[1].count(",") == 3


@pytest.mark.parametrize(
    ("wrong", "message"),
    [
        (["benchmark=tapvid_davis,robotap"], "cannot list the clips of several benchmarks"),
        (["benchmark=synthetic", "benchmark.subset=all,four"], "cannot list the clips of several benchmarks"),
        (["benchmark=synthetic", "benchmark.subset=five"], "subset='five'; choose all or four"),
        (["benchmark=synthetic", "seed=[1"], "an override cannot be read"),
    ],
)
def test_a_wrong_multirun_gets_one_line(wrong: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["evaluate", "-m", *wrong])
    assert stop.value.code == 2
    lines = capsys.readouterr().err.strip().splitlines()
    assert len(lines) == 1 and message in lines[0]


def test_what_a_method_does_not_read_is_no_other_setting(davis: Path, raw: Path) -> None:
    shutil.rmtree(raw / "clip2")
    cli.main(words(davis, raw, *RAW, "steps=99", "queries=grid:9", "losses.flow.weight=3"))
    assert len(scores(raw)) == 3


def test_a_clip_without_queries_costs_no_fit(tmp_path: Path) -> None:
    clip = stored(synthetic_clip(0, 5, SIZE, points=4))
    hidden = {**clip, "occluded": np.ones((4, 5), bool)}
    path = tmp_path / "davis.pkl"
    path.write_bytes(pickle.dumps({"clip0": clip, "hidden": hidden}))
    cli.main(words(path, tmp_path / "fitted", *TINY))
    rows = scores(tmp_path / "fitted")
    assert [row["queries"] for row in rows] == ["4", "0"] and rows[1]["aj"] == "nan" and rows[1]["group"] == ""
    assert not (tmp_path / "fitted" / "hidden" / "tracker.ckpt").exists()


def test_the_users_empty_folders_stay(tmp_path: Path) -> None:
    mine = tmp_path / "mine" / "deep"
    mine.mkdir(parents=True)
    with pytest.raises(SystemExit):
        cli.main(words(tmp_path / "nothing", mine, *RAW))
    assert mine.is_dir()


def test_other_settings_need_another_folder(
    davis: Path, raw: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(raw / "clip2")
    with pytest.raises(SystemExit):
        cli.main(words(davis, raw, *RAW, "benchmark.mode=first"))
    assert "other settings (benchmark.mode was strided, is first); give another folder=" in capsys.readouterr().err
    other = tmp_path / "other.pkl"
    other.write_bytes(davis.read_bytes())
    for more, message in (
        (f"benchmark.path={other}", "benchmark.path was"),
        ("start=2", "start=2: an evaluation tracks the benchmark's clips as they are"),
        ("benchmark.clip=[]", "names no clip"),
    ):
        with pytest.raises(SystemExit):
            cli.main([*words(davis, raw, *RAW), more])
        assert message in capsys.readouterr().err
    cli.main(words(davis, raw, *RAW, "benchmark.clip=clip2"))  # another choice of clips is no other setting
    assert len(scores(raw)) == 3


def test_a_clip_that_fails_is_named_and_the_others_are_done(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    made: dict[str, Any] = {f"clip{seed}": stored(synthetic_clip(seed, 5, SIZE, points=4)) for seed in range(2)}
    made["broken"] = {**made["clip0"], "points": np.zeros((4, 3, 2))}
    made["large"] = {**made["clip0"], "video": [MANY]}
    path = tmp_path / "davis.pkl"
    path.write_bytes(pickle.dumps({name: made[name] for name in ("clip0", "broken", "large", "clip1")}))
    with pytest.raises(SystemExit) as stop:
        cli.main(words(path, tmp_path / "raw", *RAW))
    assert stop.value.code == 2
    lines = capsys.readouterr().err
    assert "[2/4] broken: " in lines and "clip broken: points is" in lines
    assert "clip large: frame 0 of video is no readable picture" in lines
    assert "2 of 4 clips failed (broken, large)" in lines
    assert [row["clip"] for row in scores(tmp_path / "raw")] == ["clip0", "clip1"]
    assert not (tmp_path / "raw" / "broken").exists()


def test_a_missing_or_hostile_benchmark_gets_one_line(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    class Runs:
        def __reduce__(self) -> Any:
            return os.system, (f"touch {tmp_path / 'ran'}",)

    bad = tmp_path / "bad.pkl"
    bad.write_bytes(pickle.dumps({"a": Runs()}))
    for path, message in ((bad, "is refused: it names posix.system"), (tmp_path / "no", "no folder")):
        with pytest.raises(SystemExit):
            cli.main(words(path, tmp_path / "raw", *RAW))
        assert message in capsys.readouterr().err
    with pytest.raises(SystemExit):
        cli.main(["evaluate", "benchmark=tapvid_davis", *RAW, f"folder={tmp_path / 'raw'}"])
    assert "where is tapvid_davis? add benchmark.path=FILE_OR_FOLDER" in capsys.readouterr().err
    assert not (tmp_path / "ran").exists() and not (tmp_path / "raw").exists()


@pytest.mark.slow
def test_a_killed_evaluation_goes_on_to_the_same_table(davis: Path, tmp_path: Path) -> None:
    """SIGKILL in the midst of a fit; the second start skips what is done and resumes what is not."""
    fitted = [*TINY, "steps=14", "checkpoint_every=2", "benchmark.clip=[clip0,clip1]", "threads=1"]  # sums as in here
    cli.main(words(davis, tmp_path / "whole", *fitted))
    folder = tmp_path / "killed"
    command = [sys.executable, "-m", "dinotrack", *words(davis, folder, *fitted)]
    process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 120
    while not (folder / "clip1" / "resume.ckpt").exists() and process.poll() is None and time.monotonic() < until:
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    assert (folder / "clip0" / "summary.json").exists()
    if process.returncode == -signal.SIGKILL:  # not so fast that it had ended
        assert not (folder / "clip1" / "summary.json").exists()
    cli.main(words(davis, folder, *fitted))
    assert scores(folder) == scores(tmp_path / "whole")
    assert not (folder / "clip1" / "resume.ckpt").exists()


def test_published_weights_track_without_a_fit(davis: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """Weights that we fit and export, laid where the published ones lie, give the tracks of the fit."""
    from PIL import Image

    clip = synthetic_clip(0, 5, SIZE, points=4)
    video = tmp_path / "data" / "3" / "video"
    video.mkdir(parents=True)
    for number, frame in enumerate(clip.video.frames):
        Image.fromarray(frame.permute(1, 2, 0).numpy()).save(video / f"{number:05d}.png")
    entry = {
        "video_idx": 3,
        "h": SIZE[1],
        "w": SIZE[0],
        "query_points": {0: clip.xy[:, 0].tolist()},
        "target_points": {0: clip.xy.numpy()},
        "occluded": {0: ~clip.visible.numpy()},
    }
    file = tmp_path / "data" / "benchmark.pkl"
    file.write_bytes(pickle.dumps({"videos": [entry]}))
    common = ["evaluate", "benchmark=dino_tracker_davis", f"benchmark.path={file}", f"cache_dir={tmp_path / 'cache'}"]
    common += ["experiment=tiny", "steps=2", f"size=[{SIZE[0]},{SIZE[1]}]", "method.batch.flow_pairs=16"]
    common += ["method.delta.alignment=published", "method.head.fallback=published", "method.delta.hidden=[4,8,16]"]
    common += ["method.head.radius=35"]
    published = ["benchmark.published_weights=true", f"folder={tmp_path / 'published'}"]
    with pytest.raises(SystemExit):
        cli.main([*common, *published])
    cli.main([*common, f"folder={tmp_path / 'fitted'}"])
    export_checkpoint(tmp_path / "fitted" / "3" / "tracker.ckpt", tmp_path / "data" / "3" / "models" / "dino_tracker")
    cli.main([*common, *published])
    a, b = (np.load(tmp_path / name / "3" / "tracks.npz") for name in ("fitted", "published"))
    assert np.allclose(a["tracks"], b["tracks"], atol=1e-3) and np.array_equal(a["visible"], b["visible"])
    with pytest.raises(SystemExit):
        cli.main([*common, *published, "method=raw_features", f"folder={tmp_path / 'x'}"])


def test_make_benchmark_writes_what_evaluate_reads(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(synthetic_benchmark, "FRAMES", (FRAMES,))
    monkeypatch.setattr(synthetic_benchmark, "SIZE", SIZE)
    with pytest.raises(SystemExit) as done:
        cli.main(["make-benchmark", str(tmp_path / "files"), "--subset", "four", "--format", "list"])
    assert done.value.code == 0
    (path,) = (Path(line) for line in capsys.readouterr().out.splitlines() if line.endswith(".pkl"))
    assert path == tmp_path / "files" / "synthetic_list.pkl"
    common = [*RAW, f"cache_dir={tmp_path / 'cache'}", "backbone.stride=8"]
    listed = [
        "benchmark=rgb_stacking",
        f"benchmark.path={path}",
        "benchmark.resolution=null",
        f"folder={tmp_path / 'a'}",
    ]
    cli.main(["evaluate", *listed, *common])
    cli.main(["evaluate", "benchmark=synthetic", "benchmark.subset=four", f"folder={tmp_path / 'b'}", *common])
    tables = [
        {tuple(row[k] for k in ("queries", "aj", "oa", "delta_avg")) for row in scores(tmp_path / n)} for n in "ab"
    ]
    assert tables[0] == tables[1] and len(tables[0]) == 4


def test_damaged_predictions_are_named_and_made_again(
    davis: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    first = scores(raw)
    for name in ("summary.json", "tracks.npz", "truth.safetensors"):
        path = raw / "clip0" / name
        content = bytearray(path.read_bytes())
        content[len(content) // 2] ^= 1
        path.write_bytes(content)
        forget_checks()
        with pytest.raises(SystemExit):
            cli.main(["score", str(raw)])
        assert f"delete {raw / 'clip0'} to predict it again" in capsys.readouterr().err
        cli.main(words(davis, raw, *RAW, "benchmark.clip=[clip0,clip1]"))
        said = capsys.readouterr()
        assert f"WARNING: predicting clip0 again: {path}" in said.err and said.out.count("done before") == 1
        assert scores(raw) == first


def test_a_damaged_summary_of_a_clip_that_is_not_asked_for_is_named(
    davis: Path, raw: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.rmtree(raw / "clip1")
    (raw / "clip0" / "summary.json").write_text("{")
    with pytest.raises(SystemExit):
        cli.main(words(davis, raw, *RAW, "benchmark.clip=clip1"))
    assert "summary.json is damaged" in capsys.readouterr().err
