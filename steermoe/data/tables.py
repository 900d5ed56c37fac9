"""Speech and text as people have them: a folder of recordings with a .txt beside each, a CSV or TSV table, JSON lines, a Kaldi directory."""

from __future__ import annotations

import csv
import json
import random
import re
import sys
from pathlib import Path
from typing import Iterator, Mapping, NamedTuple, Sequence

from steermoe.data.corpus import Sentence
from steermoe.data.kaldi_files import iter_lines, read_map
from steermoe.errors import UserError

AUDIO = (".wav", ".flac", ".ogg", ".opus", ".mp3", ".aiff", ".au", ".sph", ".g722")
COLUMNS = {
    "audio": ("audio", "path", "file", "wav", "audio_filepath", "audio_file", "filename", "file_name"),
    "text": ("text", "sentence", "transcript", "transcription"),
    "speaker": ("speaker", "spk", "speaker_id", "client_id"),
    "set": ("set", "split"),
}
SETS = {"train": "train", "training": "train", "dev": "dev", "valid": "dev", "validation": "dev", "val": "dev", "test": "test"}
WAYS = "a folder of recordings, each with its text in a .txt of the same name; a .csv, .tsv or .jsonl table; or a Kaldi directory"


class Row(NamedTuple):
    """where: for messages. speaker and set are empty where they are not known."""

    where: str
    audio: Path
    text: str
    speaker: str
    set: str


def read_corpus(source: Path) -> list[Row]:
    """UserError names the file and line of what cannot be used; recordings that are missing are named and left out."""
    if source.is_dir():
        rows = _kaldi(source) if (source / "wav.scp").is_file() else _folder(source)
    elif not source.is_file():
        raise UserError(f"{source}: no such file or folder; a corpus is {WAYS}")
    elif source.suffix.lower() in (".csv", ".tsv"):
        rows = _table(source, "\t" if source.suffix.lower() == ".tsv" else ",")
    elif source.suffix.lower() in (".jsonl", ".json"):
        rows = _json_lines(source)
    else:
        raise UserError(f"{source}: a corpus is {WAYS}")
    found, missing = [], []
    for row in rows:
        if not row.text.strip():
            raise UserError(f"{row.where}: {row.audio.name} has no text; write what is said, or take it out")
        (found if row.audio.is_file() else missing).append(row)
    for row in missing[:10]:
        print(f"{row.where}: {row.audio}: no such recording, left out", file=sys.stderr)
    if missing:
        print(f"{source}: {len(missing)} of {len(found) + len(missing)} recordings are missing", file=sys.stderr)
    if not found:
        raise UserError(f"{source}: no recording with a text in it; a corpus is {WAYS}")
    return found


def sentences(rows: Sequence[Row], shares: Mapping[str, float], seed: int = 1) -> dict[str, list[Sentence]]:
    """Rows to the sets train, dev and test. shares: of the utterances, for those that name no set: {"dev": 0.1, "test": 0.1}.

    No speaker is in two sets, if there are enough of them: every set of `shares` gets one at least. Otherwise utterances are
    parted, which is said. UserError if a set stays empty.
    """
    named: dict[str, list[Sentence]] = {"train": [], **{name: [] for name in shares}}
    free: dict[str, list[Sentence]] = {}
    ids: set[str] = set()
    for row in rows:
        sentence = _sentence(row, ids)
        if row.set:
            named.setdefault(row.set, []).append(sentence)
        else:
            free.setdefault(row.speaker or sentence.utt, []).append(sentence)
    if free:
        _share_out(free, shares, named, seed)
    for name, found in named.items():
        if not found:
            raise UserError(f"{name} has no utterance: give more data, or name sets in a column `set` of a table")
    return named


def _share_out(free: dict[str, list[Sentence]], shares: Mapping[str, float], named: dict[str, list[Sentence]], seed: int) -> None:
    order = sorted(free)
    draw = random.Random(seed)
    draw.shuffle(order)
    total = sum(map(len, free.values()))
    if len(order) <= len(shares):
        print(f"import: {len(order)} speakers are too few to keep some apart: they are in every set", file=sys.stderr)
        together = [sentence for speaker in order for sentence in free[speaker]]
        draw.shuffle(together)
        free, order = {sentence.utt: [sentence] for sentence in together}, [sentence.utt for sentence in together]
    for name, share in shares.items():
        taken = 0
        while order and share and taken < max(1, round(share * total)):
            found = free[order.pop()]
            named[name] += found
            taken += len(found)
    named["train"] += [sentence for speaker in order for sentence in free[speaker]]


def _sentence(row: Row, ids: set[str]) -> Sentence:
    """Its id begins with the speaker's, has Kaldi's letters only and is nobody else's."""
    stem = re.sub(r"[^\w.-]", "_", row.audio.stem, flags=re.ASCII) or "utt"
    speaker = re.sub(r"[^\w.-]", "_", row.speaker, flags=re.ASCII)
    utt = stem if not speaker or stem.startswith(f"{speaker}-") else f"{speaker}-{stem}"
    number, base = 2, utt
    while utt in ids:
        utt, number = f"{base}-{number}", number + 1
    ids.add(utt)
    return Sentence(utt, speaker or utt, " ".join(row.text.split()), row.audio)


def _folder(folder: Path) -> Iterator[Row]:
    """A recording's speaker is the first folder below this one that it is in; train, dev and test are sets, and not speakers."""
    for audio in sorted(path for path in folder.rglob("*") if path.suffix.lower() in AUDIO):
        text = audio.with_suffix(".txt")
        if not text.is_file():
            raise UserError(f"{audio}: no text beside it; write what is said into {text.name}, or take it out")
        try:
            said = text.read_text(encoding="utf-8-sig")
        except UnicodeDecodeError:
            raise UserError(f"{text}: not UTF-8; convert the file") from None
        above = list(audio.relative_to(folder).parts[:-1])
        found = SETS.get(above.pop(0).lower(), "") if above and above[0].lower() in SETS else ""
        yield Row(str(text), audio, said, above[0] if above else "", found)


def _kaldi(folder: Path) -> Iterator[Row]:
    if (folder / "segments").is_file():
        raise UserError(f"{folder}/segments: pieces of longer recordings; copy the directory to data/train as it is, and begin at stage 1")
    texts, speakers = read_map(folder / "text"), read_map(folder / "utt2spk") if (folder / "utt2spk").is_file() else {}
    for number, utt, audio in iter_lines(folder / "wav.scp"):
        where = f"{folder}/wav.scp:{number}"
        if audio.endswith("|"):
            raise UserError(f"{where}: a command, which is not run; write its output to a file and name that")
        if utt not in texts:
            raise UserError(f"{where}: {utt} is not in {folder}/text; utils/fix_data_dir.sh {folder} takes out what is incomplete")
        yield Row(where, Path(audio), texts[utt], speakers.get(utt, ""), "")


def _table(path: Path, delimiter: str) -> Iterator[Row]:
    with open(path, encoding="utf-8-sig", newline="") as stream:
        try:
            reader = csv.DictReader(stream, delimiter=delimiter, strict=True)
            columns = _columns(path, reader.fieldnames or [], f"{path}:1")
            for record in reader:
                where = f"{path}:{reader.line_num}"
                if None in record or None in record.values():
                    raise UserError(f"{where}: not as many fields as the first line has; put a field with {delimiter!r} in it in quotes")
                yield _row(where, path.parent, columns, record)
        except (csv.Error, UnicodeDecodeError) as error:
            raise UserError(f"{path}: not a table in UTF-8: {error}") from None


def _json_lines(path: Path) -> Iterator[Row]:
    for number, line in enumerate(path.read_bytes().splitlines(), 1):
        where = f"{path}:{number}"
        if not line.strip():
            continue
        try:
            record = json.loads(line)
        except ValueError as error:
            raise UserError(f"{where}: not JSON: {error}") from None
        if not isinstance(record, dict):
            raise UserError(f'{where}: not an object; a line is {{"audio": "a.wav", "text": "hello"}}')
        yield _row(where, path.parent, _columns(path, list(record), where), record)


def _columns(path: Path, names: Sequence[str], where: str) -> dict[str, str]:
    """{"audio": its name in this table, …}."""
    known = {name.strip().lower(): name for name in names}
    columns = {kind: known[name] for kind, spellings in COLUMNS.items() for name in spellings[::-1] if name in known}
    for kind in ("audio", "text"):
        if kind not in columns:
            raise UserError(f"{where}: no {kind}: a column or key is to be named {', '.join(COLUMNS[kind])}")
    return columns


def _row(where: str, folder: Path, columns: Mapping[str, str], record: Mapping[str, object]) -> Row:
    values = {kind: str(record[name] if record[name] is not None else "") for kind, name in columns.items()}
    part = values.get("set", "").strip().lower()
    if part and part not in SETS:
        raise UserError(f"{where}: set {part!r}: it is one of {', '.join(SETS)}, or empty")
    audio = Path(values["audio"].strip())
    return Row(where, audio if audio.is_absolute() else folder / audio, values["text"], values.get("speaker", "").strip(), SETS.get(part, ""))
