#!/usr/bin/env python3
"""Writes the sentences with which WordNet shows how words are used, as many as it takes to have each word twice: many words in
few hours of speech. usage: local/wordnet.py FOLDER OUT     FOLDER: with WordNet's data.noun, data.verb, data.adj and data.adv
"""

from __future__ import annotations

import random
import re
from collections import Counter
from pathlib import Path

from steermoe.bin.cli import Parser, run
from steermoe.files import atomic_write, read_lines

PARTS = ("noun", "verb", "adj", "adv")
WORDS = range(4, 23)
TIMES = 2
SEED = 3


def main(argv=None) -> None:
    parser = Parser(prog="local/wordnet.py", description=__doc__)
    parser.add_argument("folder", type=Path, help="with WordNet's data.noun, data.verb, data.adj and data.adv")
    parser.add_argument("out", type=Path, help="plain text to write, sentences parted by lines that are %%")
    args = parser.parse_args(argv)
    found = examples(args.folder)
    random.Random(SEED).shuffle(found)
    with atomic_write(args.out) as stream:
        stream.write("\n%\n".join(sentence.rstrip(" ;,.?!") for sentence in enough(found)) + "\n")


def examples(folder: Path) -> list[str]:
    """The quoted sentences behind the definitions, each once, in the files' order."""
    found: dict[str, None] = {}
    for part in PARTS:
        for _, line in read_lines(folder / f"data.{part}"):
            if not line.startswith("  "):  # the licence
                for sentence in re.findall(r'"([^"]+)"', line.partition("|")[2]):
                    sentence = sentence.strip()
                    if len(sentence.split()) in WORDS and re.fullmatch(r"[A-Za-z' ,;.?!-]+", sentence):
                        found[sentence] = None
    return list(found)


def enough(sentences: list[str]) -> list[str]:
    """Those with a word that has come fewer than TIMES before."""
    seen, kept = Counter(), []
    for sentence in sentences:
        words = re.findall(r"[a-z']+", sentence.lower())
        if any(seen[word] < TIMES for word in words):
            kept.append(sentence)
            seen.update(words)
    return kept


if __name__ == "__main__":
    run(main)
