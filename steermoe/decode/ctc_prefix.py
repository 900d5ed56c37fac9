"""CTC prefix scores: how probable it is that what is said begins with a given row of units, over all alignments.

Shape legend: B utterances, N prefixes (of any of them), R of these, U frames, W frames of a window, P places: 0 the blank, then the units
that may have been heard in an utterance. All log probabilities are natural and float64.
Source: Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section III-B; Graves 2012,
"Supervised Sequence Labelling with Recurrent Neural Networks", section 7.5.
"""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from steermoe.ctc import BLANK
from steermoe.decode.cache import written
from steermoe.masks import length_mask

NEVER = -1e9  # log probability of what cannot be; finite, so that differences stay numbers
NEAR = 4  # units of a frame that get a place
FAR = 60.0  # nat below a prefix's likeliest frame: it has not been said there
LINGER = 8  # frames that a unit may sound; where it goes on, more are looked at
FADED = 20.0  # nat below a unit's likeliest frame: it does not sound any more
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
        """(B, U + 1): log p(the frames before u say nothing)."""
        return torch.nn.functional.pad(self.logprobs_bup[..., BLANK].cumsum(1), (1, 0))

    @functools.cached_property
    def probs_bup(self) -> Tensor:
        return self.logprobs_bup.exp()


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


class Prefixes:
    """The beginnings of what is said that a search asks for, each computed once. They have numbers: b is that of no unit in utterance b,
    and one that is new gets the next. lens: units of each; scores: (P,) of each, log p(what is said begins with it and this place's
    unit), NEVER for the blank's place.

    Of each are held CTC's forward variables, log probabilities that the frames up to u say it (`said`) and that a blank is then the
    last (`silent`), for the frames `first` to `held` around which it may have been said: before them it cannot have been, and behind
    them only blanks follow, up to `final` likely ones. Frame -1 is before the first. frames_held: those of all together.
    """

    def __init__(self, heard: Heard):
        self.heard, count = heard, len(heard.logprobs_bup)
        self.lens: list[int] = []
        self.scores: list[np.ndarray] = []
        self._numbers: dict[tuple[int, int], int] = {}
        self._states_n6 = torch.zeros(0, 6, dtype=torch.long)  # row of the utterance, place of the last unit, first, held, final, shift
        self._values_n2 = heard.logprobs_bup.new_zeros(0, 2)  # said and silent of all frames held: a prefix's frame u is at u + shift
        self.frames_held = 0
        rows_b, nothing_b1 = torch.arange(count), heard.logprobs_bup.new_zeros(count, 1)
        self._add([0] * count, rows_b, torch.full_like(rows_b, BLANK), torch.full((count, 1), -1), nothing_b1, nothing_b1)

    def longer(self, numbers: list[int], places: list[int]) -> list[int]:
        """The numbers of these prefixes with one place's unit more each; BLANK's place adds nothing."""
        asked = list(zip(numbers, places, strict=True))
        if new := [one for one in dict.fromkeys(asked) if one[1] != BLANK and one not in self._numbers]:
            self._numbers.update(zip(new, range(len(self.lens), len(self.lens) + len(new))))
            self._extend(*torch.tensor(new).T)
        return [number if place == BLANK else self._numbers[number, place] for number, place in asked]

    def ends(self, numbers: list[int]) -> Tensor:
        """(R,): log p(the whole utterance says the prefix and no more)."""
        last_r1 = torch.full((len(numbers), 1), self.heard.logprobs_bup.shape[1] - 1)
        return self._at(self._states_n6[numbers], last_r1)[0][:, 0]

    def _extend(self, numbers_r: Tensor, places_r: Tensor) -> None:
        states_r6, logprobs_bup, lingers = self._states_n6[numbers_r], self.heard.logprobs_bup, LINGER
        rows_r, last_r = states_r6[:, 0], states_r6[:, 1]
        while True:
            frames_rw = self._frames(states_r6, lingers)
            said_rw, silent_rw = self._at(states_r6, frames_rw - 1)
            entered_rw = torch.where((last_r == places_r)[:, None], silent_rw, said_rw)
            # spoken_u = (spoken_(u-1) + entered_u) p_u and silent_u = (silent_(u-1) + spoken_(u-1)) blank_u, solved for all u at once.
            spoken_rw = _decaying_sum(entered_rw, logprobs_bup[rows_r[:, None], frames_rw, places_r[:, None]])
            if frames_rw.shape[1] == logprobs_bup.shape[1] or bool((spoken_rw[:, -1] < spoken_rw.max(1).values - FADED).all()):
                break
            lingers *= 4
        ended_rw = torch.nn.functional.pad(spoken_rw, (1, 0), value=NEVER)[:, :-1]
        silent_rw = _decaying_sum(ended_rw, logprobs_bup[rows_r[:, None], frames_rw, BLANK])
        lens = [self.lens[number] + 1 for number in numbers_r.tolist()]
        self._add(lens, rows_r, places_r, frames_rw, torch.logaddexp(silent_rw, spoken_rw), silent_rw)

    def _add(self, lens: list[int], rows_r: Tensor, places_r: Tensor, frames_rw: Tensor, said_rw: Tensor, silent_rw: Tensor) -> None:
        """Holds what is likely of a window of forward variables."""
        likely_rw = said_rw > said_rw.max(1, keepdim=True).values - FAR
        first_r = frames_rw[:, 0] + likely_rw.int().argmax(1)
        held_r = frames_rw[:, -1] - likely_rw.flip(1).int().argmax(1)
        # Where it is likely up to the window's end, it may go on in blanks: as far as these are likely.
        blanks_bu, end_r = self.heard.blanks_bu, frames_rw[:, -1]
        floor_r = blanks_bu[rows_r, end_r + 1] + said_rw.max(1).values - FAR - said_rw[:, -1]
        waited_r = (blanks_bu[rows_r] > floor_r[:, None]).sum(1) - 2  # falling: the number of frames above the floor, -1 among them
        final_r = torch.where(likely_rw[:, -1], waited_r.maximum(end_r), held_r)
        counts_r = held_r - first_r + 1
        shift_r = self.frames_held + counts_r.cumsum(0) - counts_r - first_r
        within_rw = (frames_rw >= first_r[:, None]) & (frames_rw <= held_r[:, None])
        self._values_n2 = written(self._values_n2, torch.stack([said_rw[within_rw], silent_rw[within_rw]], 1), self.frames_held)
        self.frames_held += int(counts_r.sum())
        states_r6 = torch.stack([rows_r, places_r, first_r, held_r, final_r, shift_r], 1)
        self._states_n6 = written(self._states_n6, states_r6, len(self.lens))
        self.lens += lens
        self.scores.extend(self._extensions(states_r6).numpy())

    def _extensions(self, states_r6: Tensor) -> Tensor:
        """(R, P): what `scores` says."""
        frames_rw = self._frames(states_r6, 0)
        said_rw, silent_rw = self._at(states_r6, frames_rw - 1)
        rows_r1, last_r1 = states_r6[:, :1], states_r6[:, 1:2]
        top_r1 = said_rw.max(1, keepdim=True).values
        scores_rp = torch.einsum("rw,rwp->rp", (said_rw - top_r1).exp(), self.heard.probs_bup[rows_r1, frames_rw]).log() + top_r1
        # The last unit may come again only behind a blank.
        again_r1 = torch.logsumexp(silent_rw + self.heard.logprobs_bup[rows_r1, frames_rw, last_r1], 1, keepdim=True)
        scores_rp = scores_rp.scatter(1, last_r1, again_r1).clamp(min=NEVER)
        scores_rp[:, BLANK] = NEVER
        return scores_rp

    def _at(self, states_r6: Tensor, frames_rw: Tensor) -> tuple[Tensor, Tensor]:
        """(R, W) each: `said` and `silent` at these frames."""
        row_r1, _, first_r1, held_r1, _, shift_r1 = states_r6.T[..., None]
        said_rw, silent_rw = self._values_n2[frames_rw.clamp(first_r1, held_r1) + shift_r1].unbind(-1)
        blanks_bu = self.heard.blanks_bu
        said_rw = said_rw + (blanks_bu[row_r1, frames_rw + 1] - blanks_bu[row_r1, held_r1 + 1]).clamp(max=0.0)
        silent_rw = torch.where(frames_rw > held_r1, said_rw, silent_rw)
        early_rw = frames_rw < first_r1
        return said_rw.masked_fill(early_rw, NEVER), silent_rw.masked_fill(early_rw, NEVER)

    def _frames(self, states_r6: Tensor, more: int) -> Tensor:
        """(R, W): the frames at which a next unit may begin, and `more` behind the last of them."""
        first_r, final_r, count = states_r6[:, 2], states_r6[:, 4], self.heard.logprobs_bup.shape[1]
        length = min(int((final_r - first_r).max()) + 1 + more, count)
        return (first_r + 1).clamp(max=count - length)[:, None] + torch.arange(length)


def _decaying_sum(entered_su: Tensor, kept_su: Tensor) -> Tensor:
    """x_u with x_u = (x_(u-1) + e_u) k_u, all as logarithms: x_u = K_u + log sum_(v <= u) exp(e_v - K_(v-1)), K = cumsum(k)."""
    kept_su = kept_su.clamp(min=NEVER).cumsum(1)
    before_su = torch.nn.functional.pad(kept_su, (1, 0))[:, :-1]
    return (kept_su + torch.logcumsumexp(entered_su - before_su, 1)).clamp(min=NEVER)
