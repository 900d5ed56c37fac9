"""Knows whether an output is finished and still belongs to its inputs, so that no stage does anything twice.

A stamp is a small JSON file written after the outputs: the settings and the inputs' SHA-256. It is fresh when the same
settings and inputs come again and every output is there. An input that was itself made under a stamp brings that stamp along,
so that new recordings are noticed by every stage behind them.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any, Iterable

from steermoe.files import read_json, sha256_file, write_json


def stamp_of(file: str | Path) -> Path:
    """Where the stamp of a file that a stage makes lies: .NAME.done beside it."""
    file = Path(file)
    return file.with_name(f".{file.name}.done")


def made_here(model: str) -> list[Path]:
    """The weights of an encoder that stage 3 has made, as an input of what is made with it; no file for other models."""
    folder = Path(model)
    return [folder / "model.safetensors"] if (folder / ".pretrain.done").is_file() else []


class Stamp:
    """path: the stamp's file. settings: anything JSON can hold. inputs: files that the outputs were made from."""

    def __init__(self, path: str | Path, settings: dict[str, Any], inputs: Iterable[str | Path] = ()):
        self.path = Path(path)
        inputs = [path for file in inputs for path in (Path(file), stamp_of(file))]
        hashes = [[path.name, sha256_file(path)] for path in inputs if path.is_file()]
        self.content = {"settings": settings, "inputs": hashes}

    def fresh(self, outputs: Iterable[str | Path] = ()) -> bool:
        """True if the outputs need not be made again."""
        if not self.path.is_file() or not all(Path(output).exists() for output in outputs):
            return False
        return read_json(self.path) == self.content

    def write(self) -> None:
        """Call last, when every output is in place."""
        write_json(self.path, self.content)
