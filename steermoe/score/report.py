"""result.txt: sclite's reports, byte for byte where sclite has them, from alignments.

Everything here is bytes, because sclite pads and counts bytes: a Chinese character is three columns wide. Steps are C, S, D, I.
"""

from __future__ import annotations

import math
from collections import Counter
from dataclasses import dataclass, field
from typing import Iterable, Sequence

from steermoe.score.table import PAGE, Box, center, round_half_up

LINE_WIDTH = 1000  # sclite's default: longer alignments are folded
C, S, D, I = b"CSDI"


@dataclass
class Speaker:
    """Counts of one speaker. name: UTF-8 bytes."""

    name: bytes
    sentences: int = 0
    sentence_errors: int = 0
    c: int = 0
    s: int = 0
    d: int = 0
    i: int = 0

    @property
    def words(self) -> int:
        return self.c + self.s + self.d

    @property
    def errors(self) -> int:
        return self.s + self.d + self.i


@dataclass
class Tables:
    """What the detailed report counts over all utterances."""

    confusions: Counter = field(default_factory=Counter)  # (ref, hyp) -> count
    insertions: Counter = field(default_factory=Counter)
    deletions: Counter = field(default_factory=Counter)
    with_sub: int = 0
    with_del: int = 0
    with_ins: int = 0


def summary_box(title: str, speakers: Sequence[Speaker], raw: bool, char: bool) -> bytes:
    """sclite's `sum` (raw false: percentages) or `rsum` (raw true: counts) report."""
    form = "%5.0f " if raw else "%5.1f "
    digits = 0 if raw else 1
    box = Box(_as_bytes(title), 9, (0, 2))
    box.add([" SPKR", " # Snt", "# Chr" if char else "# Wrd", "Corr", " Sub", " Del", " Ins", " Err", "S.Err"], "-")
    columns: list[list[float]] = [[], [], [], [], []]
    sentence_errors, without = [], []
    for speaker in speakers:
        counts = [speaker.c, speaker.s, speaker.d, speaker.i, speaker.errors]
        as_counts = raw or speaker.words == 0
        values = [float(count) if as_counts else _percent(count, speaker.words) for count in counts]
        sentence = float(speaker.sentence_errors) if raw else _percent(speaker.sentence_errors, speaker.sentences)
        without.append(not raw and speaker.words == 0)
        cell = "%5.0f*" if without[-1] else form
        shown = [cell % round_half_up(value, 0 if without[-1] else digits) for value in values]
        name = f" {speaker.name.decode('latin-1')} "
        box.add([name, f"{speaker.sentences:5d}", f"{speaker.words:5d}", *shown, form % round_half_up(sentence, digits)], "-")
        for column, value in zip(columns, values):
            column.append(value)
        sentence_errors.append(sentence)
    box.add(_total_row(speakers, raw, form, digits), "=")
    # sclite drops speakers without reference words by shifting the columns left at their (unshifted) places; so do we
    for index, empty in enumerate(without):
        if empty:
            columns = [column[:index] + column[index + 1 :] + [-1000.0] for column in columns]
    used = len(speakers) - sum(without)
    lists = [[float(s.sentences) for s in speakers], [float(s.words) for s in speakers]]
    lists += [column[:used] for column in columns] + [sentence_errors]
    mark = ["+" if any(without) and 2 <= number < 7 else " " for number in range(8)]
    for name, statistic in ((" Mean ", _mean), (" S.D. ", _deviation), ("Median", _median)):
        cells = [f"{round_half_up(statistic(values), 1):5.1f}{sign}" for values, sign in zip(lists, mark)]
        box.add([name, *cells], "=" if name == " Mean " else "", left=False)
    text = f"\n\n\n{center('SYSTEM SUMMARY PERCENTAGES by SPEAKER', PAGE)}\n\n{box.draw()}"
    if any(without):
        text += (
            "\n* No Reference words for this/these speaker(s).  Word counts supplied\n"
            "  rather than percents.\n# No Reference words for this/these speaker(s).  NCE not computable.\n+ Speaker(s) with no reference data is ignored\n"
        )
    return text.encode("latin-1")


def _total_row(speakers: Sequence[Speaker], raw: bool, form: str, digits: int) -> list[str]:
    sums = [sum(getattr(s, name) for s in speakers) for name in ("c", "s", "d", "i", "errors")]
    words, sentences = sum(s.words for s in speakers), sum(s.sentences for s in speakers)
    wrong = sum(s.sentence_errors for s in speakers)
    values = [*sums, wrong] if raw else [*(_percent(value, words) for value in sums), _percent(wrong, sentences)]
    cells = [form % round_half_up(value, digits) for value in values]
    return [" Sum" if raw else " Sum/Avg", f"{sentences:5d}", f"{words:5d}", *cells]


def alignments_head(title: str, speakers: Sequence[Speaker]) -> bytes:
    """What stands before the first alignment of sclite's `pralign` report."""
    listing = b"".join(b"   %2d:  %s\n" % (number, speaker.name) for number, speaker in enumerate(speakers))
    return b"\n\n\t\tDUMP OF SYSTEM ALIGNMENT STRUCTURE\n\nSystem name:   %s\n\nSpeakers: \n%s\n" % (title.encode(), listing)


def speaker_head(number: int, speaker: Speaker) -> bytes:
    return b"Speaker sentences%4d:  %s   #utts: %d\n" % (number, speaker.name, speaker.sentences)


def alignment(utt: bytes, steps: bytes, ref: Sequence[bytes], hyp: Sequence[bytes], upper=None, attributes: bytes = b"") -> bytes:
    """One utterance of the `pralign` report, the empty line after it included.

    ref, hyp: the words as they are shown. upper: how words in error are shown, or None (case-sensitive scoring) for as they are.
    """
    counts = steps.count(b"C"), steps.count(b"S"), steps.count(b"D"), steps.count(b"I")
    head = b"id: (%s)\nScores: (#C #S #D #I) %d %d %d %d\n%s" % (utt, *counts, attributes)
    if not steps:
        return head + b"\n"
    if ref == hyp and steps.count(b"C") == len(steps):
        text = b" ".join(ref) + b" "
        if len(text) + 6 < LINE_WIDTH:
            return b"%sREF:  %s\nHYP:  %s\nEval: %s\n\n" % (head, text, text, b" " * len(text))
    refs, hyps, evals, widths = [], [], [], []
    take_ref, take_hyp = iter(ref), iter(hyp)
    for step in steps:
        if step == C:
            a, b, mark = next(take_ref), next(take_hyp), b""
            width = max(len(a), len(b))
        elif step == S:
            a, b, mark = next(take_ref), next(take_hyp), b"S"
            width = max(len(a), len(b))
            if upper:
                a, b = upper(a), upper(b)
        elif step == D:
            a, mark = next(take_ref), b"D"
            b = b"*" * len(a)
            width = len(a) or 1
            a = upper(a) if upper else a
        else:
            b, mark = next(take_hyp), b"I"
            a = b"*" * len(b)
            width = len(b) or 1
            b = upper(b) if upper else b
        refs.append(a.ljust(width))
        hyps.append(b.ljust(width))
        evals.append(mark.ljust(width))
        widths.append(width)
    lines, start = [head], 0
    while start < len(refs):
        stop = _fold(widths, start)
        lead = b">> " if start else b""
        lines.append(b"\n" if start else b"")
        for name, cells in ((b"REF:  ", refs), (b"HYP:  ", hyps), (b"Eval: ", evals)):
            lines.append(lead + name + b" ".join(cells[start:stop]) + b" \n")
        start = stop
    return b"".join(lines) + b"\n"


def _fold(widths: Sequence[int], start: int) -> int:
    """Where a line of cells that begins at `start` ends: the cell that reaches the width goes to the next line, the last never."""
    used, stop = (9 if start else 6), start
    while used < LINE_WIDTH and stop < len(widths):
        used += 1 + widths[stop]
        stop += 1
    return max(stop - (stop < len(widths)), start + 1)


def details(title: str, speakers: Sequence[Speaker], tables: Tables) -> bytes:
    """sclite's `dtl` report: totals and the confusion, insertion, deletion and substitution tables."""
    c, s, d, i = (sum(getattr(speaker, name) for speaker in speakers) for name in "csdi")
    words, sentences = c + s + d, sum(speaker.sentences for speaker in speakers)
    wrong = sum(speaker.sentence_errors for speaker in speakers)
    shares = [(" with errors          ", wrong), None, ("   with substitions   ", tables.with_sub)]
    shares += [("   with deletions     ", tables.with_del), ("   with insertions    ", tables.with_ins)]
    lines = [f"DETAILED OVERALL REPORT FOR THE SYSTEM: {_as_bytes(title)}", "", "SENTENCE RECOGNITION PERFORMANCE", ""]
    lines.append(f" sentences                                        {sentences:4d}")
    lines += [f"{x[0]}                 {_shown(x[1], sentences)}%   ({x[1]:4d})" if x else "" for x in shares]
    lines += ["", "", "WORD RECOGNITION PERFORMANCE", ""]
    rows = [("Total Error      ", s + d + i), None, ("Correct          ", c), None]
    rows += [("Substitution     ", s), ("Deletions        ", d), ("Insertions       ", i)]
    lines += [f"Percent {x[0]} = {_shown(x[1], words)}%   ({x[1]:4d})" if x else "" for x in rows]
    lines += [f"Percent Word Accuracy     = {_shown(s + d + i, words, accuracy=True)}%", "", ""]
    for name, value in (("Ref. words   ", words), ("Hyp. words   ", c + s + i), ("Aligned words", words + i)):
        lines.append(f"{name}             =           ({value:4d})")
    text = ("\n".join(lines) + "\n\n").encode("latin-1")
    substituted: Counter = Counter()
    recognised: Counter = Counter()
    for (ref, hyp), count in tables.confusions.items():
        substituted[ref] += count
        recognised[hyp] += count
    pairs = {b"%s ==> %s" % pair: count for pair, count in tables.confusions.items()}
    text += _table("CONFUSION PAIRS", pairs) + b"\n\n"
    text += _table("INSERTIONS", tables.insertions) + b"\n\n"
    text += _table("DELETIONS", tables.deletions) + b"\n\n"
    text += _table("SUBSTITUTIONS", substituted) + b"\n"
    text += b"* NOTE: The 'Substitution' words are those reference words\n        for which the recognizer supplied an incorrect word.\n\n\n"
    text += _table("FALSELY RECOGNIZED", recognised) + b"\n"
    text += b"* NOTE: The 'Falsely Recognized' words are those hypothesis words\n"
    return text + b"        which the recognizer incorrectly substituted for a reference word.\n\n"


def _shown(part: int, whole: int, accuracy: bool = False) -> str:
    if not whole:
        return " UNDEF"
    value = _percent(part, whole)
    return f" {round_half_up(100.0 - value if accuracy else value, 1):5.1f}"


def _table(name: str, counts: dict[bytes, int]) -> bytes:
    entries = sorted(counts.items(), key=lambda entry: (-entry[1], entry[0]))
    head = f"{name:33s}Total                 ({len(entries)})\n{'':33s}With >=  1 occurrences ({len(entries)})\n\n"
    lines = [b"%4d: %4d  ->  %s\n" % (number, count, word) for number, (word, count) in enumerate(entries, 1)]
    return head.encode() + b"".join(lines) + b"     -------\n%10d\n\n" % sum(counts.values())


def _as_bytes(text: str) -> str:
    """A string with one character a byte, so that widths count bytes."""
    return text.encode().decode("latin-1")


def _percent(part: float, whole: float) -> float:
    return part / whole * 100.0 if whole else 0.0


def _mean(values: Iterable[float]) -> float:
    values = list(values)
    return sum(values) / len(values) if values else 0.0


def _deviation(values: Sequence[float]) -> float:
    if len(values) < 2:
        return 0.0
    mean = _mean(values)
    return math.sqrt(sum((value - mean) ** 2 for value in values) / (len(values) - 1))


def _median(values: Sequence[float]) -> float:
    if not values:
        return 0.0
    ordered = sorted(values)
    middle = len(ordered) // 2
    return ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
