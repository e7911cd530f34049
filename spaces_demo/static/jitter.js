// Samples that arrive in packets, waiting to be played: a buffer that finds its way back to a short delay.
window.codecplus = window.codecplus || {};

// How many packets may be on their way to the server and back: as many as it handles in 300 ms. Where
// it is slower than the voice, packets are then lost rather than heard ever later.
window.codecplus.mostFlying = works => {
  if (!works.length) return 3; // until the first answer tells
  const recent = works.slice(-10); // milliseconds that the server worked on each
  const mean = recent.reduce((sum, work) => sum + work, 0) / recent.length;
  return Math.max(2, Math.round(300 / Math.max(20, mean))); // a packet holds 20 ms
};

// The class is also sent to the audio thread as text, so it uses nothing from outside.
window.codecplus.JitterBuffer = class JitterBuffer {
  constructor(rate) {
    this.rate = rate;
    this.target = Math.round(0.04 * rate); // samples that may wait at the least
    this.limit = Math.round(0.25 * rate); // what gathers while the page sleeps would be heard late for ever
    this.fade = Math.round(0.005 * rate);
    this.samples = new Float32Array(rate);
    this.start = 0; // of what waits, in samples
    this.held = 0;
    this.running = false;
    this.late = 0; // how often nothing was left to play
    this.passed = 0; // samples since the second began
    this.least = Infinity; // fill in this second
    this.excess = 0; // samples to drain
    this.patience = 1; // grows with every second in which no part was quiet enough
    this.rest = 0; // samples until the next cut
    this.loudness = 0; // mean energy of what was played
  }

  push(block) {
    const over = this.held + block.length - this.limit;
    if (over > 0) {
      const cut = Math.min(over, this.held);
      this.start += cut;
      this.held -= cut;
    }
    const kept = block.subarray(Math.max(0, block.length - this.limit));
    if (this.start + this.held + kept.length > this.samples.length) {
      this.samples.copyWithin(0, this.start, this.start + this.held);
      this.start = 0;
    }
    this.samples.set(kept, this.start + this.held);
    this.held += kept.length;
  }

  // Fill `output` with the samples that are next; with silence where there are none.
  pull(output) {
    output.fill(0);
    if (!this.running && this.held >= this.target) this.running = true;
    if (!this.running) return;
    this.drain();
    const count = Math.min(output.length, this.held);
    output.set(this.samples.subarray(this.start, this.start + count));
    this.start += count;
    this.held -= count;
    this.loudness += 0.002 * (this.energy(output, 0, output.length) - this.loudness);
    if (count < output.length) {
      this.running = false;
      this.late++;
      this.least = Infinity;
      this.passed = 0;
      this.excess = 0;
      return;
    }
    this.watch(output.length);
  }

  // Once a second, find how many samples waited at the least: what is above the target is delay for nothing.
  watch(count) {
    this.rest = Math.max(0, this.rest - count);
    this.least = Math.min(this.least, this.held);
    this.passed += count;
    if (this.passed < this.rate) return;
    this.excess = Math.max(0, this.least - this.target);
    this.patience = this.excess ? 2 * this.patience : 1;
    this.least = Infinity;
    this.passed = 0;
  }

  // Leave out up to 10 ms where it is quiet, fading from before the cut to after it.
  drain() {
    const cut = Math.min(this.excess, Math.round(0.01 * this.rate));
    if (this.rest || cut < this.fade || this.held < cut + 2 * this.fade) return;
    const loudest = 0.05 * this.patience * this.loudness;
    if (this.energy(this.samples, this.start, cut + this.fade) > loudest) return;
    for (let i = 0; i < this.fade; i++) {
      const share = (i + 0.5) / this.fade, after = this.start + cut + i;
      this.samples[after] = (1 - share) * this.samples[this.start + i] + share * this.samples[after];
    }
    this.start += cut;
    this.held -= cut;
    this.excess -= cut;
    this.least -= cut;
    this.rest = Math.round(0.02 * this.rate);
  }

  energy(samples, start, count) {
    let sum = 0;
    for (let i = start; i < start + count; i++) sum += samples[i] * samples[i];
    return sum / count;
  }
};
