"""Compare systems on one test set: difference in error rate with its interval, MAPSSWE and paired bootstrap.

    python -m steermoe.bin.compare A/hyp.trn B/hyp.trn --ref ref.trn
"""

from __future__ import annotations

from steermoe.bin.cli import Parser, boolean, run
from steermoe.score.compare import compare
from steermoe.score.units import ENCODINGS, LOCALES
from steermoe.text.normalizers import NAMES, UNITS


def main(argv=None) -> None:
    parser = Parser(prog="compare", description=__doc__.split("\n")[0])
    parser.add_argument("hyps", nargs="+", metavar="HYP", help="two or more hypothesis trn files")
    parser.add_argument("--ref", required=True, help="reference trn file")
    parser.add_argument("--unit", choices=UNITS, default="word", help="compare words or characters")
    parser.add_argument("--normalizer", choices=NAMES, default="none", help="applied to all files first")
    parser.add_argument("--min-good", type=int, default=2, help="MAPSSWE: correct words that separate two segments")
    parser.add_argument("--case-sensitive", type=boolean, default=False, help="tell upper from lower case")
    parser.add_argument("--locale", choices=list(LOCALES), default="generic", help="letters beyond ASCII whose case is folded")
    parser.add_argument("--encoding", choices=list(ENCODINGS), default="utf-8", help="of the files (sclite -e); gbk for GB 2312")
    parser.add_argument("--markup", type=boolean, default=True, help="read { a / b } and @ as sclite does")
    args = parser.parse_args(argv)
    if len(args.hyps) < 2:
        parser.error("give at least two hypothesis files")
    if args.min_good < 1:
        parser.error("--min-good: must be 1 or more")
    options = {name: getattr(args, name) for name in ("case_sensitive", "locale", "encoding", "markup")}
    rate = "CER" if args.unit == "char" else "WER"
    for result in compare(args.ref, args.hyps, args.unit, args.normalizer, args.min_good, **options):
        low, high = result.interval
        speaker_low, speaker_high = result.speaker_interval
        print(f"A: {result.first}   {rate} {result.first_rate:.2f}")
        print(f"B: {result.second}   {rate} {result.second_rate:.2f}   (normalizer {args.normalizer})")
        print(f"B - A              {result.difference:+.2f}  95 % interval by utterance [{low:+.2f}, {high:+.2f}],", end=" ")
        print(f"by speaker [{speaker_low:+.2f}, {speaker_high:+.2f}]")
        print(f"MAPSSWE            Z = {result.z:.3f}, p = {result.p:.3f}, {result.segments} segments", end=", ")
        print(f"mean {result.mean:.3f}, standard deviation {result.deviation:.3f}")
        print(f"Paired bootstrap   p = {result.bootstrap_p:.3f}")
        print(result.verdict())


if __name__ == "__main__":
    run(main)
