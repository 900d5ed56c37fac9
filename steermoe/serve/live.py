"""Text while audio arrives, over a WebSocket: /v1/steermoe/stream.

    client  {"type": "start", "format": "int16" or "float32", "api_key": where one is needed}
            binary messages of samples at 16 kHz, one channel, little-endian, of any length
            {"type": "stop"}
    server  {"new": words that are final now, "open": words that may still change, "text": all final words, "heard": seconds,
             "final": whether this was the last}
            {"error": {"message": …}} and the end, where something is wrong
"""

from __future__ import annotations

import asyncio
import json
import time
from collections import deque
from typing import Iterator

import numpy as np
from starlette.websockets import WebSocket, WebSocketDisconnect

from steermoe.data.segment import SAMPLE_RATE
from steermoe.serve.limits import SILENCE_S, ApiError, as_api_error, check_key

TYPES = {"int16": np.dtype("<i2"), "float32": np.dtype("<f4")}
CHUNK_S = 1.0  # read as soon as so much has come
MOST_S = 8.0  # no more than this is held: a client that sends faster than the model reads has to wait
CLOSED = {400: 1008, 401: 1008, 429: 1013, 503: 1013, 504: 1013}  # the WebSocket's codes


async def live(server, socket: WebSocket) -> None:
    """One client's session. server: the Server whose model is asked."""
    await socket.accept()
    talk = Live(server, socket)
    receiver = None
    try:
        await talk.start()
        receiver = asyncio.ensure_future(talk.receive())
        await talk.answer(receiver)
        await socket.close()
    except WebSocketDisconnect:
        pass
    except Exception as error:
        told = as_api_error(error)
        try:
            await socket.send_json(told.body())
            await socket.close(CLOSED.get(told.status, 1011))
        except (WebSocketDisconnect, RuntimeError):  # it has gone meanwhile
            pass
    finally:
        if receiver is not None:
            receiver.cancel()


class Live:
    """What is held of a session: samples that wait to be read, and the texts so far."""

    def __init__(self, server, socket: WebSocket):
        self.server, self.socket = server, socket
        self.held: deque[np.ndarray] = deque()
        self.samples, self.ended, self.changed = 0, False, asyncio.Condition()
        self.chunks: deque[np.ndarray | None] = deque()  # for the model; None is the end
        self.dtype = TYPES["int16"]

    async def start(self) -> None:
        """The first message. ApiError for another one, or a wrong key."""
        content = await self.message()
        if not isinstance(content, dict) or content.get("type") != "start" or content.get("format") not in TYPES:
            raise ApiError(400, 'the first message must be {"type": "start", "format": "int16"} or "float32"')
        check_key(self.server.keys, self.socket.headers.get("authorization") or f"Bearer {content.get('api_key', '')}")
        self.dtype = TYPES[content["format"]]

    async def message(self) -> dict | bytes:
        try:
            message = await asyncio.wait_for(self.socket.receive(), SILENCE_S)
        except asyncio.TimeoutError:
            raise ApiError(400, f"nothing has come for {SILENCE_S:g} s") from None
        if message["type"] == "websocket.disconnect":
            raise WebSocketDisconnect(message.get("code", 1006))
        if message.get("bytes") is not None:
            return message["bytes"]
        try:
            return json.loads(message["text"])
        except (ValueError, RecursionError):
            raise ApiError(400, "a text message must be JSON") from None

    async def receive(self) -> None:
        """Takes samples until the client stops; waits while too many are held."""
        heard = 0
        while True:
            content = await self.message()
            if isinstance(content, dict) and content.get("type") == "stop":
                break
            if not isinstance(content, bytes) or len(content) % self.dtype.itemsize:
                raise ApiError(400, 'after the start come binary messages of whole samples, and {"type": "stop"}')
            samples_n = np.frombuffer(content, self.dtype)
            if not np.isfinite(samples_n).all():
                raise ApiError(400, "samples that are NaN or infinite")
            heard += len(samples_n)
            if heard > self.server.limits.audio * SAMPLE_RATE:
                raise ApiError(400, f"a session ends after {self.server.limits.audio:g} s: begin another", code="audio_too_long")
            async with self.changed:
                await self.changed.wait_for(lambda: self.samples < MOST_S * SAMPLE_RATE)
                self.held.append(samples_n)
                self.samples += len(samples_n)
                self.changed.notify_all()
        async with self.changed:
            self.ended = True
            self.changed.notify_all()

    async def answer(self, receiver: asyncio.Future) -> None:
        """Reads what is held, again and again, and sends what was understood."""
        text, partials = "", self.server.model.stream(self.fed())
        while True:
            await self.some(receiver)
            last = self.ended and not self.samples
            self.chunks.append(None if last else np.concatenate(self.held))
            self.held.clear()
            self.samples = 0
            async with self.changed:
                self.changed.notify_all()
            deadline = time.monotonic() + self.server.limits.timeout
            partial = await self.server.batcher.call(lambda: next(partials), deadline)
            text += partial.new
            content = {"new": partial.new, "open": partial.open, "text": text, "heard": round(partial.heard, 2), "final": last}
            await self.socket.send_json(content)
            if last:
                return

    def fed(self) -> Iterator[np.ndarray]:
        while (chunk_n := self.chunks.popleft()) is not None:
            yield chunk_n

    async def some(self, receiver: asyncio.Future) -> None:
        """Returns when a chunk is there, or the end; raises what has gone wrong with receiving."""

        async def enough() -> None:
            async with self.changed:
                await self.changed.wait_for(lambda: self.ended or self.samples >= CHUNK_S * SAMPLE_RATE)

        waiting = asyncio.ensure_future(enough())
        try:
            await asyncio.wait({waiting, receiver}, return_when=asyncio.FIRST_COMPLETED)
            if receiver.done():
                receiver.result()
                await waiting
        finally:
            waiting.cancel()
