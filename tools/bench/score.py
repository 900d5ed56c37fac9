"""Scoring, timed as whole commands on the same files: ours and sclite with the same reports; for counts only, a script of three
lines with our library and one with jiwer. What is not installed is left out.

Of more than 100,000 utterances ours alone is run.
"""

from __future__ import annotations

import importlib.util
import os
import random
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

from steermoe.score import write_trn
from steermoe.score.sclite import find_program
from turns import print_report, rows, take_turns

ROUNDS = 11
ROOT = Path(__file__).resolve().parents[2]
JIWER = """
import jiwer
def read(name):
    with open(name, encoding="utf-8") as stream:
        return dict(reversed(line.rstrip()[:-1].rsplit("(", 1)) for line in stream)
refs, hyps = read("ref.trn"), read("hyp.trn")
print(jiwer.wer(list(refs.values()), [hyps[utt] for utt in refs]))
"""
COUNTS = """
from steermoe.score import score
print(score("ref.trn", "hyp.trn", processes=2).line())
"""
LARGE = 100_000


def add_options(parser) -> None:
    parser.add_argument("--utterances", type=int, default=10_000)


def run(args) -> None:
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), args.utterances)
        commands = {"ours": [sys.executable, "-m", "steermoe.bin.score", *"--ref ref.trn --hyp hyp.trn --out out".split()]}
        if args.utterances <= LARGE and (sclite := find_program("sclite")):
            options = "-r ref.trn trn -h hyp.trn trn -i spu_id -f 0 -o sum rsum pralign dtl"
            commands["sclite"] = [sclite, *options.split()]
        commands["ours, counts only"] = [sys.executable, "-c", COUNTS]
        if args.utterances <= LARGE and importlib.util.find_spec("jiwer"):
            commands["jiwer, counts only"] = [sys.executable, "-c", JIWER]
        # modules compiled once, as they are in an installed package
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)

        def command(words: list[str]) -> object:
            def once() -> None:
                (Path(folder) / "out" / ".score.json").unlink(missing_ok=True)  # or it would be up to date
                subprocess.run(words, cwd=folder, env=environment, check=True, capture_output=True)

            return once

        times = take_turns({name: command(words) for name, words in commands.items()}, args.rounds)
    largest = resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024
    notes = [f"{args.utterances} utterances; the largest process had {largest:.0f} MiB."]
    table = rows(times, "ours", args.clock)
    if "jiwer, counts only" in times:
        counted = rows({name: times[name] for name in times if "counts" in name}, "ours, counts only", args.clock)
        notes.append(f"For counts only, jiwer takes {counted[-1][2]} times as long as ours.")
    print_report("Scoring", table, notes, args)


def write_pairs(folder: Path, count: int) -> None:
    """Utterances of 3 to 35 words, 40 speakers, 6 % of the words substituted."""
    draw = random.Random(0)
    vocabulary = ["".join(draw.choices("etaoinshrdlu", k=draw.randint(1, 9))) for _ in range(5000)]
    refs, hyps = {}, {}
    for number in range(count):
        words = draw.choices(vocabulary, k=draw.randint(3, 35))
        refs[f"spk{number % 40}-{number}"] = " ".join(words)
        hyps[f"spk{number % 40}-{number}"] = " ".join(draw.choice(vocabulary) if draw.random() < 0.06 else word for word in words)
    write_trn(folder / "ref.trn", refs)
    write_trn(folder / "hyp.trn", hyps)
