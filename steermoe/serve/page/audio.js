// Sounds: files, recordings, and the microphone.

const RATE = 16000;

export class Sound {
  constructor(blob, name) {
    this.blob = blob;
    this.name = name;
  }

  // One channel at 16 kHz. Fails with a sentence for what the browser cannot read.
  async wav() {
    const context = new OfflineAudioContext(1, 1, RATE);
    let buffer;
    try {
      buffer = await context.decodeAudioData(await this.blob.arrayBuffer());
    } catch {
      throw new Error(`This browser cannot read ${this.name}; convert it to WAV first.`);
    }
    const sum = new Float32Array(buffer.length);
    for (let channel = 0; channel < buffer.numberOfChannels; channel++) {
      const samples = buffer.getChannelData(channel);
      for (let place = 0; place < sum.length; place++) sum[place] += samples[place];
    }
    const loudest = 32767 / buffer.numberOfChannels;
    const samples = Int16Array.from(sum, (value) => Math.max(-32767, Math.min(32767, value * loudest)));
    return wavFile([samples]);
  }
}

// blocks: Int16Arrays, one channel at 16 kHz. -> Blob
export function wavFile(blocks) {
  const bytes = blocks.reduce((sum, block) => sum + block.byteLength, 0);
  const head = new DataView(new ArrayBuffer(44));
  const name = (at, letters) => [...letters].forEach((letter, place) => head.setUint8(at + place, letter.charCodeAt(0)));
  name(0, "RIFF");
  head.setUint32(4, 36 + bytes, true);
  name(8, "WAVEfmt ");
  head.setUint32(16, 16, true);
  head.setUint16(20, 1, true); // PCM
  head.setUint16(22, 1, true); // channels
  head.setUint32(24, RATE, true);
  head.setUint32(28, 2 * RATE, true);
  head.setUint16(32, 2, true);
  head.setUint16(34, 16, true);
  name(36, "data");
  head.setUint32(40, bytes, true);
  return new Blob([head, ...blocks], { type: "audio/wav" });
}

export async function base64(blob) {
  const bytes = new Uint8Array(await blob.arrayBuffer());
  let letters = "";
  for (let at = 0; at < bytes.length; at += 0x8000) letters += String.fromCharCode(...bytes.subarray(at, at + 0x8000));
  return btoa(letters);
}

// Opens the microphone. take(Int16Array): each block of samples; lost(): it was unplugged or taken away.
// -> stop(): a promise, kept when the last block was taken. Fails with a sentence.
export async function openMicrophone(take, lost) {
  if (!navigator.mediaDevices?.getUserMedia || !window.AudioWorkletNode) {
    throw new Error("Browsers give the microphone only to pages from localhost or over https; choose a file instead.");
  }
  let stream;
  try {
    stream = await navigator.mediaDevices.getUserMedia({
      audio: { channelCount: 1, echoCancellation: false, noiseSuppression: false },
    });
  } catch (error) {
    const none = error.name === "NotFoundError";
    throw new Error(none ? "There is no microphone." : "The browser does not allow the microphone; allow it beside the address.");
  }
  const context = new AudioContext();
  const close = () => {
    stream.getTracks().forEach((track) => track.stop());
    return context.close();
  };
  try {
    await context.audioWorklet.addModule(new URL("recorder.js", import.meta.url));
  } catch {
    await close();
    throw new Error("The recorder could not be loaded; load the page again.");
  }
  const mono = { numberOfOutputs: 0, channelCount: 1, channelCountMode: "explicit" };
  const recorder = new AudioWorkletNode(context, "recorder", mono);
  const ended = new Promise((resolve) => {
    recorder.port.onmessage = ({ data }) => (data ? take(data) : resolve());
  });
  context.createMediaStreamSource(stream).connect(recorder);
  await context.resume();
  stream.getAudioTracks()[0].addEventListener("ended", lost);
  return async () => {
    recorder.port.postMessage("end");
    await ended;
    await close();
  };
}
