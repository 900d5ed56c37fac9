#!/usr/bin/env python3
"""Makes data/{train,dev,test} of sentences of plain texts, in blends of Kokoro-82M's voices; disjoint in text, not in voices.

usage: local/data_prep.py --corpus downloads/kokoro --out data

As egs/flite, with sentences of 8 to 24 words. Sentence number n draws from a generator of its own: an English voice, how much of
any other voice is mixed into its style (none, a quarter, a half), and a rate of 0.9 to 1.2; a blend is a speaker. Mandarin
voices (zf_..., zm_...) say sentences of 4 to 30 characters, and blend with each other only. Stopped and started again, it goes on where it was.
"""

from __future__ import annotations

import functools
import random
import zipfile
from pathlib import Path
from typing import Any, Callable, NamedTuple, Sequence

import numpy as np
import soundfile

from steermoe.bin.cli import Parser, run
from steermoe.data.audio import resample
from steermoe.data.corpus import Sentence, prepare
from steermoe.data.synthesis import recording, shuffled_sentences, spoken_sets
from steermoe.errors import UserError
from steermoe.files import atomic_write

WORDS = range(8, 25)
CHARACTERS = range(4, 31)
HELD_OUT = 10  # sentences of dev, and of test
AUSTEN = "../flite/downloads/flite/austen"
FIX = "for Jane Austen's novels run egs/flite's stage -1 first (cd ../flite && ./run.sh --stop-stage -1), or give --text"
RATE = 16000


class Draw(NamedTuple):
    """How a sentence is spoken: share of the voice `other` in the style, speed 1 is the synthesiser's own."""

    voice: str
    other: str
    share: float
    speed: float

    @property
    def speaker(self) -> str:
        return f"{self.voice}-{self.other}-{round(100 * self.share)}" if self.share else self.voice


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/data_prep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=Path("downloads/kokoro"), help="folder of kokoro.onnx and voices.npz")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for train, dev and test")
    parser.add_argument("--hours", type=float, default=0.75, help="of training speech")
    parser.add_argument("--voices", default="", help="English or Mandarin ones to draw from, as one word; default: all English")
    parser.add_argument("--text", default=AUSTEN, help="plain text files and folders of them, as one word")
    parser.add_argument("--sentence-seed", type=int, default=7, help="of the order of the sentences")
    options = parser.parse_args(argv)
    if not options.hours > 0:
        raise UserError(f"--hours {options.hours:g}: a number over 0")
    styles = read_styles(options.corpus / "voices.npz")
    voices = known_voices(options.voices, styles)
    mandarin = is_mandarin(voices[0])
    texts, length = [Path(word) for word in (options.text or AUSTEN).split()], CHARACTERS if mandarin else WORDS
    chosen = shuffled_sentences(texts, length, options.sentence_seed, FIX, mandarin)
    others = voices if mandarin else sorted(styles)
    synthesiser = functools.cache(lambda: load(options.corpus))  # not needed if everything has been spoken before

    planned, draws = [], {}
    for number, text in enumerate(chosen):
        drawn = draw(number, voices, others)
        utt = f"{drawn.speaker}-{number:06d}"
        draws[utt] = drawn
        wav = recording(options.out / "wav", utt, f"kokoro {drawn}", text)
        planned.append(Sentence(utt, drawn.speaker, text, wav))

    def say(sentence: Sentence) -> None:
        if not sentence.audio.is_file():
            text = sentence.text + ("。" if mandarin else ".")
            speak(synthesiser(), styles, draws[sentence.utt], text, sentence.audio)

    prepare(options.out, spoken_sets(planned, options.hours, HELD_OUT, say, "kokoro", 1), Path(__file__).resolve())
    return 0


def read_styles(path: Path) -> dict[str, np.ndarray]:
    """Voice -> float32 (510, 1, 256), a style for each number of phonemes."""
    try:
        with np.load(path) as archive:
            return {name: archive[name] for name in archive.files}
    except (OSError, EOFError, ValueError, TypeError, AttributeError, zipfile.BadZipFile) as error:
        raise UserError(f"{path}: not the voices of Kokoro ({error}); stage -1 (./run.sh --stage -1) fetches them") from None


def known_voices(wanted: str, styles: dict[str, np.ndarray]) -> list[str]:
    """Voices are called after language and sex: a is American, b British, z Mandarin."""
    english = sorted(name for name in styles if name[0] in "ab")
    voices, known = wanted.split() or english, [*english, *sorted(filter(is_mandarin, styles))]
    for voice in voices:
        if voice not in known:
            raise UserError(f"--voices {wanted!r}: Kokoro has no English or Mandarin voice {voice!r}; it has {', '.join(known)}")
    if len(set(map(is_mandarin, voices))) > 1:
        raise UserError(f"--voices {wanted!r}: English and Mandarin voices have different texts; choose one language at a time")
    return voices


def is_mandarin(voice: str) -> bool:
    return voice[0] == "z"


def draw(number: int, voices: Sequence[str], others: Sequence[str]) -> Draw:
    rng = random.Random(number)
    return Draw(rng.choice(voices), rng.choice(others), rng.choice([0.0, 0.25, 0.5]), rng.uniform(0.9, 1.2))


def load(corpus: Path) -> Any:
    try:
        from kokoro_onnx import Kokoro
    except ImportError as error:
        raise needs("kokoro-onnx", error) from None
    if not (corpus / "kokoro.onnx").is_file():
        raise UserError(f"{corpus / 'kokoro.onnx'}: no such file; stage -1 (./run.sh --stage -1) fetches it")
    return Kokoro(str(corpus / "kokoro.onnx"), str(corpus / "voices.npz"))


def needs(package: str, error: ImportError) -> UserError:
    return UserError(f"speech by Kokoro needs a package that is not here ({error}): pip install '{package}'")


@functools.cache
def mandarin_phonemes() -> Callable[[str], tuple[str, Any]]:
    try:
        from misaki import zh
    except ImportError as error:
        raise needs("misaki[zh]", error) from None
    return zh.ZHG2P()


def speak(kokoro: Any, styles: dict[str, np.ndarray], drawn: Draw, text: str, wav: Path) -> None:
    """Writes 16 kHz, mono, 16 bit."""
    style = (1 - drawn.share) * styles[drawn.voice] + drawn.share * styles[drawn.other]
    if is_mandarin(drawn.voice):
        said = {"text": mandarin_phonemes()(text)[0], "is_phonemes": True}
    else:
        said = {"text": text, "lang": "en-us" if drawn.voice[0] == "a" else "en-gb"}
    samples, rate = kokoro.create(**said, voice=style.astype(np.float32), speed=drawn.speed)
    samples = resample(np.asarray(samples, dtype=np.float32), rate, RATE)
    with atomic_write(wav, "wb") as stream:
        soundfile.write(stream, np.clip(samples, -1, 1), RATE, format="WAV", subtype="PCM_16")


if __name__ == "__main__":
    run(main)
