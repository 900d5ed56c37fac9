"""All utterances of a test set, aligned a few thousand at a time and counted: memory stays flat however many there are."""

from __future__ import annotations

import os
from functools import partial
from pathlib import Path
from typing import Iterator, Mapping, Sequence

import numpy as np

from steermoe.errors import UserError
from steermoe.score import report
from steermoe.score.align import align, align_cut, cut_equal_ends, gaps_before, without_first_gaps
from steermoe.score.beside import Process
from steermoe.score.network import align_networks, is_balanced
from steermoe.score.units import Units

CHUNK = 4096


class Pairs:
    """refs, hyps: {utt: text} with the same utterances, in any order; speaker: {utt: name}, whose order is the report's order.

    run() fills: speakers (counts by speaker), tables, errors and words ((utterances,) int32, in the report's order).
    """

    def __init__(self, refs: Mapping[str, str], hyps: Mapping[str, str], speaker: Mapping[str, str], units: Units, ref_name: str):
        self.refs, self.hyps, self.units, self.ref_name = refs, hyps, units, ref_name
        number: dict[str, int] = {}
        self.order: list[list[str]] = []
        for utt, name in speaker.items():
            if name not in number:
                number[name] = len(self.order)
                self.order.append([])
            self.order[number[name]].append(utt)
        self.speakers = [report.Speaker(name.encode(units.encoding), len(utts)) for name, utts in zip(number, self.order)]
        self.tables = report.Tables()
        self.errors = np.zeros(len(hyps), np.int32)
        self.words = np.zeros(len(hyps), np.int32)

    def run(self, outputs: Sequence[Path | None] = (None,)) -> None:
        """Aligns and counts everything, an equal part in each of as many processes as there are outputs.

        outputs: the files that in turn receive the alignments' part of the report, speaker by speaker; None writes no text.
        """
        flat = self._flat()
        bounds = [len(flat) * number // len(outputs) for number in range(len(outputs) + 1)]
        parts = [(flat, start, stop, output) for start, stop, output in zip(bounds, bounds[1:], outputs)]
        others: list[Process] = []
        try:
            for part in parts[1:]:
                others.append(Process(self._counted, *part))
            self._counted(*parts[0])
            for (_, start, stop, _), other in zip(parts[1:], others):
                self._add(start, stop, *other.result())
        finally:
            for other in others:
                other.stop()

    def alignments(self) -> Iterator[tuple[str, int, bytes]]:
        """(id, speaker's number, steps of the whole utterance: C, S, D, I), in the report's order."""
        flat = self._flat()
        for start in range(0, len(flat), CHUNK):
            part = flat[start : start + CHUNK]
            for (number, utt), pair in zip(part, self.align([utt for _, utt in part])):
                yield utt, number, b"C" * pair.before.count(b" ") + pair.steps + b"C" * pair.after.count(b" ")

    def _flat(self) -> list[tuple[int, str]]:
        return [(number, utt) for number, utts in enumerate(self.order) for utt in utts]

    def _counted(self, flat: list[tuple[int, str]], start: int, stop: int, output: Path | None) -> tuple:
        """Counts flat[start:stop]; what a process that did nothing else has to tell."""
        with open(output or os.devnull, "wb") as stream:
            for first in range(start, stop, CHUNK):
                stream.write(self._chunk(flat, first, min(first + CHUNK, stop), output is not None))
        used = range(flat[start][0], flat[stop - 1][0] + 1) if start < stop else range(0)
        return self.errors[start:stop], self.words[start:stop], [(number, self.speakers[number]) for number in used], self.tables

    def _add(self, start: int, stop: int, errors: np.ndarray, words: np.ndarray, speakers: list, tables: report.Tables) -> None:
        """Takes over what another process has counted."""
        self.errors[start:stop], self.words[start:stop] = errors, words
        for number, counted in speakers:
            self.speakers[number].add(counted)
        self.tables.add(tables)

    def _chunk(self, flat: list[tuple[int, str]], start: int, stop: int, with_report: bool) -> bytes:
        part = flat[start:stop]
        aligned = self.align([utt for _, utt in part])
        pieces, all_errors, all_words = [], [], []
        encoding, upper = self.units.encoding, None
        if not self.units.case_sensitive:
            plain = encoding == "utf-8" and self.units.locale == "generic"
            upper = bytes.upper if plain else partial(self.units.upper, encoding=encoding)
        if encoding != "utf-8":
            for pair in aligned:
                pair.recode(encoding)
        attributes = b"Attributes: Case_sensitve \n" if self.units.case_sensitive else b""  # sclite's spelling
        for index, (number, utt) in enumerate(part, start):
            pair, speaker = aligned[index - start], self.speakers[number]
            steps = pair.steps
            c = pair.before.count(b" ") + pair.after.count(b" ")
            s = d = i = 0
            if steps:
                c, s, d, i = c + steps.count(b"C"), steps.count(b"S"), steps.count(b"D"), steps.count(b"I")
                if s or d or i:
                    speaker.s += s
                    speaker.d += d
                    speaker.i += i
                    speaker.sentence_errors += 1
                    pair.errors = report.find_errors(steps)
                    self._tabulate(pair.ref, pair.hyp, pair.errors, s, d, i)
            speaker.c += c
            all_errors.append(s + d + i)
            all_words.append(c + s + d)
            if with_report:
                if index == 0 or flat[index - 1][0] != number:
                    pieces.append(report.speaker_head(number, speaker))
                head = b"Scores: (#C #S #D #I) %d %d %d %d\n%s" % (c, s, d, i, attributes)
                pieces.append(report.utterance(utt.encode(encoding), head, pair, upper))
        self.errors[start:stop] = all_errors
        self.words[start:stop] = all_words
        return b"".join(pieces)

    def align(self, utts: list[str]) -> list[report.Alignment]:
        """Texts of plain words are compared as bytes and only what differs becomes words; all differences are aligned together.
        Texts with marks become words at once, or networks that are aligned one by one."""
        units = self.units
        ref_texts = units.lower_all([self.refs[utt] for utt in utts])
        hyp_texts = units.lower_all([self.hyps[utt] for utt in utts])
        result: list[report.Alignment] = []
        open_pairs = []
        refs, hyps = units.spaced_all(ref_texts), units.spaced_all(hyp_texts)
        for utt, ref_text, hyp_text, ref, hyp in zip(utts, ref_texts, hyp_texts, refs, hyps):
            if ref is None or hyp is None:
                pair = self._with_marks(utt, ref_text, hyp_text)
            elif ref == hyp:
                pair = report.Alignment(ref)
            else:
                start, end = cut_equal_ends(ref, hyp)
                stop = len(ref) - end
                ref_words, hyp_words = ref[start:stop].split(), hyp[start : len(hyp) - end].split()
                pair = report.Alignment(ref[:start], ref_words, hyp_words, after=ref[stop:])
                open_pairs.append(pair)
            result.append(pair)
        for pair, steps in zip(open_pairs, align_cut([pair.ref for pair in open_pairs], [pair.hyp for pair in open_pairs])):
            pair.steps = steps
            if pair.before and steps[:1] in (b"D", b"I"):
                _move_first_gaps(pair)
        return result

    def _with_marks(self, utt: str, ref_text: bytes, hyp_text: bytes) -> report.Alignment:
        units = self.units
        if units.markup and b"{" in ref_text and not is_balanced(ref_text):
            message = "braces that are no alternation { a / b }; correct them, or use --markup false"
            raise UserError(f"{self.ref_name}: ({utt}): {message}")
        ref, hyp = units.plain(ref_text), units.plain(hyp_text)
        if ref is not None and hyp is not None:
            return report.Alignment(b"", ref, hyp, align([ref], [hyp])[0])
        steps, ref, hyp = align_networks(units.network(ref_text), units.network(hyp_text))
        return report.Alignment(b"", ref, hyp, steps)

    def _tabulate(self, ref: list[bytes], hyp: list[bytes], errors: list[tuple[int, int, int]], s: int, d: int, i: int) -> None:
        tables = self.tables
        tables.with_sub += s > 0
        tables.with_del += d > 0
        tables.with_ins += i > 0
        for step, place, other in errors:
            if step == report.S:
                pair = ref[place], hyp[other]
                tables.confusions[pair] = tables.confusions.get(pair, 0) + 1
            elif step == report.D:
                tables.deletions[ref[place]] = tables.deletions.get(ref[place], 0) + 1
            else:
                tables.insertions[hyp[other]] = tables.insertions.get(hyp[other], 0) + 1


def _move_first_gaps(pair: report.Alignment) -> None:
    """Gaps right behind the equal beginning stand as late as the walk back from the end allows: that may be inside it."""
    rest, gaps = without_first_gaps(pair.steps)
    own = pair.ref if pair.steps[:1] == b"D" else pair.hyp
    if pair.before[pair.before.rfind(b" ", 0, -1) + 1 : -1] not in own[:gaps]:
        return
    words = pair.before.split()
    r, h = len(words) + (gaps if own is pair.ref else 0), len(words) + (gaps if own is pair.hyp else 0)
    pair.before, pair.ref, pair.hyp = b"", [*words, *pair.ref], [*words, *pair.hyp]
    pair.steps = gaps_before(pair.ref, pair.hyp, r, h) + rest
