// The viewer: one state, drawn whenever it changes.

class Viewer {
  constructor(data) {
    this.data = data;
    this.options = { colour: "start", trail: Math.min(10, data.frames - 1), radius: 4, light: 100, tracks: true, hide: false, only: false, layout: "both" };
    this.camera = new Camera(data.width, data.height);
    this.player = new Player(data.frames, data.fps);
    this.selection = new Selection(data, this.options);
    this.frames = new Frames([...document.querySelectorAll("script.frame")], () => this.redraw(false));
    this.drawing = new Drawing($("picture"), data, this.camera, this.selection, this.options);
    this.timeline = new Timeline($("curves"), data, this.selection, this.options);
    this.shown = -1; // the frame on the screen, which lags behind the player's while its picture is decoded
    this.hovered = -1;
    this.pointer = null;
    this.stale = true;
  }

  start() {
    for (const bind of [bindTransport, bindSettings, bindKeys, bindPointer]) bind(this);
    giveKeysBack();
    this.describe();
    this.showSettings();
    this.selected();
    new ResizeObserver(() => this.resize()).observe($("stage"));
    new ResizeObserver(() => this.drawTimeline()).observe($("timeline"));
  }

  /** Draw soon; without `stale` only where another frame is due. */
  redraw(stale = true) {
    this.stale ||= stale;
    if (this.scheduled) return;
    this.scheduled = true;
    requestAnimationFrame((now) => this.tick(now));
  }

  tick(now) {
    this.scheduled = false;
    this.player.advance(now, this.shown === this.player.frame);
    const t = this.player.frame, bitmap = this.frames.get(t, this.player.direction);
    if (bitmap && (this.stale || this.shown !== t)) this.show(bitmap, t);
    if (this.frames.broken.has(t)) this.fail(`Frame ${t} of this page cannot be decoded. Write the page again.`);
    if (this.player.playing) this.redraw(false);
    this.showPlaying();
  }

  show(bitmap, t) {
    this.stale = false;
    this.shown = t;
    this.showHovered();
    this.drawing.draw(bitmap, t, this.hovered);
    const { start, fps, frames } = this.data;
    $("trouble").hidden = true;
    $("scrubber").value = t;
    $("cursor").style.transform = `translateX(${this.timeline.x(t)}px)`;
    $("place").textContent = `${t} / ${frames - 1}   ${(t / fps).toFixed(2)} s${start ? `   video frame ${start + t}` : ""}`;
    showRows($("details"), detailRows(this.data, this.chosen, t, this.apart), this.data.sets.length);
  }

  fail(text) {
    $("trouble").textContent = text;
    $("trouble").hidden = false;
    this.player.pause();
  }

  // Playing

  toggle() {
    this.player.toggle();
    this.redraw(false);
  }

  seek(frame) {
    this.player.seek(frame);
    this.redraw(false);
  }

  step(by) {
    this.player.pause();
    this.seek(this.player.frame + by);
  }

  toggleLoop() {
    this.player.loop = !this.player.loop;
    $("loop").setAttribute("aria-pressed", this.player.loop);
  }

  showPlaying() {
    const { playing } = this.player, button = $("play");
    if (button.classList.contains("playing") === playing) return;
    button.classList.toggle("playing", playing);
    button.setAttribute("aria-label", playing ? "Pause" : "Play");
  }

  // Choosing

  choose(points, add = false) {
    this.selection.choose(points, add);
    this.selected();
  }

  click(at, add) {
    const n = this.selection.nearest(this.shown, this.camera, ...at);
    if (add && n >= 0) this.selection.toggle(n);
    else if (!add) this.selection.choose(n < 0 ? [] : [n]);
    this.selected();
  }

  stepPoint(by) {
    this.selection.step(by);
    this.selected();
  }

  selected() {
    this.chosen = this.selection.list();
    this.apart = differences(this.data, this.chosen);
    $("chosen").textContent = chosenLine(this.data, this.chosen);
    for (const id of ["clear", "export", "export-b"]) $(id).disabled = !this.chosen.length;
    this.drawTimeline();
    this.redraw();
  }

  /** The pointer is at a place of the stage, or away. */
  hover(at) {
    this.pointer = at;
    if (this.shown >= 0 && this.under(at) !== this.hovered) this.redraw();
  }

  under(at) {
    return at ? this.selection.nearest(this.shown, this.camera, ...at) : -1;
  }

  /** Name the point that is under the pointer now, since points move beneath it. */
  showHovered() {
    const n = this.under(this.pointer);
    if (n === this.hovered) return;
    this.hovered = n;
    $("stage").classList.toggle("over", n >= 0);
    $("label").hidden = n < 0;
    if (n < 0) return;
    $("label").textContent = pointName(this.data, n);
    $("label").style.transform = `translate(${this.pointer[0] + 14}px, ${this.pointer[1] + 14}px)`;
  }

  export(number) {
    const set = this.data.sets[number];
    if (set && this.chosen.length) save(csvOf(set, this.chosen), this.data.sets.length > 1 ? `chosen-${"ab"[number]}.csv` : "chosen.csv");
  }

  // The picture's place

  resize() {
    const box = $("stage").getBoundingClientRect(), dots = window.devicePixelRatio || 1;
    this.camera.canvas = [box.width, box.height];
    $("picture").width = Math.round(box.width * dots);
    $("picture").height = Math.round(box.height * dots);
    this.drawTimeline();
    this.redraw();
  }

  zoom(factor, at = [this.camera.canvas[0] / 2, this.camera.canvas[1] / 2]) {
    this.camera.zoomAt(factor, ...at);
    this.redraw();
  }

  pan(dx, dy) {
    this.camera.move(-dx / this.camera.scale(), -dy / this.camera.scale());
    this.redraw();
  }

  wholeFrame() {
    this.camera.reset();
    this.redraw();
  }

  // Settings

  set(name, value) {
    this.options[name] = value;
    this.showSettings();
    this.drawTimeline();
    this.redraw();
  }

  showSettings() {
    const { options } = this;
    this.camera.panes = this.selection.panes().length;
    for (const name of ["trail", "radius", "light", "colour"]) $(name).value = options[name];
    for (const name of ["tracks", "hide", "only"]) $(name).checked = options[name];
    $("trail-said").textContent = options.trail;
    $("radius-said").textContent = options.radius;
    $("light-said").textContent = `${options.light} %`;
    document.querySelector(`input[name=layout][value=${options.layout}]`).checked = true;
    $("legend").replaceChildren(...legend(options.colour, this.data));
  }

  drawTimeline() {
    this.timeline.draw();
    $("cursor").style.transform = `translateX(${this.timeline.x(Math.max(this.shown, 0))}px)`;
  }

  /** What stays the same: title, numbers, and what this page has nothing for. */
  describe() {
    const { title, frames, fps, points, width, height, sets, objects } = this.data;
    $("title").textContent = title;
    $("facts").textContent = `${width} × ${height} · ${frames} frames · ${Number(fps.toFixed(2))} fps · ${points} points`;
    const option = (name) => $("colour").querySelector(`[value=${name}]`);
    option("object").disabled = !objects.names.length;
    option("file").disabled = sets.length < 2;
    if (sets.length < 2) return;
    $("comparison").hidden = $("export-b").hidden = false;
    $("export").textContent = "Export A";
    $("files").replaceChildren(...sets.map((set, k) => fileLine(set, k)));
    $("matched").textContent = matchedLine(sets, points);
  }
}

function fileLine(set, k) {
  const line = make("li", k ? "square" : "round"), mark = make("i");
  mark.style.background = FILES[k];
  line.append(mark, make("b", "", "AB"[k]), make("span", "", set.name));
  return line;
}

/** How many queries the two files share, and what each has alone. */
function matchedLine([a, b], points) {
  const numbers = Array.from({ length: points }, (_, n) => n);
  const onlyA = numbers.filter((n) => !b.has(n)).length, onlyB = numbers.filter((n) => !a.has(n)).length;
  const rest = [onlyA && `${onlyA} only in A`, onlyB && `${onlyB} only in B`].filter(Boolean);
  return `${points - onlyA - onlyB} of ${points} queries are in both${rest.length ? `; ${rest.join(", ")}` : ""}.`;
}

/** For the browser's console and for tests: what is shown, and where on the page a point lies. */
function expose(viewer) {
  window.viewer = {
    get shown() { return viewer.shown; },
    get playing() { return viewer.player.playing; },
    get chosen() { return [...viewer.chosen]; },
    get note() { return viewer.timeline.note; },
    leftOut(chosen) { return viewer.timeline.leftOut(chosen); },
    get held() { return viewer.frames.decoded.size; },
    get draws() { return viewer.drawing.drawn; },
    get times() { return viewer.drawing.times.filter(Number.isFinite); },
    where(n, number = 0, pane = 0) {
      const { left, top, scale } = viewer.camera.pane(pane), box = $("stage").getBoundingClientRect();
      const set = viewer.data.sets[number];
      return [box.left + left + scale * set.x(n, viewer.shown), box.top + top + scale * set.y(n, viewer.shown)];
    },
  };
}

const viewer = new Viewer(readData());
viewer.start();
expose(viewer);
