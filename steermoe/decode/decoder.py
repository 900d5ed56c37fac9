"""Decodes a data set in batches, each written as it comes, so that a killed run goes on where it was."""

from __future__ import annotations

import json
import math
import os
import time
from pathlib import Path
from typing import NamedTuple

import torch

from steermoe.config import DecodeConf
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.data.sampler import sorted_batches
from steermoe.decode.search import Hypothesis, beam_search, greedy_search
from steermoe.model import SteerMoE
from steermoe.progress import Progress


class Decoded(NamedTuple):
    texts: dict[str, str]  # by utterance, in the data set's order
    ended: dict[str, str]  # why each answer ended: end, length, repeat
    seconds: float  # spent decoding, over all runs
    audio_seconds: float


def answer_limit(seconds: float, conf: DecodeConf) -> int:
    """The longest answer allowed for this much audio, in tokens."""
    if conf.max_tokens_per_second <= 0:
        return conf.max_tokens
    return min(conf.max_tokens, math.ceil(seconds * conf.max_tokens_per_second) + 10)


@torch.inference_mode()
def decode_batch(model: SteerMoE, batch, seconds: list[float], conf: DecodeConf) -> list[Hypothesis]:
    """batch: collated without answers. seconds: each utterance's audio."""
    vectors_bqh, layout = model.soft_prompt(batch, left_pad=True)
    search = greedy_search if conf.beam == 1 else beam_search
    return search(model.llm, vectors_bqh, layout, [answer_limit(s, conf) for s in seconds], conf)


def decode_dataset(model: SteerMoE, data: AudioTextDataset, prompt: str, conf: DecodeConf, part: str | Path) -> Decoded:
    """part: the file of finished batches, one JSON line each; whole batches found in it are not decoded again.

    Batches follow from the data and the configuration alone, so a resumed run gives the hypotheses of an uninterrupted one.
    """
    collator = Collator(model.llm, prompt, answers=False)
    device = next(model.projector.parameters()).device
    batches = sorted_batches(data.lengths(), conf.batch_frames, conf.max_batch)
    lines = _finished(Path(part))
    with open(part, "a", encoding="utf-8") as stream, Progress("decode", len(data), "utt", sum(len(b) for b in batches[: len(lines)])) as bar:
        for indices in batches[len(lines) :]:
            begun = time.monotonic()
            entries = [data.entries[index] for index in indices]
            batch = collator([data[index] for index in indices]).to(device)
            hypotheses = decode_batch(model, batch, [entry["duration"] for entry in entries], conf)
            line = {
                "seconds": time.monotonic() - begun,
                "utts": {e["utt"]: [model.llm.decode(h.tokens).strip(), h.ended] for e, h in zip(entries, hypotheses)},
            }
            stream.write(json.dumps(line, ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
            lines.append(line)
            bar.update(len(indices))
    results = {utt: result for line in lines for utt, result in line["utts"].items()}
    utts = [entry["utt"] for entry in data.entries]
    return Decoded(
        {utt: " ".join(results[utt][0].split()) for utt in utts},
        {utt: results[utt][1] for utt in utts},
        sum(line["seconds"] for line in lines),
        sum(entry["duration"] for entry in data.entries),
    )


def _finished(part: Path) -> list[dict]:
    """Whole lines of an earlier run; a half-written last one is cut off."""
    if not part.is_file():
        return []
    whole, _, _ = part.read_bytes().rpartition(b"\n")
    os.truncate(part, len(whole) + 1 if whole else 0)
    return [json.loads(line) for line in whole.decode("utf-8").splitlines()]
