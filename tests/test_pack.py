"""Stage 6: what is in the package, and that it decodes from another place."""

from pathlib import Path

import pytest
import torch

from steermoe import pretrained
from steermoe.bin import pack
from steermoe.checkpoint import find_adapter, load_model, save_adapter
from steermoe.config import config_from_dict, load_config
from steermoe.encoders.conformer import Conformer, save_conformer
from steermoe.model import SteerMoE

RESULTS = "# whisper\n\n- made by: `./run.sh`\n- git abc\n\n|dataset|Err|\n\n## Model\n\n```\ntable\n```\n"


@pytest.fixture()
def exp(tiny_model, tiny_config, tmp_path) -> Path:
    """An experiment folder after stage 5, with everything that training leaves."""
    folder = tmp_path / "exp/whisper"
    with torch.no_grad():
        for parameter in tiny_model.projector.parameters():
            parameter.normal_()
    tiny_config.encoder_conf["model"] = "whisper-tiny.en"
    save_adapter(folder / "checkpoints/best.safetensors", tiny_model, tiny_config, 12, {"git": "abc"})
    left = ("checkpoints/resume.pt", "checkpoints/last.safetensors", "log/train.jsonl", "log/samples.jsonl", "log/train.log", "plots/loss.png")
    for name in left:
        (folder / name).parent.mkdir(exist_ok=True)
        (folder / name).write_text(name)
    (folder / "RESULTS.md").write_text(RESULTS)
    return folder


def test_a_package_has_all_that_is_published_and_nothing_else(exp):
    pack.main(["--exp", str(exp)])
    found = {str(file.relative_to(exp / "package")) for file in (exp / "package").rglob("*") if file.is_file()}
    kept = {"RESULTS.md", "log/train.jsonl", "log/samples.jsonl", "plots/loss.png"}
    assert found == kept | {"adapter.safetensors", "config.yaml", "README.md"}
    assert all((exp / "package" / name).read_bytes() == (exp / name).read_bytes() for name in kept)
    assert (exp / "package/adapter.safetensors").read_bytes() == (exp / "checkpoints/best.safetensors").read_bytes()


def test_a_decode_conf_edited_after_training_goes_in(exp, tiny_config):
    tiny_config.decode_conf.beam = 7
    tiny_config.save(exp / "config.yaml")
    pack.main(["--exp", str(exp)])
    assert load_config(exp / "package/config.yaml").decode_conf.beam == 7


def test_the_card_says_what_made_it_how_good_it_is_and_what_not(exp, tiny_bases):
    pack.main(["--exp", str(exp)])
    card = (exp / "package/README.md").read_text()
    assert card.startswith("# whisper: a SteerMoE adapter\n") and "| encoder | whisper-tiny.en | MIT | " in card
    assert f"| LLM | {tiny_bases / 'llm'} | its publisher's | " in card
    assert "- made by: `./run.sh`\n- git abc\n\n|dataset|Err|" in card and "table" not in card and "(RESULTS.md)" in card
    assert "![loss](plots/loss.png)" in card and "not good for" in card and "`please transcribe the audio content into text:`" in card


def test_notes_on_a_training_go_in_and_the_card_points_to_them(exp):
    (exp / "TRAINING.md").write_text("two phases")
    pack.main(["--exp", str(exp)])
    assert (exp / "package/TRAINING.md").read_text() == "two phases"
    assert "[TRAINING.md](TRAINING.md)" in (exp / "package/README.md").read_text()


def test_a_card_without_results_says_so(exp):
    (exp / "RESULTS.md").unlink()
    pack.main(["--exp", str(exp)])
    assert "No results: stage 5 had not been run" in (exp / "package/README.md").read_text()


def test_the_word_pretrained_is_the_folder_beside_the_code(exp, tmp_path, monkeypatch, capsys):
    folder = tmp_path / "pretrained/tiny"
    monkeypatch.setattr(pretrained, "FOLDER", folder)
    pack.main(["--exp", str(exp), "--out", "pretrained"])
    assert capsys.readouterr().out == f"{folder}\n" and find_adapter("pretrained").parent == folder


def test_an_encoder_made_by_the_recipe_goes_with_the_adapter(tiny_config, tmp_path, monkeypatch):
    recipe = tmp_path / "recipe"
    torch.manual_seed(0)
    save_conformer(recipe / "exp" / "small", Conformer(16, 1, 2), {"made_by": "a test"})
    monkeypatch.chdir(recipe)
    tree = tiny_config.to_dict() | {"encoder": "conformer", "encoder_conf": {"model": "exp/small", "dtype": "float32"}}
    config = config_from_dict(tree)
    model = SteerMoE.from_config(config)
    save_adapter(recipe / "exp" / "one" / "checkpoints" / "best.safetensors", model, config, 1, {})
    pack.main(["--exp", "exp/one", "--out", str(tmp_path / "package")])
    monkeypatch.chdir(tmp_path)
    (recipe / "exp" / "small" / "config.json").unlink()
    loaded, _ = load_model(tmp_path / "package")
    assert loaded.encoder.fingerprint == model.encoder.fingerprint
    assert "made by this recipe" in (tmp_path / "package" / "README.md").read_text()
