"""Our log-mel against transformers' WhisperFeatureExtractor."""

import numpy as np
import pytest
import torch
from transformers import WhisperFeatureExtractor

from steermoe.data.features import WINDOW_SAMPLES, WhisperLogMel, num_frames
from steermoe.encoders.whisper import pad_to_window


def noise(samples: int, seed: int = 0) -> np.ndarray:
    rng = np.random.default_rng(seed)
    return (rng.normal(0, 0.1, samples) * np.linspace(0, 1, samples)).astype(np.float32)


@pytest.mark.parametrize("mels", [80, 128])
@pytest.mark.parametrize("samples", [100, 399, 400, 16000, 31234, WINDOW_SAMPLES - 150, WINDOW_SAMPLES])
def test_padded_to_30_s_equals_the_extractor(samples, mels):
    audio = noise(samples)
    ours = WhisperLogMel(mels)(torch.from_numpy(audio))
    padded = pad_to_window(ours[None], torch.tensor([len(ours)]))[0]
    theirs = WhisperFeatureExtractor(feature_size=mels)(audio, sampling_rate=16000, return_tensors="np").input_features[0].T
    assert ours.shape == (num_frames(samples), mels)
    assert np.abs(padded.numpy() - theirs).max() < 1e-6


def test_digital_silence():
    theirs = WhisperFeatureExtractor()(np.zeros(8000, np.float32), sampling_rate=16000, return_tensors="np").input_features[0].T
    ours = WhisperLogMel(80)(torch.zeros(8000))
    assert np.allclose(pad_to_window(ours[None], torch.tensor([len(ours)]))[0].numpy(), theirs)


def test_longer_than_a_window_keeps_every_frame():
    assert WhisperLogMel(80)(torch.from_numpy(noise(WINDOW_SAMPLES + 16000))).shape[0] == num_frames(WINDOW_SAMPLES + 16000) > 3000
