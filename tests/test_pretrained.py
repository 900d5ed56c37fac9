"""The adapter that comes with the code: where it is looked for, who takes it, what is said where there is none."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from steermoe import pretrained
from steermoe.bin import transcribe
from steermoe.checkpoint import find_adapter, save_adapter
from steermoe.errors import UserError
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
