"""Score answers to questions about audio: exact match beside floors and ceiling, and the paper's own figure.

The last line printed is `Accuracy 52.35 [49.80, 54.90] N=2476 C=1296 clips=473`: percent of right answers among the questions on
which at least two annotators agree, its 95 % bootstrap interval by clip, and the counts.
"""

from __future__ import annotations

import sys
from pathlib import Path

from steermoe.bin.cli import Parser, run
from steermoe.files import atomic_write, read_json, write_json
from steermoe.stamp import Stamp
from steermoe.text.normalizers import NAMES


def main(argv=None) -> None:
    parser = Parser(prog="score_answers", description=__doc__.split("\n")[0])
    parser.add_argument("--data", type=Path, required=True, help="data.jsonl with the questions and their answers")
    parser.add_argument("--hyp", type=Path, required=True, help="trn file with an answer for each of them")
    parser.add_argument("--normalizer", choices=NAMES, default="english", help="applied to both sides of the exact match")
    parser.add_argument("--out", type=Path, required=True, help="folder for result.txt and summary.json")
    parser.add_argument("--title", default=None, help="system name in the report; default: the hypothesis file")
    args = parser.parse_args(argv)
    title = args.title or str(args.hyp)
    settings = {"normalizer": args.normalizer, "title": title, "unit": "answer"}
    stamp = Stamp(args.out / ".score.json", settings, [args.data, args.hyp])
    outputs = [args.out / name for name in ("result.txt", "summary.json")]
    if stamp.fresh(outputs):
        print(f"{outputs[0]} up to date", file=sys.stderr)
        print(read_json(outputs[1])["line"])
        return
    from steermoe.score.answers import read_questions, summarize
    from steermoe.score.answers_report import report

    questions = read_questions(args.data, args.hyp, args.normalizer)
    summary = summarize(questions, args.normalizer)
    with atomic_write(outputs[0]) as stream:
        stream.write(report(summary, questions, title))
    write_json(outputs[1], summary)
    stamp.write()
    print(f"{outputs[0]} written", file=sys.stderr)
    print(summary["line"])


if __name__ == "__main__":
    run(main)
