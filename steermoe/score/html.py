"""report.html of a scored folder: the worst utterances with errors and audio, rates by length and speaker, what is confused.

One file without external requests: bars are CSS, audio is linked beside it. All text comes from hypotheses and data files, so it
is escaped, and a content security policy lets no script run but the page's own.
"""

from __future__ import annotations

from dataclasses import dataclass
from html import escape
from pathlib import Path
from typing import Mapping, Sequence

import numpy as np

from steermoe.files import atomic_write, read_jsonl
from steermoe.score import report
from steermoe.score.audio_link import audio_link
from steermoe.score.page import PAGE
from steermoe.score.pairs import Pairs
from steermoe.score.stats import bootstrap_interval, percent
from steermoe.score.trn import trn_id

LENGTHS = (0, 2, 5, 10, 20, 40, 80, 160)  # the bins' last lengths in reference words or characters
SPEAKERS = 100  # at most this many, the worst, are shown
WORDS = 20  # of each table
C, S, D, I = b"CSDI"


@dataclass
class Group:
    """Some utterances: rate and its 95 % interval in percent, and what it was counted from."""

    name: str
    utterances: int
    words: int
    errors: int
    rate: float
    low: float
    high: float


def write_html(out: Path, pairs: Pairs, summary, title: str, names: Mapping[str, str], worst: int, data: Path | None) -> None:
    """Writes out/report.html and out/plots/*.png; audio that browsers cannot play goes to out/audio as FLAC.

    pairs: after its run() with report. summary: scoring.Summary. worst: how many utterances are listed. data: data.jsonl, where
    the audio of each utterance and its length are taken from.
    """
    from steermoe.score.plots import plot_groups

    by_length, by_speaker = group_by_length(pairs), group_by_speaker(pairs)
    unit = "characters" if summary.unit == "char" else "words"
    rate = "CER" if summary.unit == "char" else "WER"
    entries = {}
    if data:
        for entry in read_jsonl(data):
            entries[pairs.units.lower(trn_id(entry["utt"], entry["spk"])).decode()] = entry
    flat = [(number, utt) for number, utts in enumerate(pairs.order) for utt in utts]
    order = np.lexsort((pairs.words, -pairs.errors))[:worst].tolist()
    encoding = pairs.units.encoding  # of what was counted; what is aligned here is UTF-8
    aligned = pairs.align([flat[index][1] for index in order])
    rows = []
    for index, pair in zip(order, aligned):
        number, utt = flat[index]
        entry = entries.get(utt, {})
        speaker = pairs.speakers[number].name.decode(encoding)
        counts = int(pairs.errors[index]), int(pairs.words[index])
        rows.append(_row(utt, speaker, counts, entry, show_errors(pair, pairs.units), audio_link(entry, out)))
    facts = {
        "95 % interval by utterance": f"{summary.low:.2f} to {summary.high:.2f} % ({summary.sentences} utterances)",
        "95 % interval by speaker": f"{summary.speaker_low:.2f} to {summary.speaker_high:.2f} %"
        f" ({summary.speakers} speaker{'s' * (summary.speakers != 1)})",
        f"Reference {unit}": f"{summary.n}: {summary.c} correct, {summary.s} substituted, {summary.d} deleted;"
        f" {summary.i} inserted",
        "Utterances with errors": f"{summary.sentence_errors} of {summary.sentences}",
        "Normaliser": summary.normalizer,
        "Reference": names["ref"],
        "Hypothesis": names["hyp"],
    }
    tables = pairs.tables
    confusions = {f"{_text(a, encoding)} → {_text(b, encoding)}": count for (a, b), count in tables.confusions.items()}
    shown = "the" if len(rows) == len(flat) else f"the {len(rows)} of {len(flat)} utterances with the most errors,"
    values = {
        "title": escape(title),
        "rate": f"{rate} {_number(summary.rate)} %",
        "measure": rate,
        "facts": "".join(f"<dt>{escape(name)}</dt><dd>{escape(value)}</dd>" for name, value in facts.items()),
        "length": _bars(by_length),
        "speaker": _bars(by_speaker[:SPEAKERS]),
        "speakers": f" (the {SPEAKERS} worst of {len(by_speaker)})" if len(by_speaker) > SPEAKERS else "",
        "unit": unit,
        "shown": shown,
        "confused": _counts("Substitutions", confusions)
        + _counts("Deletions", {_text(word, encoding): count for word, count in tables.deletions.items()})
        + _counts("Insertions", {_text(word, encoding): count for word, count in tables.insertions.items()}),
        "rows": "".join(rows),
    }
    with atomic_write(out / "report.html") as stream:
        stream.write(PAGE.substitute(values))
    plot_groups(by_length, out / "plots" / f"{rate.lower()}_by_length.png", f"{unit} of the reference", rate)
    plot_groups(by_speaker[:SPEAKERS], out / "plots" / f"{rate.lower()}_by_speaker.png", "speaker", rate)


def group_by_length(pairs: Pairs) -> list[Group]:
    """Utterances by the length of their reference; bins without any are left out."""
    bins = np.searchsorted(LENGTHS, pairs.words)
    groups = []
    for number in np.unique(bins).tolist():
        first = LENGTHS[number - 1] + 1 if number else 0
        last = f"–{LENGTHS[number]}" if number < len(LENGTHS) else " or more"
        name = "0" if number == 0 else f"{first}{last}"
        groups.append(_group(name, pairs.errors[bins == number], pairs.words[bins == number]))
    return groups


def group_by_speaker(pairs: Pairs) -> list[Group]:
    """The worst first."""
    groups, start = [], 0
    for speaker in pairs.speakers:
        part = slice(start, start + speaker.sentences)
        groups.append(_group(speaker.name.decode(pairs.units.encoding), pairs.errors[part], pairs.words[part]))
        start = part.stop
    return sorted(groups, key=lambda group: -group.rate)


def _group(name: str, errors: np.ndarray, words: np.ndarray) -> Group:
    wrong, whole = int(errors.sum()), int(words.sum())
    return Group(name, len(errors), whole, wrong, percent(wrong, whole), *bootstrap_interval(errors, words))


def show_errors(pair: report.Alignment, units) -> str:
    """HTML of an alignment: right words as they are, errors as (EDISON-&gt;ADDISON), (*-&gt;INSERTED), (DELETED-&gt;*)."""
    gap = "" if units.unit == "char" and not units.keep_ascii else " "
    before, after = (escape(_text(part).replace(" ", gap)) for part in (pair.before, pair.after))
    pieces, ref, hyp = [before.strip()] if before.strip() else [], iter(pair.ref), iter(pair.hyp)
    for step in pair.steps:
        a, b = next(ref) if step != I else b"*", next(hyp) if step != D else b"*"
        if step == C:
            pieces.append(escape(_text(a or b)))
        else:
            kind, name = {S: ("s", "substituted"), D: ("d", "deleted"), I: ("i", "inserted")}[step]
            a, b = (escape(_text(word if units.case_sensitive else units.upper(word))) for word in (a, b))
            pieces.append(f'<b class="{kind}" title="{name}">({a}-&gt;{b})</b>')
    return gap.join(pieces + ([after.strip()] if after.strip() else []))


def _row(utt: str, speaker: str, counts: tuple[int, int], entry: dict, text: str, audio: str) -> str:
    errors, words = counts
    seconds = entry.get("duration")
    rate = percent(errors, words)
    cells = [
        f'<td data-label="utterance">{escape(utt)}</td>',
        f'<td data-label="speaker">{escape(speaker)}</td>',
        f'<td class="n" data-label="errors">{errors}</td>',
        f'<td class="n" data-label="%" data-value="{rate}">{_number(rate)}</td>',
        f'<td class="n" data-label="length">{words}</td>',
        f'<td class="n" data-label="s" data-value="{-1 if seconds is None else float(seconds)}">'
        f"{'' if seconds is None else format(float(seconds), '.1f')}</td>",
        f'<td class="t"><div dir="auto">{text}</div>{audio}</td>',
    ]
    return f"<tr>{''.join(cells)}</tr>\n"


def _bars(groups: Sequence[Group]) -> str:
    finite = [value for group in groups for value in (group.rate, group.high) if np.isfinite(value)]
    full = max(finite, default=0.0) or 1.0
    rows = []
    for group in groups:
        if group.words:
            at, low, high = (min(100 * value / full, 100.0) for value in (group.rate, group.low, group.high))
            bar = f'<i style="width:{at:.1f}%"></i><u style="left:{low:.1f}%;width:{high - low:.1f}%"></u>'
            rate = f"{group.rate:.1f} <small>[{group.low:.1f}, {group.high:.1f}]</small>"
        else:
            bar, rate = "", f"{group.errors} inserted"
        counts = f"{group.utterances} utterances, {group.words} in the references, {group.errors} errors"
        rows.append(f'<tr title="{counts}"><th>{escape(group.name)}</th><td class="bar">{bar}</td><td>{rate}</td></tr>')
    return "<table class='bars'>" + "".join(rows) + "</table>"


def _counts(name: str, counts: Mapping[str, int]) -> str:
    entries = sorted(counts.items(), key=lambda item: (-item[1], item[0]))
    rows = "".join(f'<tr><td class="n">{count}</td><td><bdi>{escape(word)}</bdi></td></tr>' for word, count in entries[:WORDS])
    more = f"<p>{len(entries) - WORDS} more in result.txt</p>" if len(entries) > WORDS else ""
    return f"<div><h3>{name}</h3><table>{rows or '<tr><td>none</td></tr>'}</table>{more}</div>"


def _number(rate: float) -> str:
    return f"{rate:.1f}" if np.isfinite(rate) else "∞"


def _text(word: bytes, encoding: str = "utf-8") -> str:
    return word.decode(encoding, "replace")
