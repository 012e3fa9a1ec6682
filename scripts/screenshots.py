"""Pictures of the documentation that a browser or the library draws, each at most 200 kB.

python scripts/screenshots.py          # all of them
python scripts/screenshots.py viewer   # one job; every job is in JOBS
"""

import io
import subprocess
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

from PIL import Image

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the browser that the tests start
from chromium import chromium, missing, until  # noqa: E402

IMAGES = ROOT / "docs" / "images"
DATA = (ROOT.parent / "shared" / "data").resolve()
HORSE = DATA / "horsejump-high"
LARGEST = 200_000


def save(picture: Image.Image, name: str) -> None:
    """Write a PNG of at most `LARGEST` bytes, of as many colours as that leaves."""
    for colours in (256, 128, 64, 32):
        buffer = io.BytesIO()
        picture.convert("RGB").quantize(colours).save(buffer, "PNG", optimize=True)
        if buffer.tell() <= LARGEST:
            (IMAGES / f"{name}.png").write_bytes(buffer.getvalue())
            return
    raise SystemExit(f"{name}: {buffer.tell()} bytes with {colours} colours; make the picture smaller")


def dinotrack(*arguments: str | Path) -> None:
    subprocess.run([sys.executable, "-m", "dinotrack", *map(str, arguments)], check=True, cwd=ROOT)


def viewer() -> None:
    """The viewer on the horse: confidence with one point singled out, and a fit beside its raw features."""
    if missing():
        raise SystemExit(missing())
    runs = ROOT / "runs" / "screenshots"
    common = ["experiment=cpu_small", f"video={HORSE / 'video'}", f"masks={HORSE / 'masks'}"]
    common += ["queries=grid:20", "queries_on_mask=true", "render=false"]
    for method in ("dino_tracker", "raw_features"):
        if not (runs / method / "tracks.npz").exists():
            dinotrack("run", *common, f"method={method}", f"hydra.run.dir={runs / method}")
    page = runs / "view.html"
    dinotrack("view", runs / "dino_tracker", "--objects", HORSE / "masks", "--output", page)
    compared = runs / "compare.html"
    dinotrack("view", runs / "dino_tracker", "--compare", runs / "raw_features", "--output", compared)
    with tempfile.TemporaryDirectory() as profile, chromium(Path(profile), 1200, 760) as browser:
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
    for _ in range(30):
        page.keyboard.press("ArrowDown")


def beside(page: Any) -> None:
    goto(page, 20)
    page.keyboard.press("v")


def goto(page: Any, t: int) -> None:
    page.evaluate("document.activeElement.blur()")
    for _ in range(t):
        page.keyboard.press("ArrowRight")
    until(page, f"viewer.shown === {t}")


JOBS: dict[str, Callable[[], None]] = {"viewer": viewer}

if __name__ == "__main__":
    for job in sys.argv[1:] or JOBS:
        JOBS[job]()
