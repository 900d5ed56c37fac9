"""Alignment of texts that hold more than plain words: alternations `{ a / b c / @ }`, null words `@`, optional words, fragments.

A text becomes a network of arcs (words) between nodes; every alternative is a branch. Ties between equally cheap alignments are
decided by the order of arcs at their nodes, so the networks are built in the order in which sclite builds them.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Callable, Iterator

NULL = b"@"


@dataclass(eq=False)
class Word:
    """value: as it is shown. text: as it is compared. optional: deleting it is no error. fragment: a part of it is enough."""

    value: bytes
    text: bytes
    optional: bool = False
    fragment: bool = False


@dataclass(frozen=True)
class Markup:
    """optional: `(word)` may be left out (sclite -D). fragments: `wor-` matches any word that begins so (sclite -F).
    split: a word's characters, or None for words."""

    optional: bool = False
    fragments: bool = False
    split: Callable[[bytes], list[bytes]] | None = None


class Node:
    def __init__(self):
        self.into: list[Arc] = []
        self.out: list[Arc] = []


@dataclass(eq=False)
class Arc:
    word: Word | None
    start: Node
    stop: Node


class Network:
    """Starts with one node; `stop` is None as long as there is no arc."""

    def __init__(self):
        self.start = Node()
        self.stop: Node | None = None

    def append(self, word: Word) -> None:
        if self.stop is None:
            last, self.stop = self.start, Node()
        else:
            last, self.stop = self.stop, Node()
        arc = Arc(word, last, self.stop)
        last.out.append(arc)
        self.stop.into.append(arc)

    def merge(self, start: Node, stop: Node) -> None:
        """Lets this network run from `start` to `stop` of another one, behind the arcs that are there."""
        for arc in self.start.out:
            arc.start = start
        for arc in self.stop.into:
            arc.stop = stop
        start.out += self.start.out
        stop.into += self.stop.into

    def replace(self, arc: Arc, other: "Network") -> None:
        other.merge(arc.start, arc.stop)
        arc.start.out.remove(arc)
        arc.stop.into.remove(arc)

    def arcs_depth_first(self) -> Iterator[Arc]:
        """Arcs for an operation that may replace the arc it is given."""
        seen, fringe = {id(self.start)}, [self.start]
        while fringe:
            node = fringe.pop()
            for arc in node.out:
                if id(arc.stop) not in seen:
                    seen.add(id(arc.stop))
                    fringe.append(arc.stop)
            yield from list(node.out)

    def arcs_in_order(self) -> list[Arc]:
        """Arcs so that all arcs into a node come before those out of it."""
        waiting: dict[int, int] = {}
        fringe, arcs = [self.start], []
        for node in fringe:
            for arc in node.out:
                arcs.append(arc)
                left = waiting.get(id(arc.stop), len(arc.stop.into)) - 1
                waiting[id(arc.stop)] = left
                if left == 0:
                    fringe.append(arc.stop)
        return arcs


def is_balanced(text: bytes) -> bool:
    """Whether braces can be read as markup: each `{` begins a word and is closed, and no alternation is empty."""
    depth, filled, closed_at = 0, [True], -1
    for position, byte in enumerate(text):
        if byte == ord("{"):
            before = text[position - 1 : position]
            if before and not (before.isspace() or closed_at == position - 1 or (depth and before in b"{/")):
                return False
            depth += 1
            filled.append(False)
        elif byte == ord("}"):
            if depth:
                if not filled.pop():
                    return False
                depth, filled[-1], closed_at = depth - 1, True, position
        elif byte not in b"/ \t\n\r\v\f":
            filled[-1] = True
    return depth == 0


def plain_value(token: bytes) -> bytes:
    """What sclite keeps of a word: no `;tag`, no backslash, no `*` at the end."""
    if b";" in token or b"\\" in token:
        stop = token.find(b";")
        while stop > 0 and token[stop - 1 : stop] == b"\\":
            stop = token.find(b";", stop + 1)
        token = (token if stop < 0 else token[:stop]).replace(b"\\", b"")
    return token[:-1] if len(token) > 1 and token.endswith(b"*") else token


def _tokens(text: bytes) -> Iterator[bytes]:
    position, end = 0, len(text)
    while position < end:
        if text[position : position + 1].isspace():
            position += 1
            continue
        start = position
        if text[position] == ord("{"):
            depth = 0
            while position < end:
                depth += {ord("{"): 1, ord("}"): -1}.get(text[position], 0)
                position += 1
                if depth == 0:
                    break
        else:
            while position < end and not text[position : position + 1].isspace():
                position += 1
        yield text[start:position]


def _alternatives(text: bytes) -> Iterator[bytes]:
    """The inside of an alternation, cut at the slashes of the outer level."""
    position, end = 0, len(text)
    while True:
        while position < end and (text[position : position + 1].isspace() or text[position] == ord("/")):
            position += 1
        if position >= end:
            return
        start, depth = position, 0
        while True:
            depth += {ord("{"): 1, ord("}"): -1}.get(text[position], 0)
            position += 1
            if position >= end or (depth <= 0 and text[position] in b"/}"):
                break
        yield text[start:position]


def parse(text: bytes) -> Network:
    """The network of a balanced text."""
    network = Network()
    for token in _tokens(text):
        value = token if token.startswith(b"{") else plain_value(token)
        network.append(Word(value, value))
    for arc in network.arcs_depth_first():
        if b"{" in arc.word.value:
            inside = arc.word.value[1:]
            closing = inside.rfind(b"}")
            branches = [parse(part) for part in _alternatives(inside[:closing] if closing >= 0 else inside)]
            for branch in branches[1:]:
                branch.merge(branches[0].start, branches[0].stop)
            network.replace(arc, branches[0])
    return network


def build(text: bytes, markup: Markup) -> Network:
    """The network of a balanced text with what `markup` asks for."""
    network = parse(text)
    if markup.optional:
        for arc in network.arcs_depth_first():
            _mark_optional(arc.word)
    if markup.fragments:
        for arc in network.arcs_depth_first():
            value = arc.word.value
            arc.word.fragment = value.startswith(b"-") or value.endswith(b"-") or (arc.word.optional and value[-2:-1] == b"-")
    if markup.split:
        for arc in network.arcs_depth_first():
            word = arc.word
            if len(word.value) > 1:
                pieces = markup.split(word.text)
                if pieces != [word.value] and pieces:
                    branch = Network()
                    for piece in pieces:
                        value = b"(%s)" % piece if word.optional else piece
                        branch.append(Word(value, piece, word.optional))
                    network.replace(arc, branch)
    return network


def _mark_optional(word: Word) -> None:
    if word.value.startswith(b"(") and word.value.endswith(b")"):
        word.optional = True
        word.text = word.value[1:-1]


def _same(a: Word, b: Word) -> bool:
    x, y = a.text, b.text
    if a.fragment or b.fragment:
        for part, whole in ((x, y), (y, x)):
            if part.startswith(b"-") and len(part) > 1:
                return whole.endswith(part[1:])
            if part.endswith(b"-") and len(part) > 1:
                return whole.startswith(part[:-1])
    return x == y


def _gap(word: Word) -> float:
    return NULL_GAP if word.value == NULL else 2.0 if word.optional else 3.0


def _single(value: float) -> float:
    return struct.unpack("f", struct.pack("f", value))[0]


NULL_GAP = _single(0.001)


def align_networks(ref: Network, hyp: Network) -> tuple[bytes, list[bytes], list[bytes]]:
    """(steps C, S, D or I, the reference words on the best path, the hypothesis words on it).

    A left-out optional word is a C whose partner is the empty word; null words do not show.
    """
    a_words, a_before, a_last = _arcs(ref)
    b_words, b_before, b_last = _arcs(hyp)
    # costs are single-precision sums as in sclite: with the 0.001 of null words, rounding decides ties
    rounded = _single if any(word and word.value == NULL for word in a_words + b_words) else float
    na, nb = len(a_words), len(b_words)
    b_gaps = [0.0] + [_gap(word) for word in b_words[1:]]
    costs = [[0.0] * nb for _ in range(na)]
    back: list[list[tuple[int, int]]] = [[(-1, -1)] * nb for _ in range(na)]
    first = costs[0]
    for b in range(1, nb):
        best = min(b_before[b], key=first.__getitem__)
        first[b], back[0][b] = rounded(first[best] + b_gaps[b]), (0, best)
    for a in range(1, na):
        row, back_row, word, before = costs[a], back[a], a_words[a], a_before[a]
        gap = _gap(word)
        best = min(before, key=lambda index: costs[index][0])
        row[0], back_row[0] = rounded(costs[best][0] + gap), (best, 0)
        is_null = word.value == NULL
        for b in range(1, nb):
            other = b_words[b]
            at_insert = min(b_before[b], key=row.__getitem__)
            at_delete = min(before, key=lambda index: costs[index][b])
            sub, at_sub = costs[before[0]][b_before[b][0]], (before[0], b_before[b][0])
            for index in before:
                for other_index in b_before[b]:
                    if costs[index][other_index] < sub:
                        sub, at_sub = costs[index][other_index], (index, other_index)
            if is_null and other.value == NULL:
                sub = rounded(sub + 1.0)
            elif not _same(word, other):
                sub = rounded(sub + 4.0)
            delete = rounded(costs[at_delete][b] + gap)
            insert = rounded(row[at_insert] + b_gaps[b])
            if sub <= delete and sub <= insert:
                row[b], back_row[b] = sub, at_sub
            elif delete < insert:
                row[b], back_row[b] = delete, (at_delete, b)
            else:
                row[b], back_row[b] = insert, (a, at_insert)
    end, a, b = float("inf"), -1, -1
    for index in a_last:
        for other_index in b_last:
            if costs[index][other_index] < end:
                end, a, b = costs[index][other_index], index, other_index
    steps, refs, hyps = bytearray(), [], []
    while a > 0 or b > 0:
        before_a, before_b = back[a][b]
        if before_a == a:
            _step(steps, b"I", b_words[b], hyps, refs)
        elif before_b == b:
            _step(steps, b"D", a_words[a], refs, hyps)
        elif not (a_words[a].value == NULL and b_words[b].value == NULL):
            steps += b"C" if _same(a_words[a], b_words[b]) else b"S"
            refs.append(a_words[a].value)
            hyps.append(b_words[b].value)
        a, b = before_a, before_b
    return bytes(steps[::-1]), refs[::-1], hyps[::-1]


def _step(steps: bytearray, kind: bytes, word: Word, own: list[bytes], other: list[bytes]) -> None:
    if word.value == NULL:
        return
    own.append(word.value)
    if word.optional:
        steps += b"C"
        other.append(b"")
    else:
        steps += kind


def _arcs(network: Network) -> tuple[list[Word | None], list[list[int]], list[int]]:
    """Words in order behind a first, empty arc; for each the arcs before it; the last arcs."""
    arcs = network.arcs_in_order()
    number = {id(arc): index for index, arc in enumerate(arcs, 1)}
    before = [[]] + [[number[id(arc)] for arc in item.start.into] or [0] for item in arcs]
    last = [number[id(arc)] for arc in network.stop.into] if network.stop else [0]
    return [None] + [arc.word for arc in arcs], before, last
