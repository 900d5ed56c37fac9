"""A Kaldi data directory as one table of utterances.

`DataDir.read` joins wav.scp, segments, text, utt2spk, utt2dur, … and refuses what does not fit together. Around it:
`validate` (kaldi_validate.py), and `fix`, `subset`, `split`, `combine`, `copy` (kaldi_tools.py).
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Callable, Iterator, Sequence

from steermoe.data.kaldi_files import PARTIAL_FILES, fix_hint, iter_map, line_of, read_map, write_map
from steermoe.data.kaldi_tools import combine, copy, fix, split, subset
from steermoe.data.kaldi_validate import parse_positive, parse_segment, validate
from steermoe.errors import UserError

__all__ = ["DataDir", "Utterance", "combine", "copy", "fix", "read_map", "split", "subset", "validate", "write_map"]


@dataclass(slots=True)
class Utterance:
    """One utterance. Times are seconds; None is "not known", for start and end "the whole recording"."""

    utt: str
    spk: str
    text: str | None = None
    wav: str | None = None  # a file (relative to the current directory), `file.ark:offset`, or, where allowed, `command |`
    start: float | None = None
    end: float | None = None
    duration: float | None = None  # utt2dur, else the segment's length
    lang: str | None = None
    question: str | None = None  # the user's words for this utterance: the prompt
    question_type: str | None = None  # one word; scores are given apart for each
    answers: str | None = None  # those of all annotators, `|` between them; `text` is the one to learn
    feats: str | None = None  # `file.ark:offset[first:last]`, see steermoe.data.ark.read_matrix
    num_frames: int | None = None


@dataclass
class DataDir:
    """path: the folder. utterances: {utterance id: Utterance} in C-locale order."""

    path: Path
    utterances: dict[str, Utterance]

    def __len__(self) -> int:
        return len(self.utterances)

    @classmethod
    def read(cls, path: str | Path, allow_pipes: bool = False, require: Sequence[str] = ("wav.scp", "text")) -> DataDir:
        """Reads and joins the files. No audio is opened.

        require: files that must be there besides utt2spk. Others that are there are read too: segments, utt2lang, utt2dur,
        utt2num_frames, feats.scp, question, question_type, answers. allow_pipes: whether wav.scp may hold commands (`cmd |`).
        UserError names the file and the line: a missing or unsorted file, a key twice or in one file only, not UTF-8, a pipe, a
        badly formed segment or number.
        """
        path = Path(path)
        if not path.is_dir():
            raise UserError(f"{path}: no such data directory; run the data preparation (stage 0) or correct the path")
        for file in (path / name for name in ("utt2spk", *require)):
            if not file.is_file():
                raise UserError(f"{file}: no such file; run the data preparation (stage 0) or write it as Kaldi describes it")
        speakers: dict[str, str] = {}  # one string a speaker, not one an utterance
        utterances = {}
        for number, utt, spk in iter_map(path / "utt2spk"):
            if " " in spk or "\t" in spk:
                raise UserError(f"{path / 'utt2spk'}:{number}: more than two columns; write one speaker without blanks")
            utterances[utt] = Utterance(utt, speakers.setdefault(spk, spk))
        if not utterances:
            raise UserError(f"{path / 'utt2spk'}: empty file; run the data preparation (stage 0) again")
        directory = cls(path, utterances)
        directory._read_wav(allow_pipes)
        for name, field, parse in FIELDS:
            if (path / name).is_file():
                for where, utterance, value in directory._join(name):
                    setattr(utterance, field, parse(value, where))
        return directory

    def _join(self, name: str) -> Iterator[tuple[str, Utterance, str]]:
        """Yields (file:line, utterance, value) of a file indexed by utterance; UserError unless it has exactly the utterances."""
        file, source, count = self.path / name, self.path / "utt2spk", 0
        for number, utt, value in iter_map(file):
            utterance = self.utterances.get(utt)
            if utterance is None:
                raise UserError(f"{file}:{number}: {utt!r} is not in {source}; keep what is in both: {fix_hint(file)}")
            count += 1
            yield f"{file}:{number}", utterance, value
        if count != len(self.utterances) and name not in PARTIAL_FILES:
            found = {utt for _, utt, _ in iter_map(file)}
            utt = next(utt for utt in self.utterances if utt not in found)
            raise UserError(
                f"{source}:{line_of(source, utt)}: {utt!r} is not in {file} ({len(self.utterances) - count} missing there); "
                f"keep what is in both: {fix_hint(file)}"
            )

    def _read_wav(self, allow_pipes: bool) -> None:
        """wav.scp, by utterance or, where there is a segments file, by recording."""
        wav, segments = self.path / "wav.scp", self.path / "segments"
        if not wav.is_file():
            if segments.is_file():
                raise UserError(f"{segments}: exists but {wav} does not; write wav.scp (indexed by recording)")
            return
        if not segments.is_file():
            for where, utterance, value in self._join("wav.scp"):
                utterance.wav = _parse_wav(value, where, allow_pipes)
            return
        recordings = {reco: _parse_wav(value, f"{wav}:{number}", allow_pipes) for number, reco, value in iter_map(wav)}
        used = set()
        for where, utterance, value in self._join("segments"):
            reco, utterance.start, utterance.end = parse_segment(value, where)
            if reco not in recordings:
                raise UserError(f"{where}: the recording {reco!r} is not in {wav}; keep what is in both: {fix_hint(wav)}")
            used.add(reco)
            utterance.wav = recordings[reco]
            utterance.duration = round(utterance.end - utterance.start, 6)
        if unused := [reco for reco in recordings if reco not in used]:
            raise UserError(
                f"{wav}:{line_of(wav, unused[0])}: the recording {unused[0]!r} is not in {segments}; "
                f"keep what is in both: {fix_hint(wav)}"
            )


def _parse_wav(value: str, where: str, allow_pipes: bool) -> str:
    if (value.endswith("|") or value.startswith("|")) and not allow_pipes:
        raise UserError(
            f"{where}: a command (`cmd |`) instead of a file. It can do anything, so it runs only with --allow-pipes true; "
            "or write its output to files and name those"
        )
    if value.startswith("~"):
        raise UserError(f"{where}: ~ is not expanded in wav.scp; write the whole path")
    return value


def _text(value: str, where: str) -> str:
    return value


def _integer(value: str, where: str) -> int:
    return int(parse_positive(value, where, whole=True))


# file, field of Utterance, parser(value, file:line)
FIELDS: tuple[tuple[str, str, Callable], ...] = (
    ("text", "text", _text),
    ("utt2lang", "lang", _text),
    ("question", "question", _text),
    ("question_type", "question_type", _text),
    ("answers", "answers", _text),
    ("utt2dur", "duration", parse_positive),
    ("feats.scp", "feats", _text),
    ("utt2num_frames", "num_frames", _integer),
)
