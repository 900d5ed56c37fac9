// Spectrogram, and below it a strip for each encoder layer that shows how every moment is shared among the layer's experts.
// The canvases have one pixel a column and are stretched by the style sheet, so nothing is drawn anew when the window changes.

import { clock } from "./text.js";

const STRIP = 48; // pixels of a strip's height
const COLOURS = ["#0072b2", "#e69f00", "#009e73", "#cc79a7", "#d55e00", "#56b4e9", "#f0e442", "#8c8c8c"]; // Okabe and Ito's
const LIGHT = [[255, 255, 255], [201, 221, 233], [94, 148, 181], [22, 71, 107], [6, 22, 38]]; // silence to the loudest
const DARK = [[18, 22, 27], [27, 58, 82], [43, 118, 150], [139, 203, 205], [255, 250, 224]];
const FADED = 0.12;
const FEW = 8; // layers of which all are told about at once, and whose strips are tall

const colour = (expert) => COLOURS[expert] ?? `hsl(${(expert * 137.5) % 360} 60% 50%)`;
const bytes = (text) => Uint8Array.from(atob(text), (letter) => letter.charCodeAt(0));
const percent = (share) => `${Math.round((100 * share) / 255)} %`;

function make(tag, text = "", attributes = {}) {
  const element = document.createElement(tag);
  element.textContent = text;
  for (const [name, value] of Object.entries(attributes)) element.setAttribute(name, value);
  return element;
}

export class Picture {
  // wordAt(seconds): what is said then. seek(seconds): plays from there.
  constructor(wordAt, seek) {
    const get = (id) => document.getElementById(id);
    [this.section, this.box, this.cover, this.cursor, this.at, this.legend, this.table, this.axis, this.spectrogram] =
      ["experts", "picture", "cover", "cursor", "at", "legend", "table", "axis", "spectrogram"].map(get);
    this.wordAt = wordAt;
    this.seek = seek;
    this.dark = matchMedia("(prefers-color-scheme: dark)");
    this.dark.addEventListener("change", () => this.heard && this.paintSound());
    this.cover.addEventListener("pointermove", (event) => this.point(event));
    this.cover.addEventListener("pointerleave", () => {
      this.pointed = false;
      this.show(this.now);
    });
    this.cover.addEventListener("click", (event) => {
      this.point(event);
      this.seek(this.seconds(event));
    });
    this.cover.addEventListener("keydown", (event) => this.key(event));
  }

  clear() {
    this.heard = null;
    this.section.hidden = true;
  }

  // heard: what steermoe/serve/experts.py gives
  draw(heard) {
    this.heard = heard;
    this.now = 0;
    this.layer = -1; // which one is told about; -1: all in short
    this.only = null;
    this.layers = heard.layers.map((layer) => ({ ...layer, gates: bytes(layer.gates) }));
    this.section.hidden = false;
    this.section.classList.toggle("unsteered", !this.layers.length);
    this.section.classList.toggle("many", this.layers.length > FEW);
    for (const old of this.box.querySelectorAll(".of")) old.remove();
    this.strips = this.layers.map((layer, number) => {
      const label = make("span", `layer ${number}`, { class: "layer of" });
      label.append(make("small", `α ${layer.alpha.toFixed(2)}`, { title: "alpha: how strongly this layer is steered" }));
      const canvas = make("canvas", "", { class: "plot strip of", "aria-hidden": "true" });
      this.axis.before(label, canvas);
      return canvas;
    });
    const step = [0.5, 1, 2, 5, 10, 20, 30, 60, 120, 300, 600].find((size) => heard.seconds / size <= 6) ?? 1200;
    const ticks = Array.from({ length: Math.floor(heard.seconds / step + 1e-9) + 1 }, (_, number) => number * step);
    this.axis.replaceChildren(...ticks.map((second) => {
      const tick = make("span", step < 1 ? second.toFixed(1) : clock(second));
      tick.style.left = `${(100 * second) / heard.seconds}%`;
      return tick;
    }));
    this.cover.setAttribute("aria-valuemax", heard.seconds);
    this.paintSound();
    this.paintStrips();
    this.explain();
    this.show(0);
  }

  paintSound() {
    const { columns, bands } = this.heard;
    const values = bytes(this.heard.spectrogram);
    const ramp = this.dark.matches ? DARK : LIGHT;
    const table = Array.from({ length: 256 }, (_, value) => {
      const place = (value / 255) * (ramp.length - 1);
      const low = Math.min(Math.floor(place), ramp.length - 2);
      return ramp[low].map((channel, at) => channel + (ramp[low + 1][at] - channel) * (place - low));
    });
    paint(this.spectrogram, columns, bands, (column, row) => table[values[column * bands + bands - 1 - row]]);
  }

  paintStrips() {
    this.layers.forEach(({ experts, gates }, number) => {
      const palette = Array.from({ length: experts }, (_, expert) => rgb(colour(expert)));
      const faded = (expert) => this.only !== null && this.only !== expert;
      const columns = Array.from({ length: this.heard.columns }, (_, column) => {
        const rows = [];
        let sum = 0;
        for (let expert = 0; expert < experts; expert++) {
          sum += gates[column * experts + expert];
          const [red, green, blue] = palette[expert];
          const shade = [red, green, blue, faded(expert) ? 255 * FADED : 255];
          while (rows.length < Math.round((STRIP * sum) / 255)) rows.push(shade);
        }
        return rows;
      });
      paint(this.strips[number], this.heard.columns, STRIP, (column, row) => columns[column][row] ?? [0, 0, 0, 0]);
    });
  }

  explain() {
    const experts = Math.max(0, ...this.layers.map((layer) => layer.experts));
    this.legend.replaceChildren(...Array.from({ length: experts }, (_, expert) => {
      const button = make("button", `expert ${expert}`, { type: "button", "aria-pressed": "false" });
      button.style.setProperty("--swatch", colour(expert));
      button.addEventListener("click", () => {
        this.only = this.only === expert ? null : expert;
        [...this.legend.children].forEach((one, place) => one.setAttribute("aria-pressed", place === this.only));
        this.paintStrips();
      });
      return button;
    }));
    const head = make("tr");
    const names = ["layer", "α", ...Array.from({ length: experts }, (_, expert) => `expert ${expert}`)];
    head.append(...names.map((name) => make("th", name, { scope: "col" })));
    this.table.replaceChildren(head, ...this.layers.map((layer, number) => {
      const row = make("tr");
      const sums = Array.from({ length: layer.experts }, () => 0);
      layer.gates.forEach((share, place) => (sums[place % layer.experts] += share));
      const all = sums.reduce((total, sum) => total + sum, 0) || 1;
      const cells = sums.map((sum) => make("td", percent((255 * sum) / all)));
      row.append(make("th", `layer ${number}`, { scope: "row" }), make("td", layer.alpha.toFixed(3)), ...cells);
      return row;
    }));
  }

  seconds(event) {
    const area = this.cover.getBoundingClientRect();
    const place = Math.max(0, Math.min(1, (event.clientX - area.left) / area.width));
    return place * this.heard.seconds;
  }

  point(event) {
    const areas = this.strips.map((strip) => strip.getBoundingClientRect());
    const layer = areas.findIndex(({ top, bottom }) => event.clientY >= top && event.clientY < bottom);
    this.pointed = true;
    this.at.textContent = this.told(this.seconds(event), layer);
  }

  key(event) {
    const step = Math.max(this.heard.seconds / 100, 0.02);
    const moves = { ArrowLeft: -step, ArrowRight: step, PageDown: -10 * step, PageUp: 10 * step };
    const layers = { ArrowUp: -1, ArrowDown: 1 };
    if (event.key in layers) {
      this.layer = Math.max(-1, Math.min(this.layers.length - 1, this.layer + layers[event.key]));
      this.show(this.now);
    } else if (event.key in moves) this.show(this.now + moves[event.key]);
    else if (event.key === "Home") this.show(0);
    else if (event.key === "End") this.show(this.heard.seconds);
    else if (event.key === "Enter" || event.key === " ") this.seek(this.now);
    else return;
    event.preventDefault();
  }

  // Moves the line to a time and tells about it, unless the pointer asks about another.
  move(seconds) {
    if (!this.heard) return;
    this.now = Math.max(0, Math.min(this.heard.seconds, seconds));
    this.cursor.style.left = `${(100 * this.now) / this.heard.seconds}%`;
    if (!this.pointed) this.at.textContent = this.told(this.now, this.layer);
  }

  // The same, and for screen readers too, which would speak without end if it were done while the sound plays.
  show(seconds) {
    this.move(seconds);
    if (!this.heard) return;
    this.cover.setAttribute("aria-valuenow", this.now.toFixed(2));
    this.cover.setAttribute("aria-valuetext", this.told(this.now, this.layer));
  }

  // What is heard at a time: the shares of one layer, or (-1) the strongest expert of every layer.
  told(seconds, layer) {
    const column = Math.min(Math.floor((seconds / this.heard.seconds) * this.heard.columns), this.heard.columns - 1);
    const word = this.wordAt(seconds);
    const shares = ({ experts, gates }) =>
      [...gates.subarray(column * experts, (column + 1) * experts)]
        .map((share, expert) => ({ share, expert }))
        .sort((one, other) => other.share - one.share);
    let found = this.heard.message;
    if (this.layers.length && !shares(this.layers[0])[0].share) found = "a pause that is not read";
    else if (layer >= 0) {
      const parts = shares(this.layers[layer]).filter(({ share }) => share >= 255 / 200);
      found = `layer ${layer}: ` + parts.map(({ share, expert }) => `expert ${expert} ${percent(share)}`).join(", ");
    } else if (this.layers.length > FEW) {
      found = "point at a layer, or choose one with the arrow keys";
    } else if (this.layers.length) {
      const best = this.layers.map((one, number) => ({ ...shares(one)[0], number }));
      found = best.map(({ share, expert, number }) => `layer ${number}: expert ${expert} ${percent(share)}`).join(" · ");
    }
    return `${seconds.toFixed(2)} s${word ? ` “${word}”` : ""} · ${found}`;
  }
}

// colourOf(column, row): [red, green, blue] or with alpha, 0 to 255
function paint(canvas, width, height, colourOf) {
  canvas.width = width;
  canvas.height = height;
  const image = new ImageData(width, height);
  for (let row = 0; row < height; row++) {
    for (let column = 0; column < width; column++) {
      const [red, green, blue, alpha = 255] = colourOf(column, row);
      image.data.set([red, green, blue, alpha], 4 * (row * width + column));
    }
  }
  canvas.getContext("2d").putImageData(image, 0, 0);
}

function rgb(name) {
  const context = document.createElement("canvas").getContext("2d");
  context.fillStyle = name;
  context.fillRect(0, 0, 1, 1);
  return [...context.getImageData(0, 0, 1, 1).data].slice(0, 3);
}
