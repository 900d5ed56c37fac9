"""`data.jsonl` of stage 2: one utterance a line, with what the sampler needs to know of it.

Keys of a line: utt, spk, text, feats ("ark:offset"), num_frames, duration (s), num_tokens, wav, start, end (s or null), and
optionally prompt (the user's words for this utterance instead of data_conf.prompt), question_type, answers (`a|b|c`) and weight
(how often it is drawn in an epoch of training; 1).
"""

from __future__ import annotations

import math
from pathlib import Path
from typing import Iterator, NamedTuple

import numpy as np
import torch
from torch import Tensor

from steermoe.data.ark import read_matrix
from steermoe.data.audio import load_audio
from steermoe.data.augment import Augment, refuse_command
from steermoe.encoders.base import Frontend
from steermoe.errors import UserError
from steermoe.files import JsonLines

KEYS = {"utt", "spk", "text", "feats", "num_frames", "duration", "num_tokens"}


class Example(NamedTuple):
    utt: str
    feats_fm: Tensor  # float32
    text: str
    prompt: str | None
    heard: bool = False  # feats_fm is what the steered encoder makes of the features: (T, D)


class AudioTextDataset:
    """Reads a line and its features when an utterance is asked for; memory holds three numbers an utterance.

    entries: the lines, each a dict of its own that is made when it is asked for.

    augment: None or all off gives the dumped features as they are. Waveform augmentation reads the audio again and puts it
    through `frontend`, the encoder's own. epoch: which of the augmented versions; whoever goes through the data sets it.
    """

    def __init__(self, path: str | Path, augment: Augment | None = None, frontend: Frontend | None = None):
        self.path, self.augment, self.frontend = Path(path), augment, frontend
        self.epoch = 0
        self.entries = JsonLines(path)
        if not self.entries:
            raise UserError(f"{path}: no utterance in it; stage 2 says why utterances were dropped")
        if augment is not None and augment.conf.freq_masks and not getattr(frontend, "bands", True):
            raise UserError(f"augment_conf.freq_masks: {frontend.name} are samples, not bands of frequency; set it to 0")
        columns = np.fromiter(self._checked(), np.dtype([("num_frames", np.int32), ("weight", np.float32)]), len(self))
        self.num_frames, self.weights = columns["num_frames"], columns["weight"]

    def _checked(self) -> Iterator[tuple[int, float]]:
        """num_frames and weight of every line. UserError for a line that lacks something."""
        for index, entry in enumerate(self.entries):
            if missing := KEYS - entry.keys():
                raise UserError(f"{self.path}:{index + 1}: no {sorted(missing)[0]!r}; remove the file and run stage 2 again")
            if self.waveform:
                self._wav(index, entry)
            yield entry["num_frames"], entry.get("weight", 1.0)

    def __len__(self) -> int:
        return len(self.entries)

    @property
    def waveform(self) -> bool:
        """Whether features are made from augmented audio instead of being read."""
        return self.augment is not None and self.augment.waveform

    def lengths(self) -> list[int]:
        """Input frames of every utterance, where speed perturbation is on in this epoch (a frame or two of rounding aside)."""
        frames = self.num_frames.tolist()
        if not self.waveform:
            return frames
        speeds = [self.augment.speed(entry["utt"], self.epoch) for entry in self.entries]
        longest = self.frontend.max_frames or math.inf
        return [math.ceil(count / speed) if count <= longest * speed else count for count, speed in zip(frames, speeds)]

    def __getitem__(self, index: int) -> Example:
        """UserError names the archive if its matrix is not what the line promises, or the audio that cannot be read."""
        entry = self.entries[index]
        feats_fm = self.frontend(self.samples(index)) if self.waveform else self._dumped(entry)
        if self.augment is not None:
            feats_fm = self.augment.feats(feats_fm, entry["utt"], self.epoch)
        return Example(entry["utt"], feats_fm, entry["text"], entry.get("prompt"))

    def samples(self, index: int) -> Tensor:
        """The utterance's audio, float32 (N,) at 16 kHz, augmented as `self[index]` is. UserError as `load_audio`."""
        entry = self.entries[index]
        samples_n = load_audio(self._wav(index, entry), entry.get("start"), entry.get("end"))
        if self.waveform:
            longest = self.frontend.max_frames
            max_seconds = longest / self.frontend.frames_per_second if longest else math.inf
            samples_n = self.augment.samples(samples_n, entry["utt"], self.epoch, max_seconds)
        return torch.from_numpy(samples_n)

    def _wav(self, index: int, entry: dict) -> str:
        """UserError if there is no audio file that training can read."""
        wav = entry.get("wav")
        if not wav:
            raise UserError(f"{self.path}:{index + 1}: no 'wav'; remove the file and run stage 2 again")
        refuse_command(wav, f"{self.path}:{index + 1}")
        return wav

    def _dumped(self, entry: dict) -> Tensor:
        feats_fm = torch.from_numpy(read_matrix(entry["feats"]))
        if feats_fm.shape[0] != entry["num_frames"]:
            raise UserError(
                f"{entry['feats']}: {feats_fm.shape[0]} frames, {self.path} says {entry['num_frames']} for {entry['utt']}; "
                "run stages 1 and 2 again"
            )
        return feats_fm
