"""Ours beside the references on this machine, in turns: python tools/bench PATH [options]

train-step   one training step, with its share of the machine's peak
decode       greedy decoding
dump         FLAC to features in an ark (stage 1)
score        the scorer as a whole command
load         a model from the local cache, ready to decode
growth       ten times the hours: time and memory

`python tools/bench PATH --help` says what is compared with what.
"""

from __future__ import annotations

import argparse
import importlib
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
PATHS = ("train-step", "decode", "dump", "score", "load", "growth")


def main(argv: list[str] | None = None) -> None:
    argv = sys.argv[1:] if argv is None else argv
    if not argv or argv[0] not in PATHS:
        print(__doc__.strip())
        sys.exit(0 if argv in (["-h"], ["--help"]) else 2)
    path = importlib.import_module(argv[0].replace("-", "_"))
    form = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(prog=f"tools/bench {argv[0]}", description=path.__doc__, formatter_class=form)
    path.add_options(parser)
    parser.add_argument("--rounds", type=int, default=path.ROUNDS, help="how often each takes its turn")
    parser.add_argument("--clock", choices=("wall", "cpu"), default="wall", help="cpu: processor time, where other work goes on")
    parser.add_argument("--markdown", action="store_true", help="a table for RESULTS.md")
    path.run(parser.parse_args(argv[1:]))


if __name__ == "__main__":
    main()
