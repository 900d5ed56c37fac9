"""Training data as the frozen encoder hears it, kept on disk: where steering is not trained, the encoder need not run twice.

Shape legend: T encoder frames, D encoder width.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict
from pathlib import Path

import numpy as np
import torch

from steermoe.data.dataset import AudioTextDataset, Example
from steermoe.files import resume_jsonl
from steermoe.model import SteerMoE
from steermoe.stamp import Stamp


class HeardSet:
    """Stands for `data`; its examples have the steered encoder's output, (T, D) in the encoder's dtype, in the place of features.

    Epoch e has the augmented versions of epoch e % versions; each is encoded when it is first asked for and then read from
    `folder` (Whisper tiny: 138 MB an hour and version). What other data, augmentation or steering has left there is replaced;
    what a killed training has left is gone on with.
    """

    def __init__(self, data: AudioTextDataset, model: SteerMoE, folder: Path, versions: int):
        self.data, self.model, self.versions = data, model, versions
        self.entries, self.weights = data.entries, data.weights
        self.dtype = next(model.encoder.parameters()).dtype
        self.at = np.full((versions, len(data)), -1, np.int64)  # where an utterance's bytes begin
        self.frames = np.zeros((versions, len(data)), np.int32)
        folder.mkdir(parents=True, exist_ok=True)
        states, index = folder / "states.bin", folder / "index.jsonl"
        augment = data.augment and {"seed": data.augment.seed, **asdict(data.augment.conf)}
        made_of = {"steering": digest(model.steering), "bases": model.bases(), "augment": augment, "dtype": str(self.dtype)}
        stamp = Stamp(folder / ".states.done", made_of | {"window": getattr(model.encoder, "window", "")}, [data.path])
        if not stamp.fresh([states, index]):
            states.write_bytes(b"")
            index.write_bytes(b"")
            stamp.write()
        size = states.stat().st_size
        for line in resume_jsonl(index):
            if line["version"] < versions and line["at"] + self._bytes(line["frames"]) <= size:
                self.at[line["version"], line["index"]], self.frames[line["version"], line["index"]] = line["at"], line["frames"]
        self.states, self.index = open(states, "r+b"), open(index, "a", encoding="utf-8")

    def __len__(self) -> int:
        return len(self.data)

    @property
    def epoch(self) -> int:
        return self.data.epoch

    @epoch.setter
    def epoch(self, value: int) -> None:
        self.data.epoch = value % self.versions

    def lengths(self) -> list[int]:
        return self.data.lengths()

    def __getitem__(self, index: int) -> Example:
        entry, place = self.entries[index], (self.epoch, index)
        if self.at[place] < 0:
            self._encode(index)
        raw = os.pread(self.states.fileno(), self._bytes(int(self.frames[place])), int(self.at[place]))
        states_td = torch.frombuffer(bytearray(raw), dtype=self.dtype).view(-1, self.model.encoder.dim)
        return Example(entry["utt"], states_td, entry["text"], entry.get("prompt"), heard=True)

    def _encode(self, index: int) -> None:
        feats_fm = self.data[index].feats_fm
        device = next(self.model.encoder.parameters()).device
        with torch.no_grad():
            lens_b = torch.tensor([len(feats_fm)], device=device)
            hidden_btd, lens_b = self.model.encoder(feats_fm[None].to(device), lens_b, self.model.steering)
        frames, at = int(lens_b), self.states.seek(0, os.SEEK_END)
        self.states.write(hidden_btd[0, :frames].cpu().contiguous().view(torch.uint8).numpy().tobytes())
        self.states.flush()  # before the index speaks of it
        self.index.write(json.dumps({"version": self.epoch, "index": index, "at": at, "frames": frames}) + "\n")
        self.index.flush()
        self.at[self.epoch, index], self.frames[self.epoch, index] = at, frames

    def _bytes(self, frames: int) -> int:
        return frames * self.model.encoder.dim * self.dtype.itemsize


def digest(module: torch.nn.Module) -> str:
    """SHA-256 of a module's tensors."""
    total = hashlib.sha256()
    for name, tensor in module.state_dict().items():
        total.update(name.encode() + tensor.detach().cpu().contiguous().view(torch.uint8).numpy().tobytes())
    return total.hexdigest()
