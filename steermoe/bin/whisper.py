"""Stage 5: the encoder's own score: a whole Whisper model, encoder and decoder, transcribes a data set.

Leaves OUT/text (Kaldi), OUT/hyp.trn and OUT/ref.trn (raw, for `score`), OUT/decode.json (settings, speed, why answers ended).
Killed and started again, it goes on where it was and ends with the same hypotheses.
"""

from __future__ import annotations

import hashlib
import json
import os
import time
from pathlib import Path

from steermoe.bin.cli import Parser, boolean, run
from steermoe.errors import UserError
from steermoe.files import read_jsonl, write_json
from steermoe.progress import Progress
from steermoe.stamp import Stamp


def main(argv=None) -> None:
    args = make_parser().parse_args(argv)
    if args.batch_size < 1 or args.beam < 1:
        raise UserError(f"--batch-size {args.batch_size} --beam {args.beam}: both are at least 1")
    entries = read_entries(args.data)
    from steermoe.encoders.whisper_decoder import source_files
    from steermoe.fetch import find_model

    model = find_model(args.model, kind="encoder")
    names = ("language", "beam", "timestamps", "batch_size", "dtype", "ngpu")
    settings = {name: getattr(args, name) for name in names}
    stamp = Stamp(args.out / ".done", settings, [args.data, *source_files(model)])
    outputs = [args.out / name for name in ("text", "hyp.trn", "ref.trn", "decode.json")]
    if stamp.fresh(outputs):
        print(f"{args.out}/hyp.trn: up to date")
        return
    args.out.mkdir(parents=True, exist_ok=True)
    key = hashlib.sha256(json.dumps(stamp.content, sort_keys=True).encode()).hexdigest()[:12]
    lines = transcribe(args, model, entries, args.out / f".hyp.{key}.part")
    write_outputs(args.out, entries, lines, {"model": args.model, **settings})
    stamp.write()
    for part in args.out.glob(".hyp.*.part"):
        part.unlink()
    print(f"{args.out}/hyp.trn")


def make_parser() -> Parser:
    parser = Parser(prog="steermoe whisper", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="whisper-tiny.en", help="a whole Whisper: catalog name, hub id, folder or .pt file")
    parser.add_argument("--data", type=Path, required=True, help="data.jsonl of stage 2; its wav, start and end are read")
    parser.add_argument("--out", type=Path, required=True, help="folder for the hypotheses")
    parser.add_argument("--language", default="en", help="language code of the speech, such as en or zh")
    parser.add_argument("--batch-size", type=int, default=16, help="windows of 30 s decoded together")
    parser.add_argument("--beam", type=int, default=1, help="beam width; 1 is greedy")
    parser.add_argument("--timestamps", type=boolean, default=False, help="let the decoder mark times (they are not written out)")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), default="float32", help="of the weights")
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs: 0 or 1")
    parser.add_argument("--allow-pipes", type=boolean, default=False, help="run the commands of wav.scp lines that end in |")
    return parser


def read_entries(path: Path) -> list[dict]:
    """The lines of data.jsonl. UserError names the line without what is needed here."""
    entries = list(read_jsonl(path))
    if not entries:
        raise UserError(f"{path}: no utterance in it; stage 2 says why utterances were dropped")
    for number, entry in enumerate(entries, 1):
        if missing := {"utt", "spk", "text", "wav", "duration"} - entry.keys():
            raise UserError(f"{path}:{number}: no {sorted(missing)[0]!r}; remove the file and run stage 2 again")
    return entries


def batches(entries: list[dict], size: int) -> list[list[dict]]:
    """Every entry once, the longest first, so that answers in a batch are about equally long. Depends on the entries only."""
    ordered = sorted(entries, key=lambda entry: (-entry["duration"], entry["utt"]))
    return [ordered[first : first + size] for first in range(0, len(ordered), size)]


def transcribe(args, model: Path, entries: list[dict], part: Path) -> list[dict]:
    """One line a batch: {"seconds": …, "utts": {utt: [text, "end" | "length"]}}, each kept in `part` as soon as it is there."""
    from steermoe.bin.decode import device
    from steermoe.data.audio import load_audio
    from steermoe.dtypes import resolve_dtype
    from steermoe.encoders.whisper_decoder import WhisperDecoder

    todo = batches(entries, args.batch_size)
    lines = finished(part)
    decoder = WhisperDecoder(model, args.language, args.beam, args.timestamps, resolve_dtype(args.dtype), device(args.ngpu))
    with (
        open(part, "a", encoding="utf-8") as stream,
        Progress("whisper", len(entries), "utt", sum(len(batch) for batch in todo[: len(lines)])) as progress,
    ):
        for batch in todo[len(lines) :]:
            begun = time.monotonic()
            audio = [load_audio(e["wav"], e.get("start"), e.get("end"), allow_pipes=args.allow_pipes) for e in batch]
            results = decoder.transcribe(audio)
            utts = {e["utt"]: [r.text, "end" if r.complete else "length"] for e, r in zip(batch, results)}
            lines.append({"seconds": round(time.monotonic() - begun, 3), "utts": utts})
            stream.write(json.dumps(lines[-1], ensure_ascii=False) + "\n")
            stream.flush()
            os.fsync(stream.fileno())
            progress.update(len(batch))
    return lines


def finished(part: Path) -> list[dict]:
    """The whole lines that an interrupted run has left; half a line at the end is cut off."""
    if not part.is_file():
        return []
    content = part.read_bytes()
    whole = content[: content.rfind(b"\n") + 1]
    os.truncate(part, len(whole))
    return [json.loads(line) for line in whole.splitlines()]


def write_outputs(out: Path, entries: list[dict], lines: list[dict], settings: dict) -> None:
    """In the data set's order."""
    from steermoe.data.kaldi_files import write_map
    from steermoe.environment import describe
    from steermoe.score import write_trn

    results = {utt: result for line in lines for utt, result in line["utts"].items()}
    texts = {entry["utt"]: results[entry["utt"]][0] for entry in entries}
    speakers = {entry["utt"]: entry["spk"] for entry in entries}
    write_map(out / "text", texts)
    write_trn(out / "hyp.trn", texts, speakers)
    write_trn(out / "ref.trn", {entry["utt"]: entry["text"] for entry in entries}, speakers)
    audio, seconds = sum(entry["duration"] for entry in entries), sum(line["seconds"] for line in lines)
    cut = sum(ended == "length" for _, ended in results.values())
    figures = {
        "utterances": len(entries),
        "audio_seconds": round(audio, 2),
        "decoding_seconds": round(seconds, 2),
        "real_time_factor": round(seconds / audio, 4),
        "ended": {"end": len(entries) - cut, "length": cut, "repeat": 0},
        "decode_conf": settings,
        "environment": describe(),
    }
    write_json(out / "decode.json", figures)
    print(f"{len(entries)} utterances, {audio / max(seconds, 1e-9):.1f} x real time; {cut} answers reached the length limit")


if __name__ == "__main__":
    run(main)
