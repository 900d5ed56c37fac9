"""The server's answers: OpenAI's forms, live text, the page, and that every request gets its own."""

from __future__ import annotations

import asyncio
import importlib.util
import io
import json
import subprocess
import sys
import threading
from pathlib import Path
from types import SimpleNamespace

import pytest
import soundfile
import toneme
from serving import Listener, events, httpx, long_speech, metric, recording, running, transcribe, until

from steermoe.errors import UserError
from steermoe.serve import transcriptions
from steermoe.serve.app import Server
from steermoe.transcript import Segment

TEXT = toneme.text([1, 2, 3])


@pytest.fixture()
def model():
    return Listener()


@pytest.fixture()
def client(model):
    from starlette.testclient import TestClient

    with TestClient(Server(model).app, base_url="http://127.0.0.1") as client:
        yield client


def test_every_format(client):
    content = recording([1, 2, 3])
    assert transcribe(client, content).json()["text"] == TEXT
    assert transcribe(client, content, response_format="text").text == f"{TEXT}\n"
    assert transcribe(client, content, response_format="srt").text == f"1\n00:00:00,000 --> 00:00:01,380\n{TEXT}\n"
    assert transcribe(client, content, response_format="vtt").text == f"WEBVTT\n\n00:00:00.000 --> 00:00:01.380\n{TEXT}\n"
    found = transcribe(client, content, response_format="verbose_json", language="en").json()
    assert (found["text"], found["duration"], found["language"]) == (TEXT, 1.38, "en") and "words" not in found
    assert [(part["start"], part["end"], part["text"]) for part in found["segments"]] == [(0.0, 1.38, TEXT)]


@pytest.mark.parametrize("form, rate, settings", [
    ("FLAC", 16000, {}), ("OGG", 48000, {"subtype": "OPUS"}), ("MP3", 44100, {}), ("WAV", 8000, {}),
    ("WAV", 44100, {"subtype": "FLOAT"}),
])  # fmt: skip
def test_kinds_of_files(client, form, rate, settings):
    words = [1, 2, 3, 4]
    assert transcribe(client, recording(words, form, rate, **settings)).json()["text"] == toneme.text(words)


@pytest.mark.parametrize("form, codec", [("webm", "libopus"), ("mp4", "aac")])
def test_what_browsers_and_phones_record(client, form, codec):
    av = pytest.importorskip("av")
    stream, samples_n = io.BytesIO(), toneme.speak([1, 2, 3, 4, 5])
    with av.open(stream, "w", format=form) as container:
        track = container.add_stream(codec, rate=48000 if codec == "libopus" else 16000, layout="mono")
        frame = av.AudioFrame.from_ndarray(samples_n[None], format="fltp", layout="mono")
        frame.sample_rate = 16000
        wanted = track.codec_context
        wanted.open()  # now it knows its frames' size
        resampler = av.AudioResampler(wanted.format.name, "mono", wanted.sample_rate, wanted.frame_size)
        for part in [*resampler.resample(frame), *resampler.resample(None)]:
            container.mux(track.encode(part))
        container.mux(track.encode(None))
    assert transcribe(client, stream.getvalue()).json()["text"] == toneme.text([1, 2, 3, 4, 5])


def test_a_long_recording_and_its_stream(client, model):
    samples_n, text = long_speech([[1, 2, 3, 4, 5], [6, 7, 8, 9], [10, 11, 12, 13, 14], [15, 16, 17]])
    stream = io.BytesIO()
    soundfile.write(stream, samples_n, 16000, format="FLAC")
    found = transcribe(client, stream.getvalue(), response_format="verbose_json").json()
    assert found["text"] == text and len(found["segments"]) >= 3
    model.decode_conf.max_batch = 1
    found = events(transcribe(client, stream.getvalue(), stream="true"))
    deltas = [event["delta"] for event in found if event["type"] == "transcript.text.delta"]
    assert len(deltas) >= 3 and "".join(deltas) == text
    assert found[-1] == {"type": "transcript.text.done", "text": text, "usage": found[-1]["usage"]}
    asked = {"timestamp_granularities[]": ["segment", "word"]}  # as the page does: the end of a stream then has all times
    whole = transcribe(client, stream.getvalue(), response_format="verbose_json", **asked).json()
    (*_, end) = events(transcribe(client, stream.getvalue(), stream="true", **asked))
    assert end == whole | {"type": "transcript.text.done"} and end["segments"] and "words" in end


def test_what_no_pause_parts_is_joined(client, model):
    """Words that a cut has maimed are not in the stream before the next piece has mended them."""
    words = list(range(1, 25))
    content = recording(words)
    assert transcribe(client, content).json()["text"] == toneme.text(words)
    model.decode_conf.max_batch = 1
    deltas = [event.get("delta", "") for event in events(transcribe(client, content, stream="true"))]
    assert "".join(deltas) == toneme.text(words) and len(deltas) > 3


def test_silence(client):
    stream = io.BytesIO()
    soundfile.write(stream, toneme.silence(9.0), 16000, format="WAV")
    assert transcribe(client, stream.getvalue()).json()["text"] == ""
    assert transcribe(client, stream.getvalue(), response_format="verbose_json").json()["segments"] == []


def test_times_of_words(client, monkeypatch):
    monkeypatch.setitem(sys.modules, "steermoe.serve.words", SimpleNamespace(word_times=lambda *_: [Segment(0.1, 0.5, "bi")]))
    settings = {"response_format": "verbose_json", "timestamp_granularities[]": ["word", "segment"]}
    found = transcribe(client, recording([1, 2, 3]), **settings).json()
    assert found["words"] == [{"word": "bi", "start": 0.1, "end": 0.5}] and len(found["segments"]) == 1


def test_words_that_two_pieces_hear_are_there_once():
    async def results():
        yield "one two thr", [Segment(0.0, 1.0, "one"), Segment(2.0, 2.5, "two"), Segment(3.6, 4.0, "thr")]
        yield "two three four", [Segment(-1.0, -0.5, "two"), Segment(0.6, 1.2, "three"), Segment(2.0, 3.0, "four")]
        yield "five", [Segment(0.5, 1.0, "five")]

    async def read() -> tuple[str, list[Segment]]:
        words: list[Segment] = []
        pieces = [(0, 4, False), (3, 7, True), (7, 9, False)]
        transcript = await transcriptions.last(transcriptions.settled(pieces, results(), words))
        return transcript.text, words

    text, words = asyncio.run(read())
    assert text == "one two three four five" and [word.text for word in words] == text.split()
    assert [word.start for word in words] == [0.0, 2.0, 3.6, 5.0, 7.5]


def test_models_and_health(client):
    card = client.get("/v1/models").json()["data"][0]
    assert client.get(f"/v1/models/{card['id']}").json() == card and card["object"] == "model"
    assert client.get("/v1/models/gpt-4").json()["error"]["code"] == "model_not_found"
    assert client.get("/health").json() == {"status": "ok"}


def test_metrics(client):
    transcribe(client, recording([1, 2, 3]))
    client.get("/nowhere/1")
    client.get("/nowhere/2")
    text = client.get("/metrics").text
    assert 'steermoe_requests_total{route="/v1/audio/transcriptions",status="200"} 1.0' in text
    assert 'steermoe_requests_total{route="other",status="404"} 2.0' in text and "nowhere" not in text
    assert metric(client, "steermoe_audio_seconds_total") == 1.38 and metric(client, "process_resident_memory_bytes") > 1e7


def test_the_page_and_nothing_else_of_the_disk(client):
    answer = client.get("/")
    assert answer.status_code == 200 and "default-src 'self'" in answer.headers["content-security-policy"]
    assert answer.text == client.get("/page/index.html").text
    for path in ("/page/../app.py", "/page/..%2fapp.py", "/page/%2e%2e/app.py", "/page//etc/passwd", "/page/app.py", "/page/"):
        assert client.get(path).status_code == 404, path


def test_live_text(client):
    samples_n = toneme.speak([1, 2, 3, 4, 5, 6])
    for form, sent in (("int16", (samples_n * 32767).astype("<i2")), ("float32", samples_n)):
        with client.websocket_connect("/v1/steermoe/stream") as socket:
            socket.send_json({"type": "start", "format": form})
            for first in range(0, len(sent), 4000):
                socket.send_bytes(sent[first : first + 4000].tobytes())
            socket.send_json({"type": "stop"})
            answers = []
            while not answers or not answers[-1]["final"]:
                answers.append(socket.receive_json())
        assert answers[-1]["text"] == "".join(answer["new"] for answer in answers) == toneme.text([1, 2, 3, 4, 5, 6])
        assert answers[-1]["heard"] == 2.76 and len(answers) > 1


def test_live_text_on_a_real_server(model):
    from websockets.exceptions import InvalidStatus
    from websockets.sync.client import connect

    sent = (toneme.speak([1, 2, 3]) * 32767).astype("<i2").tobytes()
    with running(Server(model, hosts=["127.0.0.1"])) as port:
        with connect(f"ws://127.0.0.1:{port}/v1/steermoe/stream", origin=f"http://127.0.0.1:{port}", open_timeout=60) as socket:
            for message in (json.dumps({"type": "start", "format": "int16"}), sent, json.dumps({"type": "stop"})):
                socket.send(message)
            assert json.loads([*socket][-1])["text"] == TEXT and socket.close_code == 1000
        with pytest.raises(InvalidStatus, match="403"):
            connect(f"ws://127.0.0.1:{port}/v1/steermoe/stream", origin="http://evil.example", open_timeout=60)


def test_answers_belong_to_their_requests(model):
    """Many at once, on a real server: requests are read together, and everyone gets the own text."""
    model.slowness, texts = 0.05, {}

    def ask(number: int) -> None:
        words = [(number * 7 + step) % 35 for step in range(1 + number % 5)]
        with httpx.Client(base_url=url, timeout=60) as own:
            texts[number] = (transcribe(own, recording(words)).json()["text"], toneme.text(words))

    with running(Server(model)) as port:
        url = f"http://127.0.0.1:{port}"
        threads = [threading.Thread(target=ask, args=[number]) for number in range(24)]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
    assert len(texts) == 24 and all(found == expected for found, expected in texts.values())
    assert sum(model.batches) == 24 and max(model.batches) > 1


@pytest.mark.slow
def test_the_load_generator(model, tmp_path):
    """Clients that go away and hostile ones among others: the others get their texts, and one wrong text is found."""
    if not importlib.util.find_spec("locust"):
        pytest.skip("pip install locust")
    texts = {str(tmp_path / f"{word}.wav"): toneme.text([word, word + 1]) for word in range(0, 30, 5)}
    for word, name in zip(range(0, 30, 5), texts):
        Path(name).write_bytes(recording([word, word + 1]))
    script = Path(__file__).parents[1] / "tools" / "load_server.py"
    with running(Server(model)) as port:
        host = f"http://127.0.0.1:{port}"
        command = [sys.executable, "-m", "locust", "-f", script, "--headless", "-u", "8", "-r", "8", "-t", "12s", "-H", host]
        for wrong, status in ((False, 0), (True, 1)):
            said = list(texts.values())
            said = [*said[wrong:], *said[:wrong]]  # wrong: everyone expects another recording's text
            (tmp_path / "texts").write_text("".join(f"{name}\t{text}\n" for name, text in zip(texts, said)))
            options = ["--texts", tmp_path / "texts", "--exclude-tags", "chat"]  # this model does not chat
            done = subprocess.run([*command, *options], capture_output=True, text=True)
            assert done.returncode == status, done.stderr
            assert ("another text: " in done.stderr) == wrong


def test_the_real_openai_client(model):
    openai = pytest.importorskip("openai")
    content = recording([1, 2, 3])
    with running(Server(model, keys=["secret"])) as port:
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="secret", max_retries=0) as api:
            create = api.audio.transcriptions.create
            assert create(model="steermoe", file=("a.wav", content)).text == TEXT
            assert create(model="steermoe", file=("a.wav", content), response_format="text").strip() == TEXT
            assert "00:00:01,380" in create(model="steermoe", file=("a.wav", content), response_format="srt")
            found = create(model="steermoe", file=("a.wav", content), response_format="verbose_json")
            assert (found.segments[0].text, found.segments[0].end, found.duration) == (TEXT, 1.38, 1.38)
            kinds = [event.type for event in create(model="steermoe", file=("a.wav", content), stream=True)]
            assert kinds == ["transcript.text.delta", "transcript.text.done"]
            assert [entry.id for entry in api.models.list()] == ["steermoe"]
            with pytest.raises(openai.BadRequestError, match="truncated"):
                create(model="steermoe", file=("a.wav", content[:3000]))
        with openai.OpenAI(base_url=f"http://127.0.0.1:{port}/v1", api_key="wrong", max_retries=0) as api:
            with pytest.raises(openai.AuthenticationError, match="wrong API key"):
                api.models.list()


def test_the_verb_checks_before_it_loads(tmp_path, monkeypatch):
    from steermoe.bin.serve import main

    (tmp_path / "keys").write_text("\n")
    for words, message in (
        (["--timeout", "0"], "--timeout 0: must be above 0"),
        (["--port", "70000"], "--port 70000"),
        (["--api-key-file", f"{tmp_path}/keys"], "has no key in it"),
        (["--certfile", f"{tmp_path}/none"], "no such file"),
    ):
        with pytest.raises(UserError, match=message):
            main(words)
    monkeypatch.setitem(sys.modules, "uvicorn", None)
    with pytest.raises(UserError, match=r"serving needs uvicorn: pip install 'steermoe\[serve\]'"):
        main([])


def test_the_verb_serves(tiny_model, tiny_config, tiny_bases, tmp_path, monkeypatch, capsys):
    """What it hands to uvicorn is bound to this machine alone, and answers; its options arrive."""
    import uvicorn
    from starlette.testclient import TestClient

    from steermoe.bin.serve import main
    from steermoe.checkpoint import save_adapter

    save_adapter(tmp_path / "adapter.safetensors", tiny_model, tiny_config, 7, {})
    (tmp_path / "keys").write_text("one\ntwo\n")
    served = {}
    monkeypatch.setattr(uvicorn, "run", lambda app, **settings: served.update(settings, app=app))
    main(["--model", str(tmp_path), "--name", "mine", "--max-upload", "0.001", "--max-audio", "1", "--allowed-host", "a.example"])
    assert (served["host"], served["port"]) == ("127.0.0.1", 8000) and "ssl_certfile" not in served
    with TestClient(served["app"], base_url="http://a.example") as client:
        assert client.get("/v1/models").json()["data"][0]["id"] == "mine"
        assert transcribe(client, recording([1, 2])).status_code == 413
        assert client.get("/v1/models", headers={"Host": "b.example"}).status_code == 403
    words = ["--host", "0.0.0.0", "--port", "0", "--talker", str(tiny_bases / "llm"), "--max-audio", "1"]
    main(["--model", str(tmp_path), *words, "--certfile", str(tmp_path / "keys")])
    assert (served["host"], served["port"], served["ssl_certfile"]) == ("0.0.0.0", 0, tmp_path / "keys")
    assert "--api-key-file" in capsys.readouterr().err
    with TestClient(served["app"], base_url="https://any.example") as client:
        assert "longer than 1 s" in transcribe(client, recording([1, 2, 3])).json()["error"]["message"]
        refused = client.post("/v1/chat/completions", json={"messages": [{"role": "user", "content": "hi"}]})
        assert refused.status_code == 400 and "talker" in refused.json()["error"]["message"]
    main(["--model", str(tmp_path), "--host", "0.0.0.0", "--api-key-file", str(tmp_path / "keys")])
    assert "--api-key-file" not in capsys.readouterr().err
    with TestClient(served["app"], base_url="http://any.example") as client:
        assert client.get("/v1/models").status_code == 401
        assert client.get("/v1/models", headers={"Authorization": "Bearer two"}).status_code == 200
    until(lambda: not any(thread.name == "model" for thread in threading.enumerate()))
