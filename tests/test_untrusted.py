"""Nothing that comes with a file is ever run: by the source itself, and by trying."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest
from omegaconf import OmegaConf

import dinotrack
from dinotrack import DinotrackError, cli
from dinotrack.data.export import save_npz
from dinotrack.errors import printable, reason_of
from dinotrack.tools.picture import FittedRun
from dinotrack.training.config import compose_config, own_targets, read_run_config
from dinotrack.training.words import readable

SOURCE = Path(dinotrack.__file__).parent
NEVER = {
    "eval",
    "exec",
    "compile",
    "__import__",
    "os.system",
    "os.popen",
    "os.startfile",
    "pickle.load",
    "pickle.loads",
}
NEVER |= {"pickle.Unpickler", "marshal.load", "marshal.loads", "shelve.open", "joblib.load", "dill.load", "dill.loads"}
NEVER |= {"yaml.load", "yaml.unsafe_load", "yaml.full_load", "yaml.load_all", "torch.hub.load", "subprocess.getoutput"}
ONLY_WITH = {"torch.load": ("weights_only", True), "np.load": ("allow_pickle", False)}
SHELLS = ("subprocess.run", "subprocess.Popen", "subprocess.call", "subprocess.check_output", "subprocess.check_call")
STARTS = {"training/stages.py"}
"""Modules that start a program: git, for the commit that a run was made at."""
CONFIGS = {"training/sweep_jobs.py"}
"""Modules that read a run's config by OmegaConf: values alone, which nothing instantiates."""


def dangers(source: str, file: str = "x.py") -> Iterator[str]:
    """What a module calls that may run what a file says."""
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Call):
            continue
        name = ast.unparse(node.func)
        given = {word.arg: word.value for word in node.keywords}
        if name in NEVER or name.startswith(("os.exec", "os.spawn")):
            yield f"{file}:{node.lineno} calls {name}"
        if name in ONLY_WITH:
            option, value = ONLY_WITH[name]
            said = given.get(option)
            if not (isinstance(said, ast.Constant) and said.value is value):
                yield f"{file}:{node.lineno} calls {name} without {option}={value}"
        if name in SHELLS and (file not in STARTS or "shell" in given):
            yield f"{file}:{node.lineno} calls {name}"
        if name == "OmegaConf.load" and file not in CONFIGS:
            yield f"{file}:{node.lineno} calls {name}; read_run_config looks at what it names"


@pytest.mark.parametrize(
    "bad",
    [
        "eval('1')",
        "exec(text)",
        "import os; os.system('x')",
        "os.execv('a', [])",
        "pickle.load(file)",
        "torch.load(path)",
        "torch.load(path, weights_only=False)",
        "np.load(path)",
        "np.load(path, allow_pickle=flag)",
        "yaml.load(text, yaml.Loader)",
        "subprocess.run('ls', shell=True)",
        "OmegaConf.load(path)",
    ],
)
def test_the_search_finds(bad: str) -> None:
    assert len(list(dangers(bad))) == 1


def test_the_source_runs_nothing_that_a_file_says() -> None:
    files = sorted(SOURCE.rglob("*.py"))
    found = [line for file in files for line in dangers(file.read_text(), file.relative_to(SOURCE).as_posix())]
    assert len(files) > 80 and found == []


def test_hydra_instantiates_in_training_alone() -> None:
    """What is no command, and may read a stranger's file, knows no `instantiate`."""
    users = [file.relative_to(SOURCE).parts[0] for file in SOURCE.rglob("*.py") if "instantiate" in file.read_text()]
    assert set(users) <= {"training", "cli.py"}


def test_a_run_folders_config_names_what_ours_name(tmp_path: Path) -> None:
    config = compose_config("run", "tiny", ["cache_dir=x", "logger=none"])
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config, resolve=True))
    assert read_run_config(tmp_path / "config.yaml").backbone == config.backbone
    assert {
        "dinotrack.backbones.DenseSift",
        "dinotrack.optical_flow.Dis",
        "dinotrack.networks.DeltaDino",
    } <= own_targets()
    assert all(name.startswith("dinotrack.") for name in own_targets())
    for name in (
        "os.system",
        "dinotrack.cli.main",
        "dinotrack.training.weights_and_biases.open_wandb",
        "lightning.Trainer",
    ):
        (tmp_path / "config.yaml").write_text(f"method: {{delta: [{{_target_: {name}}}]}}")
        with pytest.raises(DinotrackError, match=f"names '{name}'"):
            read_run_config(tmp_path / "config.yaml")


@pytest.mark.parametrize("part", ["flow", "backbone", "supervision"])
def test_a_picture_of_a_strangers_run_runs_nothing(tmp_path: Path, part: str) -> None:
    """`dinotrack picture best-buddies --kind tracklets` makes the flow that the folder's config names."""
    ran = tmp_path / "ran"
    config = compose_config("run", "tiny", ["logger=none"])
    config[part] = {"_target_": "pathlib.Path.touch", "_args_": [{"_target_": "pathlib.Path", "_args_": [str(ran)]}]}
    (tmp_path / "config.yaml").write_text(OmegaConf.to_yaml(config))
    run = object.__new__(FittedRun)
    object.__setattr__(run, "folder", tmp_path)
    with pytest.raises(DinotrackError, match="none of dinotrack's own"):
        run.tracklets()
    with pytest.raises(DinotrackError, match="none of dinotrack's own"):
        run.given_masks()
    assert not ran.exists()


def test_words_that_name_files_are_quoted_and_others_stay(tmp_path: Path) -> None:
    film = tmp_path / "my (clip)=1.mp4"
    film.touch()
    words = [
        "-m",
        f"video={film}",
        "seed=1,2",
        f"++masks={film}",
        "synthetic.size=[64,48]",
        "~losses.cycle",
        "--cfg",
        "job",
    ]
    found = readable(words)
    assert found[1] == f"video='{film}'" and found[3] == f"++masks='{film}'"
    assert [found[k] for k in (0, 2, 4, 5, 6, 7)] == [words[k] for k in (0, 2, 4, 5, 6, 7)]
    assert readable([f"video='{film}'", "video=synthetic"]) == [f"video='{film}'", "video=synthetic"]
    for word in ("clip.mp4", "video=a(b.mp4", "seed=[1"):
        with pytest.raises(DinotrackError, match="an override cannot be read"):
            readable([word])


def test_a_word_that_cannot_be_read_gets_one_line(capfd: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as end:
        cli.main(["run", "video=my", "clip.mp4"])
    assert end.value.code == 2
    (line,) = capfd.readouterr().err.splitlines()
    assert line.startswith("dinotrack: an override cannot be read: clip.mp4; expected NAME=VALUE")


def test_lines_for_a_terminal_hold_nothing_that_it_obeys(capfd: pytest.CaptureFixture[str], tmp_path: Path) -> None:
    assert printable("a\x1b[31mb\n  c\x07") == "a?[31mb c?"
    assert reason_of(KeyError()) == "KeyError" and reason_of(ValueError("a\nb " * 99)) == ("a b " * 99)[:160]
    with pytest.raises(SystemExit):
        cli.main(["render", str(tmp_path / "a\x1b[31m.npz"), "b.mp4"])
    assert "\x1b" not in capfd.readouterr().err


def test_a_hostile_name_is_text_in_the_page_of_the_command(tmp_path: Path) -> None:
    from benchmarks.tried.films import film, write
    from benchmarks.tried.strangers import tracks

    folder = tmp_path / "<script>alert(1)<"
    folder.mkdir()
    clip = write(folder / "<img src=x onerror=alert(1)>.mp4", "libx264", "yuv420p", film())
    save_npz(tracks(), folder / "tracks.npz")
    with pytest.raises(SystemExit) as end:
        cli.main(["view", str(folder), "--video", str(clip)])
    page = (folder / "view.html").read_text(encoding="utf-8")
    assert not end.value.code and "<img" not in page and "<script>alert" not in page
