"""Extra training speech: sentences of plain text files, spoken by text-to-speech voices; a Kaldi data directory.

usage: python local/speak.py --text FILE … --voices slt awb rms kal16 --hours 6 data/spoken

Sentences of 4 to 30 words are drawn (seeded); what holds a digit or a letter outside a to z is left out, so that what is said is what is
written. flite (Debian's package of that name) speaks them, each in the next voice. Every voice becomes a speaker. Stopped and
started again, it goes on: a wav that is there is not spoken again.
"""

from __future__ import annotations

import argparse
import concurrent.futures
import os
import random
import re
import shutil
import subprocess
import sys
from pathlib import Path

import soundfile

WORDS = range(4, 31)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--text", type=Path, nargs="+", required=True, help="plain text files, or folders of them")
    parser.add_argument("--voices", nargs="+", default=["slt", "awb", "rms", "kal16"], help="flite's: flite -lv lists them")
    parser.add_argument("--hours", type=float, default=6.0, help="of speech, at most")
    parser.add_argument("--seed", type=int, default=1)
    parser.add_argument("--nj", type=int, default=os.cpu_count() or 1, help="sentences spoken at a time")
    parser.add_argument("out", type=Path, help="data directory to make")
    args = parser.parse_args()
    if not shutil.which("flite"):
        sys.exit("local/speak.py: flite is not installed; apt-get install flite")
    chosen = sentences(args.text)
    if not chosen:
        sys.exit(f"local/speak.py: no sentence of {WORDS[0]} to {WORDS[-1]} plain words in {', '.join(map(str, args.text))}")
    random.Random(args.seed).shuffle(chosen)
    wavs = args.out / "wav"
    wavs.mkdir(parents=True, exist_ok=True)

    def speak(item: tuple[int, str]) -> tuple[str, str, str, float]:
        number, text = item
        voice = args.voices[number % len(args.voices)]
        utt = f"{voice}-{number:06d}"
        wav = wavs / f"{utt}.wav"
        if not wav.is_file():
            part = wav.with_suffix(".part")
            subprocess.run(["flite", "-voice", voice, "-t", text, "-o", str(part)], check=True)
            part.replace(wav)
        return utt, voice, text, soundfile.info(str(wav)).duration

    spoken, seconds = [], 0.0
    with concurrent.futures.ThreadPoolExecutor(args.nj) as pool:
        for first in range(0, len(chosen), 200):
            for one in pool.map(speak, enumerate(chosen[first : first + 200], first)):
                spoken.append(one)
                seconds += one[3]
            print(f"{len(spoken)} sentences, {seconds / 3600:.2f} h", file=sys.stderr, flush=True)
            if seconds >= args.hours * 3600:
                break
    spoken.sort()
    tables = {
        "wav.scp": [f"{utt} {(wavs / utt).resolve()}.wav" for utt, *_ in spoken],
        "text": [f"{utt} {text}" for utt, _, text, _ in spoken],
        "utt2spk": [f"{utt} {voice}" for utt, voice, *_ in spoken],
        "utt2dur": [f"{utt} {duration:.4f}" for utt, _, _, duration in spoken],
        "spk2utt": [" ".join([v, *(u for u, voice, *_ in spoken if voice == v)]) for v in sorted({one[1] for one in spoken})],
    }
    for name, lines in tables.items():
        part = args.out / f"{name}.part"
        part.write_text("\n".join(lines) + "\n", encoding="utf-8")
        part.replace(args.out / name)


def sentences(paths: list[Path]) -> list[str]:
    """Lower-case words and apostrophes only, each once, in the order of the files."""
    files = [file for path in paths for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    found: dict[str, None] = {}
    for file in files:
        text = re.sub(r"\s+", " ", file.read_text(encoding="utf-8", errors="replace").replace("\n%\n", ". "))
        for sentence in re.split(r"(?<=[.!?;:])\s+|--|\"|\(|\)", text):
            sentence = sentence.strip(" .!?;:,-'\"").lower().replace(",", "").replace("-", " ")
            if re.fullmatch(r"[a-z]+('[a-z]+)?( [a-z]+('[a-z]+)?)*", sentence) and len(sentence.split()) in WORDS:
                found[sentence] = None
    return list(found)


if __name__ == "__main__":
    main()
