"""Beneath a Steel Sky, its version with speech: the recordings in sky.dsk, and what is said in each, which its number leads to.

sky.dnr, little endian: number of files, then 8 bytes each: number, 24 bits of offset (bit 23: the rest counts 16 bytes), 24 bits
of flags and size (22 bits). A recording is file 50000 + n: a header of 22 bytes, then RNC-packed 8-bit samples at 11,025 Hz.
The English texts are the files 60600 to 60607, a section each, and recording n is of the section that begins last before n.
Texts are in a Huffman code of the game's own, one for all languages. That is in the game's program, which the package does not
have; CODE was found by what the recordings say and how many bits their texts have. What is not speech is left out of it.
"""

from __future__ import annotations

import functools
import re
import struct
from pathlib import Path
from typing import Iterator

import numpy as np
import rnc
from game import Clip, reading

from steermoe.errors import UserError

SPEECH, TEXTS = 50000, 60600
SECTIONS = (0, 600, 1100, 2430, 3380, 4530, 5080, 5230)  # first recording of each
AFTER_SPEECH = 9000  # from here on the introduction: its recordings have no text, and there are pictures between them
FILE_HEADER = 22
END = ""
CODE = {
    code: character
    for character, code in re.findall(
        r"(\D)([01]+)",
        " 000e0010a0011r0111o01000s01001t01010n01011.01100i01101u10001m10010A10011T10111c110001D110010g110011E100001"
        "l101000I101001d101010R101011N101100S101101M110111O1100000h1100001L1101000C1101001p1101010U1101011!1101100"
        "y1101101P11100000v11100001H1110001?1110010b1110011,1110101G1110110B1110111'11101000f11101001F11110001q11110010"
        "w11110011W11110101J11110110V111100000k111100001K111101000-111101001z111110000Y111110001j111110010Q1111101000"
        "Z1111101100:1111110011x11111101100X11111101101\"111111100001&1111111110000",
    )
} | {"100000": END}
LONGEST = max(map(len, CODE))


def clips(index_path: Path) -> list[Clip]:
    """index_path: sky.dnr; sky.dsk beside it. UserError for other files and for such that are cut short."""
    disk_path = index_path.with_suffix(".dsk")
    if not disk_path.is_file():
        raise UserError(f"{index_path}: no {disk_path.name} beside it; the game's recordings are in that")
    with reading(index_path):
        places = dict(read_index(index_path.read_bytes()))
    with reading(disk_path):
        disk = disk_path.read_bytes()
        if beyond := [number for number, (offset, size) in places.items() if offset + size > len(disk)]:
            raise ValueError(f"{len(disk)} bytes, and file {beyond[0]} ends behind them")
        said: dict[int, str | None] = {}
        for section, first in enumerate(SECTIONS):
            offset, size = places.get(TEXTS + section, (0, 0))
            for number, bits in enumerate(messages(disk[offset : offset + size]), SPEECH + first):
                said[number] = decode(bits)
    found = []
    for number, (offset, size) in sorted(places.items()):
        packed = disk[offset + FILE_HEADER : offset + size]
        if SPEECH <= number < SPEECH + AFTER_SPEECH and packed[: len(rnc.MAGIC)] == rnc.MAGIC:
            found.append(Clip(str(number), "", said.get(number), functools.partial(samples_of, packed)))
    return found


def read_index(data: bytes) -> Iterator[tuple[int, tuple[int, int]]]:
    """(number, (offset, size)) of each file."""
    for at in range(4, 4 + 8 * struct.unpack_from("<I", data)[0], 8):
        number, places = struct.unpack("<HI", data[at : at + 6])
        offset, size = places & 0xFFFFFF, int.from_bytes(data[at + 5 : at + 8], "little") & 0x3FFFFF
        yield number, ((offset & 0x7FFFFF) << 4 if offset & 0x800000 else offset, size)


def samples_of(packed: bytes) -> np.ndarray:
    """ValueError if it does not unpack."""
    return np.frombuffer(rnc.unpack(packed), np.uint8).astype(np.float32) / 128 - 1


def messages(section: bytes) -> list[str]:
    """The bits of each text of a section, as a string of 0 and 1; none of a section that is not there.

    Two numbers: where the lengths and where the bits begin. Then the lengths of each 32 texts together; a byte with the length of
    each text, in units of 2 bits, of 16 where bit 7 is set; the bits, the highest of a byte first.
    """
    if not section:
        return []
    lengths_at, bits_at = struct.unpack_from("<2H", section)
    blocks = struct.unpack_from(f"<{(lengths_at - 4) // 2}H", section, 4)
    bits = "".join(f"{byte:08b}" for byte in section[bits_at:])
    found, at = [], 0
    for number, length in enumerate(section[lengths_at:bits_at]):
        if number % 32 == 0:
            at = 2 * sum(blocks[: number // 32])
        end = at + 2 * (8 * (length & 0x7F) if length & 0x80 else length)
        found.append(bits[at:end])
        at = end
    return found


def decode(bits: str) -> str | None:
    """None if there is a character in it that CODE does not have."""
    text, at = "", 0
    while at < len(bits):
        for length in range(1, LONGEST + 1):
            character = CODE.get(bits[at : at + length])
            if character is not None:
                break
        else:
            return None
        if character == END:
            return text
        text += character
        at += length
    return None
