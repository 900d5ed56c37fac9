"""Transcribes audio of any length: one line `FILE<TAB>text` each, subtitles, or text while the audio arrives (--stream)."""

from __future__ import annotations

import contextlib
import json
import statistics
import sys
import time
from pathlib import Path
from typing import Iterable, Iterator

import numpy as np

from steermoe.bin.cli import Parser, run, split_overrides
from steermoe.bin.decode import add_model_options, decode_conf, device
from steermoe.errors import UserError
from steermoe.loading import paused_collection
from steermoe.pretrained import NAME, adapter_path, find_adapter
from steermoe.progress import Progress
from steermoe.transcript import FORMATS, format_transcript

STDIN = "-"
SAMPLE_RATE = 16000
LONG_S = 60.0  # so much audio is worth a progress bar


def main(argv=None) -> None:
    parser = Parser(prog="steermoe transcribe", description=__doc__)
    parser.add_argument("--model", type=adapter_path, default=NAME, help="experiment, package or its .zip, adapter file, hub id")
    parser.add_argument("files", nargs="+", metavar="FILE", help="audio of any length, or - for raw 16 kHz 16-bit mono on stdin")
    parser.add_argument("--prompt", help="what the LLM is asked; default: what the adapter was trained with")
    parser.add_argument("--format", choices=FORMATS, default="text", help="json has segments with times; srt, vtt: of one FILE")
    parser.add_argument("--stream", action="store_true", help="print words while audio arrives; the latency goes to stderr")
    parser.add_argument("--chunk", type=float, default=2.0, help="with --stream: seconds of audio at a time")
    parser.add_argument("--real-time", action="store_true", help="with --stream: a FILE arrives at the speed of speech")
    parser.add_argument("--ref", help="Kaldi's text, by FILE's name without its ending: the error rate goes to stderr")
    add_model_options(parser)
    parser.epilog = "Keys of decode_conf can be overridden: --decode-conf.beam 4"
    words, overrides = split_overrides(argv)
    args = parser.parse_args(words)
    refs = check(args)
    with paused_collection():
        from steermoe.api import SteerMoE
        from steermoe.checkpoint import read_metadata

        conf = decode_conf(read_metadata(find_adapter(args.model))[0], args.model, overrides)
    where = {"encoder_model": args.encoder_model, "llm_model": args.llm_model}
    model = SteerMoE.from_pretrained(args.model, device=device(args.ngpu), dtype=args.dtype, prompt=args.prompt, **where)
    model.decode_conf = conf
    if args.stream:
        texts = [stream(model, name, args) for name in args.files]
        report(refs, "in a stream", args, texts, conf)
        if refs is None:
            return
    texts = []
    with progress(args) as heard:
        for name, transcript in zip(args.files, model.transcripts(map(recording, args.files), heard=heard)):
            texts.append(transcript.text)
            if not args.stream:
                print(format_transcript(transcript, name, args.format), flush=True)
    report(refs, "whole", args, texts, conf)


def check(args) -> dict[str, str] | None:
    """What can be wrong is known before the models are loaded. -> the transcripts of --ref, by file name without its ending."""
    from steermoe.data.audio import duration

    if args.format in ("srt", "vtt") and (args.stream or len(args.files) > 1):
        raise UserError(f"--format {args.format}: subtitles are of one whole FILE; give one, without --stream")
    if args.files.count(STDIN) > 1 or args.ref and STDIN in args.files:
        raise UserError("-: standard input is read once, and has no transcript in --ref")
    if not args.chunk > 0:
        raise UserError(f"--chunk {args.chunk}: seconds of audio, above 0")
    args.seconds = sum(duration(name) for name in args.files if name != STDIN)
    if not args.ref:
        return None
    from steermoe.data.kaldi_files import read_map

    refs = read_map(args.ref)
    if missing := [name for name in args.files if Path(name).stem not in refs]:
        raise UserError(f"{args.ref}: no transcript of {Path(missing[0]).stem}, which is {missing[0]}")
    return {Path(name).stem: refs[Path(name).stem] for name in args.files}


def stream(model, name: str, args) -> str:
    """Prints the words of one recording as they come, and at its end how late they came. -> the text."""
    partials, text, shown = [], "", 0
    if args.format == "text":
        print(name, end="\t", flush=True)
    for partial in model.stream(chunks(name, args.chunk, args.real_time)):
        partials.append(partial)
        text += partial.new
        if args.format == "json":
            print(json.dumps({"file": name, **partial._asdict()}, ensure_ascii=False), flush=True)
            continue
        # On a terminal what may still change stands behind the words, and is taken back before the next ones.
        open_words = f" {partial.open}"[:60] if sys.stdout.isatty() else ""
        print("\b \b" * shown + partial.new + open_words, end="", flush=True)
        shown = len(open_words)
    if args.format == "text":
        print(flush=True)
    latencies = [partial.latency for partial in partials]
    first = next((number for number, partial in enumerate(partials, 1) if partial.new or partial.open), None)
    spoke = f"first words after chunk {first}" if first else "no words"
    print(
        f"{name}: {partials[-1].heard:.1f} s in chunks of {args.chunk:g} s; {spoke}; from a chunk to its text "
        f"{statistics.median(latencies):.2f} s in the median, {max(latencies):.2f} s at most",
        file=sys.stderr,
    )
    return text


def chunks(name: str, seconds: float, real_time: bool = False) -> Iterator[np.ndarray]:
    """Audio as it would arrive. Standard input is as fast as it is."""
    size = max(round(seconds * SAMPLE_RATE), 1)
    if name == STDIN:
        yield from raw_audio(size)
        return
    from steermoe.data.audio import load_blocks

    begun, heard = time.monotonic(), 0
    for chunk in recut(load_blocks(name), size):
        heard += len(chunk)
        if real_time:
            time.sleep(max(begun + heard / SAMPLE_RATE - time.monotonic(), 0))
        yield chunk


def recut(blocks: Iterable[np.ndarray], size: int) -> Iterator[np.ndarray]:
    """The same samples in arrays of `size`, the last one shorter."""
    held = np.zeros(0, dtype=np.float32)
    for block in blocks:
        held = np.concatenate([held, block])
        while len(held) >= size:
            yield held[:size]
            held = held[size:]
    if len(held):
        yield held


def raw_audio(size: int) -> Iterator[np.ndarray]:
    """Standard input, `size` samples at a time, int16."""
    while content := sys.stdin.buffer.read(2 * size):
        yield np.frombuffer(content[: len(content) // 2 * 2], dtype="<i2")


def recording(name: str) -> str | Iterator[np.ndarray]:
    return raw_audio(10 * SAMPLE_RATE) if name == STDIN else name


@contextlib.contextmanager
def progress(args) -> Iterator:
    """What is to be called with seconds of audio; a bar or lines in a log where there is much, and stdout goes elsewhere."""
    if args.seconds < LONG_S or sys.stdout.isatty():
        yield None
        return
    with Progress("transcribe", round(args.seconds), "s") as bar:
        yield lambda seconds: bar.update(round(seconds))


def report(refs: dict[str, str] | None, how: str, args, texts: Iterable[str], conf) -> None:
    if refs is None:
        return
    from steermoe.score import score

    summary = score(refs, {Path(name).stem: text for name, text in zip(args.files, texts)}, conf.unit, conf.normalizer)
    print(f"{how}: {summary.line()}", file=sys.stderr)


if __name__ == "__main__":
    run(main)
