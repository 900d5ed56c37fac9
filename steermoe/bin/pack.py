"""Stage 6: adapter, configuration, model card, results, log and curves in one folder, and in one file to hand on.

With the frozen models it is all that decoding needs; an encoder that the recipe has made itself goes in too, nothing of the
optimiser does. `--out pretrained` makes it the adapter that comes with the code.
"""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path

from steermoe.bin.cli import Parser, boolean, run
from steermoe.checkpoint import decode_conf_of, read_metadata
from steermoe.package import complete, copy, write_archive
from steermoe.pretrained import NAME, adapter_path, find_adapter


def main(argv=None) -> None:
    parser = Parser(prog="steermoe pack", description=" ".join(__doc__.split()))
    parser.add_argument("--exp", type=adapter_path, required=True, help="experiment folder")
    parser.add_argument(
        "--out", help="folder to write, FILE.zip, or `pretrained`; default EXP/package, and EXP/package.zip with the same"
    )
    parser.add_argument("--push-to-hub", metavar="USER/NAME", help="also upload it to this repository of the model hub")
    parser.add_argument("--private", type=boolean, default=False, help="whether the repository, if it is made, is yours alone to see")
    args = parser.parse_args(argv)
    origin = find_adapter(args.exp)
    out = adapter_path(NAME) if args.out == NAME else Path(args.out or args.exp / "package")
    archive = out if out.suffix == ".zip" else None if args.out else out.with_suffix(".zip")
    with tempfile.TemporaryDirectory() as scratch:
        folder = Path(scratch) if out == archive else out
        pack(origin, folder, args.exp.absolute().name)
        if archive is not None:
            write_archive(folder, archive)
        if args.push_to_hub:
            from steermoe.hub import upload

            print(upload(folder, args.push_to_hub, args.private), file=sys.stderr)
    print(out)


def pack(origin: Path, out: Path, name: str) -> None:
    config, metadata = read_metadata(origin)
    config.decode_conf = decode_conf_of(origin, config)  # may have been edited since training
    copy(origin, out / "adapter.safetensors")
    complete(out, origin, name, config, metadata)


if __name__ == "__main__":
    run(main)
