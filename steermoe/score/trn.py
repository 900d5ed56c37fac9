"""NIST trn files: one utterance a line, `words (speaker-utterance)`.

Lines that are empty or begin with `;;` or `**` are comments, as in sclite. The speaker is what stands before the first "-" of the
id (without one: before the first "_"; without either: the whole id).
"""

from __future__ import annotations

from pathlib import Path
from typing import Mapping

from steermoe.errors import UserError
from steermoe.files import atomic_write, read_lines


def read_trn(path: str | Path) -> dict[str, str]:
    """{id without its parentheses: text}, in the file's order. UserError names file, line and fix for a line that is not trn."""
    utterances: dict[str, str] = {}
    for number, line in read_lines(path):
        if not line.strip() or line.startswith((";;", "**")):
            continue
        text, parenthesis, end = line.rpartition("(")
        utt, closing, rest = end.rpartition(")")
        if not parenthesis or not closing or rest.strip() or not utt.strip():
            raise UserError(f"{path}:{number}: not a trn line: {_short(line)!r}; write it as: words (speaker-utterance)")
        if utt in utterances:
            raise UserError(f"{path}:{number}: the id ({utt}) comes twice; keep one of the two lines")
        utterances[utt] = text.strip(" \t\r\n\v\f")
    return utterances


def write_trn(path: str | Path, texts: Mapping[str, str], utt2spk: Mapping[str, str] | None = None) -> None:
    """Writes `text (speaker-utterance)` lines in the mapping's order; without utt2spk the keys are whole ids already.

    A "-" in a speaker's name becomes "_", because sclite takes the speaker to end at the first "-".
    """
    with atomic_write(path) as stream:
        for utt, text in texts.items():
            key = utt if utt2spk is None else f"{utt2spk[utt].replace('-', '_')}-{utt}"
            if "\n" in text or "\r" in text or any(mark in key for mark in "()\n\r"):
                raise UserError(f"{path}: utterance {utt!r}: a trn line cannot hold a line break, nor an id a parenthesis; remove it")
            stream.write(f"{text} ({key})\n")


def speaker_of(utt: str) -> str:
    """The speaker's part of a trn id."""
    for mark in "-_":
        if mark in utt:
            return utt[: utt.index(mark)]
    return utt


def match_keys(refs: Mapping[str, str], hyps: Mapping[str, str], ref_name: str, hyp_name: str) -> None:
    """UserError naming the first ids that are in one of the two only."""
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
