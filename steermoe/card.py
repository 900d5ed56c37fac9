"""README.md of a package: what the adapter is, what made it, how well it hears, the licences of its frozen models."""

from __future__ import annotations

import re
from pathlib import Path

import yaml

from steermoe.config import Config
from steermoe.fetch import MADE_HERE, catalog


def model_card(name: str, package: Path, config: Config, metadata: dict) -> str:
    """The text, from the other files of the package. metadata: of the adapter, with the SHA-256 of both frozen models."""
    size = (package / "adapter.safetensors").stat().st_size / 1e6
    answers = config.decode_conf.unit == "answer"
    use = "chat --model FOLDER_OR_HUB_ID '@FILE.wav QUESTION'" if answers else "transcribe --model FOLDER_OR_HUB_ID FILE.wav"
    request = f"writing down what is said: it was trained with one request, `{config.data_conf.prompt.strip()}`"
    what = "Sound and a question in, an answer" if answers else "Speech in, text"
    parts = [
        front_matter(config),
        f"# {name}: a SteerMoE adapter\n",
        f"{what} out, by two frozen models and {size:.1f} MB trained between them.",
        "It holds no weights of the two; their licences apply to their use.\n",
        "| frozen model | name | licence | SHA-256 of its weights |\n|---|---|---|---|",
        f"| encoder | {config.encoder_conf['model']} | {licence(config.encoder_conf['model'])} | {metadata['encoder_sha256']} |",
        f"| LLM | {config.llm_conf['model']} | {licence(config.llm_conf['model'])} | {metadata['llm_sha256']} |\n",
        f"```\npython -m steermoe.bin.{use}\n```\n",
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
        f"- Anything but {'answering questions like those of its training' if answers else request}.",
        "- Use without a person who checks, wherever a wrong word does harm. It may write fluent text that nobody said.\n",
    ]
    return "\n".join(parts)


def front_matter(config: Config) -> str:
    """What a model hub reads. It names no licence of the adapter: that is for who publishes it to choose."""
    bases = [hub_id(conf["model"]) for conf in (config.encoder_conf, config.llm_conf)]
    tree = {
        "library_name": "steermoe",
        "pipeline_tag": "audio-text-to-text" if config.decode_conf.unit == "answer" else "automatic-speech-recognition",
        "tags": ["steermoe", "speech"],
        "base_model": [base for base in bases if base],
    }
    return f"---\n{yaml.safe_dump({key: value for key, value in tree.items() if value}, sort_keys=False)}---\n"


def hub_id(model: str) -> str:
    """Of a frozen model: the catalog's, or the name itself where it has the form of one; "" for a folder of one's own."""
    name = catalog().get(model, {}).get("hub", model)
    form = re.fullmatch(r"[\w-][\w.-]*/[\w.-]+", name)
    return name if form and not name.startswith(MADE_HERE) and not Path(name).exists() else ""


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
