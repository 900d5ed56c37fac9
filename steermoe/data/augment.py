"""Augmentation of the training data: speed perturbation, reverberation, noise (waveform) and SpecAugment (features).

Random numbers follow from (seed, epoch, utterance id) only: a resumed training, another batch order or another number of
processes sees the same data. Shape legend: N samples, F input frames, M feature size.
Sources: Ko et al. 2015, "Audio Augmentation for Speech Recognition" (speed); Ko et al. 2017, "A study on data augmentation of
reverberant speech" (reverberation and noise); Park et al. 2019, "SpecAugment", and 2020, "SpecAugment on Large Scale Datasets".
"""

from __future__ import annotations

import hashlib
import math
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

import numpy as np

from steermoe.data.audio import duration, load_audio, resample
from steermoe.errors import UserError

if TYPE_CHECKING:
    from torch import Tensor

SIMULATED = "simulated"
# Simulated rooms: reverberation time and the energy of the direct path over that of the tail, drawn uniformly.
RT60_S = (0.2, 0.8)
DIRECT_TO_TAIL_DB = (0.0, 12.0)
# Mean power of the quantisation noise of 16-bit samples, about -100 dB: anything below it is silence.
SILENCE_POWER = 1e-10
SAMPLES_STREAM, FEATS_STREAM = 0, 1
AUDIO_SUFFIXES = (".wav", ".flac", ".ogg", ".opus", ".mp3")


@dataclass
class AugmentConf:
    """Training data only, drawn anew in every epoch; all off by default. A path: see read_recordings."""

    speed: list[float] = field(default_factory=list)  # factors of tempo and pitch, one drawn each time: [0.9, 1.0, 1.1]
    reverb: str = ""  # room impulse responses: a path, or `simulated`
    reverb_prob: float = 0.5  # share of the utterances
    noise: str = ""  # noises: a path
    noise_prob: float = 0.5  # share of the utterances
    noise_snr: list[float] = field(default_factory=lambda: [5.0, 20.0])  # dB, lowest and highest
    freq_masks: int = 0  # SpecAugment: masks over feature bands
    freq_width: int = 27  # bands, at most
    time_masks: int = 0  # SpecAugment: masks over frames
    time_width: float = 0.05  # share of the utterance, at most

    def check(self, where: str) -> None:
        """UserError that begins with `where` and names the key with a value out of its range. Opens no files."""
        checks = (
            ("speed", all(_number(factor) and 0.5 <= factor <= 2 for factor in self.speed), "a list of factors from 0.5 to 2"),
            ("reverb_prob", 0 <= self.reverb_prob <= 1, "from 0 to 1"),
            ("noise_prob", 0 <= self.noise_prob <= 1, "from 0 to 1"),
            ("noise_snr", _is_range(self.noise_snr), "two numbers of dB, the lower one first"),
            ("freq_masks", self.freq_masks >= 0, "0 or more"),
            ("freq_width", self.freq_width >= 1, "1 or more"),
            ("time_masks", self.time_masks >= 0, "0 or more"),
            ("time_width", 0 < self.time_width <= 1, "over 0, at most 1"),
        )
        for key, right, wanted in checks:
            if not right:
                raise UserError(f"{where}: augment_conf.{key}: {getattr(self, key)!r} is not {wanted}")


def _number(value: object) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _is_range(value: list) -> bool:
    return len(value) == 2 and all(map(_number, value)) and value[0] <= value[1]


class Recording(NamedTuple):
    """Part of an audio file; start and seconds in seconds."""

    wav: str
    start: float
    seconds: float


class Augment:
    """Draws for an utterance in an epoch what `conf` asks for, and applies it.

    UserError names the key whose data directory, wav.scp or audio file cannot be used; every header is read here, so that this
    is known before training.
    """

    def __init__(self, conf: AugmentConf, seed: int, sample_rate: int = 16000):
        self.conf, self.seed, self.sample_rate = conf, seed, sample_rate
        rooms = conf.reverb if conf.reverb_prob else ""
        self.simulated = rooms == SIMULATED
        self.rirs = read_recordings(rooms, "augment_conf.reverb") if rooms and not self.simulated else []
        self.noises = read_recordings(conf.noise, "augment_conf.noise") if conf.noise and conf.noise_prob else []

    @property
    def waveform(self) -> bool:
        """Whether samples change, so that dumped features are of no use."""
        return bool(self.conf.speed or self.simulated or self.rirs or self.noises)

    def samples(self, samples_n: np.ndarray, utt: str, epoch: int, max_seconds: float = math.inf) -> np.ndarray:
        """float32 (N,) -> float32 (N',): speed, then the room, then the noise. N' = N unless the speed changes.

        max_seconds: an utterance that would become longer keeps its speed. Noise may lift samples over 1.0; nothing is clipped.
        """
        conf, rng = self.conf, self._rng(epoch, SAMPLES_STREAM, utt)
        if conf.speed:
            factor = self.speed(utt, epoch)
            if len(samples_n) <= max_seconds * self.sample_rate * factor:
                samples_n = change_speed(samples_n, factor, self.sample_rate)
        if (self.simulated or self.rirs) and rng.random() < conf.reverb_prob:
            samples_n = reverberate(samples_n, self._draw_rir(rng))
        if self.noises and rng.random() < conf.noise_prob:
            noise_n = draw_piece(self.noises, rng, len(samples_n), self.sample_rate)
            samples_n = add_noise(samples_n, noise_n, rng.uniform(*conf.noise_snr))
        return samples_n

    def speed(self, utt: str, epoch: int) -> float:
        """The factor that `samples` draws for this utterance in this epoch; 1 without speed perturbation."""
        if not self.conf.speed:
            return 1.0
        # A hash, not a generator: the sampler asks for every utterance of the corpus at the beginning of every epoch.
        draw = hashlib.blake2b(f"{self.seed} {epoch} {utt}".encode(), digest_size=8).digest()
        return float(self.conf.speed[int.from_bytes(draw, "little") % len(self.conf.speed)])

    def feats(self, feats_fm: Tensor, utt: str, epoch: int) -> Tensor:
        """SpecAugment: (F, M) float32 -> the same shape. UserError if a mask could cover every band."""
        conf = self.conf
        if not (conf.freq_masks or conf.time_masks):
            return feats_fm
        if conf.freq_masks and conf.freq_width >= feats_fm.shape[1]:
            raise UserError(
                f"augment_conf.freq_width: {conf.freq_width} of {feats_fm.shape[1]} bands; lower it, or set "
                "augment_conf.freq_masks to 0"
            )
        rng = self._rng(epoch, FEATS_STREAM, utt)
        return mask_feats(feats_fm, rng, conf.freq_masks, conf.freq_width, conf.time_masks, conf.time_width)

    def _rng(self, epoch: int, stream: int, utt: str) -> np.random.Generator:
        return np.random.default_rng([self.seed, epoch, stream, *utt.encode()])

    def _draw_rir(self, rng: np.random.Generator) -> np.ndarray:
        if self.simulated:
            return simulate_rir(rng.uniform(*RT60_S), rng.uniform(*DIRECT_TO_TAIL_DB), rng, self.sample_rate)
        rir = self.rirs[rng.integers(len(self.rirs))]
        rir_n = load_audio(rir.wav, rir.start, rir.start + rir.seconds, self.sample_rate)
        if not rir_n.any():
            raise UserError(f"augment_conf.reverb: {rir.wav}: is silent, not a room impulse response; remove it from the list")
        return rir_n


def draw_piece(noises: list[Recording], rng: np.random.Generator, size: int, sample_rate: int = 16000) -> np.ndarray:
    """(size,): a random piece of a random noise; one that is shorter is repeated from a random place on."""
    noise = noises[rng.integers(len(noises))]
    wanted = size / sample_rate
    start = noise.start + rng.uniform(0, max(noise.seconds - wanted, 0))
    noise_n = load_audio(noise.wav, start, start + min(wanted, noise.seconds), sample_rate)
    shift = rng.integers(len(noise_n)) if noise.seconds < wanted else 0
    return np.resize(np.roll(noise_n, -shift), size)


def read_recordings(path: str, where: str) -> list[Recording]:
    """path: a Kaldi data directory (with segments, if it has them), a wav.scp file, or a folder with audio files at any depth.

    UserError that begins with `where` if it lists none, or one that cannot be read.
    """
    from steermoe.data.kaldi_dir import DataDir
    from steermoe.data.kaldi_files import read_map

    try:
        if path.endswith(".scp"):
            listed = [(wav, None, None) for wav in read_map(path).values()]
        elif files := _audio_files(Path(path)):
            listed = [(str(file), None, None) for file in files]
        else:
            utterances = DataDir.read(path, allow_pipes=True, require=("wav.scp",)).utterances.values()
            listed = [(utterance.wav, utterance.start, utterance.end) for utterance in utterances]
        if not listed:
            raise UserError(f"{path}: lists no audio; write `name file` lines")
        for wav, _, _ in listed:
            refuse_command(wav, path)
        return [Recording(wav, start or 0.0, duration(wav) if start is None else end - start) for wav, start, end in listed]
    except UserError as error:
        raise UserError(f"{where}: {error}") from None


def _audio_files(folder: Path) -> list[Path]:
    """Those in and below a folder, sorted; none where it is a data directory."""
    if not folder.is_dir() or (folder / "wav.scp").exists() or (folder / "utt2spk").exists():
        return []
    return sorted(file for file in folder.rglob("*") if file.suffix.lower() in AUDIO_SUFFIXES)


def refuse_command(wav: str, where: str) -> None:
    """UserError for a wav.scp entry that is not a file."""
    if wav.rstrip().endswith("|"):
        raise UserError(
            f"{where}: {wav}: is a command, and here audio is read from files only; write its output to a file and name that"
        )


def change_speed(samples_n: np.ndarray, factor: float, sample_rate: int) -> np.ndarray:
    """(N,) -> (ceil(N / factor),): tempo and pitch times `factor`, as if a tape ran faster. Factor 1 changes nothing."""
    return samples_n if factor == 1 else resample(samples_n, round(sample_rate * factor), sample_rate)


def simulate_rir(rt60: float, direct_to_tail_db: float, rng: np.random.Generator, sample_rate: int) -> np.ndarray:
    """A direct path of 1 and a tail of Gaussian noise that decays by 60 dB in `rt60` seconds (Moorer 1979). float32."""
    times = np.arange(1, round(rt60 * sample_rate)) / sample_rate
    tail = rng.standard_normal(len(times)) * 10 ** (-3 * times / rt60)
    tail *= 10 ** (-direct_to_tail_db / 20) / np.linalg.norm(tail)
    return np.concatenate([[1.0], tail]).astype(np.float32)


def reverberate(samples_n: np.ndarray, rir_k: np.ndarray) -> np.ndarray:
    """(N,), room impulse response (K,) -> (N,) float32 of the same mean power.

    The direct path, the response's highest peak, keeps its place: sample n is still what was said at n. What rings on behind
    the end is cut off.
    """
    size = 1 << (len(samples_n) + len(rir_k) - 2).bit_length()  # no wrapping round
    delay = int(np.abs(rir_k).argmax())
    spectrum = np.fft.rfft(samples_n, size) * np.fft.rfft(rir_k, size)
    wet_n = np.fft.irfft(spectrum, size)[delay : delay + len(samples_n)]
    power = _power(wet_n)
    return (wet_n * math.sqrt(_power(samples_n) / power)).astype(np.float32) if power > 0 else samples_n


def add_noise(samples_n: np.ndarray, noise_n: np.ndarray, snr_db: float) -> np.ndarray:
    """(N,) + noise (N,) -> (N,) float32; the mean powers over the whole utterance are `snr_db` apart.

    Silent speech counts as if it had SILENCE_POWER; silent noise (a gap of a recording) is left as it is.
    """
    noise_power = _power(noise_n)
    if noise_power < SILENCE_POWER:
        return samples_n
    wanted = max(_power(samples_n), SILENCE_POWER) * 10 ** (-snr_db / 10)
    return (samples_n + noise_n * math.sqrt(wanted / noise_power)).astype(np.float32)


def _power(samples_n: np.ndarray) -> float:
    return float(np.mean(np.square(samples_n, dtype=np.float64)))


def mask_feats(
    feats_fm: Tensor, rng: np.random.Generator, freq_masks: int, freq_width: int, time_masks: int, time_width: float
) -> Tensor:
    """A copy of (F, M) under masks; each is 0 to freq_width bands or 0 to time_width * F frames wide, anywhere, and may overlap.

    Masked values become their band's mean over the utterance: what the zeros of SpecAugment are after mean normalisation.
    """
    frames, bands = feats_fm.shape
    masked_fm, mean_m = feats_fm.clone(), feats_fm.mean(0)
    for _ in range(freq_masks):
        first, stop = _draw_span(rng, bands, freq_width)
        masked_fm[:, first:stop] = mean_m[first:stop]
    for _ in range(time_masks):
        first, stop = _draw_span(rng, frames, int(time_width * frames))
        masked_fm[first:stop] = mean_m
    return masked_fm


def _draw_span(rng: np.random.Generator, size: int, max_width: int) -> tuple[int, int]:
    width = int(rng.integers(min(max_width, size) + 1))
    first = int(rng.integers(size - width + 1))
    return first, first + width
