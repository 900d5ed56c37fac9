"""Stage 1, FLAC files to an ark with 2-byte compression, one core each.

ours             the verb's own job, without the start of Python
transformers     the same audio through WhisperFeatureExtractor, padded to 30 s
ours, two jobs   half of the audio each, at the same time (its seconds are of the wall clock)
"""

from __future__ import annotations

import math
import multiprocessing
import shutil
import tempfile
from argparse import Namespace
from pathlib import Path
from typing import Callable

import numpy as np
import torch

from pair import corpus_seconds
from steermoe.bin.dump import dump_shard, merge_shards
from steermoe.data.ark import ArkWriter, read_matrix
from steermoe.data.audio import load_audio
from steermoe.data.features import SAMPLE_RATE, WhisperLogMel
from steermoe.data.kaldi_dir import DataDir
from steermoe.data.kaldi_files import read_map
from turns import print_report, rows, take_turns

ROUNDS = 7
MELS = 80
OURS = "ours"


def add_options(parser) -> None:
    parser.add_argument("--utterances", type=int, default=600, help="of the invented corpus")
    parser.add_argument("--data", type=Path, help="a Kaldi data directory with utt2dur instead of the invented corpus")


def run(args) -> None:
    torch.set_num_threads(1)
    with tempfile.TemporaryDirectory() as folder:
        data = args.data or invent_corpus(Path(folder) / "data", corpus_seconds(args.utterances))
        seconds = sum(utterance.duration for utterance in DataDir.read(data, require=("wav.scp",)).utterances.values())
        one, two, theirs = (job_args(data, Path(folder) / name, nj) for name, nj in (("one", 1), ("two", 2), ("theirs", 1)))
        variants = {OURS: our_dump(one), "transformers": lambda: their_dump(theirs), "ours, two jobs": our_dump(two)}
        times = take_turns(variants, args.rounds)
        times["ours, two jobs"] = times["ours, two jobs"]._replace(cpu=times["ours, two jobs"].wall)
        merge_shards(one)
        size = (one.out / "feats.1.ark").stat().st_size / 1e6 / (seconds / 3600)
        worst = largest_difference(one)
    speed = {"x real time": lambda median: f"{seconds / median:.0f}"}
    notes = [
        f"{seconds:.0f} s of audio in {'FLAC files' if args.data is None else data}; {size:.0f} MB an hour of audio.",
        f"The largest difference from the extractor: {worst[0]:.1e} before compression, {worst[1]:.1e} in the ark.",
    ]
    print_report("Features: FLAC to ark", rows(times, OURS, args.clock, speed), notes, args)


def job_args(data: Path, out: Path, nj: int) -> Namespace:
    return Namespace(data=data, out=out, nj=nj, compression=3, allow_pipes=False)


def our_dump(args: Namespace) -> Callable[[], object]:
    def dump() -> None:
        shutil.rmtree(args.out, ignore_errors=True)
        args.out.mkdir()
        if args.nj == 1:
            return dump_shard(args, WhisperLogMel(MELS), 1, {})
        frontend = WhisperLogMel(MELS)
        jobs = [multiprocessing.Process(target=dump_shard, args=(args, frontend, job + 1, {})) for job in range(args.nj)]
        for job in jobs:
            job.start()
        for job in jobs:
            job.join()

    return dump


def their_dump(args: Namespace) -> None:
    extract = extractor()
    with ArkWriter(args.out.with_suffix(".ark"), args.compression) as writer:
        for utterance in DataDir.read(args.data, require=("wav.scp",)).utterances.values():
            samples_n = load_audio(utterance.wav, utterance.start, utterance.end)
            writer.write(utterance.utt, extract(samples_n))


def extractor() -> Callable[[np.ndarray], np.ndarray]:
    """samples (N,) -> (3000, M)."""
    from transformers import WhisperFeatureExtractor

    made = WhisperFeatureExtractor(feature_size=MELS)
    return lambda samples_n: made(samples_n, sampling_rate=SAMPLE_RATE, return_tensors="np").input_features[0].T


def largest_difference(args: Namespace) -> tuple[float, float]:
    """Of our features from the extractor's, over the frames we keep: as computed, and as read from the ark."""
    ours, theirs, scp, worst = WhisperLogMel(MELS), extractor(), read_map(args.out / "feats.scp"), [0.0, 0.0]
    for utt, utterance in DataDir.read(args.data, require=("wav.scp",)).utterances.items():
        samples_n = load_audio(utterance.wav, utterance.start, utterance.end)
        for place, feats_fm in enumerate((ours(torch.from_numpy(samples_n)).numpy(), read_matrix(scp[utt]))):
            worst[place] = max(worst[place], float(np.abs(feats_fm - theirs(samples_n)[: len(feats_fm)]).max()))
    return tuple(worst)


def invent_corpus(folder: Path, seconds: list[float]) -> Path:
    """Gliding tones that come and go over a little noise, as FLAC, and their data directory."""
    import soundfile

    folder.mkdir(parents=True)
    draw = np.random.default_rng(0)
    lines: dict[str, list[str]] = {name: [] for name in ("wav.scp", "utt2spk", "utt2dur")}
    for number, duration in enumerate(seconds):
        time_n = np.arange(round(duration * SAMPLE_RATE)) / SAMPLE_RATE
        voice_n = sum(np.sin(2 * math.pi * k * (120 * time_n + 8 * np.sin(3 * time_n))) / k for k in range(1, 12))
        samples_n = 0.1 * voice_n * np.sin(2 * math.pi * 2 * time_n) ** 2 + 0.002 * draw.standard_normal(len(time_n))
        path, utt = folder / f"{number:04d}.flac", f"spk-{number:04d}"
        soundfile.write(path, samples_n.astype(np.float32), SAMPLE_RATE)
        for name, value in zip(lines, (path, "spk", duration)):
            lines[name].append(f"{utt} {value}\n")
    for name, content in lines.items():
        (folder / name).write_text("".join(content))
    return folder
