// What the user does: buttons and settings, keys, and the pointer on the picture.

const $ = (id) => document.getElementById(id);
const LAYOUTS = ["both", "beside", "a", "b"];
const DRAG = 4; // pixels by which a press becomes a box

function bindTransport(viewer) {
  const { player } = viewer;
  const actions = {
    play: () => viewer.toggle(),
    first: () => viewer.seek(0),
    last: () => viewer.seek(player.frames - 1),
    back: () => viewer.step(-1),
    forward: () => viewer.step(1),
    loop: () => viewer.toggleLoop(),
    clear: () => viewer.choose([]),
    export: () => viewer.export(0),
    "export-b": () => viewer.export(1),
    "help-open": () => $("help").showModal(),
  };
  for (const [id, action] of Object.entries(actions)) $(id).addEventListener("click", action);
  $("scrubber").max = player.frames - 1;
  $("scrubber").addEventListener("input", (event) => viewer.seek(event.target.valueAsNumber));
  $("speed").addEventListener("change", (event) => (player.speed = Number(event.target.value)));
  const curves = $("curves"), seek = (event) => viewer.seek(viewer.timeline.frameAt(event.offsetX));
  curves.addEventListener("pointerdown", (event) => {
    curves.setPointerCapture(event.pointerId);
    seek(event);
  });
  curves.addEventListener("pointermove", (event) => event.buttons & 1 && seek(event));
}

function bindSettings(viewer) {
  $("trail").max = Math.max(viewer.data.frames - 1, 1);
  for (const name of ["trail", "radius", "light"]) {
    $(name).addEventListener("input", (event) => viewer.set(name, event.target.valueAsNumber));
  }
  for (const name of ["tracks", "hide", "only"]) {
    $(name).addEventListener("change", (event) => viewer.set(name, event.target.checked));
  }
  $("colour").addEventListener("change", (event) => viewer.set("colour", event.target.value));
  for (const radio of document.querySelectorAll("input[name=layout]")) {
    radio.addEventListener("change", () => viewer.set("layout", radio.value));
  }
}

/** The option of a <select> after the one that is chosen, without those that cannot be. */
function next(select) {
  const able = [...select.options].filter((option) => !option.disabled).map((option) => option.value);
  return able[(able.indexOf(select.value) + 1) % able.length];
}

function keyActions(viewer) {
  const { options } = viewer, flip = (name) => () => viewer.set(name, !options[name]);
  return {
    " ": () => viewer.toggle(),
    ArrowLeft: (event) => viewer.step(event.shiftKey ? -10 : -1),
    ArrowRight: (event) => viewer.step(event.shiftKey ? 10 : 1),
    ArrowUp: () => viewer.stepPoint(-1),
    ArrowDown: () => viewer.stepPoint(1),
    Home: () => viewer.seek(0),
    End: () => viewer.seek(viewer.player.frames - 1),
    Escape: () => viewer.choose([]),
    a: () => viewer.choose(Array.from({ length: viewer.data.points }, (_, n) => n)),
    c: () => viewer.set("colour", next($("colour"))),
    h: flip("hide"),
    o: flip("only"),
    t: flip("tracks"),
    v: () => viewer.data.sets.length > 1 && viewer.set("layout", LAYOUTS[(LAYOUTS.indexOf(options.layout) + 1) % 4]),
    l: () => viewer.toggleLoop(),
    e: () => viewer.export(0),
    "+": () => viewer.zoom(1.25),
    "=": () => viewer.zoom(1.25),
    "-": () => viewer.zoom(0.8),
    0: () => viewer.wholeFrame(),
    "?": () => $("help").showModal(),
  };
}

/** Whether a control that has the focus wants this key for itself. */
function taken(key, target) {
  if (target.closest("dialog")) return true;
  if (target.matches("button, input[type=checkbox]")) return key === " ";
  if (target.matches("input[type=radio]")) return key === " " || key.startsWith("Arrow");
  if (target.matches("input[type=range]")) return target.id !== "scrubber" && (key.startsWith("Arrow") || key === "Home" || key === "End");
  return target.matches("select") && key !== "Escape";
}

function bindKeys(viewer) {
  const actions = keyActions(viewer);
  document.addEventListener("keydown", (event) => {
    const key = event.key.length === 1 ? event.key.toLowerCase() : event.key;
    if (event.ctrlKey || event.metaKey || event.altKey || !Object.hasOwn(actions, key) || taken(key, event.target)) return;
    event.preventDefault();
    actions[key](event);
  });
}

/** A control that was used by pointer keeps no focus, so that keys mean the film again; one that keys reached keeps it. */
function giveKeysBack() {
  for (const used of ["click", "change"]) {
    document.addEventListener(used, ({ target }) => target.matches("main *, header *") && !target.matches(":focus-visible") && target.blur());
  }
}

/** Click, box and hover with the main button, moving the zoomed frame with the others, zoom with the wheel. */
function bindPointer(viewer) {
  const stage = $("stage");
  let start = null, last = null;
  const at = (event) => {
    const box = stage.getBoundingClientRect();
    return [event.clientX - box.left, event.clientY - box.top];
  };
  const dragged = (to) => start && Math.max(Math.abs(to[0] - start[0]), Math.abs(to[1] - start[1])) > DRAG;
  stage.addEventListener("pointerdown", (event) => {
    stage.setPointerCapture(event.pointerId);
    last = at(event);
    if (event.button === 0) start = last;
  });
  stage.addEventListener("pointermove", (event) => {
    const to = at(event);
    if (start) showBox(dragged(to) ? [start, to] : null);
    else if (event.buttons) viewer.pan(to[0] - last[0], to[1] - last[1]);
    else viewer.hover(to);
    last = to;
  });
  stage.addEventListener("pointerup", (event) => {
    const to = at(event), add = event.shiftKey;
    if (start && dragged(to)) viewer.choose(viewer.selection.within(viewer.shown, viewer.camera, start, to), add);
    else if (start) viewer.click(to, add);
    start = showBox(null);
  });
  stage.addEventListener("pointercancel", () => (start = showBox(null)));
  stage.addEventListener("pointerleave", () => viewer.hover(null));
  stage.addEventListener("contextmenu", (event) => event.preventDefault());
  stage.addEventListener("dblclick", () => viewer.wholeFrame());
  stage.addEventListener("wheel", (event) => {
    event.preventDefault();
    viewer.zoom(Math.exp(-event.deltaY * (event.deltaMode ? 0.05 : 0.0015)), at(event));
  }, { passive: false });
}

/** Draw the box from corner to corner, or take it away. */
function showBox(corners) {
  const box = $("box");
  box.hidden = !corners;
  if (!corners) return null;
  const [[ax, ay], [bx, by]] = corners;
  Object.assign(box.style, {
    left: `${Math.min(ax, bx)}px`,
    top: `${Math.min(ay, by)}px`,
    width: `${Math.abs(bx - ax)}px`,
    height: `${Math.abs(by - ay)}px`,
  });
  return corners;
}
