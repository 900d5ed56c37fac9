"""wav2vec 2.0, and what its relatives HuBERT, WavLM and wav2vec2-conformer share with it: raw samples in, 50 frames a second out.

Two things in transformers make an utterance's result depend on the padding beside it, and are put right here. In checkpoints
whose convolutions are group-normalised (`feat_extract_norm: group`: the base sizes), mean and variance are taken over the
padded time; transformers' advice is to pass no mask at all, and attend to the padding. Here they are the utterance's own.
And a convolution over time reads its neighbours' padding: see `convolutions`. An utterance alone gives what transformers gives.

Shape legend: B batch, F input frames (rows of 160 samples, 100 a second), N samples, C channels, T encoder frames.
Source: Baevski et al., "wav2vec 2.0" (arXiv 2006.11477).
"""

from __future__ import annotations

import functools
from pathlib import Path
from typing import Any, Iterator

import torch
import torch.nn.functional as nnf
from torch import Tensor, nn
from torch.utils.hooks import RemovableHandle

from steermoe.data.features import HOP, SAMPLE_RATE
from steermoe.encoders.hub import HubEncoder, conv_lengths, load_extractor
from steermoe.masks import length_mask


class SampleRows:
    """Raw samples as features: rows of 160, the last one filled with zeros. With `do_normalize` in the checkpoint's
    preprocessor_config.json, an utterance has zero mean and unit variance.

    In an ark of two bytes a value (the default), the samples keep at least the precision of 16-bit audio: a step is the range
    of the utterance divided by 65535.
    """

    frames_per_second = SAMPLE_RATE / HOP
    max_frames = None
    bands = False

    def __init__(self, extractor: Any, min_samples: int):
        """extractor: transformers' Wav2Vec2FeatureExtractor. min_samples: what the first encoder frame reads."""
        self.extractor, self.min_samples = extractor, min_samples
        self.name = "samples160_normalized" if extractor.do_normalize else "samples160"

    def __call__(self, samples_n: Tensor) -> Tensor:
        """samples_n (N,) float32 in [-1, 1] at 16 kHz -> (F, 160) float32, F = ceil(N / 160), at least one encoder frame."""
        values = self.extractor(samples_n.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt").input_values[0].float()
        rows = -(-max(len(values), self.min_samples) // HOP)
        return nnf.pad(values, (0, rows * HOP - len(values))).unflatten(0, (rows, HOP))


class Wav2Vec2Encoder(HubEncoder):
    """wav2vec 2.0, base and large; with a CTC head on it or without."""

    architecture = "Wav2Vec2Model"
    model_types = ("wav2vec2",)

    @classmethod
    def make_frontend(cls, path: Path, config: Any) -> SampleRows:
        min_samples = 1
        for kernel, stride in zip(reversed(config.conv_kernel), reversed(config.conv_stride)):
            min_samples = (min_samples - 1) * stride + kernel
        return SampleRows(load_extractor("Wav2Vec2FeatureExtractor", path), min_samples)

    @property
    def final_norm(self) -> nn.Module:
        """Pre-norm models (the large ones) end in a LayerNorm; in the others it comes before the first layer."""
        return self.network.encoder.layer_norm if self.network.config.do_stable_layer_norm else nn.Identity()

    @property
    def convolutions(self) -> list[nn.Module]:
        """Convolutions over encoder frames that transformers does not mask; their input (B, C, T) is made 0 after the end."""
        return []

    def frame_lengths(self, feat_lens_b: Tensor) -> Tensor:
        return conv_lengths(feat_lens_b * HOP, self.network.config.conv_kernel, self.network.config.conv_stride)

    def run(self, feats_bfm: Tensor, mask_bf: Tensor) -> None:
        self.network(input_values=feats_bfm.flatten(1), attention_mask=mask_bf.long().repeat_interleave(HOP, dim=1))

    def hooks(self, feat_lens_b: Tensor) -> Iterator[RemovableHandle]:
        for convolution in self.convolutions:
            yield convolution.register_forward_pre_hook(functools.partial(_zero_padding, self.frame_lengths(feat_lens_b)))
        config, first = self.network.config, self.network.feature_extractor.conv_layers[0]
        if isinstance(getattr(first, "layer_norm", None), nn.GroupNorm):
            lens_b = conv_lengths(feat_lens_b * HOP, config.conv_kernel[:1], config.conv_stride[:1])
            yield first.layer_norm.register_forward_hook(functools.partial(_own_norm, lens_b))


def _zero_padding(lens_b: Tensor, convolution: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor]:
    values_bct = inputs[0]
    return (values_bct.masked_fill(~length_mask(lens_b, values_bct.shape[-1])[:, None], 0.0),)


def _own_norm(lens_b: Tensor, norm: nn.GroupNorm, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return masked_channel_norm(inputs[0], lens_b, norm)


def masked_channel_norm(values_bct: Tensor, lens_b: Tensor, norm: nn.GroupNorm) -> Tensor:
    """A GroupNorm with one channel a group, over each utterance's own length: (B, C, T), (B,) int64 -> (B, C, T), same dtype."""
    mask_b1t = length_mask(lens_b, values_bct.shape[-1])[:, None]
    count_b11 = lens_b.clamp(min=1)[:, None, None]
    values = values_bct.float()
    mean_bc1 = values.masked_fill(~mask_b1t, 0.0).sum(-1, keepdim=True) / count_b11
    centred = (values - mean_bc1).masked_fill(~mask_b1t, 0.0)
    scale_bc1 = torch.rsqrt(centred.square().sum(-1, keepdim=True) / count_b11 + norm.eps)
    return (centred * scale_bc1 * norm.weight[:, None] + norm.bias[:, None]).to(values_bct.dtype)
