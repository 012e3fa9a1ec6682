"""Multiruns: the words that Hydra gets, what jobs leave behind, and the report, against the jobs' own files."""

import csv
import io
import json
import math
import pickle
import shutil
import subprocess
import sys
from contextlib import redirect_stderr
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf
from PIL import Image

from dinotrack import DinotrackError, cli
from dinotrack.data.clips import clips_of
from dinotrack.data.synthetic import synthetic_clip
from dinotrack.data.synthetic_benchmark import stored
from dinotrack.data.tapvid import TapVid
from dinotrack.sealed import read_json, write_json
from dinotrack.training import sweeps
from dinotrack.training.config import compose_config, config_folder
from dinotrack.training.jobs import folder_name
from dinotrack.training.sweep_jobs import Job, asked, read_jobs
from dinotrack.training.sweep_plot import is_grid, log_spaced
from dinotrack.training.sweep_report import page, points_of, swept_in, write_report
from dinotrack.training.sweeps import prepared
from dinotrack.training.unfitted import unfitted_tracker

TINY = ["experiment=tiny", "steps=2", "synthetic.frames=6", "synthetic.size=[64,48]", "resolution=64", "threads=1"]
TINY += ["method.batch.flow_pairs=16", "method.delta.hidden=[4,8]", "trainer.log_every_n_steps=1"]
ODD = [
    "a b.mp4",
    "it's.mp4",
    'say "x".mp4',
    "a,b=c.mp4",
    "(1)[2]{3}.mp4",
    "${x}.mp4",
    "back\\slash.mp4",
    "\\",
    "é ü.mp4",
    "-m.mp4",
]
ODD += ["end\\'.mp4", "#1;2:3&4|5.mp4", "null", "1e-4.mp4", "$HOME.mp4", "x=1,2.mp4", "two  spaces.mp4 "]


def report_of(folder: Path, *more: str) -> int:
    with pytest.raises(SystemExit) as stop:
        cli.main(["sweep-report", str(folder), *more])
    return int(stop.value.code or 0)


def rows_of(path: Path) -> list[dict[str, str]]:
    with open(path, newline="") as file:
        return list(csv.DictReader(file))


# --- words ------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "more"),
    [
        (["-m", "losses.flow.weight=1,2", "seed=0"], ["swept=['losses.flow.weight']"]),
        (["-m", "backbone.layer=12,16", "video=x"], ["swept=['backbone.layer']", "layers=[12,16]"]),
        (["-m", "backbone.layer=range(4,13,4)"], ["swept=['backbone.layer']", "layers=[4,8,12]"]),
        (["-m", "backbone.layer=1,2", "backbone=a,b"], ["swept=['backbone.layer','backbone']"]),
        (["-m", "backbone.layer=1,2", "layers=[1,2,3]"], ["swept=['backbone.layer']"]),
        (["sweep=layers"], ["swept=['backbone.layer']", "layers=[12,16,20,24]"]),
        (["sweep=layers", "backbone.layer=3,5"], ["swept=['backbone.layer']", "layers=[3,5]"]),
        (["sweep=layers", "backbone.layer=3"], ["swept=[]"]),
        (["sweep=facets"], ["swept=['backbone.facet']", "facets=[token,query,key,value]"]),
        (
            ["sweep=lambdas", "seed=0,1"],
            ["swept=['losses.best_buddy.weight','losses.refined_best_buddy.weight','seed']"],
        ),
        (["-m", "hydra.launcher.n_jobs=1,2", "seed=1"], ["swept=[]"]),
    ],
)
def test_jobs_are_told_what_differs_and_what_one_pass_gives_all(words: list[str], more: list[str]) -> None:
    plain = [word for word in words if word != "-m"]
    assert prepared("fit", words) == ["--multirun", *more, *plain]


def test_the_flag_may_stand_anywhere() -> None:
    assert prepared("fit", ["seed=0", "-m", "steps=1,2"]) == ["--multirun", "swept=['steps']", "seed=0", "steps=1,2"]


@pytest.mark.parametrize(
    "words", [["seed=1"], ["sweep=null"], ["--help"], ["sweep=layers", "--cfg", "job"], ["seed=1,2"]]
)
def test_other_words_stay_as_they_are(words: list[str]) -> None:
    assert prepared("fit", words) == words


def test_evaluate_lists_clips_but_for_a_search() -> None:
    words = prepared("evaluate", ["sweep=lambdas", "benchmark.subset=four"])
    assert words[1].startswith("benchmark.clip='smooth-0',") or "benchmark.clip=" in " ".join(words)
    assert "swept=['losses.best_buddy.weight','losses.refined_best_buddy.weight','benchmark.clip']" in words
    searched = prepared("evaluate", ["sweep=optuna", "benchmark.subset=four"])
    assert not any(word.startswith(("benchmark.clip", "benchmark.of")) for word in searched)


def test_optuna_alone_searches_our_space_and_with_lists_theirs() -> None:
    assert "sweep=optuna" in prepared("fit", ["hydra/sweeper=optuna"])
    words = prepared("fit", ["hydra/sweeper=optuna", "losses.cycle.weight=tag(log,interval(0.1,1))"])
    assert "sweep=search" in words and "swept=['losses.cycle.weight']" in words
    config = compose_config("fit", overrides=["sweep=optuna", "video=x"], with_hydra=True)
    assert config.objective == "aj" and config.hydra.sweeper.direction == "maximize"
    assert config.hydra.sweeper._target_.endswith("OptunaSweeper")


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "sweep").glob("*.yaml")))
@pytest.mark.parametrize("command", ["fit", "evaluate"])
def test_every_sweep_composes_with_every_command(command: str, name: str) -> None:
    config = compose_config(command, overrides=[f"sweep={name}", "video=x"], with_hydra=True)
    words = [f"{key}={value}" for key, value in (config.hydra.sweeper.params or {}).items()]
    assert all(each.is_sweep_override() for each in OverridesParser.create().parse_overrides(words))


@pytest.mark.parametrize("name", sorted(path.stem for path in (config_folder() / "hydra" / "launcher").glob("*.yaml")))
def test_every_launcher_composes(name: str) -> None:
    config = compose_config("fit", overrides=[f"hydra/launcher={name}", "video=x"], with_hydra=True)
    assert config.hydra.launcher._target_.endswith("Launcher")


def test_a_sweep_of_the_users_own_in_a_folder_of_theirs(tmp_path: Path) -> None:
    (tmp_path / "sweep").mkdir()
    content = "# @package _global_\nhydra: {sweeper: {params: {backbone.layer: '2,4'}}}\n"
    (tmp_path / "sweep" / "mine.yaml").write_text(content)
    words = prepared("fit", ["-m", "--config-dir", str(tmp_path), "sweep=mine"])
    more = ["swept=['backbone.layer']", "layers=[2,4]"]
    assert words == ["--multirun", "--config-dir", str(tmp_path), *more, "sweep=mine"]


def test_a_plugin_that_is_not_there_is_named_with_its_extra(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sweeps, "find_spec", lambda name: None)
    with pytest.raises(
        DinotrackError, match=r"hydra/launcher=ray needs a plugin of Hydra; pip install 'dinotrack\[ray\]'"
    ):
        prepared("fit", ["-m", "hydra/launcher=ray", "seed=0,1"])
    assert prepared("fit", ["seed=0"]) == ["seed=0"]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["sweep=lamdas"], "the config cannot be composed"),
        (["-m", "seed=[1"], "an override cannot be read"),
        (["videos=nowhere"], "no clips in nowhere"),
        (["-m", "--cfg", "job", "seed=1,2"], "--cfg shows what one job would have"),
        (["videos=nowhere", "video=x"], "in place of video="),
        (["videos=tests/*.py", "masks=m"], "masks=m is of one video, videos=tests/*.py are"),
        (["videos=tests/*.py", "queries=points.csv"], "queries=points.csv is of one video, videos=tests/*.py are"),
    ],
)
def test_wrong_words_get_one_line(words: list[str], message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stop:
        cli.main(["fit", *words])
    assert stop.value.code == 2
    lines = [line for line in capsys.readouterr().err.splitlines() if line.startswith("dinotrack:")]
    assert len(lines) == 1 and message in lines[0]


# --- folders of clips -------------------------------------------------------------------------------------------------


def test_odd_names_reach_their_job_exactly(tmp_path: Path) -> None:
    folder = tmp_path / "my clips (1)"
    folder.mkdir()
    for name in ODD:
        (folder / f"{name}.mp4").touch()
    words = prepared("run", [f"videos={folder}", "experiment=tiny"])
    given = {each.key_or_group: each for each in OverridesParser.create().parse_overrides(words[1:])}
    words = [
        f"video={value}" for value in given["video"].sweep_string_iterator()
    ]  # as Hydra's sweeper makes them for each job
    found = [
        OmegaConf.create({"video": each.value()}).video for each in OverridesParser.create().parse_overrides(words)
    ]
    assert sorted(found) == sorted(str(folder / f"{name}.mp4") for name in ODD)


def test_a_folder_of_clips_and_a_pattern(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for name in ("clip10.mp4", "clip2.MP4", "notes.txt", ".hidden.mp4"):
        (tmp_path / name).touch()
    (tmp_path / "frames").mkdir()
    Image.new("RGB", (4, 4)).save(tmp_path / "frames" / "0.png")
    (tmp_path / "empty").mkdir()
    assert [path.name for path in clips_of(str(tmp_path))] == ["clip2.MP4", "clip10.mp4", "frames"]
    assert "passed over 2 that are no clips: empty, notes.txt" in caplog.text
    assert [path.name for path in clips_of(f"{tmp_path}/clip*.mp4")] == ["clip10.mp4"]
    with pytest.raises(DinotrackError, match="for the frames of one clip, use video="):
        clips_of(str(tmp_path / "frames"))


def test_folder_names_tell_values_apart() -> None:
    assert folder_name({"losses.flow.weight": 1e-4, "seed": 0}) == "losses.flow.weight=0.0001,seed=0"
    odd = [folder_name({"x": value}) for value in ("a/b", "a_b", "a%2Fb", "..", "a" * 300, "a" * 301)]
    assert len(set(odd)) == len(odd) and not any("/" in name or len(name) > 250 for name in odd)


# --- jobs and the report ----------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def swept(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A sweep of two weights, of which one is none."""
    folder = tmp_path_factory.mktemp("sweep") / "it"
    options = [f"hydra.sweep.dir={folder}", f"cache_dir={folder.parent / 'cache'}"]
    said = io.StringIO()
    with redirect_stderr(said), pytest.raises(SystemExit):
        cli.main(["fit", "-m", *TINY, "losses.best_buddy.weight=1e-4,nonsense", "seed=0,1", *options])
    (folder.parent / "said").write_text(said.getvalue())
    return folder


def test_a_multirun_whose_jobs_fail_ends_without_a_traceback(swept: Path) -> None:
    said = (swept.parent / "said").read_text()
    assert "dinotrack: this job failed, its reason stands above" in said and "nonsense" in said
    assert "Traceback" not in said


def test_the_report_repeats_the_jobs_own_files(swept: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert report_of(swept) == 0
    assert capsys.readouterr().out.split() == [str(swept / f"report.{ending}") for ending in ("csv", "md", "png")]
    rows = rows_of(swept / "report.csv")
    assert [row["status"] for row in rows] == ["done", "done", "failed", "failed"]
    for number in (0, 1):
        own = json.loads((swept / str(number) / "metrics.json").read_text())["dino_tracker"]
        stages = json.loads((swept / str(number) / "summary.json").read_text())["stages"]
        last = rows_of(swept / str(number) / "metrics.csv")[-1]
        row = rows[number]
        assert (row["job"], row["losses.best_buddy.weight"], row["seed"]) == (str(number), "0.0001", str(number))
        assert all(float(row[name]) == pytest.approx(own[name], abs=1e-4) for name in ("delta_avg", "oa", "aj"))
        assert float(row["loss/total"]) == float(last["loss/total"])
        assert float(row["seconds"]) == pytest.approx(sum(stage["seconds"] for stage in stages), abs=1e-3)
    values = [float(row["aj"]) for row in rows[:2]]
    mean, error = sum(values) / 2, abs(values[0] - values[1]) / 2
    text = (swept / "report.md").read_text()
    assert f"{mean:.1f} ± {error:.1f}" in text and "4 jobs: 2 done, 2 failed." in text
    assert "Mean ± standard error over seeds and clips." in text and "**" not in text, "of one there is no best"
    assert "## Without a result" in text and "nonsense" in text
    with Image.open(swept / "report.png") as picture:
        assert picture.width > 400 and picture.height > 400


def test_jobs_that_never_began_or_were_killed_are_listed(swept: Path, tmp_path: Path) -> None:
    copy = tmp_path / "it"
    copy.mkdir()
    (copy / "multirun.yaml").write_bytes((swept / "multirun.yaml").read_bytes())
    for number, status in (("0", "done"), ("2", "unfinished")):
        (copy / number).mkdir()
        record = read_json(swept / number / "job.json", "")
        write_json(copy / number / "job.json", {**record, "status": status, "reason": ""})
    jobs = read_jobs(copy)
    assert [(job.folder, job.status) for job in jobs[:2]] == [("0", "failed"), ("2", "unfinished")]
    assert "summary.json" in jobs[0].reason  # it says done, but its results are gone
    assert [(job.status, job.values["seed"]) for job in jobs[2:]] == [("not started", 1)] * 2
    text = write_report(copy, plot=False)[1].read_text()
    [common] = [line for line in text.splitlines() if line.startswith("In all: ")]
    assert "–" in text and "steps=2" in common and not any(name in common for name in ("seed=", "losses."))


def test_a_sweep_that_is_gone_on_with_counts_no_job_twice(swept: Path, tmp_path: Path) -> None:
    """The second time with other words that say where and how; its plan is there, and one of its jobs has run so far."""
    copy = tmp_path / "it"
    shutil.copytree(swept, copy)
    plan, record = copy / "multirun.yaml", copy / "0" / "job.json"
    plan.write_text(plan.read_text().replace("- threads=1", "- threads=2\n    - resume=true\n    - +logger.a=b"))
    kept = read_json(record, "")
    assert "threads=1" in kept["overrides"] and "threads=2" in plan.read_text()
    others = [word for word in kept["overrides"] if word != "threads=1"]
    write_json(record, {**kept, "overrides": [*others, "threads=2", "resume=true", "+logger.a=b"]})
    assert [job.status for job in read_jobs(copy)] == ["done", "done", "failed", "failed"]


def test_a_sweep_over_devices_has_a_job_for_each() -> None:
    words = ["seed=1", "device=cpu"]
    assert asked(words, ["device"]) == set(words) and asked(words, ["seed"]) == {"seed=1"}


@pytest.mark.parametrize("name", ["metrics.csv", "metrics.json", "summary.json"])
def test_results_that_were_damaged_are_not_reported(name: str, swept: Path, tmp_path: Path) -> None:
    shutil.copytree(swept / "0", tmp_path / "0")
    assert read_jobs(tmp_path)[0].status == "done"
    path = tmp_path / "0" / name
    text = path.read_text()
    place = max(index for index, letter in enumerate(text) if letter in "12345678")
    path.write_text(text[:place] + chr(ord(text[place]) + 1) + text[place + 1 :])
    [job] = read_jobs(tmp_path)
    assert job.status == "failed" and name in job.reason and not job.scores


def test_a_folder_without_jobs_and_a_damaged_record_get_one_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert report_of(tmp_path) == 2 and "holds no jobs of a sweep" in capsys.readouterr().err
    assert report_of(tmp_path / "nothere") == 2 and "there is no folder" in capsys.readouterr().err
    (tmp_path / "job.json").write_text("{")
    assert report_of(tmp_path) == 2 and "is damaged" in capsys.readouterr().err


def test_without_matplotlib_the_tables_are_written_and_the_extra_is_named(
    swept: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "matplotlib.figure", None)
    jobs = [Job(str(n), {"x": n}, scores={"aj": float(n)}) for n in (1, 2)]
    monkeypatch.setattr("dinotrack.training.sweep_report.read_jobs", lambda folder: jobs)
    assert report_of(swept, "--output", str(tmp_path / "out")) == 2
    assert "pip install 'dinotrack[sweep]'" in capsys.readouterr().err
    assert sorted(path.name for path in tmp_path.iterdir()) == ["out.csv", "out.md"]
    assert report_of(swept, "--output", str(tmp_path / "out"), "--no-plot") == 0


def grid(**lists: list[Any]) -> list[Job]:
    import itertools

    combinations = itertools.product(*lists.values())
    return [
        Job(str(n), dict(zip(lists, each, strict=True)), scores={"aj": float(n)}) for n, each in enumerate(combinations)
    ]


def test_seeds_are_averaged_with_their_standard_error() -> None:
    points = points_of(grid(weight=[0.1, 1.0], seed=[0, 1, 2]))
    assert [point.values for point in points] == [{"weight": 0.1}, {"weight": 1.0}]
    mean, error = points[1].means["aj"]
    assert (mean, error) == (4.0, pytest.approx(1 / math.sqrt(3)))


def test_the_report_says_bold_where_something_is() -> None:
    scores = page("it", grid(weight=[0.1, 1.0]))
    assert "\n\nThe best in bold.\n\n" in scores and scores.count("**1.0**") == 1
    several_jobs = grid(weight=[0.1, 1.0], seed=[0, 1])
    several = page("it", several_jobs)
    assert "Mean ± standard error over seeds and clips; the best in bold." in several and "**2.5 ± 0.5**" in several
    failed = replace(several_jobs[0], status="failed", reason="no a|b")
    assert "| no a\\|b |" in page("it", [failed, *several_jobs[1:]])
    losses = page("it", [replace(job, scores={}, losses={"loss/total": 1.5}) for job in grid(weight=[0.1, 1.0])])
    assert "bold" not in losses and "**" not in losses and "Mean" not in losses and "| 1.5 |" in losses


def test_small_values_and_losses_are_written_in_full(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    weights, losses = [2e-5, 5e-5, 25e-5], [3.21e-5, 1 / 3, 1.0]
    jobs = [
        Job(str(n), {"weight": weight}, losses={"loss/total": loss}, scores={"aj": 100 / 3}, seconds={"fit": 1 / 3})
        for n, (weight, loss) in enumerate(zip(weights, losses, strict=True))
    ]
    monkeypatch.setattr("dinotrack.training.sweep_report.read_jobs", lambda folder: jobs)
    rows = rows_of(write_report(tmp_path, plot=False)[0])
    assert [float(row["weight"]) for row in rows] == weights
    assert [float(row["loss/total"]) for row in rows] == losses
    assert {(row["aj"], row["seconds_fit"]) for row in rows} == {("33.3333", "0.3333")}


def test_what_a_plot_shows(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from matplotlib.axes import Axes

    drawn, bars, without = Axes.errorbar, list[float](), list[bool]()
    monkeypatch.setattr(
        Axes, "errorbar", lambda self, x, y, e, **more: (bars.extend(e), drawn(self, x, y, e, **more))[1]
    )
    for jobs in (grid(a=[1, 2], b=["x", "y"]), grid(a=[1, 2], b=[0, 1e-4, 1e-2], c=[True, False]), grid(a=[None, 2])):
        (tmp_path / "report").unlink(missing_ok=True)
        from dinotrack.training.sweep_plot import save_plot

        save_plot(jobs, tmp_path / "plot.png")
        assert (tmp_path / "plot.png").stat().st_size > 5000
        without.append(all(map(math.isnan, bars)))
        bars.clear()
    assert without == [True, False, True], "a bar is of several jobs"
    assert is_grid(grid(a=[1, 2], b=[3, 4]), ["a", "b"])
    search = [Job(str(n), {"a": n, "b": -n}) for n in range(3)]
    assert swept_in(search) == ["a", "b"] and not is_grid(search, ["a", "b"])


@pytest.mark.parametrize(
    ("values", "logarithmic"),
    [
        ([1e-4, 25e-5, 5e-4], True),
        ([12, 16, 20], False),
        ([1, 10, 100], True),
        ([0.1, 1.0], True),
        ([1, 2], False),
        ([5], False),
    ],
)
def test_axes_are_logarithmic_where_the_values_are(values: list[float], logarithmic: bool) -> None:
    assert log_spaced(values) == logarithmic


def test_each_value_of_an_evaluation_has_a_folder_and_each_clip_a_job(tmp_path: Path) -> None:
    made = {f"clip{seed}": stored(synthetic_clip(seed, 5, (64, 48), points=4)) for seed in range(2)}
    (tmp_path / "davis.pkl").write_bytes(pickle.dumps(made))
    benchmark = ["benchmark=tapvid_davis", f"benchmark.path={tmp_path / 'davis.pkl'}", "benchmark.resolution=null"]
    raw = ["experiment=tiny", "method=raw_features", f"folder={tmp_path / 'all'}", f"cache_dir={tmp_path / 'cache'}"]
    cli.main(["evaluate", "-m", *benchmark, *raw, "resolution=32,64"])
    for resolution in (32, 64):
        folder = tmp_path / "all" / f"resolution={resolution}"
        assert {row["clip"] for row in rows_of(folder / "scores.csv")} == {"clip0", "clip1"}
        assert "resolution: 64" in (folder / "clip0" / "config.yaml").read_text() or resolution == 32
    assert report_of(tmp_path / "all") == 0
    found = {row["job"]: float(row["aj"]) for row in rows_of(tmp_path / "all" / "report.csv")}
    assert len(found) == 4
    for row in rows_of(tmp_path / "all" / "resolution=64" / "scores.csv"):
        assert found[f"resolution=64/{row['clip']}"] == pytest.approx(float(row["aj"]), abs=1e-4)


@pytest.fixture(scope="module")
def methods(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`runs/evaluate` of a multirun over two methods and two clips without `folder=`; one clip fails in one method."""
    place = tmp_path_factory.mktemp("methods")
    made = {f"clip{seed}": stored(synthetic_clip(seed, 5, (64, 48), points=4)) for seed in range(2)}
    (place / "davis.pkl").write_bytes(pickle.dumps(made))

    def failing(config: Any, video: Any, progress: Any) -> Any:
        if config.method.name == "flow_chain" and video.content_hash == hashes[1]:
            raise DinotrackError("no flow today")
        return unfitted_tracker(config, video, progress)

    benchmark = TapVid(str(place / "davis.pkl"), resolution=None)
    hashes = [benchmark.open(name).video.content_hash for name in benchmark.names()]
    words = ["benchmark=tapvid_davis", "benchmark.path=davis.pkl", "benchmark.resolution=null", "experiment=tiny"]
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(place)
        patch.setattr("dinotrack.training.runs.unfitted_tracker", failing)
        with pytest.raises(SystemExit):
            cli.main(["evaluate", "-m", *words, "resolution=32", "method=raw_features,flow_chain"])
    return place / "runs" / "evaluate"


def found_in(folder: Path) -> dict[str, str]:
    return {f"{job.values['method']} {job.values['benchmark.clip']}": job.status for job in read_jobs(folder)}


DONE = {f"{method} clip{n}": "done" for method in ("raw_features", "flow_chain") for n in range(2)}


def test_methods_in_folders_of_their_own_are_reported_each_and_together(methods: Path) -> None:
    flow = {"flow_chain clip0": "done", "flow_chain clip1": "failed"}
    assert found_in(methods) == {**DONE, **flow}
    assert found_in(methods / "tapvid_davis-flow_chain") == flow
    raw = {"raw_features clip0": "done", "raw_features clip1": "done"}
    assert found_in(methods / "tapvid_davis-raw_features") == raw
    [failed] = [job for job in read_jobs(methods / "tapvid_davis-flow_chain") if job.status == "failed"]
    assert "no flow today" in failed.reason and failed.folder == "clip1"
    assert not (methods / "tapvid_davis-dino_tracker").exists()


def test_score_lays_methods_of_a_multirun_side_by_side(
    methods: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As documented: `dinotrack score runs/evaluate/*`, where the plan lies as well."""
    with pytest.raises(SystemExit) as done:
        cli.main(["score", *map(str, sorted(methods.iterdir())), "--output", str(tmp_path / "all")])
    assert done.value.code == 0 and not caplog.records
    rows = rows_of(tmp_path / "all.csv")
    assert [(row["method"], row["clip"]) for row in rows] == [
        ("flow_chain", "clip0"),
        ("raw_features", "clip0"),
        ("raw_features", "clip1"),
    ]


def test_a_job_without_a_record_belongs_to_its_method(methods: Path, tmp_path: Path) -> None:
    copy, name = tmp_path / "evaluate", "tapvid_davis-flow_chain"
    shutil.copytree(methods, copy)
    (copy / name / "jobs" / "clip=clip1.json").unlink()
    (copy / "tapvid_davis-raw_features" / "jobs" / "clip=clip1.json").unlink()
    never = {"flow_chain clip0": "done", "flow_chain clip1": "not started"}
    assert found_in(copy / name) == never
    assert found_in(copy) == {**DONE, **never}  # raw features lie there: a command of one run has made them since
    raw = copy / "tapvid_davis-raw_features"
    assert found_in(raw) == {name: status for name, status in DONE.items() if name.startswith("raw")}
    unrecorded = read_jobs(raw)[1]
    assert unrecorded.folder == "clip1" and unrecorded.scores["aj"] == read_jobs(methods)[3].scores["aj"]


def test_a_later_multirun_of_one_method_leaves_nothing_unstarted(
    methods: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(methods.parents[1])
    words = ["benchmark=tapvid_davis", "benchmark.path=davis.pkl", "benchmark.resolution=null", "experiment=tiny"]
    cli.main(["evaluate", "-m", *words, "resolution=32", "method=flow_chain"])
    for folder, count in ((methods, 4), (methods / "tapvid_davis-flow_chain", 2)):
        assert [job.status for job in read_jobs(folder)] == ["done"] * count


@pytest.mark.parametrize(
    ("words", "above"),
    [
        (["method=raw_features,flow_chain"], "runs/evaluate"),
        (["method=raw_features,flow_chain", "'folder=out/of ${method.name}'"], "out"),
        (["method=raw_features,flow_chain", "folder=out"], None),
        (["resolution=32,64"], None),
    ],
)
def test_the_plan_of_an_evaluation_lies_above_its_folders(words: list[str], above: str | None) -> None:
    found = [each.strip("'") for each in words]
    prefix = "hydra.sweep.dir="
    told = [word.removeprefix(prefix) for word in prepared("evaluate", ["-m", *found]) if word.startswith(prefix)]
    assert told == ([f"'{above}'"] if above else [])


def test_another_place_for_the_plan_of_an_evaluation_is_refused() -> None:
    with pytest.raises(DinotrackError, match="lie in folder="):
        prepared("evaluate", ["-m", "hydra.sweep.dir=elsewhere", "resolution=32,64"])


def test_an_objective_needs_ground_truth_and_a_name_that_exists(
    tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    clip = tmp_path / "clip"
    clip.mkdir()
    for number in range(3):
        Image.new("RGB", (64, 48), (number * 40, 0, 0)).save(clip / f"{number}.png")
    for words, message in (
        ([f"video={clip}", "objective=aj"], "objective=aj needs ground truth; take video=synthetic"),
        (["objective=ajj"], "objective=ajj: the ground truth gives delta_avg, oa, aj"),
    ):
        with pytest.raises(SystemExit) as stop:
            cli.main(["fit", *TINY, *words, f"hydra.run.dir={tmp_path / 'run'}", f"cache_dir={tmp_path / 'cache'}"])
        assert stop.value.code == 2 and message in capfd.readouterr().err


# --- whole sweeps -----------------------------------------------------------------------------------------------------


def dinotrack(*words: str) -> None:
    """The command in a process of its own: what the tests' import hook wraps cannot be sent to a launcher's processes."""
    subprocess.run([sys.executable, "-m", "dinotrack", *words], check=True)


@pytest.mark.slow
def test_three_by_two_twice_and_by_joblib(tmp_path: Path) -> None:
    """The second time builds nothing; two jobs side by side give the same numbers to the bit."""
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher", reason="joblib is an extra")
    cache = tmp_path / "cache"
    words = ["-m", *TINY, "losses.best_buddy.weight=1e-4,25e-5,5e-4", "resolution=48,64", f"cache_dir={cache}"]
    cli.main(["fit", *words, f"hydra.sweep.dir={tmp_path / 'first'}"])
    built = {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")}
    assert len(built) == 2 * 3  # features, tracklets and best buddies at each resolution; the video has masks
    cli.main(["fit", *words, f"hydra.sweep.dir={tmp_path / 'second'}"])
    assert {path: path.stat().st_mtime_ns for path in cache.rglob("*.safetensors")} == built
    own = [f"hydra.sweep.dir={tmp_path / 'joblib'}", f"cache_dir={tmp_path / 'other'}"]
    dinotrack("fit", *words[:-1], *own, "hydra/launcher=local")
    for number in range(6):
        kept = [(tmp_path / name / str(number) / "metrics.json").read_bytes() for name in ("first", "second", "joblib")]
        assert kept[0] == kept[1] == kept[2]
    assert len(list((tmp_path / "other").rglob("*.safetensors"))) == 2 * 3


@pytest.mark.slow
def test_submitit_runs_the_jobs_of_a_sweep(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_submitit_launcher", reason="submitit is an extra")
    options = ["hydra/launcher=slurm_local", f"hydra.sweep.dir={tmp_path / 'it'}", f"cache_dir={tmp_path / 'cache'}"]
    dinotrack("fit", "-m", *TINY, "losses.best_buddy.weight=1e-4,25e-5", *options)
    assert [job.status for job in read_jobs(tmp_path / "it")] == ["done", "done"]
    assert list((tmp_path / "it" / ".submitit").glob("*_log.out"))


@pytest.mark.slow
def test_optuna_maximises_aj(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper", reason="Optuna is an extra")
    options = ["hydra.sweeper.n_trials=3", f"hydra.sweep.dir={tmp_path / 'it'}", f"cache_dir={tmp_path / 'cache'}"]
    cli.main(["fit", *TINY, "hydra/sweeper=optuna", *options])
    jobs = read_jobs(tmp_path / "it")
    found = (tmp_path / "it" / "optimization_results.yaml").read_text()
    assert len(jobs) == 3 and f"best_value: {max(job.scores['aj'] for job in jobs)}" in found
    assert len({str(job.values) for job in jobs}) == 3
