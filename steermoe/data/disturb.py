"""A test set as it is met outside: under noise, spoken faster or slower, quieter or louder; and clips in which nobody speaks.

Random numbers follow from (seed, noise, utterance id) only: an utterance meets the same piece of noise at every
signal-to-noise ratio and in every run. Shape legend: N samples at 16 kHz.
Source of the change of tempo: Verhelst and Roelands 1993, "An overlap-add technique based on waveform similarity (WSOLA)".
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import Callable, Sequence

import numpy as np

from steermoe.data.audio import duration, load_audio
from steermoe.data.augment import SILENCE_POWER, Recording, add_noise, draw_piece, read_recordings, refuse_command
from steermoe.data.kaldi_dir import DataDir, Utterance
from steermoe.errors import UserError

SAMPLE_RATE = 16000
BABBLE_SPEAKERS = 6
CLIP_SECONDS = (1.0, 10.0)  # of clips that are made; recorded ones are cut at the longer
HISS_DB = (-60.0, -20.0)  # mean power of white and pink noise, under full scale
DRAWS = 100
FRAME, HOP, REACH = 512, 256, 160  # WSOLA: samples of a frame, of its step, and of the search to either side

Draw = Callable[[np.random.Generator, int], np.ndarray]


@dataclass
class Condition:
    """name: of a folder. entries: as lines of data.jsonl (utt, spk, text, duration, …), duration as it is under the condition.
    samples(entry): float32 (N,). made_from: what the samples follow from beside the entries, JSON.
    """

    name: str
    entries: list[dict]
    samples: Callable[[dict], np.ndarray]
    made_from: dict = field(default_factory=dict)
    speech: bool = True
    noise: str = ""  # which noise was added
    snr: float | None = None  # dB


def utterances(data: Path, max_seconds: float, max_utts: int = 0, allow_pipes: bool = False) -> list[dict]:
    """Entries of a data directory, those over max_seconds left out; with max_utts so many, spread over the set."""
    entries = []
    for utt, utterance in DataDir.read(data, allow_pipes, ("wav.scp", "text")).utterances.items():
        if (seconds := _seconds(utterance, allow_pipes)) <= max_seconds:
            entry = {"utt": utt, "spk": utterance.spk, "text": utterance.text, "duration": seconds}
            entries.append(entry | {"wav": utterance.wav, "start": utterance.start, "end": utterance.end})
    if not entries:
        raise UserError(f"{data}: no utterance of at most {max_seconds:g} s, the longest that the adapter reads")
    return spread(entries, max_utts or len(entries))


def spread(items: Sequence, count: int) -> list:
    """`count` of the items, evenly spread, in order; all if there are fewer."""
    return [items[index * len(items) // count] for index in range(count)] if count < len(items) else list(items)


class Disturb:
    """Makes conditions of one test set. entries: of `utterances`. max_seconds: the longest utterance after a change of tempo."""

    def __init__(self, entries: list[dict], seed: int, max_seconds: float = math.inf, allow_pipes: bool = False):
        self.entries, self.seed, self.max_seconds = entries, seed, max_seconds
        self.read = functools.partial(_read, allow_pipes=allow_pipes)

    def clean(self) -> Condition:
        return Condition("clean", self.entries, self.read)

    def noisy(self, name: str, draw: Draw, made_from: object, snr: float) -> Condition:
        """The mean powers of speech and noise over the utterance `snr` dB apart. made_from: what `draw` draws from."""

        def samples(entry: dict) -> np.ndarray:
            samples_n = self.read(entry)
            noise_n = audible(draw, random(self.seed, name, entry["utt"]), len(samples_n), name)
            return add_noise(samples_n, noise_n, snr)

        facts = {"seed": self.seed, "noise": made_from, "snr": snr}
        return Condition(f"{name}_{snr:g}dB", self.entries, samples, facts, noise=name, snr=snr)

    def tempo(self, factor: float) -> Condition:
        """Faster or slower with the voice's pitch kept; what becomes too long is left out."""
        entries = [entry | {"duration": entry["duration"] / factor} for entry in self.entries]
        entries = [entry for entry in entries if entry["duration"] <= self.max_seconds]
        return Condition(f"tempo_{factor:g}", entries, lambda entry: change_tempo(self.read(entry), factor), {"factor": factor})

    def loudness(self, gain_db: float) -> Condition:
        name = f"loudness_{gain_db:+g}dB"
        return Condition(name, self.entries, lambda entry: change_gain(self.read(entry), gain_db), {"gain": gain_db})

    def nobody(self, kind: str, count: int) -> Condition:
        """`count` clips of silence (digital zero), white or pink noise, each of its own length and level."""

        def samples(entry: dict) -> np.ndarray:
            rng = random(self.seed, "samples", entry["utt"])
            size = round(entry["duration"] * SAMPLE_RATE)
            return np.zeros(size, np.float32) if kind == "silence" else hiss(rng, size, pink=kind == "pink")

        names = [f"{kind}-{index:04d}" for index in range(count)]
        lengths = [round(random(self.seed, "seconds", name).uniform(*CLIP_SECONDS), 2) for name in names]
        entries = [{"utt": name, "spk": kind, "text": "", "duration": length} for name, length in zip(names, lengths)]
        return Condition(f"nobody_{kind}", entries, samples, {"seed": self.seed}, speech=False)

    def noise_alone(self, name: str, recordings: list[Recording], count: int) -> Condition:
        """`count` of the recordings, spread over the list, without any speech."""
        entries = []
        for index, recording in enumerate(spread(recordings, count)):
            entry = {"utt": f"{name}-{index:04d}", "spk": name, "text": "", "duration": min(recording.seconds, CLIP_SECONDS[1])}
            entry |= {"wav": recording.wav, "start": recording.start}
            entries.append(entry | {"end": recording.start + entry["duration"]})
        return Condition(f"nobody_{name}", entries, _read, speech=False)


def noise_source(path: str) -> tuple[Draw, list[Recording]]:
    """path: as read_recordings. -> draw, and what it draws from."""
    recordings = read_recordings(path, "--noise")
    return functools.partial(draw_piece, recordings), recordings


def babble_source(data: Path, not_spk: set[str], allow_pipes: bool = False) -> tuple[Draw, list[str]]:
    """Several people of a data directory at once, none of `not_spk`. -> draw, and the ids of the utterances it draws from.

    Each is as loud as the others, begins anywhere in an utterance of theirs and goes on from its beginning at its end.
    """
    speakers: dict[str, list[Utterance]] = {}
    for utterance in DataDir.read(data, allow_pipes, ("wav.scp",)).utterances.values():
        if utterance.spk not in not_spk:
            if not allow_pipes:
                refuse_command(utterance.wav, str(data))
            speakers.setdefault(utterance.spk, []).append(utterance)
    if len(speakers) < 2:
        raise UserError(
            f"--babble {data}: {len(speakers)} speakers who are not in the test set, 2 are needed; --babble none leaves it out"
        )

    def draw(rng: np.random.Generator, size: int) -> np.ndarray:
        babble_n = np.zeros(size, np.float32)
        for spk in rng.permutation(sorted(speakers))[:BABBLE_SPEAKERS]:
            utterance = speakers[spk][rng.integers(len(speakers[spk]))]
            voice_n = load_audio(utterance.wav, utterance.start, utterance.end, allow_pipes=allow_pipes)
            voice_n = np.resize(np.roll(voice_n, -rng.integers(len(voice_n))), size)
            babble_n += voice_n / math.sqrt(max(_power(voice_n), SILENCE_POWER))
        return babble_n

    return draw, [utterance.utt for listed in speakers.values() for utterance in listed]


def audible(draw: Draw, rng: np.random.Generator, size: int, name: str) -> np.ndarray:
    """What `draw` draws, drawn again while it is silent: added silence would make an utterance clean."""
    for _ in range(DRAWS):
        if _power(noise_n := draw(rng, size)) >= SILENCE_POWER:
            return noise_n
    raise UserError(f"--noise {name}: {DRAWS} pieces were drawn and all are silent; give recordings with sound in them")


def change_gain(samples_n: np.ndarray, gain_db: float) -> np.ndarray:
    """(N,) float32 times 10^(gain_db / 20), but at most to where the highest peak is full scale: nothing is clipped."""
    peak = float(np.abs(samples_n).max(initial=0.0))
    gain = 10 ** (gain_db / 20)
    return samples_n * np.float32(min(gain, max(1.0, 1 / peak)) if gain > 1 and peak else gain)


def change_tempo(samples_n: np.ndarray, factor: float) -> np.ndarray:
    """(N,) float32 -> (round(N / factor),): the speaking rate times `factor`, pitch and timbre kept. Factor 1 changes nothing.

    WSOLA: overlapping frames are set down every HOP samples and taken about every HOP * factor samples, each from where, up to
    REACH samples away, it continues the one before best (normalised cross-correlation).
    """
    if factor == 1:
        return samples_n
    size = round(len(samples_n) / factor)
    window = 0.5 - 0.5 * np.cos(2 * np.pi * np.arange(FRAME) / FRAME)  # copies HOP apart add up to 1
    padded_n = np.pad(samples_n.astype(np.float64), (HOP + REACH, 2 * FRAME + 2 * REACH))
    energy_n = np.concatenate([[0.0], np.cumsum(padded_n**2)])
    changed_n = np.zeros(size + 2 * FRAME)
    taken = REACH  # of padded_n: a frame that begins HOP before the first sample, so that the first is under two windows
    for place in range(0, size + HOP, HOP):
        if place:
            first = min(REACH + round(place * factor), len(samples_n) + HOP + REACH) - REACH
            next_n = padded_n[taken + HOP : taken + HOP + FRAME]
            found = np.correlate(padded_n[first : first + FRAME + 2 * REACH], next_n, "valid")
            norms = energy_n[first + FRAME : first + FRAME + 2 * REACH + 1] - energy_n[first : first + 2 * REACH + 1]
            taken = first + int(np.argmax(found / np.sqrt(np.maximum(norms, 1e-9))))
        changed_n[place : place + FRAME] += window * padded_n[taken : taken + FRAME]
    return changed_n[HOP : HOP + size].astype(np.float32)


def hiss(rng: np.random.Generator, size: int, pink: bool) -> np.ndarray:
    """(size,) float32 Gaussian noise of a mean power drawn from HISS_DB; pink: power falls with 1 / frequency."""
    noise_n = rng.standard_normal(size)
    if pink:
        spectrum = np.fft.rfft(noise_n)
        spectrum[1:] /= np.sqrt(np.arange(1, len(spectrum)))
        spectrum[0] = 0.0
        noise_n = np.fft.irfft(spectrum, size)
    level = 10 ** (rng.uniform(*HISS_DB) / 20)
    return (noise_n * level / math.sqrt(_power(noise_n))).astype(np.float32)


def random(seed: int, purpose: str, utt: str) -> np.random.Generator:
    return np.random.default_rng([seed, *purpose.encode(), 0, *utt.encode()])


def _read(entry: dict, allow_pipes: bool = False) -> np.ndarray:
    return load_audio(entry["wav"], entry["start"], entry["end"], allow_pipes=allow_pipes)


def _seconds(utterance: Utterance, allow_pipes: bool) -> float:
    return utterance.duration or duration(utterance.wav, allow_pipes)


def _power(samples_n: np.ndarray) -> float:
    return float(np.mean(np.square(samples_n, dtype=np.float64)))
