"""Chats over the server, and what else needs a network: a tiny random one."""

from __future__ import annotations

import base64
import json

import pytest
import toneme
from serving import events, recording, running

from steermoe import SteerMoE
from steermoe.config import config_from_dict
from steermoe.serve.app import Server

CHAT = "/v1/chat/completions"
WEATHER = {
    "type": "function",
    "function": {
        "name": "weather",
        "description": "of a city",
        "parameters": {"type": "object", "properties": {"city": {"type": "string"}}, "required": ["city"]},
    },
}


@pytest.fixture(scope="module")
def model(tiny_bases):
    from steermoe.model import SteerMoE as Network

    models = {"encoder_conf": {"model": str(tiny_bases / "whisper")}, "llm_conf": {"model": str(tiny_bases / "llm")}}
    for conf in models.values():
        conf["dtype"] = "float32"
    config = config_from_dict(models | {"steering_conf": {"num_experts": 4}})
    return SteerMoE(Network.from_config(config), config)


@pytest.fixture()
def client(model):
    from starlette.testclient import TestClient

    with TestClient(Server(model).app, base_url="http://127.0.0.1") as client:
        yield client


def chat(client, *content, **settings):
    messages = [{"role": "user", "content": list(content) or "hi"}]
    return client.post(CHAT, content=json.dumps({"messages": messages, "max_tokens": 6} | settings).encode())


def audio(content: bytes) -> dict:
    return {"type": "input_audio", "input_audio": {"data": base64.b64encode(content).decode(), "format": "wav"}}


def test_experts(client):
    assert client.post("/v1/steermoe/experts", files={"file": recording([1, 2])}).json()["seconds"] == 0.92


def test_chat_hears_and_answers(client, model):
    found = chat(client, {"type": "text", "text": "what is"}, audio(recording([1, 2])), stop=None, temperature=0.2).json()
    expected = model.conversation(max_tokens=6).say("what is", toneme.speak([1, 2]))
    choice = found["choices"][0]
    assert choice["message"]["role"] == "assistant" and choice["message"]["content"] == expected.text
    assert choice["finish_reason"] == {"end": "stop"}.get(expected.ended, expected.ended)
    assert found["usage"]["completion_tokens"] == 6 and found["usage"]["total_tokens"] == 6 + found["usage"]["prompt_tokens"]


def test_chat_in_chunks(client):
    whole = chat(client, audio(recording([4, 5]))).json()["choices"][0]["message"]["content"]
    found = events(chat(client, audio(recording([4, 5])), stream=True, stream_options={"include_usage": True}))
    assert found[0]["choices"][0]["delta"]["role"] == "assistant" and found[-1]["usage"]["completion_tokens"] == 6
    deltas = [chunk["choices"][0]["delta"].get("content", "") for chunk in found[:-1]]
    assert "".join(deltas) == whole and found[-2]["choices"][0]["finish_reason"] == "length"
    assert len({chunk["id"] for chunk in found}) == 1


def test_chat_stops_at_a_word(client):
    whole = chat(client, max_tokens=12).json()["choices"][0]["message"]["content"]
    word = whole[4:6]
    choice = chat(client, max_tokens=12, stop=[word]).json()["choices"][0]
    assert choice["finish_reason"] == "stop" and choice["message"]["content"] == whole[: whole.index(word)].strip()
    deltas = events(chat(client, max_tokens=12, stop=word, stream=True))
    assert "".join(chunk["choices"][0]["delta"].get("content", "") for chunk in deltas) == whole[: whole.index(word)].strip()


def says(monkeypatch, text: str) -> None:
    """Whatever the model is asked, it writes this."""
    import torch

    from steermoe.chat.cache import RunningCache

    def read(cache, places, audio_nh):
        cache.begin = min(getattr(cache, "begin", len(places)), len(places))
        tokens = [*cache.llm.tokenizer(text, add_special_tokens=False)["input_ids"], cache.llm.tokenizer.eos_token_id]
        return torch.nn.functional.one_hot(torch.tensor(tokens[len(places) - cache.begin]), 1000).float()

    monkeypatch.setattr(RunningCache, "read", read)


def test_calls_are_handed_to_the_client(client, monkeypatch):
    says(monkeypatch, 'Well. <tool_call>\n{"name": "weather", "arguments": {"city": "Ulm"}}\n</tool_call>')
    choice = chat(client, tools=[WEATHER], max_tokens=200).json()["choices"][0]
    call = choice["message"]["tool_calls"][0]
    assert choice["finish_reason"] == "tool_calls" and choice["message"]["content"] == "Well."
    assert call["function"] == {"name": "weather", "arguments": '{"city": "Ulm"}'} and call["type"] == "function"
    found = events(chat(client, tools=[WEATHER], max_tokens=200, stream=True))
    deltas = [chunk["choices"][0]["delta"] for chunk in found]
    assert "".join(delta.get("content", "") for delta in deltas) == "Well."
    assert [delta["tool_calls"][0]["function"]["name"] for delta in deltas if "tool_calls" in delta] == ["weather"]
    assert "tool_calls" not in chat(client, tools=[WEATHER], tool_choice="none", max_tokens=200).json()["choices"][0]["message"]


def test_a_required_call(client):
    pytest.importorskip("llguidance")
    other = {"type": "function", "function": {"name": "other"}}
    named = {"type": "function", "function": {"name": "weather"}}
    for choice in (named, "required"):
        tools = [WEATHER, other] if choice == named else [WEATHER]
        found = chat(client, tools=tools, tool_choice=choice, max_tokens=70).json()
        assert found["choices"][0]["message"]["content"].startswith('<tool_call>\n{"name": "weather", "arguments": {"city": "')


def test_results_of_calls_go_on(client, model):
    """An earlier call and its result reach the LLM, in its own form and without control tokens."""
    call = {"id": "c1", "type": "function", "function": {"name": "weather", "arguments": '{"city": "Ulm"}'}}
    messages = [
        {"role": "system", "content": "be brief"},
        {"role": "user", "content": "rain?"},
        {"role": "assistant", "content": None, "tool_calls": [call]},
        {"role": "tool", "tool_call_id": "c1", "content": "sun<|im_end|>"},
    ]
    shown = []
    tokenizer = model.network.llm.tokenizer
    original = tokenizer.apply_chat_template
    tokenizer.apply_chat_template = lambda messages, **settings: shown.append(messages) or original(messages, **settings)
    assert chat(client, messages=messages, tools=[WEATHER]).status_code == 200
    assert "be brief" in shown[-1][0]["content"] and "weather" in shown[-1][0]["content"]
    assert '"city": "Ulm"' in str(shown[-1][2]) and shown[-1][3]["content"] == "sun< |im_end|>"


def test_the_real_openai_client(model, monkeypatch):
    openai = pytest.importorskip("openai")
    with running(Server(model)) as port, openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="any") as api:
        messages = [{"role": "user", "content": [{"type": "text", "text": "what is"}, audio(recording([1, 2, 3]))]}]
        ask = api.chat.completions.create
        whole = ask(model="steermoe", messages=messages, max_tokens=5).choices[0].message.content
        chunks = list(ask(model="steermoe", messages=messages, max_completion_tokens=5, stream=True))
        assert "".join(chunk.choices[0].delta.content or "" for chunk in chunks) == whole
        says(monkeypatch, '{"name": "weather", "arguments": {"city": "Ulm"}}')
        call = ask(model="steermoe", messages=messages, tools=[WEATHER], max_tokens=99).choices[0].message.tool_calls[0]
        assert json.loads(call.function.arguments) == {"city": "Ulm"} and call.function.name == "weather"


@pytest.mark.parametrize("text", ["\ud800", "<audio 0>", "<|im_start|>"])
def test_nothing_is_smuggled_in(client, text):
    """Half characters, marks of audio and control tokens, wherever a client may write."""
    function = {"name": "f", "description": text, "parameters": {"type": "object", text: [text]}}
    tool = {"type": "function", "function": function}
    assert chat(client, tools=[tool]).status_code == 200
    call = {"id": "c1", "type": "function", "function": {"name": text, "arguments": json.dumps({text: [text]})}}
    messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": text, "tool_calls": [call]}]
    assert chat(client, messages=[*messages, {"role": "tool", "tool_call_id": "c1", "content": text}]).status_code == 200
    for role in ("system", "user"):
        answer = chat(client, messages=[{"role": role, "content": text}, {"role": "user", "content": "hi"}])
        assert answer.status_code == (200 if text == "\ud800" else 400), answer.text
        assert text == "\ud800" or "meaning of its own" in answer.json()["error"]["message"]


@pytest.mark.parametrize("content, message", [("<|im_end|>", "meaning of its own"), ("word " * 6000, "the LLM reads")])
def test_what_the_llm_cannot_take(client, content, message):
    for stream in (False, True):
        answer = chat(client, {"type": "text", "text": content}, stream=stream)
        assert answer.status_code == 400 and message in answer.json()["error"]["message"]


def test_schemas_that_cannot_be_followed(client):
    pytest.importorskip("llguidance")
    outside = {"type": "object", "properties": {"a": {"$ref": "http://127.0.0.1:1/x"}}}
    for parameters in ({"properties": 7}, outside, {"type": "nothing"}):
        tool = {"type": "function", "function": {"name": "f", "parameters": parameters}}
        answer = chat(client, tools=[tool], tool_choice="required")
        assert answer.status_code == 400 and "tool" in answer.json()["error"]["message"], answer.text
