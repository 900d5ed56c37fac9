"""Kaldi's filter-bank features, as FireRedASR and most Kaldi-trained Conformers read them.

Shapes: N samples, T frames (100 a second), M mel bands.
Source of the computation: Kaldi's feat/feature-fbank.cc and feat/feature-window.cc, with their default options; the result
equals kaldi-native-fbank's. CMVN is not part of it: the mean and variance belong to a checkpoint and are applied by the encoder.
"""

from __future__ import annotations

import torch
from torch import Tensor

SAMPLE_RATE = 16000
HOP = 160
WINDOW = 400
INT16_SCALE = 32768  # Kaldi computes on 16-bit samples as they are, not on [-1, 1]


def num_frames(num_samples: int) -> int:
    """Windows of 25 ms, 10 ms apart, that lie wholly inside the signal (Kaldi's snip_edges); at least 1."""
    return 1 + max(num_samples - WINDOW, 0) // HOP


class KaldiFbank:
    """`num_mels` log mel energies: 25 ms Povey window, 10 ms shift, pre-emphasis 0.97, mean of each window removed, 20 Hz to
    8 kHz, power spectrum, natural logarithm, no dither and no energy. Called by stage 1, never inside training.
    """

    frames_per_second = SAMPLE_RATE / HOP
    max_frames = None

    def __init__(self, num_mels: int = 80):
        self.num_mels = num_mels
        self.name = f"fbank{num_mels}"

    def __call__(self, samples_n: Tensor) -> Tensor:
        """samples_n (N,) float32 in [-1, 1] at 16 kHz -> (T, M) float32, T = num_frames(N); under 25 ms: zeros follow it."""
        from torchaudio.compliance.kaldi import fbank

        missing = max(WINDOW - samples_n.shape[0], 0)
        scaled_1n = torch.nn.functional.pad(samples_n * INT16_SCALE, (0, missing))[None]
        return fbank(
            scaled_1n,
            num_mel_bins=self.num_mels,
            sample_frequency=SAMPLE_RATE,
            frame_length=25.0,
            frame_shift=10.0,
            dither=0.0,
            window_type="povey",
            snip_edges=True,
        )
