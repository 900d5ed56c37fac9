"""Stage 2: transcripts and features to data.jsonl; what is too long or too short is dropped and counted."""

from __future__ import annotations

import json
import math
from collections import Counter
from pathlib import Path

from steermoe.bin.cli import Parser, parse_with_config, run
from steermoe.errors import UserError
from steermoe.files import atomic_write
from steermoe.stamp import Stamp, stamp_of


def main(argv=None) -> None:
    parser = Parser(prog="steermoe prepare_text", description=__doc__)
    parser.add_argument("--config", type=Path, help="training configuration; data_conf says what is kept, llm_conf whose tokens count")
    parser.add_argument("--data", type=Path, required=True, help="Kaldi data directory with text")
    parser.add_argument("--feats", type=Path, required=True, help="folder of stage 1 with feats.scp and utt2num_frames")
    parser.add_argument("--out", type=Path, required=True, help="the data.jsonl to write")
    args, config = parse_with_config(parser, argv)
    names = ("wav.scp", "segments", "text", "utt2spk", "utt2dur", "question", "question_type", "answers")
    inputs = [args.data / name for name in names] + [args.feats / "feats.scp", args.feats / "utt2num_frames"]
    limits = {key: value for key, value in vars(config.data_conf).items() if key != "prompt"}
    settings = {"data_conf": limits, "llm": config.llm_conf["model"]}  # experiments with other prompts share the data
    stamp = Stamp(stamp_of(args.out), settings, inputs)
    if stamp.fresh([args.out]):
        print(f"{args.out}: up to date")
        return
    entries, dropped = make_entries(args.data, args.feats, config)
    if not entries:
        raise UserError(f"{args.data}: no utterance left ({report(dropped)}); see data_conf in {args.config}")
    with atomic_write(args.out) as stream:
        stream.writelines(json.dumps(entry, ensure_ascii=False) + "\n" for entry in entries)
    stamp.write()
    hours = sum(entry["duration"] for entry in entries) / 3600
    print(f"{args.out}: {len(entries)} utterances, {hours:.2f} h; {report(dropped)}")


def make_entries(data: Path, feats: Path, config) -> tuple[list[dict], Counter]:
    """Lines of data.jsonl in the data directory's order, and how many utterances were dropped for which reason."""
    from steermoe.data.kaldi_dir import DataDir
    from steermoe.data.kaldi_files import read_map
    from steermoe.progress import Progress
    from steermoe.registry import resolve

    encode = resolve("llm", config.llm).text_encoder(config.llm_conf["model"])
    frontend = resolve("encoder", config.encoder).frontend(config.encoder_conf["model"])
    scp, frames = read_map(feats / "feats.scp"), read_map(feats / "utt2num_frames")
    conf, entries, dropped = config.data_conf, [], Counter()
    utterances = DataDir.read(data, allow_pipes=True).utterances
    with Progress(f"text {data.name}", len(utterances), "utt") as progress:
        for utt, utterance in utterances.items():
            progress.update()
            if utt not in scp:
                raise UserError(f"{feats}/feats.scp: no features of {utt}, which is in {data}; run stage 1 again")
            if utterance.text is None:
                raise UserError(f"{data}/text: no transcript of {utt}; add one, or remove the utterance with utils/fix_data_dir.sh")
            num_frames = int(frames[utt])
            duration = utterance.duration or num_frames / frontend.frames_per_second
            tokens = len(encode(utterance.text))
            checks = {
                f"over {conf.max_seconds:g} s": duration > conf.max_seconds or num_frames > (frontend.max_frames or math.inf),
                f"under {conf.min_seconds:g} s": duration < conf.min_seconds,
                f"over {conf.max_tokens} tokens": tokens > conf.max_tokens,
                f"under {conf.min_tokens} tokens": tokens < conf.min_tokens,
            }
            if reason := next((reason for reason, failed in checks.items() if failed), None):
                dropped[reason] += 1
                continue
            entry = {
                "utt": utt,
                "spk": utterance.spk,
                "text": utterance.text,
                "feats": scp[utt],
                "num_frames": num_frames,
                "duration": round(duration, 3),
                "num_tokens": tokens,
                "wav": str(utterance.wav),
                "start": utterance.start,
                "end": utterance.end,
            }
            own = {"prompt": utterance.question, "question_type": utterance.question_type, "answers": utterance.answers}
            entries.append(entry | {name: value for name, value in own.items() if value})
    return entries, dropped


def report(dropped: Counter) -> str:
    return "dropped: " + (", ".join(f"{count} {reason}" for reason, count in dropped.items()) or "none")


if __name__ == "__main__":
    run(main)
