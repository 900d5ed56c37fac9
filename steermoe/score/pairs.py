"""All utterances of a test set, aligned a few thousand at a time and counted: memory stays flat however many there are."""

from __future__ import annotations

from typing import Iterator, Mapping

import numpy as np

from steermoe.errors import UserError
from steermoe.score import report
from steermoe.score.align import align
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
        self.speakers = [report.Speaker(name.encode(), len(utts)) for name, utts in zip(number, self.order)]
        self.tables = report.Tables()
        self.errors = np.zeros(len(hyps), np.int32)
        self.words = np.zeros(len(hyps), np.int32)

    def run(self, with_report: bool = True) -> Iterator[bytes]:
        """Yields the alignments' part of the report, speaker by speaker (empty pieces if with_report is false)."""
        flat = [(number, utt) for number, utts in enumerate(self.order) for utt in utts]
        for start in range(0, len(flat), CHUNK):
            yield self._chunk(flat[start : start + CHUNK], start, with_report)

    def _chunk(self, part: list[tuple[int, str]], start: int, with_report: bool) -> bytes:
        refs, hyps, all_steps = self._align([utt for _, utt in part])
        pieces = []
        upper = None if self.units.case_sensitive else self.units.upper
        attributes = b"Attributes: Case_sensitve \n" if self.units.case_sensitive else b""  # sclite's spelling
        last = -1 if start == 0 else self.last
        for index, (number, utt) in enumerate(part):
            ref, hyp, steps, speaker = refs[index], hyps[index], all_steps[index], self.speakers[number]
            if with_report and number != last:
                pieces.append(report.speaker_head(number, speaker))
                last = number
            c, s, d, i = steps.count(b"C"), steps.count(b"S"), steps.count(b"D"), steps.count(b"I")
            self.words[start + index] = c + s + d
            speaker.c += c
            if s or d or i:
                self.errors[start + index] = s + d + i
                speaker.s += s
                speaker.d += d
                speaker.i += i
                speaker.sentence_errors += 1
                self._tabulate(ref, hyp, steps)
            if with_report:
                pieces.append(report.alignment(utt.encode(), steps, ref, hyp, upper, attributes))
        self.last = last
        return b"".join(pieces)

    def _align(self, utts: list[str]) -> tuple[list[list[bytes]], list[list[bytes]], list[bytes]]:
        units = self.units
        refs: list = []
        hyps: list = []
        special = []
        for index, utt in enumerate(utts):
            ref_text, hyp_text = units.lower(self.refs[utt]), units.lower(self.hyps[utt])
            if units.markup and b"{" in ref_text and not is_balanced(ref_text):
                raise UserError(f"{self.ref_name}: ({utt}): braces that are no alternation {{ a / b }}; correct them, or use --markup false")
            ref, hyp = units.plain(ref_text), units.plain(hyp_text)
            if ref is None or hyp is None:
                special.append((index, ref_text, hyp_text))
                ref = hyp = []
            refs.append(ref)
            hyps.append(hyp)
        steps = align(refs, hyps)
        for index, ref_text, hyp_text in special:
            steps[index], refs[index], hyps[index] = align_networks(units.network(ref_text), units.network(hyp_text))
        return refs, hyps, steps

    def _tabulate(self, ref: list[bytes], hyp: list[bytes], steps: bytes) -> None:
        tables = self.tables
        tables.with_sub += b"S" in steps
        tables.with_del += b"D" in steps
        tables.with_ins += b"I" in steps
        at_ref = at_hyp = 0
        for step in steps:
            if step == report.I:
                tables.insertions[hyp[at_hyp]] += 1
                at_hyp += 1
                continue
            if step == report.D:
                tables.deletions[ref[at_ref]] += 1
            else:
                if step == report.S:
                    tables.confusions[ref[at_ref], hyp[at_hyp]] += 1
                at_hyp += 1
            at_ref += 1
