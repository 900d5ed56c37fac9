"""Robustness of an adapter: error rates under noise and at other rates and loudness, and what it writes where nobody speaks.

Run it in egs/CORPUS (utils/robustness.sh). Conditions are made from the waveforms of data/SET; the encoder's own decoder, where
it has one, hears the same. EXP/robustness/SET receives RESULTS.md, robustness.json, wer_snr.png, and for each condition a folder
of hypotheses and scores. What is finished is not done again.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import math
import re
import shlex
import sys
from pathlib import Path

import yaml

from steermoe.bin.cli import Parser, boolean, run
from steermoe.bin.decode import add_model_options, decode_conf, device
from steermoe.errors import UserError
from steermoe.files import atomic_write, sha256_file, write_json
from steermoe.pretrained import adapter_path

ADAPTER, OWN = "adapter", "own decoder"
NOBODY = ("silence", "white", "pink")


def main(argv=None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    args, overrides = make_parser().parse_known_args(words)
    check(args)
    from steermoe.checkpoint import beside, find_adapter, read_metadata
    from steermoe.decode.recognizers import Adapter, own_decoder

    file = find_adapter(args.exp)
    config, metadata = read_metadata(file)
    config.decode_conf = decode_conf(config, args.exp, overrides)
    facts = {
        "made_by": f"utils/robustness.sh {shlex.join(words)}",
        "seed": args.seed,
        "adapter": {"exp": args.exp.name, "step": metadata.get("step"), "sha256": sha256_file(file)},
        "config": config.to_dict(),
    }
    config.encoder_conf["model"] = args.encoder_model or beside(file, config.encoder_conf["model"])
    conditions = make_conditions(args, config)
    models = {name: getattr(args, name) for name in ("encoder_model", "llm_model", "dtype")} | {"device": device(args.ngpu)}
    systems = {ADAPTER: Adapter(file, config.decode_conf, models)}
    if args.own_score and (own := own_decoder(config, args.lang, models["device"])):
        systems[OWN] = own
    study = Study(out_folder(args), test_set(args), conditions, list(systems), facts)
    for system in study.systems:
        study.decode(system, systems.pop(system))  # popped, so that one system's models are in memory at a time
    study.write()
    study.plot()
    print(study.report())


def make_parser() -> Parser:
    parser = Parser(prog="steermoe robustness", description=__doc__.split("\n")[0])
    exp = "experiment folder, package, adapter file or `pretrained`"
    parser.add_argument("--exp", type=adapter_path, required=True, help=exp)
    parser.add_argument("--test-set", required=True, help="data directory with wav.scp and text: its name in data/, or its path")
    parser.add_argument("--out", type=Path, help="folder for the results; default: EXP/robustness/SET")
    babble = "data directory whose speakers talk in the background; none: no babble"
    parser.add_argument("--babble", default="data/train", help=babble)
    listed = "each a data directory, a wav.scp file or a folder of audio files; NAME is what the results call it"
    parser.add_argument("--noise", nargs="+", metavar="NAME=PATH", default=[], help=listed)
    parser.add_argument("--snr", nargs="+", type=float, default=[20, 10, 5, 0], help="dB between speech and babble or noise")
    parser.add_argument("--tempo", nargs="*", type=float, default=[0.8, 0.9, 1.1, 1.25], help="factors of the speaking rate")
    loudness = "dB; above 0 at most to where the highest peak is full scale"
    parser.add_argument("--loudness", nargs="*", type=float, default=[-20, 20], help=loudness)
    clips = "without speech, of each kind: silence, white and pink noise, and every --noise alone"
    parser.add_argument("--clips", type=int, default=40, help=clips)
    parser.add_argument("--max-utts", type=int, default=0, help="utterances, spread evenly over the test set; 0: all")
    parser.add_argument("--seed", type=int, default=1, help="of the noise")
    parser.add_argument("--own-score", type=boolean, default=True, help="also the encoder's own decoder, where it has one")
    parser.add_argument("--lang", default="en", help="language of the speech, for the encoder's own decoder")
    parser.add_argument("--allow-pipes", type=boolean, default=False, help="run the commands of wav.scp lines that end in |")
    add_model_options(parser)
    parser.epilog = "Keys of decode_conf can be overridden: --decode-conf.beam 4"
    return parser


def check(args) -> None:
    for name, least in (("max_utts", 0), ("clips", 1), ("seed", 0)):
        if getattr(args, name) < least:
            raise UserError(f"--{name.replace('_', '-')} {getattr(args, name)}: {least} or more")
    if bad := [factor for factor in args.tempo if not 0.5 <= factor <= 2]:
        raise UserError(f"--tempo {bad[0]:g}: from 0.5 to 2")
    names = [name for name, _ in noises(args)]
    for name in names:
        if not re.fullmatch(r"[A-Za-z0-9_.+-]+", name) or name in ("babble", *NOBODY) or names.count(name) > 1:
            raise UserError(f"--noise {name}: write NAME=PATH, NAME of letters, digits and _ . + -, another one for each")


def noises(args) -> list[tuple[str, str]]:
    """Name and path of each --noise; one without a name has its folder's."""
    split = [word.partition("=") for word in args.noise]
    return [(name, path) if equals else (Path(name).stem, name) for name, equals, path in split]


def test_set(args) -> Path:
    named = Path("data") / args.test_set
    return named if named.is_dir() else Path(args.test_set)


def out_folder(args) -> Path:
    if args.out is None and not (args.exp / "checkpoints").is_dir():
        raise UserError(f"--exp {args.exp}: not an experiment folder, where the results would go; give --out DIR too")
    return args.out or args.exp / "robustness" / test_set(args).name


def make_conditions(args, config) -> list:
    """Reads every data directory and list of noises, so that what is wrong with one is known before anything is decoded."""
    from steermoe.data.disturb import Disturb, babble_source, noise_source, utterances
    from steermoe.decode.recognizers import frontend

    extract = frontend(config)
    longest = min(config.data_conf.max_seconds, (extract.max_frames or math.inf) / extract.frames_per_second)
    entries = utterances(test_set(args), longest, args.max_utts, args.allow_pipes)
    disturb = Disturb(entries, args.seed, longest, args.allow_pipes)
    sources = {}
    if args.babble != "none":
        sources["babble"] = babble_source(Path(args.babble), {entry["spk"] for entry in entries}, args.allow_pipes)
    sources |= {name: noise_source(path) for name, path in noises(args)}
    conditions = [disturb.clean()]
    conditions += [disturb.noisy(name, *source, snr) for name, source in sources.items() for snr in args.snr]
    conditions += [disturb.tempo(factor) for factor in args.tempo]
    conditions += [disturb.loudness(gain) for gain in args.loudness]
    conditions += [disturb.nobody(kind, args.clips) for kind in NOBODY]
    return conditions + [disturb.noise_alone(name, sources[name][1], args.clips) for name, _ in noises(args)]


class Study:
    """conditions of data, decoded by systems. facts: what else the results say they were made with and from."""

    def __init__(self, out: Path, data: Path, conditions: list, systems: list[str], facts: dict):
        from steermoe.environment import describe

        self.out, self.data, self.conditions, self.systems = out, data, conditions, systems
        self.facts = {"test_set": data.name, **facts, "environment": describe()}
        self.conf = facts["config"]["decode_conf"]
        self.results = {condition.name: {} for condition in conditions}

    def decode(self, system: str, recognizer) -> None:
        """Every condition by one system; what is finished is read. The results are written after each that was not."""
        from steermoe.bin.dump import recordings
        from steermoe.decode.hypotheses import OUTPUTS
        from steermoe.score.robustness import figures
        from steermoe.stamp import Stamp

        files = recordings(self.data)
        inputs = Stamp(self.out, {}, recognizer.inputs).content["inputs"]  # models are large: hashed once, not for each condition
        for number, condition in enumerate(self.conditions, 1):
            folder = self.out / system.replace(" ", "_") / condition.name
            made_from = hashlib.sha256(json.dumps([condition.entries, condition.made_from]).encode()).hexdigest()
            settings = {**recognizer.settings, "inputs": inputs, "condition": made_from}
            stamp = Stamp(folder / ".done", settings | ({"recordings": files} if condition.speech else {}))
            finished = stamp.fresh(folder / name for name in OUTPUTS)
            if not finished:
                print(f"=== {system}, condition {number} of {len(self.conditions)}: {condition.name}", file=sys.stderr)
                hear(condition, recognizer, folder, stamp)
            found = figures(folder, condition.speech, self.conf["unit"], self.conf["normalizer"])
            self.results[condition.name][system] = found
            if not finished:
                self.write()

    def write(self) -> None:
        write_json(self.out / "robustness.json", {**self.facts, "conditions": self.rows()})
        with atomic_write(self.out / "RESULTS.md") as stream:
            stream.write(self.report())

    def plot(self) -> None:
        from steermoe.score.robustness import plot_snr

        plot_snr(self.systems, self.rows(), self.conf["unit"], self.out / "wer_snr.png")

    def rows(self) -> list[dict]:
        keys = ("name", "speech", "noise", "snr")
        return [{key: getattr(c, key) for key in keys} | {"results": self.results[c.name]} for c in self.conditions]

    def report(self) -> str:
        from steermoe.score.robustness import tables

        facts, environment, adapter = self.facts, self.facts["environment"], self.facts["adapter"]
        model = facts["config"]["encoder_conf"]["model"]
        versions = ", ".join(f"{name} {environment[name]}" for name in ("python", "torch", "transformers"))
        lines = [
            f"# Robustness of {adapter['exp']} on {facts['test_set']}\n",
            f"- made by: `{facts['made_by']}`",
            f"- git {environment['git']}, {versions}; on {environment['processor']}, GPU {environment['gpu']}",
            f"- adapter of step {adapter['step']}, SHA-256 {adapter['sha256'][:12]}…; seed {facts['seed']}",
            f"- rates in % after normaliser `{self.conf['normalizer']}`; intervals: bootstrap by utterance",
            "- babble: several other speakers at once; dB: mean power of the utterance over that of the noise; tempo: pitch kept",
            "- loops: answers that the repeat guard stopped or that end in one phrase again and again",
            f"- own decoder: the whole {model}, without adapter and LLM\n" if OWN in self.systems else "",
            tables(self.systems, self.rows(), self.conf["unit"]),
            "![error rate over signal-to-noise ratio](wer_snr.png)\n",
            f"## Configuration\n\n```yaml\n{yaml.safe_dump(facts['config'], sort_keys=False, allow_unicode=True)}```\n",
        ]
        return "\n".join(lines)


def hear(condition, recognizer, folder: Path, stamp) -> None:
    """Leaves in folder what a decoding verb leaves; goes on where an earlier, stopped run was."""
    from steermoe.decode.hypotheses import open_journal, write_hypotheses

    def decode(entries: list[dict]) -> dict[str, list[str]]:
        return recognizer(entries, [condition.samples(entry) for entry in entries])

    journal = open_journal(folder, stamp)
    journal.run(condition.name, recognizer.batches(condition.entries), decode)
    with contextlib.redirect_stdout(sys.stderr):  # stdout is for the tables
        write_hypotheses(folder, condition.entries, journal, recognizer.settings, stamp)


if __name__ == "__main__":
    run(main)
