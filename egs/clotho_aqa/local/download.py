#!/usr/bin/env python3
"""Fetches Clotho-AQA (Zenodo record 6473207; clips CC0 and CC BY); what is there is not fetched again.

usage: local/download.py downloads    -> downloads/clotho_aqa/{clotho_aqa_{train,val,test,metadata}.csv,audio_files/…}, about 9 GB
The MD5 of every file is the one that Zenodo publishes in its description of the record.
"""

from __future__ import annotations

import json
import urllib.request
from pathlib import Path
from typing import Sequence

from steermoe.bin.cli import Parser, boolean, run
from steermoe.data import openslr
from steermoe.errors import UserError

RECORD = "6473207"
FOLDER = "clotho_aqa"
CORPUS = "a folder with the corpus's CSV tables and, anywhere in it, its clips"
FILES = {f"{FOLDER}_{table}.csv": f"{FOLDER}_{table}.csv" for table in ("train", "val", "test", "metadata")}
FILES["audio_files.zip"] = "audio_files"  # file of the record -> what it leaves


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="local/download.py", description=__doc__.split("\n")[0])
    parser.add_argument("downloads", help="folder for the archives and their content")
    parser.add_argument("--mirror", default="https://zenodo.org", help="where the record is")
    parser.add_argument("--check", type=boolean, default=False, help="only see whether what is missing can be reached")
    parser.add_argument("--train-answers", help="for data_prep.py")
    parser.add_argument("--prompt", help="for data_prep.py")
    options = parser.parse_args(argv)
    below = f"records/{RECORD}/files"
    archives = [openslr.Archive(f"{below}/{file}", "", f"{FOLDER}/{made}") for file, made in FILES.items()]
    openslr.check(archives, options.downloads, CORPUS, options.mirror)
    if options.check:
        return 0
    if openslr.missing(archives, options.downloads):
        sums = published_sums(options.mirror)
        if unknown := [archive.name for archive in archives if archive.name not in sums]:
            raise UserError(f"{options.mirror}: record {RECORD} has no {unknown[0]}; give --corpus DIR, {CORPUS}")
        archives = [archive._replace(md5=sums[archive.name]) for archive in archives]
    Path(options.downloads, FOLDER).mkdir(parents=True, exist_ok=True)
    openslr.fetch(archives, options.downloads, CORPUS, options.mirror)
    return 0


def published_sums(mirror: str) -> dict[str, str]:
    """{file of the record: MD5}. UserError if the record's description cannot be had or read."""
    url = f"{mirror.rstrip('/')}/api/records/{RECORD}"
    try:
        with urllib.request.urlopen(url, timeout=openslr.TIMEOUT_S) as answer:
            files = json.load(answer)["files"]
        return {file["key"]: file["checksum"].removeprefix("md5:") for file in files}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise UserError(openslr.unreachable(url, str(error), CORPUS)) from None


if __name__ == "__main__":
    run(main)
