"""What CTC speaks: the LLM's own tokens, or the bytes they are spelled with.

Bytes: a few hundred units that are all heard in an hour of speech, where most of the LLM's tokens are never heard; each is scored
against the LLM's embedding of the token that is this one byte. Shape legend: B batch, Y tokens, C units, V the LLM's vocabulary,
H its width.
"""

from __future__ import annotations

import functools
from typing import Sequence

import torch
from torch import Tensor

from steermoe.errors import UserError

KINDS = ("tokens", "bytes")


class TokenUnits:
    """Every token of the LLM is a unit, of the same number."""

    spells = False

    def __init__(self, llm):
        self.llm = llm

    def weight(self) -> Tensor:
        """(C, H) in the LLM's dtype: the direction of each unit."""
        return self.llm.llm.get_input_embeddings().weight

    def spell(self, ids_by: Tensor, lens_b: Tensor) -> tuple[Tensor, Tensor]:
        """Token ids, right-padded -> the units that say them, right-padded, and how many."""
        return ids_by, lens_b

    def units(self, ids: Sequence[int]) -> list[int]:
        """The same for one row without padding."""
        return list(ids)

    def heard(self, token: int, unheard: str = "") -> list[int]:
        """The units that say a token. UserError for `unheard`, which is about letters."""
        if unheard:
            raise UserError("decode_conf.unheard: needs CTC on letters, `units: bytes` in projector_conf; this adapter hears tokens")
        return [token]

    def folded(self, scores_buc: Tensor, unheard: str) -> Tensor:
        """As they are: the search refuses `unheard`."""
        return scores_buc

    def join(self, units: Sequence[int]) -> list[int]:
        """Units heard, in order -> token ids."""
        return list(units)


class ByteUnits:
    """The bytes for which the LLM has a token of its own; what is heard becomes the tokens that the LLM would write."""

    spells = True  # a token may be longer than another

    def __init__(self, llm):
        self.llm = llm
        self.spelling = token_bytes(llm.tokenizer)
        self.token_of: dict[int, int] = {}
        for token in sorted(self.spelling, reverse=True):  # of two tokens for one byte the one with the lower number
            if len(self.spelling[token]) == 1:
                self.token_of[self.spelling[token][0]] = token
        self.bytes = sorted(self.token_of)
        self.unit_of = {byte: unit for unit, byte in enumerate(self.bytes)}
        if not {*b" etaoin"} <= self.token_of.keys():
            raise UserError("projector_conf.units: bytes: the LLM's vocabulary has no tokens of a single letter; use `units: tokens`")

    def weight(self) -> Tensor:
        weight_vh = self.llm.llm.get_input_embeddings().weight
        return weight_vh[torch.tensor([self.token_of[byte] for byte in self.bytes], device=weight_vh.device)]

    def spell(self, ids_by: Tensor, lens_b: Tensor) -> tuple[Tensor, Tensor]:
        rows = [self.units(ids[:count]) for ids, count in zip(ids_by.tolist(), lens_b.tolist())]
        spelled = [torch.tensor(row, dtype=torch.long, device=ids_by.device) for row in rows]
        return torch.nn.utils.rnn.pad_sequence(spelled, batch_first=True), torch.tensor([len(row) for row in rows], device=lens_b.device)

    def units(self, ids: Sequence[int]) -> list[int]:
        """The units of tokens' bytes; control tokens and bytes without a unit say nothing."""
        return [self.unit_of[byte] for token in ids for byte in self.spelling.get(token, b"") if byte in self.unit_of]

    def heard(self, token: int, unheard: str = "") -> list[int] | None:
        """The units that say a token, none for a mark that is not heard; None for one that CTC has no units for."""
        written = self.spelling.get(token, b"")
        said = self.said(written, unheard)
        units = [self.unit_of[byte] for byte in said if byte in self.unit_of]
        return units if written and len(units) == len(said) else None

    @staticmethod
    def said(written: bytes, unheard: str) -> bytes:
        """What is heard of text (decode_conf.unheard): small letters, and not these marks; "": all of it."""
        for mark in unheard:  # as whole characters: the bytes of one are never a part of another's
            written = written.replace(mark.encode(), b"")
        return written.lower() if unheard else written

    def folded(self, scores_buc: Tensor, unheard: str) -> Tensor:
        """Scores (B, U, C + 1) where a capital's probability is the small letter's, and that of a mark of `unheard` the blank's: of an
        adapter that was trained on text with capitals and marks. float64 log probabilities; "": the scores as they are.
        """
        if not unheard:
            return scores_buc
        said = [self.said(bytes([byte]), unheard) for byte in self.bytes]
        columns = [0, *(1 + self.unit_of.get(one[0], unit) if one else 0 for unit, one in enumerate(said))]
        probs_buc = scores_buc.double().softmax(-1)
        columns_c = torch.tensor(columns, device=probs_buc.device)
        return torch.zeros_like(probs_buc).index_add_(-1, columns_c, probs_buc).clamp(min=1e-300).log()

    def join(self, units: Sequence[int]) -> list[int]:
        text = bytes(self.bytes[unit] for unit in units).decode("utf-8", errors="ignore")
        return self.llm.encode(" ".join(text.split()))


def make_units(kind: str, llm) -> TokenUnits | ByteUnits:
    """kind: "tokens" or "bytes". UserError if the LLM's vocabulary does not spell."""
    if kind == "tokens" or llm.tokenizer is None:  # shapes without weights have no tokenizer; the number of units changes nothing there
        return TokenUnits(llm)
    return ByteUnits(llm)


@functools.lru_cache(maxsize=4)
def token_bytes(tokenizer) -> dict[int, bytes]:
    """The bytes that each token writes, control tokens left out: byte-level BPE (GPT-2, Qwen, LLaMA 3) and SentencePiece with
    byte fallback (LLaMA 2, Gemma, Mistral).
    """
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    vocabulary, special = tokenizer.get_vocab(), set(tokenizer.all_special_ids) | set(tokenizer.added_tokens_decoder)
    byte_level = {letter: byte for byte, letter in bytes_to_unicode().items()} if "Ġ" in vocabulary else None
    spelling = {}
    for word, token in vocabulary.items():
        if token in special:
            continue
        if byte_level:
            if all(letter in byte_level for letter in word):
                spelling[token] = bytes(byte_level[letter] for letter in word)
        elif len(word) == 6 and word.startswith("<0x"):
            spelling[token] = bytes([int(word[3:5], 16)])
        else:
            spelling[token] = word.replace("▁", " ").encode()
    return spelling
