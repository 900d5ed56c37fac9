"""One-pass beam search over what the LLM says next and what CTC has heard: nothing unheard is written, nothing heard is skipped.

A hypothesis g scores (1 - w) log p_LLM(g) + w log p_CTC(g...), the second being the probability of all texts that begin with g. The
LLM speaks in tokens and CTC in units (steermoe.units): a token is heard as the units that spell it.

Shape legend: B utterances, R running hypotheses, P places of units (steermoe.decode.ctc_prefix), V the LLM's vocabulary.
Source: Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section III-B; a word that is
scored letter by letter: Hori et al. 2017, "Multi-level Language Modeling and Decoding for Open Vocabulary End-to-End Speech
Recognition".
"""

from __future__ import annotations

import functools
import heapq
from typing import NamedTuple

import torch
from torch import Tensor

from steermoe.config import DecodeConf
from steermoe.decode.ctc_prefix import NEVER, Heard, Prefixes
from steermoe.decode.search import Decoding, Hypothesis
from steermoe.merge import Merged

PER_UNIT = 0.7  # nat that an LLM needs for a byte of text, about: what is ahead in the audio is ahead in the ranking of a beam
HOPELESS = 12.0  # nat below the best next unit of a hypothesis: a beginning that is heard so badly is not followed
WIDTH = 16  # beginnings of a hypothesis's next token that are followed


class Running(NamedTuple):
    """A hypothesis one token longer: the row it continues, the places that spell the token, the LLM's score, its tokens, and how
    many units spell them all.
    """

    source: int
    places: tuple[int, ...]
    written: float
    tokens: list[int]
    spelled: int


class Trie(NamedTuple):
    """The LLM's tokens by their spelling. children: of every node, unit -> node; tokens: those that end there. Node 0 is the root."""

    children: list[dict[int, int]]
    tokens: list[list[int]]


@functools.lru_cache(maxsize=4)
def spelling_trie(units, vocabulary: int) -> Trie:
    """Of all tokens below `vocabulary` that say anything."""
    trie = Trie([{}], [[]])
    for token in range(vocabulary):
        node = 0
        for unit in units.units([token]):
            if unit not in trie.children[node]:
                trie.children[node][unit] = len(trie.children)
                trie.children.append({})
                trie.tokens.append([])
            node = trie.children[node][unit]
        if node:
            trie.tokens[node].append(token)
    return trie


class Next(NamedTuple):
    """A token that may be heard after a row of prefixes, the places that spell it, log p_CTC of the row and the token."""

    source: int
    token: int
    places: tuple[int, ...]
    score: float


def next_tokens(prefixes: Prefixes, extensions_rp: Tensor, trie: Trie) -> list[Next]:
    """All tokens whose spelling is heard, found by walking down the trie where CTC goes along. extensions_rp: of prefixes."""
    floor = (extensions_rp.max(1).values - HOPELESS).tolist()
    units = prefixes.heard.units_bp.tolist()
    rows, device = prefixes.rows_r.tolist(), prefixes.rows_r.device
    found: list[Next] = []
    frontier = [(source, source, 0, ()) for source in range(len(rows))]  # row of prefixes, row of state, node, places
    state, table = prefixes, extensions_rp.tolist()
    while frontier:
        steps = [
            (source, at, child, (*places, place))
            for source, at, node, places in frontier
            for place, unit in enumerate(units[rows[source]], 1)
            if (child := trie.children[node].get(unit)) is not None
        ]
        if not steps:
            break
        if state is prefixes:
            scores = [table[source][places[-1]] for source, _, _, places in steps]
        else:
            _, at, _, places = zip(*steps)
            last = [one[-1] for one in places]
            scores = state.extension(torch.tensor(at, device=device), torch.tensor(last, device=device)).tolist()
        reached: dict[int, list] = {}
        for score, (source, at, node, places) in zip(scores, steps):
            if score >= floor[source]:
                found += [Next(source, token, places, score) for token in trie.tokens[node]]
                if trie.children[node]:
                    reached.setdefault(source, []).append((score, source, at, node, places))
        kept = [one for row in reached.values() for one in heapq.nlargest(WIDTH, row)]
        if not kept:
            break
        _, sources, at, nodes, places = zip(*kept)
        state = state.extended(torch.tensor(at, device=device), torch.tensor([one[-1] for one in places], device=device))
        frontier = list(zip(sources, range(len(kept)), nodes, places))
    return found


def extended_by(prefixes: Prefixes, sources: list[int], spellings: list[tuple[int, ...]]) -> Prefixes:
    """These rows, each longer by a whole token."""
    device = prefixes.rows_r.device
    longer = prefixes.select(torch.tensor(sources, device=device))
    for depth in range(max(map(len, spellings))):
        going = [row for row, places in enumerate(spellings) if len(places) > depth]
        going_s, places_s = torch.tensor(going, device=device), torch.tensor([spellings[row][depth] for row in going], device=device)
        longer = longer.with_rows(going_s, longer.extended(going_s, places_s))
    return longer


@torch.inference_mode()
def joint_search(
    llm, vectors_bqh: Tensor, layout: Merged, heard: Heard, units, max_tokens: list[int], conf: DecodeConf
) -> list[Hypothesis]:
    """The best of conf.beam hypotheses by (1 - w) LLM + w CTC, w = conf.ctc_weight. No length penalty: CTC knows the length."""
    beam, weight, stop = conf.beam, conf.ctc_weight, sorted(llm.stop_ids())
    if conf.context:  # lines of text, each ended by the next one's beginning
        stop += llm.encode("\n")
    decoding, prefixes = Decoding(llm, vectors_bqh, layout), Prefixes.empty(heard)
    trie = spelling_trie(units, decoding.logprobs_bv.shape[-1])
    device, ahead = heard.units_bp.device, (1 - weight) * PER_UNIT * units.spells
    rows = list(range(len(max_tokens)))
    running = {row: [Running(row, (), 0.0, [], 0)] for row in rows}
    best: dict[int, Hypothesis] = {row: Hypothesis([], -torch.inf, "end") for row in rows}
    while rows:
        batch = [(row, one) for row in rows for one in running[row]]
        llm_rv = decoding.logprobs_bv + torch.tensor([one.written for _, one in batch], device=device)[:, None]
        ends = ((1 - weight) * llm_rv[:, stop].logsumexp(-1) + weight * prefixes.ends()).tolist()
        for (row, one), end in zip(batch, ends):
            if end > best[row].score:
                best[row] = Hypothesis(one.tokens, end, "end")
        found = next_tokens(prefixes, prefixes.extensions(), trie)
        longer: dict[int, list[tuple[float, Running]]] = {row: [] for row in rows}
        if found:
            written_n = llm_rv[torch.tensor([one.source for one in found]), torch.tensor([one.token for one in found])]
            for one, written in zip(found, written_n.tolist()):
                row, before = batch[one.source]
                total = (1 - weight) * written + weight * one.score
                # Scores only fall from here: what is below a finished hypothesis stays below it.
                if total > max(best[row].score, NEVER / 10 * weight):
                    spelled = before.spelled + len(one.places)
                    next_one = Running(one.source, one.places, written, [*before.tokens, one.token], spelled)
                    longer[row].append((total + ahead * spelled, next_one))
        for row in rows:
            running[row] = [one for _, one in heapq.nlargest(beam, longer[row], key=lambda pair: pair[0])]
            if running[row] and len(running[row][0].tokens) >= max_tokens[row]:
                if best[row].score == -torch.inf:
                    best[row] = Hypothesis(running[row][0].tokens, running[row][0].written, "length")
                running[row] = []
        rows = [row for row in rows if running[row]]
        kept = [one for row in rows for one in running[row]]
        if kept:
            decoding.select(torch.tensor([one.source for one in kept], device=device))
            decoding.step(torch.tensor([one.tokens[-1] for one in kept], device=device))
            prefixes = extended_by(prefixes, [one.source for one in kept], [one.places for one in kept])
    return [best[row] for row in range(len(max_tokens))]
