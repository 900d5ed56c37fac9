"""Show the scores of all experiments of a recipe as one table: each data set's best first."""

from __future__ import annotations

from pathlib import Path
from typing import Sequence

from steermoe.bin.cli import Parser, run
from steermoe.errors import UserError
from steermoe.files import read_json

HEAD = "experiment|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|95 % interval of Err|unit|normaliser".split("|")


def main(argv=None) -> None:
    parser = Parser(prog="show_result", description=__doc__)
    parser.add_argument("exps", nargs="*", type=Path, metavar="EXP", help="experiment folders; default: all in exp/")
    args = parser.parse_args(argv)
    print(make_table(args.exps))


def make_table(exps: Sequence[Path]) -> str:
    """A Markdown table, a row for each EXP/decode_*/summary.json. UserError if a given folder, or the recipe, has none."""
    rows = []
    for exp in exps or sorted(Path("exp").glob("*")):
        found = [(path.parent.name.removeprefix("decode_"), read_json(path)) for path in exp.glob("decode_*/summary.json")]
        if exps and not found:
            raise UserError(f"{exp}: no decode_*/summary.json in it; run stage 5 first")
        rows += [(dataset, summary["rate"], exp.name or str(exp), summary) for dataset, summary in found]
    if not rows:
        raise UserError("exp: no exp/*/decode_*/summary.json here; run stage 5 first, in egs/CORPUS")
    rows.sort(key=lambda row: row[:3])
    table = [HEAD, *([name, dataset, *rate_cells(summary), summary["unit"], summary["normalizer"]] for dataset, _, name, summary in rows)]
    widths = [max(len(row[column]) for row in table) for column in range(len(HEAD))]
    lines = []
    for row in table:
        names, numbers = zip(row[:2], widths[:2]), zip(row[2:], widths[2:])
        lines.append("|".join([*(cell.ljust(width) for cell, width in names), *(cell.rjust(width) for cell, width in numbers)]))
    lines.insert(1, "|".join("-" * (width - (column >= 2)) + ":" * (column >= 2) for column, width in enumerate(widths)))
    return "\n".join(f"|{line}|" for line in lines)


def rate_cells(summary: dict) -> list[str]:
    """A score's cells from Snt to the interval, rates in percent. summary: the scorer's summary.json."""
    n, sentences = max(summary["n"], 1), max(summary["sentences"], 1)
    rates = [100 * summary[key] / n for key in ("c", "s", "d", "i")]
    rates += [summary["rate"], 100 * summary["sentence_errors"] / sentences]
    interval = f"{summary['low']:.1f} to {summary['high']:.1f}"
    counts = [str(summary["sentences"]), str(summary["n"])]
    return [*counts, *(f"{rate:.1f}" for rate in rates), interval]


if __name__ == "__main__":
    run(main)
