#!/usr/bin/env python3
"""Makes data/{train,dev,test} from AISHELL-1: transcript/aishell_transcript_v0.8.txt and wav/<set>/<speaker>/*.wav.

usage: local/data_prep.py --corpus downloads/data_aishell --out data

The transcripts' blanks between words are no part of the writing and are removed.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Sequence

from steermoe.bin.cli import Parser, run
from steermoe.data.corpus import Sentence, chinese_text, compare_counts, prepare
from steermoe.errors import UserError
from steermoe.files import read_lines

# Sentences with a transcript; some 360 recordings have none.
PUBLISHED = {"train": 120098, "dev": 14326, "test": 7176}
CORPUS = "a folder that holds AISHELL-1 (wav/train, wav/dev, wav/test and transcript/aishell_transcript_v0.8.txt)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/data_prep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", default="downloads/data_aishell", help="folder with wav and transcript, or the one above it")
    parser.add_argument("--out", default="data", help="folder for the sets")
    parser.add_argument("--mirror", default="", help="for local/download.py; nothing is fetched here")
    options = parser.parse_args(argv)
    root = find_root(Path(options.corpus))
    texts = read_transcripts(root / "transcript" / "aishell_transcript_v0.8.txt")
    sets = {name: list_set(root, name, texts) for name in PUBLISHED}
    compare_counts((name, len(sets[name]), count) for name, count in PUBLISHED.items())
    prepare(Path(options.out), sets, Path(__file__).resolve())
    return 0


def find_root(corpus: Path) -> Path:
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such folder; run stage -1 (./run.sh --stage download), or give --corpus DIR, {CORPUS}")
    for root in (corpus, corpus / "data_aishell"):
        if (root / "transcript" / "aishell_transcript_v0.8.txt").is_file():
            break
    else:
        seen = ", ".join(sorted(path.name for path in corpus.iterdir())[:5]) or "nothing"
        raise UserError(
            f"{corpus}: not AISHELL-1: it has no transcript/aishell_transcript_v0.8.txt, but {seen}; give --corpus DIR, {CORPUS}"
        )
    packed = sorted((root / "wav").glob("*.tar.gz"))
    if packed:
        raise UserError(
            f"{root / 'wav'}: {len(packed)} speakers are still packed, such as {packed[0].name}; unpack them first: "
            f'cd {root / "wav"} && for a in *.tar.gz; do tar xzf "$a" && rm "$a"; done'
        )
    absent = [name for name in PUBLISHED if not (root / "wav" / name).is_dir()]
    if absent:
        what = ", ".join(f"wav/{name}" for name in absent)
        raise UserError(f"{root}: {what} missing; get the corpus again, or give --corpus DIR, {CORPUS}")
    return root


def read_transcripts(path: Path) -> dict[str, str]:
    """{utterance: text}. UserError names a line without words."""
    texts: dict[str, str] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        utt, _, words = line.strip().partition(" ")
        if not words.strip():
            raise UserError(f"{path}:{number}: {line!r} is not `UTTERANCE WORDS`; get the file again")
        texts[utt] = chinese_text(words)
    return texts


def list_set(root: Path, name: str, texts: dict[str, str]) -> list[Sentence]:
    """The sentences of wav/<name>; the speaker is the part of the utterance before W, so that it begins with it."""
    files = sorted((root / "wav" / name).glob("*/*.wav"))
    found = []
    for path in files:
        utt = path.stem
        if utt in texts:
            found.append(Sentence(utt, utt.rpartition("W")[0] or utt, texts[utt], path))
    if len(found) < len(files):
        print(f"data_prep: {name}: {len(files) - len(found)} audio files without a transcript left out", file=sys.stderr)
    return found


if __name__ == "__main__":
    run(main)
