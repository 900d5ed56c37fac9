// The transcript: segments of words that can be played by a click, a tap, or the keyboard.

// 75.3 -> "1:15"
export function clock(seconds) {
  const whole = Math.floor(seconds);
  const two = (value) => String(value).padStart(2, "0");
  const hours = Math.floor(whole / 3600);
  return (hours ? `${hours}:${two(Math.floor(whole / 60) % 60)}` : `${Math.floor(whole / 60)}`) + `:${two(whole % 60)}`;
}

// A text cut where its words are: [{text, start, end}], or {text} alone for what lies between. Words that are not found in the
// text are left out, so what is shown is always the text itself.
export function placeWords(text, words) {
  const parts = [];
  let at = 0;
  for (const { word, start, end } of words) {
    const found = text.indexOf(word.trim(), at);
    if (found < 0 || !word.trim()) continue;
    if (found > at) parts.push({ text: text.slice(at, found) });
    at = found + word.trim().length;
    parts.push({ text: text.slice(found, at), start, end });
  }
  if (at < text.length) parts.push({ text: text.slice(at) });
  return parts;
}

export class Transcript {
  // seek(seconds): plays from there
  constructor(box, seek) {
    this.box = box;
    this.seek = seek;
    this.units = [];
    box.addEventListener("click", ({ target }) => this.play(target));
    box.addEventListener("keydown", (event) => this.key(event));
  }

  clear() {
    this.box.replaceChildren();
    this.box.hidden = true;
    this.units = [];
    this.now = null;
  }

  // segments: [{start, end, text}]; words: [{start, end, word}] of all, or none
  show(segments, words) {
    this.clear();
    for (const segment of segments) {
      const own = words.filter(({ start }) => start >= segment.start - 0.01 && start < segment.end + 0.01);
      const text = segment.text.trim();
      const parts = own.length ? placeWords(text, own) : [{ text, start: segment.start, end: segment.end }];
      const line = document.createElement("p");
      line.dir = "auto";
      const time = document.createElement("button");
      time.type = "button";
      time.className = "time";
      time.textContent = clock(segment.start);
      time.dataset.start = segment.start;
      time.setAttribute("aria-label", `Play from ${clock(segment.start)}`);
      const said = document.createElement("span");
      line.append(time, said);
      for (const part of parts) {
        if (part.start === undefined) {
          said.append(part.text);
          continue;
        }
        const unit = document.createElement("span");
        unit.className = "unit";
        unit.textContent = part.text;
        unit.tabIndex = this.units.length ? -1 : 0; // one stop of the Tab key; arrows go on from there
        unit.setAttribute("role", "button");
        unit.dataset.start = part.start;
        this.units.push({ ...part, element: unit });
        said.append(unit);
      }
      this.box.append(line);
    }
    this.box.hidden = !this.box.childElementCount;
  }

  // What is said at a time: a word, or nothing where only segments are known
  wordAt(seconds) {
    const unit = this.units.find(({ start, end }) => start <= seconds && seconds < end);
    return unit && unit.text.length < 40 ? unit.text : "";
  }

  // Marks what is played; null: nothing.
  mark(seconds) {
    const begun = seconds === null ? [] : this.units.filter(({ start }) => start <= seconds + 0.02);
    const element = begun.at(-1)?.element ?? null;
    if (element === this.now) return;
    this.now?.classList.remove("now");
    this.now?.removeAttribute("aria-current");
    this.now = element;
    if (!element) return;
    element.classList.add("now");
    element.setAttribute("aria-current", "true");
    const { offsetTop: top, offsetHeight: height } = element; // within the box, which alone is scrolled
    const { scrollTop, clientHeight } = this.box;
    if (top < scrollTop || top + height > scrollTop + clientHeight) this.box.scrollTop = top - clientHeight / 3;
  }

  play(target) {
    const start = target.closest?.("[data-start]")?.dataset.start;
    if (start !== undefined && !getSelection().toString()) this.seek(Number(start));
  }

  key(event) {
    const place = this.units.findIndex(({ element }) => element === event.target);
    if (place < 0) return;
    const moves = { ArrowLeft: -1, ArrowUp: -1, ArrowRight: 1, ArrowDown: 1, Home: -place, End: this.units.length - 1 - place };
    if (event.key === "Enter" || event.key === " ") this.seek(this.units[place].start);
    else if (event.key in moves) {
      const next = this.units[place + moves[event.key]]?.element;
      if (next) {
        event.target.tabIndex = -1;
        next.tabIndex = 0;
        next.focus();
      }
    } else return;
    event.preventDefault();
  }
}
