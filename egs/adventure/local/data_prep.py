#!/usr/bin/env python3
"""Makes data/{train,dev,test} of the speech of two adventure games; disjoint in text, not in voices.

usage: local/data_prep.py --corpus downloads/adventure --out data

The corpus is a folder with queen.1c (Flight of the Amazon Queen), or sky.dnr and sky.dsk (Beneath a Steel Sky), or both, anywhere
below it. The text of a recording is the game's own, and nothing is guessed: a recording without one is dropped, and so is what is
no English, what has digits or other signs, and what cannot be spoken in the recording's time. Recordings are written to
data/audio, 16 kHz; stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import functools
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import Sequence

import numpy as np
import queen
import sky
import soundfile
from game import RATE, Clip

from steermoe.bin.cli import Parser, run
from steermoe.data.audio import duration
from steermoe.data.corpus import Sentence, prepare
from steermoe.errors import UserError
from steermoe.files import atomic_write, sha256_file
from steermoe.progress import Progress

SAMPLE_RATE = 16000
GAMES = {"queen": ("queen.1c", queen.clips), "sky": ("sky.dnr", sky.clips)}
SECONDS = (1.0, 25.0)  # shorter ones are mostly shouts
CHARACTERS_PER_SECOND = (3.0, 30.0)  # outside, something else is said than the text
SAME_TEXT = 5  # "I can't use that."
HELD_OUT = 40  # one text of so many is dev's, and one test's

TITLES = {"mr": "mister", "mrs": "missus", "dr": "doctor"}
SIGNS = re.compile(r"[^a-z\s'\".,:;!?*`-]")  # of the text in lower case: digits, stage directions in ( ) and < >, …
# Apes, parrots, natives and people with a gag: a letter three times, no vowel, and their words.
GIBBERISH = re.compile(
    r"(.)\1\1|\b[^aeiouy'\s]{3,}\b|unga|ungh|tusani|urumpi|waroni|kunga|budda|ptooie"
    r"|\b(?:oo+p|ee+p|uck|ook|nark|woof|ruff|aroof|ar+oop|whoop|hubba|s[qk]u?w?a+[wr]?k|wa+r*k|fa+rk|glub|mgh|mmf)\b"
)


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/data_prep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=Path("downloads/adventure"), help="folder of the games' files")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for train, dev and test")
    options = parser.parse_args(argv)
    if not options.corpus.is_dir():
        raise UserError(f"{options.corpus}: no such folder; run stage -1 (./run.sh --stage download), or give --corpus DIR")
    sentences: list[Sentence] = []
    for game, (name, read) in GAMES.items():
        for path in sorted(options.corpus.rglob(name))[:1]:
            folder = options.out / "audio" / f"{game}-{sha256_file(path)[:8]}"
            sentences += usable(game, read(path), folder)
    if not sentences:
        names = " or ".join(name for name, _ in GAMES.values())
        raise UserError(f"{options.corpus}: no {names} with speech in it; run stage -1, or give --corpus DIR")
    prepare(options.out, split(sentences), Path(__file__).resolve())
    return 0


def usable(game: str, clips: Sequence[Clip], folder: Path) -> list[Sentence]:
    """Those whose text is what a recogniser could hear, with their recordings in `folder`; says how many were dropped and why."""
    dropped: Counter[str] = Counter()
    times: Counter[str] = Counter()
    kept = []
    with Progress(f"data_prep {game}", len(clips), "recordings") as progress:
        for clip in clips:
            progress.update()
            text = None if clip.text is None else spoken_text(clip.text)
            if not text:
                dropped["no text" if clip.text is None else "no plain English"] += 1
                continue
            audio = folder / f"{clip.key}.flac"
            try:
                write_audio(clip, audio)
            except ValueError as error:
                progress.write(f"data_prep: dropped: {game} {clip.key}: {error}")
                dropped["unreadable"] += 1
                continue
            seconds = duration(audio)
            if not SECONDS[0] <= seconds <= SECONDS[1]:
                dropped["under {:g} s or over {:g} s".format(*SECONDS)] += 1
            elif not CHARACTERS_PER_SECOND[0] <= len(text) / seconds <= CHARACTERS_PER_SECOND[1]:
                dropped["text and recording are not of one length"] += 1
            elif times[text] == SAME_TEXT:
                dropped[f"same text more than {SAME_TEXT} times"] += 1
            else:
                times[text] += 1
                speaker = f"{game}-{clip.speaker}" if clip.speaker else game
                kept.append(Sentence(f"{speaker}-{clip.key}", speaker, text, audio))
    for reason, count in sorted(dropped.items()):
        print(f"data_prep: {game}: {count} dropped: {reason}", file=sys.stderr)
    return kept


def spoken_text(written: str) -> str | None:
    """Lower-case words, apostrophes kept, titles in full; None if it is no English or has signs that are read in some way."""
    text = written.lower()
    if SIGNS.search(text):
        return None
    words = re.findall(r"'?[a-z]+(?:'[a-z]+)*", text.replace("`", "'"))
    words = [TITLES.get(word, word) for word in map(without_quote, words)]
    text = " ".join(words)
    return None if GIBBERISH.search(text) else text


def without_quote(word: str) -> str:
    """'til and 'em keep their apostrophe; an opening quotation mark goes."""
    return word if word in ("'em", "'til", "'n", "'bout", "'cause", "'cos") else word.lstrip("'")


def write_audio(clip: Clip, path: Path) -> None:
    """16 kHz, mono, 16 bit, if it is not there. ValueError if the recording cannot be read."""
    if path.is_file():
        return
    import torch

    samples = resampler()(torch.from_numpy(clip.samples())).numpy()
    with atomic_write(path, "wb") as stream:
        soundfile.write(stream, np.clip(samples, -1, 1), SAMPLE_RATE, format="FLAC", subtype="PCM_16")


@functools.cache
def resampler():
    """The filter of `steermoe.data.audio`, kept: 11,025 to 16,000 Hz takes a large one."""
    from torchaudio.transforms import Resample

    return Resample(RATE, SAMPLE_RATE)


def split(sentences: Sequence[Sentence]) -> dict[str, list[Sentence]]:
    """train, dev and test; which texts are held out is up to their SHA-256."""
    texts = sorted({sentence.text for sentence in sentences}, key=lambda text: hashlib.sha256(text.encode()).digest())
    few = max(1, len(texts) // HELD_OUT)
    of_text = dict.fromkeys(texts[:few], "test") | dict.fromkeys(texts[few : 2 * few], "dev")
    sets: dict[str, list[Sentence]] = {"train": [], "dev": [], "test": []}
    for sentence in sentences:
        sets[of_text.get(sentence.text, "train")].append(sentence)
    return sets


if __name__ == "__main__":
    run(main)
