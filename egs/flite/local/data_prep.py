#!/usr/bin/env python3
"""Makes data/{train,dev,test} of sentences of plain texts, spoken by voices of flite; disjoint in text, not in voices.

usage: local/data_prep.py --corpus downloads/flite --out data

Sentences of 4 to 30 words are shuffled; what holds a digit or a letter outside a to z is left out, so that what is said is
what is written. Each is spoken in the next voice; every voice is a speaker. The last ones are dev and test; train is the first,
as many as the hours take, so that more hours keep what fewer have. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import concurrent.futures
import os
import random
import re
from pathlib import Path
from typing import Iterable, Sequence

from steermoe.bin.cli import Parser, run
from steermoe.data.audio import duration
from steermoe.data.corpus import Sentence, prepare
from steermoe.data.synthesis import FLITE, flite_voices, recording, speak
from steermoe.errors import UserError
from steermoe.progress import Progress

WORDS = range(4, 31)
HELD_OUT = 40  # sentences of dev, and of test, or a quarter of a short text
AT_ONCE = 16  # sentences between two looks at the hours


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/data_prep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=Path("downloads/flite"), help="folder of text/, and bin/flite if there")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for train, dev and test")
    parser.add_argument("--hours", type=float, default=6.485, help="of training speech")
    parser.add_argument("--voices", default="slt awb rms kal16", help="as one word; flite -lv lists them")
    parser.add_argument("--text", default="", help="plain text files and folders of them, as one word; default: the corpus's")
    parser.add_argument("--sentence-seed", type=int, default=1, help="of the order of the sentences")
    options = parser.parse_args(argv)
    if not options.hours > 0:
        raise UserError(f"--hours {options.hours:g}: a number over 0")
    paths = [Path(word) for word in options.text.split()] or [options.corpus / "text"]
    chosen = sentences(paths)
    few = min(HELD_OUT, len(chosen) // 4)
    if not few:
        where = ", ".join(map(str, paths))
        wanted = f"sentences of {WORDS[0]} to {WORDS[-1]} words of the letters a to z"
        raise UserError(f"{where}: {len(chosen)} {wanted}, 4 are the least; give more with --text")
    voices = known_voices(options.voices, options.corpus)
    random.Random(options.sentence_seed).shuffle(chosen)

    spoken = []
    for number, text in enumerate(chosen):
        utt = f"{voices[number % len(voices)]}-{number:06d}"
        spoken.append(Sentence(utt, voices[number % len(voices)], text, recording(options.out / "wav", utt, FLITE, text)))
    test, dev = spoken[-few:], spoken[-2 * few : -few]
    sets = {"train": have_spoken(spoken[: -2 * few], 3600 * options.hours, options.corpus), "dev": dev, "test": test}
    have_spoken(dev + test, float("inf"), options.corpus)
    prepare(options.out, sets, Path(__file__).resolve())
    return 0


def known_voices(wanted: str, programs: Path) -> list[str]:
    voices, known = wanted.split(), flite_voices(programs)
    for voice in voices or [""]:
        if voice not in known:
            raise UserError(f"--voices {wanted!r}: flite has no voice {voice!r}; it has {', '.join(known)}")
    return voices


def have_spoken(sentences: Sequence[Sentence], seconds: float, programs: Path) -> list[Sentence]:
    """The first sentences, until there are `seconds` of speech; what has been spoken before is not spoken again."""

    def speak_one(sentence: Sentence) -> float:
        speak(FLITE, {"voice": sentence.spk, "text": sentence.text}, sentence.audio, programs)
        return duration(sentence.audio)

    total, count = 0.0, 0
    limited = seconds < float("inf")
    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        Progress("flite", round(seconds) if limited else len(sentences), "s of speech" if limited else "utt") as progress,
    ):
        for first in range(0, len(sentences), AT_ONCE):
            for length in pool.map(speak_one, sentences[first : first + AT_ONCE]):
                if total < seconds:
                    count += 1
                    total += length
            progress.update((min(round(total), round(seconds)) if limited else count) - progress.count)
            if total >= seconds:
                break
        else:
            if limited:
                progress.write(f"data_prep: all the text makes {total / 3600:.2f} h; more need more --text")
    return list(sentences[:count])


def sentences(paths: Iterable[Path]) -> list[str]:
    """Lower-case words and apostrophes only, each sentence once, in the order of the files. A line that is % ends a sentence."""
    files = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; run stage -1 (./run.sh --stage download), or give --text")
        files += [file for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    found: dict[str, None] = {}
    for file in files:
        text = re.sub(r"\s+", " ", file.read_text(encoding="utf-8", errors="replace").replace("\n%\n", ". "))
        for sentence in re.split(r"(?<=[.!?;:])\s+|--|\"|\(|\)", text):
            sentence = sentence.strip(" .!?;:,-'\"").lower().replace(",", "").replace("-", " ")
            if re.fullmatch(r"[a-z]+('[a-z]+)?( [a-z]+('[a-z]+)?)*", sentence) and len(sentence.split()) in WORDS:
                found[sentence] = None
    return list(found)


if __name__ == "__main__":
    run(main)
