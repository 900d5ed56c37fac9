"""The whole model: equations 4 and 5, what is trained, and that the batch does not matter."""

import hashlib

import pytest
import torch
import torch.nn.functional as nnf

import tiny
from steermoe.config import config_from_dict
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.model import SteerMoE
from steermoe.train.objectives import NextToken


@pytest.fixture()
def data(tmp_path):
    return AudioTextDataset(tiny.make_dataset(tmp_path, [160, 60, 233]))


def state_hash(module):
    digest = hashlib.sha256()
    for name, tensor in sorted(module.state_dict().items()):
        digest.update(name.encode() + tensor.contiguous().view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def test_loss_equals_the_llms_own_on_the_same_vectors(tiny_model, data):
    """Equation 5 against transformers' loss over a sequence written down by hand."""
    example = data[0]
    template = tiny_model.llm.template("hear: ")
    answer = [*tiny_model.llm.encode(example.text), template.end_id]
    audio, lens = tiny_model.listen(Collator(tiny_model.llm, "hear: ")([example]))
    embed = tiny_model.llm.embed
    parts = [embed(torch.tensor(template.prefix_ids)), audio[0], embed(torch.tensor(template.suffix_ids + answer))]
    labels = torch.full((1, sum(map(len, parts))), -100)
    labels[0, -len(answer) :] = torch.tensor(answer)
    expected = tiny_model.llm.llm(inputs_embeds=torch.cat(parts)[None], labels=labels).loss
    loss = NextToken()(tiny_model, Collator(tiny_model.llm, "hear: ")([example]))
    assert loss.units == len(answer) and lens[0] == -(-80 // 4)
    assert torch.allclose(loss.total / loss.units, expected, atol=1e-5)


@pytest.mark.parametrize("window", ["trim", "crop", "full30"])
def test_loss_alone_or_in_a_batch(tiny_config, data, window):
    tiny_config.encoder_conf["window"] = window
    model = SteerMoE.from_config(tiny_config).eval()
    collator = Collator(model.llm, "hear <audio> now: ")
    with torch.no_grad():
        logits, targets = model(collator([data[i] for i in range(3)]))
        rows = torch.split(nnf.cross_entropy(logits, targets, reduction="none"), [len(data[i].text) + 1 for i in range(3)])
        for index, together in enumerate(rows):
            logits, targets = model(collator([data[index]]))
            assert torch.allclose(together, nnf.cross_entropy(logits, targets, reduction="none"), atol=2e-4)


def test_an_utterances_own_prompt_replaces_the_default(tiny_model, data):
    example = data[0]._replace(prompt="is there a dog? ")
    batch = Collator(tiny_model.llm, "transcribe: ")([data[0], example])
    texts = [tiny_model.llm.tokenizer.decode(row) for row in batch.text_ids_bs]
    assert "transcribe:" in texts[0] and "dog" in texts[1] and "transcribe:" not in texts[1]


def test_only_the_adapter_is_trained_and_the_bases_stay_bit_identical(tiny_model, data):
    before = state_hash(tiny_model.encoder), state_hash(tiny_model.llm)
    trainable = {name for name, parameter in tiny_model.named_parameters() if parameter.requires_grad}
    assert {name.split(".")[0] for name in trainable} == {"steering", "projector"}
    optimizer = torch.optim.AdamW([p for p in tiny_model.parameters() if p.requires_grad], 1e-2)
    collator = Collator(tiny_model.llm, "x ")
    tiny_model.train()
    for _ in range(3):
        optimizer.zero_grad()
        NextToken()(tiny_model, collator([data[0], data[1]])).total.backward()
        assert all(p.grad is not None and p.grad.abs().sum() > 0 for p in tiny_model.parameters() if p.requires_grad)
        optimizer.step()
    assert (state_hash(tiny_model.encoder), state_hash(tiny_model.llm)) == before


def test_frozen_parts_stay_in_eval_mode(tiny_model):
    tiny_model.train()
    assert tiny_model.projector.training and not tiny_model.encoder.training and not tiny_model.llm.llm.training


def test_the_seed_decides_the_fresh_adapter(tiny_config):
    first, again = SteerMoE.from_config(tiny_config), SteerMoE.from_config(tiny_config)
    tiny_config.train_conf.seed = 2
    other = SteerMoE.from_config(tiny_config)
    key = "steering.experts"
    assert torch.equal(first.adapter_state()[key], again.adapter_state()[key])
    assert not torch.equal(first.adapter_state()[key], other.adapter_state()[key])


def test_loss_falls_when_trained(tiny_model, data):
    batch = Collator(tiny_model.llm, "x ")([data[i] for i in range(3)])
    optimizer = torch.optim.AdamW([p for p in tiny_model.parameters() if p.requires_grad], 3e-2)
    losses = []
    for _ in range(60):
        optimizer.zero_grad()
        loss = NextToken()(tiny_model, batch)
        loss.total.backward()
        optimizer.step()
        losses.append(loss.total.item())
    assert losses[-1] < 0.9 * losses[0]


def test_parameters_of_the_papers_sizes():
    """Whisper-large + 0.5B LLM: the 1.8 M that the paper quotes; the other rows of its table."""
    from steermoe.projector import LinearProjector
    from steermoe.steering import MoESteering

    def count(layers, llm_dim):
        parts = MoESteering(layers, 1280), LinearProjector(1280, llm_dim)
        return sum(p.numel() for part in parts for p in part.parameters())

    assert [count(32, 896), count(32, 2048), count(32, 3584)] == [1_803_424, 3_279_136, 5_246_752]
    assert [count(16, 2048), count(16, 3584)] == [2_951_312, 4_918_928]


def test_no_steering_trains_the_projection_alone(tiny_config):
    model = SteerMoE.from_config(config_from_dict(tiny_config.to_dict() | {"steering": "none", "steering_conf": {}}))
    assert set(model.adapter_state()) == {"projector.linear.weight", "projector.linear.bias"}
