"""Looking inside an adapter: the measures on what is known, the report, and experts that are switched off."""

from __future__ import annotations

import json
import re

import numpy as np
import pytest
import torch

import tiny
from steermoe.analysis.information import information, mutual_information
from steermoe.analysis.measure import CLASSES, aligned, contrast, letter_classes, measure
from steermoe.bin import analyze, decode
from steermoe.checkpoint import save_adapter
from steermoe.config import config_from_dict
from steermoe.data.dataset import AudioTextDataset
from steermoe.errors import UserError
from steermoe.model import SteerMoE


def test_mutual_information_of_what_is_known():
    labels = np.array([0, 1, 2, 3] * 25)
    assert mutual_information(labels, labels) == pytest.approx(2.0)
    assert mutual_information(labels // 2, labels) == pytest.approx(1.0)
    assert mutual_information(np.zeros(100, int), labels) == 0.0
    unknown = np.where(labels == 3, -1, labels)
    assert mutual_information(labels, unknown) == pytest.approx(np.log2(3))
    assert mutual_information(labels, np.full(100, -1)) == 0.0


def test_the_test_knows_chance_from_more():
    draw = np.random.default_rng(1)
    speakers = [0, 1] * 10
    follows = [np.where(draw.random(50) < 0.8, speaker, 1 - speaker) for speaker in speakers]
    found = information(follows, speakers, permutations=99)
    assert found.p == pytest.approx(0.01) and found.bits > 0.2 > found.chance and found.entropy == pytest.approx(1.0)
    # An expert for every utterance, as it likes: the frames agree within an utterance, and say nothing of the speaker.
    stubborn = [np.full(50, draw.integers(4)) for _ in speakers]
    assert information(stubborn, speakers, permutations=99).p > 0.05 and information(stubborn, speakers).chance > 0.02
    letters = [draw.integers(0, 3, 60) for _ in range(8)]
    assert information(letters, letters, permutations=49).p == pytest.approx(0.02)
    assert information([draw.integers(0, 3, 60) for _ in range(8)], letters, permutations=49).p > 0.05


def test_alignment_of_a_hand_drawn_row():
    logprobs = torch.full((8, 4), -9.0)
    for frame, place in enumerate([0, 2, 2, 0, 1, 0, 3, 3]):
        logprobs[frame, place] = 0.0
    assert aligned(logprobs, [1, 0, 2]).tolist() == [-1, 0, 0, -1, 1, -1, 2, 2]
    assert aligned(logprobs, [1, 1, 1, 1, 1]) is None and aligned(logprobs, []) is None
    placed = np.array([-1, 0, 0, -1, 1, -1, -1, -1, -1, -1, -1, -1, 2, -1, 3])
    names = [CLASSES[place] for place in letter_classes(placed, ["s", "a", " ", "7"])]
    assert names == ["fricative"] * 4 + ["vowel"] * 4 + ["pause"] * 6 + ["other"]
    assert [CLASSES[place] for place in letter_classes(np.full(3, -1), ["a"])] == ["pause"] * 3


def test_contrast_falls_with_noise():
    draw = np.random.default_rng(0)
    speech = np.repeat(draw.choice([0.0, 5.0], 40), 5)[:, None] + draw.normal(0, 0.1, (200, 80))
    assert contrast(np.logaddexp(speech, 4.0)) < 0.5 * contrast(speech)


@pytest.fixture()
def config(tiny_config):
    tree = tiny_config.to_dict() | {"projector": "token", "projector_conf": {"units": "bytes", "frames_conf": {"kernel": 1}}}
    tree |= {"objective": "joint", "objective_conf": {}, "decode_conf": {"ctc_weight": 1.0, "min_confidence": 0.0}}
    return config_from_dict(tree)


@pytest.fixture()
def adapter(config, tmp_path):
    """A folder with an adapter whose second layer always takes expert 1."""
    model = SteerMoE.from_config(config).eval()
    with torch.no_grad():
        model.steering.router_bias[1] = torch.tensor([0.0, 50.0, 0.0, 0.0])
        model.steering.experts.mul_(300)
        model.projector.frames.linear.weight.mul_(20)
    save_adapter(tmp_path / "exp" / "adapter.safetensors", model, config, 3, {})
    return tmp_path / "exp"


@pytest.fixture()
def data(tmp_path):
    return tiny.make_dataset(tmp_path, [150, 180, 200, 230])


def test_the_report(adapter, data, tmp_path, capsys):
    speakers = sorted({json.loads(line)["spk"] for line in data.open()})
    (tmp_path / "spk2gender").write_text("".join(f"{spk} {'fm'[at % 2]}\n" for at, spk in enumerate(speakers)))
    out = tmp_path / "inside"
    words = ["--exp", str(adapter), "--data", str(data), "--out", str(out), "--permutations", "9"]
    analyze.main([*words, "--spk2gender", str(tmp_path / "spk2gender")])
    numbers = json.loads((out / "analysis.json").read_text())
    assert np.allclose(np.sum(numbers["share_ln"], 1), 1, atol=1e-4) and numbers["chosen_ln"][1] == [0, 1, 0, 0]
    assert numbers["entropy_l"][1] == pytest.approx(0, abs=1e-5) and numbers["entropy_l"][0] > 0.1
    assert len(numbers["ratio_l"]) == 2 and min(numbers["ratio_l"]) > 0.01 and numbers["made by"].startswith("steermoe analyze --exp")
    assert numbers["informations"]["position"][1]["bits"] == 0.0  # one expert says nothing
    assert {"letter class", "position", "noise level"} <= numbers["informations"].keys()
    assert ("speaker" in numbers["informations"]) == ("gender" in numbers["informations"]) == (len(speakers) > 1)
    page, text = (out / "index.html").read_text(), (out / "RESULTS.md").read_text()
    assert page.count("data:image/png;base64,") == 3 and not re.search(r'(src|href)="(?!data:)', page)
    assert text.splitlines()[-1].startswith("![example]") and "|1|" in capsys.readouterr().out
    assert all((out / f"{name}.png").stat().st_size > 1000 for name in ("usage", "letters", "example"))
    analyze.main([*words, "--max-utts", "2"])
    assert json.loads((out / "analysis.json").read_text())["data"].startswith("2 utterances")


def test_how_much_is_added(config, data):
    model = SteerMoE.from_config(config).eval()
    with torch.no_grad():
        model.steering.scales.copy_(torch.tensor([0.0, 0.5]))
    (found,) = measure(model, config, AudioTextDataset(data), [0])
    assert found.ratio_lt[0].max() == 0 < found.ratio_lt[1].min() and found.chosen_lt.shape == found.ratio_lt.shape == (2, 75)
    assert found.share_ln.sum() == pytest.approx(2 * 75, rel=1e-4) and set(found.letter_t) <= set(range(-1, len(CLASSES)))


@pytest.mark.parametrize(
    "words, message",
    [
        (["--permutations", "0"], "--permutations 0"),
        (["--spk2gender", "gone"], "gone: no such file"),
        (["--spk2gender", "genders"], r"genders:2: 'b x' is not SPEAKER f or SPEAKER m"),
    ],
)
def test_wrong_options(adapter, data, tmp_path, monkeypatch, words, message):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "genders").write_text("a f\nb x\n")
    with pytest.raises(UserError, match=message):
        analyze.main(["--exp", str(adapter), "--data", str(data), "--out", str(tmp_path / "out"), *words])
    assert not (tmp_path / "out").exists()


def test_an_adapter_that_does_not_steer(config, data, tmp_path):
    config = config_from_dict(config.to_dict() | {"steering": "none", "steering_conf": {}})
    save_adapter(tmp_path / "static" / "adapter.safetensors", SteerMoE.from_config(config), config, 3, {})
    with pytest.raises(UserError, match="there are no experts in this adapter"):
        analyze.main(["--exp", str(tmp_path / "static"), "--data", str(data), "--out", str(tmp_path / "out")])
    with pytest.raises(UserError, match="--expert-mask 0:0=0: steering: none has no experts"):
        decode.main(["--exp", str(tmp_path / "static"), "--data", str(data), "--out", str(tmp_path / "out"), "--expert-mask", "0:0=0"])


def decoded(adapter, data, out, *words):
    decode.main(["--exp", str(adapter), "--data", str(data), "--out", str(out), *words])
    return (out / "text").read_text()


def test_experts_are_switched_off_when_decoding(adapter, config, data, tmp_path):
    model = SteerMoE.from_config(config)
    with torch.no_grad():
        model.projector.frames.linear.weight.mul_(20)
        model.steering.experts.zero_()
    save_adapter(tmp_path / "none" / "adapter.safetensors", model, config, 3, {})
    whole, without = decoded(adapter, data, tmp_path / "a"), decoded(tmp_path / "none", data, tmp_path / "b")
    assert whole != without == decoded(adapter, data, tmp_path / "c", "--expert-mask", "*:*=0")
    assert decoded(adapter, data, tmp_path / "a", "--expert-mask", "*:*=0") == without  # another mask is another result
    assert decoded(adapter, data, tmp_path / "d", "--expert-mask", "1:0=0,1:2=0,1:3=0") == whole  # never chosen


def test_masks(config):
    steering = SteerMoE.from_config(config).steering
    before = steering.experts.detach().clone()
    steering.scale_experts("0:1=0, 1:*=-0.5,*:3=2")
    assert torch.equal(steering.experts[0], before[0] * torch.tensor([1.0, 0, 1, 2])[:, None])
    assert torch.equal(steering.experts[1], before[1] * torch.tensor([-0.5, -0.5, -0.5, -1])[:, None])
    for mask, message in [("1=0", "'1=0' is not LAYER:EXPERT=FACTOR"), ("2:0=0", "layers are 0 to 1"), ("0:4=1", "experts 0 to 3"), ("", "''")]:
        with pytest.raises(UserError, match=message):
            steering.scale_experts(mask)
