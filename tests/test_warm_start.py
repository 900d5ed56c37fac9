"""--init: what a configuration takes over from an adapter, training that starts at its tensors, and what does not agree."""

import shutil
from pathlib import Path

import numpy as np
import pytest
import safetensors.torch
import soundfile
import torch
import yaml

import tiny
from steermoe.bin import dump, prepare_model, prepare_text, train
from steermoe.checkpoint import read_metadata, save_adapter
from steermoe.config import config_from_dict, load_config
from steermoe.encoders.conformer import Conformer, save_conformer
from steermoe.errors import UserError
from steermoe.model import SteerMoE
from steermoe.warm_start import start_at

OWN = {  # what makes this adapter another one than the recipe's own would be
    "steering_conf": {"num_experts": 3},
    "projector": "token",
    "projector_conf": {"frames": "conv", "frames_conf": {"kernel": 2, "dim": 8, "blocks": 1, "reach": 3}},
    "objective": "joint",
    "objective_conf": {"next_token": 0.0, "ctc": 1.0},
    "data_conf": {"prompt": "Repeat: <audio>", "max_seconds": 12.0},
    "augment_conf": {"freq_masks": 1},
    "optim_conf": {"lr": {"projector": 0.5}},
    "train_conf": {"max_steps": 99},
    "decode_conf": {"ctc_weight": 1.0, "beam": 3, "unit": "char", "normalizer": "chinese", "max_batch": 7},
}


@pytest.fixture()
def adapter(tiny_bases, tmp_path) -> Path:
    """The package of an adapter whose every number has been changed."""
    bases = {
        "encoder_conf": {"model": str(tiny_bases / "whisper"), "dtype": "float32", "window": "trim"},
        "llm_conf": {"model": str(tiny_bases / "llm"), "dtype": "float32", "system": "be brief"},
    }
    config = config_from_dict(OWN | bases)
    model = SteerMoE.from_config(config)
    torch.manual_seed(9)
    with torch.no_grad():
        for parameter in (*model.steering.parameters(), *model.projector.parameters()):
            parameter.add_(0.1 * torch.randn_like(parameter))
    save_adapter(tmp_path / "package/adapter.safetensors", model, config, 1, {})
    return tmp_path / "package"


@pytest.fixture()
def recipe(tiny_bases, tmp_path, monkeypatch) -> Path:
    """A folder with data and the file of another adapter; the models in another place, as on another machine."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(torch, "use_deterministic_algorithms", lambda *_, **__: None)  # would outlive this test
    shutil.copytree(tiny_bases, "models")
    tree = {
        "encoder_conf": {"model": "models/whisper", "dtype": "float32", "window": "full30"},
        "llm_conf": {"model": "models/llm", "dtype": "float32"},
        "projector": "stack",
        "projector_conf": {"hidden": 8},
        "data_conf": {"prompt": "write: ", "max_seconds": 20.0},
        "optim_conf": {"lr": {"projector": 1e-3}, "warmup_steps": 0},
        "train_conf": {"max_steps": 4, "valid_steps": 2, "save_steps": 1, "batch_frames": 300, "num_threads": 1, "seed": 5},
        "decode_conf": {"unit": "word", "normalizer": "none", "max_tokens": 8},
    }
    Path("train.yaml").write_text(yaml.safe_dump(tree))
    tiny.make_dataset(tmp_path, [90, 70, 120], name="train")
    tiny.make_dataset(tmp_path, [80], name="dev")
    return tmp_path


def run_training(*words, exp="exp/one"):
    train.main(["--config", "train.yaml", "--train", "train.jsonl", "--dev", "dev.jsonl", "--exp", exp, *map(str, words)])
    return Path(exp) / "checkpoints"


def test_an_adapters_own_settings_are_taken_over_and_the_recipes_stay(recipe, adapter):
    config = load_config("train.yaml", ["--train-conf.max-steps", "7", "--projector-conf.candidates", "3"], init=str(adapter))
    theirs = read_metadata(adapter / "adapter.safetensors")[0]
    assert config.init == str(adapter)
    for key in ("steering", "steering_conf", "projector", "objective", "objective_conf", "augment_conf"):
        assert getattr(config, key) == getattr(theirs, key), key
    assert config.projector_conf == theirs.projector_conf | {"candidates": 3}
    assert config.encoder_conf == {"model": "models/whisper", "dtype": "float32", "window": "trim"}
    assert (config.llm_conf["model"], config.llm_conf["system"]) == ("models/llm", "be brief")
    assert (config.data_conf.prompt, config.data_conf.max_seconds) == ("Repeat: <audio>", 20.0)
    assert (config.optim_conf.lr["projector"], config.train_conf.max_steps, config.train_conf.seed) == (1e-3, 7, 5)
    conf = config.decode_conf
    assert (conf.ctc_weight, conf.beam, conf.unit, conf.normalizer, conf.max_batch) == (1.0, 3, "word", "none", 32)
    assert load_config("train.yaml").init == "" and load_config("train.yaml").projector == "stack"
    (adapter / "config.yaml").write_text("decode_conf: {beam: 9}\n")  # edited since: how it decodes is said there
    assert load_config("train.yaml", [], init=str(adapter)).decode_conf.beam == 9


def test_training_starts_at_its_tensors(recipe, adapter):
    rates = [word for group in ("projector", "steering", "router") for word in (f"--optim-conf.lr.{group}", "0")]
    tensors = safetensors.torch.load_file(adapter / "adapter.safetensors")
    for name in ("best", "last"):
        trained = safetensors.torch.load_file(run_training("--init", adapter, *rates) / f"{name}.safetensors")
        assert trained.keys() == tensors.keys() and all(torch.equal(value, tensors[key]) for key, value in trained.items())


def test_a_deeper_projector_starts_where_the_shallower_one_ended(recipe, adapter):
    """The added block changes nothing before it is trained, and is trained."""
    config = load_config("train.yaml", ["--projector-conf.frames-conf.blocks", "3"], init=str(adapter))
    deep, shallow = SteerMoE.from_config(config), SteerMoE.from_config(load_config("train.yaml", init=str(adapter)))
    start_at(deep, config)
    start_at(shallow, load_config("train.yaml", init=str(adapter)))
    hidden_btd, lens_b = torch.randn(2, 12, 32), torch.tensor([12, 7])
    outputs = [model.projector.frames.eval()(hidden_btd, lens_b, torch.nn.Identity())[0] for model in (deep, shallow)]
    assert torch.equal(*outputs)
    last = run_training("--init", adapter, "--projector-conf.frames-conf.blocks", 3) / "last.safetensors"
    assert all((safetensors.torch.load_file(last)[f"projector.frames.blocks.{n}.mix.weight"] != 0).all() for n in (1, 2))


def test_an_interrupted_training_from_an_adapter_ends_with_the_same_bytes(recipe, adapter):
    whole = run_training("--init", adapter)
    stopped = run_training("--init", adapter, "--train-conf.max-steps", 2, exp="exp/two")
    assert run_training("--init", adapter, exp="exp/two") == stopped
    for name in ("last.safetensors", "best.safetensors"):
        one, other = (safetensors.torch.load_file(folder / name) for folder in (whole, stopped))
        assert all(torch.equal(one[key], other[key]) for key in one)


def test_another_init_is_noticed(recipe, adapter, capsys):
    run_training("--init", adapter)
    run_training("--init", adapter)
    assert "up to date" in capsys.readouterr().out
    shutil.copytree(adapter, "other")
    with pytest.raises(UserError, match="another configuration .*init was .*package, is other"):
        run_training("--init", "other")
    with open(adapter / "adapter.safetensors", "r+b") as file:  # its last number
        file.seek(-4, 2)
        file.write(b"\0\0\0\0")
    with pytest.raises(UserError, match="on other data, or that started at another adapter"):
        run_training("--init", adapter)


@pytest.mark.parametrize("role", ["encoder", "llm"])
def test_other_frozen_models_are_refused_before_training(recipe, adapter, role):
    {"encoder": tiny.make_whisper, "llm": tiny.make_llm}[role](recipe / "other", seed=77)
    words = ["--init", str(adapter), f"--{role}-conf.model", "other"]
    with pytest.raises(UserError, match=f"trained on another {role} than 'other'.*--encoder-model and --llm"):
        prepare_model.main(["--config", "train.yaml", "--exp", "exp/one", *words])


def test_an_adapter_that_does_not_fit_is_refused_with_what_differs(recipe, adapter):
    with pytest.raises(UserError, match=r"steering_conf.num_experts was 3, is 5\); as an option, --init takes"):
        run_training("--init", adapter, "--steering-conf.num-experts", 5)
    tree = yaml.safe_load(Path("train.yaml").read_text())
    Path("train.yaml").write_text(yaml.safe_dump(tree | {"init": str(adapter)}))
    with pytest.raises(UserError, match="projector was token, is stack"):
        run_training()


def test_the_key_alone_takes_the_tensors(recipe, adapter, tiny_model, tiny_config):
    save_adapter(recipe / "same.safetensors", tiny_model, tiny_config, 1, {})
    with torch.no_grad():
        tiny_model.projector.linear.bias.add_(1.0)
    tiny_config.init = "same.safetensors"
    start_at(tiny_model, tiny_config)
    assert torch.equal(tiny_model.projector.linear.bias, safetensors.torch.load_file("same.safetensors")["projector.linear.bias"])


def test_another_kind_of_encoder_or_another_model_of_the_catalog_is_said_at_once(recipe, adapter, tiny_model, tiny_config):
    save_conformer(recipe / "exp/small", Conformer(16, 1, 2), {})
    Path("conformer.yaml").write_text("encoder: conformer\nencoder_conf: {model: exp/small}\n")
    with pytest.raises(UserError, match="trained with encoder: whisper, this configuration has encoder: conformer"):
        load_config("conformer.yaml", init=str(adapter))
    tiny_config.llm_conf["model"] = "SmolLM2-135M-Instruct"
    save_adapter(recipe / "small.safetensors", tiny_model, tiny_config, 1, {})
    with pytest.raises(UserError, match="llm_conf.model: SmolLM2-135M-Instruct, this configuration has Qwen2.5-Coder-1.5B-Instruct"):
        load_config(None, ["--llm-conf.model", "Qwen2.5-Coder-1.5B-Instruct"], init="small.safetensors")


def test_the_recipe_s_data_stays_as_it_is(recipe, adapter, capsys):
    """Experiments from scratch and from an adapter share data.jsonl and its stamp, or each would disturb the other."""
    soundfile.write("a.wav", np.random.default_rng(0).normal(0, 0.1, 9000), 16000)
    files = {"wav.scp": "a-1 a.wav", "text": "a-1 one two", "utt2spk": "a-1 a", "spk2utt": "a a-1"}
    for name, line in files.items():
        (recipe / "data").mkdir(exist_ok=True)
        (recipe / "data" / name).write_text(f"{line}\n")
    words = ["--config", "train.yaml", "--data", "data", "--out"]
    dump.main([*words, "dump"])
    for init in ([], ["--init", str(adapter)]):
        prepare_text.main([*words, "dump/data.jsonl", "--feats", "dump", *init])
    assert capsys.readouterr().out.endswith("dump/data.jsonl: up to date\n")


def test_a_missing_adapter_is_named(recipe):
    with pytest.raises(UserError, match="nowhere: no trained adapter here"):
        load_config("train.yaml", init="nowhere")
