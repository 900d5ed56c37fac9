#!/usr/bin/env python3
"""Makes data/{train,dev,test-clean,test-other} from a LibriSpeech tree: <part>/<speaker>/<chapter>/{*.trans.txt, audio}.

usage: local/data_prep.py --corpus downloads/LibriSpeech --out data [--parts "train-clean-100 dev-clean test-clean"]

All train parts make one set, and so do all dev parts. Without --parts those that the tree has are taken. The text is put into
lower case, which the LLM reads better and the scoring does not see. data/sets names the sets that the tree could fill.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Iterator, Sequence

from parts import CORPUS, NAME, PARTS, resolve

from steermoe.bin.cli import Parser, run
from steermoe.data.corpus import Sentence, compare_counts, prepare
from steermoe.errors import UserError
from steermoe.files import read_lines

SUFFIXES = (".flac", ".wav", ".opus", ".ogg", ".mp3")  # the first in which an utterance exists is taken


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/data_prep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", default="downloads/LibriSpeech", help="folder with the parts, or the one above it")
    parser.add_argument("--out", default="data", help="folder for the sets")
    parser.add_argument("--parts", default="", help="parts to take, as one word; none: those that the tree has")
    parser.add_argument("--mirror", default="", help="for local/download.py; nothing is fetched here")
    options = parser.parse_args(argv)
    corpus = Path(options.corpus)
    sets = choose_sets(find_tree(corpus), options.parts, corpus)
    sentences = {part: list(read_part(part)) for parts in sets.values() for part in parts}
    published = {part: PARTS[part.name].utterances for part in sentences if part.name in PARTS}
    compare_counts((part.name, len(sentences[part]), count) for part, count in published.items())
    joined = {name: [sentence for part in parts for sentence in sentences[part]] for name, parts in sets.items()}
    prepare(Path(options.out), joined, Path(__file__).resolve())
    return 0


def find_tree(corpus: Path) -> dict[str, Path]:
    """{part: folder}. UserError if there is none."""
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such folder; run stage -1 (./run.sh --stage download), or give --corpus DIR, {CORPUS}")
    for root in (corpus, corpus / "LibriSpeech"):
        found = sorted(root.iterdir()) if root.is_dir() else []
        tree = {path.name: path for path in found if NAME.fullmatch(path.name) and next(path.glob("*/*/*.trans.txt"), None)}
        if tree:
            return tree
    seen = ", ".join(sorted(path.name for path in corpus.iterdir())[:5]) or "nothing"
    raise UserError(
        f"{corpus}: not LibriSpeech: it has no <part>/<speaker>/<chapter>/*.trans.txt, but {seen}; give --corpus DIR, {CORPUS}"
    )


def choose_sets(tree: dict[str, Path], wanted: str, corpus: Path) -> dict[str, list[Path]]:
    """{set: folders of its parts}. UserError if a part that was named, or every train or dev part, is missing."""
    has = f"{corpus} has {', '.join(tree)}"
    named, added = resolve(wanted) if wanted else (list(tree), [])
    absent = [part for part in named if part not in tree]
    if absent:
        raise UserError(f"--parts: {', '.join(absent)} missing: {has}; get the missing parts, or name those you have")
    sets: dict[str, list[Path]] = {"train": [], "dev": []}
    for part in [*named, *(part for part in added if part in tree)]:
        kind = part.split("-")[0]
        sets.setdefault(part if kind == "test" else kind, []).append(tree[part])
    for name in ("train", "dev"):
        if not sets[name]:
            raise UserError(f"no {name} part: {has}; a run needs a train and a dev part, such as train-clean-100 and dev-clean")
    for part in ("test-clean", "test-other"):
        if part not in sets and (part in added or not wanted):
            print(f"data_prep: {part} is not in {corpus}: no such set is made", file=sys.stderr)
    return sets


def read_part(part: Path) -> Iterator[Sentence]:
    """The part's sentences that have audio. What lacks either is counted; UserError names a malformed line."""
    without_audio, without_text = [], 0
    for transcripts in sorted(part.glob("*/*/*.trans.txt")):
        speaker = transcripts.parent.parent.name
        audio: dict[str, Path] = {}
        for suffix in reversed(SUFFIXES):
            audio |= {path.stem: path for path in transcripts.parent.glob(f"*{suffix}")}
        for number, line in read_lines(transcripts):
            if not line.strip():
                continue
            utt, _, text = line.partition(" ")
            if not utt.startswith(f"{speaker}-") or not text.strip():
                raise UserError(f"{transcripts}:{number}: {line!r} is not `{speaker}-CHAPTER-NUMBER WORDS`; get the part again")
            if utt in audio:
                yield Sentence(utt, speaker, " ".join(text.lower().split()), audio.pop(utt))
            else:
                without_audio.append(utt)
        without_text += len(audio)
    if without_audio:
        first = without_audio[0]
        print(f"data_prep: {part}: {len(without_audio)} sentences without audio left out, the first: {first}", file=sys.stderr)
    if without_text:
        print(f"data_prep: {part}: {without_text} audio files without a transcript left out", file=sys.stderr)


if __name__ == "__main__":
    run(main)
