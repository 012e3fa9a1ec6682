"""The wheel carries its configs, and its command works from any folder."""

import os
import subprocess
import sys
import sysconfig
import zipfile
from pathlib import Path

import pytest

from dinotrack.viewer.page import SCRIPTS

ROOT = Path(__file__).parents[1]


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("dist")
    build = [sys.executable, "-m", "build", "--wheel", "--outdir", str(folder), str(ROOT)]
    subprocess.run(build, check=True, capture_output=True)
    return next(folder.glob("*.whl"))


@pytest.mark.slow
def test_wheel_carries_configs_and_type_marker(wheel: Path) -> None:
    held = set(zipfile.ZipFile(wheel).namelist())
    configs = {f"dinotrack/conf/{path.relative_to(ROOT / 'conf')}" for path in (ROOT / "conf").rglob("*.yaml")}
    assert configs <= held
    assert "dinotrack/py.typed" in held
    assert {f"dinotrack/viewer/assets/{name}" for name in (*SCRIPTS, "page.html", "viewer.css")} <= held
    assert not [name for name in held if name.startswith("tests/")]


@pytest.mark.slow
@pytest.mark.timeout(600)
def test_installed_wheel_runs_from_another_folder(wheel: Path, tmp_path: Path) -> None:
    """In a new environment that borrows only the dependencies of this one, not its dinotrack."""
    subprocess.run([sys.executable, "-m", "venv", str(tmp_path / "venv")], check=True)
    python = tmp_path / "venv" / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", "--no-deps", str(wheel)], check=True)
    site = subprocess.run(
        [python, "-c", "import site; print(site.getsitepackages()[0])"], capture_output=True, text=True
    )
    # A path line in a .pth file does not run the .pth files there, so the editable dinotrack stays unseen.
    (Path(site.stdout.strip()) / "borrowed.pth").write_text(sysconfig.get_path("purelib") + "\n")
    elsewhere = tmp_path / "elsewhere"
    elsewhere.mkdir()
    environment = {**os.environ, "DINOTRACK_CACHE": str(tmp_path / "cache")}

    def run(*arguments: str) -> str:
        command = [tmp_path / "venv" / "bin" / "dinotrack", *arguments]
        return subprocess.run(
            command, cwd=elsewhere, env=environment, capture_output=True, text=True, check=True
        ).stdout

    where = subprocess.run(
        [python, "-c", "import dinotrack; print(dinotrack.__file__)"], capture_output=True, text=True
    )
    assert str(tmp_path) in where.stdout
    assert "dinotrack run video=clip.mp4" in run("--help")
    said = run("demo", "seeds=[5]", "steps=2", "synthetic.frames=6", "hydra.run.dir=out")
    assert "δ_avg" in said
    assert "against chained flow" in said
    assert (elsewhere / "out" / "seed-5" / "overlay.mp4").stat().st_size > 0
