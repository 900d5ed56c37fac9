"""WavLM (Chen et al., arXiv 2110.13900): HuBERT with gated relative positions and denoising. SLAM-ASR's first encoder."""

from __future__ import annotations

import warnings

from torch import nn

from steermoe.encoders.wav2vec2 import Wav2Vec2Encoder


class WavLMEncoder(Wav2Vec2Encoder):
    """WavLM base, base+ and large; with a CTC head on it or without."""

    architecture = "WavLMModel"
    model_types = ("wavlm",)

    def __init__(self, network: nn.Module, *, model: str, dtype: str = "auto"):
        super().__init__(network, model=model, dtype=dtype)
        # transformers masks keys with a bool and adds positions as a float; torch does what is meant and says so.
        warnings.filterwarnings("ignore", "Support for mismatched key_padding_mask")
