// The page: a sound comes in by the microphone or as a file; its text, its experts and questions about it follow.

import { openMicrophone, Sound, wavFile } from "./audio.js";
import { Conversation } from "./conversation.js";
import { Picture } from "./picture.js";
import * as server from "./server.js";
import { clock, Transcript } from "./text.js";

const get = (id) => document.getElementById(id);
const player = get("player"), status = get("status"), error = get("error"), said = get("said"), open = get("open");

let model = "steermoe"; // its name
let working = new AbortController(); // what is under way for the sound before this one
let again = null; // what was refused for want of a key, to be done when there is one
let text = "";

const transcript = new Transcript(get("units"), playFrom);
const picture = new Picture((seconds) => transcript.wordAt(seconds), playFrom);
const conversation = new Conversation(() => model, complain);

// Shows an error as one sentence. retry: what to do again once a key is there.
function complain(reason, retry = null) {
  if (reason.name === "AbortError") return;
  const sentence = reason.message[0].toUpperCase() + reason.message.slice(1);
  error.textContent = /[.!?]$/.test(sentence) ? sentence : `${sentence}.`;
  error.hidden = false;
  if (reason.status === 401) {
    again = retry;
    get("access").hidden = false;
    get("key").focus();
  }
}

function playFrom(seconds) {
  if (player.hidden) return;
  player.currentTime = seconds;
  player.play().catch(() => {}); // what cannot be played has told so by its `error` event
}

// Everything about a new sound: plays, reads, looks inside. before: what was heard of it while it was recorded.
async function take(sound, before = "") {
  working.abort();
  working = new AbortController();
  const { signal } = working;
  error.hidden = true;
  transcript.clear();
  picture.clear();
  say("", before);
  get("copy").hidden = true;
  get("name").textContent = sound.name;
  get("name").hidden = false;
  URL.revokeObjectURL(player.src);
  player.src = URL.createObjectURL(sound.blob);
  player.hidden = false;
  status.textContent = "Reading …";
  const began = performance.now();
  try {
    const heard = await server.transcribe(sound.blob, sound.name, model, (part) => say(part, ""), signal);
    text = heard.text;
    conversation.hear(sound);
    const seconds = ((performance.now() - began) / 1000).toFixed(1);
    status.textContent = text ? `Read in ${seconds} s. Click a word or a time to hear it.` : "Nobody is heard to speak.";
    transcript.show(heard.segments, heard.words);
    get("live").hidden = !get("units").hidden;
    get("copy").hidden = !text || !navigator.clipboard;
    picture.draw(await server.experts(sound.blob, sound.name, signal));
  } catch (reason) {
    if (reason.name !== "AbortError") status.textContent = text ? "" : "This sound could not be read.";
    complain(reason, () => take(sound));
  }
}

function say(final, unsure) {
  text = final;
  get("live").hidden = false;
  said.textContent = final;
  open.textContent = unsure;
}

// The microphone

const record = get("record");
let stop = null; // ends the recording under way

async function startRecording() {
  working.abort();
  error.hidden = true;
  transcript.clear();
  picture.clear();
  player.pause();
  say("", "");
  get("copy").hidden = true;
  const blocks = [];
  let samples = 0, troubled = "";
  const stream = server.live(
    (heard) => say(heard.text.trim(), heard.open),
    (message) => {
      troubled = message;
      if (stop && message) status.textContent = message;
    },
  );
  const take16k = (block) => {
    blocks.push(block);
    samples += block.length;
    stream.send(block);
    get("level").value = Math.max(...block.map(Math.abs)) / 32767;
    get("clock").textContent = clock(samples / 16000);
  };
  let close;
  try {
    close = await openMicrophone(take16k, () => stop?.());
  } catch (reason) {
    stream.close();
    complain(reason);
    return;
  }
  status.textContent = troubled || "Listening …";
  stop = async () => {
    stop = null;
    showRecording(false);
    await close();
    stream.close();
    const sound = new Sound(wavFile(blocks), `recording of ${clock(samples / 16000)}.wav`);
    if (samples) take(sound, `${said.textContent} ${open.textContent}`);
    else complain(new Error("The microphone gave no sound; is it switched off?"));
  };
  showRecording(true);
}

function showRecording(on) {
  record.classList.toggle("on", on);
  record.lastElementChild.textContent = on ? "Stop" : "Record";
  get("recording").hidden = !on;
  get("name").hidden ||= on;
  player.hidden ||= on;
}

record.addEventListener("click", async () => {
  record.disabled = true; // until the microphone is open, or closed
  await (stop ? stop() : startRecording());
  record.disabled = false;
});

// Files

get("file").addEventListener("change", ({ target }) => {
  if (target.files.length) take(new Sound(target.files[0], target.files[0].name));
  target.value = "";
});

let inside = 0; // dragenter and dragleave also come for what lies within the page
addEventListener("dragenter", (event) => {
  if (event.dataTransfer?.types.includes("Files")) document.body.classList.toggle("dropping", ++inside > 0);
});
addEventListener("dragleave", () => document.body.classList.toggle("dropping", (inside = Math.max(0, inside - 1)) > 0));
addEventListener("dragover", (event) => event.preventDefault());
addEventListener("drop", (event) => {
  event.preventDefault();
  document.body.classList.remove("dropping");
  inside = 0;
  const file = event.dataTransfer.files[0];
  if (file && !stop) take(new Sound(file, file.name));
});

// Playing

function follow() {
  transcript.mark(player.ended ? null : player.currentTime);
  if (player.paused) return picture.show(player.currentTime);
  picture.move(player.currentTime);
  requestAnimationFrame(follow);
}
player.addEventListener("play", follow);
player.addEventListener("seeked", follow);
player.addEventListener("error", () => {
  player.hidden = true;
  get("name").textContent += " (this browser cannot play it)";
});

// The rest

get("copy").addEventListener("click", async () => {
  await navigator.clipboard.writeText(text);
  status.textContent = "Copied.";
});

async function greet() {
  try {
    model = await server.modelName();
    get("model").textContent = model;
  } catch (reason) {
    complain(reason, greet);
  }
}

get("access").addEventListener("submit", (event) => {
  event.preventDefault();
  server.setKey(get("key").value.trim());
  get("key").value = "";
  get("access").hidden = true;
  error.hidden = true;
  const retry = again;
  again = null;
  if (retry !== greet) greet();
  retry?.();
});

greet();
