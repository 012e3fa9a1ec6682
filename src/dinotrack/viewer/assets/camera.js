// Where the video lies on the screen: from raster pixels of the video to CSS pixels of the canvas and back.

class Camera {
  constructor(width, height) {
    Object.assign(this, { width, height, canvas: [1, 1], panes: 1, highest: 40 });
    this.reset();
  }

  reset() {
    this.zoom = 1;
    this.centre = [this.width / 2, this.height / 2];
  }

  /** One pane, or two: beside each other or one above the other, whichever shows more. */
  rectangles() {
    const [w, h] = this.canvas;
    if (this.panes === 1) return [{ x: 0, y: 0, w, h }];
    const beside = Math.min(w / 2 / this.width, h / this.height) >= Math.min(w / this.width, h / 2 / this.height);
    if (beside) return [0, 1].map((k) => ({ x: (k * w) / 2, y: 0, w: w / 2, h }));
    return [0, 1].map((k) => ({ x: 0, y: (k * h) / 2, w, h: h / 2 }));
  }

  scale() {
    const [{ w, h }] = this.rectangles();
    return Math.min(w / this.width, h / this.height) * this.zoom;
  }

  /** How a pane is drawn: screen = origin + scale · video. */
  pane(index) {
    const rectangle = this.rectangles()[index], scale = this.scale();
    const left = rectangle.x + rectangle.w / 2 - scale * this.centre[0];
    const top = rectangle.y + rectangle.h / 2 - scale * this.centre[1];
    return { ...rectangle, scale, left, top };
  }

  paneAt(x, y) {
    const found = this.rectangles().findIndex((r) => x >= r.x && y >= r.y && x < r.x + r.w && y < r.y + r.h);
    return Math.max(found, 0);
  }

  toVideo(index, x, y) {
    const { left, top, scale } = this.pane(index);
    return [(x - left) / scale, (y - top) / scale];
  }

  /** Zoom so that what lies under (x, y) stays there. */
  zoomAt(factor, x, y) {
    const index = this.paneAt(x, y), before = this.toVideo(index, x, y);
    this.zoom = Math.min(Math.max(this.zoom * factor, 1), this.highest);
    const after = this.toVideo(index, x, y);
    this.move(before[0] - after[0], before[1] - after[1]);
  }

  /** Move by video pixels, but never off the frame. */
  move(dx, dy) {
    const half = 0.5 / this.zoom;
    this.centre = [
      Math.min(Math.max(this.centre[0] + dx, half * this.width), (1 - half) * this.width),
      Math.min(Math.max(this.centre[1] + dy, half * this.height), (1 - half) * this.height),
    ];
  }
}
