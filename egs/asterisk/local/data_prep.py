#!/usr/bin/env python3
"""Makes data/{train,dev,test} from the Asterisk prompts: Kaldi directories, disjoint in utterances and in text.

usage: local/data_prep.py --corpus downloads/asterisk-core-sounds-en --out data

The corpus is a folder with the sounds (.g722, or .wav, .flac) and core-sounds-en.txt (or .txt.gz) anywhere below it, whose
lines are `path/without/suffix: what is said`. Words in brackets, [ ] ( ) < >, are notes and not speech.
"""

from __future__ import annotations

import gzip
import hashlib
import re
import sys
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Sequence

from steermoe.bin.cli import Parser, run
from steermoe.data.audio import load_audio
from steermoe.data.kaldi_files import write_map
from steermoe.errors import UserError
from steermoe.files import read_lines
from steermoe.progress import Progress
from steermoe.stamp import Stamp

SPEAKER = "allison"
SETS = ("train", "dev", "test")
SUFFIXES = (".g722", ".wav", ".flac")  # the first that exists is taken; upstream's .wav has only 8 kHz
SAMPLE_RATE = 16000
MAX_TEST_SECONDS = 30.0  # what stage 2 would drop stays out of dev and test
SPOKEN = {"*": "star", "#": "pound"}  # keys of the telephone, read aloud

# Most prompts are single words, most of the speech is in sentences. Share of the different texts of each length that goes to
# (dev, test), so that the scores rest on sentences: most words in the text -> shares.
SHARES = {1: (0.025, 0.03), 3: (0.13, 0.13), 6: (0.17, 0.19), 12: (0.19, 0.23), 10**9: (0.2, 0.28)}


class Prompt(NamedTuple):
    audio: Path
    text: str
    seconds: float


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/data_prep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", default="downloads/asterisk-core-sounds-en", help="folder with the sounds and transcripts")
    parser.add_argument("--out", default="data", help="folder for train, dev and test")
    options = parser.parse_args(argv)
    corpus, out = Path(options.corpus), Path(options.out)
    transcripts = find_transcripts(corpus)
    texts = read_transcripts(transcripts)
    sounds = find_sounds(corpus, texts)

    listing = "".join(f"{key} {path} {path.stat().st_size}\n" for key, path in sorted(sounds.items()))
    stamp = Stamp(
        out / ".data_prep.json", {"sounds": hashlib.sha256(listing.encode()).hexdigest()}, [transcripts, Path(__file__).resolve()]
    )
    files = [out / name / file for name in SETS for file in ("wav.scp", "text", "utt2spk", "spk2utt", "utt2dur")]
    if stamp.fresh(files):
        print(f"data_prep: {out}/{{{','.join(SETS)}}} up to date", file=sys.stderr)
        return 0
    prompts = read_prompts(texts, sounds)
    for name, part in split(prompts).items():
        write_set(out / name, {utt: prompts[utt] for utt in part})
    stamp.write()
    return 0


def find_transcripts(corpus: Path) -> Path:
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such folder; run stage -1 (./run.sh --stage download), or give --corpus DIR")
    found = sorted([*corpus.rglob("core-sounds-??.txt"), *corpus.rglob("core-sounds-??.txt.gz")])
    if not found:
        raise UserError(f"{corpus}: no core-sounds-en.txt or core-sounds-en.txt.gz in it; the transcripts must be there too")
    return found[0]


def read_transcripts(path: Path) -> dict[str, str]:
    """{path without suffix: what the file says is spoken, as it stands}. UserError names the line without a colon."""
    if path.suffix == ".gz":
        try:
            lines = enumerate(gzip.decompress(path.read_bytes()).decode("utf-8").splitlines(), 1)
        except (OSError, EOFError, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not gzipped UTF-8 text ({error}); get the file again") from None
    else:
        lines = read_lines(path)
    texts: dict[str, str] = {}
    for number, line in lines:
        if not line.strip() or line.startswith(";"):
            continue
        key, colon, text = line.partition(":")
        if not colon:
            raise UserError(f"{path}:{number}: no colon in {line!r}; lines are `sound: what it says`")
        if key in texts:
            raise UserError(f"{path}:{number}: {key!r} occurs a second time; remove one of the lines")
        texts[key] = text
    return texts


def find_sounds(corpus: Path, texts: dict[str, str]) -> dict[str, Path]:
    """{path without suffix: file}, below whichever folder of the corpus the transcripts' paths fit best."""
    for suffix in SUFFIXES:
        files = sorted(corpus.rglob(f"*{suffix}"))
        if files:
            break
    else:
        raise UserError(f"{corpus}: no {', '.join(SUFFIXES)} files in it; give the folder that holds the sounds")
    folders = {folder for file in files for folder in file.parents if folder.is_relative_to(corpus)}

    def below(folder: Path) -> dict[str, Path]:
        inside = [file for file in files if file.is_relative_to(folder)]
        keys = {file.relative_to(folder).with_suffix("").as_posix(): file for file in inside}
        return {key: file for key, file in keys.items() if key in texts}

    best = max(sorted(folders), key=lambda folder: len(below(folder)))
    sounds = below(best)
    if not sounds:
        raise UserError(f"{corpus}: no sound in it has a line in the transcripts")
    return sounds


def spoken_text(written: str) -> str:
    """What is said: without notes in brackets, telephone keys by their names, single blanks; case and punctuation stay."""
    text = re.sub(r"\[[^]]*\]|\([^)]*\)|<[^>]*>", " ", written)
    text = re.sub(r"(?<!\S)[*#](?!\S)", lambda match: SPOKEN[match[0]], text)
    return " ".join(text.split())


def bare_words(text: str) -> str:
    """Lower case, no punctuation: two texts that differ only in these are the same text."""
    return " ".join(re.findall(r"[^\W_]+(?:'[^\W_]+)*", text.lower()))


def read_prompts(texts: dict[str, str], sounds: dict[str, Path]) -> dict[str, Prompt]:
    """{utterance id: prompt}; prints how many were dropped and why."""
    dropped: Counter[str] = Counter()
    prompts: dict[str, Prompt] = {}
    with Progress("data_prep", len(texts), "prompts") as progress:
        for key, written in texts.items():
            progress.update()
            text = spoken_text(written)
            if not bare_words(text):
                dropped["not speech"] += 1
                continue
            if key not in sounds:
                dropped["no such sound file"] += 1
                continue
            try:
                seconds = len(load_audio(sounds[key], sample_rate=SAMPLE_RATE)) / SAMPLE_RATE
            except UserError as error:
                progress.write(f"data_prep: dropped: {error}")
                dropped["unreadable"] += 1
                continue
            utt = f"{SPEAKER}-{key.replace('/', '-')}"
            if utt in prompts:
                raise UserError(f"{sounds[key]} and {prompts[utt].audio} get the same utterance id {utt}; rename one of them")
            prompts[utt] = Prompt(sounds[key], text, seconds)
    for reason, count in sorted(dropped.items()):
        print(f"data_prep: {count} dropped: {reason}", file=sys.stderr)
    return prompts


def split(prompts: dict[str, Prompt]) -> dict[str, list[str]]:
    """{"train" | "dev" | "test": utterance ids}. All prompts with the same bare words go to the same set; chance is the
    SHA-256 of the words.
    """
    same_text: dict[str, list[str]] = {}
    for utt, prompt in prompts.items():
        same_text.setdefault(bare_words(prompt.text), []).append(utt)
    strata: dict[int, list[str]] = {limit: [] for limit in SHARES}
    parts: dict[str, list[str]] = {name: [] for name in SETS}
    for words, utts in same_text.items():
        if any(prompts[utt].seconds > MAX_TEST_SECONDS for utt in utts):
            parts["train"] += utts
        else:
            strata[next(limit for limit in SHARES if len(words.split()) <= limit)].append(words)
    for limit, (dev, test) in SHARES.items():
        ranked = sorted(strata[limit], key=lambda words: hashlib.sha256(words.encode()).hexdigest())
        last_test = round(test * len(ranked))
        last_dev = last_test + round(dev * len(ranked))
        for index, words in enumerate(ranked):
            parts["test" if index < last_test else "dev" if index < last_dev else "train"] += same_text[words]
    for name, utts in parts.items():
        if not utts:
            raise UserError(f"{name} has no utterance: {len(prompts)} prompts are too few to split; give the whole corpus")
    return parts


def write_set(folder: Path, prompts: dict[str, Prompt]) -> None:
    write_map(folder / "wav.scp", {utt: prompt.audio.as_posix() for utt, prompt in prompts.items()})
    write_map(folder / "text", {utt: prompt.text for utt, prompt in prompts.items()})
    write_map(folder / "utt2spk", {utt: SPEAKER for utt in prompts})
    write_map(folder / "spk2utt", {SPEAKER: " ".join(sorted(prompts))})
    write_map(folder / "utt2dur", {utt: f"{prompt.seconds:.4f}" for utt, prompt in prompts.items()})
    minutes = sum(prompt.seconds for prompt in prompts.values()) / 60
    words = sum(len(prompt.text.split()) for prompt in prompts.values())
    print(f"data_prep: {folder}: {len(prompts)} utterances, {minutes:.1f} min, {words} words", file=sys.stderr)


if __name__ == "__main__":
    run(main)
