"""Messages in transformers' form: what they become, what is refused, and that they say what turns say."""

from pathlib import Path

import numpy as np
import pytest
import soundfile

from steermoe.api import SteerMoE
from steermoe.chat.messages import split
from steermoe.errors import UserError


def user(*content):
    return {"role": "user", "content": list(content) if len(content) > 1 or not isinstance(content[0], str) else content[0]}


def test_split():
    samples = np.zeros(100, np.float32)
    messages = [
        {"role": "system", "content": "Be brief."},
        user({"type": "audio", "audio": "a.wav"}, {"type": "text", "text": "What?"}),
        {"role": "assistant", "content": "A dog."},
        user({"type": "audio", "path": "b.wav"}, {"type": "audio", "audio": samples}),
    ]
    system, turns = split(messages)
    assert system == "Be brief." and [role for role, _ in turns] == ["user", "assistant", "user"]
    assert turns[0][1] == [Path("a.wav"), "What?"] and turns[1][1] == ["A dog."]
    assert turns[2][1][0] == Path("b.wav") and turns[2][1][1] is samples
    assert split([user("hello")]) == (None, [("user", ["hello"])])


@pytest.mark.parametrize(
    "messages, message",
    [
        ([], "the last message is not by the user"),
        ([user("a"), {"role": "assistant", "content": "b"}], "the last message is not by the user"),
        ([user("a"), user("b")], "message 2: its role is 'user' and should be 'assistant'"),
        ([user("a"), {"role": "system", "content": "b"}], "message 2: its role is 'system'"),
        ([{"role": "assistant", "content": "b"}], "message 1: its role is 'assistant' and should be 'user'"),
        (["hello"], "message 1: its role is None"),
        ([{"role": "user"}], "message 1: no content; a message is"),
        ([{"role": "user", "content": []}], "message 1: no content"),
        ([user({"type": "image", "image": "a.png"})], "message 1: {'type': 'image'.* is not a part that is known"),
        ([user({"type": "audio"})], "message 1: {'type': 'audio'} is not a part"),
        ([user("a"), {"role": "assistant", "content": [{"type": "audio", "audio": "a.wav"}]}], "message 2: the assistant says text"),
    ],
)
def test_what_is_refused(messages, message):
    with pytest.raises(UserError, match=message):
        split(messages)


def test_chat_answers_as_the_conversation_does(tiny_model, tiny_config, tmp_path):
    model = SteerMoE(tiny_model, tiny_config)
    samples = np.random.default_rng(0).normal(0, 0.1, 12000).astype(np.float32)
    soundfile.write(tmp_path / "a.wav", samples, 16000, subtype="FLOAT")
    talk = model.conversation(max_tokens=6, system="Be brief.")
    first = talk.say(tmp_path / "a.wav", "What is this?")
    second = talk.say("And now?")
    audio = {"type": "audio", "audio": str(tmp_path / "a.wav")}
    messages = [
        {"role": "system", "content": "Be brief."},
        user(audio, {"type": "text", "text": "What is this?"}),
        {"role": "assistant", "content": talk.messages[1]["content"]},
        user("And now?"),
    ]
    assert model.chat(messages, max_tokens=6) == second
    assert model.chat(messages[:2], max_tokens=6) == first == model.chat([samples, "What is this?"], max_tokens=6, system="Be brief.")
    assert model.chat(messages[:2], max_tokens=6, system="Other.", tools=[]) is not None
    with pytest.raises(UserError, match="gone.wav"):
        model.chat([Path("gone.wav")])


def test_a_control_token_in_what_was_said_before(tiny_model, tiny_config):
    model, end = SteerMoE(tiny_model, tiny_config), tiny_model.llm.tokenizer.eos_token
    with pytest.raises(UserError, match="has a meaning of its own"):
        model.chat([user(f"a {end}"), {"role": "assistant", "content": "b"}, user("c")], max_tokens=2)
    model.chat([user("a"), {"role": "assistant", "content": f"b {end}"}, user("c")], max_tokens=2)  # taken for text
