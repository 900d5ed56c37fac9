"""Files that are never half-written, and text that is read with the file and the line in every error."""

from __future__ import annotations

import hashlib
import itertools
import json
import os
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Iterator, Sequence

import numpy as np

from steermoe.errors import UserError


@contextmanager
def atomic_write(path: str | Path, mode: str = "w") -> Iterator[IO]:
    """Opens a temporary file beside `path` and renames it on success: `path` is either the old file or the whole new one.

    mode: "w" (UTF-8, newline as written) or "wb". On any exception the temporary file is removed and `path` is untouched.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    text = {} if "b" in mode else {"encoding": "utf-8", "newline": "\n"}
    try:
        with open(temporary, mode, **text) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError) and error.filename is None:
            error.filename = str(path)  # a full disk says so without a name
        raise


def read_lines(path: str | Path) -> Iterator[tuple[int, str]]:
    """Yields (line number from 1, line without its newline). UserError if the file is missing or not UTF-8."""
    path = Path(path)
    if not path.is_file():
        raise UserError(f"{path}: no such file")
    with open(path, "rb") as stream:
        for number, raw in enumerate(stream, 1):
            try:
                yield number, raw.decode("utf-8").rstrip("\r\n")
            except UnicodeDecodeError as error:
                raise UserError(
                    f"{path}:{number}: not UTF-8 (byte {error.object[error.start]:#04x} at column {error.start + 1}); "
                    f"convert the file first, for example: iconv -f LATIN1 -t UTF-8 {path}"
                ) from None


def write_json(path: str | Path, value: Any) -> None:
    with atomic_write(path) as stream:
        json.dump(value, stream, ensure_ascii=False, indent=1, sort_keys=True)
        stream.write("\n")


def read_json(path: str | Path) -> Any:
    """UserError if the file is missing or not JSON."""
    text = "\n".join(line for _, line in read_lines(path))
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise UserError(f"{path}:{error.lineno}: not JSON ({error.msg}); remove the file and run the stage again") from None


def read_jsonl(path: str | Path) -> Iterator[dict]:
    """One dict a line. UserError names the file and the line that is not JSON."""
    for number, line in read_lines(path):
        try:
            yield json.loads(line)
        except json.JSONDecodeError as error:
            raise UserError(f"{path}:{number}: not JSON ({error.msg}); remove the file and run the stage again") from None


class JsonLines(Sequence):
    """A file of one dict a line, each parsed when it is asked for: memory holds only where the lines end, 8 bytes each.

    The file that was opened is the one that is read, also when another takes its name. UserError as `read_jsonl`, at the access.
    """

    def __init__(self, path: str | Path):
        self.path = Path(path)
        if not self.path.is_file():
            raise UserError(f"{path}: no such file")
        self.stream = open(path, "rb")
        self.ends = np.fromiter(itertools.accumulate(map(len, self.stream)), np.int64)

    def __len__(self) -> int:
        return len(self.ends)

    def __getitem__(self, index: int) -> dict:
        index = range(len(self))[index]
        begin = int(self.ends[index - 1]) if index else 0
        line = os.pread(self.stream.fileno(), int(self.ends[index]) - begin, begin)
        try:
            return json.loads(line.decode("utf-8"))
        except UnicodeDecodeError:
            what = "not UTF-8"
        except json.JSONDecodeError as error:
            what = f"not JSON ({error.msg})"
        raise UserError(f"{self.path}:{index + 1}: {what}; remove the file and run the stage again")


def resume_jsonl(path: str | Path) -> list[dict]:
    """The whole lines of a file that a killed run was appending to; a half-written last one is cut off the file."""
    path = Path(path)
    if not path.is_file():
        return []
    content = path.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    os.truncate(path, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def append_jsonl(stream: IO[str], value: dict) -> None:
    """Appends a line that a kill directly afterwards does not lose."""
    stream.write(json.dumps(value, ensure_ascii=False) + "\n")
    stream.flush()
    os.fsync(stream.fileno())


def sha256_file(path: str | Path) -> str:
    """Hex SHA-256 of the file's bytes."""
    digest = hashlib.sha256()
    with open(path, "rb") as stream:
        while block := stream.read(1 << 22):
            digest.update(block)
    return digest.hexdigest()
