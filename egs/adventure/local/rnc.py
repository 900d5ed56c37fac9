"""Rob Northen's compression, method 1: blocks of Huffman codes for how many bytes stand as they are, how far back and how much
is repeated. Header, big endian: `RNC`, method, length unpacked, length packed, CRC-16 unpacked, CRC-16 packed, leeway,
number of blocks. Bits come from little-endian 16-bit words, lowest first; the words lie between the plain bytes.
"""

from __future__ import annotations

import struct

HEADER = struct.Struct(">4sIIHHBB")
MAGIC = b"RNC\x01"


class _Bits:
    """The word after the one in use is always read in advance: plain bytes lie behind that of the two."""

    def __init__(self, data: bytes):
        self.data, self.at = data, 0
        self.held, self.count = int.from_bytes(data[:2], "little"), 16

    def take(self, count: int) -> int:
        value = self.held & ((1 << count) - 1)
        self.held >>= count
        self.count -= count
        if self.count < 16:
            self.at += 2
            self._read_ahead()
        return value

    def plain(self, count: int) -> bytes:
        block = self.data[self.at : self.at + count]
        self.at += count
        self.count -= 16
        self.held &= (1 << self.count) - 1
        self._read_ahead()
        return block

    def _read_ahead(self) -> None:
        self.held |= int.from_bytes(self.data[self.at : self.at + 2], "little") << self.count  # none behind the end: zeros
        self.count += 16


class _Code:
    """Canonical Huffman code; a symbol over 1 is how many bits follow, plus one: 4 and three bits are 8 to 15."""

    def __init__(self, bits: _Bits):
        lengths = [bits.take(4) for _ in range(bits.take(5))]
        self.longest = max(lengths, default=0)
        self.table: dict[int, tuple[int, int]] = {}  # the next `longest` bits -> (length, symbol)
        code = 0
        for length in range(1, self.longest + 1):
            for symbol in (symbol for symbol, its in enumerate(lengths) if its == length):
                first = int(f"{code:0{length}b}"[::-1], 2)
                for bits_after in range(1 << (self.longest - length)):
                    self.table[first | bits_after << length] = length, symbol
                code += 1
            code <<= 1

    def read(self, bits: _Bits) -> int:
        found = self.table.get(bits.held & ((1 << self.longest) - 1))
        if found is None:
            raise ValueError("packed data is damaged")
        length, symbol = found
        bits.take(length)
        return symbol if symbol < 2 else 1 << (symbol - 1) | bits.take(symbol - 1)


def unpack(data: bytes) -> bytes:
    """data: begins with the header. ValueError for what does not unpack to its length and check sum."""
    if data[: len(MAGIC)] != MAGIC or len(data) < HEADER.size:
        raise ValueError("no packed data")
    _, length, packed_length, check, _, _, blocks = HEADER.unpack_from(data)
    packed = data[HEADER.size : HEADER.size + packed_length]
    bits, out = _Bits(packed), bytearray()
    bits.take(2)  # flags of the packing program
    for _ in range(blocks):
        plain, back, repeated = _Code(bits), _Code(bits), _Code(bits)
        for left in reversed(range(bits.take(16))):
            if count := plain.read(bits):
                out += bits.plain(count)
            if left:
                distance, count = back.read(bits) + 1, repeated.read(bits) + 2
                if distance > len(out) or len(out) > length:
                    raise ValueError("packed data is damaged")
                again = out[-distance:][:count]
                out += (again * (-(-count // len(again))))[:count]
    if len(out) != length or crc16(out) != check:
        raise ValueError("packed data is damaged")
    return bytes(out)


def _crc_table() -> list[int]:
    table = []
    for value in range(256):
        for _ in range(8):
            value = value >> 1 ^ (0xA001 if value & 1 else 0)
        table.append(value)
    return table


CRC_TABLE = _crc_table()


def crc16(data: bytes) -> int:
    """CRC-16/ARC: polynomial 0x8005 from the lowest bit, begun at 0."""
    crc = 0
    for byte in data:
        crc = crc >> 8 ^ CRC_TABLE[(crc ^ byte) & 255]
    return crc
