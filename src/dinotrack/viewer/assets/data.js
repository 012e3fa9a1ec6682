// What Python wrote into the page. Positions are raster pixels of the video: a pixel's centre is at 0.5.

function bytesOf(text) {
  if (Uint8Array.fromBase64) return Uint8Array.fromBase64(text);
  const characters = atob(text);
  const bytes = new Uint8Array(characters.length);
  for (let i = 0; i < bytes.length; i++) bytes[i] = characters.charCodeAt(i);
  return bytes;
}

const numbersOf = (text, Kind) => new Kind(bytesOf(text).buffer);

function readData() {
  const data = JSON.parse(document.getElementById("data").textContent);
  const colours = bytesOf(data.colours);
  return {
    ...data,
    width: data.size[0],
    height: data.size[1],
    queries: numbersOf(data.queries, Float32Array),
    colours: Array.from({ length: data.points }, (_, n) => `rgb(${colours.subarray(3 * n, 3 * n + 3).join(" ")})`),
    objects: { names: data.objects.names, of: numbersOf(data.objects.of, Int32Array) },
    sets: data.sets.map((set, number) => new TrackSet(set, number, data)),
  };
}

const JUMP = 0.1; // of the long side: a step that long is a point found elsewhere, not motion

/** One file's tracks, in the order of all points; what it lacks is NaN. */
class TrackSet {
  constructor(set, number, { frames, size }) {
    this.name = set.name;
    this.number = number;
    this.frames = frames;
    this.size = size;
    this.rows = numbersOf(set.rows, Int32Array);
    this.xy = numbersOf(set.xy, Float32Array);
    this.visible = bytesOf(set.visible);
    this.confidence = numbersOf(set.confidence, Float32Array);
  }

  has(n) {
    return this.rows[n] >= 0;
  }

  x(n, t) {
    return this.xy[2 * (n * this.frames + t)];
  }

  y(n, t) {
    return this.xy[2 * (n * this.frames + t) + 1];
  }

  seen(n, t) {
    return this.visible[n * this.frames + t] === 1;
  }

  sure(n, t) {
    return this.confidence[n * this.frames + t];
  }

  /** Whether there is a position to draw; NaN is inside of nothing. */
  inside(n, t) {
    const x = this.x(n, t), y = this.y(n, t);
    return x >= 0 && y >= 0 && x < this.size[0] && y < this.size[1];
  }

  /** Whether the step to frame t is motion that was seen. */
  moved(n, t) {
    this.steps ??= this.findSteps();
    return this.steps[n * this.frames + t] === 1;
  }

  findSteps() {
    const steps = new Uint8Array(this.visible.length), far = JUMP * Math.max(...this.size);
    for (let n = 0; n < this.rows.length; n++) {
      for (let t = 1; t < this.frames; t++) {
        const there = [t - 1, t].every((s) => this.seen(n, s) && this.inside(n, s));
        const length = Math.hypot(this.x(n, t) - this.x(n, t - 1), this.y(n, t) - this.y(n, t - 1));
        steps[n * this.frames + t] = there && length <= far;
      }
    }
    return steps;
  }
}
