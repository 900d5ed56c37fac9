"""The adapter that comes with the code: where it is looked for, who takes it, what is said where there is none."""

import ast
import math
import re
from pathlib import Path

import numpy as np
import pytest
import safetensors
import soundfile

from steermoe import pretrained
from steermoe.bin import transcribe
from steermoe.checkpoint import find_adapter, read_metadata, save_adapter
from steermoe.errors import UserError
from steermoe.fetch import catalog
from steermoe.pretrained import adapter_path


@pytest.fixture()
def folder(tmp_path, monkeypatch):
    """An empty place for it."""
    monkeypatch.setattr(pretrained, "FOLDER", tmp_path / "pretrained" / "tiny")
    return pretrained.FOLDER


@pytest.fixture()
def recording(tmp_path):
    soundfile.write(tmp_path / "note.wav", np.random.default_rng(0).normal(0, 0.1, 9000), 16000)
    return str(tmp_path / "note.wav")


def test_the_word_is_the_folder_and_all_else_a_path(folder):
    assert adapter_path("pretrained") == folder and adapter_path("exp/pretrained") == Path("exp/pretrained")
    (folder / "adapter.safetensors").parent.mkdir(parents=True)
    (folder / "adapter.safetensors").touch()
    assert find_adapter("pretrained") == find_adapter(folder) == folder / "adapter.safetensors"


def test_transcribe_uses_it_where_no_model_is_named(folder, recording, tiny_model, tiny_config, capsys):
    save_adapter(folder / "adapter.safetensors", tiny_model, tiny_config, 1, {})
    transcribe.main([recording])
    default = capsys.readouterr().out
    transcribe.main(["--model", str(folder), recording])
    assert default == capsys.readouterr().out and default.startswith(f"{recording}\t")


def test_without_one_the_message_says_what_to_name(folder, recording):
    with pytest.raises(UserError, match="no adapter comes with this copy; name one, such as egs/"):
        transcribe.main([recording])


def test_an_installation_has_it_too():
    setup = (Path(__file__).resolve().parents[1] / "setup.py").read_text()
    patterns = ast.literal_eval(re.search(r"package_data=\{\s*\"steermoe\": (\[.*?\])", setup, re.DOTALL).group(1))
    adapter = (pretrained.FOLDER / "adapter.safetensors").relative_to(Path(pretrained.__file__).parents[1])
    assert any(adapter.match(pattern) for pattern in patterns)


def test_the_one_in_this_checkout_is_whole():
    if not (pretrained.FOLDER / "adapter.safetensors").is_file():
        pytest.skip("no adapter comes with this checkout")
    config = read_metadata(find_adapter("pretrained"))[0]
    assert {config.encoder_conf["model"], config.llm_conf["model"]} <= catalog().keys()
    with safetensors.safe_open(find_adapter("pretrained"), framework="np") as file:
        assert all(name.startswith(("steering.", "projector.")) for name in file.keys())
        assert sum(math.prod(file.get_slice(name).get_shape()) for name in file.keys()) <= 3e6
    for name in ("README.md", "RESULTS.md", "config.yaml", "log/train.jsonl", "plots/loss.png"):
        assert (pretrained.FOLDER / name).stat().st_size, name
    assert "No results" not in (pretrained.FOLDER / "README.md").read_text(encoding="utf-8")
