// The microphone's samples at 16 kHz, int16, in blocks: runs in the browser's audio thread.
// Low-pass and interpolation in one: a sinc under a Hann window, read from a table.

const RATE = 16000;
const BLOCK = 1600; // samples of a message: 0.1 s
const REACH = 12; // zero crossings on each side
const FINE = 512; // places of the table between two of them
const CUTOFF = 0.95; // of the lower of the two Nyquist frequencies

const TABLE = Float32Array.from({ length: REACH * FINE + 1 }, (_, place) => {
  const x = place / FINE;
  const angle = Math.PI * CUTOFF * x;
  return (x ? Math.sin(angle) / angle : 1) * CUTOFF * 0.5 * (1 + Math.cos((Math.PI * x) / REACH));
});

class Recorder extends AudioWorkletProcessor {
  constructor() {
    super();
    this.step = sampleRate / RATE;
    this.scale = Math.max(this.step, 1); // input samples between two zero crossings
    this.held = new Float32Array(Math.ceil(REACH * this.scale)); // silence in front
    this.at = this.held.length; // where in `held` the next output sample lies
    this.block = new Int16Array(BLOCK);
    this.size = 0;
    this.going = true;
    this.port.onmessage = () => this.end();
  }

  process([[samples]]) {
    if (samples && this.going) this.push(samples);
    return this.going;
  }

  push(samples) {
    const held = new Float32Array(this.held.length + samples.length);
    held.set(this.held);
    held.set(samples, this.held.length);
    const reach = REACH * this.scale;
    for (; this.at + reach < held.length; this.at += this.step) {
      let sum = 0;
      for (let place = Math.ceil(this.at - reach); place <= this.at + reach; place++) {
        sum += held[place] * TABLE[Math.round((Math.abs(place - this.at) / this.scale) * FINE)];
      }
      this.block[this.size++] = Math.max(-1, Math.min(1, sum / this.scale)) * 32767;
      if (this.size === BLOCK) this.post();
    }
    const old = Math.floor(this.at - reach);
    this.held = held.slice(old);
    this.at -= old;
  }

  post() {
    this.port.postMessage(this.block.slice(0, this.size));
    this.size = 0;
  }

  end() {
    this.push(new Float32Array(Math.ceil(2 * REACH * this.scale)));
    if (this.size) this.post();
    this.port.postMessage(null);
    this.going = false;
  }
}

registerProcessor("recorder", Recorder);
