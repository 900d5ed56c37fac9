"""Joins data.jsonl files of stage 2, of one recipe or of several, into one to train on, each with a weight.

SET:WEIGHT: WEIGHT is how often an utterance of that set is drawn in an epoch, 1 where it is left out; 0.5 draws half of the set,
another half in each epoch. Utterances with a question keep it as their prompt, the others get data_conf.prompt of the training.
"""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Iterator

from steermoe.bin.cli import Parser, run
from steermoe.errors import UserError
from steermoe.files import atomic_write, read_jsonl
from steermoe.stamp import Stamp, stamp_of


def main(argv=None) -> None:
    parser = Parser(prog="steermoe join_sets", description=__doc__.split("\n")[0])
    parser.add_argument("sets", nargs="+", metavar="SET[:WEIGHT]", help="data.jsonl, and how often an epoch draws an utterance")
    parser.add_argument("--out", type=Path, required=True, help="the data.jsonl to write")
    args = parser.parse_args(argv)
    sets = [parse_set(word) for word in args.sets]
    stamp = Stamp(stamp_of(args.out), {"sets": [[str(path), weight] for path, weight in sets]}, [path for path, _ in sets])
    if stamp.fresh([args.out]):
        print(f"{args.out}: up to date")
        return
    check_features([path for path, _ in sets])
    lines, hours = [], []
    with atomic_write(args.out) as stream:
        for path, weight in sets:
            lines.append(0)
            hours.append(0.0)
            for entry in entries(path):
                stream.write(json.dumps(entry | {"weight": weight}, ensure_ascii=False) + "\n")
                lines[-1] += 1
                hours[-1] += weight * entry["duration"] / 3600
    stamp.write()
    for (path, weight), count, share in zip(sets, lines, hours):
        print(f"{path}: {count} utterances x {weight:g}, {share:.2f} h an epoch, {100 * share / sum(hours):.0f} %")


def parse_set(word: str) -> tuple[Path, float]:
    """"dump/x/data.jsonl:0.5" -> its path, 0.5. UserError for a file that is not there and a weight that is no number over 0."""
    head, colon, tail = word.rpartition(":")
    path, weight = (head, tail) if colon and not Path(word).is_file() else (word, "1")
    try:
        number = float(weight)
    except ValueError:
        number = 0.0
    if not 0 < number < float("inf"):
        raise UserError(f"{word}: the weight {weight!r} is not a number over 0; write SET:0.5")
    if not Path(path).is_file():
        raise UserError(f"{path}: no such file; run stage 2 of its recipe first")
    return Path(path), number


def entries(path: Path) -> Iterator[dict]:
    """The lines, with their audio and features as seen from the current directory."""
    base = None
    for entry in read_jsonl(path):
        ark, colon, place = entry["feats"].rpartition(":")
        base = base or find_base(path, ark)
        wav = entry.get("wav")
        own = {"feats": str(base / ark) + colon + place}
        if wav and not wav.rstrip().endswith("|"):
            own["wav"] = str(base / wav)
        yield entry | own


def find_base(path: Path, ark: str) -> Path:
    """The folder that a file's relative paths start at: its recipe's, somewhere above it. Seen from the current directory."""
    for folder in path.absolute().parents:
        if (folder / ark).is_file():
            return Path(os.path.relpath(folder))
    raise UserError(f"{path}:1: {ark} is in no folder above the file; run stages 1 and 2 of its recipe again")


def check_features(paths: list[Path]) -> None:
    """UserError unless all sets have features of one width: those of the same encoder."""
    from steermoe.data.ark import matrix_shape

    widths = {}
    for path in paths:
        entry = next(entries(path), None)
        if entry is None:
            raise UserError(f"{path}: no utterance in it; stage 2 says why utterances were dropped")
        widths.setdefault(matrix_shape(entry["feats"])[1], path)
    if len(widths) > 1:
        (width, path), (other, another) = list(widths.items())[:2]
        raise UserError(f"{path} has features of {width} numbers a frame, {another} of {other}; join sets of one encoder's features")


if __name__ == "__main__":
    run(main)
