// The server's interface: every request of the page is made here, and always to the server that the page came from.

const KEY = "steermoe.key"; // of sessionStorage: forgotten when the tab is closed

export class ServerError extends Error {
  constructor(message, status = 0) {
    super(message);
    this.status = status;
  }
}

export const getKey = () => sessionStorage.getItem(KEY) ?? "";
export const setKey = (value) => sessionStorage.setItem(KEY, value);

const UNREACHABLE = "The server does not answer; is it still running?";
const BROKEN = "The connection broke before the answer was complete; try again.";
const MEANING = {
  401: "This server asks for an API key.",
  413: "This recording is larger than the server accepts.",
  429: "The server is busy; try again in a moment.",
  503: "The server is busy; try again in a moment.",
};

async function request(path, options = {}) {
  const headers = new Headers(options.headers);
  if (getKey()) headers.set("Authorization", `Bearer ${getKey()}`);
  let response;
  try {
    response = await fetch(path, { ...options, headers });
  } catch (error) {
    throw error.name === "AbortError" ? error : new ServerError(UNREACHABLE);
  }
  if (!response.ok) throw new ServerError(await sentence(response), response.status);
  return response;
}

async function sentence(response) {
  try {
    const { error } = await response.json();
    if (error.message) return error.message;
  } catch {
    // not the server's own answer but, say, a proxy's page: the status says what is known
  }
  return MEANING[response.status] ?? `The server answered ${response.status} ${response.statusText}.`;
}

// The JSON of each server-sent event until [DONE] or the end.
async function* events(response) {
  const reader = response.body.pipeThrough(new TextDecoderStream()).getReader();
  let held = "";
  for (;;) {
    let part;
    try {
      part = await reader.read();
    } catch (error) {
      throw error.name === "AbortError" ? error : new ServerError(BROKEN);
    }
    if (part.done) return;
    const blocks = (held + part.value).split(/\r?\n\r?\n/);
    held = blocks.pop();
    for (const block of blocks) {
      const lines = block.split(/\r?\n/).filter((line) => line.startsWith("data:"));
      const data = lines.map((line) => line.slice(5).trimStart()).join("\n");
      if (data === "[DONE]") return;
      if (!data) continue;
      const event = JSON.parse(data);
      if (event.error) throw new ServerError(event.error.message);
      yield event;
    }
  }
}

function form(blob, name, fields = {}) {
  const data = new FormData();
  data.append("file", blob, name);
  for (const [field, value] of Object.entries(fields)) for (const one of [value].flat()) data.append(field, one);
  return { method: "POST", body: data };
}

// -> the name of the model that is served
export async function modelName() {
  const { data } = await (await request("v1/models")).json();
  return data[0].id;
}

// tell(text): what has been read so far. -> {text, segments: [{start, end, text}], words: [{start, end, word}]}, seconds each
export async function transcribe(blob, name, model, tell, signal) {
  const times = { model, "timestamp_granularities[]": ["segment", "word"] };
  const ask = (fields) => request("v1/audio/transcriptions", { ...form(blob, name, { ...times, ...fields }), signal });
  let text = "";
  for await (const event of events(await ask({ stream: "true" }))) {
    if (event.type === "transcript.text.delta") tell((text += event.delta));
    if (event.type !== "transcript.text.done") continue;
    return { segments: [], words: [], ...event };
  }
  throw new ServerError(BROKEN);
}

// -> what steermoe/serve/experts.py gives
export async function experts(blob, name, signal) {
  return (await request("v1/steermoe/experts", { ...form(blob, name), signal })).json();
}

// messages: as of OpenAI's chat completions. tell(text): the answer so far. -> the answer
export async function chat(messages, model, tell, signal) {
  const body = JSON.stringify({ model, messages, stream: true });
  const options = { method: "POST", body, headers: { "Content-Type": "application/json" }, signal };
  let text = "", ended = false;
  for await (const event of events(await request("v1/chat/completions", options))) {
    const choice = event.choices?.[0];
    if (choice?.delta?.content) tell((text += choice.delta.content));
    ended ||= Boolean(choice?.finish_reason);
  }
  if (!ended) throw new ServerError(BROKEN);
  return text;
}

// A live microphone: tell({text, open}) after every reading, ended(message) once, empty if all went well.
// -> {send(int16 samples at 16 kHz), close()}
export function live(tell, ended) {
  const url = new URL("v1/steermoe/stream", document.baseURI);
  url.protocol = url.protocol.replace("http", "ws");
  const socket = new WebSocket(url);
  const start = { type: "start", format: "int16", ...(getKey() && { api_key: getKey() }) };
  let waiting = [JSON.stringify(start)];
  let message = "There is no live text; what is recorded is read when you stop.";
  const send = (data) => {
    if (waiting) waiting.push(data);
    else if (socket.readyState === WebSocket.OPEN) socket.send(data);
  };
  socket.addEventListener("open", () => {
    for (const data of waiting) socket.send(data);
    waiting = null;
  });
  socket.addEventListener("message", ({ data }) => {
    const heard = JSON.parse(data);
    if (heard.error) message = heard.error.message;
    else tell(heard);
    if (heard.final) message = "";
  });
  socket.addEventListener("close", () => ended(message));
  return { send, close: () => socket.close() };
}
