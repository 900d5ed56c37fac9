#!/usr/bin/env python3
"""Fetches AISHELL-1 (OpenSLR 33, 15 GB, Apache-2.0) and unpacks its speakers' archives; what is there is not fetched again.

usage: local/download.py downloads    -> downloads/data_aishell/{transcript,wav/{train,dev,test}/<speaker>}
"""

from __future__ import annotations

from typing import Sequence

from steermoe.bin.cli import Parser, boolean, run
from steermoe.data import openslr

ARCHIVE = openslr.Archive("33/data_aishell.tgz", "2f494334227864a8a8fec932999db9d8", "data_aishell")
CORPUS = "a folder that holds AISHELL-1 (data_aishell/wav and data_aishell/transcript)"


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/download.py", description=__doc__.split("\n")[0])
    parser.add_argument("downloads", help="folder for the archive and its content")
    parser.add_argument("--mirror", default=openslr.MIRROR, help="where the archive is")
    parser.add_argument("--check", type=boolean, default=False, help="only see whether what is missing can be reached")
    options = parser.parse_args(argv)
    work = openslr.check if options.check else openslr.fetch
    work([ARCHIVE], options.downloads, CORPUS, options.mirror)
    return 0


if __name__ == "__main__":
    run(main)
