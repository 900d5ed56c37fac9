"""What every verb shares: Kaldi's options, one clear message for bad input, help with every default."""

from __future__ import annotations

import argparse
import errno
import os
import sys
from typing import TYPE_CHECKING, Callable, Sequence

from steermoe.errors import UserError

if TYPE_CHECKING:
    from steermoe.config import Config


CONFIG_KEYS = ("encoder", "steering", "projector", "llm", "objective", "data", "augment", "optim", "train", "decode")


def boolean(text: str) -> bool:
    """argparse type of a true/false option."""
    if text not in ("true", "false"):
        raise argparse.ArgumentTypeError(f"must be true or false, not {text!r}")
    return text == "true"


class Parser(argparse.ArgumentParser):
    """ArgumentParser with Kaldi's habits: `--foo-bar x` and `--foo_bar x` are one option, `--a=b` is an error, no abbreviations."""

    def __init__(self, **settings):
        settings.setdefault("formatter_class", argparse.ArgumentDefaultsHelpFormatter)
        super().__init__(allow_abbrev=False, **settings)

    def parse_known_args(self, args: Sequence[str] | None = None, namespace=None):
        words = []
        for word in sys.argv[1:] if args is None else args:
            if word.startswith("--") and len(word) > 2:
                name, equals, value = word.partition("=")
                if equals:
                    self.error(f"{word}: write the value as a word of its own: {name} {value}")
                word = name.replace("_", "-")
            words.append(word)
        return super().parse_known_args(words, namespace)

    def parse_args(self, args: Sequence[str] | None = None, namespace=None):
        parsed, rest = self.parse_known_args(args, namespace)
        if rest:
            from steermoe.registry import nearest  # only an error needs it, and quick verbs start quickly

            known = [option for option in self._option_string_actions if option.startswith("--")]
            self.error(f"unknown option {rest[0]}{nearest(rest[0], known)}")
        return parsed


def add_layer_options(parser: argparse.ArgumentParser) -> None:
    """What lies over the configuration's file: load_config's arguments."""
    parser.add_argument("--preset", help="the paper's models and settings over the configuration: W7B, C3B or C7B")
    parser.add_argument("--variant", default="paper", help="of the preset: paper, or authors_code where their code parts from it")
    parser.add_argument("--init", default="", help="adapter to start at, with its settings: `pretrained`, a folder or a file")


def split_overrides(argv: Sequence[str] | None) -> tuple[list[str], list[str]]:
    """(other words, ["--llm-conf.model", "DIR", …]), for verbs with FILE arguments: argparse would take DIR for one."""
    words, rest, overrides = list(sys.argv[1:] if argv is None else argv), [], []
    while words:
        override = words[0].startswith("--") and "." in words[0]
        (overrides if override else rest).extend(words[: 1 + override])
        words = words[1 + override :]
    return rest, overrides


def parse_with_config(parser: Parser, argv: Sequence[str] | None) -> tuple[argparse.Namespace, Config]:
    """For verbs with `--config`: options that the parser does not know override configuration keys (--train-conf.seed 2)."""
    from steermoe.config import load_config
    from steermoe.registry import nearest

    add_layer_options(parser)
    parser.epilog = "Any key of the configuration can be overridden: --train-conf.max-steps 100 --projector linear"
    args, rest = parser.parse_known_args(argv)
    for word in rest:
        name = word[2:].replace("-", "_").split(".")[0]
        if word.startswith("--") and name.removesuffix("_conf") not in CONFIG_KEYS:
            options = [option for option in parser._option_string_actions if option.startswith("--")]
            parser.error(f"unknown option {word}{nearest(word, [*options, *(f'--{key}-conf' for key in CONFIG_KEYS)])}")
    return args, load_config(args.config, rest, args.preset, args.variant, args.init)


def run(main: Callable[[Sequence[str] | None], int | None]) -> None:
    """Ends the process with `main`'s status; a UserError is one line on stderr and status 1, a killed pipe is silent."""
    verb = os.path.basename(sys.argv[0]).removesuffix(".py")
    try:
        status = main(None) or 0
        sys.stdout.flush()  # here, where a closed pipe is caught
        sys.exit(status)
    except UserError as error:
        sys.exit(f"steermoe {verb}: error: {error}")
    except BrokenPipeError:
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        sys.exit(1)
    except KeyboardInterrupt:
        sys.exit(130)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT):
            if error.filename is None:
                raise
            sys.exit(f"steermoe {verb}: error: {error.filename}: {error.strerror}")
        where = f" while writing {error.filename}" if error.filename else ""
        sys.exit(f"steermoe {verb}: error: no space left on the disk{where}; free some and run the same command again")
