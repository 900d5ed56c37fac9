"""Looks inside an adapter: which expert is chosen when, how much it steers, and what its choice says of the sound.

Writes OUT/RESULTS.md, analysis.json, heat maps and index.html, a page of its own. Switch an expert off when decoding with
`--expert-mask`, and compare the error rates with `steermoe compare`.
"""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import Sequence

import numpy as np

from steermoe.bin.cli import Parser, run
from steermoe.errors import UserError
from steermoe.pretrained import NAME, adapter_path

POSITIONS = 10  # parts of an utterance
LEVELS = 3  # of noise: as many utterances in each


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    parser = Parser(prog="steermoe analyze", description=__doc__.split("\n")[0])
    parser.add_argument("--exp", type=adapter_path, default=NAME, help="experiment folder, package, adapter file or `pretrained`")
    parser.add_argument("--data", type=Path, required=True, help="data.jsonl of stage 2")
    parser.add_argument("--out", type=Path, required=True, help="folder for the report")
    parser.add_argument("--spk2gender", type=Path, help="Kaldi's file: SPEAKER f|m")
    parser.add_argument("--max-utts", type=int, default=0, help="utterances, evenly spread over the data; 0: all")
    parser.add_argument("--permutations", type=int, default=200, help="of the test whether information is more than chance")
    parser.add_argument("--seed", type=int, default=0, help="of the permutations")
    parser.add_argument("--encoder-model", help="where the frozen encoder is; default: where training found it")
    parser.add_argument("--llm-model", help="where the frozen LLM is; default: where training found it")
    args = parser.parse_args(words)
    if args.permutations < 1 or args.max_utts < 0:
        raise UserError(f"--permutations {args.permutations} --max-utts {args.max_utts}: at least 1, and at least 0")
    genders = read_genders(args.spk2gender) if args.spk2gender else {}
    from steermoe.analysis import report
    from steermoe.analysis.measure import measure
    from steermoe.checkpoint import load_model, read_metadata
    from steermoe.data.dataset import AudioTextDataset
    from steermoe.files import sha256_file
    from steermoe.pretrained import find_adapter
    from steermoe.progress import Progress

    data = AudioTextDataset(args.data)
    step = max(1, -(-len(data) // args.max_utts)) if args.max_utts else 1
    indices = list(range(0, len(data), step))
    model, config = load_model(args.exp, "cpu", args.encoder_model, args.llm_model)
    found = []
    with Progress("analyze", len(indices), "utt") as progress:
        for utterance in measure(model.eval(), config, data, indices):
            found.append(utterance)
            progress.update(1)
    informations = explain(found, genders, args.permutations, args.seed)
    file = find_adapter(args.exp)
    facts = {
        "made by": f"steermoe analyze {shlex.join(words)}",
        "adapter": f"step {read_metadata(file)[1].get('step')}, SHA-256 {sha256_file(file)}",
        "data": f"{len(found)} utterances, {len({one.spk for one in found})} speakers, {sum(one.chosen_lt.shape[1] for one in found)} frames",
        "permutations": f"{args.permutations}, seed {args.seed}",
    }
    findings = report.summarize(model.steering.scales.tolist(), found, informations)
    report.write(findings, facts, (found[0], data[indices[0]].feats_fm.float().numpy()), args.out)
    print(report.table(findings))


def explain(found: list, genders: dict[str, str], permutations: int, seed: int) -> dict[str, list]:
    """{label: information of every layer}; labels that are the same everywhere, or not known, are left out."""
    from steermoe.analysis.information import information

    labels = {
        "letter class": [one.letter_t for one in found],
        "position": [np.arange(one.chosen_lt.shape[1]) * POSITIONS // one.chosen_lt.shape[1] for one in found],
        "speaker": numbers([one.spk for one in found]),
        "gender": numbers([genders.get(one.spk) for one in found]),
        "noise level": levels([one.contrast for one in found]),
    }
    used = {}
    for label, values in labels.items():
        if len(set(np.concatenate([np.ravel(value) for value in values]).tolist()) - {-1}) > 1:
            layers = range(len(found[0].chosen_lt))
            used[label] = [information([one.chosen_lt[layer] for one in found], values, permutations, seed) for layer in layers]
    return used


def numbers(names: Sequence[str | None]) -> list[int]:
    """A number for each name, -1 for None."""
    known = sorted({name for name in names if name is not None})
    return [-1 if name is None else known.index(name) for name in names]


def levels(contrasts: Sequence[float]) -> list[int]:
    """0 for the noisiest third of the utterances, 2 for the cleanest."""
    ranks = np.argsort(np.argsort(contrasts, kind="stable"), kind="stable")
    return (ranks * LEVELS // len(ranks)).tolist()


def read_genders(path: Path) -> dict[str, str]:
    if not path.is_file():
        raise UserError(f"{path}: no such file; a line of it is SPEAKER f or SPEAKER m")
    genders = {}
    for number, line in enumerate(path.read_text(encoding="utf-8").splitlines(), 1):
        fields = line.split()
        if len(fields) != 2 or fields[1] not in ("f", "m"):
            raise UserError(f"{path}:{number}: {line!r} is not SPEAKER f or SPEAKER m")
        genders[fields[0]] = fields[1]
    return genders


if __name__ == "__main__":
    run(main)
