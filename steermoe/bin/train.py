"""Stage 4: trains the adapter; killed and started again, it goes on where it was.

With several processes: torchrun --nproc-per-node N -m steermoe.bin.train OPTION …, a GPU for each with --ngpu 1.
"""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import yaml

from steermoe.bin.cli import Parser, parse_with_config, run
from steermoe.bin.decode import device
from steermoe.config import Config, config_from_dict, differences
from steermoe.errors import UserError
from steermoe.files import write_json
from steermoe.pretrained import init_files
from steermoe.stamp import Stamp, made_here

MAY_CHANGE = ("decode_conf", "train_conf.patience", "train_conf.save_steps")


def main(argv=None) -> None:
    parser = Parser(prog="steermoe train", description=__doc__.split("\n")[0])
    parser.add_argument("--config", type=Path, help="training configuration")
    parser.add_argument("--train", type=Path, required=True, help="data.jsonl to train on")
    parser.add_argument("--dev", type=Path, required=True, help="data.jsonl to validate on")
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder")
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs of a process: 0 or 1")
    args, config = parse_with_config(parser, argv)
    if args.ngpu > 1:
        how = f"torchrun --nproc-per-node {args.ngpu} -m steermoe.bin.train … --ngpu 1"
        raise UserError(f"--ngpu {args.ngpu}: a process has one GPU at most; for more: {how}")
    adapter = args.exp / "checkpoints" / "best.safetensors"
    relevant = {key: value for key, value in config.to_dict().items() if key != "decode_conf"}
    inputs = [args.train, args.dev, *init_files(config.init)]
    done = Stamp(args.exp / ".train.done", relevant, [*inputs, *made_here(config.encoder_conf["model"])])
    if done.fresh([adapter]):
        if is_first():
            config.save(args.exp / "config.yaml")  # decode_conf may have been edited; decoding reads it there
            print(f"{adapter}: up to date")
        return
    if is_first():
        claim(args.exp, config, Stamp(args.exp / ".train.begun", {}, inputs))
    train(args, config)
    if is_first():
        done.write()
        print(adapter)


def is_first() -> bool:
    """Whether this is the only process, or the one of torchrun's that writes the files."""
    return int(os.environ.get("WORLD_SIZE", 1)) == 1 or os.environ["RANK"] == "0"


def claim(exp: Path, config: Config, data: Stamp) -> None:
    """Writes config.yaml, or checks that an interrupted training here was of this configuration and this data."""
    if (exp / "checkpoints" / "resume.pt").is_file():
        before = config_from_dict(yaml.safe_load((exp / "config.yaml").read_text(encoding="utf-8")), str(exp / "config.yaml"))
        may_change = MAY_CHANGE
        if config.optim_conf.schedule == "constant":  # the others depend on how many steps there are
            may_change += ("train_conf.max_steps",)
        if changed := differences(before.to_dict(), config.to_dict(), may_change):
            raise UserError(
                f"{exp}: holds a training of another configuration ({'; '.join(changed)}); give this one a name of its own with "
                f"--tag NAME, or remove {exp}"
            )
        if not data.fresh():
            other = "on other data, or that started at another adapter" if config.init else "on other data"
            raise UserError(f"{exp}: holds a training {other}; give this one a name of its own with --tag NAME, or remove {exp}")
    config.save(exp / "config.yaml")
    data.write()


def train(args, config: Config) -> None:
    import torch

    from steermoe.data.augment import Augment
    from steermoe.data.dataset import AudioTextDataset
    from steermoe.environment import describe, describe_data
    from steermoe.model import SteerMoE
    from steermoe.train import distributed
    from steermoe.train.plots import plot_curves
    from steermoe.train.states import HeardSet
    from steermoe.warm_start import start_at

    if config.train_conf.num_threads:
        torch.set_num_threads(config.train_conf.num_threads)
    torch.use_deterministic_algorithms(True, warn_only=True)
    torch.manual_seed(config.train_conf.seed)
    where = distributed.join(device(args.ngpu))
    environment = describe() | {"train": describe_data(args.train), "dev": describe_data(args.dev)}
    if distributed.size() > 1:
        environment["processes"] = str(distributed.size())
    if is_first():
        write_json(args.exp / "environment.json", environment)
    augment = Augment(config.augment_conf, config.train_conf.seed)
    model = SteerMoE.from_config(config, where)
    start_at(model, config)
    frontend = model.encoder.frontend(config.encoder_conf["model"])
    train_set, dev_set = AudioTextDataset(args.train, augment, frontend), AudioTextDataset(args.dev)
    heard = args.exp / f"heard.{distributed.rank()}"
    if config.train_conf.heard_versions:
        train_set = HeardSet(train_set, model, heard, config.train_conf.heard_versions)
    trainer = adapter_trainer(model, config, train_set, dev_set, args.exp, environment)
    trainer.run()
    shutil.rmtree(heard, ignore_errors=True)
    distributed.leave()
    if is_first():
        plot_curves(trainer.log_path, args.exp / "plots")


def adapter_trainer(model, config: Config, train_set, dev_set, exp: Path, environment: dict):
    """A Trainer of a SteerMoE's adapter: the configuration's objective, checkpoints/{best,last}.safetensors."""
    from steermoe.checkpoint import save_adapter
    from steermoe.data.collator import Collator
    from steermoe.registry import resolve
    from steermoe.train.trainer import Trainer
    from steermoe.train.watch import AdapterWatch

    def export(name: str, step: int) -> None:
        save_adapter(exp / "checkpoints" / f"{name}.safetensors", model, config, step, environment)

    objective = resolve("objective", config.objective)(**config.objective_conf)
    collate = Collator(model.llm, config.data_conf.prompt)
    watch = AdapterWatch(model, dev_set, config.data_conf.prompt, config.decode_conf)
    return Trainer(model, objective, collate, export, train_set, dev_set, exp, config.train_conf, config.optim_conf, watch)


if __name__ == "__main__":
    run(main)
