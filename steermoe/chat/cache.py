"""The LLM's KV cache of one conversation: what a turn has in common with the one before is never computed twice.

A sequence is a list of places: a token id, or -1 - v for vector v of the audio heard so far. Whatever the chat template does to
earlier turns, the places that stay the same at the beginning are kept and the others are computed again.
Shape legend: V the LLM's vocabulary, N audio vectors of the conversation, P new places, H LLM width.
"""

from __future__ import annotations

import torch
from torch import Tensor


def common_prefix(one: list[int], two: list[int]) -> int:
    """How many places both begin with."""
    shorter = min(len(one), len(two))
    if one[:shorter] == two[:shorter]:
        return shorter
    return next(index for index in range(shorter) if one[index] != two[index])


class RunningCache:
    """places: what the cache holds, in order. computed: places computed so far, for those who want to know what was saved."""

    def __init__(self, llm):
        self.llm = llm
        self.computed = 0
        self.clear()

    def clear(self) -> None:
        from transformers import DynamicCache

        self.places: list[int] = []
        self.cache = DynamicCache(config=self.llm.llm.config)

    def keep_text(self) -> None:
        """For another conversation, with other audio: what comes before the first audio, such as the tools' schemas, is kept."""
        first = next((index for index, place in enumerate(self.places) if place < 0), len(self.places))
        self._crop(len(self.places) - first)

    @torch.inference_mode()
    def read(self, places: list[int], audio_nh: Tensor) -> Tensor:
        """places: the whole sequence, not empty. audio_nh: all that was heard. -> logits (V,) float32 of the next token."""
        kept = min(common_prefix(self.places, places), len(places) - 1)
        try:
            self._crop(len(self.places) - kept)
            kept = len(self.places)
            vectors_1ph = self._embed(places[kept:], audio_nh)
            mask_1q = torch.ones(1, len(places), dtype=torch.bool, device=vectors_1ph.device)
            positions_1p = torch.arange(kept, len(places), device=vectors_1ph.device)[None]
            hidden_1ph = self.llm.hidden(vectors_1ph, mask_1q, positions_1p, self.cache)
        except BaseException:  # Ctrl-C too: some layers may hold the new places and others not
            self.clear()
            raise
        self.computed += len(places) - kept
        self.places = list(places)
        return self.llm.logits(hidden_1ph[:, -1])[0].float()

    def _crop(self, places: int) -> None:
        if places:
            try:
                self.cache.crop(-places)
                del self.places[-places:]
            except (RuntimeError, NotImplementedError):  # sliding windows and recurrent layers have forgotten what came before
                self.clear()

    def _embed(self, places: list[int], audio_nh: Tensor) -> Tensor:
        """-> (1, P, H) in the LLM's dtype."""
        device = audio_nh.device
        ids_p = torch.tensor(places, device=device)
        vectors_ph = self.llm.embed(ids_p.clamp(min=0))
        is_audio_p = ids_p < 0
        if is_audio_p.any():
            vectors_ph = vectors_ph.clone()
            vectors_ph[is_audio_p] = audio_nh[-1 - ids_p[is_audio_p]].to(vectors_ph.dtype)
        return vectors_ph[None]
