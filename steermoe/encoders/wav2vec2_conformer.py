"""wav2vec2-conformer (Wang et al., "fairseq S2T", arXiv 2010.05171): wav2vec 2.0 with Conformer layers."""

from __future__ import annotations

from torch import Tensor, nn

from steermoe.encoders.wav2vec2 import Wav2Vec2Encoder


class Wav2Vec2ConformerEncoder(Wav2Vec2Encoder):
    """wav2vec2-conformer, relative or rotary; with a CTC head on it or without. Every layer ends in a LayerNorm of its own, the
    last is followed by another.
    """

    architecture = "Wav2Vec2ConformerModel"
    model_types = ("wav2vec2-conformer",)

    def __init__(self, network: nn.Module, *, model: str, dtype: str = "auto"):
        super().__init__(network, model=model, dtype=dtype)
        if network.config.position_embeddings_type == "rotary":
            # Made anew in float32: frame numbers above 256 are not exact in bfloat16, to which the checkpoint's were cast.
            network.encoder.embed_positions = type(network.encoder.embed_positions)(network.config).eval()

    @property
    def final_norm(self) -> nn.Module:
        return self.network.encoder.layer_norm

    @property
    def convolutions(self) -> list[nn.Module]:
        """transformers lets the depthwise convolution of every layer read the padding."""
        return [layer.conv_module.depthwise_conv for layer in self.layers]

    def run(self, feats_bfm: Tensor, mask_bf: Tensor) -> None:
        if self.network.config.position_embeddings_type == "rotary":
            # transformers would use the last call's positions again; those made under inference_mode cannot be trained through.
            self.network.encoder.embed_positions.cached_sequence_length = None
        super().run(feats_bfm, mask_bf)
