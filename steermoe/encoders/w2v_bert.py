"""w2v-BERT 2.0 (Seamless Communication, arXiv 2312.05187): 24 Conformer layers on stacked filterbanks, 50 frames a second.

Shape legend: N samples, F input frames (50 a second; also the encoder's).
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from torch import Tensor

from steermoe.data.features import HOP, N_FFT, SAMPLE_RATE
from steermoe.encoders.hub import HubEncoder, at_least, load_extractor
from steermoe.errors import UserError


class StackedFbank:
    """Kaldi's log filterbanks, normalised over the utterance and stacked by two; transformers' SeamlessM4TFeatureExtractor."""

    max_frames = None

    def __init__(self, extractor: Any):
        self.extractor = extractor
        self.frames_per_second = SAMPLE_RATE / HOP / extractor.stride
        self.name = f"w2v_bert_fbank{extractor.num_mel_bins}x{extractor.stride}"

    def __call__(self, samples_n: Tensor) -> Tensor:
        """samples_n (N,) float32 in [-1, 1] at 16 kHz -> (F, 160) float32; a last, single frame is left out."""
        samples_n = at_least(samples_n, N_FFT + (self.extractor.stride - 1) * HOP)
        batch = self.extractor(samples_n.numpy(), sampling_rate=SAMPLE_RATE, return_tensors="pt")
        return batch.input_features[0][batch.attention_mask[0].bool()].float()


class W2vBertEncoder(HubEncoder):
    """w2v-BERT 2.0; with a CTC head on it or without. Every layer ends in a LayerNorm, nothing follows the last."""

    architecture = "Wav2Vec2BertModel"
    model_types = ("wav2vec2-bert",)

    @classmethod
    def make_frontend(cls, path: Path, config: Any) -> StackedFbank:
        extractor = load_extractor("SeamlessM4TFeatureExtractor", path)
        made, read = extractor.num_mel_bins * extractor.stride, config.feature_projection_input_dim
        if made != read:
            raise UserError(f"{path}: preprocessor_config.json makes {made} values a row, the model reads {read}; copy it again")
        return StackedFbank(extractor)

    def frame_lengths(self, feat_lens_b: Tensor) -> Tensor:
        return feat_lens_b
