#!/usr/bin/env python3
"""Makes data/{train,dev,test} of sentences of plain texts, spoken by voices of flite; disjoint in text, not in voices.

usage: local/data_prep.py --corpus downloads/flite --out data

Sentences of 4 to 30 words are shuffled; what holds a digit or a letter outside a to z is left out, so that what is said is
what is written. Each is spoken in the next voice; every voice is a speaker. The last ones are dev and test; train is the first,
as many as the hours take, so that more hours keep what fewer have. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from steermoe.bin.cli import Parser, run
from steermoe.data.corpus import Sentence, prepare
from steermoe.data.synthesis import FLITE, flite_voices, recording, shuffled_sentences, speak, spoken_sets
from steermoe.errors import UserError

WORDS = range(4, 31)
HELD_OUT = 40  # sentences of dev, and of test, or a quarter of a short text
AT_ONCE = 16  # sentences between two looks at the hours
FIX = "run stage -1 (./run.sh --stage download), or give --text"


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
    chosen = shuffled_sentences(paths, WORDS, options.sentence_seed, FIX)
    voices = known_voices(options.voices, options.corpus)

    def say(sentence: Sentence) -> None:
        speak(FLITE, {"voice": sentence.spk, "text": sentence.text}, sentence.audio, options.corpus)

    planned = []
    for number, text in enumerate(chosen):
        voice = voices[number % len(voices)]
        utt = f"{voice}-{number:06d}"
        planned.append(Sentence(utt, voice, text, recording(options.out / "wav", utt, FLITE, text)))
    prepare(options.out, spoken_sets(planned, options.hours, HELD_OUT, say, "flite", AT_ONCE), Path(__file__).resolve())
    return 0


def known_voices(wanted: str, programs: Path) -> list[str]:
    voices, known = wanted.split(), flite_voices(programs)
    for voice in voices or [""]:
        if voice not in known:
            raise UserError(f"--voices {wanted!r}: flite has no voice {voice!r}; it has {', '.join(known)}")
    return voices


if __name__ == "__main__":
    run(main)
