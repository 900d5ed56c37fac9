"""Scoring, timed as whole commands on the same files: ours and sclite with the same reports; for counts only, a script of three
lines with our library and one with jiwer.

    python tools/bench/score.py [UTTERANCES]        (10,000)

What is not installed is left out. The commands take turns; the median of each counts, and of the ratios within a turn. Of more
than 100,000 utterances ours alone is run, once.

Seen on a virtual machine with two cores (AMD EPYC) at a load of 1, twice, medians of 11: sclite takes 5.1 and 5.6 times as long as
ours; the counts by jiwer 1.16 and 1.18 times as long as by our library. At a load of 5 and more, where two processes gain little,
4.2 to 5.0 and 0.85 to 1.0. A million utterances: 23 s beside other work (27 s of processor time), 1.6 GB in all.
"""

from __future__ import annotations

import os
import random
import resource
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))
from steermoe.score import write_trn  # noqa: E402
from steermoe.score.sclite import find_program  # noqa: E402

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
RUNS = 11
LARGE = 100_000


def main() -> None:
    count = int(sys.argv[1]) if len(sys.argv) > 1 else 10_000
    with tempfile.TemporaryDirectory() as folder:
        write_pairs(Path(folder), count)
        commands = {"ours": [sys.executable, "-m", "steermoe.bin.score", *"--ref ref.trn --hyp hyp.trn --out out".split()]}
        if count <= LARGE and (sclite := find_program("sclite")):
            options = "-r ref.trn trn -h hyp.trn trn -i spu_id -f 0 -o sum rsum pralign dtl"
            commands["sclite"] = [sclite, *options.split()]
        commands["counts"] = [sys.executable, "-c", COUNTS]
        if count <= LARGE and subprocess.run([sys.executable, "-c", "import jiwer"], capture_output=True).returncode == 0:
            commands["jiwer"] = [sys.executable, "-c", JIWER]
        # modules compiled once, as they are in an installed package
        environment = {**os.environ, "PYTHONPATH": str(ROOT), "PYTHONPYCACHEPREFIX": f"{folder}/compiled"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        times: dict[str, list[float]] = {name: [] for name in commands}
        for _ in range(RUNS if count <= LARGE else 1):
            for name, command in commands.items():
                (Path(folder) / "out" / ".score.json").unlink(missing_ok=True)  # or it would be up to date
                begun = time.perf_counter()
                subprocess.run(command, cwd=folder, env=environment, check=True, capture_output=True)
                times[name].append(time.perf_counter() - begun)
    for name, seconds in times.items():
        ours = "counts" if name == "jiwer" else "ours"
        ratio = statistics.median(other / own for other, own in zip(seconds, times[ours]))
        print(f"{name:7s} {statistics.median(seconds):6.2f} s   {ratio:5.2f} x {ours}")
    if count > LARGE:
        print(f"at most {resource.getrusage(resource.RUSAGE_CHILDREN).ru_maxrss / 1024:.0f} MiB in each of our processes")


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


if __name__ == "__main__":
    main()
