"""What ten times the hours cost: seconds, and the memory of a process of its own.

dump      stage 1 with one job, FLAC files to an ark; the same sixty recordings come again and again
decode    stage 5 without its models: features, batches, journal, hypotheses
training  from data.jsonl to the batches of the first epoch: all that comes before the first step

The larger corpus has --utterances for training, a 20th of them for decode and a 200th for dump.
"""

from __future__ import annotations

import itertools
import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from types import SimpleNamespace
from typing import Callable

import numpy as np
import torch

from dump import MELS, invent_corpus, job_args
from pair import answer_tokens, corpus_seconds
from steermoe.bin.dump import dump_shard, merge_shards
from steermoe.config import DecodeConf, TrainConf
from steermoe.data.ark import ArkWriter
from steermoe.data.dataset import AudioTextDataset
from steermoe.data.features import WhisperLogMel
from steermoe.data.kaldi_files import read_map
from steermoe.data.sampler import epoch_batches
from steermoe.decode.decoder import decode_dataset
from steermoe.decode.hypotheses import join_journals, open_journal, write_hypotheses
from steermoe.decode.search import Hypothesis
from steermoe.progress import Progress
from steermoe.stamp import Stamp
from turns import print_report, spread

ROUNDS = 3
RECORDINGS = 60
FEWER = {"dump": 200, "decode": 20, "training": 1}
BENCH = Path(__file__).resolve().parent
CODE = "import json, sys, growth; print(json.dumps(growth.measure(*sys.argv[1:])))"


def add_options(parser) -> None:
    parser.add_argument("--utterances", type=int, default=1_000_000, help="of the larger corpus; 1.5 KB of disk for each")


def run(args) -> None:
    sizes = {part: [args.utterances // (10 * fewer), args.utterances // fewer] for part, fewer in FEWER.items()}
    seconds = corpus_seconds(RECORDINGS)
    with tempfile.TemporaryDirectory() as folder:
        write_corpora(Path(folder), sizes, seconds)
        turns = [(part, count) for _ in range(args.rounds) for part, counts in sizes.items() for count in counts]
        found: dict[tuple[str, int], list[dict]] = {}
        with Progress("bench", len(turns), "run") as progress:
            for part, count in turns:
                progress.update(1, note=f"{part}, {count:,} utterances")
                found.setdefault((part, count), []).append(in_a_process(part, folder, count))
    table = [["part", "utterances", "hours", f"seconds ({args.clock})", "x a tenth", "memory, MiB"]]
    for (part, count), times in found.items():
        tenth = found.get((part, count // 10), [])
        ratios = [one[args.clock] / small[args.clock] for one, small in zip(times, tenth)]
        hours, memory = count * sum(seconds) / RECORDINGS / 3600, max(one["memory"] for one in times)
        taken = spread([one[args.clock] for one in times], "{:.3g}")
        table.append([part, f"{count:,}", f"{hours:.1f}", taken, spread(ratios) if ratios else "", f"{memory:.0f}"])
    print_report("Growth", table, ["Python's start and imports are in the memory and not in the seconds."], args)


def in_a_process(part: str, folder: str, count: int) -> dict[str, float]:
    """What `measure` returns there."""
    environment = {**os.environ, "PYTHONPATH": f"{BENCH.parents[1]}:{BENCH}"}
    words = [sys.executable, "-c", CODE, part, folder, str(count)]
    return json.loads(subprocess.run(words, env=environment, check=True, capture_output=True, text=True).stdout.splitlines()[-1])


def measure(part: str, folder: str, count: str) -> dict[str, float]:
    """{"wall": s, "cpu": s, "memory": MiB}."""
    torch.set_num_threads(1)
    wall, cpu = time.perf_counter(), time.process_time()
    with tempfile.TemporaryDirectory(dir=folder) as out:
        PARTS[part](Path(folder), int(count), Path(out))
        taken = {"wall": time.perf_counter() - wall, "cpu": time.process_time() - cpu}
    return taken | {"memory": peak_memory()}


def peak_memory() -> float:
    """Of this process, MiB. (getrusage also counts the process that has started it.)"""
    status = Path("/proc/self/status")
    if status.is_file():
        return int(status.read_text().split("VmHWM:")[1].split()[0]) / 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def dump(folder: Path, count: int, out: Path) -> None:
    args = job_args(folder / f"data{count}", out, 1)
    dump_shard(args, WhisperLogMel(MELS), 1, {})
    merge_shards(args)


def decode(folder: Path, count: int, out: Path) -> None:
    """The answer to everything is one token a word."""
    data, conf = AudioTextDataset(folder / f"{count}.jsonl"), DecodeConf()
    llm = SimpleNamespace(template=lambda prompt: ([], [], 0), decode=lambda tokens: "word " * len(tokens))
    parts = {"llm": llm, "encoder": SimpleNamespace(min_frames=1), "projector": torch.nn.Linear(1, 1)}
    model = SimpleNamespace(**parts, soft_prompt=lambda batch, left_pad: (batch, None))

    def engine(llm, batch, layout, limits, conf):
        return [Hypothesis([0] * answer_tokens(frames / 100), 0.0, "end") for frames in batch.feat_lens_b.tolist()]

    stamp = Stamp(out / ".done", {}, [data.path])
    decode_dataset(model, data, "", conf, open_journal(out, stamp), engine=engine)
    write_hypotheses(out, data.entries, join_journals(out, stamp, 1, len(data)), vars(conf), stamp)


def training(folder: Path, count: int, out: Path) -> None:
    data, conf = AudioTextDataset(folder / f"{count}.jsonl"), TrainConf()
    epoch_batches(data.lengths(), conf.batch_frames, conf.max_batch, 0, 0, data.weights)


PARTS: dict[str, Callable[[Path, int, Path], None]] = {"dump": dump, "decode": decode, "training": training}


def write_corpora(folder: Path, sizes: dict[str, list[int]], seconds: list[float]) -> None:
    """dataCOUNT, data directories, for dump; COUNT.jsonl for the others. Utterances repeat `seconds`."""
    wavs = list(read_map(invent_corpus(folder / "flac", seconds) / "wav.scp").values())
    offsets, draw = [], np.random.default_rng(0)
    with ArkWriter(folder / "feats.ark", 3) as writer:
        for number, duration in enumerate(seconds):
            feats_fm = draw.normal(0, 0.5, (round(100 * duration), MELS)).astype(np.float32)
            offsets.append(writer.write(f"utt{number}", feats_fm))
    for count in sizes["dump"]:
        data = folder / f"data{count}"
        data.mkdir()
        for name, values in {"wav.scp": wavs, "utt2spk": ["spk"] * RECORDINGS, "utt2dur": seconds}.items():
            with open(data / name, "w") as stream:
                stream.writelines(f"spk-{number:07d} {values[number % RECORDINGS]}\n" for number in range(count))
    for count in {*sizes["decode"], *sizes["training"]}:
        with open(folder / f"{count}.jsonl", "w") as stream:
            for number, place in zip(range(count), itertools.cycle(range(RECORDINGS))):
                duration = seconds[place]
                entry = {"utt": f"spk{number % 2000:04d}-{number:07d}", "spk": f"spk{number % 2000:04d}"}
                entry |= {"text": "some thing " * round(1.25 * duration), "feats": f"{folder}/feats.ark:{offsets[place]}"}
                entry |= {"num_frames": round(100 * duration), "duration": duration, "num_tokens": answer_tokens(duration)}
                entry |= {"wav": wavs[place], "start": None, "end": None}
                stream.write(json.dumps(entry) + "\n")
