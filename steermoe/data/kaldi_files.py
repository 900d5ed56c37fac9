"""The files of a Kaldi data directory: `key value` lines in C-locale (byte) order of the key.

UTF-8 keeps the order of code points, so Python's order of str and the C locale's order of bytes are the same.
"""

from __future__ import annotations

import os
from pathlib import Path
from typing import Iterable, Iterator, Mapping

from steermoe.errors import UserError
from steermoe.files import atomic_write

# What each file is indexed by. wav.scp is indexed by recording where there is a segments file, else by utterance.
UTT_FILES = (
    *("utt2spk", "text", "segments", "feats.scp", "vad.scp"),
    *("utt2lang", "utt2uniq", "utt2dur", "utt2num_frames", "utt2warp"),
    *("question", "question_type", "answers"),
)
SPK_FILES = ("spk2utt", "cmvn.scp", "spk2gender", "spk2warp")
RECO_FILES = ("wav.scp", "reco2file_and_channel", "reco2dur")
ALL_FILES = UTT_FILES + SPK_FILES + RECO_FILES
# Only some utterances of a mixed set have a question; a transcript may be empty.
PARTIAL_FILES = ("question", "question_type", "answers")
EMPTY_VALUE_ALLOWED = ("text",)


def check_utf8(path: str | Path, number: int, raw: bytes) -> str:
    """Decodes one line. UserError names the file, the line and the byte."""
    try:
        return raw.decode("utf-8")
    except UnicodeDecodeError as error:
        raise UserError(
            f"{path}:{number}: not UTF-8 (byte {raw[error.start]:#04x} at column {error.start + 1}); convert the file, "
            f"for example: iconv -f LATIN1 -t UTF-8 {path} > {path}.utf8 && mv {path}.utf8 {path}"
        ) from None


def iter_lines(path: str | Path) -> Iterator[tuple[int, str, str]]:
    """Yields (line number from 1, key, value) in file order. The value may be empty; blanks around it are dropped.

    Only ASCII blanks separate, as in Kaldi: a no-break space belongs to the word. UserError for a missing file, a blank line,
    a line that is not UTF-8, a byte-order mark.
    """
    try:
        stream = open(path, "rb")
    except FileNotFoundError:
        raise UserError(f"{path}: no such file; make it, or correct the path") from None
    except (IsADirectoryError, PermissionError) as error:
        raise UserError(f"{path}: cannot be read ({error.strerror}); correct the path or its mode") from None
    with stream:
        for number, raw in enumerate(stream, 1):
            fields = raw.split(None, 1)
            if not fields:
                raise UserError(f"{path}:{number}: blank line; remove it: {fix_hint(path)}")
            if number == 1 and raw.startswith(b"\xef\xbb\xbf"):
                raise UserError(f"{path}:1: begins with a byte-order mark; remove it: {fix_hint(path)}")
            try:
                key, value = fields[0].decode(), fields[1].rstrip().decode() if len(fields) == 2 else ""
            except UnicodeDecodeError:
                check_utf8(path, number, raw)
                raise
            yield number, key, value


def fix_hint(path: str | Path) -> str:
    return f"utils/fix_data_dir.sh {Path(path).parent}"


def iter_map(path: str | Path, empty_ok: bool | None = None) -> Iterator[tuple[int, str, str]]:
    """`iter_lines` that also checks the order: every key once, in C-locale order, with a value.

    empty_ok: whether a key may stand alone; None: only in `text`.
    """
    if empty_ok is None:
        empty_ok = Path(path).name in EMPTY_VALUE_ALLOWED
    previous = ""
    for number, key, value in iter_lines(path):
        if key <= previous:
            raise UserError(_order_message(path, number, key, previous))
        if not value and not empty_ok:
            raise UserError(f"{path}:{number}: {key!r} has no value; add it or remove the line")
        previous = key
        yield number, key, value


def _order_message(path: str | Path, number: int, key: str, previous: str) -> str:
    for first, other, _ in iter_lines(path):
        if first < number and other == key:
            return (
                f"{path}:{number}: duplicated key {key!r} (first on line {first}); "
                f"remove one of the lines ({fix_hint(path)} keeps the first)"
            )
        if first >= number:
            break
    return f"{path}:{number}: not sorted: {key!r} comes after {previous!r}; sort in the C locale: {fix_hint(path)}"


def read_map(path: str | Path, empty_ok: bool | None = None) -> dict[str, str]:
    """The file as {key: value} in its order. Checks as `iter_map`."""
    return {key: value for _, key, value in iter_map(path, empty_ok)}


def format_value(value: object) -> str:
    """str of a value; a float with at most 6 decimals and no useless zeros (3.5, 12.000063)."""
    if isinstance(value, float):
        return f"{value:.6f}".rstrip("0").rstrip(".")
    return str(value)


def write_map(path: str | Path, mapping: Mapping[str, object] | Iterable[tuple[str, object]]) -> None:
    """Writes `key value` lines in C-locale order, whole or not at all. UserError for a blank in a key or a line break."""
    items = sorted(mapping.items() if isinstance(mapping, Mapping) else mapping, key=lambda item: item[0])
    with atomic_write(path) as stream:
        for key, value in items:
            text = format_value(value)
            if not key or key.split() != [key]:
                raise UserError(f"{path}: the key {key!r} is empty or has a blank in it; rename it")
            if "\n" in text or "\r" in text:
                raise UserError(f"{path}: the value of {key!r} has a line break in it; replace it by a space")
            stream.write(f"{key} {text}\n" if text else f"{key}\n")


def line_of(path: str | Path, key: str) -> int:
    """Line number of a key, for a message."""
    return next((number for number, other, _ in iter_lines(path) if other == key), 0)


def spk2utt_of(utt2spk: Mapping[str, str]) -> dict[str, str]:
    """{utterance: speaker} -> {speaker: 'utt1 utt2 …'}, both in C-locale order."""
    speakers: dict[str, list[str]] = {}
    for utt in sorted(utt2spk):
        speakers.setdefault(utt2spk[utt], []).append(utt)
    return {speaker: " ".join(speakers[speaker]) for speaker in sorted(speakers)}


def existing(folder: str | Path, names: Iterable[str] = ALL_FILES) -> list[str]:
    """Those of the names that are files in the folder."""
    return [name for name in names if os.path.isfile(os.path.join(folder, name))]
