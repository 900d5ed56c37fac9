"""A made-up language of two words, each a tone: what a CTC model can learn within seconds."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import soundfile
import torch

HERTZ = {"low": 400, "high": 2500}


def make_corpus(folder: Path, name: str, count: int, seed: int = 0) -> Path:
    """Wav files of one to four words and the data.jsonl that stage 2 would write. Returns the data.jsonl."""
    from steermoe.data.ark import ArkWriter
    from steermoe.data.fbank import KaldiFbank

    rng = np.random.default_rng([seed, count])
    fbank, lines = KaldiFbank(), []
    (folder / "wav").mkdir(parents=True, exist_ok=True)
    with ArkWriter(folder / f"{name}.ark", 0) as writer:
        for index in range(count):
            utt = f"spk{2 * index // count}-{name}{index:03d}"
            words = rng.choice(list(HERTZ), rng.integers(1, 5)).tolist()
            wav = folder / "wav" / f"{utt}.wav"
            soundfile.write(wav, say(words, rng), 16000)
            samples_n, _ = soundfile.read(wav, dtype="float32")
            feats_fm = fbank(torch.from_numpy(samples_n)).numpy()
            entry = {"utt": utt, "spk": utt[:4], "text": " ".join(words), "wav": str(wav), "start": None, "end": None}
            entry |= {"feats": f"{folder / name}.ark:{writer.write(utt, feats_fm)}", "num_frames": len(feats_fm)}
            lines.append(json.dumps(entry | {"duration": len(samples_n) / 16000, "num_tokens": len(words)}))
    path = folder / f"{name}.jsonl"
    path.write_text("\n".join(lines) + "\n")
    return path


def say(words: list[str], rng: np.random.Generator) -> np.ndarray:
    """Each word about a quarter of a second of its tone, pauses of 0.15 s, and some noise."""
    pieces = [np.zeros(2400)]
    for word in words:
        times = np.arange(round(16000 * rng.uniform(0.2, 0.3))) / 16000
        pieces += [0.3 * np.sin(2 * np.pi * HERTZ[word] * rng.uniform(0.95, 1.05) * times), np.zeros(2400)]
    samples_n = np.concatenate(pieces)
    return samples_n + rng.normal(0, 0.003, len(samples_n))
