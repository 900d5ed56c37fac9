"""Training figures as a TensorBoard event file, written without TensorBoard: `tensorboard --logdir exp` shows it.

An event file is a TFRecord file of `Event` protocol buffers. A record is its length (uint64), the masked CRC-32C of that, the
data and the masked CRC-32C of the data, little-endian. Sources: RFC 3720, appendix B.4 (CRC-32C); event.proto and summary.proto
of TensorFlow (field numbers); tensorflow/core/lib/io/record_writer.h (record, mask).
"""

from __future__ import annotations

import math
import struct
import time
from pathlib import Path
from typing import Iterator, Sequence

from steermoe.files import atomic_write

NOT_CURVES = ("step", "best")


class EventFile:
    """The one event file of a folder. Its clock counts the optimiser steps' seconds, so that lines alone decide its bytes."""

    def __init__(self, folder: str | Path):
        self.folder, self.seconds = Path(folder), 0.0

    def restart(self, lines: Sequence[dict]) -> None:
        """A new file of these log lines in the place of any other. Its name is new and it begins with a start mark, by which a
        TensorBoard that is looking on forgets what it has read.
        """
        old, self.seconds = list(self.folder.glob("*tfevents*")), 0.0
        self.path = self.folder / f"events.out.tfevents.{time.time_ns()}.steermoe"
        with atomic_write(self.path, "wb") as stream:
            stream.write(_record(_double(1, 0.0) + _bytes(3, b"brain.Event:2")))
            stream.write(_record(_double(1, 0.0) + _bytes(7, _int(1, 1))))  # SessionLog, status START
            stream.writelines(map(self._event, lines))
        for path in old:
            path.unlink()

    def append(self, lines: Sequence[dict]) -> None:
        with open(self.path, "ab") as stream:
            stream.writelines(map(self._event, lines))

    def _event(self, line: dict) -> bytes:
        self.seconds += line.get("seconds", 0.0)
        values = (_bytes(1, _bytes(1, tag.encode()) + _float(2, value)) for tag, value in curves(line))
        return _record(_double(1, self.seconds) + _int(2, line["step"]) + _bytes(5, b"".join(values)))


def curves(line: dict) -> Iterator[tuple[str, float]]:
    """The finite numbers of a log line under TensorBoard's tags: lr/…, dev/…, train/…, and NAME/0, NAME/1/3 for lists."""
    for name, value in line.items():
        if isinstance(value, list):
            yield from _entries(name, value)
        elif name not in NOT_CURVES and value is not None and math.isfinite(value):
            group, _, rest = name.partition("_")
            yield (f"{group}/{rest}" if group in ("lr", "dev") else f"train/{name}"), value


def _entries(tag: str, value: list | float) -> Iterator[tuple[str, float]]:
    if not isinstance(value, list):
        yield tag, value
        return
    for index, entry in enumerate(value):
        yield from _entries(f"{tag}/{index}", entry)


def _record(data: bytes) -> bytes:
    length = struct.pack("<Q", len(data))
    return length + struct.pack("<I", _mask(crc32c(length))) + data + struct.pack("<I", _mask(crc32c(data)))


def _mask(crc: int) -> int:
    return ((crc >> 15 | crc << 17) + 0xA282EAD8) & 0xFFFFFFFF


def crc32c(data: bytes) -> int:
    """The CRC with Castagnoli's polynomial, 0x1EDC6F41, bits reflected."""
    crc = 0xFFFFFFFF
    for byte in data:
        crc = _TABLE[(crc ^ byte) & 0xFF] ^ (crc >> 8)
    return crc ^ 0xFFFFFFFF


def _table_entry(value: int) -> int:
    for _ in range(8):
        value = (value >> 1) ^ (0x82F63B78 if value & 1 else 0)
    return value


_TABLE = [_table_entry(byte) for byte in range(256)]


def _varint(value: int) -> bytes:
    found = bytearray()
    while value > 0x7F:
        found.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*found, value])


def _int(field: int, value: int) -> bytes:
    return _varint(field << 3) + _varint(value)


def _double(field: int, value: float) -> bytes:
    return _varint(field << 3 | 1) + struct.pack("<d", value)


def _bytes(field: int, value: bytes) -> bytes:
    return _varint(field << 3 | 2) + _varint(len(value)) + value


def _float(field: int, value: float) -> bytes:
    return _varint(field << 3 | 5) + struct.pack("<f", value)
