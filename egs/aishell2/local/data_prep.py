#!/usr/bin/env python3
"""Makes data/{train,dev,test} from AISHELL-2's folders: trans.txt (`UTTERANCE<tab>text`), wav.scp (`UTTERANCE<tab>wav/…`), wav/.

usage: local/data_prep.py --corpus AISHELL-2 --out data

Such a folder is found by its name (data or train, dev, test) anywhere below the corpus; where there are several channels,
--channel says which. A corpus that is one such folder, a sample, is split by utterance.
"""

from __future__ import annotations

import hashlib
import sys
from pathlib import Path
from typing import Iterator, Sequence

from steermoe.bin.cli import Parser, run
from steermoe.data.corpus import Sentence, chinese_text, compare_counts, prepare
from steermoe.errors import UserError
from steermoe.files import read_lines

NAMES = {"train": ("data", "train"), "dev": ("dev",), "test": ("test",)}
PUBLISHED = {"train": 1009223, "dev": 2500, "test": 5000}  # of the iOS recordings
CORPUS = "a folder that holds iOS/data, iOS/dev and iOS/test with trans.txt and wav.scp"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/data_prep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", default="downloads/AISHELL-2", help="folder with the corpus")
    parser.add_argument("--out", default="data", help="folder for the sets")
    parser.add_argument("--channel", default="iOS", help="recordings to take where there are several: iOS, Android or Mic")
    options = parser.parse_args(argv)
    corpus = Path(options.corpus)
    if (corpus / "trans.txt").is_file():
        sets = split(list(read_folder(corpus)))
        print(f"data_prep: {corpus} is one folder without dev and test, a sample: split by utterance, so that the same speakers "
              "are in all sets; its scores are its own", file=sys.stderr)  # fmt: skip
    else:
        folders = find_folders(corpus, options.channel)
        sets = {name: list(read_folder(folder)) for name, folder in folders.items()}
        compare_counts((name, len(sets[name]), count) for name, count in PUBLISHED.items())
    prepare(Path(options.out), sets, Path(__file__).resolve())
    return 0


def find_folders(corpus: Path, channel: str) -> dict[str, Path]:
    """{set: its folder}. UserError if one is missing or if several fit."""
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such folder; give --corpus DIR, {CORPUS}")
    # Not rglob: the wav folders hold a million files.
    candidates = [path.parent for depth in range(1, 5) for path in sorted(corpus.glob("*/" * depth + "trans.txt"))]
    if not candidates:
        seen = ", ".join(sorted(path.name for path in corpus.iterdir())[:5]) or "nothing"
        raise UserError(f"{corpus}: not AISHELL-2: it has no trans.txt, but {seen}; give --corpus DIR, {CORPUS}")
    folders = {}
    for name, known in NAMES.items():
        found = [folder for folder in candidates if folder.name in known]
        here = [folder for folder in found if channel.lower() in (part.lower() for part in folder.relative_to(corpus).parts)]
        found = here or found
        if len(found) != 1:
            seen = ", ".join(str(folder.relative_to(corpus)) for folder in found or candidates)
            what = f"several folders are {name}" if found else f"no folder for {name} ({' or '.join(known)})"
            raise UserError(f"{corpus}: {what} among {seen}; give --corpus DIR, {CORPUS}, and --channel")
        folders[name] = found[0]
    return folders


def read_table(path: Path) -> dict[str, str]:
    """{first field: rest} of a file with `key<tab>value` lines. UserError names a line without a tab, a key that comes twice."""
    table: dict[str, str] = {}
    for number, line in read_lines(path):
        if not line.strip():
            continue
        key, tab, value = line.partition("\t")
        if not tab or not value.strip():
            raise UserError(f"{path}:{number}: {line!r} is not `UTTERANCE<tab>…`; get the file again")
        if key in table:
            raise UserError(f"{path}:{number}: {key} occurs a second time; remove one of the lines")
        table[key] = value.strip()
    return table


def read_folder(folder: Path) -> Iterator[Sentence]:
    """The folder's sentences that have audio; the speaker is the part of the utterance before W, so that it begins with it."""
    texts, wavs = read_table(folder / "trans.txt"), read_table(folder / "wav.scp")
    without = []
    for utt, text in texts.items():
        if utt in wavs and (folder / wavs[utt]).is_file():
            yield Sentence(utt, utt.rpartition("W")[0] or utt, chinese_text(text), folder / wavs[utt])
        else:
            without.append(utt)
    if without:
        print(f"data_prep: {folder}: {len(without)} sentences without audio left out, the first: {without[0]}", file=sys.stderr)
    if wavs.keys() - texts.keys():
        print(f"data_prep: {folder}: {len(wavs.keys() - texts.keys())} recordings without a text left out", file=sys.stderr)


def split(sentences: list[Sentence]) -> dict[str, list[Sentence]]:
    """An eighth each for dev and test. The same text goes to the same set; chance is the SHA-256 of the text."""
    texts = sorted({sentence.text for sentence in sentences}, key=lambda text: hashlib.sha256(text.encode()).hexdigest())
    eighth = len(texts) // 8
    set_of = {text: "dev" if n < eighth else "test" if n < 2 * eighth else "train" for n, text in enumerate(texts)}
    return {name: [sentence for sentence in sentences if set_of[sentence.text] == name] for name in NAMES}


if __name__ == "__main__":
    run(main)
