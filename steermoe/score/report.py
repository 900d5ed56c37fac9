"""result.txt: sclite's reports, byte for byte where sclite has them, from alignments.

Everything here is bytes, because sclite pads and counts bytes: a Chinese character is three columns wide. Steps are C, S, D, I.
"""

from __future__ import annotations

import math
import re
from dataclasses import dataclass, field
from typing import Iterable, Sequence

from steermoe.score.table import PAGE, Box, center, round_half_up

LINE_WIDTH = 1000  # sclite's default: longer alignments are folded
C, S, D, I = b"CSDI"
_ERROR = re.compile(rb"[SDI]")
_PLAIN = b"id: (%s)\n%sREF:  %s\nHYP:  %s\nEval: %s\n\n"


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

    def add(self, other: Speaker) -> None:
        """Errors and units of more of the same speaker's utterances; `sentences` counts all of them from the beginning."""
        for name in ("sentence_errors", "c", "s", "d", "i"):
            setattr(self, name, getattr(self, name) + getattr(other, name))


@dataclass
class Tables:
    """What the detailed report counts over all utterances."""

    confusions: dict[tuple[bytes, bytes], int] = field(default_factory=dict)
    insertions: dict[bytes, int] = field(default_factory=dict)
    deletions: dict[bytes, int] = field(default_factory=dict)
    with_sub: int = 0
    with_del: int = 0
    with_ins: int = 0

    def add(self, other: Tables) -> None:
        for own, more in (
            (self.confusions, other.confusions),
            (self.insertions, other.insertions),
            (self.deletions, other.deletions),
        ):
            for key, count in more.items():
                own[key] = own.get(key, 0) + count
        self.with_sub += other.with_sub
        self.with_del += other.with_del
        self.with_ins += other.with_ins


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
            "\n* No Reference words for this/these speaker(s).  Word counts supplied\n  rather than percents.\n"
            "# No Reference words for this/these speaker(s).  NCE not computable.\n"
            "+ Speaker(s) with no reference data is ignored\n"
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


def find_errors(steps: bytes) -> list[tuple[int, int, int]]:
    """(step, place in the reference, place in the hypothesis) of every S, D and I."""
    if len(steps) == 1:
        return [] if steps == b"C" else [(steps[0], 0, 0)]
    found, insertions, deletions = [], 0, 0
    for match in _ERROR.finditer(steps):
        at = match.start()
        found.append((steps[at], at - insertions, at - deletions))
        insertions += steps[at] == I
        deletions += steps[at] == D
    return found


@dataclass(slots=True)
class Alignment:
    """An utterance: equal words (with a space behind each), then what differs, step by step, then equal words again.

    errors: from find_errors, of the middle part. ref, hyp: the middle part's words as they are shown.
    """

    before: bytes
    ref: Sequence[bytes] = ()
    hyp: Sequence[bytes] = ()
    steps: bytes = b""
    after: bytes = b""
    errors: Sequence[tuple[int, int, int]] = ()

    def recode(self, encoding: str) -> None:
        """From UTF-8 to another encoding."""
        self.before, self.after = (part.decode().encode(encoding) for part in (self.before, self.after))
        self.ref, self.hyp = ([word.decode().encode(encoding) for word in words] for words in (self.ref, self.hyp))


def utterance(utt: bytes, head: bytes, aligned: Alignment, upper) -> bytes:
    """One utterance of the `pralign` report, the empty line after it included.

    head: the lines under the id. upper: how words in error are shown, or None (case-sensitive scoring) for as they are.
    """
    ref, hyp, before = aligned.ref, aligned.hyp, aligned.before
    if not aligned.steps:
        line, eval_line = before + aligned.after, b" " * (len(before) + len(aligned.after))
        if len(line) + 6 >= LINE_WIDTH or not line:
            return b"id: (%s)\n%s%s\n" % (utt, head, _lines(aligned, upper))
        return _PLAIN % (utt, head, line, line, eval_line)
    if len(aligned.steps) == 1 and aligned.errors:
        a, b, mark, width = _cell(aligned.steps[0], ref[0] if ref else b"", hyp[0] if hyp else b"", upper)
        before_length, after_length = len(before), len(aligned.after)
        if before_length + width + after_length + 7 < LINE_WIDTH:
            refs, hyps = before + a.ljust(width), before + b.ljust(width)
            evals = b" " * before_length + mark.ljust(width + 1 + after_length)
            return _PLAIN % (utt, head, b"%s %s" % (refs, aligned.after), b"%s %s" % (hyps, aligned.after), evals)
    refs, hyps, evals = [before], [before], [b" " * len(before)]
    at_ref = at_hyp = 0
    for step, place, other in (*aligned.errors, (0, len(ref), len(hyp))):
        if at_ref < place:  # words that are right
            if ref[at_ref:place] != hyp[at_hyp:other]:
                return b"id: (%s)\n%s%s\n" % (utt, head, _lines(aligned, upper))
            text = b" ".join(ref[at_ref:place]) + b" "
            refs.append(text)
            hyps.append(text)
            evals.append(b" " * len(text))
        if not step:
            break
        at_ref, at_hyp = place + (step != I), other + (step != D)
        a, b, mark, width = _cell(step, ref[place] if step != I else b"", hyp[other] if step != D else b"", upper)
        refs.append(a.ljust(width) + b" ")
        hyps.append(b.ljust(width) + b" ")
        evals.append(mark.ljust(width + 1))
    eval_line, after = b"".join(evals), aligned.after
    if len(eval_line) + len(after) + 6 >= LINE_WIDTH:
        return b"id: (%s)\n%s%s\n" % (utt, head, _lines(aligned, upper))
    return _PLAIN % (utt, head, b"".join(refs) + after, b"".join(hyps) + after, eval_line + b" " * len(after))


def _lines(aligned: Alignment, upper) -> bytes:
    """REF, HYP and Eval word by word: for right words that are not the same (fragments, optional words) and folded lines."""
    before, after = aligned.before.split(), aligned.after.split()
    take_ref, take_hyp = iter([*before, *aligned.ref, *after]), iter([*before, *aligned.hyp, *after])
    cells = []
    for step in b"C" * len(before) + aligned.steps + b"C" * len(after):
        cells.append(_cell(step, next(take_ref) if step != I else b"", next(take_hyp) if step != D else b"", upper))
    lines, start, widths = [], 0, [cell[3] for cell in cells]
    while start < len(cells):
        stop = _fold(widths, start)
        lead = b">> " if start else b""
        lines.append(b"\n" if start else b"")
        for name, column in ((b"REF:  ", 0), (b"HYP:  ", 1), (b"Eval: ", 2)):
            lines.append(lead + name + b"".join(cell[column].ljust(cell[3]) + b" " for cell in cells[start:stop]) + b"\n")
        start = stop
    return b"".join(lines)


def _cell(step: int, a: bytes, b: bytes, upper) -> tuple[bytes, bytes, bytes, int]:
    """Both words of a step as they are shown, its mark, and the column's width: that of the
    words before they are shown in upper case, and a gap is at least one column wide."""
    if step == D:
        return upper(a) if upper else a, b"*" * len(a), b"D", len(a) or 1
    if step == I:
        return b"*" * len(b), upper(b) if upper else b, b"I", len(b) or 1
    width = max(len(a), len(b))
    if step == S:
        return upper(a) if upper else a, upper(b) if upper else b, b"S", width
    return a, b, b"", width


def _fold(widths: Sequence[int], start: int) -> int:
    """Where a line that begins at cell `start` ends: the cell that reaches the line's width goes to the next, the last never."""
    used, stop = (9 if start else 6), start
    while used < LINE_WIDTH and stop < len(widths):
        used += widths[stop] + 1
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
    substituted: dict[bytes, int] = {}
    recognised: dict[bytes, int] = {}
    for (ref, hyp), count in tables.confusions.items():
        substituted[ref] = substituted.get(ref, 0) + count
        recognised[hyp] = recognised.get(hyp, 0) + count
    pairs = {b"%s ==> %s" % pair: count for pair, count in tables.confusions.items()}
    text += _table("CONFUSION PAIRS", pairs) + b"\n\n"
    text += _table("INSERTIONS", tables.insertions) + b"\n\n"
    text += _table("DELETIONS", tables.deletions) + b"\n\n"
    text += _table("SUBSTITUTIONS", substituted) + b"\n"
    text += b"* NOTE: The 'Substitution' words are those reference words\n"
    text += b"        for which the recognizer supplied an incorrect word.\n\n\n"
    text += _table("FALSELY RECOGNIZED", recognised) + b"\n"
    text += b"* NOTE: The 'Falsely Recognized' words are those hypothesis words\n"
    return text + b"        which the recognizer incorrectly substituted for a reference word.\n\n"


def _shown(part: int, whole: int, accuracy: bool = False) -> str:
    if not whole:
        return " UNDEF"
    value = _percent(part, whole)
    return f" {round_half_up(100.0 - value if accuracy else value, 1):5.1f}"


def _table(name: str, counts: dict[bytes, int]) -> bytes:
    entries = sorted(counts)
    entries.sort(key=counts.__getitem__, reverse=True)  # stable: equal counts stay in the order of the words
    head = f"{name:33s}Total                 ({len(entries)})\n{'':33s}With >=  1 occurrences ({len(entries)})\n\n"
    lines = [b"%4d: %4d  ->  %s\n" % (number, counts[word], word) for number, word in enumerate(entries, 1)]
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
