#!/usr/bin/env python3
"""Makes data/{train,dev,test}: questions about sound effects, made of their labels by templates; disjoint in clips.

usage: local/data_prep.py --corpus downloads/tuxpaint-stamps --out data [--esc10 DIR]

Of each clip is asked what makes the sound, and twice whether a thing is there: once the right answer is yes and once it is no, in
each set as often for one thing as for another. Tux Paint's effects are an animal, a person (spoken letters and digits) or an
object; effects that are none of these for certain are left out. ESC-10 has ten things; its fold 5 is test, fold 4 dev.
"""

from __future__ import annotations

import hashlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Sequence

from steermoe.bin.cli import Parser, run
from steermoe.data.corpus import Sentence, prepare
from steermoe.errors import UserError

WHAT = {"stamps": "What is making the sound?", "esc10": "What sound is this?"}  # a dog is an animal to the one only
IS_THERE = "Is there {thing}?"
# Folder of the stamps -> the answer.
STAMPS = {
    "hobbies": "object",
    "household": "object",
    "naturalforces": "object",
    "seasonal/newyears": "object",
    "vehicles": "object",
    "symbols/alphabets": "person",
    "symbols/math": "person",
    "animals": "animal",
}
# Folder of ESC-10, without its number -> the answer.
ESC10 = {
    "Dog bark": "dog",
    "Rain": "rain",
    "Sea waves": "waves",
    "Baby cry": "baby",
    "Clock tick": "clock",
    "Person sneeze": "sneeze",
    "Helicopter": "helicopter",
    "Chainsaw": "chainsaw",
    "Rooster": "rooster",
    "Fire crackling": "fire",
}
NO_ARTICLE = ("rain", "waves", "fire")
SETS = ("train", "dev", "test")
LEAST = 4  # sounds of a label: one or more for each set
SHARES = {"dev": 0.12, "test": 0.25}  # of the stamps of each label
FOLDS = {"4": "dev", "5": "test"}


class Clip(NamedTuple):
    """name: Kaldi's name of it. source: stamps or esc10; questions ask for things of the clip's own source only."""

    name: str
    source: str
    label: str
    audio: Path


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/data_prep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=Path("downloads/tuxpaint-stamps"), help="folder of the stamps")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for train, dev and test")
    parser.add_argument("--esc10", default="", help="folder of ESC-10")
    options = parser.parse_args(argv)
    sets = split_stamps(find_stamps(options.corpus))
    if options.esc10:
        for name, clips in find_esc10(Path(options.esc10)).items():
            sets[name] += clips
    sentences = {name: [question for source in by_source(clips) for question in ask(source)] for name, clips in sets.items()}
    for name, found in sentences.items():
        print(f"data_prep: {name}: {floors(found)}", file=sys.stderr)
    prepare(options.out, sentences, Path(__file__).resolve())
    return 0


def find_stamps(corpus: Path) -> list[Clip]:
    """The effects that have a label, each once: some lie under several names. Of the most frequent label no more than of the next,
    so that none is the label of more than half of them.
    """
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such folder; run stage -1 (./run.sh --stage download), or give --corpus DIR")
    clips, seen = [], set()
    for audio in sorted(path for path in corpus.rglob("*") if path.suffix in (".ogg", ".wav") and "_desc" not in path.name):
        folder = audio.relative_to(corpus).as_posix()
        label = next((label for prefix, label in STAMPS.items() if folder.startswith(prefix + "/")), None)
        content = hashlib.sha256(audio.read_bytes()).hexdigest()
        if label and content not in seen:
            seen.add(content)
            clips.append(Clip(f"stamp_{re.sub('[^A-Za-z0-9]+', '_', folder.rsplit('.', 1)[0])}", "stamps", label, audio))
    counts = Counter(clip.label for clip in clips)
    for label in STAMPS.values():
        if counts[label] < LEAST:
            message = f"{counts[label]} sounds of the label {label!r}, {LEAST} are the least"
            raise UserError(f"{corpus}: {message}; give the folder usr/share/tuxpaint/stamps of Tux Paint's stamps")
    limit = sorted(counts.values())[-2]
    return [clip for label in sorted(counts) for clip in shuffled(clip for clip in clips if clip.label == label)[:limit]]


def split_stamps(clips: Sequence[Clip]) -> dict[str, list[Clip]]:
    """{set: clips}: of each label the shares of SHARES, drawn by the SHA-256 of their names."""
    sets: dict[str, list[Clip]] = {name: [] for name in SETS}
    for label in sorted({clip.label for clip in clips}):
        ranked, start = shuffled(clip for clip in clips if clip.label == label), 0
        for name, share in SHARES.items():
            count = max(1, round(share * len(ranked)))
            sets[name] += ranked[start : start + count]
            start += count
        sets["train"] += ranked[start:]
    return sets


def find_esc10(folder: Path) -> dict[str, list[Clip]]:
    """{set: clips} by the folds of the file names. UserError if the folder does not hold ESC-10's ten classes."""
    sets: dict[str, list[Clip]] = {name: [] for name in SETS}
    for title, label in ESC10.items():
        files = sorted(path for path in folder.glob(f"*{title}/*") if path.suffix in (".ogg", ".wav"))
        if not files:
            raise UserError(f"{folder}: no clips in a folder '… - {title}'; give the folder of ESC-10")
        for audio in files:
            name = f"esc_{label}_{re.sub('[^A-Za-z0-9]+', '_', audio.stem)}"
            sets[FOLDS.get(audio.name[0], "train")].append(Clip(name, "esc10", label, audio))
    return sets


def by_source(clips: Sequence[Clip]) -> list[list[Clip]]:
    return [[clip for clip in clips if clip.source == source] for source in sorted({clip.source for clip in clips})]


def ask(clips: Sequence[Clip]) -> list[Sentence]:
    """Three questions a clip. What is not there is the label of the clip that stands so far behind in an order by label that it
    has another: each label is denied as often as it is confirmed.
    """
    ordered = sorted(shuffled(clips), key=lambda clip: clip.label)
    shift = max(Counter(clip.label for clip in ordered).values())
    made = []
    for index, clip in enumerate(ordered):
        other = ordered[(index + shift) % len(ordered)].label
        if other == clip.label:
            raise UserError(f"more than half of the sounds are {other!r}: yes and no cannot be balanced; give more of the others")
        asked = [
            (WHAT[clip.source], "what", clip.label),
            (IS_THERE.format(thing=thing(clip.label)), "is_there", "yes"),
            (IS_THERE.format(thing=thing(other)), "is_there", "no"),
        ]
        for number, (question, kind, answer) in enumerate(asked, 1):
            kind = kind if clip.source == "stamps" else f"{clip.source}_{kind}"
            made.append(Sentence(f"{clip.name}-q{number}", clip.name, answer, clip.audio, question, kind))
    return made


def thing(label: str) -> str:
    """With its article, where it has one."""
    return label if label in NO_ARTICLE else f"{'an' if label[0] in 'aeiou' else 'a'} {label}"


def floors(sentences: Sequence[Sentence]) -> str:
    """What chance and the most frequent answer of each question type get on these questions."""
    kinds: dict[str, Counter[str]] = {}
    for sentence in sentences:
        kinds.setdefault(sentence.question_type, Counter())[sentence.text] += 1
    chance = sum(counts.total() / len(counts) for counts in kinds.values())
    usual = sum(max(counts.values()) for counts in kinds.values())
    shown = ", ".join(f"{counts.total()} {kind} ({len(counts)} answers)" for kind, counts in sorted(kinds.items()))
    n = len(sentences)
    return f"{n} questions: {shown}; chance {100 * chance / n:.1f} %, each type's most frequent answer {100 * usual / n:.1f} %"


def shuffled(clips) -> list[Clip]:
    """The same order on every machine, and not the one of the alphabet."""
    return sorted(clips, key=lambda clip: hashlib.sha256(clip.name.encode()).hexdigest())


if __name__ == "__main__":
    run(main)
