"""Utterances to one padded batch. Shape legend: B batch, F input frames, M input feature size, S text tokens."""

from __future__ import annotations

from typing import NamedTuple, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from steermoe.data.dataset import Example


class Batch(NamedTuple):
    """feats_bfm float32, text_ids_bs int64, both right-padded with 0; lengths and places (B,) int64.

    A row of text_ids_bs is [prefix | suffix | answer | end] of steermoe.llms.template; the audio goes in at `audio_at`.
    """

    utts: list[str]
    feats_bfm: Tensor
    feat_lens_b: Tensor
    text_ids_bs: Tensor
    text_lens_b: Tensor
    audio_at_b: Tensor
    answer_at_b: Tensor
    heard: bool = False  # feats_bfm is what the steered encoder makes of the features, in its dtype

    def to(self, device: torch.device | str) -> "Batch":
        return Batch(self.utts, *(tensor.to(device, non_blocking=True) for tensor in self[1:-1]), self.heard)


class Collator:
    """llm: anything with `template(prompt)` and `encode(text)`. prompt: for utterances without one of their own.

    answers: True puts the answer and the end token behind the prompt (training), False leaves them away (decoding).
    """

    def __init__(self, llm, prompt: str, answers: bool = True):
        self.llm, self.prompt, self.answers = llm, prompt, answers
        self.templates: dict[str, tuple] = {}

    def __call__(self, examples: Sequence[Example]) -> Batch:
        rows, audio_at, answer_at = [], [], []
        for example in examples:
            prefix, suffix, end = self._template(example.prompt or self.prompt)
            answer = [*self.llm.encode(example.text), end] if self.answers else []
            rows.append(torch.tensor([*prefix, *suffix, *answer], dtype=torch.long))
            audio_at.append(len(prefix))
            answer_at.append(len(prefix) + len(suffix))
        feats = [example.feats_fm for example in examples]
        return Batch(
            [example.utt for example in examples],
            pad_sequence(feats, batch_first=True),
            torch.tensor([len(feat) for feat in feats]),
            pad_sequence(rows, batch_first=True),
            torch.tensor([len(row) for row in rows]),
            torch.tensor(audio_at),
            torch.tensor(answer_at),
            examples[0].heard,
        )

    def _template(self, prompt: str) -> tuple:
        if prompt not in self.templates:
            self.templates[prompt] = self.llm.template(prompt)
        return self.templates[prompt]
