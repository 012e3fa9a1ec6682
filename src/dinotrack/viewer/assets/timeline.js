// Under the video, on the scrubber's scale: visibility bars on top, confidence curves below, of the chosen points or of all.

const EDGE = 8; // half of the scrubber's thumb: frame 0 lies this far inside
const ROWS = 40; // bars that can still be told apart
const CURVES = 8;

class Timeline {
  constructor(canvas, data, selection, options) {
    Object.assign(this, { canvas, data, selection, options });
    this.ctx = canvas.getContext("2d");
  }

  x(t) {
    return EDGE + (this.width - 2 * EDGE) * (t / Math.max(this.data.frames - 1, 1));
  }

  frameAt(x) {
    return ((x - EDGE) / (this.width - 2 * EDGE)) * (this.data.frames - 1);
  }

  draw() {
    const dots = window.devicePixelRatio || 1, box = this.canvas.getBoundingClientRect();
    [this.width, this.height] = [box.width, box.height];
    this.canvas.width = Math.round(box.width * dots);
    this.canvas.height = Math.round(box.height * dots);
    this.ctx.setTransform(dots, 0, 0, dots, 0, 0);
    this.colour = colouring(this.data.sets.length > 1 ? "file" : this.options.colour, this.data);
    const split = this.height * 0.42, chosen = this.selection.list();
    this.drawGrid(split);
    if (chosen.length) {
      this.drawBars(chosen, 2, split - 6);
      this.drawCurves(chosen.slice(0, CURVES), split, this.height - 3);
    } else this.drawSummary(split);
    this.note = chosen.length ? this.leftOut(chosen) : "";
    this.drawNote(split);
  }

  /** What is not drawn of many chosen points. */
  leftOut(chosen) {
    const bars = this.rows(chosen).length, parts = [];
    if (bars > ROWS) parts.push(`${ROWS} of ${bars} bars`);
    if (chosen.length > CURVES) parts.push(`curves of ${CURVES} of ${chosen.length} points`);
    return parts.join(", ");
  }

  drawNote(split) {
    const ctx = this.ctx;
    this.canvas.title = this.note;
    ctx.font = "11px system-ui, sans-serif";
    ctx.textAlign = "right";
    ctx.textBaseline = "top";
    ctx.fillStyle = "#dfe6f0";
    ctx.fillText(this.note, this.width - EDGE, split + 3);
  }

  /** The sets that are shown, in one pane or two. */
  sets() {
    return this.selection.panes().flat();
  }

  drawGrid(split) {
    const ctx = this.ctx;
    ctx.strokeStyle = "rgb(255 255 255 / 0.08)";
    ctx.lineWidth = 1;
    ctx.beginPath();
    for (const y of [split, (split + this.height - 3) / 2, this.height - 3]) {
      ctx.moveTo(EDGE, Math.round(y) + 0.5);
      ctx.lineTo(this.width - EDGE, Math.round(y) + 0.5);
    }
    ctx.stroke();
  }

  /** Each chosen point in each file that has it. */
  rows(chosen) {
    return this.sets().flatMap((set) => chosen.filter((n) => set.has(n)).map((n) => [set, n]));
  }

  /** A bar for each chosen point and file: bright where visible, dark where occluded. */
  drawBars(chosen, top, bottom) {
    const shown = this.rows(chosen).slice(0, ROWS), height = Math.min((bottom - top) / Math.max(shown.length, 1), 14);
    shown.forEach(([set, n], k) => this.drawBar(set, n, top + k * height, height - (height > 3 ? 1.5 : 0)));
  }

  drawBar(set, n, y, height) {
    const ctx = this.ctx, frames = this.data.frames;
    const step = (this.width - 2 * EDGE) / Math.max(frames - 1, 1);
    ctx.fillStyle = "rgb(255 255 255 / 0.1)";
    ctx.fillRect(this.x(0) - step / 2, y, step * frames, height);
    for (let s = 0; s < frames; s++) {
      if (!set.seen(n, s)) continue;
      ctx.fillStyle = this.colour(n, s, set);
      ctx.fillRect(this.x(s) - step / 2, y, step + 0.5, height); // half a pixel over, against seams
    }
  }

  drawCurves(chosen, top, bottom) {
    const plain = this.options.colour === "confidence" && this.data.sets.length === 1; // the height says it
    for (const set of this.sets()) {
      for (const n of chosen) {
        const values = Array.from({ length: this.data.frames }, (_, s) => set.sure(n, s));
        this.drawCurve(values, plain ? "#dfe6f0" : this.colour(n, 0, set), top, bottom, set.number);
      }
    }
  }

  /** Confidence over time, 0 at the bottom and 1 on top; B's is dashed. */
  drawCurve(values, colour, top, bottom, dashed) {
    const ctx = this.ctx;
    ctx.beginPath();
    values.forEach((value, s) => {
      if (Number.isFinite(value)) ctx.lineTo(this.x(s), bottom - (bottom - top) * Math.min(Math.max(value, 0), 1));
    });
    ctx.setLineDash(dashed ? [4, 3] : []);
    ctx.lineWidth = 1.75;
    ctx.strokeStyle = colour;
    ctx.stroke();
    ctx.setLineDash([]);
  }

  /** Of all points: the share that is visible as an area, and the mean confidence as a curve. */
  drawSummary(split) {
    for (const set of this.sets()) {
      const [seen, sure] = meansOverPoints(set, this.data);
      const colour = this.data.sets.length > 1 ? FILES[set.number] : "#8fa3bf";
      this.drawArea(seen, colour, 3, split - 3, set.number);
      this.drawCurve(sure, colour, split, this.height - 3, set.number);
    }
  }

  drawArea(values, colour, top, bottom, dashed) {
    const ctx = this.ctx;
    this.drawCurve(values, colour, top, bottom, dashed);
    ctx.lineTo(this.x(this.data.frames - 1), bottom);
    ctx.lineTo(this.x(0), bottom);
    ctx.globalAlpha = 0.22;
    ctx.fillStyle = colour;
    ctx.fill();
    ctx.globalAlpha = 1;
  }
}

/** Share of visible points and mean confidence at each frame. */
function meansOverPoints(set, { points, frames }) {
  const seen = new Float64Array(frames), sure = new Float64Array(frames), counted = new Float64Array(frames);
  let present = 0;
  for (let n = 0; n < points; n++) {
    if (!set.has(n)) continue;
    present += 1;
    for (let t = 0; t < frames; t++) {
      seen[t] += set.seen(n, t);
      if (!Number.isFinite(set.sure(n, t))) continue;
      sure[t] += set.sure(n, t);
      counted[t] += 1;
    }
  }
  return [Array.from(seen, (sum) => sum / Math.max(present, 1)), Array.from(sure, (sum, t) => sum / counted[t])];
}
