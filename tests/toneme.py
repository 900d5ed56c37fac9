"""Speech for tests: a word is a tone of its own, and the listener hears a word that was cut as a fragment."""

from __future__ import annotations

import numpy as np

RATE, WORD_S, GAP_S = 16000, 0.4, 0.06
NAMES = [a + b for a in "bdfgklm" for b in "aeiou"]  # 35 words, 300 Hz to 3.7 kHz


def speak(words: list[int], gap: float = GAP_S, noise: float = 0.001, seed: int = 0, hollow: bool = False) -> np.ndarray:
    """float32; `gap` seconds of near silence after each word. hollow: words are softest in the middle."""
    time = np.arange(round(WORD_S * RATE)) / RATE
    swell = 0.05 + 0.3 * (np.cos if hollow else np.sin)(np.pi * time / WORD_S) ** 2
    spoken = [np.concatenate([swell * np.sin(2 * np.pi * hertz(word) * time), np.zeros(round(gap * RATE))]) for word in words]
    samples = np.concatenate([*spoken, np.zeros(0)])
    return (samples + np.random.default_rng(seed).normal(0, noise, len(samples))).astype(np.float32)


def silence(seconds: float, noise: float = 0.001) -> np.ndarray:
    return np.random.default_rng(1).normal(0, noise, round(seconds * RATE)).astype(np.float32)


def hertz(word: int) -> float:
    return 300 + 100 * word


def listen(samples: np.ndarray) -> str:
    """The words in it; one of which less than nine tenths are there is `x`, less than two tenths is not heard."""
    frames = samples[: len(samples) // 320 * 320].reshape(-1, 320)
    loud = np.abs(frames).max(1) > 0.045 if len(frames) else np.zeros(0, dtype=bool)
    spectrum = np.abs(np.fft.rfft(frames * np.hanning(320), 800)) if len(frames) else np.zeros((0, 401))
    heard, run, before = [], 0, None
    for word in [*(round((peak * 20 - 300) / 100) if on else None for peak, on in zip(spectrum.argmax(1), loud)), None]:
        if word == before:
            run += 1
            continue
        if before is not None and run * 320 >= 0.2 * WORD_S * RATE:
            whole = run * 320 >= 0.9 * WORD_S * RATE
            heard.append(NAMES[before % len(NAMES)] if whole else "x")
        before, run = word, 1
    return " ".join(heard)


def text(words: list[int]) -> str:
    return " ".join(NAMES[word] for word in words)
