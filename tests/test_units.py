"""What CTC speaks: tokens or bytes, on a tiny pair with a byte-level tokenizer and on a SentencePiece-like vocabulary."""

import json

import pytest
import torch

import tiny
from steermoe.config import DecodeConf, config_from_dict
from steermoe.ctc import confidence
from steermoe.data.collator import Collator
from steermoe.data.dataset import AudioTextDataset
from steermoe.decode.decoder import decode_batch
from steermoe.errors import UserError
from steermoe.model import SteerMoE
from steermoe.train.objectives import Joint, answers
from steermoe.units import ByteUnits, TokenUnits, token_bytes


@pytest.fixture()
def config(tiny_config):
    conf = {"units": "bytes", "frames": "conv", "frames_conf": {"dim": 16, "blocks": 1, "reach": 5}}
    objective = {"objective": "joint", "objective_conf": {"next_token": 0.0, "ctc": 1.0}}
    return config_from_dict(tiny_config.to_dict() | {"projector": "token", "projector_conf": conf} | objective)


@pytest.fixture()
def model(config):
    return SteerMoE.from_config(config).eval()


@pytest.fixture()
def batch(model, tmp_path):
    data = AudioTextDataset(tiny.make_dataset(tmp_path, [80, 123, 200]))
    return Collator(model.llm, "hear: ")([data[index] for index in range(3)])


class Pieces:
    """A SentencePiece vocabulary: pieces with U+2581 for the space, and one token for every byte."""

    all_special_ids = [0]
    added_tokens_decoder = {0: "<s>"}

    def get_vocab(self):
        return {"<s>": 0, "<0x0A>": 1, "<0xE4>": 2, "<0x61>": 3, "▁": 4, "a": 5, "▁the": 6, "你": 7}


def test_what_is_heard_of_a_token(model):
    units = model.projector.units
    token = {written: number for number, written in units.spelling.items()}
    small, capital, comma = token[b"a"], token[b"A"], token[b","]
    assert units.heard(small) == units.heard(small, ",.") == units.heard(capital, ",.") == units.units([small])
    assert units.heard(capital) == units.units([capital]) != units.heard(small)
    assert units.heard(comma) == units.units([comma]) and units.heard(comma, ",.") == [] and units.heard(comma, ".") == units.heard(comma)
    assert units.heard(10**6) is None and units.heard(10**6, ",.") is None
    assert units.said("Well, then.".encode(), ",.") == b"well then" and units.said(b"Well, then.", "") == b"Well, then."


def test_capitals_and_marks_that_ctc_hears_are_folded(model):
    units = model.projector.units
    small, capital, comma = (1 + units.unit_of[byte] for byte in b"aA,")
    scores = torch.full((1, 1, len(units.bytes) + 1), -400.0)
    scores[0, 0, [0, small, capital, comma]] = torch.tensor([0.1, 0.2, 0.3, 0.4]).log()
    assert units.folded(scores, "") is scores
    probs = units.folded(scores, ",.")[0, 0].exp()
    assert probs[[0, small]].tolist() == pytest.approx([0.5, 0.5], rel=1e-5) and float(probs[[capital, comma]].max()) < 1e-9
    kept = units.folded(scores, ".")[0, 0].exp()
    assert kept[[0, small, comma]].tolist() == pytest.approx([0.1, 0.5, 0.4], rel=1e-5)


def test_marks_are_whole_characters():
    assert ByteUnits.said("Ab。你，".encode(), "。，") == "ab你".encode()
    assert ByteUnits.said("Ab。".encode(), "") == "Ab。".encode()
    assert ByteUnits.said("你".encode()[:2], "。") == "你".encode()[:2]  # tokens may be parts of characters


def test_marks_that_are_not_heard_need_letters(config, batch):
    config.projector_conf["units"] = "tokens"
    with pytest.raises(UserError, match="decode_conf.unheard: needs CTC on letters, `units: bytes`"):
        decode_batch(SteerMoE.from_config(config).eval(), batch, [1.0] * 3, DecodeConf(ctc_weight=0.5, unheard=".,"))


def test_bytes_of_a_sentencepiece_vocabulary():
    assert token_bytes(Pieces()) == {1: b"\n", 2: b"\xe4", 3: b"a", 4: b" ", 5: b"a", 6: b" the", 7: "你".encode()}


@pytest.mark.parametrize("text", ["the cat's hat", "Ünïcode 你好", "a  b"])
def test_tokens_are_spelled_by_their_bytes(model, text):
    units = model.projector.units
    spelled = units.units(model.llm.encode(text))
    assert bytes(units.bytes[unit] for unit in spelled) == text.encode()
    assert model.llm.decode(units.join(spelled)) == " ".join(text.split())


def test_control_tokens_say_nothing(model):
    units, stop = model.projector.units, min(model.llm.stop_ids())
    assert units.units([stop]) == []


def test_a_row_is_spelled_without_its_padding(model):
    units, (one, two) = model.projector.units, (model.llm.encode("hat"), model.llm.encode("a longer text"))
    ids = torch.zeros(2, max(len(one), len(two)), dtype=torch.long)
    ids[0, : len(one)], ids[1, : len(two)] = torch.tensor(one), torch.tensor(two)
    spelled, lens = units.spell(ids, torch.tensor([len(one), len(two)]))
    assert lens.tolist() == [3, 13]
    assert [row[:length].tolist() for row, length in zip(spelled, lens.tolist())] == [units.units(one), units.units(two)]


def test_an_invalid_byte_sequence_is_left_out(model):
    units = model.projector.units
    cut = [units.unit_of[byte] for byte in b"ab" + "你".encode()[:2]]
    assert model.llm.decode(units.join(cut)) == "ab"


def test_token_units_are_tokens(model):
    units = TokenUnits(model.llm)
    assert units.units([3, 1]) == units.join([3, 1]) == [3, 1]
    assert units.weight().shape[0] == model.llm.llm.get_input_embeddings().weight.shape[0]


def test_scores_have_a_place_for_every_byte(model, batch):
    with torch.no_grad():
        scores, lens = model.projector.hear(*model.hear(batch), model.encoder.final_norm)
    assert scores.shape[-1] == len(model.projector.units.bytes) + 1 and scores.dtype == torch.float32
    assert lens.tolist() == ((batch.feat_lens_b + 1) // 2).tolist()


def test_loss_and_prompt_alone_as_in_a_batch(model, batch):
    with torch.no_grad():
        for one in model.parameters():
            one.add_(0.05 * torch.randn_like(one)) if one.requires_grad else None
        together, lens = model.projector.hear(*model.hear(batch), model.encoder.final_norm)
        alone = batch._replace(feats_bfm=batch.feats_bfm[:1, :80], **{k: getattr(batch, k)[:1] for k in batch._fields[2:-1]})
        scores, length = model.projector.hear(*model.hear(alone), model.encoder.final_norm)
    torch.testing.assert_close(scores[0], together[0, : int(length[0])], atol=1e-4, rtol=1e-4)
    assert int(lens[0]) == int(length[0])


def test_ctc_of_bytes_learns_an_utterance_and_every_search_reads_it(config, tmp_path):
    """One utterance by heart: then CTC alone and the joint search write it."""
    model = SteerMoE.from_config(config)
    lines = tiny.make_dataset(tmp_path, [60])
    lines.write_text(json.dumps(json.loads(lines.read_text()) | {"text": "the cat"}) + "\n")
    data = AudioTextDataset(lines)
    train, ask = Collator(model.llm, "hear: ")([data[0]]), Collator(model.llm, "hear: ", answers=False)([data[0]])
    parameters = [p for group in model.parameter_groups().values() for p in group.values()]
    optimizer, objective = torch.optim.Adam(parameters, 1e-2), Joint(next_token=0.0, ctc=1.0)
    for step in range(1, 501):
        optimizer.zero_grad()
        loss = objective(model.train(), train, step)
        assert set(loss.stats) == {"ctc"}
        loss.total.backward()
        optimizer.step()
        if float(loss.total.detach()) < 0.02:
            break
    model.eval()
    text = "the cat"
    for weight in (1.0, 0.9):
        conf = DecodeConf(ctc_weight=weight, beam=3, max_tokens=60)
        (hypothesis,) = decode_batch(model, ask, [0.6], conf)
        assert model.llm.decode(hypothesis.tokens).strip() == text
    with torch.no_grad():
        prompt, lens = model.listen(ask)
    torch.testing.assert_close(prompt[0, : int(lens[0])], model.llm.embed(torch.tensor(model.llm.encode(text))).float())
    assert answers(train)[1].tolist() == [len(model.llm.encode(text))]


@pytest.mark.parametrize(
    "conf, words",
    [
        ({"units": "letters"}, "projector_conf.units: 'letters'"),
        ({"frames": "conv", "frames_conf": {"reach": 4}}, "projector_conf.reach: 4 is even"),
        ({"frames": "conv", "frames_conf": {"blocks": 0}}, "projector_conf.blocks: 0"),
        ({"frames": "conv", "frames_conf": {"dropout": 1.0}}, "projector_conf.dropout: 1.0"),
    ],
)
def test_wrong_values_are_named(tiny_config, conf, words):
    config = config_from_dict(tiny_config.to_dict() | {"projector": "token", "projector_conf": conf, "objective": "joint"})
    with pytest.raises(UserError, match=words):
        SteerMoE.from_config(config)


def test_an_llm_without_letters_is_named(model):
    model.llm.__dict__["tokenizer"] = Pieces()
    with pytest.raises(UserError, match="units: tokens"):
        ByteUnits(model.llm)


def test_conv_frames_are_pooled_and_end_where_the_audio_ends(model, batch):
    from steermoe.conv_projector import ConvProjector

    torch.manual_seed(0)
    projector = ConvProjector(model.encoder.dim, 24, kernel=4, dim=8, blocks=2, reach=7).eval()
    with torch.no_grad():
        hidden, lens = model.hear(batch)
        prompt, audio_lens = projector(hidden, lens, model.encoder.final_norm)
        noise = hidden.clone()
        noise[0, int(lens[0]) :] = 99.0  # what stands behind the end reaches nothing
        again, _ = projector(noise, lens, model.encoder.final_norm)
    assert prompt.shape[-1] == 24 and audio_lens.tolist() == [-(-int(n) // 4) for n in lens]
    torch.testing.assert_close(prompt[0, : int(audio_lens[0])], again[0, : int(audio_lens[0])])


def test_confidence_is_the_mean_probability_of_what_is_heard():
    scores = torch.full((2, 4, 3), -50.0)
    for frame, place in enumerate([1, 0, 2, 2]):
        scores[0, frame, place] = 0.0
    scores[0, 3, 0] = scores[0, 3, 1] = 0.0  # a third each
    scores[0, 3, 2] = 1e-3  # and a little more
    scores[1, :, 0] = 0.0  # silence
    found = confidence(scores, torch.tensor([4, 4]))
    assert float(found[0]) == pytest.approx((1 + 1 + 1 / 3) / 3, abs=1e-3) and float(found[1]) == 0
    assert float(confidence(scores[:1], torch.tensor([3]))[0]) == pytest.approx(1.0)  # the last frame is padding


def test_what_is_hardly_heard_is_not_written(model, batch):
    """Random frames are heard with a probability far from both 0 and 1."""
    for weight in (0.5, 1.0):
        texts = {}
        for least in (0.0, 0.999):
            conf = DecodeConf(ctc_weight=weight, beam=2, max_tokens=5, min_confidence=least)
            texts[least] = [hypothesis.tokens for hypothesis in decode_batch(model, batch, [0.8, 1.2, 2.0], conf)]
        assert any(texts[0.0]) and not any(texts[0.999])


def test_a_context_takes_the_place_of_the_prompt_with_audio(model, batch, monkeypatch):
    """The LLM reads the context's own tokens and nothing else, and a line's end may end the text."""
    read = []
    hidden = model.llm.hidden
    monkeypatch.setattr(model.llm, "hidden", lambda vectors, *rest: read.append(vectors) or hidden(vectors, *rest))
    conf = DecodeConf(ctc_weight=0.5, beam=2, max_tokens=5, context="one line\n")
    assert len(decode_batch(model, batch, [0.8, 1.2, 2.0], conf)) == 3
    wanted = model.llm.embed(torch.tensor(model.llm.encode("one line\n")))
    assert all(torch.equal(row, wanted) for row in read[0]) and len(read[0]) == 3
