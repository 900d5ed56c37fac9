"""What an encoder offers. To add one: a file with a class of this shape and a line in steermoe/registry.py.

Encoders, what stage 1 dumps for them, their frames a second, the projector's kernel that makes 12.5 of them as in the paper, and
what follows the last layer (`final_norm`):

| encoder            | features                                | frames/s | kernel | final_norm                        |
|--------------------|-----------------------------------------|----------|--------|-----------------------------------|
| whisper            | log-mel, 80 or 128 bands                | 50       | 4      | LayerNorm                         |
| conformer          | Kaldi fbank, 80 bands                   | 25       | 2      | none: every layer ends in one     |
| w2v_bert           | Kaldi fbank, 2 x 80 bands, normalised   | 50       | 4      | none: every layer ends in one     |
| wav2vec2_conformer | samples                                 | 50       | 4      | LayerNorm                         |
| parakeet           | log-mel, 80 or 128 bands, normalised    | 12.5     | 1      | none: every layer ends in one     |
| wavlm, hubert,     | samples (normalised in most large ones) | 50       | 4      | LayerNorm in the large ones;      |
| wav2vec2           |                                         |          |        | none in base: a layer ends in one |

Shape legend: B batch, T encoder frames, F input frames, M input feature size, D encoder width.
"""

from __future__ import annotations

from typing import Callable, Protocol

from torch import Tensor, nn

Steer = Callable[[int, Tensor], Tensor]
"""(layer index from 0, hidden_btd after that layer) -> hidden_btd that the next layer reads. An encoder that computes no
padding gives the real frames of all utterances end to end as one row, (1, X, D)."""


def no_steer(layer: int, hidden_btd: Tensor) -> Tensor:
    return hidden_btd


class Frontend(Protocol):
    """Waveform to input features; stage 1 dumps its output."""

    name: str  # names the dump folder, so it says everything that changes the features
    frames_per_second: float
    max_frames: int | None  # the longest input that the encoder reads; None: any length
    bands = True  # whether columns are bands of frequency, which SpecAugment can mask

    def __call__(self, samples_n: Tensor) -> Tensor:
        """(N,) float32 in [-1, 1] at 16 kHz -> (F, M) float32."""


class Encoder(Protocol):
    """A frozen encoder whose layers can be steered."""

    dim: int  # D
    num_layers: int
    min_frames: int  # input frames that every utterance is padded to inside the encoder: what a batch costs; 0: none
    final_norm: nn.Module  # applied after the last layer's steering, before or after pooling as the projector says
    fingerprint: str  # SHA-256 of the frozen weights, whatever the file format they came in

    @classmethod
    def frontend(cls, model: str) -> Frontend:
        """The features that this checkpoint reads; reads its dimensions, not its weights where that is possible."""

    @classmethod
    def from_pretrained(cls, model: str, **conf) -> "Encoder":
        """Dimensions come from the checkpoint. UserError if `model` cannot be found or is another architecture."""

    def __call__(self, feats_bfm: Tensor, feat_lens_b: Tensor, steer: Steer = no_steer) -> tuple[Tensor, Tensor]:
        """-> hidden_btd (before `final_norm`), frame_lens_b int64. Padded frames never influence real ones."""
