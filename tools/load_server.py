"""A load generator for `steermoe serve`, for locust (pip install locust): clients that go away, and clients that send what they
should not, among others that know the text of what they send.

    steermoe transcribe *.wav > texts                          # FILE<TAB>text, what the server has to answer too
    steermoe serve &
    locust -f tools/load_server.py --headless -u 32 -r 4 -t 10m -H http://127.0.0.1:8000 --texts texts

It fails (status 1) if anyone gets a wrong text, no clear error, or nothing. The server's memory is printed every minute.
"""

from __future__ import annotations

import base64
import difflib
import json
import random
import re
import struct
import time
from pathlib import Path

import gevent
import requests
from locust import HttpUser, between, events, tag, task

TRANSCRIPTIONS, CHAT = "/v1/audio/transcriptions", "/v1/chat/completions"
NOISE = b"RIFF" + struct.pack("<I", 2**31) + b"WAVEfmt " + struct.pack("<IHHIIHH", 16, 1, 1, 16000, 32000, 2, 16) + b"data"
HOSTILE = {
    "empty": b"",
    "no audio": b"\0" * 100_000,
    "a page": b"<html></html>" * 1000,
    "claims hours": NOISE + struct.pack("<I", 2**30) + b"\0" * 20_000,
    "a playlist": b"#EXTM3U\nfile:///etc/passwd\n",
    "broken WebM": b"\x1aE\xdf\xa3" + b"\xff" * 5000,
    "too large": b"\0" * (26 * 2**20),
}
NEAR = 0.6  # of the letters
TEXTS: dict[str, str] = {}


@events.init_command_line_parser.add_listener
def options(parser) -> None:
    parser.add_argument("--texts", required=True, help="FILE<TAB>text of recordings, as steermoe transcribe prints them")


@events.test_start.add_listener
def begin(environment, **_) -> None:
    for line in Path(environment.parsed_options.texts).read_text(encoding="utf-8").splitlines():
        name, _, text = line.partition("\t")
        TEXTS[name] = text
    gevent.spawn(watch, environment.host)


def watch(host: str) -> None:
    while True:
        text = requests.get(f"{host}/metrics").text
        found = re.findall(r"^(process_resident_memory_bytes|steermoe_requests_at_work) (\S+)", text, re.M)
        print(time.strftime("%H:%M:%S"), *(f"{name} {float(value):,.0f}" for name, value in found), flush=True)
        gevent.sleep(60)


class Client(HttpUser):
    wait_time = between(0, 1)

    def send(self, name: str, content: bytes, **settings):
        return self.client.post(
            TRANSCRIPTIONS, files={"file": ("a.wav", content)}, name=name, catch_response=True, timeout=400, **settings
        )

    def busy(self, answer) -> bool:
        """The server has enough to do, and says so."""
        if answer.status_code in (429, 503) and int(answer.headers.get("Retry-After", 0)) >= 1:
            answer.request_meta["name"] += " (busy)"
            answer.success()
            gevent.sleep(int(answer.headers["Retry-After"]))
            return True
        return False

    def judge(self, answer, found: str, expected: str) -> None:
        """It has to be this recording's text more than any other's. A word may differ: in bfloat16 the others of a batch move the last digits."""

        def nearness(text: str) -> float:
            return difflib.SequenceMatcher(None, found, text).ratio()

        if nearness(expected) > NEAR and max(TEXTS.values(), key=nearness) == expected:
            answer.success()
        else:
            answer.failure(f"another text: {found[:60]!r}, not {expected[:60]!r}")

    @task(6)
    def transcribe(self) -> None:
        name, expected = random.choice(list(TEXTS.items()))
        with self.send("transcribe", Path(name).read_bytes()) as answer:
            if not self.busy(answer):
                self.judge(answer, answer.json()["text"] if answer.status_code == 200 else str(answer.text), expected)

    @task(2)
    def stream(self) -> None:
        name, expected = random.choice(list(TEXTS.items()))
        with self.send("stream", Path(name).read_bytes(), data={"stream": "true"}) as answer:
            if not self.busy(answer):
                text = str(answer.text)  # None, where nothing has come
                found = [json.loads(line[6:]) for line in text.split("\n\n") if line.startswith("data: {")]
                self.judge(answer, "".join(event.get("delta", "") for event in found) if found else text, expected)

    @task(3)
    def go_away(self) -> None:
        begun, name = time.perf_counter(), random.choice(list(TEXTS))
        try:
            files = {"file": ("a.wav", Path(name).read_bytes())}
            requests.post(f"{self.host}{TRANSCRIPTIONS}", files=files, timeout=(10, random.uniform(0.05, 3)))
        except requests.exceptions.ReadTimeout:
            pass
        spent = 1000 * (time.perf_counter() - begun)
        self.environment.events.request.fire(
            request_type="POST", name="goes away", response_time=spent, response_length=0, exception=None, context={}
        )

    @task(4)
    def hostile(self) -> None:
        kind = random.choice([*HOSTILE, "cut"])
        content = HOSTILE[kind] if kind != "cut" else Path(random.choice(list(TEXTS))).read_bytes()[:-2000]
        with self.send(f"hostile: {kind}", content) as answer:
            self.refused(answer)

    @task(2)
    def malformed(self) -> None:
        nothing = b'{"messages": [{"role": "user", "content": [{}]}]}'
        body = random.choice([b"{", b"[" * 9000, b'{"messages": 7}', nothing, b"\xff\0"])
        with self.client.post(CHAT, data=body, name="malformed chat", catch_response=True, timeout=400) as answer:
            self.refused(answer)

    @tag("chat")
    @task(1)
    def chat(self) -> None:
        part = {"data": base64.b64encode(Path(random.choice(list(TEXTS))).read_bytes()).decode(), "format": "wav"}
        content = [{"type": "text", "text": "Answer briefly:"}, {"type": "input_audio", "input_audio": part}]
        tree = {"messages": [{"role": "user", "content": content}], "max_tokens": 4}
        with self.client.post(CHAT, json=tree, name="chat", catch_response=True, timeout=400) as answer:
            if not self.busy(answer) and (answer.status_code != 200 or not answer.json()["choices"]):
                answer.failure(f"status {answer.status_code}: {str(answer.text)[:100]}")

    def refused(self, answer) -> None:
        if self.busy(answer):
            return
        if answer.status_code in (400, 413) and answer.json()["error"]["message"]:
            answer.success()
        else:
            answer.failure(f"status {answer.status_code}: {str(answer.text)[:100]}")
