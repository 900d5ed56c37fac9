"""Parakeet's encoder: NVIDIA's FastConformer (Rekesh et al., arXiv 2305.05084), 12.5 frames a second.

Shape legend: N samples, F input frames (100 a second), M mel bands.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor, nn

from steermoe.data.features import SAMPLE_RATE
from steermoe.encoders.hub import HubEncoder, at_least, conv_lengths, load_extractor
from steermoe.errors import UserError

SETTINGS = {"n_fft": 512, "win_length": 400, "hop_length": 160, "preemphasis": 0.97}  # of all published checkpoints


class ParakeetLogMel:
    """Log-mel of pre-emphasised audio, every band normalised over the utterance; transformers' ParakeetFeatureExtractor."""

    def __init__(self, extractor: Any, max_frames: int):
        self.extractor, self.max_frames = extractor, max_frames
        self.frames_per_second = SAMPLE_RATE / extractor.hop_length
        unusual = {key: getattr(extractor, key) for key, value in SETTINGS.items() if getattr(extractor, key) != value}
        self.name = f"parakeet_logmel{extractor.feature_size}" + "".join(f"_{key}{value}" for key, value in unusual.items())

    def __call__(self, samples_n: Tensor) -> Tensor:
        """samples_n (N,) float32 in [-1, 1] at 16 kHz -> (F, M) float32, F = N // 160, at least 2 (a variance needs them)."""
        samples_n = at_least(samples_n, 2 * self.extractor.hop_length)
        batch = self.extractor(samples_n.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return batch.input_features[0][batch.attention_mask[0].bool()].float()


class ParakeetEncoder(HubEncoder):
    """Of Parakeet CTC, RNN-T and TDT. Every layer ends in a LayerNorm, nothing follows the last."""

    architecture = "ParakeetEncoder"
    model_types = ("parakeet_encoder", "parakeet_ctc", "parakeet_rnnt", "parakeet_tdt")

    @classmethod
    def make_frontend(cls, path: Path, config: Any) -> ParakeetLogMel:
        extractor = load_extractor("ParakeetFeatureExtractor", path)
        made, read = extractor.feature_size, config.num_mel_bins
        if made != read:
            raise UserError(f"{path}: preprocessor_config.json makes {made} mel bands, the model reads {read}; copy it again")
        return ParakeetLogMel(extractor, config.max_position_embeddings * config.subsampling_factor)

    @property
    def layers(self) -> nn.ModuleList:
        return self.network.layers

    def frame_lengths(self, feat_lens_b: Tensor) -> Tensor:
        config = self.network.config
        halvings = config.subsampling_factor.bit_length() - 1
        kernel, stride = config.subsampling_conv_kernel_size, config.subsampling_conv_stride
        return conv_lengths(feat_lens_b, [kernel] * halvings, [stride] * halvings, padding=(kernel - 1) // 2)
