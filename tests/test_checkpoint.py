"""Adapter files: small, self-describing, bound to their frozen models."""

import shutil

import pytest
import safetensors.torch
import torch

import tiny
from steermoe.checkpoint import find_adapter, load_model, read_metadata, save_adapter
from steermoe.encoders.conformer import Conformer, save_conformer
from steermoe.errors import UserError
from steermoe.model import SteerMoE


@pytest.fixture()
def saved(tiny_model, tiny_config, tmp_path):
    with torch.no_grad():
        for parameter in (*tiny_model.steering.parameters(), *tiny_model.projector.parameters()):
            parameter.normal_()
    path = tmp_path / "exp" / "checkpoints" / "best.safetensors"
    save_adapter(path, tiny_model, tiny_config, 12, {"git": "abc"})
    return path


def test_saved_and_loaded_it_is_the_same_model(saved, tiny_model, tiny_config):
    loaded, config = load_model(saved.parent.parent)
    assert config == tiny_config
    one, other = tiny_model.adapter_state(), loaded.adapter_state()
    assert one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def test_it_holds_the_adapter_and_nothing_else(saved, tiny_model):
    names = set(safetensors.torch.load_file(saved))
    assert names == {f"steering.{n}" for n in ("experts", "router_weight", "router_bias", "scales")} | {
        "projector.linear.weight",
        "projector.linear.bias",
    }
    metadata = read_metadata(saved)[1]
    assert metadata["encoder_sha256"] == tiny_model.encoder.fingerprint and metadata["llm_sha256"] == tiny_model.llm.fingerprint
    assert metadata["step"] == 12 and len(metadata["llm_sha256"]) == 64


@pytest.mark.parametrize("role", ["encoder", "llm"])
def test_another_base_is_refused(saved, tmp_path, role):
    {"encoder": tiny.make_whisper, "llm": tiny.make_llm}[role](tmp_path / "other", seed=77)
    with pytest.raises(UserError, match=f"another {role} .*--{role}-model DIR"):
        load_model(saved, **{f"{role}_model": str(tmp_path / "other")})


def test_the_same_base_in_another_place_is_taken(saved, tmp_path):
    tiny.make_whisper(tmp_path / "moved")
    load_model(saved, encoder_model=str(tmp_path / "moved"))


def test_an_encoder_that_the_recipe_made_is_found_from_anywhere(tiny_config, tmp_path, monkeypatch):
    """It is named exp/NAME, as seen from the recipe's folder; a folder of that name elsewhere is another one."""
    recipe, elsewhere = tmp_path / "mini", tmp_path / "elsewhere"
    torch.manual_seed(5)
    for folder in (elsewhere, recipe):
        save_conformer(folder / "exp/small_ctc", Conformer(16, 2, 2, kernel=5), {})
    monkeypatch.chdir(recipe)
    tiny_config.encoder, tiny_config.encoder_conf = "conformer", {"model": "exp/small_ctc", "dtype": "float32"}
    model = SteerMoE.from_config(tiny_config)
    adapter = recipe / "exp/conformer/package/adapter.safetensors"
    save_adapter(adapter, model, tiny_config, 1, {})
    assert load_model("exp/conformer/package")[0].encoder.fingerprint == model.encoder.fingerprint
    monkeypatch.chdir(elsewhere)
    for place in (adapter, "../mini/exp/conformer/package"):
        assert load_model(place)[0].encoder.fingerprint == model.encoder.fingerprint
    monkeypatch.chdir(tmp_path)
    shutil.copy(adapter, tmp_path / "alone.safetensors")
    with pytest.raises(UserError, match="exp/small_ctc: not made yet, or not in this folder"):
        load_model("alone.safetensors")
    load_model("alone.safetensors", encoder_model="mini/exp/small_ctc")
    with pytest.raises(UserError, match="another encoder"):
        load_model("alone.safetensors", encoder_model="elsewhere/exp/small_ctc")


def test_a_truncated_file_is_named(saved):
    saved.write_bytes(saved.read_bytes()[:-100])
    with pytest.raises(UserError, match="best.safetensors: not a readable safetensors file"):
        load_model(saved)


def test_another_safetensors_file_is_refused(tmp_path):
    safetensors.torch.save_file({"x": torch.zeros(1)}, tmp_path / "x.safetensors")
    with pytest.raises(UserError, match="not an adapter"):
        load_model(tmp_path / "x.safetensors")


def test_a_strangers_file_chooses_no_python_modules(saved, tiny_config, tiny_model, tmp_path, monkeypatch):
    (tmp_path / "evil.py").write_text(f"open({str(tmp_path / 'ran')!r}, 'w')\n")
    monkeypatch.syspath_prepend(tmp_path)
    tiny_config.projector = "evil:Projector"
    save_adapter(saved, tiny_model, tiny_config, 1, {})
    with pytest.raises(UserError, match="outside this toolkit.*STEERMOE_ALLOW_CODE"):
        load_model(saved)
    assert not (tmp_path / "ran").exists()


def test_whoever_loads_it_decodes_as_its_folder_says_today(tiny_model, tiny_config, tmp_path):
    save_adapter(tmp_path / "exp/checkpoints/best.safetensors", tiny_model, tiny_config, 7, {})
    tiny_config.decode_conf.beam = 3
    tiny_config.save(tmp_path / "exp/config.yaml")
    assert load_model(tmp_path / "exp")[1].decode_conf.beam == 3


def test_a_folder_without_adapter(tmp_path):
    with pytest.raises(UserError, match="no trained adapter.*--stage 4"):
        find_adapter(tmp_path)


def test_tensors_that_do_not_fit_are_refused(saved):
    with safetensors.safe_open(saved, "pt") as file:
        metadata = file.metadata()
    tensors = safetensors.torch.load_file(saved)
    tensors["projector.linear.bias"] = torch.zeros(3)
    safetensors.torch.save_file(tensors, saved, metadata)
    with pytest.raises(UserError, match="do not fit"):
        load_model(saved)
