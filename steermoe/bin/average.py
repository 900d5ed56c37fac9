"""Averages adapters of one shape, as ESPnet does the checkpoints of a training: often better than each of them.

For training that began where another had ended, too: start and end of it averaged forget less. The result is an experiment folder, to be
decoded, scored and packed like a trained one; its configuration is that of the last adapter.
"""

from __future__ import annotations

from pathlib import Path

from steermoe.bin.cli import Parser, run
from steermoe.checkpoint import decode_conf_of, read_metadata, write_adapter
from steermoe.errors import UserError
from steermoe.files import sha256_file
from steermoe.pretrained import find_adapter


def main(argv=None) -> None:
    parser = Parser(prog="steermoe average", description=" ".join(__doc__.split()))
    parser.add_argument("adapters", nargs="+", metavar="ADAPTER", help="experiment folders, packages or adapter files, two or more")
    parser.add_argument("--out", type=Path, required=True, help="experiment folder to write")
    args = parser.parse_args(argv)
    print(average([find_adapter(adapter) for adapter in args.adapters], args.out))


def average(paths: list[Path], out: Path) -> Path:
    """The adapter that is written: the float32 means of all tensors. UserError if there are not two, or they do not go together."""
    from safetensors.torch import load_file

    if len(paths) < 2:
        raise UserError(f"{paths[0]}: one adapter is its own average; name two or more")
    *others, last = paths
    config, metadata = read_metadata(last)
    tensors = load_file(last)
    for path in others:
        theirs = read_metadata(path)[1]
        for role in ("encoder", "llm"):
            if theirs[f"{role}_sha256"] != metadata[f"{role}_sha256"]:
                raise UserError(f"{path}: trained on another {role} than {last}; only adapters of the same frozen models can be averaged")
        added = load_file(path)
        if {name: tensor.shape for name, tensor in added.items()} != {name: tensor.shape for name, tensor in tensors.items()}:
            raise UserError(f"{path}: of another shape than {last}; only adapters of one steering and one projector can be averaged")
        tensors = {name: tensor + added[name] for name, tensor in tensors.items()}
    tensors = {name: tensor / len(paths) for name, tensor in tensors.items()}
    config.init, config.decode_conf = "", decode_conf_of(last, config)
    metadata |= {"config": config.to_dict(), "averaged": [f"{path} {sha256_file(path)}" for path in paths]}
    adapter = out / "checkpoints" / "best.safetensors"
    write_adapter(adapter, tensors, metadata)
    config.save(out / "config.yaml")
    return adapter


if __name__ == "__main__":
    run(main)
