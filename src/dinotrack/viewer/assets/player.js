// Which frame it is time for.

class Player {
  constructor(frames, fps) {
    Object.assign(this, { frames, fps, frame: 0, playing: false, speed: 1, loop: true, direction: 1 });
    this.clock = null;
    this.owed = 0;
  }

  seek(frame) {
    const goal = Math.min(Math.max(Math.round(frame), 0), this.frames - 1);
    this.direction = goal < this.frame ? -1 : 1;
    this.frame = goal;
    this.owed = 0;
  }

  toggle() {
    this.playing = !this.playing;
    this.direction = 1;
    this.clock = null;
    this.owed = 0;
    if (this.playing && !this.loop && this.frame === this.frames - 1) this.frame = 0;
  }

  pause() {
    if (this.playing) this.toggle();
  }

  /** Go on with the time; it stands still while the current frame is not on the screen, so that no frame is lost to decoding. */
  advance(now, shown, longest = 250) {
    if (!this.playing) return;
    const passed = this.clock === null || !shown ? 0 : Math.min(now - this.clock, longest);
    this.clock = now;
    this.owed += (passed / 1000) * this.fps * this.speed;
    const steps = Math.floor(this.owed);
    this.owed -= steps;
    if (this.frame + steps >= this.frames && !this.loop) this.stopAtEnd();
    else this.frame = (this.frame + steps) % this.frames;
  }

  stopAtEnd() {
    this.frame = this.frames - 1;
    this.playing = false;
  }
}
