"""Fetches frozen models by name and prints where they lie.

usage: python -m steermoe.bin.fetch NAME… | [--config conf/train_whisper.yaml] [--preset W7B] | --list

A NAME is one of the catalog (--list), a model hub's id, or a local folder. Prints one line `NAME<TAB>PATH` each.
With --config or --preset, the encoder and the LLM that the configuration names; its keys can be overridden as for training:
--encoder-conf.model DIR. An encoder under exp/ is one that the recipe's stage 3 makes; its line is printed as it is.
"""

from __future__ import annotations

from typing import Sequence

from steermoe.bin.cli import Parser, add_layer_options, run, split_overrides
from steermoe.config import Config, parse_overrides, read_layers
from steermoe.errors import UserError
from steermoe.fetch import MADE_HERE, catalog, find_model


def main(argv: Sequence[str] | None = None) -> int:
    parser = Parser(prog="python -m steermoe.bin.fetch", description=__doc__.split("\n")[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help="catalog name, hub id or local folder")
    parser.add_argument("--config", help="fetch the encoder and the LLM that this configuration names")
    add_layer_options(parser)
    parser.add_argument("--list", action="store_true", help="print the catalog: name, kind, licence, what it is")
    words, overrides = split_overrides(argv)
    options = parser.parse_args(words)
    configured = options.config or options.preset
    if overrides and not configured:
        parser.error(f"unknown option {overrides[0]}; overrides such as --llm-conf.model go with --config")
    if options.list:
        for name, entry in catalog().items():
            print(name, entry["kind"], entry["licence"], entry["about"], sep="\t")
        return 0
    wanted = [(name, None) for name in options.names]
    if configured:
        wanted += _named_in(read_layers(options.config, options.preset, options.variant), overrides)
    if not wanted:
        raise UserError("give a NAME, --config FILE, --preset NAME or --list")
    for name, kind in wanted:
        own = kind == "encoder" and name.startswith(MADE_HERE)
        print(f"{name}\t{name if own else find_model(name, kind)}", flush=True)
    return 0


def _named_in(tree: dict, overrides: list[str]) -> list[tuple[str, str]]:
    """[(encoder's model, "encoder"), (LLM's, "llm")], without importing the models' code; the other verbs check every key."""
    given = dict((".".join(key), value) for key, value in parse_overrides(overrides))
    pairs = []
    for kind in ("encoder", "llm"):
        conf = tree.get(f"{kind}_conf")
        named = conf.get("model") if isinstance(conf, dict) else None
        pairs.append((str(given.get(f"{kind}_conf.model") or named or getattr(Config(), f"{kind}_conf")["model"]), kind))
    return pairs


if __name__ == "__main__":
    run(main)
