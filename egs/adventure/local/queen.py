"""Flight of the Amazon Queen: the recordings in queen.1c, and what is said in each, which its name leads to.

The file, big endian: `QTBL`, version, from byte 13 the number of entries, then 21 bytes each: name in 12, bundle, offset, size.
NAME.SB is a recording, an MP3 stream of 11,025 Hz. A line of the game is spoken in sentences that end in `*` and two characters
of stage direction (XY and a place); the sentences of a line are numbered from 1, in hexadecimal, and the number ends the
recording's name:

    KKNNNNJ1, KKNNNNP1    node NNNN (hexadecimal) of the dialogue with key KK, said by Joe, the player, or by the other person;
                          SSSS is Joe's greeting, XXXX both people's when they meet again
    C41B_742              of object 74 of the cut scene C41B
    JOE01231              what Joe thinks of thing number 123 - 40; up to 40 his excuses
"""

from __future__ import annotations

import io
import re
import struct
from pathlib import Path
from typing import Iterator

import numpy as np
import soundfile
from game import RATE, Clip, reading

ENTRY = struct.Struct(">12sBII")
TABLE_AT = 13
BANK_HEADER = b"AmBk"  # 20 bytes in front of a dialogue and of a cut scene, as AMOS, in which the game was written, stores them
TREE_AT, LEVEL_BYTES = 32, 96  # of a dialogue
EXCUSES = 40
LAST_WORD = "to"  # `give … to`: the line of the texts before the first excuse

Line = tuple[str, str, str]  # a recording's name without the sentence's number, who speaks, what


def clips(path: Path) -> list[Clip]:
    """UserError for another file and for one that is cut short; a recording that is no MP3 is an error when it is read."""
    data = path.read_bytes()
    with reading(path):
        files = dict(read_entries(data))
        said = {
            f"{name}{number:X}": (speaker, sentence)
            for name, speaker, text in script(files)
            for number, sentence in sentences(text)
        }
    found = []
    for name in sorted(files):
        stem, _, kind = name.partition(".")
        if kind == "SB":
            speaker, text = said.get(stem, ("unknown", None))
            found.append(Clip(stem.lower(), speaker, text, lambda mp3=files[name]: decode(mp3)))
    return found


def read_entries(data: bytes) -> Iterator[tuple[str, bytes]]:
    if data[:4] != b"QTBL":
        raise ValueError("it does not begin with QTBL")
    count = struct.unpack_from(">H", data, TABLE_AT)[0]
    for index in range(count):
        name, _, offset, size = ENTRY.unpack_from(data, TABLE_AT + 2 + index * ENTRY.size)
        if offset + size > len(data):
            raise ValueError(f"{len(data)} bytes, and entry {index} ends at {offset + size}")
        name = name.rstrip(b"\0").decode("latin-1")
        if not re.fullmatch(r"\w+(\.\w+)?", name, re.ASCII):  # recordings are written under their names
            raise ValueError(f"entry {index} is called {name!r}")
        yield name, data[offset : offset + size]


def decode(mp3: bytes) -> np.ndarray:
    """ValueError if it is not an MP3 stream of one channel at RATE."""
    try:
        samples, rate = soundfile.read(io.BytesIO(mp3), dtype="float32")
    except soundfile.LibsndfileError as error:
        raise ValueError(f"not an MP3 stream ({error})") from None
    if rate != RATE or samples.ndim > 1:
        raise ValueError(f"{rate} Hz, {samples.ndim} channels; {RATE} Hz and one are wanted")
    return samples


def script(files: dict[str, bytes]) -> Iterator[Line]:
    for name, content in files.items():
        stem, _, kind = name.partition(".")
        if kind == "DOG":
            yield from dialogue(re.sub(r"\d+$", "", stem).lower(), without_header(content))
        elif kind == "CUT":
            yield from scene(stem, without_header(content))
        elif name == "QUEEN2.JAS":
            yield from remarks(content.decode("latin-1").splitlines())


def without_header(content: bytes) -> bytes:
    if content[:4] != BANK_HEADER:
        raise ValueError("a dialogue or a cut scene does not begin with AmBk")
    return content[20:]


def sentences(text: str) -> Iterator[tuple[int, str]]:
    """(number from 1, sentence) of a line; a number without words is left out."""
    for number, sentence in enumerate(re.split(r"\*(?:XY.{11}|.{0,2})", text), 1):
        if sentence.strip():
            yield number, sentence.strip()


def dialogue(person: str, data: bytes) -> Iterator[Line]:
    """person: the other one, by the file's name."""
    levels, _, key, joe_lines, person_lines = struct.unpack_from(">h4H", data)
    person_at, _, again_at = struct.unpack_from(">3H", data, 22)
    joe_at = TREE_AT + LEVEL_BYTES * abs(levels)
    no_greeting = struct.unpack_from(">H", data, joe_at + 2)[0]
    joe_at += 4
    if not no_greeting:
        greeting, joe_at = string(data, joe_at, 4)
        yield f"{key:02d}SSSSJ", "joe", greeting
    again, at = string(data, again_at, 2)
    yield f"{key:02d}XXXXP", person, again
    yield f"{key:02d}XXXXJ", "joe", string(data, at, 2)[0]
    for speaker, letter, at, count in (("joe", "J", joe_at, joe_lines), (person, "P", person_at, person_lines)):
        seen = set()
        for _ in range(count):
            node = struct.unpack_from(">2xH", data, at)[0]
            text, at = string(data, at + 4, 4)
            if node not in seen:  # the game takes the first
                yield f"{key:02d}{node:04X}{letter}", speaker, text
            seen.add(node)


def scene(stem: str, data: bytes) -> Iterator[Line]:
    """Who speaks is not kept apart."""
    objects, texts_at = struct.unpack_from(">2xh4xH", data)
    _, at = string(data, texts_at, 2)
    for number in range(1, abs(objects) + 1):
        text, at = string(data, at, 2)
        yield f"{stem:_<5}{number:02d}", "scenes", text


def remarks(lines: list[str]) -> Iterator[Line]:
    first = lines.index(LAST_WORD) + 1
    for start, part in ((1, lines[first : first + EXCUSES]), (EXCUSES + 1, lines)):
        for number, text in enumerate(part, start):
            yield f"JOE{number:04d}", "joe", text


def string(data: bytes, at: int, align: int) -> tuple[str, int]:
    """The string at `at`, behind a byte with its length, and where the next one is; an empty one is not filled up."""
    length = data[at]
    at += 1
    if not length:
        return "", at
    if at + length > len(data):
        raise ValueError("a text is cut short")
    return data[at : at + length].decode("latin-1"), -(-(at + length) // align) * align
