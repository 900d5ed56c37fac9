"""The real sclite, where it is installed (Debian: sctk), as the engine: `--engine sclite`."""

from __future__ import annotations

import re
import shutil
import subprocess
import tempfile
from dataclasses import dataclass
from pathlib import Path

from steermoe.errors import UserError
from steermoe.score.report import Speaker
from steermoe.score.units import ENCODINGS, Units

DEBIAN = "/usr/lib/sctk/bin"  # where Debian's package puts its programs, outside the search path
_COUNTS = re.compile(
    rb"^Scores: \(#C #S #D #I\) (\d+) (\d+) (\d+) (\d+)$|^Speaker sentences *\d+:  (.*)   #utts: \d+$", re.MULTILINE
)


@dataclass
class Result:
    """text: the sum, rsum, pralign and dtl reports. errors, words: per utterance in the report's order."""

    text: bytes
    speakers: list[Speaker]
    errors: list[int]
    words: list[int]


def find_program(name: str) -> str | None:
    """A program of NIST's toolkit on the search path or where Debian installs it; None if it is not there."""
    return shutil.which(name) or shutil.which(name, path=DEBIAN)


def sclite_options(units: Units) -> list[str]:
    """The options that make sclite do what `units` says."""
    name = ENCODINGS[units.encoding]
    options = ["-e", name, units.locale] if name else []
    options += ["-s"] if units.case_sensitive else []
    options += ["-D"] if units.optional else []
    options += ["-F"] if units.fragments else []
    if units.unit == "char":
        options += ["-c"] + ["NOASCII"] * units.keep_ascii + ["DH"] * units.delete_hyphens
    return options


def run_sclite(ref: Path, hyp: Path, title: str, units: Units) -> Result:
    """Scores two trn files. UserError if sclite is not installed, fails, or is asked for what it cannot do."""
    program = find_program("sclite")
    if program is None:
        raise UserError("engine: sclite is not installed; install Debian's package sctk, or use --engine own (same numbers)")
    if not units.markup:
        raise UserError("engine: sclite always reads markup; use --engine own with --markup false")
    with tempfile.TemporaryDirectory() as folder:
        command = [program, "-r", str(ref), "trn", "-h", str(hyp), "trn", title, "-i", "spu_id", "-f", "0"]
        command += ["-o", "sum", "rsum", "pralign", "dtl", "-O", folder, "-n", "report", *sclite_options(units)]
        run = subprocess.run(command, capture_output=True)
        files = [Path(folder) / f"report.{kind}" for kind in ("sys", "raw", "pra", "dtl")]
        if run.returncode != 0 or not all(file.is_file() for file in files):
            message = (run.stderr or run.stdout).decode(errors="replace").strip().splitlines()
            reason = message[-1] if message else f"status {run.returncode}"
            raise UserError(f"{hyp}: sclite failed ({reason}); use --engine own to see the line")
        texts = [file.read_bytes() for file in files]
    speakers: list[Speaker] = []
    errors, words = [], []
    for *counts, name in _COUNTS.findall(texts[2]):
        if name:
            speakers.append(Speaker(name))
            continue
        c, s, d, i = map(int, counts)
        speaker = speakers[-1]
        speaker.sentences += 1
        speaker.sentence_errors += s + d + i > 0
        speaker.c, speaker.s, speaker.d, speaker.i = speaker.c + c, speaker.s + s, speaker.d + d, speaker.i + i
        errors.append(s + d + i)
        words.append(c + s + d)
    return Result(b"".join(texts), speakers, errors, words)
