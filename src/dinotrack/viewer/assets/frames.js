// The frames: kept as text, decoded shortly before they are shown, and forgotten again when memory runs low.

class Frames {
  /** @param {Element[]} elements one a frame, with a JPEG in base64; `changed` is called whenever one is decoded. */
  constructor(elements, changed, { bytes = 256e6, ahead = 8, atOnce = 3 } = {}) {
    Object.assign(this, { elements, changed, bytes, ahead, atOnce });
    this.decoded = new Map();
    this.pending = new Set();
    this.broken = new Set();
    this.wanted = [];
  }

  /** The picture of frame t, if it is there already; frames from t on are asked for. */
  get(t, direction = 1) {
    this.wanted = [];
    for (let k = 0; k <= Math.min(this.ahead, this.elements.length - 1); k++) {
      this.wanted.push((t + direction * k + this.elements.length * (k + 1)) % this.elements.length);
    }
    this.decodeNext();
    return this.touch(t);
  }

  touch(t) {
    const bitmap = this.decoded.get(t);
    if (bitmap) {
      this.decoded.delete(t);
      this.decoded.set(t, bitmap); // a Map keeps the order of insertion: the first is the one unused for longest
    }
    return bitmap;
  }

  decodeNext() {
    for (const t of this.wanted) {
      if (this.pending.size >= this.atOnce) return;
      if (!this.decoded.has(t) && !this.pending.has(t) && !this.broken.has(t)) this.decode(t);
    }
  }

  async decode(t) {
    this.pending.add(t);
    try {
      const jpeg = new Blob([bytesOf(this.elements[t].textContent)], { type: "image/jpeg" });
      this.decoded.set(t, await createImageBitmap(jpeg));
      this.forget();
    } catch {
      this.broken.add(t);
    }
    this.pending.delete(t);
    this.decodeNext();
    this.changed();
  }

  forget() {
    const [{ width, height }] = this.decoded.values();
    const room = Math.max(this.ahead + 2, Math.floor(this.bytes / (4 * width * height)));
    for (const [t, bitmap] of this.decoded) {
      if (this.decoded.size <= room) return;
      if (this.wanted.includes(t)) continue;
      bitmap.close();
      this.decoded.delete(t);
    }
  }
}
