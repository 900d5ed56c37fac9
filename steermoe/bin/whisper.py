"""Stage 5: the encoder's own score: a whole Whisper model, encoder and decoder, transcribes a data set.

Leaves OUT/text (Kaldi), OUT/hyp.trn and OUT/ref.trn (raw, for `score`), OUT/decode.json (settings, speed, why answers ended).
Killed and started again, it goes on where it was and ends with the same hypotheses.
"""

from __future__ import annotations

from pathlib import Path

from steermoe.bin.cli import Parser, boolean, run
from steermoe.decode.hypotheses import OUTPUTS, Journal, open_journal, write_hypotheses
from steermoe.errors import UserError
from steermoe.files import read_jsonl
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
    if stamp.fresh(args.out / name for name in OUTPUTS):
        print(f"{args.out}/hyp.trn: up to date")
        return
    journal = open_journal(args.out, stamp)
    decode(args, model, entries, journal)
    write_hypotheses(args.out, entries, journal, {"model": args.model, **settings}, stamp)


def make_parser() -> Parser:
    parser = Parser(prog="steermoe whisper", description=__doc__.split("\n")[0])
    parser.add_argument("--model", default="whisper-tiny.en", help="a whole Whisper: catalog name, hub id, folder or .pt file")
    parser.add_argument("--data", type=Path, required=True, help="data.jsonl of stage 2; its wav, start and end are read")
    parser.add_argument("--out", type=Path, required=True, help="folder for the hypotheses")
    parser.add_argument("--language", default="en", help="language code of the speech, such as en or zh")
    parser.add_argument("--batch-size", type=int, default=16, help="windows of 30 s decoded together")
    parser.add_argument("--beam", type=int, default=1, help="beam width; 1 is greedy")
    marks = "let the decoder mark times, as in OpenAI's transcription; they are not written out"
    parser.add_argument("--timestamps", type=boolean, default=True, help=marks)
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


def decode(args, model: Path, entries: list[dict], journal: Journal) -> None:
    from steermoe.bin.decode import device
    from steermoe.data.audio import load_audio
    from steermoe.dtypes import resolve_dtype
    from steermoe.encoders.whisper_decoder import WhisperDecoder

    decoder = WhisperDecoder(model, args.language, args.beam, args.timestamps, resolve_dtype(args.dtype), device(args.ngpu))

    def transcribe(batch: list[dict]) -> dict[str, list[str]]:
        audio = [load_audio(e["wav"], e.get("start"), e.get("end"), allow_pipes=args.allow_pipes) for e in batch]
        return {e["utt"]: [r.text, "end" if r.complete else "length"] for e, r in zip(batch, decoder.transcribe(audio))}

    journal.run("whisper", batches(entries, args.batch_size), transcribe)


if __name__ == "__main__":
    run(main)
