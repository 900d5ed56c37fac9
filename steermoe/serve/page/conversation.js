// Questions about the sound, in a conversation that is kept: every question is sent with all that was said before it.

import { base64 } from "./audio.js";
import * as server from "./server.js";

export class Conversation {
  // model(): the model's name. complain(error): shows it.
  constructor(model, complain) {
    const get = (id) => document.getElementById(id);
    [this.talk, this.form, this.words, this.send, this.fresh, this.with] =
      ["talk", "question", "words", "send", "fresh", "with"].map(get);
    this.model = model;
    this.complain = complain;
    this.sound = null; // that goes with the next question
    this.messages = [];
    this.form.addEventListener("submit", (event) => {
      event.preventDefault();
      this.ask();
    });
    this.words.addEventListener("keydown", (event) => {
      if (event.key !== "Enter" || event.shiftKey || event.isComposing) return;
      event.preventDefault();
      this.form.requestSubmit();
    });
    this.fresh.addEventListener("click", () => this.clear());
  }

  // A new sound goes with the next question.
  hear(sound) {
    this.last = this.sound = sound;
    this.with.textContent = `${sound.name} goes with it`;
  }

  clear() {
    this.stop?.abort();
    this.messages = [];
    this.talk.replaceChildren();
    this.fresh.hidden = true;
    if (this.last) this.hear(this.last);
    this.words.focus();
  }

  async ask() {
    const question = this.words.value.trim();
    if (!question || this.send.disabled) return;
    const { sound } = this;
    this.stop = new AbortController();
    const { signal } = this.stop;
    this.send.disabled = true;
    const asked = this.line("you", question, sound?.name);
    const answer = this.line("model", "…");
    try {
      const content = [{ type: "text", text: question }];
      if (sound) content.unshift({ type: "input_audio", input_audio: { data: await base64(await sound.wav()), format: "wav" } });
      const turn = { role: "user", content };
      const told = await server.chat([...this.messages, turn], this.model(), (text) => this.tell(answer, text), signal);
      this.messages.push(turn, { role: "assistant", content: told });
      if (!told) this.tell(answer, "(no answer)");
      this.words.value = "";
      if (this.sound === sound) {
        this.sound = null;
        this.with.textContent = "";
      }
      this.fresh.hidden = false;
    } catch (reason) {
      asked.remove(); // the question is still in its field
      answer.remove();
      this.complain(reason, () => this.ask());
    } finally {
      this.send.disabled = false;
    }
  }

  line(who, text, sound) {
    const line = document.createElement("li");
    line.className = who;
    const name = document.createElement("b");
    name.textContent = who === "you" ? "You" : "Model";
    const words = document.createElement("p");
    words.dir = "auto";
    line.append(name, words);
    if (sound) {
      const note = document.createElement("small");
      note.textContent = sound;
      line.append(note);
    }
    this.talk.append(line);
    this.tell(line, text);
    return line;
  }

  tell(line, text) {
    line.querySelector("p").textContent = text;
    line.scrollIntoView({ block: "nearest" });
  }
}
