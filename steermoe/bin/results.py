"""Writes RESULTS.md of an experiment: what was trained on what, every score with its interval, and the commands."""

from __future__ import annotations

from pathlib import Path

import yaml

from steermoe.bin.cli import Parser, run
from steermoe.bin.show_result import rate_cells
from steermoe.errors import UserError
from steermoe.files import atomic_write, read_json, read_jsonl
from steermoe.score.answers_report import tables

HEAD = "|dataset|Snt|Wrd|Corr|Sub|Del|Ins|Err|S.Err|95 % interval of Err|x real time|\n|---|---|---|---|---|---|---|---|---|---|---|\n"


def main(argv=None) -> None:
    parser = Parser(prog="steermoe results", description=__doc__)
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder with decode_* folders that have been scored")
    parser.add_argument("--own", type=Path, help="folder with the scores of the encoder's own decoder on the same sets")
    parser.add_argument("--out", type=Path, help="the file to write; default EXP/RESULTS.md")
    args = parser.parse_args(argv)
    out = args.out or args.exp / "RESULTS.md"
    with atomic_write(out) as stream:
        stream.write(make_results(args.exp, args.own))
    print(out)


def make_results(exp: Path, own: Path | None) -> str:
    """UserError if nothing has been decoded and scored in `exp`."""
    folders = sorted(path.parent for path in exp.glob("decode_*/summary.json"))
    if not folders:
        raise UserError(f"{exp}: no decode_*/summary.json in it; run stage 5 first")
    environment = read_json(exp / "environment.json")
    log = list(read_jsonl(exp / "log" / "train.jsonl"))
    best = min((line for line in log if "dev_loss" in line), key=lambda line: line["dev_loss"])
    summary = read_json(folders[0] / "summary.json")
    unit = {"word": "Words", "char": "Characters", "answer": "Answers"}[summary["unit"]]
    parts = [
        f"# {exp.name}\n",
        f"- made by: `./run.sh{command(exp)}`",
        f"- git {environment['git']}, " + ", ".join(f"{name} {environment[name]}" for name in ("python", "torch", "transformers")),
        f"- trained on: {environment['processor']}, GPU {environment['gpu']}",
        f"- {len(log)} steps, {sum(line['seconds'] for line in log) / 60:.1f} min; the adapter is that of step {best['step']} "
        f"(dev loss {best['dev_loss']:.3f} a token)",
        f"- rates in %, {unit.lower()} after normaliser `{summary['normalizer']}`; intervals: bootstrap by "
        f"{'clip' if unit == 'Answers' else 'utterance'}\n",
        HEAD + "".join(row(folder) for folder in folders),
    ]
    for folder in folders:
        if "answers" in (summary := read_json(folder / "summary.json")):
            parts.append(f"## Answers on {folder.name.removeprefix('decode_')}\n\n{tables(summary)}")
    if own:
        rows = "".join(row(folder.parent) for folder in sorted(own.glob("decode_*/summary.json")))
        parts.append(f"The frozen encoder's own decoder ({own.name}) on the same sets:\n\n{HEAD}{rows}")
    parts.append(f"## Model\n\n```\n{(exp / 'model_info.txt').read_text(encoding='utf-8')}```\n")
    config = yaml.safe_load((exp / "config.yaml").read_text(encoding="utf-8"))
    parts.append(f"## Configuration\n\n```yaml\n{yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}```\n")
    return "\n".join(parts)


def row(folder: Path) -> str:
    """A table row from a scored decode folder; the last cell stays empty where the speed is not known."""
    summary = read_json(folder / "summary.json")
    speed, extra = "", ""
    if (folder / "decode.json").is_file():
        decode = read_json(folder / "decode.json")
        speed = f"{1 / decode['real_time_factor']:.1f}" if decode.get("real_time_factor") else ""
        ended = decode.get("ended", {})
        extra = f" (repeat guard {ended['repeat']}, length limit {ended['length']})" if ended else ""
    return f"|{'|'.join([folder.name.removeprefix('decode_') + extra, *rate_cells(summary), speed])}|\n"


def command(exp: Path) -> str:
    """The options that exp/NAME/run.sh gives to the recipe's run.sh."""
    script = exp / "run.sh"
    lines = script.read_text(encoding="utf-8").splitlines() if script.is_file() else []
    options = next((line.partition("./run.sh ")[2] for line in lines if "./run.sh " in line), "")
    options = options.removesuffix('"$@"').strip()
    return f" {options}" if options else ""


if __name__ == "__main__":
    run(main)
