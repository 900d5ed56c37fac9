"""What the data preparations of recipes share: sentences to a Kaldi directory, and the list of sets that a corpus could fill."""

from __future__ import annotations

import hashlib
import re
import sys
from pathlib import Path
from typing import Iterable, Mapping, NamedTuple, Sequence

from steermoe.data.audio import duration
from steermoe.data.kaldi_files import PARTIAL_FILES, spk2utt_of, write_map
from steermoe.errors import UserError
from steermoe.files import atomic_write
from steermoe.progress import Progress
from steermoe.stamp import Stamp


class Sentence(NamedTuple):
    """One utterance: utt begins with spk, text is what is said, audio is a file of any format that `load_audio` reads.

    Of a question about a clip, text is the answer, spk the clip, question the prompt, answers those of all annotators (`a|b|c`).
    """

    utt: str
    spk: str
    text: str
    audio: Path
    question: str = ""
    question_type: str = ""
    answers: str = ""


def prepare(out: Path, sets: Mapping[str, Sequence[Sentence]], script: Path) -> None:
    """Writes out/<set> for each set; does nothing if they are there and nothing has changed (sentences, audio sizes, script).

    out/sets is written first and names them, so that the driver knows which sets this corpus has even after a killed run.
    UserError for an empty set.
    """
    for name, sentences in sets.items():
        if not sentences:
            raise UserError(f"{name} has no utterance: no sentence of the transcripts has an audio file in this tree")
    digest = hashlib.sha256()
    for name, sentences in sets.items():
        for sentence in sentences:
            digest.update("\t".join([name, *map(str, sentence), f"{sentence.audio.stat().st_size}\n"]).encode())
    stamp = Stamp(out / ".data_prep.json", {"sentences": digest.hexdigest()}, [script])
    files = [out / name / file for name in sets for file in ("wav.scp", "text", "utt2spk", "spk2utt", "utt2dur")]
    if stamp.fresh([out / "sets", *files]):
        print(f"data_prep: {out}/{{{','.join(sets)}}} up to date", file=sys.stderr)
        return
    with atomic_write(out / "sets") as stream:
        stream.write("".join(f"{name}\n" for name in sets))
    for name, sentences in sets.items():
        write_set(out / name, sentences)
    stamp.write()


def write_set(folder: Path, sentences: Sequence[Sentence]) -> None:
    """A Kaldi directory: wav.scp, text, utt2spk, spk2utt, utt2dur; question, question_type and answers of those that have them.
    Unreadable audio is named, dropped and counted.
    """
    seconds: dict[str, float] = {}
    kept: dict[str, Sentence] = {}
    with Progress(f"data_prep {folder.name}", len(sentences), "utt") as progress:
        for sentence in sentences:
            progress.update()
            if sentence.utt in kept:
                raise UserError(f"{sentence.audio} and {kept[sentence.utt].audio} have the same utterance id; remove one of them")
            try:
                seconds[sentence.utt] = duration(sentence.audio)
            except UserError as error:
                progress.write(f"data_prep: dropped: {error}")
                continue
            kept[sentence.utt] = sentence
    if not kept:
        raise UserError(f"{folder}: none of {len(sentences)} audio files can be read, see above; get the corpus again")
    speakers = {utt: sentence.spk for utt, sentence in kept.items()}
    write_map(folder / "wav.scp", {utt: sentence.audio.as_posix() for utt, sentence in kept.items()})
    write_map(folder / "text", {utt: sentence.text for utt, sentence in kept.items()})
    write_map(folder / "utt2spk", speakers)
    write_map(folder / "spk2utt", spk2utt_of(speakers))
    write_map(folder / "utt2dur", seconds)
    for name in PARTIAL_FILES:
        values = {utt: value for utt, sentence in kept.items() if (value := getattr(sentence, name))}
        if values:
            write_map(folder / name, values)
        else:
            (folder / name).unlink(missing_ok=True)
    dropped = len(sentences) - len(kept)
    print(
        f"data_prep: {folder}: {len(kept)} utterances, {len(set(speakers.values()))} "
        f"{'clips' if all(sentence.question for sentence in kept.values()) else 'speakers'}, "
        f"{sum(seconds.values()) / 3600:.2f} h"
        + (f", {dropped} dropped: unreadable" if dropped else ""),
        file=sys.stderr,
    )


def chinese_text(text: str) -> str:
    """Without the blanks between Chinese words; those between Latin words stay."""
    return re.sub(r"(?<![!-~])\s+|\s+(?![!-~])", "", " ".join(text.split()))


def compare_counts(counts: Iterable[tuple[str, int, int]]) -> None:
    """(name, utterances found, utterances published): says which parts are not the published ones."""
    for name, found, published in counts:
        if found != published:
            note = "an excerpt, or incomplete; its scores are its own"
            print(f"data_prep: {name}: {found} utterances, {published} are published: {note}", file=sys.stderr)
