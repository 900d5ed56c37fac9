"""Training on what the frozen encoder has heard once: the same as with the encoder in every step, and it runs once a version."""

import json

import pytest
import torch

import tiny
from steermoe.bin.train import adapter_trainer, main
from steermoe.config import config_from_dict
from steermoe.data.augment import Augment, AugmentConf
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.errors import UserError
from steermoe.model import SteerMoE
from steermoe.train.states import HeardSet

LENGTHS = [50, 80, 123, 200, 150, 60, 70, 90]
MASKS = AugmentConf(freq_masks=1, time_masks=1, time_width=0.3)


@pytest.fixture()
def model(tiny_config):
    model = SteerMoE.from_config(tiny_config)
    with torch.no_grad():
        model.steering.experts.normal_()
    return model


@pytest.fixture()
def path(tmp_path):
    return tiny.make_dataset(tmp_path, LENGTHS)


def heard_set(path, model, folder, versions=2, seed=1):
    return HeardSet(AudioTextDataset(path, Augment(MASKS, seed)), model, folder, versions)


def counted(model, monkeypatch):
    calls, forward = [], type(model.encoder).forward
    monkeypatch.setattr(type(model.encoder), "forward", lambda self, *args: calls.append(1) or forward(self, *args))
    return calls


def test_what_the_model_hears_in_each_version(path, model, tmp_path):
    data, plain = heard_set(path, model, tmp_path / "heard"), AudioTextDataset(path, Augment(MASKS, 1))
    collate = Collator(model.llm, "x <audio>")
    seen = []
    for epoch, same_as in ((0, 0), (1, 1), (2, 0)):
        data.epoch, plain.epoch = epoch, same_as
        heard, batch = collate([data[0], data[3]]), collate([plain[0], plain[3]])
        states_btd, lens_b = model.hear(heard)
        expected_btd, expected_lens_b = model.hear(batch)
        assert lens_b.tolist() == expected_lens_b.tolist() and states_btd.dtype == expected_btd.dtype
        torch.testing.assert_close(states_btd[1], expected_btd[1])
        torch.testing.assert_close(states_btd[0, : lens_b[0]], expected_btd[0, : lens_b[0]])
        assert torch.equal(heard.text_ids_bs, batch.text_ids_bs) and heard.utts == batch.utts
        seen.append(states_btd)
    assert torch.equal(seen[0], seen[2]) and not torch.equal(seen[0], seen[1])


def test_each_version_is_encoded_once_also_after_a_kill(path, model, tmp_path, monkeypatch):
    calls = counted(model, monkeypatch)
    for _ in range(2):  # the second time as a process that goes on
        data = heard_set(path, model, tmp_path / "heard")
        for epoch in range(4):
            data.epoch = epoch
            first = [data[index].feats_fm for index in range(len(data))]
    assert len(calls) == 2 * len(LENGTHS)
    with open(tmp_path / "heard" / "index.jsonl", "a") as stream:
        stream.write('{"version": 0, "ind')  # killed in a line
    with open(tmp_path / "heard" / "states.bin", "r+b") as stream:
        stream.truncate(stream.seek(0, 2) - 1)  # and the disk had lost the end of the last states
    data = heard_set(path, model, tmp_path / "heard")
    data.epoch = 1
    assert all(torch.equal(data[index].feats_fm, first[index]) for index in range(len(data)))
    assert len(calls) == 2 * len(LENGTHS) + 1


@pytest.mark.parametrize("change", ["data", "seed", "steering"])
def test_other_data_augmentation_or_steering_is_heard_anew(change, path, model, tmp_path, monkeypatch):
    heard_set(path, model, tmp_path / "heard")[0]
    seed = 1
    if change == "data":
        path.write_text("".join(reversed(path.read_text().splitlines(True))))
    elif change == "seed":
        seed = 2
    else:
        with torch.no_grad():
            model.steering.experts += 1
    calls = counted(model, monkeypatch)
    heard_set(path, model, tmp_path / "heard", seed=seed)[0]
    assert len(calls) == 1


def test_training_is_the_same_with_and_without(tiny_config, path, tmp_path):
    dev = AudioTextDataset(tiny.make_dataset(tmp_path, [70, 90], 4, "dev"))
    frozen = {"lr": {"projector": 1e-3, "steering": 0.0, "router": 0.0}}
    config = config_from_dict(tiny_config.to_dict() | {"optim_conf": tiny_config.to_dict()["optim_conf"] | frozen})
    plain, model, logs = AudioTextDataset(path), SteerMoE.from_config(config), []
    before = {name: tensor.clone() for name, tensor in model.steering.state_dict().items()}
    for name in ("plain", "heard"):
        model = SteerMoE.from_config(config)
        data = plain if name == "plain" else HeardSet(plain, model, tmp_path / "states", 1)
        adapter_trainer(model, config, data, dev, tmp_path / name, {"git": "test"}).run()
        logs.append([json.loads(line)["loss"] for line in (tmp_path / name / "log" / "train.jsonl").read_text().splitlines()])
    assert logs[0] == pytest.approx(logs[1], rel=1e-5) and len(logs[0]) > 2
    assert all(torch.equal(tensor, before[name]) for name, tensor in model.steering.state_dict().items())


def test_the_command_keeps_states_while_it_trains_and_no_longer(tiny_config, path, tmp_path):
    tiny.make_dataset(tmp_path, [70, 90], 4, "dev")
    config = tiny_config.to_dict()
    config["optim_conf"] |= {"lr": {"projector": 1e-3, "steering": 0.0, "router": 0.0}}
    config["train_conf"] |= {"heard_versions": 1}
    config_from_dict(config).save(tmp_path / "train.yaml")
    argv = ["--config", tmp_path / "train.yaml", "--train", path, "--dev", path.parent / "dev.jsonl", "--exp", tmp_path / "exp"]
    main(list(map(str, argv)))
    assert (tmp_path / "exp" / "checkpoints" / "last.safetensors").is_file() and not list((tmp_path / "exp").glob("heard*"))


@pytest.mark.parametrize(
    "optim, train, message",
    [
        ({"lr": {"steering": 0.01, "router": 0.0, "projector": 1.0}}, {"heard_versions": 2}, "set optim_conf.lr.steering and"),
        ({}, {"heard_versions": -1}, "train_conf.heard_versions: -1 is below 0"),
    ],
)
def test_what_does_not_go_together(optim, train, message, tiny_config):
    tree = tiny_config.to_dict()
    tree["optim_conf"] |= optim
    tree["train_conf"] |= train
    with pytest.raises(UserError, match=message):
        config_from_dict(tree)
