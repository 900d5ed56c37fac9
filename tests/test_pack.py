"""Stage 6: what is in the package, and that it decodes from another place."""

import torch

from steermoe.bin import pack
from steermoe.checkpoint import load_model, save_adapter
from steermoe.config import config_from_dict
from steermoe.encoders.conformer import Conformer, save_conformer
from steermoe.model import SteerMoE


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
    assert (tmp_path / "package" / "README.md").is_file()
