"""Writes RESULTS.md of an experiment, or of several side by side: data, every score with its interval, the commands."""

from __future__ import annotations

import re
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
    parser.add_argument(
        "--exp", type=Path, nargs="+", required=True, help="experiment folders with decode_* folders that have been scored"
    )
    parser.add_argument("--own", type=Path, help="folder with the scores of the encoder's own decoder on the same sets")
    parser.add_argument("--about", default="", help="what the recipe's data is, in a line")
    parser.add_argument("--out", type=Path, help="the file to write; default EXP/RESULTS.md, of several RESULTS.md here")
    args = parser.parse_args(argv)
    several = len(args.exp) > 1
    out = args.out or (Path("RESULTS.md") if several else args.exp[0] / "RESULTS.md")
    with atomic_write(out) as stream:
        stream.write(join_results(args.exp, args.own, args.about) if several else make_results(args.exp[0], args.own, args.about))
    print(out)


def join_results(exps: list[Path], own: Path | None, about: str = "") -> str:
    """One table of all, and then what `make_results` says of each, a level lower."""
    parts = [make_results(exp, None, about) for exp in exps]
    rows = "".join(row(folder, f"{exp.name}: ") for exp in [*exps, *([own] if own else [])] for folder in scored(exp))
    title = ", ".join(exp.name for exp in exps)
    return "\n".join([f"# {title}\n", HEAD + rows, *(re.sub(r"^(#+ )", r"#\1", part, flags=re.MULTILINE) for part in parts)])


def make_results(exp: Path, own: Path | None, about: str = "") -> str:
    """UserError if nothing has been decoded and scored in `exp`."""
    folders = scored(exp)
    environment = read_json(exp / "environment.json")
    log = list(read_jsonl(exp / "log" / "train.jsonl"))
    best = min((line for line in log if "dev_loss" in line), key=lambda line: line["dev_loss"])
    summary = read_json(folders[0] / "summary.json")
    unit = {"word": "Words", "char": "Characters", "answer": "Answers"}[summary["unit"]]
    config = yaml.safe_load((exp / "config.yaml").read_text(encoding="utf-8"))
    data = [about] if about else []
    if "train" in environment:
        data += [f"trained on {environment['train']}", f"validated on {environment['dev']}"]
    parts = [
        f"# {exp.name}\n",
        *([f"- made by: `./run.sh{command(exp)}`"] if (exp / "run.sh").is_file() else []),
        *([f"- started at the adapter: `{config['init']}`"] if config.get("init") else []),
        *([f"- data: {'; '.join(data)}"] if data else []),
        f"- git {environment['git']}, " + ", ".join(f"{name} {environment[name]}" for name in ("python", "torch", "transformers")),
        f"- machine: {environment['processor']}, GPU {environment['gpu']}",
        f"- {len(log)} steps, {sum(line['seconds'] for line in log) / 60:.1f} min; the adapter is {whose(exp, best)}",
        f"- rates in %, {unit.lower()} after normaliser `{summary['normalizer']}`; intervals: bootstrap by "
        f"{'clip' if unit == 'Answers' else 'utterance'}\n",
        HEAD + "".join(map(row, folders)),
    ]
    for folder in folders:
        if "answers" in (summary := read_json(folder / "summary.json")):
            parts.append(f"## Answers on {folder.name.removeprefix('decode_')}\n\n{tables(summary)}")
    if own:
        rows = "".join(map(row, scored(own)))
        parts.append(f"The frozen encoder's own decoder ({own.name}) on the same sets:\n\n{HEAD}{rows}")
    parts.append(f"## Model\n\n```\n{(exp / 'model_info.txt').read_text(encoding='utf-8')}```\n")
    parts.append(f"## Configuration\n\n```yaml\n{yaml.safe_dump(config, sort_keys=False, allow_unicode=True)}```\n")
    return "\n".join(parts)


def scored(exp: Path) -> list[Path]:
    """The decode folders with a score. UserError if there is none."""
    folders = sorted(path.parent for path in exp.glob("decode_*/summary.json"))
    if not folders:
        raise UserError(f"{exp}: no decode_*/summary.json in it; run stage 5 first")
    return folders


def whose(exp: Path, best: dict) -> str:
    """Which step's, or the mean of which adapters."""
    from steermoe.checkpoint import read_metadata

    adapter = exp / "checkpoints" / "best.safetensors"
    if adapter.is_file() and (averaged := read_metadata(adapter)[1].get("averaged")):
        return f"the mean of {' and '.join(line.split(' ')[0] for line in averaged)}"
    return f"that of step {best['step']} (dev loss {best['dev_loss']:.3f} a token)"


def row(folder: Path, prefix: str = "") -> str:
    """A table row from a scored decode folder; the last cell stays empty where the speed is not known."""
    summary = read_json(folder / "summary.json")
    speed, extra = "", ""
    if (folder / "decode.json").is_file():
        decode = read_json(folder / "decode.json")
        speed = f"{1 / decode['real_time_factor']:.1f}" if decode.get("real_time_factor") else ""
        ended = decode.get("ended", {})
        extra = f" (repeat guard {ended['repeat']}, length limit {ended['length']})" if ended else ""
    return f"|{'|'.join([prefix + folder.name.removeprefix('decode_') + extra, *rate_cells(summary), speed])}|\n"


def command(exp: Path) -> str:
    """The options that exp/NAME/run.sh gives to the recipe's run.sh."""
    lines = (exp / "run.sh").read_text(encoding="utf-8").splitlines()
    options = next((line.partition("./run.sh ")[2] for line in lines if "./run.sh " in line), "")
    options = options.removesuffix('"$@"').strip()
    return f" {options}" if options else ""


if __name__ == "__main__":
    run(main)
