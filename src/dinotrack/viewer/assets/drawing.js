// The picture: a frame, trails, and a mark for each point; full where visible, hollow where occluded. A is round, B square.

// Where no graphics card helps, strokes cost most: trails of one colour are one path a band, and marks are filled.

const BANDS = 5; // levels of a trail's fading
const DIM = 0.4;
const THIN = 3; // pixels; joins of such a line cannot be told apart, and round ones take longest

class Drawing {
  constructor(canvas, data, camera, selection, options) {
    Object.assign(this, { canvas, data, camera, selection, options, times: [], drawn: 0 });
    this.ctx = canvas.getContext("2d", { alpha: false });
  }

  draw(bitmap, t, hovered) {
    const begin = performance.now(), ctx = this.ctx, dots = window.devicePixelRatio || 1;
    ctx.setTransform(dots, 0, 0, dots, 0, 0);
    ctx.fillStyle = "#07080b";
    ctx.fillRect(0, 0, ...this.camera.canvas);
    this.colour = colouring(this.options.colour, this.data);
    this.selection.panes().forEach((sets, index) => this.drawPane(bitmap, t, this.camera.pane(index), sets, hovered));
    this.drawn += 1;
    this.times[this.drawn % 600] = performance.now() - begin;
  }

  drawPane(bitmap, t, pane, sets, hovered) {
    const ctx = this.ctx;
    ctx.save();
    ctx.beginPath();
    ctx.rect(pane.x, pane.y, pane.w, pane.h);
    ctx.clip();
    this.drawFrame(bitmap, pane);
    for (const set of sets) this.drawTrails(t, pane, set);
    if (sets.length > 1) this.drawLinks(t, pane, sets);
    for (const set of sets) this.drawMarks(t, pane, set, hovered);
    ctx.restore();
    ctx.globalAlpha = 1;
    if (this.selection.panes().length > 1) this.drawName(pane, sets[0]);
  }

  drawFrame(bitmap, { left, top, scale }) {
    const ctx = this.ctx;
    ctx.globalAlpha = this.options.light / 100;
    ctx.imageSmoothingEnabled = scale < 6;
    const enlarged = scale * this.data.width * (window.devicePixelRatio || 1) >= bitmap.width;
    ctx.imageSmoothingQuality = enlarged ? "low" : "medium"; // the same picture, in less time
    ctx.drawImage(bitmap, left, top, this.data.width * scale, this.data.height * scale);
    ctx.globalAlpha = 1;
  }

  /** Points in the order in which they are drawn: the chosen ones on top. */
  ordered(t, set) {
    const shown = [];
    for (let n = 0; n < this.data.points; n++) if (this.selection.shown(n, t, set)) shown.push(n);
    if (!this.selection.chosen.size) return shown;
    return [...shown.filter((n) => this.selection.dimmed(n)), ...shown.filter((n) => !this.selection.dimmed(n))];
  }

  drawTrails(t, pane, set) {
    const { trail, radius } = this.options, ctx = this.ctx, bands = Math.min(BANDS, trail);
    if (!trail || !t) return;
    ctx.lineWidth = Math.max(1, radius * 0.5);
    ctx.lineJoin = ctx.lineWidth <= THIN ? "bevel" : "round";
    for (const [strength, layer] of this.layers(t, set)) {
      for (const [colour, points] of layer) {
        ctx.strokeStyle = colour;
        for (let band = bands; band >= 1; band--) {
          ctx.globalAlpha = strength * (1 - (band - 1) / bands) * 0.9;
          if (this.pathOfBand(points, t, pane, set, band)) ctx.stroke();
        }
      }
    }
  }

  /** Points by their colour, in two layers with their strengths: those that are dimmed below the others. */
  layers(t, set) {
    const faint = new Map(), full = new Map();
    for (const n of this.ordered(t, set)) {
      const layer = this.selection.dimmed(n) ? faint : full, colour = this.colour(n, t, set), those = layer.get(colour);
      if (those) those.push(n);
      else layer.set(colour, [n]);
    }
    return [[DIM, faint], [1, full]];
  }

  /** The steps of one age, and how many: band 1 holds the newest. B's are every other step, so that its trail is dashed. */
  pathOfBand(points, t, { left, top, scale }, set, band) {
    const { trail } = this.options, bands = Math.min(BANDS, trail), ctx = this.ctx;
    const newest = t - Math.floor(((band - 1) * trail) / bands);
    const oldest = Math.max(t - Math.floor((band * trail) / bands), 0);
    let steps = 0;
    ctx.beginPath();
    for (const n of points) {
      let drawing = false;
      for (let s = oldest + 1; s <= newest; s++) {
        const moved = set.moved(n, s) && !(set.number && s % 2);
        if (moved && !drawing) ctx.moveTo(left + scale * set.x(n, s - 1), top + scale * set.y(n, s - 1));
        if (moved) ctx.lineTo(left + scale * set.x(n, s), top + scale * set.y(n, s));
        if (moved) steps += 1;
        drawing = moved;
      }
    }
    return steps;
  }

  /** A line between the two files' positions of a point. */
  drawLinks(t, { left, top, scale }, [a, b]) {
    const ctx = this.ctx;
    ctx.lineWidth = 1.25;
    ctx.strokeStyle = "#fff";
    for (const faint of [true, false]) {
      ctx.beginPath();
      for (let n = 0; n < this.data.points; n++) {
        if (this.selection.dimmed(n) !== faint || !this.selection.shown(n, t, a) || !this.selection.shown(n, t, b)) continue;
        ctx.moveTo(left + scale * a.x(n, t), top + scale * a.y(n, t));
        ctx.lineTo(left + scale * b.x(n, t), top + scale * b.y(n, t));
      }
      ctx.globalAlpha = faint ? DIM * 0.7 : 0.7;
      ctx.stroke();
    }
  }

  drawMarks(t, { left, top, scale }, set, hovered) {
    for (const n of this.ordered(t, set)) {
      const x = left + scale * set.x(n, t), y = top + scale * set.y(n, t);
      this.ctx.globalAlpha = this.selection.dimmed(n) && n !== hovered ? DIM : 1;
      this.drawMark(x, y, this.colour(n, t, set), set.seen(n, t), set.number);
      if (this.selection.chosen.has(n) || n === hovered) this.drawRing(x, y, n === hovered);
    }
  }

  drawMark(x, y, colour, seen, square) {
    const half = Math.max(1.5, this.options.radius * 0.4) / 2; // of a hollow mark's rim
    this.fillBetween(x, y, seen ? -0.75 : -half - 1, seen ? 0.75 : half + 1, square, "rgb(0 0 0 / 0.65)");
    this.fillBetween(x, y, seen ? -Infinity : -half, seen ? 0 : half, square, colour);
  }

  /** Fill what lies between two outlines, each so many pixels outside of the mark's own. */
  fillBetween(x, y, inner, outer, square, style) {
    const ctx = this.ctx, radius = this.options.radius * (square ? 0.85 : 1);
    ctx.beginPath();
    this.outline(x, y, radius + outer, square);
    if (radius + inner > 0) this.outline(x, y, radius + inner, square);
    ctx.fillStyle = style;
    ctx.fill("evenodd");
  }

  outline(x, y, size, square) {
    if (square) this.ctx.rect(x - size, y - size, 2 * size, 2 * size);
    else {
      this.ctx.moveTo(x + size, y);
      this.ctx.arc(x, y, size, 0, 2 * Math.PI);
    }
  }

  drawRing(x, y, hovered) {
    const ctx = this.ctx;
    ctx.beginPath();
    ctx.arc(x, y, this.options.radius + 4, 0, 2 * Math.PI);
    ctx.lineWidth = 1.5;
    ctx.strokeStyle = hovered ? "rgb(255 255 255 / 0.8)" : "#fff";
    ctx.stroke();
  }

  drawName(pane, set) {
    const ctx = this.ctx, text = `${"AB"[set.number]}  ${set.name}`;
    ctx.font = "600 12px system-ui, sans-serif";
    ctx.textBaseline = "middle";
    ctx.fillStyle = "rgb(7 8 11 / 0.75)";
    ctx.fillRect(pane.x + 10, pane.y + 10, Math.min(ctx.measureText(text).width, pane.w - 36) + 16, 24);
    ctx.fillStyle = FILES[set.number];
    ctx.fillText(text, pane.x + 18, pane.y + 22.5, pane.w - 36);
  }
}
