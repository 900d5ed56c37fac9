"""CTC prefix scores: how probable it is that what is said begins with a given row of units, over all alignments.

Shape legend: B utterances, R prefixes (of any of them), U frames, P places: 0 the blank, then the units that may have been heard
in an utterance. All log probabilities are natural and float64.
Source: Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section III-B; Graves 2012,
"Supervised Sequence Labelling with Recurrent Neural Networks", section 7.5.
"""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
from torch import Tensor

from steermoe.ctc import BLANK
from steermoe.masks import length_mask

NEVER = -1e9  # log probability of what cannot be; finite, so that differences stay numbers
NEAR = 4  # units of a frame that get a place
SURE = 0.99  # a blank of this probability says nothing: of such frames in a row one is kept


class Heard(NamedTuple):
    """What CTC says of a batch. logprobs_bup (B, U, P), behind an utterance's end certainly blank; units_bp int64: the units of places 1..,
    -1 where there are fewer.
    """

    logprobs_bup: Tensor
    units_bp: Tensor


def hear(scores_buc: Tensor, lens_b: Tensor, sure: float = SURE) -> Heard:
    """(B, U, C + 1) scores before the softmax -> the NEAR best units of every frame, and the log probabilities of these and the blank.

    Frames that surely say nothing are left out but for one of each run, which keeps two equal units apart; 1.0 keeps all.
    """
    logprobs_buc = scores_buc.double().log_softmax(-1)
    inside_bu = length_mask(lens_b, scores_buc.shape[1])
    silent_bu = logprobs_buc[..., BLANK] > math.log(sure)
    kept_bu = inside_bu & ~(silent_bu & torch.nn.functional.pad(silent_bu, (1, 0))[:, :-1])
    rows = [logprobs_uc[kept] for logprobs_uc, kept in zip(logprobs_buc, kept_bu)]
    near = [row[:, 1:].topk(min(NEAR, row.shape[1] - 1), -1).indices.unique() for row in rows]
    units_bp = torch.nn.utils.rnn.pad_sequence(near, batch_first=True, padding_value=-1)
    columns_bp = torch.nn.functional.pad(units_bp + 1, (1, 0))  # the blank in front; what is missing points to it too
    logprobs_buc = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    logprobs_bup = logprobs_buc.gather(2, columns_bp[:, None].expand(-1, logprobs_buc.shape[1], -1))
    logprobs_bup[..., 1:].masked_fill_((units_bp < 0)[:, None], NEVER)
    certainly_blank = torch.full_like(logprobs_bup[0, 0], NEVER)
    certainly_blank[BLANK] = 0.0
    inside_bu = length_mask(kept_bu.sum(1), logprobs_buc.shape[1])
    return Heard(torch.where(inside_bu[..., None], logprobs_bup, certainly_blank), units_bp)


class Prefixes(NamedTuple):
    """R rows of units with CTC's forward variables: (R, U) log probabilities that the frames up to u say the row, ending in its last
    unit (`spoken_ru`) or in a blank (`silent_ru`). rows_r: the utterance of each; last_r: the place of its last unit, 0 for none.
    """

    heard: Heard
    rows_r: Tensor
    last_r: Tensor
    silent_ru: Tensor
    spoken_ru: Tensor

    @classmethod
    def empty(cls, heard: Heard) -> "Prefixes":
        """One for every utterance, of no unit."""
        batch, frames, _ = heard.logprobs_bup.shape
        silent_ru = heard.logprobs_bup[..., BLANK].cumsum(1)
        rows_r = torch.arange(batch, device=silent_ru.device)
        return cls(heard, rows_r, torch.full_like(rows_r, BLANK), silent_ru, torch.full_like(silent_ru, NEVER))

    def ends(self) -> Tensor:
        """(R,): log p(the whole utterance says the row and no more)."""
        return torch.logaddexp(self.silent_ru[:, -1], self.spoken_ru[:, -1])

    def extensions(self) -> Tensor:
        """(R, P): log p(what is said begins with the row and this place's unit); NEVER for the blank's place."""
        everywhere_ru, after_blank_ru = self._before()
        scores_rp = torch.logsumexp(everywhere_ru[..., None] + self.heard.logprobs_bup[self.rows_r], 1)
        repeated_r = torch.logsumexp(after_blank_ru + self._of(self.rows_r, self.last_r), 1)
        scores_rp = scores_rp.scatter(1, self.last_r[:, None], repeated_r[:, None])
        scores_rp[:, BLANK] = NEVER
        return scores_rp

    def extension(self, sources_s: Tensor, places_s: Tensor) -> Tensor:
        """(S,): the same for chosen rows, each with one place."""
        return torch.logsumexp((self._entered(sources_s, places_s) + self._of(self.rows_r[sources_s], places_s)).float(), 1)

    def extended(self, sources_s: Tensor, places_s: Tensor) -> "Prefixes":
        """These rows (any order, repeats allowed), each with one place's unit more."""
        rows_s = self.rows_r[sources_s]
        # spoken_u = (spoken_(u-1) + entered_u) p_u and silent_u = (silent_(u-1) + spoken_(u-1)) blank_u, solved for all u at once.
        spoken_su = _decaying_sum(self._entered(sources_s, places_s), self._of(rows_s, places_s))
        ended_su = torch.nn.functional.pad(spoken_su, (1, 0), value=NEVER)[:, :-1]
        silent_su = _decaying_sum(ended_su, self.heard.logprobs_bup[rows_s, :, BLANK])
        return Prefixes(self.heard, rows_s, places_s, silent_su, spoken_su)

    def select(self, sources_s: Tensor) -> "Prefixes":
        """These rows, as they are."""
        return Prefixes(self.heard, *(tensor[sources_s] for tensor in self[1:]))

    def with_rows(self, places_s: Tensor, others: "Prefixes") -> "Prefixes":
        """`others` in the places of these rows."""
        return Prefixes(self.heard, *(mine.index_copy(0, places_s, theirs) for mine, theirs in zip(self[1:], others[1:])))

    def _of(self, rows_s: Tensor, places_s: Tensor) -> Tensor:
        """(S, U): log probabilities of one place in each of these utterances."""
        return self.heard.logprobs_bup[rows_s, :, places_s]

    def _entered(self, sources_s: Tensor, places_s: Tensor) -> Tensor:
        """(S, U): log p(the frames before u say the row, and this unit may begin at u)."""
        everywhere_ru, after_blank_ru = self._before()
        entered_su, again_s = everywhere_ru[sources_s], self.last_r[sources_s] == places_s
        entered_su[again_s] = after_blank_ru[sources_s[again_s]]
        return entered_su

    def _before(self) -> tuple[Tensor, Tensor]:
        """(R, U) each: log p(the frames before u say the row), and the same with a blank at the end, for the last unit's return."""
        silent_ru = torch.nn.functional.pad(self.silent_ru, (1, 0), value=NEVER)[:, :-1]
        spoken_ru = torch.nn.functional.pad(self.spoken_ru, (1, 0), value=NEVER)[:, :-1]
        silent_ru[:, 0] = torch.where(self.last_r == BLANK, 0.0, NEVER)  # before the first frame nothing has been said
        return torch.logaddexp(silent_ru, spoken_ru), silent_ru


def _decaying_sum(entered_su: Tensor, kept_su: Tensor) -> Tensor:
    """x_u with x_u = (x_(u-1) + e_u) k_u, all as logarithms: x_u = K_u + log sum_(v <= u) exp(e_v - K_(v-1)), K = cumsum(k)."""
    kept_su = kept_su.clamp(min=NEVER).cumsum(1)
    before_su = torch.nn.functional.pad(kept_su, (1, 0))[:, :-1]
    return (kept_su + torch.logcumsumexp(entered_su - before_su, 1)).clamp(min=NEVER)
