"""The folder that a decoding verb leaves: text (Kaldi), hyp.trn and ref.trn (raw, for `score`), decode.json (settings, speed,
why answers ended). Finished batches are kept in a journal until then, so that a killed run goes on where it was.
"""

from __future__ import annotations

import hashlib
import json
import time
from collections import Counter
from pathlib import Path
from typing import Callable, Sequence

from steermoe.data.kaldi_files import write_map
from steermoe.environment import describe
from steermoe.errors import UserError
from steermoe.files import append_jsonl, resume_jsonl, write_json
from steermoe.progress import Progress
from steermoe.score import write_trn
from steermoe.stamp import Stamp

OUTPUTS = ("text", "hyp.trn", "ref.trn", "decode.json")


class Journal:
    """Hypotheses of finished batches. A line is {"seconds": …, "utts": {utt: [text, why it ended]}}."""

    def __init__(self, path: str | Path):
        self.path = Path(path)
        self.lines = resume_jsonl(path)

    def run(self, name: str, batches: Sequence[Sequence], decode: Callable[[Sequence], dict[str, list[str]]]) -> None:
        """Decodes the batches that are not in the journal yet. The batches must follow from data and settings alone: then a
        resumed run gives the hypotheses of an uninterrupted one.
        """
        done = sum(len(batch) for batch in batches[: len(self.lines)])
        total = sum(len(batch) for batch in batches)
        with open(self.path, "a", encoding="utf-8") as stream, Progress(name, total, "utt", done) as progress:
            for batch in batches[len(self.lines) :]:
                begun = time.monotonic()
                utts = decode(batch)
                self.lines.append({"seconds": round(time.monotonic() - begun, 3), "utts": utts})
                append_jsonl(stream, self.lines[-1])
                progress.update(len(batch))

    @property
    def results(self) -> dict[str, list[str]]:
        return {utt: result for line in self.lines for utt, result in line["utts"].items()}

    @property
    def seconds(self) -> float:
        """Spent decoding, over all runs."""
        return sum(line["seconds"] for line in self.lines)


def open_journal(out: Path, stamp: Stamp, job: int = 1, nj: int = 1) -> Journal:
    """The journal in `out` of exactly these settings and inputs, and of this job of nj; those of others stay unread."""
    out.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(json.dumps(stamp.content, sort_keys=True).encode()).hexdigest()[:12]
    return Journal(out / (f".hyp.{key}.part" if nj == 1 else f".hyp.{key}.{job}of{nj}.part"))


def join_journals(out: Path, stamp: Stamp, nj: int, utterances: int) -> Journal:
    """What nj jobs have decoded, together. UserError if that is not all of the utterances."""
    joined, *others = (open_journal(out, stamp, job, nj) for job in range(1, nj + 1))
    joined.lines += [line for journal in others for line in journal.lines]
    if (found := len(joined.results)) < utterances:
        raise UserError(f"{out}: {found} of {utterances} utterances are decoded; run stage 5 again, it goes on where it was")
    return joined


def write_hypotheses(out: Path, entries: list[dict], journal: Journal, settings: dict, stamp: Stamp) -> None:
    """Writes OUTPUTS in the data set's order, then the stamp, then removes the journals. entries: lines of data.jsonl."""
    results = journal.results
    texts = {entry["utt"]: " ".join(results[entry["utt"]][0].split()) for entry in entries}
    speakers = {entry["utt"]: entry["spk"] for entry in entries}
    write_map(out / "text", texts)
    write_trn(out / "hyp.trn", texts, speakers)
    write_trn(out / "ref.trn", {entry["utt"]: entry["text"] for entry in entries}, speakers)
    ended = Counter(why for _, why in results.values())
    audio, seconds = sum(entry["duration"] for entry in entries), max(journal.seconds, 1e-3)
    figures = {
        "utterances": len(entries),
        "audio_seconds": round(audio, 2),
        "decoding_seconds": round(seconds, 2),
        "real_time_factor": round(seconds / audio, 4),
        "ended": {name: ended[name] for name in ("end", "length", "repeat")},
        "decode_conf": settings,
        "environment": describe(),
    }
    write_json(out / "decode.json", figures)
    print(
        f"{out}/hyp.trn: {len(entries)} utterances, {audio / seconds:.1f} x real time; the repeat guard fired {ended['repeat']} "
        f"times, {ended['length']} answers reached the length limit"
    )
    stamp.write()
    for part in out.glob(".hyp.*.part"):
        part.unlink()
