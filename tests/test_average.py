"""steermoe average: means of adapters that go together, in a folder that decodes; what does not go together is named."""

import json

import pytest
import torch
from safetensors.torch import load_file

from steermoe.api import SteerMoE as Recognizer
from steermoe.bin.average import main
from steermoe.bin.results import whose
from steermoe.checkpoint import load_model, read_metadata, save_adapter
from steermoe.config import config_from_dict
from steermoe.errors import UserError
from steermoe.model import SteerMoE


def save(folder, config, seed):
    torch.manual_seed(seed)
    model = SteerMoE.from_config(config)
    with torch.no_grad():
        for tensor in model.adapter_state().values():
            tensor.normal_()
        model.load_adapter_state({name: torch.randn_like(tensor) for name, tensor in model.adapter_state().items()})
    save_adapter(folder / "checkpoints" / "best.safetensors", model, config, seed, {})
    return folder / "checkpoints" / "best.safetensors"


def test_means_with_the_last_one_s_configuration(tiny_config, tmp_path, capsys):
    files = [save(tmp_path / name, tiny_config, seed) for seed, name in enumerate("ab")]
    files.append(save(tmp_path / "c", config_from_dict(tiny_config.to_dict() | {"init": str(files[0])}), 2))
    config = config_from_dict(tiny_config.to_dict())
    config.decode_conf.beam = 7
    config.save(tmp_path / "c" / "config.yaml")
    main([*map(str, (tmp_path / "a", files[1], tmp_path / "c")), "--out", str(tmp_path / "mean")])
    out = tmp_path / "mean" / "checkpoints" / "best.safetensors"
    assert capsys.readouterr().out == f"{out}\n"
    found, parts = load_file(out), [load_file(file) for file in files]
    assert found.keys() == parts[0].keys()
    for name, tensor in found.items():
        torch.testing.assert_close(tensor, sum(part[name] for part in parts) / 3)
    averaged = read_metadata(out)[1]["averaged"]
    assert [line.split(" ")[0] for line in averaged] == [*map(str, files)] and json.dumps(averaged)
    assert whose(tmp_path / "mean", {"step": 3, "dev_loss": 1.0}) == f"the mean of {files[0]} and {files[1]} and {files[2]}"
    config = load_model(tmp_path / "mean")[1]
    assert (config.projector, config.init) == (tiny_config.projector, "")  # it cannot be trained again from there
    assert Recognizer.from_pretrained(str(tmp_path / "mean")).decode_conf.beam == 7


def test_what_does_not_go_together(tiny_config, tmp_path):
    save(tmp_path / "a", tiny_config, 1)
    other = config_from_dict(tiny_config.to_dict() | {"steering_conf": tiny_config.to_dict()["steering_conf"] | {"num_experts": 3}})
    save(tmp_path / "b", other, 1)
    file = save(tmp_path / "c", tiny_config, 2)
    changed = file.read_bytes().replace(read_metadata(file)[1]["llm_sha256"].encode(), b"0" * 64)
    file.write_bytes(changed)
    for names, message in (("a", "name two or more"), ("ba", "b/.*of another shape than"), ("ca", "c/.*trained on another llm than")):
        with pytest.raises(UserError, match=message):
            main([*(str(tmp_path / name) for name in names), "--out", str(tmp_path / "mean")])
    assert not (tmp_path / "mean").exists()
