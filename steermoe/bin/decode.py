"""Stage 5: decodes a data set with a trained adapter; killed and started again, it goes on where it was.

Leaves OUT/text (Kaldi), OUT/hyp.trn and OUT/ref.trn (raw, for `score`), OUT/decode.json (settings, speed, why answers ended).
One job of many (--job N --nj NJ) decodes its share of the audio; --job 0 joins what the jobs have decoded.
"""

from __future__ import annotations

from pathlib import Path

import yaml

from steermoe.bin.cli import Parser, run
from steermoe.config import config_from_dict, parse_overrides
from steermoe.decode.hypotheses import OUTPUTS, join_journals, open_journal, write_hypotheses
from steermoe.errors import UserError
from steermoe.pretrained import adapter_path, find_adapter
from steermoe.stamp import Stamp


def main(argv=None) -> None:
    parser = Parser(prog="steermoe decode", description=__doc__.split("\n")[0])
    parser.add_argument("--exp", type=adapter_path, required=True, help="experiment folder, package, adapter file or `pretrained`")
    parser.add_argument("--data", type=Path, required=True, help="data.jsonl of stage 2")
    parser.add_argument("--out", type=Path, required=True, help="folder for the hypotheses")
    parser.add_argument("--nj", type=int, default=1, help="number of jobs that share the data set")
    parser.add_argument("--job", type=int, default=0, help="this job, from 1; 0: join what the jobs decoded (and be the job, if --nj 1)")
    parser.add_argument("--engine", choices=("own", "vllm"), default="own", help="who decodes greedily by the LLM alone: vllm is a package")
    parser.add_argument("--expert-mask", default="", help="switch experts off or scale them: LAYER:EXPERT=FACTOR,…, * for all: 1:3=0,2:*=0.5")
    add_model_options(parser)
    parser.epilog = "Keys of decode_conf can be overridden: --decode-conf.beam 4"
    args, overrides = parser.parse_known_args(argv)
    if not 0 <= args.job <= args.nj or args.nj < 1:
        raise UserError(f"--job {args.job} --nj {args.nj}: job 0 to nj, nj from 1 up")
    from steermoe.checkpoint import read_metadata

    adapter = find_adapter(args.exp)
    conf = decode_conf(read_metadata(adapter)[0], args.exp, overrides)
    if args.engine != "own" and (conf.beam != 1 or conf.ctc_weight):
        asked = f"decode_conf.beam {conf.beam}, ctc_weight {conf.ctc_weight:g}"
        raise UserError(f"--engine {args.engine}: decodes greedily by the LLM alone, beam 1 and ctc_weight 0, and not with {asked}")
    settings = {"decode_conf": vars(conf), "dtype": args.dtype, "ngpu": args.ngpu}
    settings |= {"expert_mask": args.expert_mask} if args.expert_mask else {}
    settings |= {"engine": args.engine} if args.engine != "own" else {}
    stamp = Stamp(args.out / ".done", settings, [adapter, args.data])
    if stamp.fresh(args.out / name for name in OUTPUTS):
        print(f"{args.out}/hyp.trn: up to date")
        return
    decode(args, adapter, conf, stamp)


def add_model_options(parser: Parser) -> None:
    parser.add_argument("--encoder-model", help="where the frozen encoder is; default: where training found it")
    parser.add_argument("--llm-model", help="where the frozen LLM is; default: where training found it")
    parser.add_argument("--dtype", choices=("auto", "bfloat16", "float16", "float32"), help="of the frozen models; default: as trained")
    parser.add_argument("--ngpu", type=int, default=0, help="GPUs: 0 or 1")


def decode_conf(config, exp: Path, overrides: list[str]):
    """decode_conf of the experiment, with the command line's overrides."""
    from steermoe.checkpoint import decode_conf_of

    for name, _ in parse_overrides(overrides):
        if name[0] != "decode_conf" or len(name) != 2:
            raise UserError(f"--{'.'.join(name)}: unknown option; decoding takes --decode-conf.KEY, as in --decode-conf.beam 4")
    config.decode_conf = decode_conf_of(find_adapter(exp), config)
    tree = config.to_dict()
    for (_, key), value in parse_overrides(overrides):
        tree["decode_conf"][key] = value
    return config_from_dict(yaml.safe_load(yaml.safe_dump(tree)), "--decode-conf").decode_conf


def decode(args, adapter: Path, conf, stamp: Stamp) -> None:
    from steermoe.checkpoint import load_model
    from steermoe.data.dataset import AudioTextDataset
    from steermoe.decode.decoder import decode_dataset

    data = AudioTextDataset(args.data)
    if args.job or args.nj == 1:
        job = args.job or 1
        journal = open_journal(args.out, stamp, job, args.nj)
        model, config = load_model(adapter, device(args.ngpu), args.encoder_model, args.llm_model, args.dtype)
        if args.expert_mask:
            if not hasattr(model.steering, "scale_experts"):
                raise UserError(f"--expert-mask {args.expert_mask}: steering: {config.steering} has no experts")
            model.steering.scale_experts(args.expert_mask)
        engine = None
        if args.engine == "vllm":
            from steermoe.decode.vllm_engine import VllmEngine

            engine = VllmEngine(model.llm)
        decode_dataset(model, data, config.data_conf.prompt, conf, journal, job, args.nj, engine)
    if args.job == 0:
        write_hypotheses(args.out, data.entries, join_journals(args.out, stamp, args.nj, len(data)), vars(conf), stamp)


def device(ngpu: int) -> str:
    """"cuda" or "cpu". UserError if a GPU is asked for that torch cannot use."""
    import torch

    if ngpu not in (0, 1):
        raise UserError(f"--ngpu {ngpu}: 0 (the CPU) or 1")
    if ngpu > 0 and not torch.cuda.is_available():
        raise UserError(f"--ngpu {ngpu}: no GPU that torch can use on this machine; --ngpu 0 runs on the CPU")
    return "cuda" if ngpu > 0 else "cpu"


if __name__ == "__main__":
    run(main)
