"""NIST trn files: one utterance a line, `words (speaker-utterance)`.

Lines that are empty or begin with `;;` or `**` are comments, as in sclite. The speaker is what stands before the first "-" of the
id (without one: before the first "_"; without either: the whole id).
"""

from __future__ import annotations

import re
from pathlib import Path
from typing import Mapping

from steermoe.errors import UserError
from steermoe.files import atomic_write
from steermoe.score.units import ENCODINGS

_SPACE = " \t\r\v\f"
_TRN = re.compile(r"^(.*)\(([^()\n]+)\)[ \t\r\v\f]*$", re.MULTILINE)


def read_trn(path: str | Path, encoding: str = "utf-8") -> dict[str, str]:
    """{id without its parentheses: text}, in the file's order. UserError names file, line and fix for a line that is not trn."""
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file")
    try:
        text = Path(path).read_bytes().decode(encoding)
    except UnicodeDecodeError as error:
        number, column = error.object.count(b"\n", 0, error.start) + 1, error.start - error.object.rfind(b"\n", 0, error.start)
        others = ", ".join(name for name in ENCODINGS if name != encoding)
        raise UserError(
            f"{path}:{number}: not {encoding.upper()} (byte {error.object[error.start]:#04x} at column {column}); "
            f"name the file's encoding with --encoding ({others}), or convert it: iconv -f GB18030 -t UTF-8 {path}"
        ) from None
    utterances = _read_plain(text)
    if utterances is not None:
        return utterances
    utterances = {utt: words.strip(_SPACE) for words, utt in _TRN.findall(text)}
    lines = text.count("\n") + (text != "" and not text.endswith("\n"))
    comments = text.startswith((";;", "**")) or "\n;;" in text or "\n**" in text
    if len(utterances) == lines and not comments:
        return utterances  # every line is a good one
    return _read_slowly(path, text.split("\n"))


def _read_plain(text: str) -> dict[str, str] | None:
    """What the pattern finds, three times as fast, if every line ends with its id; None if any does not or may be a comment."""
    *lines, rest = text.split(")\n")
    if rest or not lines or text.count("\n") != len(lines) or text.startswith((";;", "**")) or "\n;;" in text or "\n**" in text:
        return None
    words, marks, utts = zip(*[line.rpartition("(") for line in lines])
    if "" in marks or "" in utts or any(mark in "".join(utts) for mark in ")\n"):
        return None
    utterances = dict(zip(utts, [text.strip(_SPACE) for text in words]))
    return utterances if len(utterances) == len(lines) else None


def _read_slowly(path: str | Path, lines: list[str]) -> dict[str, str]:
    """read_trn() line by line: leaves out comments, finds out which line is wrong."""
    utterances: dict[str, str] = {}
    for number, line in enumerate(lines, 1):
        match = _TRN.fullmatch(line)
        if line.startswith((";;", "**")) or not line.strip():
            continue
        if not match or not match[2].strip():
            raise UserError(f"{path}:{number}: not a trn line: {_short(line)!r}; write it as: words (speaker-utterance)")
        if match[2] in utterances:
            raise UserError(f"{path}:{number}: the id ({match[2]}) comes twice; keep one of the two lines")
        utterances[match[2]] = match[1].strip(_SPACE)
    return utterances


def trn_id(utt: str, speaker: str) -> str:
    """speaker-utterance. A "-" in a speaker's name becomes "_", because sclite takes the speaker to end at the first "-"."""
    return f"{speaker.replace('-', '_')}-{utt}"


def write_trn(path: str | Path, texts: Mapping[str, str], utt2spk: Mapping[str, str] | None = None) -> None:
    """Writes `text (speaker-utterance)` lines in the mapping's order; without utt2spk the keys are whole ids already."""
    lines = []
    for utt, text in texts.items():
        key = utt if utt2spk is None else trn_id(utt, utt2spk[utt])
        blank = " " if text.startswith(("**", ";;")) else ""  # without it the line would be a comment
        line = f"{blank}{text} ({key})\n"
        if "\r" in line or line.find("\n") != len(line) - 1 or "(" in key or ")" in key:
            message = "a trn line cannot hold a line break, nor an id a parenthesis; remove it"
            raise UserError(f"{path}: utterance {utt!r}: {message}")
        lines.append(line)
    with atomic_write(path) as stream:
        stream.writelines(lines)


def speaker_of(utt: str) -> str:
    """The speaker's part of a trn id."""
    for mark in "-_":
        if mark in utt:
            return utt[: utt.index(mark)]
    return utt


def match_keys(refs: Mapping[str, str], hyps: Mapping[str, str], ref_name: str, hyp_name: str) -> None:
    """UserError naming the first ids that are in one of the two only."""
    if refs.keys() == hyps.keys():
        return
    for here, there, here_name, there_name, what in (
        (refs, hyps, ref_name, hyp_name, "add a line for it (an empty hypothesis is a line that begins with the id)"),
        (hyps, refs, hyp_name, ref_name, "remove it there, or add its reference"),
    ):
        missing = [utt for utt in here if utt not in there]
        if missing:
            more = f" and {len(missing) - 1} more" if len(missing) > 1 else ""
            raise UserError(f"{there_name}: no line for ({missing[0]}){more}, which {here_name} has; {what}")


def _short(line: str, length: int = 60) -> str:
    return line if len(line) <= length else line[: length - 1] + "…"
