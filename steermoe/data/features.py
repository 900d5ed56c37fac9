"""Whisper's log-mel features, of the real length only.

Shapes: N samples, T frames (100 a second), M mel bands.
Source: Radford et al., "Robust Speech Recognition via Large-Scale Weak Supervision", section 2.2; the padded result equals
transformers' WhisperFeatureExtractor.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

SAMPLE_RATE = 16000
HOP = 160
N_FFT = 400
WINDOW_SECONDS = 30.0
WINDOW_SAMPLES = int(WINDOW_SECONDS * SAMPLE_RATE)
WINDOW_FRAMES = WINDOW_SAMPLES // HOP


def num_frames(num_samples: int) -> int:
    """Frames whose analysis window touches the signal; every later frame of a padded window is pure silence."""
    frames = -(-(num_samples + N_FFT // 2) // HOP)
    return min(frames, WINDOW_FRAMES) if num_samples <= WINDOW_SAMPLES else frames


class WhisperLogMel:
    """The feature extractor of a Whisper encoder with `num_mels` bands. Called by stage 1, never inside training."""

    frames_per_second = SAMPLE_RATE / HOP
    max_frames = WINDOW_FRAMES

    def __init__(self, num_mels: int):
        self.num_mels = num_mels
        self.name = f"whisper_logmel{num_mels}"

    def __call__(self, samples_n: Tensor) -> Tensor:
        """samples_n (N,) float32 in [-1, 1] at 16 kHz -> (T, M) float32, T = num_frames(N)."""
        size = samples_n.shape[0]
        # Whisper pads the waveform to 30 s of zeros; two windows of them give the same frames wherever there is signal.
        padded = min(size + N_FFT, WINDOW_SAMPLES) if size <= WINDOW_SAMPLES else size + N_FFT
        samples_n = torch.nn.functional.pad(samples_n, (0, max(padded, N_FFT) - size))
        spectrum = torch.stft(samples_n, N_FFT, HOP, window=_window(), return_complex=True)
        power_ft = spectrum[:, : num_frames(size)].abs() ** 2
        log_mt = (_mel_filters(self.num_mels) @ power_ft).clamp(min=1e-10).log10()
        log_mt = torch.maximum(log_mt, log_mt.max() - 8.0)
        return ((log_mt + 4.0) / 4.0).T.contiguous()


def silence_value(feats_tm: Tensor) -> Tensor:
    """The value that Whisper's extractor gives to every padded frame of this utterance. feats_tm (T, M) -> scalar."""
    return (feats_tm.max() - 2.0).clamp(min=-1.5)


@functools.cache
def _window() -> Tensor:
    return torch.hann_window(N_FFT)


@functools.cache
def _mel_filters(num_mels: int) -> Tensor:
    """(M, N_FFT/2 + 1) Slaney-normalised triangles on the Slaney scale, 0 to 8 kHz."""
    from transformers.audio_utils import mel_filter_bank

    filters_fm = mel_filter_bank(N_FFT // 2 + 1, num_mels, 0.0, SAMPLE_RATE / 2, SAMPLE_RATE, norm="slaney", mel_scale="slaney")
    return torch.from_numpy(filters_fm.T).float().contiguous()
