"""Stage 3: fetches and checks encoder and LLM; a table of parameters and memory."""

from __future__ import annotations

from pathlib import Path

from steermoe.bin.cli import Parser, parse_with_config, run
from steermoe.files import atomic_write
from steermoe.stamp import Stamp


def main(argv=None) -> None:
    parser = Parser(prog="steermoe prepare_model", description=__doc__)
    parser.add_argument("--config", type=Path, help="training configuration")
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder; gets model_info.txt")
    args, config = parse_with_config(parser, argv)
    info = args.exp / "model_info.txt"
    roles = {key: value for key, value in config.to_dict().items() if key.split("_")[0] in ("encoder", "steering", "projector", "llm")}
    stamp = Stamp(args.exp / ".model_info.done", roles)
    if not stamp.fresh([info]):
        from steermoe.model import SteerMoE

        table = parameter_table(SteerMoE.from_config(config))
        with atomic_write(info) as stream:
            stream.write(table)
        stamp.write()
    print(info.read_text(encoding="utf-8"), end="")


def parameter_table(model) -> str:
    """One line a part of the model, read from the live modules: parameters, those trained, type, memory of the weights."""
    rows = [("part", "model", "parameters", "trainable", "dtype", "MiB")]
    sums = [0, 0, 0.0]
    for part in ("encoder", "steering", "projector", "llm"):
        module = getattr(model, part)
        parameters = list(module.parameters())
        count = sum(p.numel() for p in parameters)
        trainable = sum(p.numel() for p in parameters if p.requires_grad)
        mib = sum(p.numel() * p.element_size() for p in parameters) / 2**20
        sums = [sums[0] + count, sums[1] + trainable, sums[2] + mib]
        kinds = "/".join(sorted({str(p.dtype).removeprefix("torch.") for p in parameters})) or "-"
        name = getattr(module, "model", type(module).__name__)
        rows.append((part, Path(name).name, f"{count:,}", f"{trainable:,}", kinds, f"{mib:.1f}"))
    rows.append(("sum", "", f"{sums[0]:,}", f"{sums[1]:,}", "", f"{sums[2]:.1f}"))
    widths = [max(len(row[column]) for row in rows) for column in range(6)]
    lines = ["  ".join(cell.ljust(w) if i < 2 or i == 4 else cell.rjust(w) for i, (cell, w) in enumerate(zip(row, widths))) for row in rows]
    optimizer = sums[1] * 12 / 2**20  # gradient and AdamW's two moments, float32
    lines.append(f"training adds {optimizer:.1f} MiB for gradients and optimiser state, and activations that grow with train_conf.batch_frames")
    lines += [f"{role} SHA-256 {getattr(model, role).fingerprint}" for role in ("encoder", "llm")]
    return "\n".join(line.rstrip() for line in lines) + "\n"


if __name__ == "__main__":
    run(main)
