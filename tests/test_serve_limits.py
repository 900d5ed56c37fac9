"""Clients that want too much, send what they should not, have no key, are too slow, or go away."""

from __future__ import annotations

import io
import json
import socket
import struct
import sys
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import toneme
from serving import Listener, httpx, metric, recording, running, until

from steermoe.serve.app import Server
from steermoe.serve.limits import Limits

HOST = "http://127.0.0.1"
AUDIO = {"type": "input_audio", "input_audio": {"data": "AAAA", "format": "wav"}}
TRANSCRIPTIONS, CHAT = "/v1/audio/transcriptions", "/v1/chat/completions"


@pytest.fixture()
def model():
    return Listener()


@pytest.fixture()
def serve(model):
    """serve(limits, keys=…): a client of a server with them."""
    from starlette.testclient import TestClient

    opened = []

    def client(limits: Limits = Limits(), **settings):
        opened.append(TestClient(Server(model, limits, **settings).app, base_url=HOST, raise_server_exceptions=False))
        return opened[-1].__enter__()

    yield client
    for client in opened:
        client.__exit__(None, None, None)


def upload(client, content: bytes, **data):
    return client.post(TRANSCRIPTIONS, files={"file": ("a.wav", content)}, data=data)


def refused(answer, status: int, message: str, code: str | None = None) -> None:
    """The error is in OpenAI's form, and says nothing of the server's disk."""
    assert answer.status_code == status, answer.text
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"} and message in error["message"], error
    assert code is None or error["code"] == code
    assert "/tmp" not in error["message"] and "Traceback" not in answer.text and "utterance" not in error["message"]


def wav(seconds: float, promised: int | None = None, rate: int = 16000, channels: int = 1) -> bytes:
    """A WAV file whose header may say what it likes."""
    data = b"\0\0" * round(seconds * 16000)
    size = len(data) if promised is None else promised
    head = struct.pack("<HHIIHH", 1, channels, rate, rate * 2 * channels % 2**32, 2 * channels, 16)
    return b"RIFF" + struct.pack("<I", min(36 + size, 2**32 - 1)) + b"WAVEfmt " + struct.pack("<I", 16) + head + b"data" + (
        struct.pack("<I", size) + data
    )


def test_hostile_files(serve):
    client = serve()
    good = recording([1, 2, 3])
    for content, message in (
        (b"", "the audio"),
        (b"\0" * 5000, "cannot be read"),
        (b"<html>no</html>" * 100, "cannot be read"),
        (good[:-500], "truncated"),
        (good[:30], "truncated"),
        (wav(1.0, promised=2**30), "truncated"),
        (wav(1.0, rate=2**31 - 1), "samples a second"),
        (wav(1.0, rate=1), "samples a second"),
        (wav(1.0, channels=200), "channels"),
        (wav(0.0), "no samples"),
        (recording([1, 2], "WAV", subtype="FLOAT")[:-4] + struct.pack("<f", np.nan), "NaN"),
        (recording([1, 2, 3], "FLAC")[:2000], "the audio"),
        (b"#EXTM3U\n#EXTINF:1,\nfile:///etc/passwd\n", "cannot be read"),
        (b"\x1aE\xdf\xa3" + b"\xff" * 300, "cannot be read"),
        (b"\0\0\0\x18ftypM4A " + b"\xff" * 300, "cannot be read"),
        (b"RIFF\xff\xff\xff\xffWAVE", "truncated"),
    ):
        refused(upload(client, content), 400, message)
    assert upload(client, good).json()["text"] == toneme.text([1, 2, 3])


def test_headers_that_promise_hours(serve):
    """A FLAC header of a second that claims four hours, and really long silence in few bytes, end at the limit of audio."""
    client = serve(Limits(audio=60.0))
    content = bytearray(recording([1, 2], "FLAC"))
    content[21] |= 0x0D  # the upper bits of the number of samples
    refused(upload(client, bytes(content)), 400, "longer than 60 s", "audio_too_long")
    stream = io.BytesIO()
    soundfile.write(stream, np.zeros(16000 * 900, np.float32), 16000, format="FLAC")
    assert len(stream.getvalue()) < 400_000
    refused(upload(client, stream.getvalue()), 400, "longer than 60 s", "audio_too_long")


def test_names_are_never_opened(serve, tmp_path):
    (tmp_path / "secret.wav").write_bytes(recording([1, 2]))
    client = serve()
    names = ("../../etc/passwd", "a\0b.wav", "x" * 1000, "cat /etc/passwd |", "http://127.0.0.1:1/a.wav", "a.ark:7")
    for name in (f"{tmp_path}/secret.wav", *names):
        assert client.post(TRANSCRIPTIONS, files={"file": (name, recording([3, 4]))}).json()["text"] == toneme.text([3, 4])
        refused(client.post(TRANSCRIPTIONS, files={"file": (name, name.encode())}), 400, "cannot be read")
        refused(client.post(TRANSCRIPTIONS, data={"file": name}), 400, "one audio file is needed")
    parts = [{"type": "input_audio", "input_audio": {"data": str(tmp_path / "secret.wav"), "format": "wav"}}]
    parts += [{"type": "input_audio", "input_audio": {"url": "http://127.0.0.1:1/a.wav"}}, {"type": "audio", "audio": "a.wav"}]
    parts += [{"type": "image_url", "image_url": {"url": "file:///etc/passwd"}}]
    for part in parts:
        answer = client.post(CHAT, json={"messages": [{"role": "user", "content": [part]}]})
        refused(answer, 400, "messages[0]")


def test_malformed_forms(serve):
    client = serve()
    good, name = recording([1]), "multipart/form-data; boundary=x"
    for body, kind, message in (
        (b"", "multipart/form-data", "boundary"),
        (b"--x\r\nnonsense", name, ""),
        (b"--x\r\nContent-Disposition: form-data\r\n\r\na\r\n--x--", name, "name"),
        (b"--x\r\nContent-Disposition: form-data; name=\"file\"; filename=\"a\"\r\n\r\n" + good, name, "one audio file"),
        (b"{}", "application/json", "one audio file"),
        (b"--x\r\n" + b"A: b\r\n" * 20000, name, ""),
    ):
        refused(client.post(TRANSCRIPTIONS, content=body, headers={"Content-Type": kind}), 400, message)
    refused(client.post(TRANSCRIPTIONS, files=[("file", ("a", good)), ("file", ("b", good))]), 400, "Too many files")
    refused(upload(client, good, **{f"field{number}": "a" for number in range(40)}), 400, "Too many fields")
    refused(upload(client, good, prompt="a" * 70000), 400, "maximum size")
    wrong = {"response_format": "exe", "stream": "maybe", "timestamp_granularities": "letter", "language": "x" * 99}
    for field, value in wrong.items():
        refused(upload(client, good, **{field: value}), 400, field)
    refused(upload(client, good, response_format="srt", stream="true"), 400, "stream")


@pytest.mark.parametrize("tree, message", [
    (b"\xff{", "not JSON"), (b"[" * 5000, "not JSON"), (b"[]", "JSON object"), ({"messages": []}, "messages"),
    ({"messages": "hi"}, "messages"), ({"messages": [3]}, "no place"), ({"messages": [{"role": "user"}]}, "content"),
    ({"messages": [{"role": "king", "content": "a"}]}, "no place"),
    ({"messages": [{"role": "assistant", "content": "a"}]}, "no place"),
    ({"messages": [{"role": "user", "content": [[]]}]}, "parts are"), ({"stop": [1]}, "stop"), ({"n": 3}, "n:"),
    ({"max_tokens": "many"}, "max_tokens"), ({"max_tokens": -1}, "max_tokens"), ({"max_tokens": True}, "max_tokens"),
    ({"tools": {"a": 1}}, "tools"), ({"tools": [{"type": "function", "function": {"name": "a b"}}]}, "a tool is"),
    ({"tool_choice": "required"}, "tool_choice"), ({"tool_choice": {"function": {"name": "f"}}}, "tool_choice"),
    ({"logprobs": True}, "logprobs"), ({"messages": [{"role": "user", "content": [AUDIO | {"input_audio": 7}]}]}, "base64"),
    ({"response_format": {"type": "json_schema"}}, "response_format"), ({"modalities": ["audio"]}, "modalities"),
    ({"messages": [{"role": "user", "content": "x" * 300_000}]}, "characters"), ({"metadata": [[]] * 200_000}, "too many values"),
    ({"metadata": {"a": [[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[[]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]]}}, "deeply"),
    ({"messages": [{"role": "user", "content": [AUDIO | {"input_audio": {"data": "!?"}}]}]}, "base64"),
    ({"messages": [{"role": "user", "content": [AUDIO]}]}, "cannot be read"),
    ({"messages": [{"role": "user", "content": "a"}, {"role": "tool", "content": "b"}]}, "no place"),
])  # fmt: skip
def test_malformed_chats(serve, tree, message):
    client = serve()
    if isinstance(tree, dict):
        tree = json.dumps({"messages": [{"role": "user", "content": "hi"}], "max_tokens": 2} | tree).encode()
    refused(client.post(CHAT, content=tree), 400, message)


def test_too_large(serve):
    """By what the header says, and by what really comes."""
    client = serve(Limits(upload=20000))
    refused(upload(client, recording([1, 2, 3])), 413, "more than", "upload_too_large")
    pieces = (b"a" * 1000 for _ in range(30))
    refused(client.post(CHAT, content=pieces, headers={"Content-Type": "application/json"}), 413, "more than")
    assert upload(client, recording([1])).status_code == 200


def test_keys(serve):
    client = serve(keys=["one", "two"])
    for headers in ({}, {"Authorization": "Bearer three"}, {"Authorization": "one"}, {"Authorization": "Basic one"}):
        answer = client.get("/v1/models", headers=headers)
        refused(answer, 401, "API key", "invalid_api_key")
        assert answer.headers["www-authenticate"] == "Bearer"
        refused(client.post(TRANSCRIPTIONS, headers=headers, files={"file": recording([1])}), 401, "API key")
        assert client.get("/metrics", headers=headers).status_code == 401
    assert client.get("/v1/models", headers={"Authorization": "Bearer two"}).status_code == 200
    assert client.get("/health").status_code == 200 and client.get("/").status_code == 200
    for key, expected in (("two", "final"), ("three", "error")):
        with client.websocket_connect("/v1/steermoe/stream") as live:
            live.send_json({"type": "start", "format": "int16", "api_key": key})
            live.send_json({"type": "stop"})
            assert expected in live.receive_json()


def test_pages_of_other_sites(serve):
    client = serve(hosts=["127.0.0.1", "localhost", "mine.example"])
    for headers in ({"Host": "evil.example"}, {"Origin": "https://evil.example"}, {"Origin": "null"}, {"Host": "[::1"}):
        refused(client.get("/v1/models", headers=headers), 403, "--allowed-host")
    for headers in ({"Host": "localhost:8000"}, {"Origin": HOST}, {"Host": "mine.example"}, {"Origin": "https://mine.example"}):
        assert client.get("/v1/models", headers=headers).status_code == 200, headers
    from starlette.testclient import WebSocketDenialResponse

    with pytest.raises(WebSocketDenialResponse):
        with client.websocket_connect("/v1/steermoe/stream", headers={"Origin": "http://evil.example"}):
            pass


def test_no_more_at_once_than_allowed(serve, model):
    client, answers = serve(Limits(requests=2)), []
    model.gate.clear()
    threads = [threading.Thread(target=lambda: answers.append(upload(client, recording([1])))) for _ in range(5)]
    for thread in threads:
        thread.start()
    until(lambda: len(answers) == 3)
    model.gate.set()
    for thread in threads:
        thread.join()
    assert sorted(answer.status_code for answer in answers) == [200, 200, 429, 429, 429]
    busy = next(answer for answer in answers if answer.status_code == 429)
    refused(busy, 429, "at work", "too_many_requests")
    assert int(busy.headers["retry-after"]) >= 1
    assert upload(client, recording([1])).status_code == 200 and metric(client, "steermoe_requests_at_work") == 0


def test_audio_that_waits_is_bounded(serve, model):
    client = serve(Limits(waiting=5.0))
    model.gate.clear()
    first = threading.Thread(target=upload, args=[client, recording([1] * 8)])
    first.start()
    until(lambda: model.batches)
    second = threading.Thread(target=upload, args=[client, recording([1] * 8)])
    second.start()
    until(lambda: metric(client, "steermoe_audio_waiting_seconds") > 3)
    answer = upload(client, recording([1] * 8))
    refused(answer, 429, "are waiting", "queue_full")
    assert int(answer.headers["retry-after"]) >= 1
    model.gate.set()
    first.join()
    second.join()


def test_a_request_has_its_time(serve, model):
    client, model.slowness = serve(Limits(timeout=0.3)), 0.8
    answer = upload(client, recording([1]))
    refused(answer, 504, "not ready in time")
    assert answer.headers["x-should-retry"] == "false"


def test_a_failure_is_no_one_elses(serve, model):
    """A piece that cannot be read fails alone, also in a batch, and nothing of the reason leaves the server."""
    read = model._read

    def fails(samples, conf, heard=None):
        texts = read(samples, conf)
        if toneme.text([7]) in texts:
            raise RuntimeError("secret reason")
        return texts

    client, model._read, model.slowness = serve(), fails, 0.2
    answers = {}

    def ask(word: int) -> None:
        answers[word] = upload(client, recording([word]))

    threads = [threading.Thread(target=ask, args=[word]) for word in (6, 7, 8, 9)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    refused(answers.pop(7), 500, "the server failed")
    assert {word: answer.json()["text"] for word, answer in answers.items()} == {word: toneme.text([word]) for word in (6, 8, 9)}


def post(port: int, content: bytes, path: str = TRANSCRIPTIONS, length: int | None = None) -> socket.socket:
    """A connection on which a request has been sent and nothing read."""
    head = b'--x\r\nContent-Disposition: form-data; name="file"; filename="a"\r\n\r\n'
    body = content if path == CHAT else head + content + b"\r\n--x--\r\n"
    request = f"POST {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nContent-Type: multipart/form-data; boundary=x\r\n"
    connection = socket.create_connection(("127.0.0.1", port), timeout=20)
    connection.sendall(f"{request}Content-Length: {len(body) if length is None else length}\r\n\r\n".encode() + body)
    return connection


def test_a_client_that_goes_away_frees_its_slot(model, monkeypatch):
    """Its pieces that no batch has taken yet are dropped; a chat is dropped between two tokens."""
    ended = []

    def write(*_):
        try:
            while True:
                time.sleep(0.01)
                yield "text", "word "
        finally:
            ended.append(True)

    monkeypatch.setitem(sys.modules, "steermoe.serve.answers", SimpleNamespace(write=write))
    model.slowness, model.decode_conf.max_batch = 0.3, 1
    with running(Server(model, Limits(requests=3))) as port, httpx.Client(base_url=f"{HOST}:{port}", timeout=30) as client:
        connection = post(port, recording(list(range(30)) * 2))  # eight pieces
        until(lambda: model.batches)
        streamed = post(port, b'{"stream": true, "messages": [{"role": "user", "content": "a"}]}', CHAT)
        assert b"200 OK" in streamed.recv(1000)
        half = post(port, b"RIFF", length=9999)  # which promises more than it sends
        until(lambda: metric(client, "steermoe_requests_at_work") == 3)
        assert client.post(CHAT, json={}).status_code == 429
        for one in (connection, streamed, half):
            one.close()
        until(lambda: metric(client, "steermoe_requests_at_work") == 0)
        until(lambda: ended)
        batches = len(model.batches)
        assert upload(client, recording([1, 2])).json()["text"] == toneme.text([1, 2])
        assert batches <= 4 and len(model.batches) <= batches + 2 and metric(client, "steermoe_audio_waiting_seconds") == 0
        gone = [line for line in client.get("/metrics").text.splitlines() if 'status="499"' in line and "requests_total" in line]
        assert gone


def test_a_body_that_does_not_come(model, monkeypatch):
    monkeypatch.setattr("steermoe.serve.limits.SILENCE_S", 0.3)
    with running(Server(model)) as port:
        connection = post(port, b"RIFF", length=9999)
        assert b"408 Request Timeout" in connection.recv(1000)
        connection.close()


def test_live_sessions_have_limits(serve, monkeypatch):
    client = serve(Limits(audio=1.0))
    cases = (
        ([{"type": "go"}], "first message"),
        ([b"\0\0"], "first message"),
        (["{"], "JSON"),
        ([{"type": "start", "format": "mp3"}], "first message"),
        ([{"type": "start", "format": "int16"}, b"\0\0\0"], "whole samples"),
        ([{"type": "start", "format": "float32"}, struct.pack("<f", np.inf)], "NaN"),
        ([{"type": "start", "format": "int16"}, b"\0" * 32002], "ends after 1 s"),
    )
    for messages, expected in cases:
        with client.websocket_connect("/v1/steermoe/stream") as live:
            for message in messages:
                if isinstance(message, dict):
                    live.send_json(message)
                else:
                    (live.send_bytes if isinstance(message, bytes) else live.send_text)(message)
            assert expected in live.receive_json()["error"]["message"]
            assert live.receive()["code"] == 1008
    monkeypatch.setattr("steermoe.serve.live.SILENCE_S", 0.2)
    with client.websocket_connect("/v1/steermoe/stream") as live:
        live.send_json({"type": "start", "format": "int16"})
        assert "nothing has come" in live.receive_json()["error"]["message"]


def test_a_live_session_that_breaks_off(serve, model):
    client = serve(Limits(requests=1))
    with client.websocket_connect("/v1/steermoe/stream") as live:
        live.send_json({"type": "start", "format": "int16"})
        live.send_bytes(b"\0\0" * 8000)
        assert client.post(CHAT, json={}).status_code == 429
    until(lambda: metric(client, "steermoe_requests_at_work") == 0)
    assert client.post(CHAT, json={}).status_code == 400
