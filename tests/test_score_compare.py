"""compare: MAPSSWE against NIST's sc_stats, the paired bootstrap, the verb."""

from __future__ import annotations

import math
import random
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from steermoe.errors import UserError
from steermoe.score import write_trn
from steermoe.score.compare import compare, mapsswe, paired_bootstrap, segments
from steermoe.score.sclite import find_program

ROOT = Path(__file__).parents[1]


@pytest.mark.parametrize(
    "one, two, found",
    [
        (b"CCCC", b"CCCC", []),
        (b"CSCC", b"CCCC", [(1, 0)]),
        (b"CSCSCC", b"CCCCDC", [(2, 1)]),  # one right word between two errors does not separate them, two do
        (b"CSCCSC", b"CCCCCC", [(1, 0), (1, 0)]),
        (b"ICC", b"CC", [(1, 0)]),
        (b"CC", b"CCI", [(0, 1)]),
        (b"", b"II", [(0, 2)]),
        (b"", b"", []),
    ],
)
def test_segments_by_hand(one, two, found):
    assert segments(one, two) == found


def test_mapsswe_by_hand():
    mean, deviation, z = mapsswe([1, 0, 2, 1])
    assert (mean, deviation) == (1.0, pytest.approx((2 / 3) ** 0.5)) and z == pytest.approx(2 / (2 / 3) ** 0.5)
    assert mapsswe([]) == (0.0, 0.0, 0.0) and mapsswe([1, 1])[2] == 0.0


def test_bootstrap_of_equal_systems_is_no_difference():
    table = np.array([[1, 1, 10, 10], [0, 0, 5, 5], [3, 3, 7, 7]])
    assert not paired_bootstrap(table).any()


def make_systems(folder: Path, seed: int, count: int, rates=(0.1, 0.2)) -> list[Path]:
    draw = random.Random(seed)
    vocabulary = [f"w{number}" for number in range(draw.choice([3, 30]))]

    def noise(words: list[str], rate: float) -> list[str]:
        out = []
        for word in words:
            chance = draw.random() / rate
            if chance < 0.5:
                out.append(draw.choice(vocabulary))
            elif chance > 0.7:
                out += [word, draw.choice(vocabulary)] if chance < 1 else [word]
        return out

    texts: list[dict[str, str]] = [{}, {}, {}]
    for number in range(count):
        words = [draw.choice(vocabulary) for _ in range(draw.randint(0, 20))]
        for text, said in zip(texts, (words, noise(words, rates[0]), noise(words, rates[1]))):
            text[f"s{number % 4}-{number}"] = " ".join(said)
    files = [folder / name for name in ("ref.trn", "a.trn", "b.trn")]
    for file, text in zip(files, texts):
        write_trn(file, text)
    return files


@pytest.mark.skipif(find_program("sc_stats") is None, reason="sc_stats (Debian's package sctk) is not installed")
@pytest.mark.parametrize("seed", range(6))
def test_mapsswe_is_sc_stats(tmp_path, seed):
    files = make_systems(tmp_path, seed, random.Random(seed).choice([10, 60, 120]))
    aligned = b""
    for name in ("a", "b"):
        command = [find_program("sclite"), "-r", "ref.trn", "trn", "-h", f"{name}.trn", "trn", name, "-i", "spu_id"]
        subprocess.run([*command, "-o", "sgml", "-n", name, "-f", "0"], cwd=tmp_path, check=True, capture_output=True)
        aligned += (tmp_path / f"{name}.sgml").read_bytes()
    command = [find_program("sc_stats"), "-p", "-t", "mapsswe", "-n", "-"]
    runs = [subprocess.run([*command, mode], input=aligned, cwd=tmp_path, capture_output=True, check=True) for mode in ("-v", "-u")]
    verbose, unified = (run.stdout.decode("latin-1") for run in runs)
    result = compare(files[0], files[1:])[0]
    own = f"(# segs: {result.segments}) .* (mean: {result.mean:5.3f}) (std dev: {result.deviation:5.3f}) "
    own += f"(Z Stat: {result.z:5.3f}) "
    own += f"(Stat Diff: {'Yes' if result.real else 'No'})"
    assert re.search(re.escape(own).replace(re.escape(".*"), ".*"), verbose)
    from_table = math.erfc(math.floor(abs(result.z) * 100) / 100 / math.sqrt(2))  # sc_stats looks p up with two digits of Z
    assert f"{from_table:.3f}" in unified or (from_table < 0.001 and "<0.001" in unified)
    assert result.p == pytest.approx(from_table, abs=0.01)


def test_better_system_is_named(tmp_path):
    ref, a, b = make_systems(tmp_path, 1, 150, rates=(0.05, 0.4))
    result = compare(ref, [a, b])[0]
    assert result.real and result.difference > 0 and result.interval[0] > 0 and result.bootstrap_p < 0.01
    assert result.verdict().startswith(f"REAL DIFFERENCE: {a} is better")
    swapped = compare(ref, [b, a])[0]
    assert swapped.z == -result.z and swapped.difference == -result.difference
    assert "NO REAL DIFFERENCE" in compare(ref, [a, a])[0].verdict()


def test_verb(tmp_path):
    ref, a, b = make_systems(tmp_path, 2, 30)
    command = [sys.executable, "-m", "steermoe.bin.compare", a, b, "--ref", ref]
    lines = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True).stdout.splitlines()
    assert lines[0].startswith(f"A: {a}   WER ") and lines[-1].split(" ")[0] in ("REAL", "NO")
    assert subprocess.run(command[:4] + command[5:], cwd=ROOT, capture_output=True).returncode != 0
    write_trn(tmp_path / "short.trn", {"s0-0": "w1"})
    with pytest.raises(UserError, match="short.trn: no line for"):
        compare(ref, [a, tmp_path / "short.trn"])
