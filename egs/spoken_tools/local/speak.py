#!/usr/bin/env python3
"""Has the queries spoken by a synthesiser: a Kaldi data directory with an utterance VOICE-QUERY-TURN for every turn.

usage: local/speak.py --queries queries/tools_en.jsonl --out data/tools_en --voices "slt rms"
"""

from __future__ import annotations

import hashlib
import os
import shlex
import subprocess
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from queries import read_queries, utterances  # noqa: E402

from steermoe.bin.cli import Parser, run  # noqa: E402
from steermoe.data.audio import duration, load_audio  # noqa: E402
from steermoe.data.kaldi_files import write_map  # noqa: E402
from steermoe.errors import UserError  # noqa: E402
from steermoe.progress import Progress  # noqa: E402

FLITE = "{flite}/bin/flite -voice {voice} -t {text} -o {wav}"


def main(argv=None) -> None:
    parser = Parser(prog="local/speak.py", description=__doc__.split("\n")[0])
    parser.add_argument("--queries", type=Path, required=True, help="list of conversations")
    parser.add_argument("--out", type=Path, required=True, help="the data directory")
    parser.add_argument("--flite", type=Path, default=Path("downloads/flite"), help="the folder that local/download.sh leaves")
    parser.add_argument("--tts", default="", help="another synthesiser: a command with {text}, {wav}, and {voice} if it has any")
    parser.add_argument("--voices", default="slt rms", help="as one word: 'slt rms awb'")
    args = parser.parse_args(argv)
    texts, command = utterances(read_queries(args.queries)), args.tts or FLITE
    for place in ("{text}", "{wav}"):
        if place not in command:
            raise UserError(f"--tts {command!r}: no {place} in it")
    voices = args.voices.split() if "{voice}" in command else ["tts"]
    said = {f"{voice}-{key}": (voice, text) for voice in voices for key, text in texts.items()}
    wavs = {utt: args.out / "wav" / f"{utt}.{digest(command, text)}.wav" for utt, (_, text) in said.items()}
    seconds = {}
    with Progress("speak", len(said), "utt") as progress:
        for utt, (voice, text) in said.items():
            if not wavs[utt].is_file():
                speak(command, {"text": text, "voice": voice, "flite": str(args.flite)}, wavs[utt])
            seconds[utt] = duration(wavs[utt])
            progress.update()
    write_map(args.out / "wav.scp", {utt: wav.as_posix() for utt, wav in wavs.items()})
    write_map(args.out / "text", {utt: text for utt, (_, text) in said.items()})
    write_map(args.out / "utt2spk", {utt: voice for utt, (voice, _) in said.items()})
    write_map(args.out / "spk2utt", {v: " ".join(sorted(utt for utt in said if said[utt][0] == v)) for v in voices})
    write_map(args.out / "utt2dur", {utt: f"{length:.4f}" for utt, length in seconds.items()})


def digest(command: str, text: str) -> str:
    """In a recording's name, so that another text or another synthesiser is another recording."""
    return hashlib.sha256(f"{command}\n{text}".encode()).hexdigest()[:8]


def speak(command: str, values: dict[str, str], wav: Path) -> None:
    """One utterance; without a shell, so that no text can be taken for anything else."""
    wav.parent.mkdir(parents=True, exist_ok=True)
    begun = wav.with_name(f".{wav.name}")
    words = [word.format(wav=begun, **values) for word in shlex.split(command)]
    libraries = [f"{values['flite']}/lib", os.environ.get("LD_LIBRARY_PATH", "")]
    environment = os.environ | {"LD_LIBRARY_PATH": ":".join(path for path in libraries if path)}
    try:
        done = subprocess.run(words, env=environment, capture_output=True, stdin=subprocess.DEVNULL, timeout=300, check=False)
    except (OSError, subprocess.TimeoutExpired) as error:
        raise UserError(f"{words[0]}: {error}; local/download.sh fetches flite, --tts takes another synthesiser") from None
    if done.returncode or not begun.is_file():
        why = (done.stderr.decode("utf-8", "replace").strip().splitlines() or [f"status {done.returncode}"])[-1]
        raise UserError(f"{shlex.join(words)}: {why}")
    load_audio(begun)  # names what is no audio
    os.replace(begun, wav)


if __name__ == "__main__":
    run(main)
