"""Waveforms to text: a trained adapter, and the frozen encoder's own decoder beside it, where it has one.

A recognizer has settings and inputs (what its answers follow from, for a stamp) and batches(entries); called with a batch and its
waveforms, (N,) float32 at 16 kHz, it gives {utt: [text, why the answer ended]}. Entries have utt and duration (s). Models are
loaded when they are first needed.
"""

from __future__ import annotations

import functools
import math
from pathlib import Path

import numpy as np
import torch

from steermoe.checkpoint import load_model
from steermoe.config import Config, DecodeConf
from steermoe.data.collator import Collator
from steermoe.data.dataset import Example
from steermoe.data.sampler import sorted_batches
from steermoe.decode.decoder import decode_batch
from steermoe.encoders import ctc, whisper_decoder
from steermoe.encoders.whisper_checkpoint import EMBED, open_checkpoint
from steermoe.fetch import find_model
from steermoe.registry import resolve

OWN_FRAMES, OWN_BATCH = 24000, 16


class Adapter:
    """models: keywords of load_model (device, encoder_model, llm_model, dtype)."""

    def __init__(self, file: Path, conf: DecodeConf, models: dict):
        self.file, self.conf, self.models = file, conf, models
        self.settings, self.inputs = {"decode_conf": vars(conf), **models}, [file]

    @functools.cached_property
    def loaded(self):
        """The model, its frontend, and the collator of its prompt."""
        model, config = load_model(self.file, **self.models)
        return model, frontend(config), Collator(model.llm, config.data_conf.prompt, answers=False)

    def batches(self, entries: list[dict]) -> list[list[dict]]:
        model, extract, _ = self.loaded
        return by_duration(entries, extract, self.conf.batch_frames, self.conf.max_batch, model.encoder.min_frames)

    def __call__(self, entries: list[dict], waves: list[np.ndarray]) -> dict[str, list[str]]:
        model, extract, collator = self.loaded
        examples = [Example(e["utt"], extract(torch.from_numpy(wave)), "", None) for e, wave in zip(entries, waves)]
        batch = collator(examples).to(self.models["device"])
        hypotheses = decode_batch(model, batch, [entry["duration"] for entry in entries], self.conf)
        return {e["utt"]: [model.llm.decode(h.tokens).strip(), h.ended] for e, h in zip(entries, hypotheses)}


class Whisper:
    """The whole Whisper that the encoder is a part of; the settings are those of stage 5."""

    def __init__(self, model: Path, language: str, device: str):
        self.model, self.language, self.device = model, language, device
        self.settings, self.inputs = {"language": language, "device": device}, whisper_decoder.source_files(model)

    @functools.cached_property
    def decoder(self):
        return whisper_decoder.WhisperDecoder(self.model, self.language, timestamps=True, device=self.device)

    def batches(self, entries: list[dict]) -> list[list[dict]]:
        """By length, so that answers in a batch are about equally long; each is encoded as windows of 30 s."""
        order = sorted(entries, key=lambda entry: (-entry["duration"], entry["utt"]))
        return [order[first : first + OWN_BATCH] for first in range(0, len(order), OWN_BATCH)]

    def __call__(self, entries: list[dict], waves: list[np.ndarray]) -> dict[str, list[str]]:
        found = self.decoder.transcribe(waves)
        return {e["utt"]: [text, "end" if complete else "length"] for e, (text, complete) in zip(entries, found)}


class ConformerCTC:
    """The CTC head that stage 3 has trained on the encoder. folder: where both are."""

    def __init__(self, folder: Path, device: str):
        self.folder, self.device = folder, device
        self.settings, self.inputs = {"device": device}, [folder / name for name in ctc.FILES]

    @functools.cached_property
    def loaded(self):
        model = ctc.ConformerCTC.from_pretrained(self.folder).to(self.device)
        return model, resolve("encoder", "conformer").frontend(str(self.folder))

    def batches(self, entries: list[dict]) -> list[list[dict]]:
        return by_duration(entries, self.loaded[1], OWN_FRAMES, OWN_BATCH)

    def __call__(self, entries: list[dict], waves: list[np.ndarray]) -> dict[str, list[str]]:
        model, extract = self.loaded
        feats = [extract(torch.from_numpy(wave)) for wave in waves]
        feats_bfm = torch.nn.utils.rnn.pad_sequence(feats, batch_first=True)
        texts = model.transcribe(feats_bfm.to(self.device), torch.tensor([len(f) for f in feats]).to(self.device))
        return {entry["utt"]: [text, "end"] for entry, text in zip(entries, texts)}


def own_decoder(config: Config, language: str, device: str):
    """The recognizer of an adapter's encoder without the adapter; None if the encoder has no decoder."""
    model = config.encoder_conf["model"]
    if config.encoder == "whisper":
        path = find_model(model, kind="encoder")
        return Whisper(path, language, device) if EMBED in open_checkpoint(path).shapes else None
    if config.encoder == "conformer" and all((Path(model) / name).is_file() for name in ctc.FILES):
        return ConformerCTC(Path(model), device)
    return None


def frontend(config: Config):
    """The features that the encoder reads."""
    return resolve("encoder", config.encoder).frontend(config.encoder_conf["model"])


def by_duration(entries: list[dict], extract, batch_frames: int, max_batch: int, min_frames: int = 0) -> list[list[dict]]:
    """Batches under a budget of padded frames, the longest first."""
    frames = [max(math.ceil(entry["duration"] * extract.frames_per_second) + 1, min_frames) for entry in entries]
    return [[entries[index] for index in indices] for indices in sorted_batches(frames, batch_frames, max_batch)]
