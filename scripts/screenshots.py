"""Pictures of the documentation that a browser draws, each at most 200 kB.

python scripts/screenshots.py          # all of them
python scripts/screenshots.py viewer   # one job; every job is in JOBS

The fitted run is that of scripts/pictures.py, which is made where it is not there: two minutes on two cores.
"""

import io
import os
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the browser that the tests start
from pictures import RUNS, track  # noqa: E402

from chromium import chromium, missing, until  # noqa: E402

IMAGES = ROOT / "docs" / "images"
LARGEST = 200_000


def save(picture: Image.Image, name: str) -> None:
    """Write a JPEG of at most `LARGEST` bytes, as good as that leaves; a PNG so small would want a palette and falsify colours."""
    for quality in range(95, 60, -5):
        buffer = io.BytesIO()
        picture.convert("RGB").save(buffer, "JPEG", quality=quality, subsampling=0, optimize=True)
        if buffer.tell() <= LARGEST:
            (IMAGES / f"{name}.jpg").write_bytes(buffer.getvalue())
            return
    raise SystemExit(f"{name}: {buffer.tell()} bytes at quality {quality}; make the picture smaller")


QUIET = {**os.environ, "WANDB_MODE": "disabled"}


def dinotrack(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "dinotrack", *map(str, arguments)], check=True, cwd=ROOT, env=QUIET)


def viewer() -> None:
    """The viewer on the horse: a fitted tracker's confidence with one point singled out, and it beside chained flow."""
    if missing():
        raise SystemExit(missing())
    for method, folder in RUNS.items():
        if not (folder / "tracks.npz").exists():
            track(folder, method)
    fitted, chained = RUNS.values()
    page, compared = fitted / "view.html", fitted / "compare.html"
    dinotrack("view", fitted, "--output", page)
    dinotrack("view", fitted, "--compare", chained, "--output", compared)
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile), 1280, 890) as browser:
        shoot(browser, page, "viewer", one_point)
        shoot(browser, compared, "viewer_compare", beside)


def shoot(browser: Any, path: Path, name: str, act: Callable[[Any], None]) -> None:
    page = browser.new_page()
    page.goto(path.as_uri())
    until(page, "window.viewer && viewer.shown === 0")
    act(page)
    page.wait_for_timeout(300)
    save(Image.open(io.BytesIO(page.screenshot())), name)
    page.close()


def one_point(page: Any) -> None:
    page.select_option("#colour", "confidence")
    goto(page, 20)
    choose(page, 12)


def beside(page: Any) -> None:
    goto(page, 20)
    choose(page, 12)
    page.keyboard.press("v")


def choose(page: Any, n: int) -> None:
    for _ in range(n + 1):
        page.keyboard.press("ArrowDown")


def goto(page: Any, t: int) -> None:
    page.evaluate("document.activeElement.blur()")
    for _ in range(t):
        page.keyboard.press("ArrowRight")
    until(page, f"viewer.shown === {t}")


JOBS: dict[str, Callable[[], None]] = {"viewer": viewer}

if __name__ == "__main__":
    for job in sys.argv[1:] or JOBS:
        JOBS[job]()
