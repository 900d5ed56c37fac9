"""Stage 6: adapter, configuration, model card, results, log and curves in one folder.

With the frozen models it is all that decoding needs; an encoder that the recipe has made itself goes in too, nothing of the
optimiser does. `--out pretrained` makes it the adapter that comes with the code.
"""

from __future__ import annotations

import shutil
from pathlib import Path

from steermoe.bin.cli import Parser, run
from steermoe.checkpoint import beside, read_metadata
from steermoe.fetch import MADE_HERE, catalog
from steermoe.files import atomic_write
from steermoe.pretrained import adapter_path, find_adapter

# Of the experiment, where they are; TRAINING.md is written by hand, where one command does not tell it all.
FILES = ("config.yaml", "RESULTS.md", "TRAINING.md", "log/train.jsonl", "log/samples.jsonl", "plots/*.png")


def main(argv=None) -> None:
    parser = Parser(prog="steermoe pack", description=" ".join(__doc__.split()))
    parser.add_argument("--exp", type=Path, required=True, help="experiment folder")
    parser.add_argument("--out", type=adapter_path, help="folder to write, or `pretrained`; default EXP/package")
    args = parser.parse_args(argv)
    adapter = find_adapter(args.exp)
    config, metadata = read_metadata(adapter)
    out = args.out or args.exp / "package"
    copy(adapter, out / "adapter.safetensors")
    encoder = config.encoder_conf["model"]
    if encoder.startswith(MADE_HERE):
        for file in ("model.safetensors", "config.json"):
            copy(Path(beside(adapter, encoder)) / file, out / encoder / file)
    config.save(out / "config.yaml")  # the experiment's may have a decode_conf that was edited since training
    for file in (file for pattern in FILES for file in sorted(args.exp.glob(pattern))):
        copy(file, out / file.relative_to(args.exp))
    with atomic_write(out / "README.md") as stream:
        stream.write(model_card(args.exp.absolute().name, out, config, metadata))
    print(out)


def copy(source: Path, target: Path) -> None:
    target.parent.mkdir(parents=True, exist_ok=True)
    with atomic_write(target, "wb") as written, open(source, "rb") as read:
        shutil.copyfileobj(read, written)


def model_card(name: str, package: Path, config, metadata: dict) -> str:
    """README.md of a package whose other files are there already."""
    size = (package / "adapter.safetensors").stat().st_size / 1e6
    parts = [
        f"# {name}: a SteerMoE adapter\n",
        f"Speech in, text out, by two frozen models and {size:.1f} MB trained between them.",
        "It holds no weights of the two; their licences apply to their use.\n",
        "| frozen model | name | licence | SHA-256 of its weights |\n|---|---|---|---|",
        f"| encoder | {config.encoder_conf['model']} | {licence(config.encoder_conf['model'])} | {metadata['encoder_sha256']} |",
        f"| LLM | {config.llm_conf['model']} | {licence(config.llm_conf['model'])} | {metadata['llm_sha256']} |\n",
        "```\npython -m steermoe.bin.transcribe --model THIS_FOLDER FILE.wav\n```\n",
        f"## How it was made, and how well it hears\n\n{results_head(package / 'RESULTS.md')}",
    ]
    if (package / "TRAINING.md").is_file():
        parts.append("Step by step: [TRAINING.md](TRAINING.md).\n")
    if plots := sorted(package.glob("plots/*.png")):
        parts += ["## Training\n", "Every step is in [log/train.jsonl](log/train.jsonl).\n"]
        parts += [f"![{plot.stem}](plots/{plot.name})" for plot in plots]
    parts += [
        "\n## What it is not good for\n",
        "- Speech unlike what it was trained on (above): other languages, other accents, children, telephones and distant microphones,",
        "  noise, music, silence, several people at once. The rates hold for their test sets alone.",
        f"- Anything but writing down what is said: it was trained with one request, `{config.data_conf.prompt.strip()}`.",
        "- Use without a person who checks, wherever a wrong word does harm. It may write fluent text that nobody said.\n",
    ]
    return "\n".join(parts)


def licence(model: str) -> str:
    """What the catalog says, or whom to ask."""
    if model.startswith(MADE_HERE):
        return "made by this recipe of its training data"
    return catalog().get(model, {}).get("licence", "its publisher's")


def results_head(results: Path) -> str:
    """RESULTS.md without its title, up to the tables of parameters and the configuration."""
    if not results.is_file():
        return "No results: stage 5 had not been run when this was packed.\n"
    head = results.read_text(encoding="utf-8").partition("\n## Model\n")[0]
    return head.partition("\n")[2].lstrip("\n") + "\nParameters and the whole configuration: [RESULTS.md](RESULTS.md).\n"


if __name__ == "__main__":
    run(main)
