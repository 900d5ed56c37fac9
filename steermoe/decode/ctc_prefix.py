"""CTC prefix scores: how probable it is that what is said begins with a given row of units, over all alignments.

Shape legend: B utterances, R prefixes (of any of them), U frames, W frames of a window, P places: 0 the blank, then the units that may have been heard
in an utterance. All log probabilities are natural and float64.
Source: Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section III-B; Graves 2012,
"Supervised Sequence Labelling with Recurrent Neural Networks", section 7.5.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import torch
from torch import Tensor

from steermoe.ctc import BLANK
from steermoe.masks import length_mask

NEVER = -1e9  # log probability of what cannot be; finite, so that differences stay numbers
NEAR = 4  # units of a frame that get a place
FAR = 60.0  # nat below a prefix's likeliest frame: it has not been said there
LINGER = 8  # frames that a unit may sound; where it goes on, more are looked at
FADED = 20.0  # nat below a unit's likeliest frame: it does not sound any more
ROWS = ("rows_r", "last_r", "begin_r", "silent_rw", "spoken_rw")
SURE = 0.99  # a blank of this probability says nothing: of such frames in a row one is kept


@dataclass(frozen=True)
class Heard:
    """What CTC says of a batch, on the CPU, since the search makes many small steps. logprobs_bup (B, U, P), behind an utterance's end
    certainly blank; units_bp int64: the units of places 1.., -1 where there are fewer.
    """

    logprobs_bup: Tensor
    units_bp: Tensor

    @functools.cached_property
    def blanks_bu(self) -> Tensor:
        """(B, U): log p(the frames up to u say nothing)."""
        return self.logprobs_bup[..., BLANK].cumsum(1)


def hear(scores_buc: Tensor, lens_b: Tensor, sure: float = SURE, temperature: float = 1.0) -> Heard:
    """(B, U, C + 1) scores before the softmax -> the NEAR best units of every frame, and the log probabilities of these and the blank.

    Frames that surely say nothing are left out but for one of each run, which keeps two equal units apart; 1.0 keeps all. What is left
    is divided by `temperature` before the softmax.
    """
    inside_bu = length_mask(lens_b, scores_buc.shape[1])
    silent_bu = scores_buc.double().log_softmax(-1)[..., BLANK] > math.log(sure)
    logprobs_buc = (scores_buc.double() / temperature).log_softmax(-1)
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
    return Heard(torch.where(inside_bu[..., None], logprobs_bup, certainly_blank).cpu(), units_bp.cpu())


@dataclass
class Prefixes:
    """R rows of units with CTC's forward variables: log probabilities that the frames up to u say the row, ending in its last unit
    (`spoken_rw`) or in a blank (`silent_rw`), for the W frames from `begin_r` on that matter: before them the row cannot have been said,
    and behind them only blanks follow. rows_r: the utterance of each; last_r: the place of its last unit, 0 for none.
    """

    heard: Heard
    rows_r: Tensor
    last_r: Tensor
    begin_r: Tensor
    silent_rw: Tensor
    spoken_rw: Tensor

    @classmethod
    def empty(cls, heard: Heard) -> "Prefixes":
        """One for every utterance, of no unit."""
        silent_bw = heard.logprobs_bup[:, :1, BLANK]
        rows_r = torch.arange(len(silent_bw), device=silent_bw.device)
        return cls(heard, rows_r, torch.full_like(rows_r, BLANK), torch.zeros_like(rows_r), silent_bw, torch.full_like(silent_bw, NEVER))

    @classmethod
    def joined(cls, parts: list["Prefixes"]) -> "Prefixes":
        """The rows of all, in order."""
        width = max(part.silent_rw.shape[1] for part in parts)
        parts = [part._widened(width) for part in parts]
        return cls(parts[0].heard, *(torch.cat([getattr(part, name) for part in parts]) for name in ROWS))

    def select(self, sources_s: Tensor) -> "Prefixes":
        """These rows (any order, repeats allowed), as they are."""
        return Prefixes(self.heard, *(getattr(self, name)[sources_s] for name in ROWS))

    def ends(self) -> Tensor:
        """(R,): log p(the whole utterance says the row and no more)."""
        return torch.logaddexp(*self._at(torch.full_like(self.begin_r, self.heard.logprobs_bup.shape[1] - 1)[:, None]))[:, 0]

    def extensions(self) -> Tensor:
        """(R, P): log p(what is said begins with the row and this place's unit); NEVER for the blank's place."""
        frames_rw = self._frames(0)
        everywhere_rw, after_blank_rw = self._before(frames_rw)
        logprobs_rwp = self.heard.logprobs_bup[self.rows_r[:, None], frames_rw]
        scores_rp = torch.logsumexp(everywhere_rw[..., None] + logprobs_rwp, 1)
        last_r1 = self.last_r[:, None]
        repeated_rw = logprobs_rwp.gather(2, last_r1[..., None].expand(-1, frames_rw.shape[1], 1))[..., 0]
        scores_rp = scores_rp.scatter(1, last_r1, torch.logsumexp(after_blank_rw + repeated_rw, 1, keepdim=True))
        scores_rp[:, BLANK] = NEVER
        return scores_rp

    def extended(self, places_r: Tensor) -> "Prefixes":
        """Each row with one place's unit more."""
        lingers, count = LINGER, self.heard.logprobs_bup.shape[1]
        while True:
            frames_rw = self._frames(lingers)
            # spoken_u = (spoken_(u-1) + entered_u) p_u and silent_u = (silent_(u-1) + spoken_(u-1)) blank_u, solved for all u at once.
            spoken_rw = _decaying_sum(self._entered(frames_rw, places_r), self._of(frames_rw, places_r))
            if frames_rw.shape[1] == count or bool((spoken_rw[:, -1] < spoken_rw.max(1).values - FADED).all()):
                break
            lingers *= 4
        ended_rw = torch.nn.functional.pad(spoken_rw, (1, 0), value=NEVER)[:, :-1]
        silent_rw = _decaying_sum(ended_rw, self._of(frames_rw, torch.full_like(places_r, BLANK)))
        return Prefixes(self.heard, self.rows_r, places_r, frames_rw[:, 0], silent_rw, spoken_rw)

    def _of(self, frames_rw: Tensor, places_r: Tensor) -> Tensor:
        """(R, W): log probabilities of one place in each row's utterance."""
        return self.heard.logprobs_bup[self.rows_r[:, None], frames_rw, places_r[:, None]]

    def _at(self, frames_rw: Tensor) -> tuple[Tensor, Tensor]:
        """(R, W) each: the forward variables `silent` and `spoken` at these frames, -1 being before the first."""
        width = self.silent_rw.shape[1]
        inside_rw = frames_rw - self.begin_r[:, None]
        known_rw = inside_rw.clamp(0, width - 1)
        silent_rw, spoken_rw = self.silent_rw.gather(1, known_rw), self.spoken_rw.gather(1, known_rw)
        early_rw, late_rw = inside_rw < 0, inside_rw >= width
        blanks_bu = self.heard.blanks_bu
        rows_r1, end_r1 = self.rows_r[:, None], self.begin_r[:, None] + width - 1
        waited_rw = blanks_bu[rows_r1, frames_rw.clamp(min=0)] - blanks_bu[rows_r1, end_r1]
        silent_rw = torch.where(late_rw, torch.logaddexp(silent_rw, spoken_rw) + waited_rw, silent_rw)
        spoken_rw = spoken_rw.masked_fill(early_rw | late_rw, NEVER)
        nothing_r1 = torch.where(self.last_r == BLANK, 0.0, NEVER).to(silent_rw)[:, None]
        return torch.where(early_rw, torch.where(frames_rw < 0, nothing_r1, NEVER), silent_rw), spoken_rw

    def _before(self, frames_rw: Tensor) -> tuple[Tensor, Tensor]:
        """(R, W) each: log p(the frames before u say the row), and the same with a blank at the end, for the last unit's return."""
        silent_rw, spoken_rw = self._at(frames_rw - 1)
        return torch.logaddexp(silent_rw, spoken_rw), silent_rw

    def _entered(self, frames_rw: Tensor, places_r: Tensor) -> Tensor:
        """(R, W): log p(the frames before u say the row, and this unit may begin at u)."""
        everywhere_rw, after_blank_rw = self._before(frames_rw)
        return torch.where((self.last_r == places_r)[:, None], after_blank_rw, everywhere_rw)

    def _frames(self, more: int) -> Tensor:
        """(R, W): the frames at which a next unit may begin, and `more` behind the last of them."""
        count, width = self.heard.logprobs_bup.shape[1], self.silent_rw.shape[1]
        total_rw = torch.logaddexp(self.silent_rw, self.spoken_rw)
        likely_rw = total_rw > total_rw.max(1, keepdim=True).values - FAR
        first_r = torch.where(self.last_r == BLANK, 0, self.begin_r + likely_rw.int().argmax(1))
        last_r = self.begin_r + width - 1 - likely_rw.flip(1).int().argmax(1)
        # Where it is likely up to the window's end, it may go on in blanks: as far as these are likely.
        blanks_bu, end_r = self.heard.blanks_bu, self.begin_r + width - 1
        floor_r = blanks_bu[self.rows_r, end_r] + total_rw.max(1).values - FAR - total_rw[:, -1]
        waited_r = (blanks_bu[self.rows_r] > floor_r[:, None]).sum(1)  # falling: the number of frames above the floor
        last_r = torch.where(likely_rw[:, -1], waited_r.clamp(min=1) - 1, last_r)
        length = min(int((last_r - first_r).max()) + 2 + more, count)
        return first_r.clamp(max=count - length)[:, None] + torch.arange(length, device=first_r.device)

    def _widened(self, width: int) -> "Prefixes":
        begin_r = self.begin_r.clamp(max=self.heard.logprobs_bup.shape[1] - width)
        frames_rw = begin_r[:, None] + torch.arange(width, device=begin_r.device)
        return Prefixes(self.heard, self.rows_r, self.last_r, begin_r, *self._at(frames_rw))


def _decaying_sum(entered_su: Tensor, kept_su: Tensor) -> Tensor:
    """x_u with x_u = (x_(u-1) + e_u) k_u, all as logarithms: x_u = K_u + log sum_(v <= u) exp(e_v - K_(v-1)), K = cumsum(k)."""
    kept_su = kept_su.clamp(min=NEVER).cumsum(1)
    before_su = torch.nn.functional.pad(kept_su, (1, 0))[:, :-1]
    return (kept_su + torch.logcumsumexp(entered_su - before_su, 1)).clamp(min=NEVER)
