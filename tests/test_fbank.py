"""Our Kaldi fbank against its definition in float64, and against kaldi-native-fbank, the extractor of FireRedASR."""

import numpy as np
import pytest
import torch

from steermoe.data.fbank import KaldiFbank, num_frames


def native(samples_n: np.ndarray, mels: int) -> np.ndarray:
    knf = pytest.importorskip("kaldi_native_fbank", reason="needs kaldi-native-fbank")
    options = knf.FbankOptions()
    options.frame_opts.dither = 0.0
    options.frame_opts.snip_edges = True
    options.mel_opts.num_bins = mels
    extractor = knf.OnlineFbank(options)
    extractor.accept_waveform(16000, (samples_n.astype(np.float32) * 32768).tolist())
    return np.stack([extractor.get_frame(i) for i in range(extractor.num_frames_ready)])


def compare(samples_n: np.ndarray, mels: int = 80) -> None:
    """Both round at float32: against a float64 computation, kaldi-native-fbank's own largest error of a log energy is 3e-4."""
    ours = KaldiFbank(mels)(torch.from_numpy(samples_n.astype(np.float32))).numpy()
    theirs = native(samples_n, mels)
    assert ours.dtype == np.float32 and ours.shape == theirs.shape == (num_frames(len(samples_n)), mels)
    difference = np.abs(ours - theirs)
    assert difference.max() < 1e-3 and difference.mean() < 3e-5, (difference.max(), difference.mean())


def by_definition(samples_n: np.ndarray, mels: int) -> np.ndarray:
    """Kaldi's steps for the default options, in float64."""
    windows = np.stack([samples_n[start : start + 400] for start in range(0, len(samples_n) - 399, 160)]) * 32768.0
    windows = windows - windows.mean(1, keepdims=True)
    windows = windows - 0.97 * np.concatenate([windows[:, :1], windows[:, :-1]], 1)
    power = np.abs(np.fft.rfft(windows * np.hanning(400) ** 0.85, 512)) ** 2
    mel = 1127 * np.log(1 + np.arange(257) * (16000 / 512) / 700)
    edges = np.linspace(1127 * np.log(1 + 20 / 700), 1127 * np.log(1 + 8000 / 700), mels + 2)
    rise = (mel - edges[:-2, None]) / (edges[1:-1] - edges[:-2])[:, None]
    fall = (edges[2:, None] - mel) / (edges[2:] - edges[1:-1])[:, None]
    return np.log(np.maximum(power @ np.minimum(rise, fall).clip(0).T, np.finfo(np.float32).eps))


@pytest.mark.parametrize("mels", [40, 80])
def test_equals_its_definition(mels):
    samples = (np.random.default_rng(0).normal(0, 0.1, 8123) * np.linspace(0.001, 1, 8123)).astype(np.float32)
    ours = KaldiFbank(mels)(torch.from_numpy(samples)).numpy()
    expected = by_definition(samples.astype(np.float64), mels)
    assert ours.shape == expected.shape and np.abs(ours - expected).max() < 1e-3


@pytest.mark.parametrize("mels", [40, 80])
@pytest.mark.parametrize("samples", [400, 559, 560, 16000, 31234])
def test_noise_equals_kaldi_native_fbank(samples, mels):
    rng = np.random.default_rng(samples)
    compare(rng.normal(0, 0.1, samples).clip(-1, 1) * np.linspace(0.01, 1, samples), mels)


def test_quiet_loud_and_silent_equal_kaldi_native_fbank():
    time = np.arange(8000) / 16000
    noise = np.random.default_rng(0).normal(0, 1, 8000)
    for samples in (np.sign(np.sin(2 * np.pi * 200 * time)) + 0, np.round(noise) / 32768, np.zeros(8000), np.full(8000, 0.5)):
        compare(samples)


def test_real_speech_equals_kaldi_native_fbank(shared_data):
    from steermoe.data.audio import load_audio

    paths = sorted((shared_data / "LibriSpeech" / "test-clean").rglob("*.flac"))[:2]
    paths += sorted((shared_data / "aishell_sample" / "wav").rglob("*.wav"))[:2]
    assert paths
    for path in paths:
        compare(load_audio(path))


def test_number_of_frames_by_hand():
    # windows begin at 0, 160, 320, …, and are 400 long: the second one fits from 560 samples on, the third from 720 on
    by_hand = {1: 1, 399: 1, 400: 1, 559: 1, 560: 2, 719: 2, 720: 3, 16000: 98}
    assert {samples: num_frames(samples) for samples in by_hand} == by_hand
    for samples, frames in by_hand.items():
        assert KaldiFbank()(torch.zeros(samples)).shape == (frames, 80)


def test_shorter_than_a_window_is_followed_by_zeros():
    torch.manual_seed(0)
    samples = torch.rand(123) - 0.5
    padded = torch.cat([samples, torch.zeros(400 - 123)])
    assert torch.equal(KaldiFbank()(samples), KaldiFbank()(padded))


def test_says_what_it_is():
    frontend = KaldiFbank()
    assert (frontend.name, frontend.frames_per_second, frontend.max_frames) == ("fbank80", 100.0, None)
    assert KaldiFbank(40).name == "fbank40"


def test_silence_is_finite_and_loudness_adds_a_constant():
    torch.manual_seed(0)
    noise = torch.rand(1600) - 0.5
    assert torch.isfinite(KaldiFbank()(torch.zeros(1600))).all()
    louder = KaldiFbank()(noise) - KaldiFbank()(noise / 2)
    assert torch.allclose(louder, torch.full_like(louder, 2 * np.log(2)), atol=1e-4)
