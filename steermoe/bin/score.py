"""Score hypotheses against references: sclite's report, WER or CER with a confidence interval.

The last line printed is `WER 5.21 [4.80, 5.66] N=1234 C=… S=… D=… I=…` (CER for characters): the rate in percent, its 95 %
bootstrap interval by utterance, and the counts of reference units, correct, substituted, deleted and inserted ones.
"""

from __future__ import annotations

import gc
import os
import sys
from pathlib import Path

# Before numpy is imported. Hardly anything here is cyclic: looking for it every 700 objects takes a tenth of the time. Nor are
# there matrices, and starting the threads for them takes as long as scoring does.
gc.set_threshold(200_000)
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
from steermoe.bin.cli import Parser, boolean, run
from steermoe.files import read_json
from steermoe.score import score
from steermoe.score.beside import processors
from steermoe.score.units import ENCODINGS, LOCALES
from steermoe.stamp import Stamp
from steermoe.text.normalizers import NAMES, UNITS


def main(argv=None) -> None:
    parser = Parser(prog="score", description=__doc__.split("\n")[0])
    parser.add_argument("--ref", required=True, help="reference trn file: words (speaker-utterance)")
    parser.add_argument("--hyp", required=True, help="hypothesis trn file with the same ids")
    parser.add_argument("--unit", choices=UNITS, default="word", help="score words (WER) or characters (CER)")
    parser.add_argument("--normalizer", choices=NAMES, default="none", help="applied to both sides before scoring")
    parser.add_argument("--out", required=True, help="folder for result.txt, summary.json and the raw and normalised trn files")
    parser.add_argument("--title", default=None, help="system name in the report; default: the hypothesis file")
    parser.add_argument("--engine", choices=("own", "sclite"), default="own", help="who aligns: same numbers, same report")
    parser.add_argument("--case-sensitive", type=boolean, default=False, help="tell upper from lower case (sclite -s)")
    parser.add_argument("--locale", choices=list(LOCALES), default="generic", help="letters beyond ASCII whose case is folded")
    parser.add_argument("--encoding", choices=list(ENCODINGS), default="utf-8", help="of the files (sclite -e); gbk for GB 2312")
    parser.add_argument("--markup", type=boolean, default=True, help="read { a / b } @ ; word* as sclite does, or literally")
    parser.add_argument("--optional-words", type=boolean, default=False, help="(word) may be left out (sclite -D)")
    parser.add_argument("--fragments", type=boolean, default=False, help="wor- matches a word that begins so (sclite -F)")
    parser.add_argument("--keep-ascii", type=boolean, default=False, help="characters: Latin words whole (sclite -c NOASCII)")
    parser.add_argument("--delete-hyphens", type=boolean, default=False, help="characters: drop hyphens in words (sclite -c DH)")
    parser.add_argument("--html", type=boolean, default=False, help="also write report.html and plots/*.png")
    parser.add_argument("--worst", type=int, default=500, help="utterances listed in report.html, those with the most errors")
    parser.add_argument("--data", default=None, help="data.jsonl that was decoded: where report.html finds the audio")
    args = parser.parse_args(argv)
    gc.freeze()  # modules last to the end: no need to look through them for what is cyclic then
    if args.worst < 1:
        parser.error("--worst: must be 1 or more")
    settings = {name: value for name, value in vars(args).items() if name != "out"}
    out = Path(args.out)
    stamp = Stamp(out / ".score.json", settings, [args.ref, args.hyp, *([args.data] if args.data else [])])
    outputs = [out / name for name in ("result.txt", "summary.json", *["report.html"] * args.html)]
    if stamp.fresh(outputs):
        print(f"{out / 'result.txt'} up to date", file=sys.stderr)
        print(read_json(out / "summary.json")["line"])
        return
    summary = score(
        args.ref,
        args.hyp,
        args.unit,
        args.normalizer,
        out,
        title=args.title,
        engine=args.engine,
        html=args.html,
        worst=args.worst,
        data=args.data,
        processes=processors(),
        case_sensitive=args.case_sensitive,
        locale=args.locale,
        encoding=args.encoding,
        markup=args.markup,
        optional=args.optional_words,
        fragments=args.fragments,
        keep_ascii=args.keep_ascii,
        delete_hyphens=args.delete_hyphens,
    )
    stamp.write()
    print(f"{out / 'result.txt'}{' and report.html' * args.html} written", file=sys.stderr)
    print(summary.line())


if __name__ == "__main__":
    run(main)
