"""Puts the audio into the text: equation 4 of SteerMoE (arXiv 2510.13558), as pure index arithmetic.

One row's sequence is  [text before the audio][audio][text after it][answer][EOS], and the loss is on answer and EOS only:

    text   t0 t1 t2 t3 t4      audio_at 2, answer_at 3      audio  a0 a1
    merged t0 t1 a0 a1 t2 t3 t4
    label  .  .  .  .  .  t3 t4      (the place of token j predicts token j + 1; the shift is the loss's business)

Shape legend: B batch, S text tokens, U audio vectors, Q merged places, H width.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steermoe.masks import positions_from_mask

IGNORE = -100


class Merged(NamedTuple):
    """source_bq int64: where each merged place comes from in the row's [text (S) | audio (U)]; 0 on padding.
    mask_bq bool: True on real places. positions_bq int64: counted over real places. labels_bq int64: IGNORE off the answer.
    """

    source_bq: Tensor
    mask_bq: Tensor
    positions_bq: Tensor
    labels_bq: Tensor


def merge_layout(
    text_ids_bs: Tensor, text_lens_b: Tensor, audio_lens_b: Tensor, audio_at_b: Tensor, answer_at_b: Tensor, left_pad: bool = False
) -> Merged:
    """All int64. text_ids_bs is right-padded; audio_at_b: text tokens before the audio; answer_at_b: first answer token.

    left_pad: padding in front, for batched decoding; rows then all end at the same place.
    """
    text_size = text_ids_bs.shape[1]
    totals_b = text_lens_b + audio_lens_b
    size = int(totals_b.max())
    place_bq = torch.arange(size, device=text_ids_bs.device).expand(len(totals_b), size)
    if left_pad:
        place_bq = place_bq - (size - totals_b)[:, None]
    mask_bq = (place_bq >= 0) & (place_bq < totals_b[:, None])
    audio_start, audio_end = audio_at_b[:, None], (audio_at_b + audio_lens_b)[:, None]
    in_audio = (place_bq >= audio_start) & (place_bq < audio_end)
    text_bq = torch.where(place_bq >= audio_end, place_bq - audio_lens_b[:, None], place_bq)
    source_bq = torch.where(in_audio, text_size + place_bq - audio_start, text_bq).masked_fill(~mask_bq, 0)
    is_answer = mask_bq & ~in_audio & (text_bq >= answer_at_b[:, None])
    ids_bq = text_ids_bs.gather(1, text_bq.clamp(0, text_size - 1))
    return Merged(source_bq, mask_bq, positions_from_mask(mask_bq), ids_bq.masked_fill(~is_answer, IGNORE))


def merge_vectors(text_bsh: Tensor, audio_buh: Tensor, layout: Merged) -> Tensor:
    """text_bsh (B, S, H), audio_buh (B, U, H), the same dtype -> (B, Q, H), 0 on padding. Differentiable in both."""
    both = torch.cat([text_bsh, audio_buh], 1)
    merged = both.gather(1, layout.source_bq[..., None].expand(-1, -1, both.shape[-1]))
    return merged.masked_fill(~layout.mask_bq[..., None], 0.0)
