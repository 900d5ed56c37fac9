"""The token-synchronous projector and the joint objective on a tiny pair: alone as in a batch, what is run when, what is learned."""

from dataclasses import replace

import pytest
import torch

import tiny
from steermoe.config import config_from_dict
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.decode.decoder import decode_batch, listen
from steermoe.errors import UserError
from steermoe.model import SteerMoE
from steermoe.train.objectives import Joint, answers


@pytest.fixture()
def config(tiny_config):
    tree = tiny_config.to_dict() | {"projector": "token", "projector_conf": {"frames_conf": {"kernel": 1}}, "objective": "joint", "objective_conf": {}}
    return config_from_dict(tree)


@pytest.fixture()
def model(config):
    model = SteerMoE.from_config(config).eval()
    with torch.no_grad():  # scores far enough apart for a reading of its own in every utterance
        model.projector.frames.linear.weight.mul_(20)
    return model


@pytest.fixture()
def data(tmp_path):
    return AudioTextDataset(tiny.make_dataset(tmp_path, [80, 123, 200]))


def collate(model, data, indices):
    return Collator(model.llm, "hear: ")([data[index] for index in indices])


def test_targets_are_the_answers_without_their_ends(model, data):
    tokens, lens = answers(collate(model, data, range(3)))
    assert [row[:length].tolist() for row, length in zip(tokens, lens.tolist())] == [model.llm.encode(data[i].text) for i in range(3)]


def test_prompt_and_losses_alone_as_in_a_batch(model, data):
    objective = Joint(distill=0.5)
    with torch.no_grad():
        together, lens = model.listen(collate(model, data, range(3)))
        loss = objective(model, collate(model, data, range(3)))
        alone = [objective(model, collate(model, data, [index])) for index in range(3)]
        for index in range(3):
            vectors, length = model.listen(collate(model, data, [index]))
            assert length[0] == lens[index]
            torch.testing.assert_close(vectors[0, : length[0]], together[index, : length[0]], atol=1e-4, rtol=1e-4)
    assert lens.min() > 0 and len(set(lens.tolist())) > 1
    assert float(loss.total) == pytest.approx(sum(float(one.total) for one in alone), rel=1e-4)
    assert loss.units == sum(one.units for one in alone)
    assert set(loss.stats) == {"ctc", "next_token", "accuracy", "distill"}


def test_a_frame_that_is_surely_a_token_becomes_its_embedding(model):
    scores = torch.full((1, 4, len(model.llm.tokenizer) + 1), -50.0)
    for frame, token in enumerate([11, 11, None, 7]):
        scores[0, frame, 0 if token is None else token + 1] = 50.0
    vectors, lens = model.projector.read(scores, torch.tensor([4]))
    assert lens.tolist() == [2]
    torch.testing.assert_close(vectors[0], model.llm.embed(torch.tensor([11, 7])), atol=1e-5, rtol=1e-5)


def test_warm_up_steps_and_ctc_alone_do_not_run_the_llm(model, data, monkeypatch):
    monkeypatch.setattr(model.llm, "hidden", lambda *a: pytest.fail("the LLM was run"))
    batch = collate(model, data, range(2))
    for loss in (Joint(ctc_steps=3)(model, batch, 3), Joint(next_token=0, ctc=1)(model, batch)):
        assert set(loss.stats) == {"ctc"} and float(loss.total.detach()) == pytest.approx(loss.stats["ctc"])


def test_the_llm_joins_after_the_warm_up_and_in_validation(model, data):
    batch = collate(model, data, range(2))
    assert "next_token" in Joint(ctc_steps=3)(model, batch, 4).stats and "next_token" in Joint(ctc_steps=3)(model, batch).stats


def test_nothing_to_distil_where_the_audio_reads_as_the_text(model, data, monkeypatch):
    batch = collate(model, data, range(2))
    targets, lens = answers(batch)
    monkeypatch.setattr(model.projector, "read", lambda scores, frames: (model.llm.embed(targets), lens))
    assert Joint(distill=1.0)(model, batch).stats["distill"] == pytest.approx(0, abs=1e-4)


def test_gradients_reach_every_trained_parameter(model, data):
    model.train()
    Joint(ctc=1.0, distill=0.1)(model, collate(model, data, range(3))).total.backward()
    assert all(p.grad is not None and p.grad.abs().sum() > 0 for group in model.parameter_groups().values() for p in group.values())
    assert all(p.grad is None for part in (model.encoder, model.llm) for p in part.parameters())


def test_ctc_is_learned(config, data):
    model = SteerMoE.from_config(config).train()
    optimizer = torch.optim.AdamW([p for group in model.parameter_groups().values() for p in group.values()], lr=0.02)
    batch, objective, losses = collate(model, data, range(3)), Joint(next_token=0, ctc=1), []
    for _ in range(60):
        optimizer.zero_grad()
        loss = objective(model, batch)
        (loss.total / loss.units).backward()
        optimizer.step()
        losses.append(loss.stats["ctc"] / loss.units)
    assert losses[-1] < 0.5 * losses[0]


def test_silence_for_the_ctc_is_an_empty_prompt_that_can_be_decoded(config, model, data):
    with torch.no_grad():
        model.projector.blank_bias.fill_(1e4)
    batch = Collator(model.llm, "hear: ", answers=False)([data[0], data[1]])
    assert model.listen(batch)[1].tolist() == [0, 0]
    assert len(decode_batch(model, batch, [0.8, 1.23], config.decode_conf)) == 2


@pytest.mark.parametrize("weight", [0.4, 1.0])
def test_decoding_with_ctc(config, model, data, weight):
    config.decode_conf.ctc_weight, config.decode_conf.beam = weight, 3
    batch = Collator(model.llm, "hear: ", answers=False)([data[0], data[1]])
    heard = model.projector.hear(*model.hear(batch), model.encoder.final_norm)[0].argmax(-1) - 1
    for row, found in enumerate(decode_batch(model, batch, [0.8, 1.23], config.decode_conf)):
        assert weight < 1 or set(found.tokens) <= set(heard[row].tolist())


def test_a_temperature_reaches_the_search(config, model, data):
    batch, conf = collate(model, data, range(3)), replace(config.decode_conf, ctc_weight=0.5)
    plain, warm = (decode_batch(model, batch, [1.0] * 3, replace(conf, ctc_temperature=t)) for t in (1.0, 2.0))
    assert [one.score for one in warm] != pytest.approx([one.score for one in plain], rel=1e-3)


def test_what_is_heard_for_a_prompt_is_what_the_llm_helps_to_read(config, model, data):
    batch = Collator(model.llm, "hear: ", answers=False)([data[0], data[1]])
    conf = replace(config.decode_conf, ctc_weight=0.4, beam=3, context="one line\n")
    found = decode_batch(model, batch, [0.8, 1.23], conf)
    vectors, lens = listen(model, batch, [0.8, 1.23], conf)
    assert lens.tolist() == [len(one.tokens) for one in found] and sum(lens.tolist()) > 0
    for vectors_uh, one in zip(vectors, found):
        assert torch.equal(vectors_uh[: len(one.tokens)], model.llm.embed(torch.tensor(one.tokens, dtype=torch.long)).float())
    for alone in (replace(conf, context=""), replace(conf, ctc_weight=1.0)):
        with torch.no_grad():
            for one, other in zip(listen(model, batch, [0.8, 1.23], alone), model.listen(batch)):
                torch.testing.assert_close(one, other)


def test_an_adapter_without_ctc_says_so(tiny_config, tiny_model, data):
    tiny_config.decode_conf.ctc_weight = 0.5
    with pytest.raises(UserError, match="ctc_weight.*projector: token"):
        decode_batch(tiny_model, Collator(tiny_model.llm, "hear: ", answers=False)([data[0]]), [0.8], tiny_config.decode_conf)


def test_errors(tiny_model, model, data):
    with pytest.raises(UserError, match="projector: token"):
        Joint()(tiny_model, collate(tiny_model, data, [0]))
    with pytest.raises(UserError, match="objective_conf"):
        Joint(next_token=0, ctc=0)
    with pytest.raises(UserError, match="ctc"):
        Joint(ctc=-1)


@pytest.mark.parametrize(
    ("conf", "message"),
    [
        ({"candidates": 0}, "projector_conf.candidates"),
        ({"frames": "linar"}, "did you mean 'linear'"),
        ({"frames_conf": {"kernle": 2}}, "unknown key kernle .did you mean 'kernel'"),
        ({"frames_conf": {"kernel": 0}}, "kernel: 0"),
    ],
)
def test_projector_values_out_of_range(config, conf, message):
    config.projector_conf |= conf
    with pytest.raises(UserError, match=message):
        SteerMoE.from_config(config)
