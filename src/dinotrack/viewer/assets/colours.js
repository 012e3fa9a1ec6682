// What colours mean.

const NEUTRAL = "rgb(150 158 172)";
const FILES = ["#ffb224", "#38c6f4"];
const NAMED = ["#4cc9f0", "#ff8fab", "#ffd166", "#7ae582", "#c77dff", "#ff9e5e", "#a0e7e5", "#e5e5e5"];
const STOPS = [[114, 1, 168], [156, 23, 158], [189, 55, 134], [216, 87, 107], [237, 121, 83], [251, 159, 58], [253, 202, 38], [240, 249, 33]];
const SHADES = Array.from({ length: 64 }, (_, k) => shade(k / 63));

/** Plasma without its darkest part, which is lost on a dark video: it rises in lightness, so it reads without its hues too. */
function shade(share) {
  const place = share * (STOPS.length - 1), low = Math.min(Math.floor(place), STOPS.length - 2);
  const mixed = STOPS[low].map((value, k) => Math.round(value + (place - low) * (STOPS[low + 1][k] - value)));
  return `rgb(${mixed.join(" ")})`;
}

const objectColour = (k) => NAMED[k] ?? `hsl(${Math.round((k * 137.5) % 360)} 75% 68%)`;

/** The function (point, frame, set) → colour of a colouring. */
function colouring(kind, data) {
  if (kind === "confidence") {
    const [low, high] = data.confidence;
    return (n, t, set) => SHADES[Math.round(63 * Math.min(Math.max((set.sure(n, t) - low) / (high - low), 0), 1))] ?? NEUTRAL;
  }
  if (kind === "object") return (n) => (data.objects.of[n] < 0 ? NEUTRAL : objectColour(data.objects.of[n]));
  if (kind === "file") return (n, t, set) => FILES[set.number];
  return (n) => data.colours[n];
}

/** The legend of a colouring, as elements. */
function legend(kind, data) {
  if (kind === "confidence") return [scaleBar(data.confidence)];
  if (kind === "object") return [...data.objects.names.map((name, k) => swatch(name, objectColour(k))), swatch("none", NEUTRAL)];
  if (kind === "file") return data.sets.map((set, k) => swatch(`${"AB"[k]}  ${set.name}`, FILES[k]));
  return [startMap(), make("p", "note", "where a point's query lies in the frame")];
}

/** The frame in the colours of `start_colours`: HSV (300° x, 1 - 0.6 y, 1), which HSL says with full saturation. */
function startMap(columns = 96, rows = 24) {
  const map = make("canvas", "map");
  [map.width, map.height] = [columns, rows];
  const ctx = map.getContext("2d");
  for (let i = 0; i < rows; i++) {
    for (let j = 0; j < columns; j++) {
      ctx.fillStyle = `hsl(${(300 * (j + 0.5)) / columns} 100% ${50 + (30 * (i + 0.5)) / rows}%)`;
      ctx.fillRect(j, i, 1, 1);
    }
  }
  return map;
}

function scaleBar([low, high]) {
  const box = make("div", "scale"), bar = make("canvas");
  bar.width = 64;
  bar.height = 1;
  const ctx = bar.getContext("2d");
  SHADES.forEach((colour, k) => {
    ctx.fillStyle = colour;
    ctx.fillRect(k, 0, 1, 1);
  });
  box.append(make("span", "", low.toFixed(2)), bar, make("span", "", high.toFixed(2)));
  box.title = "Confidences beyond these ends, 2 % of them at either, have the ends' colours";
  return box;
}

function swatch(name, colour) {
  const box = make("div", "swatch"), dot = make("i");
  dot.style.background = colour;
  box.append(dot, make("span", "", name));
  return box;
}

function make(tag, className = "", text = "") {
  const element = document.createElement(tag);
  element.className = className;
  element.textContent = text;
  return element;
}
