// Which points are shown, which are chosen, and which lie under the pointer.

class Selection {
  constructor(data, options) {
    Object.assign(this, { data, options, chosen: new Set() });
  }

  /** Choose points instead of the others, or with `add` in addition. */
  choose(points, add = false) {
    this.chosen = new Set(add ? [...this.chosen, ...points] : points);
  }

  toggle(point) {
    if (!this.chosen.delete(point)) this.chosen.add(point);
  }

  /** The points in ascending order. */
  list() {
    return [...this.chosen].sort((a, b) => a - b);
  }

  /** The point after, or before, the chosen ones. */
  step(by) {
    if (!this.data.points) return;
    const all = this.list();
    const from = all.length ? (by > 0 ? all[all.length - 1] : all[0]) : by > 0 ? -1 : 0;
    this.choose([(from + by + this.data.points) % this.data.points]);
  }

  dimmed(n) {
    return this.chosen.size > 0 && !this.chosen.has(n);
  }

  shown(n, t, set) {
    const { tracks, hide, only } = this.options;
    return tracks && set.inside(n, t) && !(hide && !set.seen(n, t)) && !(only && this.dimmed(n));
  }

  /** The sets of tracks that each pane shows. */
  panes() {
    const [a, b] = this.data.sets;
    if (!b) return [[a]];
    return { both: [[a, b]], beside: [[a], [b]], a: [[a]], b: [[b]] }[this.options.layout];
  }

  /** The nearest shown point within `reach` pixels of the screen, or -1; chosen points go first where two are as near. */
  nearest(t, camera, x, y, reach = 14) {
    const index = camera.paneAt(x, y), [vx, vy] = camera.toVideo(index, x, y);
    let best = -1, least = (reach / camera.scale()) ** 2;
    for (const set of this.panes()[index]) {
      for (let n = 0; n < this.data.points; n++) {
        if (!this.shown(n, t, set)) continue;
        const apart = (set.x(n, t) - vx) ** 2 + (set.y(n, t) - vy) ** 2;
        if (apart < least || (apart === least && this.chosen.has(n))) [best, least] = [n, apart];
      }
    }
    return best;
  }

  /** The shown points in a box of the screen; it counts in the pane where it began. */
  within(t, camera, [x0, y0], [x1, y1]) {
    const index = camera.paneAt(x0, y0);
    const [ax, ay] = camera.toVideo(index, Math.min(x0, x1), Math.min(y0, y1));
    const [bx, by] = camera.toVideo(index, Math.max(x0, x1), Math.max(y0, y1));
    const found = new Set();
    for (const set of this.panes()[index]) {
      for (let n = 0; n < this.data.points; n++) {
        const x = set.x(n, t), y = set.y(n, t);
        if (x >= ax && x <= bx && y >= ay && y <= by && this.shown(n, t, set)) found.add(n);
      }
    }
    return [...found].sort((a, b) => a - b);
  }
}
