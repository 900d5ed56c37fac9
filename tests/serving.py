"""A server for tests: a model that hears the tones of toneme, so that every recording has a text that is known."""

from __future__ import annotations

import contextlib
import io
import json
import socket
import threading
import time
from types import SimpleNamespace

import numpy as np
import pytest
import soundfile
import toneme

from steermoe.api import SteerMoE
from steermoe.config import DecodeConf

for package in ("starlette", "uvicorn", "websockets", "python_multipart", "prometheus_client"):
    pytest.importorskip(package, reason="pip install 'steermoe[serve]'")
try:  # either of the two that starlette's TestClient knows
    import httpx2 as httpx
except ImportError:
    httpx = pytest.importorskip("httpx")


class Listener(SteerMoE):
    """Hears words of toneme, in pieces of at most 4 s, without any network. batches: the sizes of what was read at once.
    slowness: seconds that a batch takes. gate: where it waits while it is not set.
    """

    def __init__(self):
        self.network = SimpleNamespace(projector=None)
        self.config = SimpleNamespace(data_conf=SimpleNamespace(max_seconds=4.0))
        self.decode_conf, self.batches, self.slowness, self.gate = DecodeConf(), [], 0.0, threading.Event()
        self.gate.set()
        self.frontend = SimpleNamespace(max_frames=None, frames_per_second=100)

    def _read(self, samples, conf, heard=None):
        self.batches.append(len(samples))
        time.sleep(self.slowness)
        self.gate.wait(60)
        return [toneme.listen(samples_n) for samples_n in samples]


def recording(words: list[int], form: str = "WAV", rate: int = 16000, **settings) -> bytes:
    """A file that says the words, in any format of soundfile."""
    stream = io.BytesIO()
    samples_n = toneme.speak(words)
    if rate != 16000:
        from steermoe.data.audio import resample

        samples_n = resample(samples_n, 16000, rate)
    soundfile.write(stream, samples_n, rate, format=form, **settings)
    return stream.getvalue()


def long_speech(sentences: list[list[int]]) -> tuple[np.ndarray, str]:
    """Sentences parted by pauses, and their text."""
    parts = [np.concatenate([toneme.speak(words), toneme.silence(0.6)]) for words in sentences]
    return np.concatenate(parts), " ".join(map(toneme.text, sentences))


def metric(client, name: str) -> float:
    """The sum of a metric over its labels."""
    lines = client.get("/metrics").text.splitlines()
    return sum(float(line.rpartition(" ")[2]) for line in lines if line.startswith((f"{name} ", f"{name}{{")))


@contextlib.contextmanager
def running(server):
    """A real uvicorn on a free port. -> the port."""
    import uvicorn

    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    config = uvicorn.Config(server.app, host="127.0.0.1", port=port, log_level="warning", timeout_keep_alive=75)
    engine = uvicorn.Server(config)
    thread = threading.Thread(target=engine.run, daemon=True)
    thread.start()
    try:
        until(lambda: engine.started)
        yield port
    finally:
        engine.should_exit = True
        thread.join(20)


def until(true, seconds: float = 20.0) -> None:
    """Waits until something is true."""
    end = time.monotonic() + seconds
    while not true():
        assert time.monotonic() < end, "it has not come true"
        time.sleep(0.01)


def transcribe(client, content: bytes, **data):
    return client.post("/v1/audio/transcriptions", files={"file": ("a.wav", content)}, data={"model": "whisper-1"} | data)


def events(answer) -> list:
    assert answer.headers["content-type"].startswith("text/event-stream")
    lines = [line[6:] for line in answer.text.split("\n\n") if line]
    assert lines[-1] == "[DONE]"
    return [json.loads(line) for line in lines[:-1]]
