"""Stage 6: adapter, configuration and model card in one folder; with the frozen models it is all that decoding needs. An encoder
that the recipe has made itself goes in too.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from steermoe.bin.cli import Parser, run
from steermoe.checkpoint import beside, find_adapter, read_metadata
from steermoe.fetch import MADE_HERE
from steermoe.files import atomic_write


def main(argv=None) -> None:
    parser = Parser(prog="steermoe pack", description=" ".join(__doc__.split()))
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder")
    parser.add_argument("--out", type=Path, help="folder to write; default EXP/package")
    args = parser.parse_args(argv)
    adapter = find_adapter(args.exp)
    config, metadata = read_metadata(adapter)
    out = args.out or args.exp / "package"
    out.mkdir(parents=True, exist_ok=True)
    copy(adapter, out / "adapter.safetensors")
    encoder = config.encoder_conf["model"]
    if encoder.startswith(MADE_HERE):
        for file in ("model.safetensors", "config.json"):
            copy(Path(beside(adapter, encoder)) / file, out / encoder / file)
    config.save(out / "config.yaml")
    with atomic_write(out / "README.md") as stream:
        stream.write(model_card(args.exp, config, metadata))
    print(out)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target, "wb") as written, open(source, "rb") as read:
        shutil.copyfileobj(read, written)


def model_card(exp: Path, config, metadata: dict) -> str:
    results = exp / "RESULTS.md"
    return "\n".join(
        [
            f"# {exp.name}: a SteerMoE adapter\n",
            "| frozen model | name | SHA-256 of its weights |",
            "|---|---|---|",
            f"| encoder | {config.encoder_conf['model']} | {metadata['encoder_sha256']} |",
            f"| LLM | {config.llm_conf['model']} | {metadata['llm_sha256']} |",
            "",
            "The licences of the two frozen models apply to their use; the adapter holds none of their weights.\n",
            "```\npython -m steermoe.bin.transcribe --model THIS_FOLDER FILE.wav\n```\n",
            results.read_text(encoding="utf-8") if results.is_file() else "No results: stage 5 had not been run when this was packed.\n",
        ]
    )


if __name__ == "__main__":
    run(main)
