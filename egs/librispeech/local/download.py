#!/usr/bin/env python3
"""Fetches parts of LibriSpeech (OpenSLR 12) or mini LibriSpeech (OpenSLR 31), CC BY 4.0; what is there is not fetched again.

usage: local/download.py downloads --parts "train-clean-100 dev-clean test-clean"    -> downloads/LibriSpeech/<part>
Sizes: train-clean-100 6.4 GB, -360 23 GB, train-other-500 31 GB, each dev and test part 0.3 GB; mini: 0.33 and 0.13 GB.
"""

from __future__ import annotations

from typing import Sequence

from parts import CORPUS, archives, resolve

from steermoe.bin.cli import Parser, boolean, run
from steermoe.data import openslr


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/download.py", description=__doc__.split("\n")[0])
    parser.add_argument("downloads", help="folder for the archives and their content")
    parser.add_argument("--parts", default="", help="parts, as one word; none: 460h, the training parts of that many hours")
    parser.add_argument("--mirror", default=openslr.MIRROR, help="where the archives are")
    parser.add_argument("--check", type=boolean, default=False, help="only see whether what is missing can be reached")
    options = parser.parse_args(argv)
    work = openslr.check if options.check else openslr.fetch
    named, added = resolve(options.parts or "460h")
    work(archives(named + added), options.downloads, CORPUS, options.mirror)
    return 0


if __name__ == "__main__":
    run(main)
