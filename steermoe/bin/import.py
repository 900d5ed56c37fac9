"""Makes the Kaldi data directories train, dev and test of speech that one has: a folder with texts, a table, JSON lines.

SOURCE is a folder of recordings, each with its text in a .txt of the same name (a folder for every speaker, if they are known); a
.csv, .tsv or .jsonl with audio and text, and speaker and set where they are known; or a Kaldi directory.
"""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from steermoe.bin.cli import Parser, run
from steermoe.errors import UserError


def main(argv: Sequence[str] | None = None) -> None:
    parser = Parser(prog="steermoe import", description=__doc__)
    parser.add_argument("--corpus", type=Path, required=True, metavar="SOURCE", help="see above")
    parser.add_argument("--out", type=Path, default=Path("data"), help="folder for train, dev and test")
    parser.add_argument("--dev-share", type=float, default=0.1, help="of the utterances whose set is not named, by whole speakers")
    parser.add_argument("--test-share", type=float, default=0.1, help="likewise for the test set")
    parser.add_argument("--split-seed", type=int, default=1, help="of who goes where")
    args = parser.parse_args(argv)
    if not (args.dev_share >= 0 <= args.test_share and args.dev_share + args.test_share < 1):
        raise UserError(f"--dev-share {args.dev_share:g} --test-share {args.test_share:g}: from 0, and below 1 together")
    from steermoe.data.corpus import prepare
    from steermoe.data.tables import read_corpus, sentences

    shares = {"dev": args.dev_share, "test": args.test_share}
    prepare(args.out, sentences(read_corpus(args.corpus), shares, args.split_seed), Path(__file__).resolve())


if __name__ == "__main__":
    run(main)
