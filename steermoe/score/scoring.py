"""score(): two texts per utterance -> alignments, reports, rate and interval."""

from __future__ import annotations

import shutil
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Callable, Mapping, Sequence

from steermoe.errors import UserError
from steermoe.files import atomic_write, write_json
from steermoe.score import report
from steermoe.score.beside import Thread
from steermoe.score.network import is_balanced
from steermoe.score.pairs import Pairs
from steermoe.score.stats import bootstrap_interval, percent
from steermoe.score.trn import match_keys, read_trn, speaker_of, write_trn
from steermoe.score.units import Units
from steermoe.text.normalizers import get_normalizer, normalize_marked

LEAST = 2500  # utterances that are worth a process of their own


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
    engine: str = "own",
    html: bool = False,
    worst: int = 500,
    data: str | Path | None = None,
    processes: int = 1,
    **options,
) -> Summary:
    """Scores hypotheses against references as sclite does and, given out_dir, writes the report.

    refs, hyps: trn files, or {utt: text} with the same utterances. unit: word | char. normalizer: none | english | chinese.
    utt2spk: the speakers of {utt: text} (default: the part of the id before its first "-" or "_"). title: the system's name in
    the report (default: the hypothesis file). engine: own | sclite (the installed program aligns and writes the report in
    out_dir). html: also write report.html with the `worst` utterances and plots (html.py); data: data.jsonl, for their audio.
    processes: at most so many forked ones share the work (one for every LEAST utterances); the result is the same.
    options: the other fields of units.Units.
    out_dir receives result.txt, summary.json, ref/hyp.raw.trn (as they came) and ref/hyp.norm.trn (as they were aligned).
    UserError: a file that is missing, of another encoding or not trn, an id that is in one of the two only or comes twice.
    """
    if engine not in ("own", "sclite"):
        raise UserError(f"engine: {engine!r} is unknown (known: own, sclite)")
    units = Units(unit, **options)
    sources = {"ref": refs, "hyp": hyps}
    pairs, texts = load_pairs(refs, hyps, units, normalizer, utt2spk)
    shares = max(1, min(processes, len(pairs.errors) // LEAST))
    if out_dir is None:
        pairs.run([None] * shares)
        return summarize(units.unit, normalizer, pairs.speakers, pairs.errors, pairs.words)
    out = Path(out_dir)
    out.mkdir(parents=True, exist_ok=True)
    kept = out, sources, sources if normalizer == "none" and pairs.units == units else texts
    units = pairs.units
    names = {name: _name(source, name) for name, source in sources.items()}
    title = title or names["hyp"]
    if engine == "sclite":
        from steermoe.score.sclite import run_sclite

        _keep_all(*kept)
        result = run_sclite(out / "ref.norm.trn", out / "hyp.norm.trn", title, units)
        summary = summarize(units.unit, normalizer, result.speakers, result.errors, result.words)
        with atomic_write(out / "result.txt", "wb") as stream:
            stream.write(_header(summary, units, names, engine).encode() + result.text)
        if html:
            pairs.run([None] * shares)
    else:
        # the boxes stand before the alignments but are known after them, so the alignments wait in files of their own
        waiting = [out / f".alignments.{number}.tmp" for number in range(shares)]
        try:
            pairs.run(waiting)
            copies = Thread(_keep_all, *kept)
            summary = _write_report(out / "result.txt", pairs, waiting, title, names, normalizer)
            copies.result()
        finally:
            for file in waiting:
                file.unlink(missing_ok=True)
    write_json(out / "summary.json", asdict(summary) | {"line": summary.line()})
    if html:
        from steermoe.score.html import write_html  # the plain report does not wait for it

        write_html(out, pairs, summary, title, names, worst, Path(data) if data else None)
    return summary


def load_pairs(
    refs: Mapping[str, str] | str | Path,
    hyps: Mapping[str, str] | str | Path,
    units: Units,
    normalizer: str,
    utt2spk: Mapping[str, str] | None = None,
) -> tuple[Pairs, dict[str, Mapping[str, str]]]:
    """Reads, normalises and matches both sides: (pairs to align, {"ref": normalised texts, "hyp": …}). Errors: see score()."""
    normalize = get_normalizer(normalizer)
    texts = {}
    for name, source in (("ref", refs), ("hyp", hyps)):
        texts[name] = read_trn(source, units.encoding) if isinstance(source, (str, Path)) else source
    if normalizer != "none" or texts["ref"] is refs or texts["hyp"] is hyps:
        units = replace(units, encoding="utf-8")  # from here on it is no longer the files that are scored
    if normalizer != "none":
        ref = {utt: _normalized_reference(text, normalize, units) for utt, text in texts["ref"].items()}
        texts = {"ref": ref, "hyp": {utt: normalize(text) for utt, text in texts["hyp"].items()}}
    ref_name, hyp_name = _name(refs, "ref"), _name(hyps, "hyp")
    folded_refs, folded_hyps = _fold_ids(texts["ref"], units, ref_name), _fold_ids(texts["hyp"], units, hyp_name)
    match_keys(folded_refs, folded_hyps, ref_name, hyp_name)
    if utt2spk is None:
        speaker = {utt: speaker_of(utt) for utt in folded_hyps}
    else:
        speaker = {utt: units.lower(utt2spk[own]).decode() for utt, own in zip(folded_hyps, texts["hyp"])}
    return Pairs(folded_refs, folded_hyps, speaker, units, ref_name), texts


def summarize(unit: str, normalizer: str, speakers: Sequence[report.Speaker], errors: Sequence, words: Sequence) -> Summary:
    """errors, words: (utterances,) int."""
    names = ("c", "s", "d", "i", "sentences", "sentence_errors")
    counts = {name: sum(getattr(speaker, name) for speaker in speakers) for name in names}
    n = counts["c"] + counts["s"] + counts["d"]
    rate = percent(counts["s"] + counts["d"] + counts["i"], n)
    low, high = bootstrap_interval(errors, words)
    by_speaker = bootstrap_interval([speaker.errors for speaker in speakers], [speaker.words for speaker in speakers])
    return Summary(unit, normalizer, rate, low, high, *by_speaker, n=n, speakers=len(speakers), **counts)


def _write_report(
    path: Path, pairs: Pairs, alignments: Sequence[Path], title: str, names: Mapping[str, str], normalizer: str
) -> Summary:
    char = pairs.units.unit == "char"
    summing = Thread(summarize, pairs.units.unit, normalizer, pairs.speakers, pairs.errors, pairs.words)
    details = report.details(title, pairs.speakers, pairs.tables)
    summary = summing.result()
    with atomic_write(path, "wb") as stream:
        stream.write(_header(summary, pairs.units, names, "own").encode())
        stream.write(report.summary_box(title, pairs.speakers, False, char))
        stream.write(report.summary_box(title, pairs.speakers, True, char))
        stream.write(report.alignments_head(title, pairs.speakers))
        for part in alignments:
            with open(part, "rb") as aligned:
                shutil.copyfileobj(aligned, stream, 1 << 20)
        stream.write(b"\n")
        stream.write(details)
    return summary


def _normalized_reference(text: str, normalize: Callable[[str], str], units: Units) -> str:
    marked = units.markup and "{" in text and is_balanced(text.encode())
    return normalize_marked(text, normalize) if marked else normalize(text)


def _fold_ids(texts: Mapping[str, str], units: Units, name: str) -> Mapping[str, str]:
    """sclite folds ids like words: (A-1) and (a-1) are one utterance."""
    if units.case_sensitive or "".join(texts).islower():
        return texts
    folded = {units.lower(utt).decode(): text for utt, text in texts.items()}
    if len(folded) < len(texts):
        seen: set[str] = set()
        twice = next(utt for utt in texts if units.lower(utt).decode() in seen or seen.add(units.lower(utt).decode()))
        raise UserError(f"{name}: the id ({twice}) comes twice when case is folded; rename one, or use --case-sensitive true")
    return folded


def _name(source: Mapping[str, str] | str | Path, otherwise: str) -> str:
    return str(source) if isinstance(source, (str, Path)) else otherwise


def _keep_all(out: Path, raw: Mapping, norm: Mapping) -> None:
    for name in raw:
        _keep(raw[name], out / f"{name}.raw.trn")
        _keep(norm[name], out / f"{name}.norm.trn")


def _keep(source: Mapping[str, str] | str | Path, target: Path) -> None:
    if not isinstance(source, (str, Path)):
        write_trn(target, source)
    elif Path(source).resolve() != target.resolve():
        with atomic_write(target, "wb") as stream, open(source, "rb") as original:
            shutil.copyfileobj(original, stream)


def _header(summary: Summary, units: Units, names: Mapping[str, str], engine: str) -> str:
    what = "Character" if summary.unit == "char" else "Word"
    folded = "folded (ASCII letters)" if units.locale == "generic" else f"folded (ASCII letters and {units.locale})"
    settings = [name for name in ("optional", "fragments", "keep_ascii", "delete_hyphens") if getattr(units, name)]
    settings += [] if units.markup else ["no markup"]
    settings += [] if units.encoding == "utf-8" else [units.encoding]
    return (
        f"{summary.line()}\n\n"
        f"{what} error rate    {summary.rate:.2f} %, 95 % interval by utterance [{summary.low:.2f}, {summary.high:.2f}]"
        f" ({summary.sentences} utterances), by speaker [{summary.speaker_low:.2f}, {summary.speaker_high:.2f}]"
        f" ({summary.speakers} speakers); bootstrap\n"
        f"Normalizer         {summary.normalizer}\n"
        f"Case               {'as written' if units.case_sensitive else folded}\n"
        f"Options            {', '.join(settings) or 'none'}\n"
        f"Alignment          {'by' if engine == 'sclite' else 'as'} sclite: substitution 4, insertion 3, deletion 3\n"
        f"Reference          {names['ref']}\nHypothesis         {names['hyp']}\n"
    )
