"""One-pass beam search over what the LLM says next and what CTC has heard: nothing unheard is written, nothing heard is skipped.

A hypothesis g scores (1 - w) log p_LLM(g) + w log p_CTC(g...), the second being the probability of all texts that begin with g. The
LLM speaks in tokens and CTC in units (steermoe.units): a token is heard as the units that spell it. Hypotheses compete with those
that spell as many units, not as many tokens: what has said more of the audio has paid more for it. What is written but not heard,
case and punctuation, is the LLM's alone (`decode_conf.unheard`): it knows far better what comes next in text as people write it.

Shape legend: B utterances, R running hypotheses, P places of units (steermoe.decode.ctc_prefix), V the LLM's vocabulary.
Source: Watanabe et al. 2017, "Hybrid CTC/Attention Architecture for End-to-End Speech Recognition", section III-B; a word that is
scored letter by letter: Hori et al. 2017, "Multi-level Language Modeling and Decoding for Open Vocabulary End-to-End Speech
Recognition"; look-ahead: Ortmanns et al. 1996, "Language-Model Look-Ahead for Large Vocabulary Continuous Speech Recognition"; a stack
for every length: Koehn 2004, "Pharaoh: A Beam Search Decoder for Phrase-Based Statistical Machine Translation".
"""

from __future__ import annotations

import functools
import heapq
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from steermoe.config import DecodeConf
from steermoe.ctc import BLANK
from steermoe.decode.branches import Branches
from steermoe.decode.ctc_prefix import NEVER, Heard, Prefixes
from steermoe.decode.search import Hypothesis
from steermoe.merge import Merged

PER_UNIT = 1.2  # nat that an LLM needs for a byte of text, about: so much a hypothesis gains by being a byte further on
GAP = 3.0  # nat behind the best, so compared, at which a hypothesis is dropped
HOPELESS = 14.0  # nat below the best next unit of a hypothesis: a beginning that is heard so badly is not followed
WIDTH = 8  # beginnings of a hypothesis's next token that are followed
MARKS = 3  # punctuation marks that are tried behind a hypothesis


@dataclass
class Running:
    """A hypothesis. total: its score; written: the LLM's share; branch: the LLM's places of all tokens but the last; heard: what CTC hears of
    it, as a prefix's number and the place of one unit more (BLANK behind a mark: no more); length: units.
    """

    total: float
    written: float
    tokens: tuple[int, ...]
    branch: Tensor
    heard: tuple[int, int]
    length: int


class Trie(NamedTuple):
    """The LLM's tokens by what is heard of them. Node 0 is the root: there end those of which nothing is heard, punctuation (marks).

    keys: int64, ascending, of a node and a unit (`key`); child_k: the node that these lead to. tokens_nt: the tokens that end at a node,
    -1 behind them. order: all tokens, those at and below a node in a row, order[begin_n : end_n]. inner_n: whether there are any below.
    """

    units: int
    marks: list[int]
    keys: np.ndarray
    child_k: np.ndarray
    tokens_nt: np.ndarray
    order: np.ndarray
    begin_n: np.ndarray
    end_n: np.ndarray
    inner_n: np.ndarray

    def children(self, nodes_n: np.ndarray, units_n: np.ndarray) -> np.ndarray:
        """The node behind a node and a unit; 0 where there is none, as behind the unit -1."""
        wanted_n = nodes_n * (self.units + 1) + units_n + 1
        at_n = np.minimum(np.searchsorted(self.keys, wanted_n), len(self.keys) - 1)
        return np.where(self.keys[at_n] == wanted_n, self.child_k[at_n], 0)

    def likeliest(self, nodes_n: np.ndarray, rows_n: np.ndarray, logprobs_rv: np.ndarray) -> np.ndarray:
        """The best log probability of a row among the tokens at and below a node."""
        begin_n, counts_n = self.begin_n[nodes_n], self.end_n[nodes_n] - self.begin_n[nodes_n]
        ends_n = counts_n.cumsum()
        places = np.arange(counts_n.sum()) + np.repeat(begin_n - ends_n + counts_n, counts_n)
        return np.maximum.reduceat(logprobs_rv[np.repeat(rows_n, counts_n), self.order[places]], ends_n - counts_n)


@functools.lru_cache(maxsize=4)
def spelling_trie(units, vocabulary: int, unheard: str = "") -> Trie:
    """Of all tokens below `vocabulary` that say anything, and of those that are of characters of `unheard` only."""
    children: list[dict[int, int]] = [{}]
    tokens: list[list[int]] = [[]]
    for token in range(vocabulary):
        node, heard = 0, units.heard(token, unheard)
        for unit in heard or []:
            if unit not in children[node]:
                children[node][unit] = len(children)
                children.append({})
                tokens.append([])
            node = children[node][unit]
        if heard is not None:
            tokens[node].append(token)
    order: list[int] = []
    begin_n, end_n = np.zeros((2, len(tokens)), dtype=np.int64)

    def lay_out(node: int) -> None:
        begin_n[node] = len(order)
        order.extend(tokens[node])
        for child in children[node].values():
            lay_out(child)
        end_n[node] = len(order)

    lay_out(0)
    count = 1 + max(unit for below in children for unit in below)
    edges = sorted((node * (count + 1) + unit + 1, child) for node, below in enumerate(children) for unit, child in below.items())
    marks, tokens[0] = tokens[0], []
    tokens_nt = np.full((len(tokens), max(map(len, tokens))), -1)
    for node, ending in enumerate(tokens):
        tokens_nt[node, : len(ending)] = ending
    keys, child_k = np.array(edges, dtype=np.int64).T
    inner_n = np.array([len(below) > 0 for below in children])
    return Trie(count, marks, keys, child_k, tokens_nt, np.array(order), begin_n, end_n, inner_n)


class Next(NamedTuple):
    """Tokens that may be heard after hypotheses (`sources`): Running's `heard` and `length` with them, log p_CTC of what is then heard and
    log p_LLM of the token alone.
    """

    sources_n: np.ndarray
    tokens_n: np.ndarray
    numbers_n: np.ndarray
    places_n: np.ndarray
    lens_n: np.ndarray
    heard_n: np.ndarray
    written_n: np.ndarray


def next_tokens(prefixes: Prefixes, numbers: list[int], rows: list[int], trie: Trie, logprobs_rv: Tensor, weight: float) -> Next:
    """The tokens whose spelling is heard after these prefixes of these utterances, of those with one spelling the likeliest. They are found
    by walking down the trie where CTC goes along; of the beginnings of a row those WIDTH are followed that are best by CTC and the
    likeliest token that so begins, after logprobs_rv (language model look-ahead).
    """
    logprobs_rv, rows_r = logprobs_rv.cpu().numpy(), np.array(rows)
    units_bp = np.pad(prefixes.heard.units_bp.numpy(), ((0, 0), (1, 0)), constant_values=-1)
    floor_r = np.array([prefixes.scores[number].max() for number in numbers]) - HOPELESS
    lens_r = np.array([prefixes.lens[number] for number in numbers])
    sources_f, nodes_f, numbers_f = np.arange(len(rows)), np.zeros(len(rows), dtype=np.int64), np.array(numbers)
    levels: list[tuple[np.ndarray, ...]] = []
    while len(sources_f):
        scores_fp = np.stack([prefixes.scores[number] for number in numbers_f.tolist()])
        at_n, places_n = np.nonzero(scores_fp >= floor_r[sources_f, None])
        nodes_n = trie.children(nodes_f[at_n], units_bp[rows_r[sources_f[at_n]], places_n])
        at_n, places_n, nodes_n = (each_n[nodes_n > 0] for each_n in (at_n, places_n, nodes_n))
        sources_n, numbers_n, scores_n = sources_f[at_n], numbers_f[at_n], scores_fp[at_n, places_n]
        levels.append((sources_n, nodes_n, numbers_n, places_n, lens_r[sources_n] + len(levels) + 1, scores_n))
        sources_n, nodes_n, numbers_n, places_n, scores_n = (
            each_n[trie.inner_n[nodes_n]] for each_n in (sources_n, nodes_n, numbers_n, places_n, scores_n)
        )
        if not len(nodes_n):
            break
        value_n = weight * scores_n + (1 - weight) * trie.likeliest(nodes_n, sources_n, logprobs_rv)
        kept = best_of_each(sources_n, value_n, WIDTH)
        sources_f, nodes_f = sources_n[kept], nodes_n[kept]
        numbers_f = np.array(prefixes.longer(numbers_n[kept].tolist(), places_n[kept].tolist()))
    sources_n, nodes_n, numbers_n, places_n, lens_n, scores_n = (np.concatenate(each) for each in zip(*levels))
    tokens_nt = trie.tokens_nt[nodes_n]
    written_nt = np.where(tokens_nt < 0, -np.inf, logprobs_rv[sources_n[:, None], tokens_nt])
    tokens_n, written_n = tokens_nt[np.arange(len(nodes_n)), written_nt.argmax(1)], written_nt.max(1)
    found = Next(sources_n, tokens_n, numbers_n, places_n, lens_n, scores_n, written_n)
    return Next(*(each_n[tokens_nt[:, 0] >= 0] for each_n in found))


def best_of_each(groups_n: np.ndarray, values_n: np.ndarray, count: int) -> np.ndarray:
    """The numbers of the `count` highest values of each group."""
    order_n = np.lexsort((-values_n, groups_n))
    ordered_n = groups_n[order_n]
    return order_n[np.arange(len(order_n)) - np.searchsorted(ordered_n, ordered_n) < count]


def survivors(stack: list[Running], others: list[list[Running]], least: float, beam: int, ahead: float) -> list[Running]:
    """The best `beam` of a stack: of one text the best way to write it, and none that is GAP behind, here or in stacks further on."""
    by_text: dict[tuple, Running] = {}
    for one in sorted(stack, key=lambda one: -one.total):
        by_text.setdefault((one.heard, one.tokens[-1:] if one.heard[1] == BLANK else None), one)
    kept = heapq.nlargest(beam, by_text.values(), key=lambda one: one.total)
    leading = max([kept[0].total, *(one.total + ahead * (one.length - stack[0].length) for other in others for one in other)])
    return [one for one in kept if one.total > max(least, leading - GAP)]


def leading(rows_n: np.ndarray, lens_n: np.ndarray, ahead_n: np.ndarray) -> np.ndarray:
    """The numbers of those that are not GAP behind another one of their row that is as long or longer: `survivors` would drop them."""
    kept = [np.zeros(0, dtype=np.int64)]
    for row in np.unique(rows_n):
        here = np.flatnonzero(rows_n == row)
        here = here[np.argsort(-lens_n[here], kind="stable")]
        kept.append(here[ahead_n[here] > np.maximum.accumulate(ahead_n[here]) - GAP])
    return np.sort(np.concatenate(kept))


def ends_of_lines(llm, units, unheard: str) -> dict[int, list[int]]:
    """The tokens that end a line of text, and the marks that each writes there: Qwen's vocabulary has "?" and the line's end in one."""
    ends: dict[int, list[int]] = {token: [] for token in llm.encode("\n")}
    for token, written in units.spelling.items() if units.spells and unheard else ():
        marks = written.strip()
        if marks and written.endswith(b"\n") and not units.said(marks, unheard):
            ends[token] = llm.encode(marks.decode())
    return ends


@torch.inference_mode()
def joint_search(
    llm, vectors_bqh: Tensor, layout: Merged, heard: Heard, units, max_tokens: list[int], conf: DecodeConf
) -> list[Hypothesis]:
    """The best by (1 - w) LLM + w CTC, w = conf.ctc_weight, of conf.beam hypotheses of every number of units. No length penalty: CTC
    knows the length.
    """
    weight, line_ends = conf.ctc_weight, ends_of_lines(llm, units, conf.unheard) if conf.context else {}
    stop = [*sorted(llm.stop_ids()), *line_ends]
    llm_branches, prefixes = Branches(llm, vectors_bqh, layout), Prefixes(heard)
    trie = spelling_trie(units, llm_branches.logprobs_bv.shape[-1], conf.unheard)
    marks = torch.tensor(trie.marks, dtype=torch.long, device=llm_branches.logprobs_bv.device)
    ahead = (1 - weight) * PER_UNIT * units.spells
    best = [Hypothesis([], -torch.inf, "end") for _ in max_tokens]
    longest: dict[int, Running] = {}
    rows = list(range(len(max_tokens)))
    batch = [Running(0.0, 0.0, (), root, (row, BLANK), 0) for row, root in enumerate(llm_branches.roots)]
    stacks: list[dict[int, list[Running]]] = [{} for _ in max_tokens]  # of every utterance: number of units -> hypotheses
    branches, logprobs_rv = llm_branches.roots, llm_branches.logprobs_bv
    while batch:
        numbers = prefixes.longer(*zip(*(one.heard for one in batch)))
        written_r = np.array([one.written for one in batch])
        ends = (1 - weight) * (written_r + logprobs_rv[:, stop].logsumexp(-1).cpu().numpy()) + weight * prefixes.ends(numbers).numpy()
        for source, (row, one, end) in enumerate(zip(rows, batch, ends.tolist())):
            if end > best[row].score:
                likeliest = stop[int(logprobs_rv[source, stop].argmax())]
                best[row] = Hypothesis([*one.tokens, *line_ends.get(likeliest, [])], end, "end")
        for source, (row, one) in enumerate(zip(rows, batch) if len(marks) else []):
            if one.heard[1] != BLANK:  # one mark, behind what has been heard
                top = logprobs_rv[source, marks].topk(min(MARKS, len(marks)))
                for token, logprob in zip(marks[top.indices].tolist(), top.values.tolist()):
                    total, tokens = one.total + (1 - weight) * logprob, (*one.tokens, token)
                    if total > best[row].score and len(tokens) < max_tokens[row]:
                        marked = Running(total, one.written + logprob, tokens, branches[source], (numbers[source], BLANK), one.length)
                        stacks[row].setdefault(one.length, []).append(marked)
        found = next_tokens(prefixes, numbers, rows, trie, logprobs_rv, weight)
        written_n = written_r[found.sources_n] + found.written_n
        total_n = (1 - weight) * written_n + weight * found.heard_n
        for at in leading(np.array(rows)[found.sources_n], found.lens_n, total_n + ahead * found.lens_n).tolist():
            source, token, number, place, length, _, _ = (each_n[at].item() for each_n in found)
            row, total, tokens = rows[source], float(total_n[at]), (*batch[source].tokens, token)
            # Scores only fall from here: what is below a finished hypothesis stays below it.
            if total > max(best[row].score, NEVER / 10 * weight):
                longer = Running(total, float(written_n[at]), tokens, branches[source], (number, place), length)
                if len(tokens) < max_tokens[row]:
                    stacks[row].setdefault(length, []).append(longer)
                elif row not in longest or total > longest[row].total:
                    longest[row] = longer
        rows, batch = [], []
        for row, of_row in enumerate(stacks):
            kept: list[Running] = []
            while of_row and not kept:
                stack = of_row.pop(min(of_row))
                kept = survivors(stack, list(of_row.values()), best[row].score, conf.beam, ahead)
            rows, batch = rows + [row] * len(kept), batch + kept
        if batch:
            branches, logprobs_rv = llm_branches.step([one.branch for one in batch], [one.tokens[-1] for one in batch])
    for row, one in longest.items():
        if best[row].score == -torch.inf:
            best[row] = Hypothesis(list(one.tokens), one.written, "length")
    return best
