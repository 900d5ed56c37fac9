"""Kaldi archives (ark) of feature matrices: the only file that imports kaldiio.

Reads what Kaldi, ESPnet and kaldiio write: binary float and double matrices, text matrices, and the compressed types CM, CM2
and CM3. Every size in a header is compared with the file before anything is allocated, so a damaged file gives one message.
Source of the format: Kaldi's matrix/kaldi-matrix.cc, matrix/compressed-matrix.h and util/kaldi-holder.cc.
"""

from __future__ import annotations

import os
import re
import struct
from pathlib import Path
from typing import IO, Iterator, NamedTuple

import numpy as np
from kaldiio.matio import read_matrix_or_vector, write_array

from steermoe.errors import UserError

NO_COMPRESSION = 0
# Kaldi's enum CompressionMethod: 2 speech feature (one byte), 3 two bytes, 5 one byte, each with the matrix's own range.
# 4, 6 and 7 have a fixed range (integers, or 0 to 1), which destroys log-mel features.
METHODS = (NO_COMPRESSION, 2, 3, 5)
BYTES_PER_VALUE = {"FM": 4, "DM": 8, "CM": 1, "CM2": 2, "CM3": 1}
# Kaldi allows a range to end up to 3 frames late: 2 for the window's edges, 1 for segment times rounded to 10 ms.
RANGE_TOLERANCE = 3
FIX = "make the features of this set again (remove the ark and its scp, then run the feature stage)"


class ArkEntry(NamedTuple):
    """One matrix of an archive: `file:offset` is what feats.scp holds, `end` is the first byte after it."""

    utt: str
    offset: int
    rows: int
    cols: int
    end: int


class ArkWriter:
    """Writes `utt matrix` records to an ark. Use as a context manager, or call `close`.

    path: the ark. compression_method: 0 (float32), 2, 3 (default: two bytes, about 1e-5 of the range), 5.
    resume_at: None starts a new file; a number keeps the first `resume_at` bytes (an `ArkEntry.end`, see `scan_ark`),
    drops the rest and goes on there, so that an interrupted and resumed run leaves the same bytes as an uninterrupted one.
    """

    def __init__(self, path: str | Path, compression_method: int = 3, resume_at: int | None = None):
        if compression_method not in METHODS:
            raise UserError(
                f"{path}: compression method {compression_method} is not allowed (4, 6 and 7 destroy these features); "
                f"use one of {', '.join(map(str, METHODS))}"
            )
        self.path, self.compression_method = Path(path), compression_method
        self.path.parent.mkdir(parents=True, exist_ok=True)
        size = self.path.stat().st_size if self.path.is_file() else 0
        if resume_at is not None and resume_at > size:
            raise UserError(f"{path}: has {size} bytes but should go on at byte {resume_at}; {FIX}")
        self.stream = open(path, "wb" if resume_at is None else "r+b" if size else "wb")
        if resume_at is not None:
            self.stream.truncate(resume_at)
            self.stream.seek(resume_at)

    def write(self, utt: str, matrix: np.ndarray) -> int:
        """Appends one matrix and returns its offset: the scp line is `utt path:offset`.

        matrix: (T, F) float32 (other floats are converted), not empty. UserError for an empty one and, compressed, one that
        has NaN or infinity: the range is shared, so one such value would make every value of the utterance wrong.
        """
        matrix = np.ascontiguousarray(matrix, dtype=np.float32)
        if not utt or re.search(r"\s", utt):
            raise UserError(f"{self.path}: the utterance id {utt!r} is empty or has a space in it; rename the utterance")
        if matrix.ndim != 2 or not matrix.size:
            raise UserError(f"{self.path}: utterance {utt!r} has no features (shape {matrix.shape}); remove the utterance")
        method = self.compression_method
        if method and not np.isfinite(float(matrix.max()) - float(matrix.min())):
            raise UserError(f"{self.path}: utterance {utt!r} has NaN or infinity in its features; check or remove its audio")
        if method == 2 and len(matrix) <= 8:
            method = 3  # as Kaldi's automatic method: too few rows for quartiles of a column
        self.stream.write(utt.encode("utf-8") + b" ")
        offset = self.stream.tell()
        write_array(self.stream, matrix, compression_method=method or None)
        return offset

    def tell(self) -> int:
        """Bytes written so far: the `resume_at` of a later writer, once `flush` has returned."""
        return self.stream.tell()

    def flush(self) -> None:
        """Makes everything written so far survive a crash."""
        self.stream.flush()
        os.fsync(self.stream.fileno())

    def close(self) -> None:
        if not self.stream.closed:
            self.flush()
            self.stream.close()

    def __enter__(self) -> ArkWriter:
        return self

    def __exit__(self, *exception) -> None:
        self.close()


def _read_header(stream: IO[bytes], where: str, size: int) -> tuple[str, int, int, int]:
    """Reads a binary matrix's header at the stream's position. Returns (type, rows, cols, end of the data in the file).

    The stream is left after the header. size: bytes in the file.
    """
    start = stream.tell()
    head = stream.read(24)
    if head[:3] == b"PKL":
        raise UserError(f"{where}: is a Python pickle, which can run code when it is read: refused; {FIX}")
    if head[:4] in (b"RIFF", b"fLaC") or head[:3] in (b"NPY", b"AUD"):
        raise UserError(f"{where}: holds {head[:4].decode('ascii', 'replace')} data, not a Kaldi matrix; {FIX}")
    kind = head[2:5].split(b" ")[0].decode("ascii", "replace")
    if head[:2] == b"\0B" and kind in ("FV", "DV") or head[:3] == b"\0B\4":
        raise UserError(f"{where}: holds a vector, not a matrix of features; {FIX}")
    if head[:2] != b"\0B" or kind not in BYTES_PER_VALUE:
        raise UserError(f"{where}: no Kaldi matrix begins here (found {head[:8]!r}): offset or ark damaged; {FIX}")
    position = 3 + len(kind)
    compressed = kind.startswith("CM")
    length = position + (16 if compressed else 10)
    if len(head) < length:
        raise UserError(f"{where}: the ark ends inside a matrix (truncated); {FIX}")
    if compressed:  # float minimum, float range, int32 rows, int32 cols
        minimum, extent, rows, cols = struct.unpack_from("<ffii", head, position)
        if not (np.isfinite(minimum) and np.isfinite(extent)):
            raise UserError(f"{where}: the range of the compressed matrix is no number: the ark is damaged; {FIX}")
        columns = 8 * cols if kind == "CM" else 0
    else:  # \4 int32 rows \4 int32 cols
        rows, cols = struct.unpack_from("<xixi", head, position)
        columns = 0
    if rows < 0 or cols < 0 or (rows == 0) != (cols == 0):
        raise UserError(f"{where}: impossible matrix size {rows} x {cols}: the ark is damaged; {FIX}")
    end = start + length + columns + rows * cols * BYTES_PER_VALUE[kind]
    if end > size:
        raise UserError(f"{where}: the ark has {size} bytes but its {rows} x {cols} matrix ends at {end} (truncated); {FIX}")
    stream.seek(start + length)
    return kind, rows, cols, end


def _read_text(stream: IO[bytes], where: str, dtype: type) -> np.ndarray:
    """Reads `[ numbers ; one row a line ]` at the stream's position."""
    text = bytearray()
    while b"]" not in text:
        block = stream.read(1 << 16)
        if not block:
            raise UserError(f"{where}: a text matrix begins with [ but has no ] (truncated); {FIX}")
        text += block
    body = bytes(text[: text.index(b"]")]).strip().removeprefix(b"[")
    rows = [line.split() for line in body.split(b"\n") if line.strip()]
    try:
        matrix = np.array(rows, dtype=dtype) if rows else np.zeros((0, 0), dtype=dtype)
    except ValueError:
        raise UserError(f"{where}: the text matrix has rows of different length, or no numbers; {FIX}") from None
    return matrix


def split_rxfilename(rxfilename: str) -> tuple[str, int, str | None]:
    """`file[:offset][[rows[,columns]]]` -> (file, offset or 0, range or None). UserError for a pipe."""
    rxfilename = rxfilename.strip()
    if rxfilename.endswith("|") or rxfilename.startswith("|") or rxfilename == "-":
        raise UserError(f"{rxfilename}: a command instead of an archive is not run; write the features to an ark (copy-feats)")
    span = None
    if match := re.fullmatch(r"(.*)\[([\d:,\s]*)\]", rxfilename, re.DOTALL):
        rxfilename, span = match.groups()
    if match := re.fullmatch(r"(.+):(\d+)", rxfilename, re.DOTALL):
        return match.group(1), int(match.group(2)), span
    return rxfilename, 0, span


def _slice(span: str, count: int, tolerance: int, where: str) -> slice:
    """`a:b`, both included, as Kaldi writes it -> slice. Empty: everything."""
    if span.strip() in ("", ":"):
        return slice(0, count)
    numbers = re.fullmatch(r"\s*(\d+)\s*:\s*(\d+)\s*", span)
    first, last = map(int, numbers.groups()) if numbers else (1, 0)
    if not first <= last < count + tolerance or first >= count:
        raise UserError(f"{where}: the range [{span}] does not fit a matrix of {count}; correct the scp (the last is included)")
    return slice(first, min(last + 1, count))


def read_matrix(rxfilename: str, dtype: type = np.float32) -> np.ndarray:
    """One matrix. rxfilename: what feats.scp holds, `file:offset`, `file:offset[first:last]` or `[rows,columns]`, last included.

    Returns (T, F) of dtype, writable, also for double, text and compressed matrices. NaN is returned as it is found.
    UserError names the file and the offset: missing, damaged or truncated ark, a vector, a pickle, a pipe, a range outside.
    """
    path, offset, span = split_rxfilename(rxfilename)
    where = f"{path}:{offset}"
    try:
        with open(path, "rb") as stream:
            size = os.fstat(stream.fileno()).st_size
            if offset >= size:
                raise UserError(f"{where}: the ark has only {size} bytes (empty or truncated); {FIX}")
            stream.seek(offset)
            if stream.read(16).lstrip()[:1] == b"[":
                stream.seek(offset)
                matrix = _read_text(stream, where, dtype)
            else:
                stream.seek(offset)
                _read_header(stream, where, size)
                stream.seek(offset)
                matrix = read_matrix_or_vector(stream)
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise UserError(f"{path}: no such ark; {FIX}") from None
    except PermissionError:
        raise UserError(f"{path}: no permission to read it; change its mode (chmod +r)") from None
    if span is not None:
        rows, _, columns = span.partition(",")
        matrix = matrix[_slice(rows, matrix.shape[0], RANGE_TOLERANCE, where), _slice(columns, matrix.shape[1], 0, where)]
    return np.array(matrix, dtype=dtype, order="C")


def matrix_shape(rxfilename: str) -> tuple[int, int]:
    """(T, F) of a matrix, from its header alone where it is binary and has no range. Errors as `read_matrix`."""
    path, offset, span = split_rxfilename(rxfilename)
    if span is None and os.path.isfile(path):
        with open(path, "rb") as stream:
            stream.seek(offset)
            if stream.read(2) == b"\0B":
                stream.seek(offset)
                return _read_header(stream, f"{path}:{offset}", os.path.getsize(path))[1:3]
    return read_matrix(rxfilename).shape


def scan_ark(path: str | Path) -> Iterator[ArkEntry]:
    """The complete matrices of a binary ark in file order, from their headers alone; ends quietly at a half-written last one.

    To go on after an interruption: `ArkWriter(path, resume_at=<end of the last entry, or 0>)`.
    """
    size = os.path.getsize(path)
    with open(path, "rb") as stream:
        while True:
            start = stream.tell()
            token, space, _ = stream.read(4096).partition(b" ")
            if not space:
                return
            offset = start + len(token) + 1
            stream.seek(offset)
            try:
                _, rows, cols, end = _read_header(stream, f"{path}:{offset}", size)
                utt = token.decode("utf-8")
            except (UserError, UnicodeDecodeError):
                return
            yield ArkEntry(utt, offset, rows, cols, end)
            stream.seek(end)
