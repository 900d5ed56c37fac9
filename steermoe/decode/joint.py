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

import torch
from torch import Tensor

from steermoe.config import DecodeConf
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
    """A hypothesis. total: its score; written: the LLM's share; branch: the LLM's places of all tokens but the last; prefix: of one row,
    for all tokens but the last, which `places` spell (none: a mark that is not heard); spelled: the places of all of them.
    """

    total: float
    written: float
    tokens: tuple[int, ...]
    branch: Tensor
    prefix: tuple[Prefixes, int]
    places: tuple[int, ...]
    spelled: tuple[int, ...]


class Trie(NamedTuple):
    """The LLM's tokens by what is heard of them. children: of every node, unit -> node; tokens: those that end there. Node 0 is the root:
    there end those of which nothing is heard, punctuation. order: all tokens, those at and below a node in a row: order[spans[node]].
    """

    children: list[dict[int, int]]
    tokens: list[list[int]]
    order: Tensor
    spans: list[slice]


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
    spans = [slice(0)] * len(tokens)

    def lay_out(node: int) -> None:
        begin = len(order)
        order.extend(tokens[node])
        for child in children[node].values():
            lay_out(child)
        spans[node] = slice(begin, len(order))

    lay_out(0)
    return Trie(children, tokens, torch.tensor(order, dtype=torch.long), spans)


class Next(NamedTuple):
    """A token that may be heard after a row of prefixes, the places that spell it, log p_CTC of the row and the token."""

    source: int
    token: int
    places: tuple[int, ...]
    score: float


def next_tokens(prefixes: Prefixes, trie: Trie, logprobs_rv: Tensor, weight: float) -> list[Next]:
    """The tokens whose spelling is heard, found by walking down the trie where CTC goes along. Of the beginnings of a row those WIDTH are
    followed that are best by CTC and the likeliest token that so begins, after logprobs_rv (language model look-ahead).
    """
    likely_rk = logprobs_rv[:, trie.order.to(logprobs_rv.device)].cpu().numpy()
    rows = prefixes.rows_r.tolist()
    place_of = [{unit: place for place, unit in enumerate(units, 1)} for units in prefixes.heard.units_bp.tolist()]
    found: list[Next] = []
    frontier = [(source, 0, ()) for source in range(len(rows))]  # row of prefixes, node, places
    state, floor = prefixes, None
    while frontier:
        extensions_rp = state.extensions()
        if floor is None:
            floor = (extensions_rp.max(1).values - HOPELESS).tolist()
        reached: dict[int, list] = {}
        for at, ((source, node, places), scores) in enumerate(zip(frontier, extensions_rp.tolist())):
            known = place_of[rows[source]]
            for unit, child in trie.children[node].items():
                place = known.get(unit)
                if place is not None and scores[place] >= floor[source]:
                    longer = (*places, place)
                    found += [Next(source, token, longer, scores[place]) for token in trie.tokens[child]]
                    if trie.children[child]:
                        value = weight * scores[place] + (1 - weight) * likely_rk[source, trie.spans[child]].max()
                        reached.setdefault(source, []).append((value, source, at, child, longer))
        kept = [one for row in reached.values() for one in heapq.nlargest(WIDTH, row)]
        if not kept:
            break
        _, sources, at, nodes, places = zip(*kept)
        state = state.select(torch.tensor(at)).extended(torch.tensor([one[-1] for one in places]))
        frontier = list(zip(sources, nodes, places))
    return found


def prefixes_of(running: list[Running]) -> Prefixes:
    """Of all their tokens."""
    by_source: dict[int, list[Running]] = {}
    for one in running:
        by_source.setdefault(id(one.prefix[0]), []).append(one)
    grouped = [one for group in by_source.values() for one in group]
    state = Prefixes.joined([group[0].prefix[0].select(torch.tensor([one.prefix[1] for one in group])) for group in by_source.values()])
    order = sorted(range(len(grouped)), key=lambda at: -len(grouped[at].places))
    state, deepest = state.select(torch.tensor(order)), [grouped[at] for at in order]
    for depth in range(len(deepest[0].places)):
        places = [one.places[depth] for one in deepest if len(one.places) > depth]
        begun, ended = torch.arange(len(deepest)).split([len(places), len(deepest) - len(places)])
        state = Prefixes.joined([state.select(begun).extended(torch.tensor(places)), state.select(ended)])
    place_of = {id(one): at for at, one in enumerate(deepest)}
    return state.select(torch.tensor([place_of[id(one)] for one in running]))


def survivors(stack: list[Running], others: list[list[Running]], least: float, beam: int, ahead: float) -> list[Running]:
    """The best `beam` of a stack: of one text the best way to write it, and none that is GAP behind, here or in stacks further on."""
    by_text: dict[tuple, Running] = {}
    for one in sorted(stack, key=lambda one: -one.total):
        by_text.setdefault((one.spelled, None if one.places else one.tokens[-1:]), one)
    kept = heapq.nlargest(beam, by_text.values(), key=lambda one: one.total)
    here = len(stack[0].spelled)
    leading = max([kept[0].total, *(one.total + ahead * (len(one.spelled) - here) for other in others for one in other)])
    return [one for one in kept if one.total > max(least, leading - GAP)]


def leading(rows_n: Tensor, lens_n: Tensor, ahead_n: Tensor) -> Tensor:
    """The numbers of those that are not GAP behind another one of their row that is as long or longer: `survivors` would drop them."""
    kept = []
    for row in rows_n.unique():
        here = (rows_n == row).nonzero()[:, 0]
        here = here[lens_n[here].argsort(descending=True, stable=True)]
        kept.append(here[ahead_n[here] > ahead_n[here].cummax(0).values - GAP])
    return torch.cat(kept).sort().values


@torch.inference_mode()
def joint_search(
    llm, vectors_bqh: Tensor, layout: Merged, heard: Heard, units, max_tokens: list[int], conf: DecodeConf
) -> list[Hypothesis]:
    """The best by (1 - w) LLM + w CTC, w = conf.ctc_weight, of conf.beam hypotheses of every number of units. No length penalty: CTC
    knows the length.
    """
    weight, stop = conf.ctc_weight, sorted(llm.stop_ids())
    if conf.context:  # lines of text, each ended by the next one's beginning
        stop += llm.encode("\n")
    llm_branches, nothing = Branches(llm, vectors_bqh, layout), Prefixes.empty(heard)
    trie = spelling_trie(units, llm_branches.logprobs_bv.shape[-1], conf.unheard)
    marks = torch.tensor(trie.tokens[0], dtype=torch.long, device=llm_branches.logprobs_bv.device)
    ahead = (1 - weight) * PER_UNIT * units.spells
    best = [Hypothesis([], -torch.inf, "end") for _ in max_tokens]
    longest: dict[int, Running] = {}
    batch = [(row, Running(0.0, 0.0, (), root, (nothing, row), (), ())) for row, root in enumerate(llm_branches.roots)]
    stacks: list[dict[int, list[Running]]] = [{} for _ in max_tokens]  # of every utterance: number of units -> hypotheses
    branches, logprobs_rv, prefixes = llm_branches.roots, llm_branches.logprobs_bv, nothing
    while batch:
        written_r1 = torch.tensor([one.written for _, one in batch], device=logprobs_rv.device)[:, None]
        llm_rv = logprobs_rv + written_r1
        ends = ((1 - weight) * llm_rv[:, stop].logsumexp(-1).cpu() + weight * prefixes.ends()).tolist()
        for (row, one), end in zip(batch, ends):
            if end > best[row].score:
                best[row] = Hypothesis(list(one.tokens), end, "end")
        for source, (row, one) in enumerate(batch if len(marks) else []):
            if one.places:  # one mark, behind what has been heard
                top = logprobs_rv[source, marks].topk(min(MARKS, len(marks)))
                for token, logprob in zip(marks[top.indices].tolist(), top.values.tolist()):
                    total, tokens = one.total + (1 - weight) * logprob, (*one.tokens, token)
                    if total > best[row].score and len(tokens) < max_tokens[row]:
                        marked = Running(total, one.written + logprob, tokens, branches[source], (prefixes, source), (), one.spelled)
                        stacks[row].setdefault(len(one.spelled), []).append(marked)
        found = next_tokens(prefixes, trie, logprobs_rv, weight)
        if found:
            written_n = llm_rv[torch.tensor([one.source for one in found]), torch.tensor([one.token for one in found])].cpu()
            total_n = (1 - weight) * written_n + weight * torch.tensor([one.score for one in found])
            lens_n = torch.tensor([len(batch[one.source][1].spelled) + len(one.places) for one in found])
            for number in leading(torch.tensor([batch[one.source][0] for one in found]), lens_n, total_n + ahead * lens_n).tolist():
                one, written, total = found[number], float(written_n[number]), float(total_n[number])
                row, before = batch[one.source]
                # Scores only fall from here: what is below a finished hypothesis stays below it.
                if total > max(best[row].score, NEVER / 10 * weight):
                    tokens, spelled = (*before.tokens, one.token), before.spelled + one.places
                    longer = Running(total, written, tokens, branches[one.source], (prefixes, one.source), one.places, spelled)
                    if len(tokens) < max_tokens[row]:
                        stacks[row].setdefault(len(spelled), []).append(longer)
                    elif row not in longest or total > longest[row].total:
                        longest[row] = longer
        batch = []
        while not batch and any(stacks):
            shortest = min(min(of_row) for of_row in stacks if of_row)
            for row, of_row in enumerate(stacks):
                if stack := of_row.pop(shortest, None):
                    kept = survivors(stack, list(of_row.values()), best[row].score, conf.beam, ahead)
                    batch += [(row, one) for one in kept]
        if batch:
            running = [one for _, one in batch]
            branches, logprobs_rv = llm_branches.step([one.branch for one in running], [one.tokens[-1] for one in running])
            prefixes = prefixes_of(running)
    for row, one in longest.items():
        if best[row].score == -torch.inf:
            best[row] = Hypothesis(list(one.tokens), one.written, "length")
    return best
