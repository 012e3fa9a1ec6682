"""The viewer in a real Chromium: what it shows is what was asked for, and it asks the network for nothing."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from chromium import chromium, missing, until
from dinotrack.data.export import save_csv
from dinotrack.structs import Tracks, Video
from dinotrack.viewer import Objects, TrackSet, write_view

pytestmark = pytest.mark.skipif(bool(missing()), reason=missing())

FRAMES, SIZE = 12, (160, 120)
HOSTILE = '</script><img src=x onerror="document.title=1">'
Open = Callable[..., Any]


def coloured(frames: int = FRAMES, size: tuple[int, int] = SIZE) -> Video:
    """A video that says in colour which frame it shows."""
    level = torch.arange(frames) * 255 // (frames - 1)
    colours = torch.stack([level, 255 - level, torch.full_like(level, 128)], 1).byte()
    return Video(colours[:, :, None, None].expand(-1, -1, size[1], size[0]), 25.0, path="coloured.mp4")


def grid(frames: int = FRAMES) -> Tracks:
    """5 x 4 points, 28 pixels apart, that drift to the right; every third is occluded in frames 4 to 7."""
    x, y = torch.meshgrid(torch.arange(5) * 28.0 + 12, torch.arange(4) * 28.0 + 15, indexing="xy")
    start = torch.stack([x.flatten(), y.flatten()], 1)
    steps = torch.stack([torch.arange(frames) * 0.7, torch.zeros(frames)], 1)
    xy = start[:, None] + steps
    visible = torch.ones(len(start), frames, dtype=torch.bool)
    visible[::3, 4:8] = False
    confidence = torch.rand(len(start), frames, generator=torch.Generator().manual_seed(0))
    return Tracks(torch.cat([torch.zeros(len(start), 1), start], 1), xy, visible, confidence, SIZE, 25.0)


def drifting(count: int, frames: int, size: tuple[int, int] = SIZE) -> Tracks:
    """Points that walk at random."""
    generator = torch.Generator().manual_seed(0)
    walk = torch.randn(count, frames, 2, generator=generator).cumsum(1)
    xy = torch.rand(count, 1, 2, generator=generator) * torch.tensor(size) + walk
    visible = torch.rand(count, frames, generator=generator) > 0.2
    confidence = torch.rand(count, frames, generator=generator)
    return Tracks(torch.cat([torch.zeros(count, 1), xy[:, 0]], 1), xy, visible, confidence, size, 25.0)


@pytest.fixture(scope="module")
def browser(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    with chromium(tmp_path_factory.mktemp("profile"), accept_downloads=True) as context:
        yield context


@pytest.fixture
def view(browser: Any, tmp_path: Path) -> Iterator[Open]:
    """Write a page, open it and wait for its first frame; at the end it has said nothing and loaded nothing but itself."""
    pages, said, asked = [], [], []

    def open_page(video: Video, *sets: Tracks, **options: Any) -> Any:
        path = tmp_path / f"view{len(pages)}.html"
        write_view(video, [TrackSet(f"set {k}", each) for k, each in enumerate(sets)], path, **options)
        page = browser.new_page()
        pages.append(page)
        page.on("console", lambda message: said.append(message.text))
        page.on("pageerror", lambda error: said.append(str(error)))
        page.on("request", lambda request: asked.append(request.url))
        page.goto(path.as_uri())
        until(page, "window.viewer && viewer.shown === 0")
        return page

    yield open_page
    for page in pages:
        page.close()
    assert said == []
    own = [(tmp_path / f"view{k}.html").as_uri() for k in range(len(pages))]
    assert [url for url in asked if not url.startswith(("blob:", "data:"))] == own


def seek(page: Any, t: int) -> None:
    page.evaluate(
        f"(s => {{ s.value = {t}; s.dispatchEvent(new Event('input')) }})(document.getElementById('scrubber'))"
    )
    until(page, f"viewer.shown === {t}")


# By way of a copy: the picture itself is left as fast as it is.
PIXEL = """(at => {
  const picture = document.getElementById('picture'), box = picture.getBoundingClientRect();
  const copy = new OffscreenCanvas(1, 1).getContext('2d', { willReadFrequently: true });
  copy.drawImage(picture, -Math.floor(at[0] - box.left), -Math.floor(at[1] - box.top));
  return [...copy.getImageData(0, 0, 1, 1).data].slice(0, 3) })"""
MIDDLE = """() => {
  const picture = document.getElementById('picture'), box = picture.getBoundingClientRect();
  const copy = new OffscreenCanvas(picture.width, picture.height).getContext('2d', { willReadFrequently: true });
  copy.drawImage(picture, 0, 0);
  const { data, width } = copy.getImageData(0, 0, picture.width, picture.height);
  let count = 0, x = 0, y = 0;
  for (let i = 0; i < data.length / 4; i++) {
    if (data[4 * i] <= 128) continue;
    count += 1; x += i % width + 0.5; y += Math.floor(i / width) + 0.5;
  }
  return [box.left + x / count, box.top + y / count] }"""
"""Of all that is bright in the picture."""


def pixel(page: Any, at: list[float]) -> list[int]:
    """The picture's colour at a place of the page."""
    return page.evaluate(f"{PIXEL}({at})")


def between(page: Any, dx: float = 14, dy: float = 14) -> list[float]:
    """A place of the page where no point is: beside point 0, by video pixels."""
    (x0, y0), (x1, _) = page.evaluate("[viewer.where(0), viewer.where(1)]")
    scale = (x1 - x0) / 28
    return [x0 + dx * scale, y0 + dy * scale]


def frame_of(colour: list[int]) -> int:
    """Which frame of `coloured` a colour is of; it must be it exactly, but for JPEG's rounding."""
    t = round(colour[0] * (FRAMES - 1) / 255)
    level = t * 255 // (FRAMES - 1)
    assert max(abs(a - b) for a, b in zip(colour, (level, 255 - level, 128), strict=True)) <= 3
    return t


def test_exactly_the_frame_that_is_asked_for(view: Open) -> None:
    page = view(coloured(), grid())
    for t in (7, 0, 11, 3, 4, 10, 1):
        seek(page, t)
        assert frame_of(pixel(page, between(page))) == t
        assert page.inner_text("#place").startswith(f"{t} / 11")


def test_it_plays_and_every_drawn_frame_is_the_one_its_tracks_are_of(view: Open) -> None:
    page = view(coloured(), grid())
    page.keyboard.press(" ")
    until(page, "viewer.playing && viewer.shown >= 2")
    assert page.get_attribute("#play", "aria-label") == "Pause"
    script = f"""async () => {{ const seen = []; for (let k = 0; k < 40; k++) {{
      await new Promise(requestAnimationFrame); seen.push([viewer.shown, {PIXEL}({between(page)})]) }} return seen }}"""
    seen = page.evaluate(script)
    assert all(frame_of(colour) == t for t, colour in seen)
    page.click("#play")
    until(page, "!viewer.playing")
    assert len({t for t, _ in seen}) > 1


def test_the_end_stops_without_loop_and_begins_again_with_it(view: Open) -> None:
    page = view(coloured(), grid())
    page.select_option("#speed", "4")
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("l")
    page.keyboard.press(" ")
    until(page, "viewer.shown === 11 && !viewer.playing")
    page.keyboard.press("l")
    page.keyboard.press(" ")
    until(page, "viewer.shown < 11")


def test_keys_step_by_frames(view: Open) -> None:
    page = view(coloured(), grid())
    for key, t in (("ArrowRight", 1), ("End", 11), ("ArrowLeft", 10), ("Shift+ArrowLeft", 0), ("ArrowLeft", 0)):
        page.keyboard.press(key)
        until(page, f"viewer.shown === {t}")


def test_a_click_singles_out_the_right_point_and_beside_it_none(view: Open) -> None:
    tracks = grid()
    page = view(coloured(), tracks)
    seek(page, 5)
    for n in (0, 7, 13, 19):
        page.mouse.click(*page.evaluate(f"viewer.where({n})"))
        assert page.evaluate("viewer.chosen") == [n]
        assert page.inner_text("#chosen") == f"Point {n}"
        x, y = tracks.xy[n, 5].tolist()
        until(page, f"document.getElementById('details').innerText.includes('{x:.1f}, {y:.1f}')")
        text = page.inner_text("#details")
        assert ("visible" if tracks.visible[n, 5] else "occluded") in text
        assert f"{tracks.confidence[n, 5]:.3f}" in text
        assert f"{int(tracks.visible[n].sum())} of 12 frames" in text
    page.keyboard.down("Shift")
    page.mouse.click(*page.evaluate("viewer.where(2)"))
    page.keyboard.up("Shift")
    assert page.evaluate("viewer.chosen") == [2, 19]
    page.mouse.click(*between(page))
    assert page.evaluate("viewer.chosen") == []


def test_arrows_choose_points_without_a_mouse(view: Open) -> None:
    page = view(coloured(), grid())
    for key, chosen in (("ArrowDown", [0]), ("ArrowDown", [1]), ("ArrowUp", [0]), ("ArrowUp", [19]), ("Escape", [])):
        page.keyboard.press(key)
        assert page.evaluate("viewer.chosen") == chosen
    until(page, "viewer.note === ''")
    page.keyboard.press("a")
    assert page.evaluate("viewer.chosen") == list(range(20))
    until(page, "viewer.note === 'curves of 8 of 20 points'")
    many = "viewer.leftOut([...Array(20).keys(), ...Array(25).keys()].map((n) => n % 20))"
    assert page.evaluate(many) == "40 of 45 bars, curves of 8 of 45 points"


def drag(page: Any, corner: list[float], opposite: list[float]) -> None:
    page.mouse.move(*corner)
    page.mouse.down()
    page.mouse.move(*opposite, steps=3)
    page.mouse.up()


@pytest.mark.parametrize("turned", [False, True])
def test_a_box_chooses_the_points_inside(view: Open, turned: bool) -> None:
    page = view(coloured(), grid())
    seek(page, 9)
    corners = [between(page, -10, 20), between(page, 70, 60)]
    drag(page, *(corners[::-1] if turned else corners))
    assert page.evaluate("viewer.chosen") == [5, 6, 7, 10, 11, 12]
    assert page.inner_text("#chosen").startswith("6 of 20: 5, 6, 7, 10")
    assert not page.is_visible("#box")


def test_the_export_is_what_dinotrack_writes_of_the_chosen_points(view: Open, tmp_path: Path) -> None:
    tracks = replace(grid(), xy=grid().xy + torch.rand(20, FRAMES, 2, generator=torch.Generator().manual_seed(1)))
    tracks.xy[3, 4] = torch.nan
    tracks.xy[5, 6] = torch.tensor([100.03125, -0.00001])  # a tie, and a zero with its sign
    page = view(coloured(), tracks)
    assert page.is_disabled("#export")
    drag(page, between(page, -10, 20), between(page, 70, 60))
    page.keyboard.down("Shift")
    page.mouse.click(*page.evaluate("viewer.where(3)"))
    page.keyboard.up("Shift")
    with page.expect_download() as download:
        page.click("#export")
    save_csv(tracks, tmp_path / "all.csv")
    header, *lines = (tmp_path / "all.csv").read_text().splitlines()
    chosen = page.evaluate("viewer.chosen")
    assert chosen == [3, 5, 6, 7, 10, 11, 12]
    expected = [header, *(line for line in lines if int(line.split(",")[0]) in chosen)]
    assert Path(download.value.path()).read_text().splitlines() == expected


def test_hidden_points_are_neither_drawn_nor_chosen(view: Open) -> None:
    page = view(coloured(), grid())
    seek(page, 5)
    place = page.evaluate("viewer.where(3)")
    radius = [place[0] + 4, place[1]]
    drawn = pixel(page, radius)
    with pytest.raises(AssertionError):
        frame_of(drawn)  # the hollow mark's rim is there
    assert frame_of(pixel(page, place)) == 5  # and hollow it is
    page.check("#hide")
    draws = page.evaluate("viewer.draws")
    until(page, f"viewer.draws >= {draws}")
    until(page, f"Math.abs({PIXEL}({radius})[2] - 128) < 4")
    assert frame_of(pixel(page, radius)) == 5
    page.mouse.click(*place)
    assert page.evaluate("viewer.chosen") == []
    seek(page, 8)
    page.mouse.click(*page.evaluate("viewer.where(3)"))
    assert page.evaluate("viewer.chosen") == [3]


def test_only_the_chosen_points_can_be_shown(view: Open) -> None:
    page = view(coloured(), grid())
    page.mouse.click(*page.evaluate("viewer.where(4)"))
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("o")
    until(page, f"Math.abs({PIXEL}(viewer.where(6))[2] - 128) < 4")
    page.keyboard.press("t")
    until(page, f"Math.abs({PIXEL}(viewer.where(4))[2] - 128) < 4")


def test_colours_by_object_and_confidence_have_legends(view: Open) -> None:
    objects = Objects(("horse", HOSTILE), torch.arange(20) % 3 - 1)
    page = view(coloured(), grid(), objects=objects)
    page.select_option("#colour", "object")
    assert page.locator("#legend .swatch").all_inner_texts() == ["horse", HOSTILE, "none"]
    until(page, f"{PIXEL}(viewer.where(1)).join() === '76,201,240'")
    assert page.locator("img").count() == 0
    page.select_option("#colour", "confidence")
    low, high = page.locator("#legend span").all_inner_texts()
    assert 0 <= float(low) < float(high) <= 1
    assert page.title() == "coloured.mp4 · dinotrack"


def test_what_there_is_nothing_for_cannot_be_chosen(view: Open) -> None:
    page = view(coloured(), grid())
    assert page.evaluate("[...document.querySelectorAll('#colour :disabled')].map(o => o.value)") == ["object", "file"]
    assert not page.is_visible("#comparison")


def test_a_pixels_centre_is_at_one_half(view: Open) -> None:
    """Positions of `method §0` on the picture: the middle of a bright block is where a track says it is."""
    frames = torch.zeros(2, 3, 48, 64, dtype=torch.uint8)
    frames[:, :, 20:25, 40:45] = 255  # pixel centres 40.5 to 44.5, 20.5 to 24.5
    xy = torch.tensor([42.5, 22.5]).expand(1, 2, 2).clone()
    tracks = Tracks(torch.tensor([[0.0, 42.5, 22.5]]), xy, torch.ones(1, 2).bool(), torch.ones(1, 2), (64, 48), 25.0)
    page = view(Video(frames, path="block.png"), tracks)
    page.uncheck("#tracks")
    until(page, f"Math.min(...{PIXEL}(viewer.where(0))) > 200")
    middle = page.evaluate(MIDDLE)
    expected = page.evaluate("viewer.where(0)")
    scale = page.evaluate("document.getElementById('picture').clientHeight") / 48
    assert middle == pytest.approx(expected, abs=0.15 * scale)


def test_zoom_keeps_points_under_the_pointer_and_clicks_right(view: Open) -> None:
    page = view(coloured(), grid())
    before = page.evaluate("viewer.where(8)")
    page.mouse.move(*before)
    for _ in range(3):
        page.mouse.wheel(0, -300)
    until(page, "viewer.where(1)[0] - viewer.where(0)[0] > 300")
    assert page.evaluate("viewer.where(8)") == pytest.approx(before, abs=4)  # wheels turn at whole pixels
    page.mouse.click(*page.evaluate("viewer.where(8)"))
    assert page.evaluate("viewer.chosen") == [8]
    page.evaluate("document.activeElement.blur()")
    page.keyboard.press("0")
    assert page.evaluate("viewer.where(8)") == pytest.approx(before, abs=1)


def test_two_files_are_compared_point_by_point(view: Open) -> None:
    a = grid()
    b = replace(a, xy=a.xy + torch.tensor([3.0, 4.0]))[torch.arange(2, 20)]
    page = view(coloured(), a, b)
    assert page.inner_text("#matched") == "18 of 20 queries are in both; 2 only in A."
    page.mouse.click(*page.evaluate("viewer.where(6, 1)"))
    assert page.evaluate("viewer.chosen") == [6]
    assert page.inner_text("#chosen") == "Point A 6 · B 4"
    text = page.inner_text("#details")
    assert text.count("5.00 px") == 3  # now, median, most
    assert "in 100 % of frames" in text
    with page.expect_download() as download:
        page.click("#export-b")
    assert {line.split(",")[0] for line in Path(download.value.path()).read_text().splitlines()[1:]} == {"4"}
    page.keyboard.press("v")
    until(page, "viewer.where(6, 1, 1)[0] - viewer.where(6, 0, 0)[0] > 300")
    page.mouse.click(*page.evaluate("viewer.where(9, 1, 1)"))
    assert page.evaluate("viewer.chosen") == [9]
    page.mouse.click(*page.evaluate("viewer.where(1, 0, 0)"))
    assert page.inner_text("#chosen") == "Point A 1"


def test_no_tracks_no_errors(view: Open) -> None:
    page = view(coloured(), grid()[[]])
    assert page.inner_text("#chosen") == "There are no tracks in this file."
    for key in ("ArrowDown", "a", "c", "End", "e"):
        page.keyboard.press(key)
    until(page, "viewer.shown === 11")


def test_a_frame_that_cannot_be_decoded_is_named(browser: Any, tmp_path: Path) -> None:
    write_view(coloured(), [TrackSet("a", grid())], tmp_path / "view.html")
    first, second, rest = (tmp_path / "view.html").read_text().split('class="frame">', 2)
    broken = 'class="frame">'.join([first, second, rest[:40] + rest[rest.index("</script>") :]])
    (tmp_path / "view.html").write_text(broken)
    page = browser.new_page()
    page.goto((tmp_path / "view.html").as_uri())
    until(page, "window.viewer && viewer.shown === 0")
    page.keyboard.press("ArrowRight")
    until(page, "!document.getElementById('trouble').hidden")
    assert "Frame 1 of this page cannot be decoded" in page.inner_text("#trouble")
    assert page.evaluate("viewer.shown") == 0
    page.keyboard.press("ArrowRight")
    until(page, "viewer.shown === 2")
    assert not page.is_visible("#trouble")
    page.close()


def test_controls_used_by_pointer_leave_the_keys_to_the_film(view: Open) -> None:
    page = view(coloured(), grid())
    page.mouse.click(*page.evaluate("viewer.where(0)"))
    page.locator("#hide").click()
    page.keyboard.press(" ")
    until(page, "viewer.playing")
    assert page.is_checked("#hide")


INTRUDERS = """() => {
  const script = document.createElement('script'), image = document.createElement('img');
  script.textContent = 'document.title = "run"';
  image.src = 'https://example.invalid/x.png';
  document.body.append(script, image) }"""


def test_nothing_else_runs_or_loads_on_the_page(browser: Any, tmp_path: Path) -> None:
    write_view(coloured(), [TrackSet("a", grid())], tmp_path / "view.html")
    page, failed = browser.new_page(), []
    page.on("requestfailed", lambda request: failed.append((request.url, request.failure)))
    page.goto((tmp_path / "view.html").as_uri())
    page.evaluate(INTRUDERS)
    assert page.evaluate("fetch('https://example.invalid/').then(() => 'loaded', () => 'refused')") == "refused"
    assert failed == [("https://example.invalid/x.png", "csp")]
    assert page.title() == "coloured.mp4 · dinotrack"
    page.close()


def test_many_large_frames_are_not_all_kept_decoded(view: Open) -> None:
    frames, side = 70, 1024
    page = view(coloured(frames, (side, side)), drifting(0, frames, (side, side)), max_side=side)
    for t in range(0, frames, 2):
        seek(page, t)
    assert page.evaluate("viewer.held") <= 256e6 // (4 * side * side)
    seek(page, 0)


COUNT = """(() => {
  window.calls = 0;
  for (const name of ['stroke', 'fill', 'drawImage', 'fillRect']) {
    const own = CanvasRenderingContext2D.prototype[name];
    CanvasRenderingContext2D.prototype[name] = function (...given) { window.calls += 1; return own.apply(this, given) };
  }
})()"""
PLAYED = """async () => {
  document.getElementById('play').click();
  const seen = [];
  for (let k = 0; k < 40; k++) {
    const [draws, calls] = [viewer.draws, window.calls];
    await new Promise(requestAnimationFrame);
    seen.push([viewer.draws - draws, window.calls - calls]);
  }
  document.getElementById('play').click();
  return seen }"""


def layouts(session: Any) -> float:
    """How often the page was laid out since the session began to count."""
    return next(m["value"] for m in session.send("Performance.getMetrics")["metrics"] if m["name"] == "LayoutCount")


def test_five_hundred_points_over_a_hundred_frames(view: Open) -> None:
    """One draw a frame and none in between; what a draw asks of the browser is bounded, and it never waits for a layout."""
    page = view(coloured(100), drifting(500, 100))
    page.select_option("#speed", "4")
    draws = page.evaluate("viewer.draws")
    page.select_option("#colour", "confidence")
    until(page, f"viewer.draws === {draws + 1}")
    for t in range(1, 100, 9):
        seek(page, t)
    draws += 12
    page.evaluate(COUNT)
    page.evaluate("new Promise(done => setTimeout(done, 200))")
    assert page.evaluate("[viewer.draws, calls]") == [draws, 0]
    session = page.context.new_cdp_session(page)
    session.send("Performance.enable")
    seen = page.evaluate(PLAYED)
    assert max(drawn for drawn, _ in seen) == 1
    bands, shades = 5, 65  # confidence has 64 colours, and one of what has none
    assert max(calls for _, calls in seen) <= 2 + bands * shades + 2 * 500
    assert layouts(session) <= len(seen) + 10  # the browser's own, one a frame at most
