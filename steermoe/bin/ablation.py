"""Ablation: trains, decodes and compares variants of a recipe's adapter at equal steps, each with its own tuned learning rate.

Run it in egs/CORPUS (utils/ablation.sh). conf/ablation.yaml names the variants; every run is a `./run.sh --stage 4 …` that can be
repeated by hand, and one that is finished is not done again. What comes after `--` is given to each run.sh.
"""

from __future__ import annotations

import copy
import math
import re
import shlex
import signal
import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple

from steermoe.bin.cli import Parser, boolean, run
from steermoe.config import Config, config_from_dict, load_as, load_config
from steermoe.errors import UserError
from steermoe.files import atomic_write, read_json, read_jsonl
from steermoe.registry import nearest, resolve
from steermoe.stamp import Stamp


@dataclass
class Ablation:
    """conf/ablation.yaml. A variant's keys (steering, steering_conf, frames, frames_conf) replace those of the training
    configuration; frames is the projector, or what the projector `token` reads, and keeps its kernel, so its frame rate.
    """

    reference: str = ""  # the variant that all others are compared with
    steps: int = 1000  # of every variant's training
    tune_steps: int = 200  # of the trial of every learning rate
    rates: list = field(default_factory=lambda: [0.3, 1.0, 3.0])  # factors of optim_conf.lr; that of the least dev loss is taken
    seeds: list = field(default_factory=lambda: [1, 2])
    variants: dict[str, Any] = field(default_factory=dict)


class Trial(NamedTuple):
    """One ./run.sh. factor: of the learning rates; None where it is not known yet."""

    variant: str
    kind: str  # tune | steps
    steps: int
    factor: float | None
    seed: int


def main(argv=None) -> None:
    words = list(sys.argv[1:] if argv is None else argv)
    cut = words.index("--") if "--" in words else len(words)
    parser = Parser(prog="ablation", description=__doc__.split("\n")[0], epilog="-- OPTION …: of every run.sh, as -- --ngpu 1")
    parser.add_argument("--config", type=Path, default=Path("conf/ablation.yaml"), help="variants, learning rates, steps, seeds")
    parser.add_argument("--train-config", type=Path, default=Path("conf/train_whisper_ctc.yaml"), help="what all variants share")
    parser.add_argument("--name", default="ablation", help="names the experiments and exp/NAME with the table")
    parser.add_argument("--variants", nargs="+", metavar="VARIANT", help="those to run; default: all")
    parser.add_argument("--steps", type=int, help="training steps, instead of the file's")
    parser.add_argument("--tune-steps", type=int, help="training steps of each learning rate's trial, instead of the file's")
    parser.add_argument("--seeds", nargs="+", type=int, metavar="SEED", help="instead of the file's")
    parser.add_argument("--dry-run", type=boolean, default=False, help="print the commands that are still to run, and stop")
    args = parser.parse_args(words[:cut])
    given = {key: getattr(args, key) for key in ("steps", "tune_steps", "seeds") if getattr(args, key) is not None}
    conf = load_as(Ablation, args.config, [word for key, value in given.items() for word in (f"--{key}", str(value))])
    study = Study(conf, load_config(args.train_config), args.name, words[cut + 1 :], str(args.config))
    chosen = args.variants or list(study.configs)
    if unknown := [variant for variant in chosen if variant not in study.configs]:
        raise UserError(f"--variants: {unknown[0]} is not in {args.config}{nearest(unknown[0], list(study.configs))}")
    if args.dry_run:
        for variant in chosen:
            for trial in [*study.tuning(variant), *study.trainings(variant)]:
                if not study.finished(trial):
                    print(shlex.join(study.command(trial)))
        return
    if not Path("run.sh").is_file():
        raise UserError("no run.sh here; run this in a recipe's folder, as in: cd egs/librispeech && ../../utils/ablation.sh")
    signal.signal(signal.SIGTERM, signal.default_int_handler)  # so that the run in progress is stopped too
    for number, variant in enumerate(chosen, 1):
        print(f"=== variant {number} of {len(chosen)}: {variant}", file=sys.stderr)
        study.run(variant)
        study.write_table()
    print(study.table())


class Study:
    """conf's variants over base. name: of exp/NAME and the experiments. extra: options of every run.sh. where: conf's file."""

    def __init__(self, conf: Ablation, base: Config, name: str, extra: list[str], where: str):
        self.conf, self.folder, self.extra = conf, Path("exp") / name, extra
        check(conf, where)
        self.configs = {key: compose(base, changes or {}, f"{where}: {key}") for key, changes in conf.variants.items()}

    def tuning(self, variant: str) -> list[Trial]:
        conf = self.conf
        return [Trial(variant, "tune", conf.tune_steps, float(factor), conf.seeds[0]) for factor in conf.rates]

    def trainings(self, variant: str) -> list[Trial]:
        factor = self.best_factor(variant)
        return [Trial(variant, "steps", self.conf.steps, factor, seed) for seed in self.conf.seeds]

    def best_factor(self, variant: str) -> float | None:
        """None unless all learning rates have been tried and one gave a finite dev loss."""
        trials = self.tuning(variant)
        losses = {trial.factor: dev_loss(self.exp(trial)) for trial in trials if self.finished(trial)}
        if len(losses) < len(trials) or not math.isfinite(min(losses.values())):
            return None
        return min(losses, key=losses.__getitem__)

    def tag(self, trial: Trial) -> str:
        factor = "BEST" if trial.factor is None else f"{trial.factor:g}"
        return f"{self.folder.name}_{trial.kind}{trial.steps}_lr{factor}_seed{trial.seed}"

    def exp(self, trial: Trial) -> Path:
        return Path("exp") / f"{trial.variant}_{self.tag(trial)}"

    def config_file(self, variant: str) -> Path:
        return self.folder / f"{variant}.yaml"

    def command(self, trial: Trial) -> list[str]:
        """A budget scales the whole schedule: warm-up and, where the objective has them, the steps of CTC alone."""
        config, tune = self.configs[trial.variant], trial.kind == "tune"
        share = trial.steps / config.train_conf.max_steps
        keys = {"train-conf.max-steps": trial.steps, "train-conf.patience": 0}
        keys["optim-conf.warmup-steps"] = round(share * config.optim_conf.warmup_steps)
        if "ctc_steps" in config.objective_conf:
            keys["objective-conf.ctc-steps"] = round(share * config.objective_conf["ctc_steps"])
        if tune:
            keys["train-conf.valid-steps"] = trial.steps
        for group, rate in config.optim_conf.lr.items():
            keys[f"optim-conf.lr.{group}"] = f"BEST*{rate:g}" if trial.factor is None else f"{trial.factor * rate:g}"
        words = ["./run.sh", "--stage", "4", "--stop-stage", "4" if tune else "5", "--own-score", "false"]
        words += ["--train-config", str(self.config_file(trial.variant)), "--tag", self.tag(trial), "--seed", str(trial.seed)]
        return [*words, *[word for key, value in keys.items() for word in (f"--{key}", str(value))], *self.extra]

    def stamp(self, trial: Trial) -> Stamp:
        settings = {"command": self.command(trial), "config": self.configs[trial.variant].to_dict()}
        return Stamp(self.exp(trial) / ".ablation.done", settings)

    def finished(self, trial: Trial) -> bool:
        return self.stamp(trial).fresh() and (trial.kind == "tune" or any(self.exp(trial).glob("decode_*/summary.json")))

    def run(self, variant: str) -> None:
        """Everything of a variant that is not finished yet."""
        self.folder.mkdir(parents=True, exist_ok=True)
        self.configs[variant].save(self.config_file(variant))
        for trial in self.tuning(variant):
            self.finish(trial)
        if self.best_factor(variant) is None:
            raise UserError(f"{variant}: no learning rate gives a finite dev loss; add a lower one to rates")
        for trial in self.trainings(variant):
            self.finish(trial)

    def finish(self, trial: Trial) -> None:
        if self.finished(trial):
            return
        command, log = self.command(trial), self.exp(trial) / "log" / "train.log"
        print(shlex.join(command), file=sys.stderr)
        if call(command) and not (trial.kind == "tune" and diverged(log)):
            raise UserError(f"failed, see above and {log}: {shlex.join(command)}")
        self.stamp(trial).write()

    def write_table(self) -> None:
        with atomic_write(self.folder / "RESULTS.md") as stream:
            stream.write(self.table())

    def table(self) -> str:
        """Every variant of which a training is finished, in the file's order; a row for each seed and decoded set."""
        head = "variant|trained parameters|lr|seed|min|dev loss|set|error rate, 95 % interval"
        rows = [f"|{head}|minus that of {self.conf.reference}, 95 % interval|MAPSSWE|", "|---" * 10 + "|"]
        trials = [trial for variant in self.configs for trial in self.trainings(variant) if self.finished(trial)]
        for trial in trials:
            exp = self.exp(trial)
            reference = next((t for t in trials if (t.variant, t.seed) == (self.conf.reference, trial.seed)), trial)
            minutes = sum(line["seconds"] for line in read_jsonl(exp / "log" / "train.jsonl")) / 60
            cells = [trial.variant, f"{trained_parameters(exp):,}", f"x {trial.factor:g}", str(trial.seed), f"{minutes:.1f}"]
            for decoded in sorted(path.parent for path in exp.glob("decode_*/summary.json")):
                summary = read_json(decoded / "summary.json")
                rate = interval(summary["rate"], summary["low"], summary["high"], ".2f")
                compared = ["", ""] if reference == trial else compare_cells(self.exp(reference) / decoded.name, decoded)
                name = decoded.name.removeprefix("decode_")
                rows.append(f"|{'|'.join([*cells, f'{dev_loss(exp):.3f}', name, rate, *compared])}|")
        return "\n".join([f"# {self.folder.name}\n", self.explanation(), *rows]) + "\n"

    def explanation(self) -> str:
        conf, rates = self.conf, ", ".join(f"{float(rate):g}" for rate in self.conf.rates)
        return (
            f"Every variant: the same data, {conf.steps} steps, the same frame rate. Its learning rates are those of the\n"
            f"training configuration times the one of {rates} that has the least dev loss after {conf.tune_steps} steps.\n"
            f"Rates in %, bootstrap intervals by utterance, MAPSSWE against {conf.reference} with the same seed.\n"
        )


def check(conf: Ablation, where: str) -> None:
    if not conf.variants:
        raise UserError(f"{where}: variants: none; a variant is a line such as `static: {{steering: none}}`")
    for key in ("steps", "tune_steps"):
        if getattr(conf, key) < 1:
            raise UserError(f"{where}: {key}: {getattr(conf, key)} is below 1")
    if not conf.rates or not all(isinstance(rate, (int, float)) and rate > 0 for rate in conf.rates):
        raise UserError(f"{where}: rates: {conf.rates} are not numbers above 0, as in [0.3, 1, 3]")
    if not conf.seeds or not all(isinstance(seed, int) for seed in conf.seeds):
        raise UserError(f"{where}: seeds: {conf.seeds} are not whole numbers, as in [1, 2]")
    if conf.reference not in conf.variants:
        hint = nearest(conf.reference, list(conf.variants))
        raise UserError(f"{where}: reference: {conf.reference!r} is not one of the variants{hint}")


def compose(base: Config, changes: dict[str, Any], where: str) -> Config:
    """base with a variant's keys over it; a role that is named starts from its own defaults, but frames keep their kernel."""
    variant = where.rpartition(": ")[2]
    if not re.fullmatch(r"[A-Za-z0-9_.+-]+", variant):
        raise UserError(f"{where}: a variant's name becomes a folder's; use letters, digits and _ . + -")
    known = ["steering", "steering_conf", "frames", "frames_conf"]
    if not isinstance(changes, dict) or (unknown := [key for key in changes if key not in known]):
        hint = nearest(str(unknown[0]), known) if isinstance(changes, dict) else ""
        raise UserError(f"{where}: {unknown[0] if hint else changes!r} is not a key of a variant{hint}")
    tree = copy.deepcopy(base.to_dict())
    frames = (tree["projector_conf"], "frames") if base.projector == "token" else (tree, "projector")
    for role, (holder, key) in {"steering": (tree, "steering"), "frames": frames}.items():
        kept = holder[f"{key}_conf"] or {}
        if role in changes:
            holder[key] = changes[role]
            kept = {"kernel": kept["kernel"]} if role == "frames" and "kernel" in kept else {}
        holder[f"{key}_conf"] = kept | (changes.get(f"{role}_conf") or {})
    config = config_from_dict(tree, where)
    try_out(config, where)
    return config


def try_out(config: Config, where: str) -> None:
    """Builds the adapter without weights, so that a wrong value in the last variant is known before the first is trained."""
    import torch

    with torch.device("meta"):
        try:
            resolve("steering", config.steering)(2, 8, **config.steering_conf)
            resolve("projector", config.projector)(8, 8, **config.projector_conf)
        except (UserError, TypeError) as error:
            raise UserError(f"{where}: {error}") from None


def call(command: list[str]) -> int:
    """The status. What it prints goes to stderr: stdout is for the table. Whatever ends this process ends it too."""
    process = subprocess.Popen(command, stdout=sys.stderr, stdin=subprocess.DEVNULL)
    try:
        return process.wait()
    except BaseException:
        process.terminate()
        process.wait()
        raise


def diverged(log: Path) -> bool:
    """Whether a training ended because its numbers were not finite: for a trial of a learning rate a result, not a failure."""
    from steermoe.train.trainer import NONFINITE_FIX

    last = log.read_text(encoding="utf-8", errors="replace").rpartition("# Started at")[2] if log.is_file() else ""
    return NONFINITE_FIX in last


def dev_loss(exp: Path) -> float:
    """The least; infinite where the training ended before its first validation."""
    log = exp / "log" / "train.jsonl"
    lines = read_jsonl(log) if log.is_file() else []
    return min((line["dev_loss"] for line in lines if "dev_loss" in line), default=math.inf)


def trained_parameters(exp: Path) -> int:
    import safetensors

    with safetensors.safe_open(exp / "checkpoints" / "best.safetensors", framework="np") as file:
        return sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys())


def compare_cells(reference: Path, decoded: Path) -> list[str]:
    """The difference of the rates with its interval, and MAPSSWE's verdict; both empty if `reference` has not been decoded."""
    from steermoe.score.compare import compare

    if not (reference / "summary.json").is_file():
        return ["", ""]
    summary = read_json(decoded / "summary.json")
    hyps = [reference / "hyp.trn", decoded / "hyp.trn"]
    (found,) = compare(decoded / "ref.trn", hyps, summary["unit"], summary["normalizer"], markup=False)
    verdict = "no real difference" if not found.real else "better" if found.z > 0 else "worse"
    return [interval(found.difference, *found.interval, "+.2f"), f"{verdict}, p = {found.p:.3g}"]


def interval(value: float, low: float, high: float, form: str) -> str:
    return f"{value:{form}} [{low:{form}}, {high:{form}}]"


if __name__ == "__main__":
    run(main)
