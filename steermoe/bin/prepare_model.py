"""Stage 3: fetches and checks encoder and LLM; a table of parameters and memory. --dry-run true: the table alone, nothing fetched."""

from __future__ import annotations

from pathlib import Path

from steermoe.bin.cli import Parser, boolean, parse_with_config, run
from steermoe.errors import UserError
from steermoe.files import atomic_write
from steermoe.pretrained import init_files
from steermoe.stamp import Stamp, made_here

SHARES = {"experts": "vectors"}  # the paper's name where a parameter's own is another


def main(argv=None) -> None:
    parser = Parser(prog="steermoe prepare_model", description=__doc__)
    parser.add_argument("--config", type=Path, help="training configuration")
    parser.add_argument("--exp", type=Path, help="experiment folder; gets model_info.txt")
    parser.add_argument("--dry-run", type=boolean, default=False, help="print the table from the models' sizes alone, and stop")
    args, config = parse_with_config(parser, argv)
    if args.dry_run:
        from steermoe.shapes import meta_model

        model = meta_model(config)
        print(parameter_table(model) + memory_lines(model, config), end="")
        return
    if args.exp is None:
        raise UserError("--exp DIR is needed, as in --exp exp/whisper; --dry-run true needs none")
    info = args.exp / "model_info.txt"
    inputs = [*made_here(config.encoder_conf["model"]), *init_files(config.init)]
    stamp = Stamp(args.exp / ".model_info.done", config.to_dict(), inputs)
    if not stamp.fresh([info]):
        from steermoe.model import SteerMoE
        from steermoe.shapes import meta_model
        from steermoe.warm_start import start_at

        model = SteerMoE.from_config(config)
        start_at(model, config)  # an adapter that does not fit is known before training
        table = parameter_table(model)
        hashes = "".join(f"{role} SHA-256 {getattr(model, role).fingerprint}\n" for role in ("encoder", "llm"))
        table += memory_lines(meta_model(config, model.encoder), config) + hashes
        with atomic_write(info) as stream:
            stream.write(table)
        stamp.write()
    print(info.read_text(encoding="utf-8"), end="")


def parameter_table(model) -> str:
    """One line a part of the model, read from its modules: parameters, those trained, type, memory of the weights."""
    from steermoe.memory import module_size

    rows = [("part", "model", "parameters", "trainable", "dtype", "MiB")]
    sums = [0, 0, 0]
    for part in ("encoder", "steering", "projector", "llm"):
        module = getattr(model, part)
        count, size = module_size(module)
        trainable = sum(p.numel() for p in module.parameters() if p.requires_grad)
        sums = [sums[0] + count, sums[1] + trainable, sums[2] + size]
        quantization = getattr(module, "quantization", "none")
        kinds = {str(p.dtype).removeprefix("torch.") for p in module.parameters() if p.is_floating_point()}
        kinds |= {quantization} - {"none"}
        name = getattr(module, "model", type(module).__name__)
        rows.append((part, Path(name).name, f"{count:,}", f"{trainable:,}", "/".join(sorted(kinds)) or "-", f"{size / 2**20:.1f}"))
        if part == "steering":
            rows += [(f"  {share}", "", f"{count:,}", f"{count:,}", "", "") for share, count in shares(module).items()]
    rows.append(("sum", "", f"{sums[0]:,}", f"{sums[1]:,}", "", f"{sums[2] / 2**20:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join(cell.ljust(w) if i < 2 or i == 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    return "\n".join(line.rstrip() for line in lines) + "\n"


def shares(steering) -> dict[str, int]:
    """Trained parameters of the steering by what they are: {"vectors": …, "router": …, "scales": …}."""
    counts: dict[str, int] = {}
    for name, parameter in steering.named_parameters():
        kind = name.replace(".", "_").split("_")[0]
        kind = SHARES.get(kind, kind)
        counts[kind] = counts.get(kind, 0) + parameter.numel()
    return counts


def memory_lines(model, config) -> str:
    """What training and decoding take, of a model on the meta device. The arithmetic: steermoe.memory."""
    from steermoe.memory import estimate

    try:
        needed = estimate(model, config)
    except (RuntimeError, TypeError):  # something needs its tensors' contents, as CTC does
        parts = f"{config.encoder} + {config.projector} + {config.llm} with the objective {config.objective}"
        return f"memory of training and decoding: not known in advance, {parts} cannot be run without weights\n"
    seconds = f"{config.data_conf.max_seconds:g} s"
    training = needed.weights + needed.optimizer + needed.train_activations
    decoding = needed.weights + needed.decode_activations
    return (
        f"training:  {gib(training)} = weights {gib(needed.weights)} + gradients and AdamW {gib(needed.optimizer)} + activations "
        f"{gib(needed.train_activations)} (batch of {needed.train_batch} x {seconds})\n"
        f"decoding:  {gib(decoding)} = weights {gib(needed.weights)} + activations and KV cache {gib(needed.decode_activations)} "
        f"(batch of {needed.decode_batch} x {seconds}, beam {config.decode_conf.beam})\n"
        "           and about 1 GiB for the libraries, and a tenth of the activations for fragmentation\n"
    )


def gib(size: int) -> str:
    return f"{size / 2**30:.2f} GiB"


if __name__ == "__main__":
    run(main)
