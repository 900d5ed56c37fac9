"""CTC in the frozen LLM's own embedding space, and what it lets a projector do: one soft-prompt vector a token.

A projected frame is scored against every row of the LLM's input-embedding matrix (scaled to unit variance) and against one learned
blank direction. CTC on the LLM's own tokens then aligns frames with text without running the LLM.

Shape legend: B batch, U pooled frames, H LLM width, V the LLM's vocabulary, Y target tokens of an utterance, N vectors of a prompt.
Source: Graves et al. 2006, "Connectionist Temporal Classification".
"""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as nnf
from torch import Tensor

from steermoe.masks import length_mask

BLANK = 0  # place in a row of scores; token v is at v + 1


def ctc_loss(scores_buv: Tensor, lens_b: Tensor, targets_by: Tensor, target_lens_b: Tensor) -> Tensor:
    """- log p(targets | frames), summed over the batch; an utterance with fewer frames than its targets need adds 0.

    scores_buv (B, U, V + 1) any float dtype, before the softmax; lens_b, target_lens_b (B,) int64; targets_by (B, Y) int64 token
    ids, right-padded with anything. CTC reads few of the V + 1 probabilities, so only the softmax's denominator is computed
    over all: the batch's own tokens keep their columns and all others share one, which leaves loss and gradient as they are.
    """
    valid_by = length_mask(target_lens_b, targets_by.shape[1])
    tokens_k, place = targets_by[valid_by].unique(return_inverse=True)
    columns_k = torch.cat([tokens_k.new_zeros(1), tokens_k + 1])
    total_bu1 = scores_buv.logsumexp(-1, keepdim=True).float()
    logprobs_buk = scores_buv[..., columns_k].float() - total_bu1
    rest_bu1 = torch.log1p(-logprobs_buk.exp().sum(-1, keepdim=True).clamp(max=1 - 1e-6))
    targets_by = torch.zeros_like(targets_by).masked_scatter(valid_by, place + 1)
    logprobs_ubk = torch.cat([logprobs_buk, rest_bu1], -1).transpose(0, 1)
    return nnf.ctc_loss(logprobs_ubk, targets_by, lens_b, target_lens_b, BLANK, "sum", zero_infinity=True)


class Runs(NamedTuple):
    """run_bu int64: which run of its row each frame belongs to, -1 for blanks and padding. lens_b: runs of each row."""

    run_bu: Tensor
    lens_b: Tensor


def find_runs(best_bu: Tensor, lens_b: Tensor) -> Runs:
    """Frames of one token in a row are one run, as CTC reads them; a blank between two equal tokens parts them.

    best_bu (B, U) int64: the best place of each frame (0 is the blank); lens_b (B,) int64:

        best  0 7 7 0 7 5 5 5 0      run  -1 0 0 -1 1 2 2 2 -1      3 runs
    """
    speaks_bu = (best_bu != BLANK) & length_mask(lens_b, best_bu.shape[1])
    before_bu = nnf.pad(best_bu, (1, 0))[:, :-1]
    run_bu = (speaks_bu & (best_bu != before_bu)).long().cumsum(1) - 1
    return Runs(run_bu.masked_fill(~speaks_bu, -1), run_bu[:, -1] + 1)


def best_units(scores_buc: Tensor, lens_b: Tensor) -> list[list[int]]:
    """CTC's greedy reading: the best unit of each frame, runs merged, blanks dropped. (B, U, C + 1), (B,) -> units of every row."""
    best_bu = scores_buc.argmax(-1)
    run_bu = find_runs(best_bu, lens_b).run_bu
    first_bu = (run_bu >= 0) & (run_bu != nnf.pad(run_bu, (1, 0), value=-1)[:, :-1])
    return [(row[first] - 1).tolist() for row, first in zip(best_bu, first_bu)]


def confidence(scores_buc: Tensor, lens_b: Tensor) -> Tensor:
    """Mean probability of the units in CTC's greedy reading, over the frames that speak; 0 where none does. -> (B,) float32."""
    best = scores_buc.float().softmax(-1).max(-1)
    speaks_bu = (best.indices != BLANK) & length_mask(lens_b, scores_buc.shape[1])
    return (best.values * speaks_bu).sum(1) / speaks_bu.sum(1).clamp(min=1)


def mean_over_runs(vectors_buh: Tensor, runs: Runs) -> Tensor:
    """(B, U, H) -> (B, N, H), the mean of each run's frames, N = max(runs.lens_b); 0 behind a row's last run. Differentiable."""
    size = max(int(runs.lens_b.max()), 1)
    member_bnu = runs.run_bu[:, None] == torch.arange(size, device=vectors_buh.device)[:, None]
    weights_bnu = member_bnu.to(vectors_buh.dtype) / member_bnu.sum(-1, keepdim=True).clamp(min=1)
    return weights_bnu @ vectors_buh
