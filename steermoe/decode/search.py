"""Greedy and beam search over a frozen LLM that reads vectors, with its KV cache.

Shape legend: B batch, K beams, Q prompt places (left-padded), H width, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor

from steermoe.config import DecodeConf
from steermoe.decode.repeats import loop_start
from steermoe.merge import Merged


class Hypothesis(NamedTuple):
    """tokens: the answer without its end token. score: sum of log probabilities, natural log. ended: "end" by the model, "length" by
    the limit, "repeat" by the guard (tokens are then cut to the loop's first copy).
    """

    tokens: list[int]
    score: float
    ended: str


class Decoding:
    """The state of a batch of rows: the cache, and the mask and position that grow with every token."""

    def __init__(self, llm, vectors_bqh: Tensor, layout: Merged):
        from steermoe.decode.cache import roomy_cache

        self.llm, self.cache = llm, roomy_cache(llm.llm.config)
        self.mask_bq, self.position_b = layout.mask_bq, layout.positions_bq[:, -1]
        hidden_bqh = llm.hidden(vectors_bqh, self.mask_bq, layout.positions_bq, self.cache)
        self.logprobs_bv = self._logprobs(hidden_bqh)

    def step(self, tokens_b: Tensor) -> None:
        """Appends a token to every row; `logprobs_bv` then speaks of the one after it."""
        self.position_b = self.position_b + 1
        self.mask_bq = torch.cat([self.mask_bq, self.mask_bq.new_ones(len(tokens_b), 1)], 1)
        hidden_b1h = self.llm.hidden(self.llm.embed(tokens_b[:, None]), self.mask_bq, self.position_b[:, None], self.cache)
        self.logprobs_bv = self._logprobs(hidden_b1h)

    def select(self, rows_b: Tensor) -> None:
        """Goes on with these rows (any number, any order, repeats allowed)."""
        self.cache.reorder_cache(rows_b)
        self.mask_bq, self.position_b, self.logprobs_bv = self.mask_bq[rows_b], self.position_b[rows_b], self.logprobs_bv[rows_b]

    def _logprobs(self, hidden_bqh: Tensor) -> Tensor:
        return self.llm.logits(hidden_bqh[:, -1]).float().log_softmax(-1)


@torch.inference_mode()
def greedy_search(llm, vectors_bqh: Tensor, layout: Merged, max_tokens: list[int], conf: DecodeConf) -> list[Hypothesis]:
    """The most probable token each time. max_tokens: the limit of each row. Rows that have ended leave the batch."""
    stop = llm.stop_ids()
    done: dict[int, Hypothesis] = {}
    tokens: list[list[int]] = [[] for _ in max_tokens]
    scores = [0.0] * len(tokens)
    rows = list(range(len(tokens)))
    decoding = Decoding(llm, vectors_bqh, layout)
    while rows:
        best = decoding.logprobs_bv.max(-1)
        for row, token, score in zip(rows, best.indices.tolist(), best.values.tolist()):
            scores[row] += score
            if token in stop:
                done[row] = Hypothesis(tokens[row], scores[row], "end")
                continue
            tokens[row].append(token)
            if (cut := loop_start(tokens[row], conf.max_repeats)) is not None:
                done[row] = Hypothesis(tokens[row][:cut], scores[row], "repeat")
            elif len(tokens[row]) >= max_tokens[row]:
                done[row] = Hypothesis(tokens[row], scores[row], "length")
        kept = [place for place, row in enumerate(rows) if row not in done]
        if kept:
            if len(kept) < len(rows):
                decoding.select(torch.tensor(kept, device=vectors_bqh.device))
            rows = [rows[place] for place in kept]
            decoding.step(torch.tensor([tokens[row][-1] for row in rows], device=vectors_bqh.device))
        else:
            rows = []
    return [done[row] for row in range(len(tokens))]


@torch.inference_mode()
def beam_search(llm, vectors_bqh: Tensor, layout: Merged, max_tokens: list[int], conf: DecodeConf) -> list[Hypothesis]:
    """The best of conf.beam hypotheses by score / (tokens + 1) ** conf.length_penalty (the end token counts).

    A row ends at its limit, or when conf.beam hypotheses have ended and no running one can still overtake the best of them.
    """
    beam, stop = conf.beam, llm.stop_ids()
    decoding = Decoding(llm, vectors_bqh, layout)
    rows = list(range(len(max_tokens)))
    running: dict[int, list[tuple[float, list[int]]]] = {row: [(0.0, [])] for row in rows}
    ended: dict[int, list[Hypothesis]] = {row: [] for row in rows}

    def rank(hypothesis: Hypothesis) -> float:
        return hypothesis.score / (len(hypothesis.tokens) + 1) ** conf.length_penalty

    while rows:
        # 2K candidates a place are enough: at most K of the best ones can be the ends of hypotheses that are kept anyway.
        top = decoding.logprobs_bv.topk(min(2 * beam + len(stop), decoding.logprobs_bv.shape[-1]), dim=-1)
        values, indices = top.values.tolist(), top.indices.tolist()
        chosen_places: list[int] = []
        chosen_tokens: list[int] = []
        survivors, place = [], 0
        for row in rows:
            candidates = []
            for score, tokens in running[row]:
                candidates += [(score + v, place, tokens, t) for v, t in zip(values[place], indices[place])]
                place += 1
            candidates.sort(key=lambda candidate: -candidate[0])
            running[row], places = [], []
            for score, source, tokens, token in candidates:
                if len(running[row]) == beam:
                    break
                if token in stop:
                    ended[row].append(Hypothesis(tokens, score, "end"))
                    continue
                tokens = [*tokens, token]
                if (cut := loop_start(tokens, conf.max_repeats)) is not None:
                    ended[row].append(Hypothesis(tokens[:cut], score, "repeat"))
                elif len(tokens) >= max_tokens[row]:
                    ended[row].append(Hypothesis(tokens, score, "length"))
                else:
                    running[row].append((score, tokens))
                    places.append(source)
            ended[row] = sorted(ended[row], key=rank, reverse=True)[:beam]
            if _overtakes(running[row], ended[row], beam, max_tokens[row], conf.length_penalty, rank):
                survivors.append(row)
                chosen_places += places
                chosen_tokens += [tokens[-1] for _, tokens in running[row]]
        rows = survivors
        if rows:
            decoding.select(torch.tensor(chosen_places, device=vectors_bqh.device))
            decoding.step(torch.tensor(chosen_tokens, device=vectors_bqh.device))
    return [ended[row][0] for row in range(len(max_tokens))]


def _overtakes(running: list, ended: list[Hypothesis], beam: int, limit: int, penalty: float, rank) -> bool:
    """Whether a running hypothesis may still beat what has ended: log probabilities only fall, lengths only grow."""
    if not running or len(ended) < beam:
        return bool(running)
    longest = limit + 1 if penalty > 0 else len(running[0][1]) + 1
    return max(score for score, _ in running) / longest**penalty > rank(ended[0])
