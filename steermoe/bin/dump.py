"""Stage 1: the frozen encoder's input features, to ark/scp.

One job of many (--job N --nj NJ) writes OUT/feats.N.ark; --job 0 joins them into OUT/feats.scp and OUT/utt2num_frames. A
killed job goes on behind its last whole utterance; the bytes are those of an uninterrupted run. Neighbours that are the same
audio, such as the questions on one clip, share one matrix.
"""

from __future__ import annotations

import hashlib
import itertools
import os
from pathlib import Path

from steermoe.bin.cli import Parser, boolean, parse_with_config, run
from steermoe.errors import UserError
from steermoe.files import atomic_write
from steermoe.progress import Progress
from steermoe.registry import resolve
from steermoe.stamp import Stamp, stamp_of


def main(argv=None) -> None:
    args, config = parse_with_config(make_parser(), argv)
    frontend = resolve("encoder", config.encoder).frontend(config.encoder_conf["model"])
    if args.print_name:
        print(frontend.name)
        return
    if args.data is None or args.out is None:
        raise UserError("--data DIR and --out DIR are needed, as in --data data/train --out dump/" + frontend.name + "/train")
    if not 0 <= args.job <= args.nj or args.compression not in (0, 2, 3, 5):
        raise UserError(f"--job {args.job} --nj {args.nj} --compression {args.compression}: job 0 to nj, compression 0, 2, 3 or 5")
    args.out.mkdir(parents=True, exist_ok=True)
    inputs = [args.data / name for name in ("wav.scp", "segments")]
    settings = {"features": frontend.name, "compression": args.compression, "recordings": recordings(args.data)}
    finished = Stamp(stamp_of(args.out / "feats.scp"), settings, inputs)
    if finished.fresh([args.out / "feats.scp", args.out / "utt2num_frames"]):
        print(f"{args.out}/feats.scp: up to date")
        return
    if args.job or args.nj == 1:
        dump_shard(args, frontend, args.job or 1, finished.content)
    if args.job == 0:
        count = merge_shards(args)
        finished.write()
        print(f"{args.out}/feats.scp: {count} utterances")


def recordings(data: Path) -> str:
    """Hash over size and time of every audio file, so that new recordings under old names are noticed. Opens none."""
    from steermoe.data.kaldi_dir import DataDir

    digest = hashlib.sha256()
    for wav in sorted({str(u.wav) for u in DataDir.read(data, allow_pipes=True, require=("wav.scp",)).utterances.values()}):
        status = os.stat(wav) if os.path.isfile(wav) else None
        digest.update(f"{wav} {(status.st_size, status.st_mtime_ns) if status else ''}\n".encode())
    return digest.hexdigest()


def make_parser() -> Parser:
    parser = Parser(prog="steermoe dump", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, help="training configuration; its encoder decides the features")
    parser.add_argument("--data", type=Path, help="Kaldi data directory")
    parser.add_argument("--out", type=Path, help="folder for feats.N.ark, feats.scp, utt2num_frames")
    parser.add_argument("--nj", type=int, default=1, help="number of jobs that share the data directory")
    parser.add_argument("--job", type=int, default=0, help="this job, from 1; 0: join what the jobs wrote (and be the job, if --nj 1)")
    parser.add_argument("--compression", type=int, default=3, help="kaldiio's method: 0 none, 3 two-byte, 2 and 5 one-byte")
    parser.add_argument("--allow-pipes", type=boolean, default=False, help="run the commands of wav.scp lines that end in |")
    parser.add_argument("--print-name", action="store_true", help="print the features' name, which names the dump folder, and stop")
    return parser


def dump_shard(args, frontend, job: int, origin: dict) -> None:
    """Writes feats.N.ark, behind what an interrupted run of the same job has left."""
    import torch

    from steermoe.data.ark import ArkWriter
    from steermoe.data.audio import load_audio

    torch.set_num_threads(1)
    ark, sounds = args.out / f"feats.{job}.ark", same_audio(shards(args)[job - 1])
    begun = Stamp(args.out / f".feats.{job}.begun", {**origin, "nj": args.nj})
    if not begun.fresh():
        ark.unlink(missing_ok=True)
        begun.write()
    done = whole_records(ark, [utterances[0].utt for utterances in sounds])
    count = sum(map(len, sounds))
    with (
        ArkWriter(ark, args.compression, resume_at=done[-1].end if done else 0) as writer,
        Progress(f"dump {args.data.name} {job}/{args.nj}", count, "utt", sum(map(len, sounds[: len(done)]))) as progress,
    ):
        for utterance, *others in sounds[len(done) :]:
            samples_n = load_audio(utterance.wav, utterance.start, utterance.end, allow_pipes=args.allow_pipes)
            writer.write(utterance.utt, frontend(torch.from_numpy(samples_n)).numpy())
            progress.update(1 + len(others))


def same_audio(utterances: list) -> list[list]:
    """Runs of neighbours that are the same part of the same recording."""
    return [list(run) for _, run in itertools.groupby(utterances, lambda utterance: (utterance.wav, utterance.start, utterance.end))]


def shards(args) -> list[list]:
    """The utterances of every job: runs of the sorted list with the same share of the audio (none if there are too few)."""
    from steermoe.data.kaldi_dir import DataDir
    from steermoe.data.kaldi_tools import balanced_cuts

    utterances = list(DataDir.read(args.data, allow_pipes=args.allow_pipes, require=("wav.scp",)).utterances.values())
    cuts = balanced_cuts([utterance.duration or 1.0 for utterance in utterances], min(args.nj, len(utterances)))
    runs = [utterances[begin:end] for begin, end in itertools.pairwise(cuts)]
    return runs + [[]] * (args.nj - len(runs))


def whole_records(ark: Path, utts: list[str]) -> list:
    """The archive's complete entries, as far as they are this job's utterances in order."""
    from steermoe.data.ark import scan_ark

    entries = scan_ark(ark) if ark.is_file() else ()
    return [entry for entry, _ in itertools.takewhile(lambda pair: pair[0].utt == pair[1], zip(entries, utts))]


def merge_shards(args) -> int:
    """feats.scp and utt2num_frames over all jobs, in the data directory's order. UserError if a job has not finished."""
    scp, frames = [], []
    for job, utterances in enumerate(shards(args), 1):
        ark, sounds = args.out / f"feats.{job}.ark", same_audio(utterances)
        entries = whole_records(ark, [utterances[0].utt for utterances in sounds])
        if len(entries) < len(sounds):
            raise UserError(f"{ark}: {len(entries)} of {len(sounds)} utterances; run stage 1 again, it goes on where it was")
        pairs = [(utterance.utt, entry) for utterances, entry in zip(sounds, entries) for utterance in utterances]
        scp += [f"{utt} {ark}:{entry.offset}\n" for utt, entry in pairs]
        frames += [f"{utt} {entry.rows}\n" for utt, entry in pairs]
    for name, lines in (("utt2num_frames", frames), ("feats.scp", scp)):
        with atomic_write(args.out / name) as stream:
            stream.writelines(lines)
    return len(scp)


if __name__ == "__main__":
    run(main)
