"""Stage 3, where no pretrained Conformer can be had: makes a small one from the recipe's training audio; killed and started
again, it goes on where it was.

Leaves OUT/{config.json,model.safetensors} (the encoder), OUT/{ctc.safetensors,units.model} (its own decoder), log and plots.
"""

from __future__ import annotations

import dataclasses
import shutil
from pathlib import Path

from steermoe.bin.cli import Parser, run
from steermoe.stamp import Stamp


def main(argv=None) -> None:
    parser = Parser(prog="steermoe pretrain", description=__doc__.split("\n")[0].partition(";")[0])
    parser.add_argument("--config", type=Path, required=True, help="conf/pretrain_conformer.yaml: keys of PretrainConf")
    parser.add_argument("--train", type=Path, required=True, help="data.jsonl to train on")
    parser.add_argument("--dev", type=Path, required=True, help="data.jsonl to validate on")
    parser.add_argument("--out", type=Path, required=True, help="folder for the encoder")
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs: 0 or 1")
    parser.epilog = "Any key of the configuration can be overridden: --train-conf.max-steps 100"
    args, overrides = parser.parse_known_args(argv)
    from steermoe.encoders.ctc import FILES
    from steermoe.train.pretrain import load_pretrain_config

    conf = load_pretrain_config(args.config, overrides)
    settings = dataclasses.asdict(conf)
    done = Stamp(args.out / ".pretrain.done", settings, [args.train, args.dev])
    if done.fresh(args.out / name for name in FILES):
        print(f"{args.out}: up to date")
        return
    begun = Stamp(args.out / ".pretrain.begun", settings, [args.train, args.dev])
    if not begun.fresh():  # what lies here is of other settings or data
        for name in FILES:
            (args.out / name).unlink(missing_ok=True)
        shutil.rmtree(args.out / "checkpoints", ignore_errors=True)
        begun.write()
    pretrain(args, conf)
    done.write()
    print(args.out)


def pretrain(args, conf) -> None:
    import sentencepiece
    import torch
    from safetensors.torch import load_file, save

    from steermoe.bin.decode import device
    from steermoe.encoders.conformer import Conformer, save_conformer
    from steermoe.encoders.whisper import WhisperEncoder
    from steermoe.environment import describe
    from steermoe.data.augment import Augment
    from steermoe.files import atomic_write, write_json
    from steermoe.train.plots import plot_curves
    from steermoe.train.pretrain import CtcAndHint, PretrainDataset, Pretraining, collator, make_units, measure_statistics
    from steermoe.train.trainer import Trainer

    if conf.train_conf.num_threads:
        torch.set_num_threads(conf.train_conf.num_threads)
    torch.manual_seed(conf.train_conf.seed)
    environment = describe()
    write_json(args.out / "environment.json", environment)
    teacher = WhisperEncoder.from_pretrained(conf.teacher) if conf.teacher else None
    teacher_frontend = WhisperEncoder.frontend(conf.teacher) if teacher else None
    train_set = PretrainDataset(args.train, teacher_frontend, Augment(conf.augment_conf, conf.train_conf.seed))
    dev_set = PretrainDataset(args.dev, teacher_frontend)
    with atomic_write(args.out / "units.model", "wb") as stream:
        stream.write(make_units([entry["text"] for entry in train_set.entries], conf.units))
    units = sentencepiece.SentencePieceProcessor(model_file=str(args.out / "units.model"))
    model = Pretraining(Conformer(**vars(conf.conformer_conf)), units.get_piece_size(), teacher).to(device(args.ngpu))

    def export(name: str, step: int) -> None:
        with atomic_write(args.out / "checkpoints" / f"{name}.safetensors", "wb") as stream:
            stream.write(save(model.adapter_state()))

    objective = CtcAndHint(conf.teacher_weight, conf.teacher_steps)
    trainer = Trainer(
        model, objective, collator(units), export, train_set, dev_set, args.out, conf.train_conf, conf.optim_conf
    )
    if not trainer.resume_path.is_file():
        measure_statistics(model, PretrainDataset(args.train, teacher_frontend), conf.train_conf.seed)
    trainer.run()
    plot_curves(trainer.log_path, args.out / "plots")
    model.load_adapter_state(load_file(args.out / "checkpoints" / "best.safetensors"))
    head = {name.removeprefix("ctc."): tensor for name, tensor in model.adapter_state().items() if name.startswith("ctc.")}
    with atomic_write(args.out / "ctc.safetensors", "wb") as stream:
        stream.write(save(head))
    save_conformer(args.out, model.encoder, {"made_by": {"settings": dataclasses.asdict(conf), "environment": environment}})


if __name__ == "__main__":
    run(main)
