"""One-pass beam search over what the LLM says next and what CTC has heard: nothing unheard is written, nothing heard is skipped.

Candidates are the tokens that CTC gives any weight somewhere in the utterance. A hypothesis g scores
(1 - w) log p_LLM(g) + w log p_CTC(g...), the second being the probability of all texts that begin with g.

Shape legend: B utterances, K beams of each, U frames, C candidates of an utterance (0 is the blank).
Source: Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section III-B.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steermoe.config import DecodeConf
from steermoe.ctc import BLANK
from steermoe.decode.search import Decoding, Hypothesis
from steermoe.masks import length_mask
from steermoe.merge import Merged

NEVER = -1e9  # log probability of what cannot be; finite, so that differences stay numbers
NEAR = 4  # tokens of a frame that become candidates


class Heard(NamedTuple):
    """What CTC says of a batch. logprobs_buc float32, behind an utterance's end certainly blank; tokens_bc int64, token ids of the
    places 1.. of logprobs, -1 where there are fewer.
    """

    logprobs_buc: Tensor
    tokens_bc: Tensor


def candidates(scores_buv: Tensor, lens_b: Tensor) -> Heard:
    """The NEAR best tokens of every frame, and the log probabilities of these and of the blank."""
    logprobs_buv = scores_buv.float().log_softmax(-1)
    near_bun = logprobs_buv[..., 1:].topk(NEAR, -1).indices
    inside_bu = length_mask(lens_b, scores_buv.shape[1])
    tokens = [near[inside].unique() for near, inside in zip(near_bun, inside_bu)]
    tokens_bc = torch.nn.utils.rnn.pad_sequence(tokens, batch_first=True, padding_value=-1)
    columns_bc = torch.nn.functional.pad(tokens_bc + 1, (1, 0))  # the blank in front; what is missing points to it too
    logprobs_buc = logprobs_buv.gather(2, columns_bc[:, None].expand(-1, scores_buv.shape[1], -1))
    logprobs_buc[..., 1:].masked_fill_((tokens_bc < 0)[:, None], NEVER)
    certainly_blank = torch.full_like(logprobs_buc[0, 0], NEVER)
    certainly_blank[BLANK] = 0.0
    return Heard(torch.where(inside_bu[..., None], logprobs_buc, certainly_blank), tokens_bc)


class Running(NamedTuple):
    """A hypothesis one token longer: which row it continues and with which candidate, the LLM's score, its tokens."""

    place: int
    candidate: int
    written: float
    tokens: list[int]


class Prefixes:
    """CTC's forward variables of hypotheses: log probabilities that the frames up to u say g, ending in its last token (`spoken`)
    or in a blank (`silent`), (R, U) each; row r belongs to utterance rows_r[r].
    """

    def __init__(self, heard: Heard):
        self.heard = heard
        batch, frames, _ = heard.logprobs_buc.shape
        device = heard.logprobs_buc.device
        self.rows_r = torch.arange(batch, device=device)
        self.last_r = torch.full((batch,), BLANK, device=device)
        self.silent_ru = heard.logprobs_buc[..., BLANK].cumsum(1)
        self.spoken_ru = torch.full((batch, frames), NEVER, device=device)

    def ends(self) -> Tensor:
        """(R,): log p(the whole utterance says g and no more)."""
        return torch.logaddexp(self.silent_ru[:, -1], self.spoken_ru[:, -1])

    def extensions(self) -> Tensor:
        """(R, C): log p(what is said begins with g and candidate c); NEVER for the blank's place."""
        logprobs_ruc = self.heard.logprobs_buc[self.rows_r]
        before_ru, repeated_ru = self._before()
        scores_rc = torch.logsumexp(before_ru[..., None] + logprobs_ruc, 1)
        last_ru = logprobs_ruc.gather(2, self.last_r[:, None, None].expand(-1, logprobs_ruc.shape[1], 1))[..., 0]
        repeated_r = torch.logsumexp(repeated_ru + last_ru, 1)
        scores_rc = scores_rc.scatter(1, self.last_r[:, None], repeated_r[:, None])
        scores_rc[:, BLANK] = NEVER
        return scores_rc

    def extend(self, rows_s: Tensor, chosen_s: Tensor) -> None:
        """Goes on with these rows, each with one candidate (1..) more."""
        before_ru, repeated_ru = self._before()
        entered_su = torch.where((self.last_r[rows_s] == chosen_s)[:, None], repeated_ru[rows_s], before_ru[rows_s])
        self.rows_r, self.last_r = self.rows_r[rows_s], chosen_s
        logprobs_suc = self.heard.logprobs_buc[self.rows_r]
        token_su = logprobs_suc.gather(2, chosen_s[:, None, None].expand(-1, logprobs_suc.shape[1], 1))[..., 0]
        blank_su = logprobs_suc[..., BLANK]
        spoken = silent = torch.full_like(token_su[:, 0], NEVER)
        all_spoken, all_silent = [], []
        for frame in range(token_su.shape[1]):
            ended = torch.logaddexp(spoken, silent)
            spoken = torch.logaddexp(spoken, entered_su[:, frame]) + token_su[:, frame]
            silent = ended + blank_su[:, frame]
            all_spoken.append(spoken)
            all_silent.append(silent)
        self.spoken_ru = torch.stack(all_spoken, 1).clamp(min=NEVER)
        self.silent_ru = torch.stack(all_silent, 1).clamp(min=NEVER)

    def _before(self) -> tuple[Tensor, Tensor]:
        """(R, U) each: log p(the frames before u say g), and the same with a blank at the end, for the last token's return."""
        silent_ru = torch.nn.functional.pad(self.silent_ru, (1, 0), value=NEVER)[:, :-1]
        spoken_ru = torch.nn.functional.pad(self.spoken_ru, (1, 0), value=NEVER)[:, :-1]
        silent_ru[:, 0] = torch.where(self.last_r == BLANK, 0.0, NEVER)  # before the first frame nothing has been said
        return torch.logaddexp(silent_ru, spoken_ru), silent_ru


@torch.inference_mode()
def joint_search(
    llm, vectors_bqh: Tensor, layout: Merged, heard: Heard, max_tokens: list[int], conf: DecodeConf
) -> list[Hypothesis]:
    """The best of conf.beam hypotheses by (1 - w) LLM + w CTC, w = conf.ctc_weight. No length penalty: CTC knows the length."""
    beam, weight, stop = conf.beam, conf.ctc_weight, sorted(llm.stop_ids())
    decoding, prefixes = Decoding(llm, vectors_bqh, layout), Prefixes(heard)
    rows = list(range(len(max_tokens)))
    spoken: dict[int, list[tuple[float, list[int]]]] = {row: [(0.0, [])] for row in rows}  # (LLM's score, tokens) of what runs
    best: dict[int, Hypothesis] = {row: Hypothesis([], -torch.inf, "end") for row in rows}
    while rows:
        tokens_rc = heard.tokens_bc[prefixes.rows_r].clamp(min=0)
        llm_rc = decoding.logprobs_bv.gather(1, tokens_rc)
        ended_r = decoding.logprobs_bv[:, stop].logsumexp(-1)
        written_r = torch.tensor([score for row in rows for score, _ in spoken[row]], device=llm_rc.device)
        ends = ((1 - weight) * (written_r + ended_r) + weight * prefixes.ends()).tolist()
        total_rc = (1 - weight) * (written_r[:, None] + llm_rc) + weight * prefixes.extensions()[:, 1:]
        kept: list[Running] = []
        place, survivors = 0, []
        for row in rows:
            size = len(spoken[row])
            for index, (_, tokens) in enumerate(spoken[row]):
                if ends[place + index] > best[row].score:
                    best[row] = Hypothesis(tokens, ends[place + index], "end")
            top = total_rc[place : place + size].flatten().topk(min(beam, size * total_rc.shape[1]))
            running = []
            for value, flat in zip(top.values.tolist(), top.indices.tolist()):
                source, candidate = divmod(flat, total_rc.shape[1])
                # Scores only fall from here: what is below a finished hypothesis stays below it.
                if value <= best[row].score or value < NEVER / 10 * weight:
                    continue
                score, tokens = spoken[row][source]
                token = int(tokens_rc[place + source, candidate])
                written = score + float(llm_rc[place + source, candidate])
                running.append(Running(place + source, candidate + 1, written, [*tokens, token]))
            if running and len(running[0].tokens) >= max_tokens[row]:
                if best[row].score == -torch.inf:
                    best[row] = Hypothesis(running[0].tokens, running[0].written, "length")
                running = []
            place += size
            spoken[row] = [(one.written, one.tokens) for one in running]
            kept += running
            if running:
                survivors.append(row)
        rows = survivors
        if rows:
            places, chosen, ids = zip(*((one.place, one.candidate, one.tokens[-1]) for one in kept))
            places_s = torch.tensor(places, device=llm_rc.device)
            decoding.select(places_s)
            decoding.step(torch.tensor(ids, device=llm_rc.device))
            prefixes.extend(places_s, torch.tensor(chosen, device=llm_rc.device))
    return [best[row] for row in range(len(max_tokens))]
