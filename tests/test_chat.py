"""Conversations: the cache changes nothing, audio stands where it was said, templates of every kind, clear errors."""

from __future__ import annotations

import io
from pathlib import Path

import numpy as np
import pytest
import soundfile
import torch

import tiny
from steermoe.bin import chat
from steermoe.chat import Conversation
from steermoe.chat.cache import RunningCache, common_prefix
from steermoe.chat.template import ChatTemplate
from steermoe.checkpoint import save_adapter
from steermoe.errors import UserError
from steermoe.llms.causal import CausalLM
from steermoe.model import SteerMoE


def noise(seconds: float, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).normal(0, 0.1, round(16000 * seconds)).astype(np.float32)


def recompute(conversation: Conversation, limit: int) -> list[int]:
    """What the LLM answers to the messages so far, every token from the whole sequence and without a cache."""
    places = conversation.template.places(conversation.messages, conversation.spans)
    tokens: list[int] = []
    while len(tokens) < limit:
        vectors_1qh = RunningCache(conversation.llm)._embed([*places, *tokens], conversation.audio_nh)
        ones_1q = torch.ones(vectors_1qh.shape[:2], dtype=torch.bool)
        hidden_1qh = conversation.llm.hidden(vectors_1qh, ones_1q, ones_1q.long().cumsum(1) - 1)
        token = int(conversation.llm.logits(hidden_1qh[:, -1]).argmax())
        if token in conversation.stop:
            break
        tokens.append(token)
    return tokens


TURNS = [("hello",), (noise(0.8), "what is this?"), ("first", noise(0.5, 1), "then", noise(0.6, 2)), (noise(0.3, 3),)]


@pytest.mark.parametrize("kind, extra", [("llama", {}), ("mistral", {"sliding_window": 24}), ("gemma2", {"sliding_window": 24})])
def test_with_the_cache_every_turn_has_the_tokens_that_recomputing_all_gives(tiny_config, tmp_path, monkeypatch, kind, extra):
    if kind == "gemma2":
        extra = extra | {"query_pre_attn_scalar": 8}
    tiny.make_llm(tmp_path / "llm", kind=kind, **extra)
    tiny_config.llm_conf["model"] = str(tmp_path / "llm")
    conversation = Conversation(SteerMoE.from_config(tiny_config).eval(), max_tokens=8)
    with torch.no_grad():  # layers that outweigh the embedding that passes by them, or a tied model only repeats its last token
        for name, parameter in conversation.llm.llm.named_parameters():
            if "layers" in name and parameter.dim() > 1:
                parameter.mul_(6)
    monkeypatch.setattr("steermoe.chat.conversation.MAX_REPEATS", 0)
    answers = []
    for turn in TURNS:
        conversation.messages.append({"role": "user", "content": conversation._content(turn)})
        expected = recompute(conversation, 8)
        tokens, _ = conversation._generate()
        assert tokens == expected
        conversation._generate()  # again, from a cache that already holds the answer
        said = conversation.template.defuse(conversation.llm.decode(tokens))
        conversation.messages.append({"role": "assistant", "content": said})
        answers.append(tokens)
    assert len(set(map(tuple, answers))) > 1  # a model that only repeats itself would prove nothing


def test_the_cache_saves_what_the_turns_have_in_common(tiny_model):
    conversation = Conversation(tiny_model, max_tokens=4)
    conversation.say("a long beginning " * 10)
    before, length = conversation.cache.computed, len(conversation.cache.places)
    conversation.say("short")
    assert conversation.cache.computed - before < 80 < length


@pytest.mark.parametrize("one, two, same", [([], [1], 0), ([1, 2], [1, 2, 3], 2), ([1, -1, 3], [1, -2, 3], 1), ([4], [4], 1)])
def test_common_prefix(one, two, same):
    assert common_prefix(one, two) == same


def test_audio_stands_where_it_was_said(tiny_model):
    conversation = Conversation(tiny_model, max_tokens=2)
    content = conversation._content(["first", noise(0.5), "then", noise(0.9, 1), "?"])
    places = conversation.template.places([{"role": "user", "content": content}], conversation.spans)
    runs = "".join("A" if place < 0 else tiny_model.llm.tokenizer.decode([place]) for place in places)
    sizes = [len(span) for span in conversation.spans]
    assert runs == f"<|im_start|>user\nfirst {'A' * sizes[0]} then {'A' * sizes[1]} ?<|im_end|>\n<|im_start|>assistant\n"
    assert [-1 - place for place in places if place < 0] == list(range(sum(sizes))) and sizes[1] > sizes[0] > 0


def test_a_file_an_array_and_a_tensor_are_the_same_audio(tiny_model, tmp_path):
    soundfile.write(tmp_path / "a b.wav", noise(0.5), 16000, subtype="FLOAT")
    replies = []
    for part in (tmp_path / "a b.wav", noise(0.5), torch.from_numpy(noise(0.5))):
        replies.append(Conversation(tiny_model, max_tokens=12).say("say", part).text)
    assert len(set(replies)) == 1


def test_system_message_of_the_adapter_or_ones_own(tiny_model):
    tiny_model.llm.system = "be brief"
    conversation = Conversation(tiny_model)
    assert conversation.template.render([{"role": "user", "content": "x"}]).startswith("<|im_start|>system\nbe brief<|im_end|>")
    conversation = Conversation(tiny_model, system="sing")
    assert conversation.template.render([{"role": "user", "content": "x"}]).startswith("<|im_start|>system\nsing<|im_end|>")


@pytest.mark.parametrize(
    "parts, message",
    [
        ((), "nothing was said"),
        ((noise(30.5),), "30.5 s long; the encoder reads at most 30 s"),
        ((Path("nowhere.wav"),), "nowhere.wav: no such audio file"),
        ((np.zeros((2, 100)),), r"samples \(N,\) at 16000 Hz"),
        (("x <|im_end|> y",), "has a meaning of its own"),
        (("<audio 0>",), "<audio 0> has a meaning of its own"),
        (("x" * 5000,), "the LLM reads 4096: begin a new one"),
    ],
)
def test_a_turn_that_cannot_be_said_leaves_the_conversation_as_it_was(tiny_model, parts, message):
    conversation, other = Conversation(tiny_model, max_tokens=6), Conversation(tiny_model, max_tokens=6)
    for each in (conversation, other):
        each.say("hello", noise(0.4))
    with pytest.raises(UserError, match=message):
        conversation.say("and", noise(0.5, 5), *parts) if len(parts) and isinstance(parts[0], str) else conversation.say(*parts)
    assert conversation.messages == other.messages
    assert conversation.say("again", noise(0.4, 1)) == other.say("again", noise(0.4, 1))


def test_an_answer_that_is_stopped_leaves_the_conversation_as_it_was(tiny_model, monkeypatch):
    conversation, other = Conversation(tiny_model, max_tokens=6), Conversation(tiny_model, max_tokens=6)
    hidden = type(tiny_model.llm).hidden

    def stopped(llm, *args):
        hidden(llm, *args)
        raise KeyboardInterrupt

    for each in (conversation, other):
        each.say("hello", noise(0.4))
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(type(tiny_model.llm), "hidden", stopped)
        conversation.say("stop here")
    assert conversation.say("again") == other.say("again")


def test_clear_begins_anew(tiny_model):
    conversation = Conversation(tiny_model, max_tokens=6, system="a long system message " * 9)
    first = conversation.say("hello", noise(0.4))
    conversation.say("more")
    conversation.clear()
    other = conversation.say("hello", noise(0.4, 7))  # audio of the same length, which must not be taken for the first
    assert other == Conversation(tiny_model, max_tokens=6, system="a long system message " * 9).say("hello", noise(0.4, 7))
    conversation.clear()
    computed = conversation.cache.computed
    assert conversation.say("hello", noise(0.4)) == first
    assert conversation.cache.computed - computed < 100  # the system message is not read again


def test_how_answers_end(tiny_model, monkeypatch):
    conversation = Conversation(tiny_model, max_tokens=5)
    tokens = iter([7, 8, 9, 10, 11, 12, 7, conversation.llm.tokenizer.eos_token_id, *[9] * 40])

    def read(places, audio_nh):
        return torch.nn.functional.one_hot(torch.tensor(next(tokens)), len(conversation.llm.tokenizer)).float()

    monkeypatch.setattr(conversation.cache, "read", read)
    assert conversation.say("x").ended == "length"
    assert conversation.say("x").ended == "end"
    conversation.max_tokens = 30
    assert conversation.say("x").ended == "repeat"


def template_of(tiny_bases, text: str, **settings) -> ChatTemplate:
    tokenizer = CausalLM.from_pretrained(str(tiny_bases / "llm"), dtype="float32").tokenizer
    tokenizer.chat_template = text
    return ChatTemplate(tokenizer, **settings)


def test_a_template_without_a_system_role_gets_it_before_the_first_words(tiny_bases):
    text = "{% if messages[0]['role'] == 'system' %}{{ raise_exception('no system role') }}{% endif %}" + tiny.CHATML
    template = template_of(tiny_bases, text, system="be brief")
    assert template.render([{"role": "user", "content": "hi"}]).startswith("<|im_start|>user\nbe brief\n\nhi<|im_end|>")


def test_a_template_that_refuses_is_an_error(tiny_bases):
    text = "{% if messages | length > 1 %}{{ raise_exception('one at most') }}{% endif %}" + tiny.CHATML
    template = template_of(tiny_bases, text)
    with pytest.raises(UserError, match="refuses this conversation: one at most"):
        template.render([{"role": "user", "content": "hi"}] * 2)


def test_a_model_without_chat_template(tiny_model):
    tiny_model.llm.tokenizer.chat_template = None
    with pytest.raises(UserError, match="has no chat template"):
        Conversation(tiny_model)


@pytest.mark.parametrize(
    "text, parts",
    [
        ("hello there", ["hello there"]),
        ("a.wav", [Path("a.wav")]),
        ("@a.wav", [Path("a.wav")]),
        ("what is @a.wav and @\"b c.flac\"?", ["what is", Path("a.wav"), "and", Path("b c.flac"), "?"]),
        ("me@home.org said a.wav is good", ["me@home.org said a.wav is good"]),
    ],
)
def test_turns_as_they_are_typed(text, parts):
    assert chat.parse_turn(text) == parts


def test_a_session_at_the_keyboard_goes_on_after_an_error(tiny_model, tmp_path, capsys):
    soundfile.write(tmp_path / "a.wav", noise(0.4), 16000)
    conversation = Conversation(tiny_model, max_tokens=5)
    first = conversation.say("hello").text
    conversation.clear()
    chat.talk(conversation, io.StringIO(f"hello\n\n@nowhere.wav\nand @{tmp_path}/a.wav\n/new\nhello\n/quit\nhello\n"))
    output = capsys.readouterr()
    lines = output.out.splitlines()
    assert lines[0] == lines[-1] == first.splitlines()[0]
    assert "error: nowhere.wav: no such audio file" in output.err and "ended: length" in output.err
    assert len(conversation.messages) == 2


@pytest.fixture()
def reader(tiny_config):
    """An adapter that reads by CTC over bytes, and hears something in noise."""
    tiny_config.projector, tiny_config.projector_conf = "token", {"frames_conf": {"kernel": 8}, "units": "bytes"}
    tiny_config.decode_conf.ctc_weight = 1.0
    model = SteerMoE.from_config(tiny_config).eval()
    with torch.no_grad():
        model.projector.blank_bias.fill_(-1e4)
    return model


def test_another_llm_talks_about_what_the_adapter_reads(reader, tiny_config, tmp_path):
    tiny.make_llm(tmp_path / "llm", seed=9, hidden_size=48, num_attention_heads=6)
    talker = CausalLM.from_pretrained(str(tmp_path / "llm"), dtype="float32")
    conversation = Conversation(reader, max_tokens=6, decode_conf=tiny_config.decode_conf, talker=talker)
    answer = conversation.say("what is", noise(0.8), "?")
    heard = conversation.messages[0]["content"]
    assert heard.startswith("what is ") and heard.endswith(" ?") and len(heard) > len("what is  ?")
    as_text = Conversation(reader, max_tokens=6, decode_conf=tiny_config.decode_conf, talker=talker)
    assert as_text.template.check_text(heard) == heard and as_text.say(heard) == answer
    save_adapter(tmp_path / "adapter.safetensors", reader, tiny_config, 0, {})
    soundfile.write(tmp_path / "a.wav", noise(0.8), 16000, subtype="FLOAT")
    args = chat.make_parser().parse_args(["--model", str(tmp_path), "--talker", str(tmp_path / "llm"), "--max-tokens", "6"])
    assert chat.make_conversation(args).say("what is", tmp_path / "a.wav", "?") == answer


def test_another_llm_needs_an_adapter_that_reads(tiny_model, reader, tiny_config):
    for model, weight in ((tiny_model, 0.0), (reader, 0.0), (reader, 0.4)):  # 0.4 without a context needs a prompt
        tiny_config.decode_conf.ctc_weight = weight
        with pytest.raises(UserError, match="another LLM understands nothing but text"):
            Conversation(model, decode_conf=tiny_config.decode_conf, talker=tiny_model.llm)


def test_the_verb_answers_turn_by_turn(tiny_model, tiny_config, tmp_path, capsys):
    save_adapter(tmp_path / "adapter.safetensors", tiny_model, tiny_config, 0, {})
    wav = tmp_path / "a.wav"
    soundfile.write(wav, noise(0.4), 16000)
    chat.main(["--model", str(tmp_path), "--max-tokens", "5", "--system", "be brief", str(wav), f"what is @{wav} ?"])
    conversation = Conversation(tiny_model, max_tokens=5, system="be brief")
    answers = [conversation.say(wav).text, conversation.say("what is", wav, "?").text]
    assert capsys.readouterr().out == "".join(f"{answer}\n" for answer in answers)


@pytest.mark.parametrize(
    "words, message",
    [
        (["nowhere.wav"], "nowhere.wav: no such audio file"),
        (["--max-tokens", "0", "hi"], "--max-tokens 0"),
        (["hi"], "no trained adapter here"),
    ],
)
def test_what_is_wrong_is_said_before_models_are_loaded(tmp_path, words, message):
    with pytest.raises(UserError, match=message):
        chat.main(["--model", str(tmp_path), *words])
