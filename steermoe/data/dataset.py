"""`data.jsonl` of stage 2: one utterance a line, with what the sampler needs to know of it.

Keys of a line: utt, spk, text, feats ("ark:offset"), num_frames, duration (s), num_tokens, wav, start, end (s or null), and
optionally prompt (the user's words for this utterance instead of data_conf.prompt).
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

import torch
from torch import Tensor

from steermoe.data.ark import read_matrix
from steermoe.errors import UserError
from steermoe.files import read_jsonl

KEYS = {"utt", "spk", "text", "feats", "num_frames", "duration", "num_tokens"}


class Example(NamedTuple):
    utt: str
    feats_fm: Tensor  # float32
    text: str
    prompt: str | None


class AudioTextDataset:
    """Reads features when an utterance is asked for; memory grows with the number of lines only."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.entries = list(read_jsonl(path))
        if not self.entries:
            raise UserError(f"{path}: no utterance in it; stage 2 says why utterances were dropped")
        for number, entry in enumerate(self.entries, 1):
            if missing := KEYS - entry.keys():
                raise UserError(f"{path}:{number}: no {sorted(missing)[0]!r}; remove the file and run stage 2 again")

    def __len__(self) -> int:
        return len(self.entries)

    def lengths(self) -> list[int]:
        """Input frames of every utterance."""
        return [entry["num_frames"] for entry in self.entries]

    def __getitem__(self, index: int) -> Example:
        """UserError names the archive if its matrix is not what the line promises."""
        entry = self.entries[index]
        feats_fm = torch.from_numpy(read_matrix(entry["feats"]))
        if feats_fm.shape[0] != entry["num_frames"]:
            raise UserError(
                f"{entry['feats']}: {feats_fm.shape[0]} frames, {self.path} says {entry['num_frames']} for {entry['utt']}; "
                "run stages 1 and 2 again"
            )
        return Example(entry["utt"], feats_fm, entry["text"], entry.get("prompt"))
