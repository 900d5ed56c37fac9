"""HuBERT (Hsu et al., arXiv 2106.07447): wav2vec 2.0's network, learned by predicting clusters. SLAM-ASR's second encoder."""

from __future__ import annotations

from torch import nn

from steermoe.encoders.wav2vec2 import Wav2Vec2Encoder


class HubertEncoder(Wav2Vec2Encoder):
    """HuBERT base, large and extra large; with a CTC head on it or without."""

    architecture = "HubertModel"
    model_types = ("hubert",)

    @property
    def convolutions(self) -> list[nn.Module]:
        """The position convolution: where a BatchNorm stands before it, padding is no longer 0."""
        return [self.network.encoder.pos_conv_embed.conv]
