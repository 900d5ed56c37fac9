#!/usr/bin/env python3
"""Has the queries spoken by a synthesiser: a Kaldi data directory with an utterance VOICE-QUERY-TURN for every turn.

usage: local/speak.py --queries queries/tools_en.jsonl --out data/tools_en --voices "slt rms"
"""

from __future__ import annotations

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))
from queries import read_queries, utterances  # noqa: E402

from steermoe.bin.cli import Parser, run  # noqa: E402
from steermoe.data.audio import duration  # noqa: E402
from steermoe.data.kaldi_files import write_map  # noqa: E402
from steermoe.data.synthesis import FLITE, recording, speak  # noqa: E402
from steermoe.errors import UserError  # noqa: E402
from steermoe.progress import Progress  # noqa: E402


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
    wavs = {utt: recording(args.out / "wav", utt, command, text) for utt, (_, text) in said.items()}
    seconds = {}
    with Progress("speak", len(said), "utt") as progress:
        for utt, (voice, text) in said.items():
            speak(command, {"text": text, "voice": voice}, wavs[utt], args.flite)
            seconds[utt] = duration(wavs[utt])
            progress.update()
    write_map(args.out / "wav.scp", {utt: wav.as_posix() for utt, wav in wavs.items()})
    write_map(args.out / "text", {utt: text for utt, (_, text) in said.items()})
    write_map(args.out / "utt2spk", {utt: voice for utt, (voice, _) in said.items()})
    write_map(args.out / "spk2utt", {v: " ".join(sorted(utt for utt in said if said[utt][0] == v)) for v in voices})
    write_map(args.out / "utt2dur", {utt: f"{length:.4f}" for utt, length in seconds.items()})


if __name__ == "__main__":
    run(main)
