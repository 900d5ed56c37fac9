"""Speech from text by a synthesiser: sentences of plain texts, spoken until there are hours of it, by flite or any other command
or in this process; and the sets of a recipe whose corpus is made so.
"""

from __future__ import annotations

import concurrent.futures
import hashlib
import os
import random
import re
import shlex
import subprocess
from pathlib import Path
from typing import Callable, Iterable, Iterator, Mapping, Sequence

from steermoe.data.audio import duration, load_audio
from steermoe.data.corpus import Sentence
from steermoe.errors import UserError
from steermoe.progress import Progress

FLITE = "flite -voice {voice} -t {text} -o {wav}"


def shuffled_sentences(paths: Sequence[Path], words: range, seed: int, fix: str, mandarin: bool = False) -> list[str]:
    """The sentences of plain texts in an order that `seed` gives. fix: what to do about a path that is missing.

    UserError for a missing path, and for fewer than four sentences.
    """
    chosen = sentences(paths, words, fix, mandarin)
    if len(chosen) < 4:
        where = ", ".join(map(str, paths))
        wanted = f"sentences of {words[0]} to {words[-1]} {'Chinese characters' if mandarin else 'words of the letters a to z'}"
        raise UserError(f"{where}: {len(chosen)} {wanted}, 4 are the least; give more with --text")
    random.Random(seed).shuffle(chosen)
    return chosen


def sentences(paths: Iterable[Path], words: range, fix: str = "", mandarin: bool = False) -> list[str]:
    """Each sentence once, in the order of the files; a line that is % ends a sentence. English: lower-case words and apostrophes only.
    mandarin: Chinese characters only, which are counted in the place of words; a line ends a sentence.
    """
    files = []
    for path in paths:
        if not path.exists():
            raise UserError(f"{path}: no such file or folder; {fix}")
        files += [file for file in (sorted(path.rglob("*")) if path.is_dir() else [path]) if file.is_file()]
    found: dict[str, None] = {}
    for file in files:
        text = file.read_text(encoding="utf-8", errors="replace")
        for sentence, length in chinese(text) if mandarin else english(text):
            if length in words:
                found[sentence] = None
    return list(found)


def english(text: str) -> Iterator[tuple[str, int]]:
    """-> sentences and their numbers of words."""
    text = re.sub(r"\s+", " ", text.replace("\n%\n", ". "))
    for sentence in re.split(r"(?<=[.!?;:])\s+|--|\"|\(|\)", text):
        sentence = sentence.strip(" .!?;:,-'\"").lower().replace(",", "").replace("-", " ")
        if re.fullmatch(r"[a-z]+('[a-z]+)?( [a-z]+('[a-z]+)?)*", sentence):
            yield sentence, len(sentence.split())


def chinese(text: str) -> Iterator[tuple[str, int]]:
    """-> sentences and their numbers of characters."""
    for sentence in re.split(r"[\u3002\uff01\uff1f\uff1b\uff1a!?;:%\s]+", text):  # full stops and the like, of both widths
        sentence = re.sub(r"[,\uff0c\u3001\u201c\u201d\u2018\u2019\u300a\u300b]", "", sentence)  # commas, quotation marks
        if re.fullmatch(r"[\u4e00-\u9fff]+", sentence):
            yield sentence, len(sentence)


def spoken_sets(
    planned: Sequence[Sentence], hours: float, held_out: int, say: Callable[[Sentence], None], name: str, at_once: int
) -> dict[str, list[Sentence]]:
    """train, dev and test. The last sentences are dev and test, held_out each or a quarter of a short text; train is the first,
    as many as the hours take, so that more hours keep what fewer have. say: makes a sentence's audio, if it is not there;
    at_once: how many between two looks at the hours, spoken in parallel. name: the synthesiser's, for the progress.
    """
    few = min(held_out, len(planned) // 4)
    test, dev = list(planned[-few:]), list(planned[-2 * few : -few])
    train = _speak(planned[: -2 * few], 3600 * hours, say, name, at_once)
    _speak(dev + test, float("inf"), say, name, at_once)
    return {"train": train, "dev": dev, "test": test}


def _speak(
    planned: Sequence[Sentence], seconds: float, say: Callable[[Sentence], None], name: str, at_once: int
) -> list[Sentence]:
    """The first sentences, until there are `seconds` of speech."""

    def length_of(sentence: Sentence) -> float:
        say(sentence)
        return duration(sentence.audio)

    total, count = 0.0, 0
    limited = seconds < float("inf")
    with (
        concurrent.futures.ThreadPoolExecutor(os.cpu_count() or 1) as pool,
        Progress(name, round(seconds) if limited else len(planned), "s of speech" if limited else "utt") as progress,
    ):
        for first in range(0, len(planned), at_once):
            for length in pool.map(length_of, planned[first : first + at_once]):
                if total < seconds:
                    count += 1
                    total += length
            progress.update((min(round(total), round(seconds)) if limited else count) - progress.count)
            if total >= seconds:
                break
        else:
            if limited:
                progress.write(f"data_prep: all the text makes {total / 3600:.2f} h; more need more --text")
    return list(planned[:count])


def recording(folder: Path, utt: str, command: str, text: str) -> Path:
    """The file of an utterance; another text or another synthesiser is another recording."""
    digest = hashlib.sha256(f"{command}\n{text}".encode()).hexdigest()[:8]
    return folder / f"{utt}.{digest}.wav"


def speak(command: str, values: Mapping[str, str], wav: Path, programs: Path) -> None:
    """Makes one recording, if it is not there. command: words with {wav} and the names of `values` in them. programs: a folder
    with bin/ and lib/ whose programs come before the installed ones. UserError if there is no audio afterwards.
    """
    if wav.is_file():
        return
    wav.parent.mkdir(parents=True, exist_ok=True)
    begun = wav.with_name(f".{wav.name}")
    # Split first and filled in afterwards, and no shell: no text can be taken for anything else.
    words = [word.format(wav=begun, **values) for word in shlex.split(command)]
    done = run(words, programs)
    if done.returncode or not begun.is_file():
        why = (done.stderr.strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{shlex.join(words)}: {why}")
    load_audio(begun)  # names what is no audio
    os.replace(begun, wav)


def flite_voices(programs: Path) -> list[str]:
    """The names of flite's voices: given one that it does not know, flite speaks with another without a word."""
    return run(["flite", "-lv"], programs).stdout.partition(":")[2].split()


def run(words: list[str], programs: Path) -> subprocess.CompletedProcess:
    environment = dict(os.environ)
    for name, folder in (("PATH", "bin"), ("LD_LIBRARY_PATH", "lib")):
        environment[name] = os.pathsep.join(filter(None, [str(programs.absolute() / folder), environment.get(name)]))
    try:
        return subprocess.run(
            words, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=300, check=False,
            encoding="utf-8", errors="replace",
        )  # fmt: skip
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{words[0]}: {error}; stage -1 (./run.sh --stage -1) fetches flite") from None
