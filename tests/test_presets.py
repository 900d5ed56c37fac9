"""Presets: the paper's settings over any recipe's configuration, and the variant of the authors' code."""

import re
from pathlib import Path

import pytest
import yaml

from steermoe.bin import fetch as fetch_verb
from steermoe.bin.cli import Parser, parse_with_config
from steermoe.config import PRESETS, load_config
from steermoe.errors import UserError

ROOT = Path(__file__).resolve().parents[1]
NAMES = ["C3B", "C7B", "W7B"]
RECIPES = sorted((ROOT / "egs").glob("*/conf/train_whisper.yaml"))


def test_the_presets_are_these():
    assert sorted(file.stem for file in PRESETS.glob("*.yaml")) == NAMES
    assert [file.stem for file in (PRESETS / "variants").glob("*.yaml")] == ["authors_code"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("recipe", RECIPES, ids=[path.parts[-3] for path in RECIPES])
def test_a_preset_over_a_recipe(name, recipe):
    """Models, steering and training are the preset's; prompt and scoring, which belong to the corpus, the recipe's."""
    config, alone = load_config(recipe, preset=name), load_config(recipe)
    assert config.data_conf.prompt == alone.data_conf.prompt
    assert (config.decode_conf.unit, config.decode_conf.normalizer) == (alone.decode_conf.unit, alone.decode_conf.normalizer)
    assert config.steering_conf["num_experts"] == 8 and config.steering_conf["scale"] == 0.1
    assert config.optim_conf.lr == {"projector": 1e-4, "steering": 1e-2, "router": 1e-3}
    assert (config.train_conf.max_batch, config.train_conf.batch_frames) == (4, 12000)
    assert (config.data_conf.max_seconds, config.data_conf.max_tokens) == (30.0, 448)
    assert config.llm_conf["chat"] is False and config.llm_conf["system"] is None  # nothing of the recipe's own llm_conf
    assert config.augment_conf == type(config.augment_conf)()
    conformer = name.startswith("C")
    assert config.encoder == ("conformer" if conformer else "whisper")
    assert config.encoder_conf.get("window") == (None if conformer else "full30")
    pooling = (config.projector_conf["pool"], config.projector_conf["kernel"], config.projector_conf["place"])
    assert pooling == ("avg", 2 if conformer else 4, "after_norm")
    assert name[1:] in config.llm_conf["model"]


@pytest.mark.parametrize("name", NAMES)
def test_the_authors_codes_variant(name):
    paper, code = (load_config(RECIPES[0], preset=name, variant=variant) for variant in ("paper", "authors_code"))
    assert code.projector_conf == paper.projector_conf | {"pool": "max", "place": "before_norm"}
    assert set(code.optim_conf.lr.values()) == {5e-5}
    assert (code.encoder_conf, code.llm_conf, code.train_conf) == (paper.encoder_conf, paper.llm_conf, paper.train_conf)


def test_the_command_line_comes_last_and_the_augmentation_of_a_recipe_is_off(tmp_path):
    path = tmp_path / "train.yaml"
    path.write_text("augment_conf: {speed: [0.9, 1.1]}\nllm_conf: {system: be brief}\noptim_conf: {weight_decay: 0.5}\n")
    config = load_config(path, ["--llm-conf.model", "some/LLM", "--optim-conf.lr.router", "2e-3"], "W7B")
    assert config.llm_conf["model"] == "some/LLM" and config.llm_conf["system"] is None
    assert config.optim_conf.lr["router"] == 2e-3 and config.optim_conf.lr["steering"] == 1e-2
    assert config.augment_conf.speed == [] and config.optim_conf.weight_decay == 0.5  # what the paper does not name stays


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--preset", "W7b"], "--preset W7b: .*did you mean 'W7B'"),
        (["--preset", "../sizes"], "none of this name"),
        (["--preset", "W7B", "--variant", "author_code"], "did you mean 'authors_code'"),
        (["--variant", "authors_code"], "give --preset too"),
        (["--preset", "C3B", "--encoder-conf.window", "trim"], "with --preset C3B: unknown key encoder_conf.window"),
    ],
)
def test_names_that_are_none(words, message):
    with pytest.raises(UserError, match=message):
        _parse(words)


def _parse(words):
    parser = Parser(prog="x")
    parser.add_argument("--config")
    return parse_with_config(parser, words)


def test_every_verb_with_a_configuration_takes_them():
    args, config = _parse(["--preset", "C7B", "--variant", "authors_code", "--train-conf.seed", "4"])
    assert (config.encoder, config.train_conf.seed, config.projector_conf["pool"]) == ("conformer", 4, "max")


def test_fetch_takes_the_presets_models(monkeypatch, capsys):
    monkeypatch.setattr(fetch_verb, "find_model", lambda name, kind: f"/{kind}")
    fetch_verb.main(["--preset", "C3B", "--llm-conf.model", "mine"])
    assert capsys.readouterr().out == "FireRedTeam/FireRedASR-AED-L\t/encoder\nmine\t/llm\n"
    fetch_verb.main(["--config", str(RECIPES[0]), "--preset", "W7B"])
    assert capsys.readouterr().out == "openai/whisper-large-v3\t/encoder\nQwen/Qwen2.5-7B-Instruct\t/llm\n"


def test_the_files_are_installed_with_the_package():
    """Every YAML file of the package is named by setup.py's package_data."""
    patterns = re.search(r'package_data=\{\s*"steermoe": (\[.*?\])', (ROOT / "setup.py").read_text(), re.DOTALL).group(1)
    named = {file for pattern in yaml.safe_load(patterns) for file in (ROOT / "steermoe").glob(pattern) if file.suffix == ".yaml"}
    assert named == set((ROOT / "steermoe").rglob("*.yaml"))
