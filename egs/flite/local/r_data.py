#!/usr/bin/env python3
"""Writes vectors of strings out of an R package's data, a lazy-load database, as text files; R is not needed.

usage: local/r_data.py PACKAGE/data/Rdata OUT NAME…     -> OUT/NAME.txt, a string a line

Rdata.rdx is gzipped and says where in Rdata.rdb each variable lies: four bytes of length and a zlib stream. Both hold R's
serialization as XDR (R Internals, "Serialization Formats"), of which vectors of strings and numbers, lists and names are read.
"""

from __future__ import annotations

import gzip
import io
import struct
import sys
import zlib
from pathlib import Path
from typing import Any

from steermoe.bin.cli import run
from steermoe.errors import UserError

SYMBOL, PAIRS, STRING, LOGICALS, INTEGERS, STRINGS, LIST, NIL, REFERENCE = 1, 2, 9, 10, 13, 16, 19, 254, 255
HAS_ATTRIBUTES, HAS_TAG = 0x200, 0x400


class Reader:
    """object(): list of what a vector or list holds, or a dict where it has names. ValueError for any other type."""

    def __init__(self, content: bytes):
        self.stream, self.symbols = io.BytesIO(content), []
        if self.stream.read(2) != b"X\n":
            raise ValueError("not XDR")
        version, _, _ = self.integers(3)
        if version == 3:
            self.stream.read(self.integer())  # the name of an encoding

    def integers(self, count: int) -> list[int]:
        return list(struct.unpack(f">{count}i", self.stream.read(4 * count)))

    def integer(self) -> int:
        return self.integers(1)[0]

    def object(self) -> Any:
        flags = self.integer()
        kind = flags & 0xFF
        if kind == NIL:
            return {}
        if kind == REFERENCE:
            return self.symbols[(flags >> 8) - 1]
        if kind == SYMBOL:
            self.symbols.append(self.object())
            return self.symbols[-1]
        if kind == STRING:
            return self.stream.read(max(self.integer(), 0)).decode("utf-8")
        if kind == PAIRS:
            tag = self.object() if flags & HAS_TAG else None
            return {tag: self.object()} | self.object()
        if kind in (LOGICALS, INTEGERS):
            value = self.integers(self.integer())
        elif kind in (STRINGS, LIST):
            value = [self.object() for _ in range(self.integer())]
        else:
            raise ValueError(f"an object of type {kind}")
        names = self.object().get("names") if flags & HAS_ATTRIBUTES else None
        return dict(zip(names, value)) if names else value


def read_variables(database: Path, names: list[str]) -> dict[str, list[str]]:
    """database: path of the .rdx and .rdb files without the ending. UserError if they are of another form, or lack a name."""
    index, content = database.with_suffix(".rdx"), database.with_suffix(".rdb")
    try:
        where = Reader(gzip.decompress(index.read_bytes())).object()["variables"]
        raw = content.read_bytes()
        places = {name: where[name] for name in names}
        return {name: Reader(zlib.decompress(raw[at + 4 : at + size])).object() for name, (at, size) in places.items()}
    except KeyError as error:
        raise UserError(f"{index}: has no {error} in it: another version of the package") from None
    except (OSError, EOFError, ValueError, TypeError, AttributeError, IndexError, struct.error, zlib.error) as error:
        raise UserError(f"{database}.rd[xb]: not R's lazy-load form, or another version of it ({error})") from None


def main(argv: list[str] | None = None) -> int:
    words = sys.argv[1:] if argv is None else argv
    if len(words) < 3:
        raise UserError("usage: local/r_data.py PACKAGE/data/Rdata OUT NAME…")
    out = Path(words[1])
    out.mkdir(parents=True, exist_ok=True)
    for name, lines in read_variables(Path(words[0]), words[2:]).items():
        (out / f"{name}.txt").write_text("".join(f"{line}\n" for line in lines), encoding="utf-8")
    return 0


if __name__ == "__main__":
    run(main)
