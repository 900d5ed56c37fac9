"""Stage 6: what is in the package, and that it decodes from another place."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
import zipfile
from pathlib import Path

import pytest
import soundfile
import torch
import yaml
from toneme import speak

from steermoe import SteerMoE as FrontDoor
from steermoe import pretrained
from steermoe.bin import pack
from steermoe.checkpoint import find_adapter, load_model, save_adapter
from steermoe.config import DecodeConf, config_from_dict, load_config
from steermoe.encoders.conformer import Conformer, save_conformer
from steermoe.model import SteerMoE

ROOT = Path(__file__).resolve().parents[1]
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
    _, head, text = card.split("---\n", 2)
    assert yaml.safe_load(head)["base_model"] == ["openai/whisper-tiny.en"]  # the LLM is a folder of one's own
    assert text.startswith("\n# whisper: a SteerMoE adapter\n") and "| encoder | whisper-tiny.en | MIT | " in card
    assert f"| LLM | {tiny_bases / 'llm'} | its publisher's | " in card
    assert "- made by: `./run.sh`\n- git abc\n\n|dataset|Err|" in card and "table" not in card and "(RESULTS.md)" in card
    assert "![loss](plots/loss.png)" in card and "not good for" in card and "`please transcribe the audio content into text:`" in card


def test_the_card_of_an_adapter_that_answers_says_how_to_ask(exp, tiny_config):
    tiny_config.decode_conf.unit = "answer"
    tiny_config.save(exp / "config.yaml")
    pack.main(["--exp", str(exp)])
    card = (exp / "package/README.md").read_text()
    assert "steermoe.bin.chat --model" in card and "transcribe" not in card.partition("## How it was made")[0]
    assert "Anything but answering questions like those of its training." in card


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


def test_the_archive_is_the_package_in_one_file(exp, tmp_path, capsys):
    pack.main(["--exp", str(exp)])
    assert capsys.readouterr().out == f"{exp / 'package'}\n"
    with zipfile.ZipFile(exp / "package.zip") as archive:
        inside = {name: archive.read(name) for name in archive.namelist()}
    files = [file for file in (exp / "package").rglob("*") if file.is_file()]
    assert inside == {str(file.relative_to(exp / "package")): file.read_bytes() for file in files}
    pack.main(["--exp", str(exp), "--out", str(tmp_path / "ears.zip")])
    assert (tmp_path / "ears.zip").read_bytes() == (exp / "package.zip").read_bytes() and not (tmp_path / "ears").exists()
    pack.main(["--exp", str(exp), "--out", str(tmp_path / "folder")])
    assert (tmp_path / "folder/README.md").exists() and not (tmp_path / "folder.zip").exists()


def test_another_machine_decodes_with_the_archive_alone(tiny_config, tmp_path, monkeypatch):
    """Another machine: no experiment's folder, another cache, another working directory. The encoder is the recipe's own."""
    recipe, away = tmp_path / "recipe", tmp_path / "away"
    torch.manual_seed(0)
    save_conformer(recipe / "exp/small", Conformer(16, 1, 2), {"made_by": "a test"})
    away.mkdir()
    monkeypatch.chdir(recipe)
    changes = {"encoder": "conformer", "encoder_conf": {"model": "exp/small", "dtype": "float32"}}
    config = config_from_dict(tiny_config.to_dict() | changes)
    model = SteerMoE.from_config(config)
    with torch.no_grad():
        for parameter in model.projector.parameters():
            parameter.normal_()
    save_adapter(recipe / "exp/one/checkpoints/best.safetensors", model, config, 1, {})
    config.decode_conf.max_tokens = 9  # edited after training
    config.save(recipe / "exp/one/config.yaml")
    samples = [speak([1, 2, 3]), speak([4, 5, 6, 7])]
    here = FrontDoor.from_pretrained("exp/one")
    texts = here.transcribe(samples)
    pack.main(["--exp", "exp/one"])
    shutil.move(recipe / "exp/one/package.zip", away / "ears.zip")
    shutil.rmtree(recipe)
    monkeypatch.chdir(away)
    monkeypatch.setenv("STEERMOE_CACHE", str(away / "cache"))
    there = FrontDoor.from_pretrained("ears.zip")
    assert there.transcribe(samples) == texts and any(texts) and there.decode_conf == here.decode_conf != DecodeConf()
    soundfile.write("note.wav", samples[0], 16000, subtype="FLOAT")
    script = "from steermoe.bin.transcribe import main; main(['--model', 'ears.zip', 'note.wav'])"
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, env=environment, check=True)
    assert done.stdout == f"note.wav\t{texts[0]}\n"
    assert {file.name for file in away.iterdir()} == {"ears.zip", "cache", "note.wav"}


def test_a_strangers_config_names_no_code_to_import(exp, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    (exp / "config.yaml").write_text("projector: evil:Projector\ndecode_conf: {beam: 3}\n")
    pack.main(["--exp", str(exp)])
    written = load_config(exp / "package/config.yaml")
    assert (written.projector, written.decode_conf.beam) == ("linear", 3) and not (tmp_path / "ran").exists()
