"""The CTC head of a Conformer that the recipe itself has pretrained: its own decoder, to score beside the steered LLM.

In the Conformer's folder: ctc.safetensors (weight (V + 1, D), bias (V + 1,); the blank is 0) and units.model (sentencepiece).
Source: Graves et al. 2006, "Connectionist Temporal Classification".
"""

from __future__ import annotations

from pathlib import Path

import sentencepiece
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

from steermoe.encoders.conformer import ConformerEncoder
from steermoe.errors import UserError

BLANK = 0
FILES = ("config.json", "model.safetensors", "ctc.safetensors", "units.model")


class ConformerCTC(nn.Module):
    """Encoder and head, frozen, float32."""

    def __init__(self, encoder: ConformerEncoder, head: nn.Linear, units: sentencepiece.SentencePieceProcessor):
        super().__init__()
        self.encoder, self.head, self.units = encoder, head, units

    @classmethod
    def from_pretrained(cls, folder: str | Path) -> "ConformerCTC":
        """UserError if the folder is no Conformer or has no CTC head."""
        folder = Path(folder)
        if missing := [name for name in FILES if not (folder / name).is_file()]:
            raise UserError(f"{folder}: no {missing[0]}: not a Conformer with a CTC head; stage 3 makes one (conf/pretrain_*.yaml)")
        encoder = ConformerEncoder.from_pretrained(str(folder), dtype="float32")
        try:
            tensors = load_file(folder / "ctc.safetensors")
            units = sentencepiece.SentencePieceProcessor(model_file=str(folder / "units.model"))
            head = nn.Linear(encoder.dim, units.get_piece_size() + 1)
            head.load_state_dict(tensors)
        except (SafetensorError, RuntimeError, OSError) as error:
            raise UserError(f"{folder}: its CTC head is damaged ({error}); make it again") from None
        return cls(encoder, head.requires_grad_(False), units).eval()

    @torch.no_grad()
    def transcribe(self, feats_bfm: Tensor, feat_lens_b: Tensor) -> list[str]:
        """Greedy reading of (B, F, M) fbank features, (B,) int64 lengths."""
        hidden_btd, lens_b = self.encoder(feats_bfm, feat_lens_b)
        return [self.units.decode(ids) for ids in read_greedily(self.head(hidden_btd), lens_b)]


def read_greedily(logits_btv: Tensor, lens_b: Tensor) -> list[list[int]]:
    """Best unit a frame, runs merged, blanks dropped. (B, T, V + 1), (B,) int64 -> unit ids from 0 of every utterance."""
    best_bt = logits_btv.argmax(-1)
    runs = [torch.unique_consecutive(row[:length]) for row, length in zip(best_bt, lens_b.tolist())]
    return [[unit - 1 for unit in run.tolist() if unit != BLANK] for run in runs]
