#!/usr/bin/env python3
"""Makes data/{train,dev,test} of Clotho-AQA's tables and clips: an utterance is a question about a clip.

usage: local/data_prep.py --corpus DIR --out data [--train-answers majority|all] [--prompt "… {question}"]

The corpus is a folder with clotho_aqa_{train,val,test}.csv (file_name, QuestionText, answer; a row for each of three annotators)
and, anywhere in it, the clips. dev has the questions on which at least two annotators agree (1,823 where all clips are there);
test has all of them, with the three answers, and the scorer takes those on which two agree (2,476). Clips that are missing are
named in data/missing, and their questions left out.
"""

from __future__ import annotations

import csv
import hashlib
import html
import itertools
import re
import sys
import unicodedata
from collections import Counter
from pathlib import Path
from typing import NamedTuple, Sequence

from steermoe.bin.cli import Parser, run
from steermoe.data.corpus import Sentence, prepare
from steermoe.errors import UserError
from steermoe.files import atomic_write

PROMPT = "please answer the following question. The question is : {question}"
TABLES = {"train": "train", "dev": "val", "test": "test"}
COLUMNS = ("file_name", "QuestionText", "answer")
ANNOTATORS, AGREE = 3, 2
SUFFIXES = {".wav", ".flac", ".ogg", ".opus", ".mp3"}
SHOWN = 3  # missing clips on the screen
HELD_OUT = 0.1  # of the training clips, for dev, where none of its own is there
KINDS = (
    *("is", "are", "was", "were", "does", "do", "did", "can", "could", "has", "have", "will", "would"),
    *("what", "which", "where", "who", "when", "why", "how"),
)


class Question(NamedTuple):
    """One question of a table: clip is its file's name, number counts the clip's questions from 1."""

    clip: str
    number: int
    text: str
    answers: list[str]

    @property
    def majority(self) -> tuple[str, int]:
        """The most frequent answer, of equally frequent ones the first, and how many annotators gave it."""
        return Counter(self.answers).most_common(1)[0]


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/data_prep.py", description=__doc__.split("\n")[0])
    parser.add_argument("--corpus", type=Path, default=Path("downloads/clotho_aqa"), help="folder with the tables and the clips")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for train, dev and test")
    parser.add_argument("--train-answers", choices=("majority", "all"), default="majority", help="which answers to train on")
    parser.add_argument("--prompt", default=PROMPT, help="what the LLM is asked; {question} in it is the question")
    parser.add_argument("--mirror", help="for download.py")
    options = parser.parse_args(argv)
    if "{question}" not in options.prompt:
        raise UserError(f"--prompt {options.prompt!r}: {{question}} must stand in it where the question goes")
    tables = {name: read_table(find_table(options.corpus, table)) for name, table in TABLES.items()}
    clips = find_clips(options.corpus, {question.clip for table in tables.values() for question in table})
    tables = with_clips(tables, clips, options.out / "missing")
    sets = {name: sentences(name, table, clips, options) for name, table in tables.items()}
    prepare(options.out, {name: found for name, found in sets.items() if found}, Path(__file__).resolve())
    return 0


def find_table(corpus: Path, table: str) -> Path:
    if not corpus.is_dir():
        raise UserError(f"{corpus}: no such folder; run stage -1 (./run.sh --stage download), or give --corpus DIR")
    found = sorted(corpus.rglob(f"clotho_aqa_{table}.csv"))
    if not found:
        raise UserError(f"{corpus}: no clotho_aqa_{table}.csv in it; the corpus's tables must be there, with the clips")
    return found[0]


def read_table(path: Path) -> list[Question]:
    """The questions in the table's order. UserError names the line that lacks a column or an answer."""
    rows = []
    try:
        with open(path, encoding="utf-8-sig", newline="") as stream:
            reader = csv.DictReader(stream)
            if missing := [column for column in COLUMNS if column not in (reader.fieldnames or [])]:
                raise UserError(f"{path}:1: no column {missing[0]}; get the table again")
            for row in reader:
                values = [" ".join((row[column] or "").split()) for column in COLUMNS]
                if not all(values):
                    raise UserError(f"{path}:{reader.line_num}: no {COLUMNS[values.index('')]}; get the table again")
                rows.append(values)
    except (UnicodeDecodeError, csv.Error) as error:
        raise UserError(f"{path}: not a CSV table in UTF-8 ({error}); get it again") from None
    questions, asked = [], Counter()
    for (clip, text), run_ in itertools.groupby(rows, lambda row: (row[0], row[1])):
        answers = [row[2] for row in run_]
        for start in range(0, len(answers), ANNOTATORS):  # one question stands in the table twice
            asked[clip] += 1
            questions.append(Question(clip, asked[clip], text, answers[start : start + ANNOTATORS]))
    return questions


def find_clips(corpus: Path, names: set[str]) -> dict[str, Path]:
    """{name in the tables: file}. Some names differ in what file systems refuse: those are compared by letters and digits."""
    files = sorted(path for path in corpus.rglob("*") if path.suffix.lower() in SUFFIXES and path.is_file())
    by_stem, by_letters = {path.stem: path for path in files}, {letters(path.stem): path for path in files}
    found = {name: by_stem.get(Path(name).stem) or by_letters.get(letters(Path(name).stem)) for name in names}
    return {name: path for name, path in found.items() if path}


def letters(name: str) -> str:
    """soufflé's "a&#39;b" and souffle_s_a_b are one: no entities, accents, punctuation and case."""
    plain = unicodedata.normalize("NFKD", html.unescape(name)).casefold()
    return "".join(character for character in plain if character.isascii() and character.isalnum())


def with_clips(tables: dict[str, list[Question]], clips: dict[str, Path], missing: Path) -> dict[str, list[Question]]:
    """The questions whose clip is there; says which are not, and writes their names to `missing`."""
    kept, lines = {}, []
    for name, table in tables.items():
        names = list(dict.fromkeys(question.clip for question in table))
        lost = [clip for clip in names if clip not in clips]
        lines += [f"{name}\t{clip}\n" for clip in lost]
        kept[name] = [question for question in table if question.clip in clips]
        if lost:
            shown = ", ".join(lost[:SHOWN]) + ", …" * (len(lost) > SHOWN)
            left_out = len(table) - len(kept[name])
            print(
                f"data_prep: {name}: {len(lost)} of {len(names)} clips are missing ({shown}; all of them in {missing}): "
                f"{left_out} of {len(table)} questions left out",
                file=sys.stderr,
            )
    if not any(kept.values()):
        raise UserError(f"none of the {len(lines)} clips of the tables is in the corpus folder; give a folder that holds them")
    with atomic_write(missing) as stream:
        stream.writelines(lines)
    if kept["train"] and not kept["dev"]:
        hold_out(kept)
    return kept


def hold_out(tables: dict[str, list[Question]]) -> None:
    """Some training clips for dev, which has none."""
    names = sorted({question.clip for question in tables["train"]}, key=lambda clip: hashlib.sha256(clip.encode()).hexdigest())
    held = set(names[: max(1, round(HELD_OUT * len(names)))])
    if len(held) == len(names):
        raise UserError("dev has no clip, and train has only one: nothing to train on; give a folder with more of the clips")
    tables["dev"] = [question for question in tables["train"] if question.clip in held]
    tables["train"] = [question for question in tables["train"] if question.clip not in held]
    print(f"data_prep: dev: none of its clips is there; training clips take their place: {len(held)}", file=sys.stderr)


def sentences(name: str, table: list[Question], clips: dict[str, Path], options) -> list[Sentence]:
    """The set's utterances: test has every question, train and dev those on which annotators agree, or each annotator's row."""
    agreed = [question for question in table if question.majority[1] >= AGREE]
    if table:
        print(f"data_prep: {name}: {len(table)} questions, at least {AGREE} annotators agree on {len(agreed)}", file=sys.stderr)
    made = []
    for question in table if name == "test" or (name == "train" and options.train_answers == "all") else agreed:
        clip = clip_id(question.clip)
        utt, prompt = f"{clip}-q{question.number:02d}", options.prompt.replace("{question}", question.text)
        common = {"spk": clip, "audio": clips[question.clip], "question": prompt, "question_type": question_type(question.text)}
        if name == "train" and options.train_answers == "all":
            made += [Sentence(f"{utt}-a{index}", text=answer, **common) for index, answer in enumerate(question.answers, 1)]
        else:
            made.append(Sentence(utt, text=question.majority[0], answers="|".join(question.answers), **common))
    return made


def clip_id(name: str) -> str:
    """A name for Kaldi's files, without blanks and dashes; the six digits tell alike names apart."""
    words = re.sub(r"[^A-Za-z0-9]+", "_", Path(name).stem).strip("_")[:40]
    return f"{words}_{hashlib.sha256(name.encode()).hexdigest()[:6]}"


def question_type(text: str) -> str:
    """The word that the question begins with, "how_many" and "is_there" apart; "other" for what is no question word."""
    first, second = (re.findall(r"[a-z]+", text.lower()) + ["", ""])[:2]
    if first in ("is", "are") and second == "there":
        return "is_there"
    return "how_many" if (first, second) == ("how", "many") else first if first in KINDS else "other"


if __name__ == "__main__":
    run(main)
