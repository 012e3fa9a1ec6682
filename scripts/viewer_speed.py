"""Measure what docs/viewer.md says of smoothness: 500 points x 100 frames in headless Chromium, which draws in software.

python scripts/viewer_speed.py measure   # half a minute; keeps docs/results/viewer.json
python scripts/viewer_speed.py           # only write the page's table from what is kept
"""

import json
import os
import sys
import tempfile
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import numpy as np
import torch

from dinotrack.data.textures import texture
from dinotrack.structs import Tracks, Video
from dinotrack.training.stages import environment
from dinotrack.viewer import TrackSet, write_view

ROOT = Path(__file__).resolve().parents[1]
sys.path.insert(0, str(ROOT / "tests"))  # the browser that the tests start
from chromium import chromium, missing, until  # noqa: E402

KEPT, PAGE = ROOT / "docs" / "results" / "viewer.json", ROOT / "docs" / "viewer.md"
POINTS, FRAMES, SIZE, FPS = 500, 100, (854, 480), 25.0
SECONDS = 4.0
CASES = {"marks and trails": "", "marks": "set('trail', 0)", "neither": "set('tracks', false)"}
"""What is drawn over the video, and how the page is told."""
SET = """const set = (id, value) => {
  const input = document.getElementById(id);
  input[input.type === 'checkbox' ? 'checked' : 'value'] = value;
  for (const kind of ['input', 'change']) input.dispatchEvent(new Event(kind, { bubbles: true }));
};"""
PLAY = """async (seconds) => {
  const play = document.getElementById('play'), before = viewer.draws, begin = performance.now();
  play.click();
  while (performance.now() - begin < 1000 * seconds) await new Promise(requestAnimationFrame);
  play.click();
  return [viewer.draws - before, (performance.now() - begin) / 1000];
}"""


def video() -> Video:
    """A window that moves over a picture with the statistics of natural ones, which take as long to decode as a film's."""
    width, height = SIZE
    picture = texture(np.random.default_rng(0), ((width + 2 * FRAMES) / 2, (height + FRAMES) / 2), width, 0.3)
    levels = (255 * picture).byte()
    frames = [levels[:, t : t + height, 2 * t : 2 * t + width] for t in range(FRAMES)]
    return Video(torch.stack(frames), FPS, path="window.mp4")


def tracks() -> Tracks:
    """Points all over the frame that walk at random; a tenth is hidden."""
    rng = torch.Generator().manual_seed(0)
    walk = 1.5 * torch.randn(POINTS, FRAMES, 2, generator=rng).cumsum(1)
    xy = torch.rand(POINTS, 1, 2, generator=rng) * torch.tensor(SIZE) + walk
    seen, sure = (torch.rand(POINTS, FRAMES, generator=rng) for _ in range(2))
    return Tracks(torch.cat([torch.zeros(POINTS, 1), xy[:, 0]], 1), xy, seen > 0.1, sure, SIZE, FPS)


def measure() -> None:
    """Play the page in each case, and keep what it took."""
    if missing():
        raise SystemExit(missing())
    kept: dict[str, Any] = {"points": POINTS, "frames": FRAMES, "size": SIZE, "fps": FPS, "cases": {}}
    with tempfile.TemporaryDirectory() as scratch:
        path = Path(scratch) / "view.html"
        write_view(video(), [TrackSet("tracks", tracks())], path)
        with chromium(Path(scratch) / "profile") as browser:
            for name, settings in CASES.items():
                kept["cases"][name] = measured(browser, path, settings)
            kept["browser"] = f"Chromium {browser.browser.version}"
    load = round(os.getloadavg()[0], 1)
    KEPT.write_text(json.dumps({**kept, "load": load, **environment()}, indent=2) + "\n")


def measured(browser: Any, path: Path, settings: str) -> dict[str, float]:
    """Frames a second at the film's own speed and at most; milliseconds of a frame, by the clock and of the processor."""
    page = browser.new_page()
    page.goto(path.as_uri())
    until(page, "window.viewer && viewer.shown === 0")
    page.evaluate(f"() => {{ {SET} {settings} }}")
    drawn, seconds = page.evaluate(PLAY, SECONDS)
    found = {"fps_of_film": round(drawn / seconds, 1)}
    page.evaluate(f"() => {{ {SET} set('speed', '4') }}")
    session = page.context.new_cdp_session(page)
    session.send("Performance.setTimeDomain", {"timeDomain": "threadTicks"})
    session.send("Performance.enable")
    before = counters(session)
    drawn, seconds = page.evaluate(PLAY, SECONDS)
    spent = {name: 1000 * (value - before[name]) / drawn for name, value in counters(session).items()}
    times = page.evaluate("viewer.times")
    found |= {"fps_at_most": round(drawn / seconds, 1), "script_ms_median": round(median(times), 1)}
    found |= {"script_ms_95": round(quantiles(times, n=20)[-1], 1), "thread_ms": round(spent["TaskDuration"], 1)}
    page.close()
    return found


def counters(session: Any) -> dict[str, float]:
    """What the page's main thread has done, in seconds of the processor."""
    return {each["name"]: each["value"] for each in session.send("Performance.getMetrics")["metrics"]}


def table() -> str:
    kept = json.loads(KEPT.read_text())
    lines = [
        f"| over {kept['size'][0]}×{kept['size'][1]} at {kept['fps']:g} fps | fps | fps at ×4 | script, ms a frame: median, 95 % "
        "| main thread, ms a frame |",
        "|---" * 5 + "|",
    ]
    for name, case in kept["cases"].items():
        script = f"{case['script_ms_median']}, {case['script_ms_95']}"
        lines.append(f"| {name} | {case['fps_of_film']} | {case['fps_at_most']} | {script} | {case['thread_ms']} |")
    where = f"{kept['browser']}, {kept['hardware']}, commit {kept['commit']}; load average {kept['load']}"
    return "\n".join([*lines, "", f"(`python scripts/viewer_speed.py measure`; {where})"])


def update_page() -> None:
    """Put the table between its markers."""
    before, rest = PAGE.read_text().split("<!-- speed -->")
    PAGE.write_text(f"{before}<!-- speed -->\n{table()}\n<!-- /speed -->{rest.split('<!-- /speed -->')[1]}")


if __name__ == "__main__":
    if sys.argv[1:] == ["measure"]:
        measure()
    update_page()
