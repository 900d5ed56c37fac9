"""Validate, fix, subset, split, combine or copy Kaldi data directories, with Kaldi's options.

The scripts utils/{validate_data_dir,fix_data_dir,subset_data_dir,split_data,combine_data,copy_data_dir}.sh call this.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Callable, Sequence

from steermoe.bin.cli import Parser, boolean, run
from steermoe.data import kaldi_dir
from steermoe.errors import UserError
from steermoe.registry import nearest


def validate(words: Sequence[str]) -> None:
    """Check a directory as Kaldi's validate_data_dir.sh does; --check-audio true also reads every audio file."""
    parser = _parser("validate", validate.__doc__)
    parser.add_argument("data", help="data directory")
    for name in ("feats", "text", "wav"):
        file = name if name == "text" else f"{name}.scp"
        parser.add_argument(f"--no-{name}", action="store_true", help=f"{file} need not be there (it is checked if it is)")
    parser.add_argument("--no-spk-sort", action="store_true", help="utt2spk need not be sorted by speaker as well")
    parser.add_argument("--non-print", action="store_true", help="allow characters that cannot be printed in text")
    parser.add_argument("--check-audio", type=boolean, default=False, metavar="BOOL", help="read every audio file to its end")
    parser.add_argument("--allow-pipes", type=boolean, default=False, metavar="BOOL", help="run commands (`cmd |`) in wav.scp")
    args = parser.parse_args(words)
    warnings = kaldi_dir.validate(
        args.data, not args.no_feats, not args.no_wav, not args.no_text, not args.no_spk_sort, args.non_print
    )
    for warning in warnings:
        print(f"WARNING: {warning}", file=sys.stderr)
    if args.check_audio:
        _check_audio(args.data, args.allow_pipes)
    print(f"Successfully validated data-directory {args.data}")


def _check_audio(path: str, allow_pipes: bool) -> None:
    """Reads every utterance's audio; the first broken ones are all named, so that one run is enough to know them."""
    from steermoe.data.audio import load_audio
    from steermoe.progress import Progress

    wav = Path(path) / "wav.scp"
    if not wav.is_file():
        return
    utterances = kaldi_dir.DataDir.read(path, allow_pipes, require=("wav.scp",)).utterances
    broken = []
    with Progress("check audio", len(utterances), "utt") as progress:
        for utterance in utterances.values():
            try:
                load_audio(utterance.wav, utterance.start, utterance.end, None, allow_pipes)
            except UserError as error:
                broken.append(f"{utterance.utt}: {error}")
                progress.write(broken[-1])
            progress.update()
    if broken:
        raise UserError(f"{wav}: {len(broken)} of {len(utterances)} utterances have broken audio; the first is {broken[0]}")


def fix(words: Sequence[str]) -> None:
    """Sort every file and keep only what is in all of them; the old files stay in DATA/.backup."""
    parser = _parser("fix", fix.__doc__)
    parser.add_argument("data", help="data directory")
    parser.add_argument("--utt-extra-files", default="", metavar="NAMES", help="further files indexed by utterance, as one word")
    parser.add_argument("--spk-extra-files", default="", metavar="NAMES", help="further files indexed by speaker, as one word")
    parser.add_argument("--no-spk-sort", action="store_true", help="accept a utt2spk that is not sorted by speaker as well")
    args = parser.parse_args(words)
    _say(kaldi_dir.fix(args.data, args.utt_extra_files.split(), args.spk_extra_files.split(), not args.no_spk_sort))


def subset(words: Sequence[str]) -> None:
    """Write some of a directory's utterances to a new one: by default NUM-UTT, evenly from the whole list."""
    parser = _parser("subset", subset.__doc__)
    parser.usage = (
        "data_dir subset [--first|--last|--shortest|--speakers|--per-spk] SRC NUM-UTT DEST\n"
        "       data_dir subset --utt-list FILE SRC DEST\n       data_dir subset --spk-list FILE SRC DEST"
    )
    which = parser.add_mutually_exclusive_group()
    which.add_argument("--first", action="store_true", help="the first NUM-UTT utterances")
    which.add_argument("--last", action="store_true", help="the last NUM-UTT utterances")
    which.add_argument("--shortest", action="store_true", help="the shortest NUM-UTT utterances")
    which.add_argument("--speakers", action="store_true", help="whole speakers at random, until there are NUM-UTT utterances")
    which.add_argument("--per-spk", action="store_true", help="NUM-UTT utterances of each speaker")
    which.add_argument("--utt-list", metavar="FILE", help="the utterances in the first column of FILE")
    which.add_argument("--spk-list", metavar="FILE", help="the speakers in the first column of FILE")
    parser.add_argument("arguments", nargs="+", metavar="SRC [NUM-UTT] DEST", help="source, number of utterances, new directory")
    args = parser.parse_args(words)
    by_list = args.utt_list or args.spk_list
    if len(args.arguments) != (2 if by_list else 3):
        parser.error(f"{'SRC DEST' if by_list else 'SRC NUM-UTT DEST'} expected, not {' '.join(args.arguments)}")
    number = None if by_list else _number(parser, "NUM-UTT", args.arguments[1])
    select = next((name for name in ("first", "last", "shortest", "speakers", "per_spk") if getattr(args, name)), "even")
    _say(kaldi_dir.subset(args.arguments[0], args.arguments[-1], number, select, args.utt_list, args.spk_list))


def split(words: Sequence[str]) -> None:
    """Split a directory into DATA/splitN/1 to N (or DATA/splitNutt/1 to N), contiguous and of about equal duration."""
    parser = _parser("split", split.__doc__)
    parser.add_argument("--per-utt", action="store_true", help="ignore the speakers (else a speaker stays in one part)")
    parser.add_argument("--by", choices=("duration", "count"), default="duration", help="what is balanced")
    parser.add_argument("data", help="data directory")
    parser.add_argument("num_to_split", help="number of parts")
    args = parser.parse_args(words)
    number = _number(parser, "num-to-split", args.num_to_split)
    parts = kaldi_dir.split(args.data, number, args.by, per_spk=not args.per_utt)
    _say([f"{args.data}: {number} parts in {parts[0].parent}"])


def combine(words: Sequence[str]) -> None:
    """Join directories into DEST (utt2uniq, segments and questions are completed, other files must be in every source)."""
    parser = _parser("combine", combine.__doc__)
    parser.add_argument("--extra-files", default="", metavar="NAMES", help="further files to join, as one word")
    parser.add_argument("--skip-fix", type=boolean, default=False, metavar="BOOL", help="do not run `fix` at the end")
    parser.add_argument("dest", help="new data directory")
    parser.add_argument("sources", nargs="+", metavar="src", help="data directories")
    args = parser.parse_args(words)
    _say(kaldi_dir.combine(args.sources, args.dest, args.extra_files.split(), args.skip_fix))


def copy(words: Sequence[str]) -> None:
    """Copy a directory, giving utterances or speakers a prefix or suffix, and validate the copy."""
    parser, affixes = _parser("copy", copy.__doc__), []
    for name, what in (("utt", "utterance-ids"), ("spk", "speaker-ids")):
        for place in ("prefix", "suffix"):
            affixes.append(f"--{name}-{place}")
            parser.add_argument(affixes[-1], type=_unmask, default="", metavar="TEXT", help=f"{place} for the {what}")
    parser.add_argument("--validate-opts", default="", metavar="OPTIONS", help="further options of `validate`, as one word")
    parser.add_argument("source", help="data directory")
    parser.add_argument("dest", help="new data directory")
    args = parser.parse_args([_mask(word) if option in affixes else word for option, word in zip(["", *words], words)])
    _say(kaldi_dir.copy(args.source, args.dest, args.utt_prefix, args.spk_prefix, args.utt_suffix, args.spk_suffix))
    absent = (("feats.scp", "--no-feats"), ("text", "--no-text"), ("wav.scp", "--no-wav"))
    options = [option for file, option in absent if not (Path(args.source) / file).is_file()]
    validate([*options, *args.validate_opts.split(), args.dest])


def _mask(word: str) -> str:
    """argparse takes a value such as `-noisy` for an option, Kaldi does not: hide the dash from it."""
    return f"\0{word}"


def _unmask(word: str) -> str:
    return word.removeprefix("\0")


COMMANDS: dict[str, Callable[[Sequence[str]], None]] = {
    command.__name__: command for command in (validate, fix, subset, split, combine, copy)
}


def _parser(name: str, description: str | None) -> Parser:
    return Parser(prog=f"data_dir {name}", description=description)


def _number(parser: argparse.ArgumentParser, name: str, text: str) -> int:
    try:
        return int(text)
    except ValueError:
        parser.error(f"{name} must be a whole number, not {text!r}")


def _say(messages: Sequence[str]) -> None:
    for message in messages:
        print(message)


def main(argv: Sequence[str] | None = None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    if not words or words[0] in ("--help", "-h"):
        print(f"usage: data_dir COMMAND [OPTION …] …\n\n{__doc__}\ncommands (each has --help):")
        print("\n".join(f"  {name:9s} {command.__doc__}" for name, command in COMMANDS.items()))
        if not words:
            raise UserError("a command is missing")
        return
    if words[0] not in COMMANDS:
        raise UserError(f"unknown command {words[0]!r}{nearest(words[0], list(COMMANDS))}")
    COMMANDS[words[0]](words[1:])


if __name__ == "__main__":
    run(main)
