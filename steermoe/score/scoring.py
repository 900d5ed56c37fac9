"""score(): two texts per utterance -> alignments, reports, rate and interval."""

from __future__ import annotations

import shutil
from collections import Counter
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Mapping

import numpy as np

from steermoe.errors import UserError
from steermoe.files import atomic_write, write_json
from steermoe.score import report
from steermoe.score.align import align
from steermoe.score.stats import bootstrap_interval, percent
from steermoe.score.trn import match_keys, read_trn, speaker_of, write_trn
from steermoe.text.normalizers import get_normalizer, normalize_marked

CHUNK = 8192  # utterances aligned and written at a time: memory stays flat


@dataclass
class Summary:
    """rate and its 95 % bootstrap interval by utterance (low, high) and by speaker, in percent; counts of units and sentences."""

    unit: str
    normalizer: str
    rate: float
    low: float
    high: float
    speaker_low: float
    speaker_high: float
    n: int
    c: int
    s: int
    d: int
    i: int
    sentences: int
    sentence_errors: int
    speakers: int

    def line(self) -> str:
        """`WER 5.21 [4.80, 5.66] N=1234 C=1200 S=20 D=14 I=30`, or CER for characters."""
        name = "CER" if self.unit == "char" else "WER"
        counts = f"N={self.n} C={self.c} S={self.s} D={self.d} I={self.i}"
        return f"{name} {self.rate:.2f} [{self.low:.2f}, {self.high:.2f}] {counts}"


def score(
    refs: Mapping[str, str] | str | Path,
    hyps: Mapping[str, str] | str | Path,
    unit: str = "word",
    normalizer: str = "none",
    out_dir: str | Path | None = None,
    *,
    utt2spk: Mapping[str, str] | None = None,
    title: str | None = None,
    case_sensitive: bool = False,
) -> Summary:
    """Scores hypotheses against references as sclite does and, given out_dir, writes the report.

    refs, hyps: trn files, or {utt: text} with the same utterances. unit: word | char. normalizer: none | english | chinese.
    utt2spk: the speakers of {utt: text} (default: the part of the id before its first "-" or "_"). case_sensitive: sclite's -s.
    out_dir receives result.txt, summary.json, ref/hyp.raw.trn (as they came) and ref/hyp.norm.trn (as they were aligned).
    UserError: a file that is missing, not UTF-8 or not trn, an id that is in one of the two only or comes twice.
    """
    if unit not in ("word", "char"):
        raise UserError(f"unit: {unit!r} is unknown (known: word, char)")
    normalize = get_normalizer(normalizer)
    raw = {}
    for name, source in (("ref", refs), ("hyp", hyps)):
        raw[name] = read_trn(source) if isinstance(source, (str, Path)) else dict(source)
    names = [str(source) if isinstance(source, (str, Path)) else name for source, name in ((refs, "refs"), (hyps, "hyps"))]
    match_keys(raw["ref"], raw["hyp"], *names)
    title = title or (str(hyps) if isinstance(hyps, (str, Path)) else "hyp")
    texts = raw
    if normalizer != "none":
        texts = {name: {utt: normalize_marked(text, normalize) for utt, text in side.items()} for name, side in raw.items()}
    if utt2spk is None:
        spk_of = {utt: speaker_of(utt) for utt in raw["hyp"]}
    else:
        spk_of = {utt: utt2spk[utt] for utt in raw["hyp"]}
    speakers, order = _group(spk_of, case_sensitive)
    scorer = _Scorer(texts, order, speakers, unit, case_sensitive)
    if out_dir is None:
        for _ in scorer.run():
            pass
        return scorer.summary(normalizer)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    pieces = out / ".alignments.tmp"
    try:
        with open(pieces, "wb") as stream:
            for piece in scorer.run():
                stream.write(piece)
        summary = scorer.summary(normalizer)
        for name, source in (("ref", refs), ("hyp", hyps)):
            _keep_raw(source, raw[name], out / f"{name}.raw.trn")
            write_trn(out / f"{name}.norm.trn", texts[name])
        with atomic_write(out / "result.txt", "wb") as stream:
            stream.write(_header(summary, title, names, case_sensitive).encode())
            stream.write(report.summary_box(title, speakers, False, unit == "char"))
            stream.write(report.summary_box(title, speakers, True, unit == "char"))
            stream.write(report.alignments_head(title, speakers))
            with open(pieces, "rb") as aligned:
                shutil.copyfileobj(aligned, stream, 1 << 20)
            stream.write(b"\n")
            stream.write(report.details(title, speakers, scorer.tables))
        write_json(out / "summary.json", asdict(summary) | {"line": summary.line()})
    finally:
        pieces.unlink(missing_ok=True)
    return summary


def _group(spk_of: Mapping[str, str], case_sensitive: bool) -> tuple[list[report.Speaker], list[list[str]]]:
    """Speakers in the order of their first utterance, and each one's utterances."""
    number: dict[str, int] = {}
    order: list[list[str]] = []
    for utt, speaker in spk_of.items():
        key = speaker if case_sensitive else speaker.encode().lower().decode()
        if key not in number:
            number[key] = len(order)
            order.append([])
        order[number[key]].append(utt)
    return [report.Speaker(name.encode(), len(utts)) for name, utts in zip(number, order)], order


class _Scorer:
    """Aligns all utterances in the report's order, yields the report's pieces and counts."""

    def __init__(self, texts, order, speakers, unit, case_sensitive):
        self.refs, self.hyps = texts["ref"], texts["hyp"]
        self.order, self.speakers, self.unit, self.case_sensitive = order, speakers, unit, case_sensitive
        self.tables = report.Tables()
        self.errors: list[np.ndarray] = []
        self.words: list[np.ndarray] = []

    def run(self):
        flat = [(number, utt) for number, utts in enumerate(self.order) for utt in utts]
        last = -1
        upper = None if self.case_sensitive else bytes.upper
        attributes = b""
        for start in range(0, len(flat), CHUNK):
            part = flat[start : start + CHUNK]
            refs = [self.tokens(self.refs[utt]) for _, utt in part]
            hyps = [self.tokens(self.hyps[utt]) for _, utt in part]
            steps = align(refs, hyps)
            self.errors.append(np.array([len(step) - step.count(b"C") for step in steps]))
            self.words.append(np.array([len(step) - step.count(b"I") for step in steps]))
            pieces = []
            for (number, utt), ref, hyp, step in zip(part, refs, hyps, steps):
                speaker = self.speakers[number]
                if number != last:
                    pieces.append(report.speaker_head(number, speaker))
                    last = number
                self.count(speaker, ref, hyp, step)
                key = utt.encode() if self.case_sensitive else utt.encode().lower()
                pieces.append(report.alignment(key, step, ref, hyp, upper, attributes))
            yield b"".join(pieces)

    def tokens(self, text: str) -> list[bytes]:
        words = text.encode()
        words = words.split() if self.case_sensitive else words.lower().split()
        return words if self.unit == "word" else [character.encode() for character in b"".join(words).decode()]

    def count(self, speaker: report.Speaker, ref: list[bytes], hyp: list[bytes], steps: bytes) -> None:
        c, s, d, i = steps.count(b"C"), steps.count(b"S"), steps.count(b"D"), steps.count(b"I")
        speaker.c += c
        if not (s or d or i):
            return
        speaker.s += s
        speaker.d += d
        speaker.i += i
        speaker.sentence_errors += 1
        tables = self.tables
        tables.with_sub += s > 0
        tables.with_del += d > 0
        tables.with_ins += i > 0
        at_ref = at_hyp = 0
        for step in steps:
            if step == report.S:
                tables.confusions[ref[at_ref], hyp[at_hyp]] += 1
            elif step == report.D:
                tables.deletions[ref[at_ref]] += 1
            elif step == report.I:
                tables.insertions[hyp[at_hyp]] += 1
            at_ref += step != report.I
            at_hyp += step != report.D

    def summary(self, normalizer: str) -> Summary:
        total = Counter()
        for speaker in self.speakers:
            total.update({name: getattr(speaker, name) for name in ("c", "s", "d", "i", "sentences", "sentence_errors")})
        n = total["c"] + total["s"] + total["d"]
        rate = percent(total["s"] + total["d"] + total["i"], n)
        low, high = bootstrap_interval(np.concatenate(self.errors or [[]]), np.concatenate(self.words or [[]]))
        by_speaker = bootstrap_interval([s.errors for s in self.speakers], [s.words for s in self.speakers])
        counts = {name: total[name] for name in ("c", "s", "d", "i", "sentences", "sentence_errors")}
        return Summary(self.unit, normalizer, rate, low, high, *by_speaker, n=n, speakers=len(self.speakers), **counts)


def _keep_raw(source, texts: Mapping[str, str], target: Path) -> None:
    if isinstance(source, (str, Path)):
        if Path(source).resolve() != target.resolve():
            with atomic_write(target, "wb") as stream, open(source, "rb") as original:
                shutil.copyfileobj(original, stream)
    else:
        write_trn(target, texts)


def _header(summary: Summary, title: str, names: list[str], case_sensitive: bool) -> str:
    what = "Character" if summary.unit == "char" else "Word"
    return (
        f"{summary.line()}\n\n"
        f"{what} error rate    {summary.rate:.2f} %, 95 % interval by utterance [{summary.low:.2f}, {summary.high:.2f}]"
        f" ({summary.sentences} utterances), by speaker [{summary.speaker_low:.2f}, {summary.speaker_high:.2f}]"
        f" ({summary.speakers} speakers); bootstrap\n"
        f"Normalizer         {summary.normalizer}\n"
        f"Case               {'as written' if case_sensitive else 'folded (ASCII letters)'}\n"
        f"Alignment          sclite's: substitution 4, insertion 3, deletion 3\n"
        f"Reference          {names[0]}\nHypothesis         {names[1]}\n"
    )
