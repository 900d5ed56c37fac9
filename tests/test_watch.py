"""What a training shows of itself: samples as the LLM sees them, gates over real frames only, always the same utterances."""

import math

import pytest
import torch

import tiny
from steermoe.config import DecodeConf, config_from_dict
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.decode.decoder import decode_batch
from steermoe.model import SteerMoE
from steermoe.train.watch import MAX_TOKENS, WATCHED, AdapterWatch, gate_totals


@pytest.fixture()
def data(tmp_path):
    return AudioTextDataset(tiny.make_dataset(tmp_path, [80, 123, 80, 123, 80, 123, 80]))


def changed(config, **keys):
    return config_from_dict(config.to_dict() | keys)


def test_samples(tiny_config, tiny_model, data):
    samples = AdapterWatch(tiny_model, data, "hear: ", tiny_config.decode_conf)()[1]
    entries = [data.entries[index] for index in (0, 2, 4, 6)]
    assert [(s["utt"], s["label"]) for s in samples] == [(entry["utt"], entry["text"]) for entry in entries]
    assert samples[0].keys() == {"utt", "prompt", "label", "hyp", "ended"}
    assert samples[0]["prompt"] == "<|im_start|>user\n<audio>hear: <|im_end|>\n<|im_start|>assistant\n"
    batch = Collator(tiny_model.llm, "hear: ", answers=False)([data[index] for index in (0, 2, 4, 6)])
    found = decode_batch(tiny_model, batch, [entry["duration"] for entry in entries], tiny_config.decode_conf)
    assert [s["hyp"] for s in samples] == [tiny_model.llm.decode(h.tokens).strip() for h in found]


def test_an_utterances_own_prompt(tiny_config, tiny_model, data):
    own = data.path.read_text().replace("{", '{"prompt": "what is in <audio> here?", ', 1)
    data.path.write_text(own)
    first = AdapterWatch(tiny_model, AudioTextDataset(data.path), "x", tiny_config.decode_conf)()[1][0]
    assert "user\nwhat is in <audio> here?<|im_end|>" in first["prompt"]


def test_greedy_and_short_whatever_decode_conf_says(tiny_config, tiny_model, data):
    conf = tiny_config.decode_conf
    conf.beam, conf.max_tokens, conf.ctc_weight = 4, 448, 0.3
    watched = AdapterWatch(tiny_model, data, "x", conf)
    assert (watched.conf.beam, watched.conf.max_tokens, watched.conf.ctc_weight) == (1, MAX_TOKENS, 0.0) and conf.beam == 4
    watched()


def test_what_ctc_alone_reads(tiny_config, data):
    config = changed(tiny_config, projector="token", projector_conf={"frames_conf": {"kernel": 1}})
    model = SteerMoE.from_config(config).eval()
    with torch.no_grad():
        model.projector.frames.linear.weight.mul_(20)
    assert any(sample["ctc"] for sample in AdapterWatch(model, data, "x", config.decode_conf)()[1])
    with torch.no_grad():
        model.projector.blank_bias.fill_(1e4)
    assert [sample["ctc"] for sample in AdapterWatch(model, data, "x", config.decode_conf)()[1]] == [""] * 4


def test_decoding_by_ctc_alone_does_not_run_the_llm(tiny_config, data, monkeypatch):
    config = changed(tiny_config, projector="token", projector_conf={"frames_conf": {"kernel": 1}}, decode_conf={"ctc_weight": 1.0})
    model = SteerMoE.from_config(config).eval()
    with torch.no_grad():
        model.projector.frames.linear.weight.mul_(20)
    beside = AdapterWatch(model, data, "x", DecodeConf())()[1]
    monkeypatch.setattr(model.llm, "hidden", None)
    alone = AdapterWatch(model, data, "x", config.decode_conf)()[1]
    assert [sample["hyp"] for sample in alone] == [sample["ctc"] for sample in beside] != [""] * 4


def test_the_watched_are_spread_over_the_shorter_half_of_the_dev_set(tiny_config, tiny_model, tmp_path):
    data = AudioTextDataset(tiny.make_dataset(tmp_path, [50, 60] * 20))
    groups = AdapterWatch(tiny_model, data, "x", tiny_config.decode_conf).groups
    watched = {index for group in groups for index in group}
    assert groups[0] == [0, 10, 20, 30] and len(watched) == WATCHED and all(index % 2 == 0 for index in watched)
    one = AudioTextDataset(tiny.make_dataset(tmp_path, [50], name="one"))
    assert AdapterWatch(tiny_model, one, "x", tiny_config.decode_conf).groups == [[0]]


@pytest.mark.parametrize("window", ["trim", "crop"])
def test_gates_count_real_frames_only(tiny_config, data, window):
    tiny_config.encoder_conf["window"] = window
    model = SteerMoE.from_config(tiny_config).eval()
    collate = Collator(model.llm, "x", answers=False)
    with torch.no_grad():
        frames, entropy_l, share_ln = gate_totals(model, collate([data[0], data[1]]))
        alone = [gate_totals(model, collate([data[index]])) for index in (0, 1)]
    assert frames == 40 + 62
    torch.testing.assert_close(entropy_l, alone[0][1] + alone[1][1])
    torch.testing.assert_close(share_ln, alone[0][2] + alone[1][2])
    torch.testing.assert_close(share_ln.sum(-1), torch.full((2,), float(frames)))


def test_figures_of_even_and_of_one_sided_gates(tiny_config, tiny_model, data):
    with torch.no_grad():
        tiny_model.steering.router_weight.zero_()
        tiny_model.steering.router_bias.copy_(torch.tensor([[0.0] * 4, [0.0, 50.0, 0.0, 0.0]]))
        tiny_model.steering.scales.copy_(torch.tensor([0.125, -0.5]))
    figures = AdapterWatch(tiny_model, data, "x", tiny_config.decode_conf)()[0]
    assert figures["scales"] == [0.125, -0.5]
    assert figures["gate_entropy"] == [pytest.approx(math.log(4), abs=1e-4), 0.0]
    assert figures["expert_share"] == [[0.25] * 4, [0.0, 1.0, 0.0, 0.0]]


def test_without_steering_there_are_samples_alone(tiny_config, data):
    config = changed(tiny_config, steering="none", steering_conf={})
    figures, samples = AdapterWatch(SteerMoE.from_config(config).eval(), data, "x", config.decode_conf)()
    assert figures == {} and len(samples) == 4


# Joint training in bfloat16 on what is awkward


@pytest.mark.parametrize(("chat", "prompt"), [(True, "hear: "), (False, "<audio>")])
def test_joint_training_in_bfloat16_stays_finite(tiny_config, tmp_path, chat, prompt):
    """An utterance with more tokens than frames, one in which nothing is heard, a prompt of no tokens."""
    tree = tiny_config.to_dict() | {"projector": "token", "projector_conf": {"frames_conf": {"kernel": 4}}}
    tree["encoder_conf"]["dtype"] = tree["llm_conf"]["dtype"] = "bfloat16"
    tree["llm_conf"]["chat"], tree["data_conf"]["prompt"] = chat, prompt
    config = config_from_dict(tree | {"objective": "joint", "objective_conf": {"distill": 0.5}})
    from steermoe.bin.train import adapter_trainer

    data = AudioTextDataset(tiny.make_dataset(tmp_path, [2, 20, 300]))
    for deaf in (0.0, 1e4):
        model = SteerMoE.from_config(config)
        with torch.no_grad():
            model.projector.blank_bias.fill_(deaf)
        run = adapter_trainer(model, config, data, data, tmp_path / str(deaf), {})
        figures = [run.optimizer_step([run.collate([data[index] for index in range(3)])]) for _ in range(2)]
        names = ("loss", "grad_norm", "ctc", "distill")
        assert run.skipped == 0 and all(math.isfinite(line[name]) for line in figures for name in names)
        assert math.isfinite(run.validate()["dev_loss"])
        model.eval()
        assert len(run.watch()[1]) == 2  # the two shorter ones
