#!/usr/bin/env python3
"""Says one text with a voice of Kokoro-82M, English or Mandarin, for recipes that take a synthesiser's command.

usage: local/say.py VOICE TEXT OUT.wav    as in ../spoken_tools: --tts "python3 ../kokoro/local/say.py {voice} {text} {wav}"
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Sequence

sys.path.insert(0, str(Path(__file__).parent))
from data_prep import Draw, known_voices, load, read_styles, speak  # noqa: E402

from steermoe.bin.cli import Parser, run  # noqa: E402

DOWNLOADED = Path(__file__).resolve().parents[1] / "downloads/kokoro"


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="local/say.py", description=__doc__.split("\n")[0])
    parser.add_argument("voice", help="such as af_heart or zf_xiaoyi")
    parser.add_argument("text", help="a sentence with its marks")
    parser.add_argument("wav", type=Path, help="16 kHz, mono, 16 bit")
    parser.add_argument("--corpus", type=Path, default=DOWNLOADED, help="folder of kokoro.onnx and voices.npz")
    args = parser.parse_args(argv)
    styles = read_styles(args.corpus / "voices.npz")
    known_voices(args.voice, styles)
    speak(load(args.corpus), styles, Draw(args.voice, args.voice, 0.0, 1.0), args.text, args.wav)


if __name__ == "__main__":
    run(main)
