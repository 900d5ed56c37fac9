"""The thread that owns the model. All that requests want of it comes here, and is done in batches or in turns.

Three kinds of work: pieces of recordings, of which those that wait are read together; answers of chats, written token by token
in turns; calls, a single step each, which are done before chats (a chunk of live audio, a look inside). Where there is other work
too, batches get half of the time.
"""

from __future__ import annotations

import asyncio
import threading
import time
from collections import deque
from typing import Any, Callable, Iterator, Sequence

import numpy as np

from steermoe.serve.limits import ApiError
from steermoe.transcript import Segment

SAMPLE_RATE = 16000
FRAMES_PER_SECOND = 100  # what decode_conf.batch_frames counts
BATCH_S = 4.0  # what comes meanwhile has to wait: batches are as large as can be read in about so many seconds,
CROWD = 0.25  # or a quarter of all that waits: a search does many utterances in little more time than one
CHATS = 4  # written at once, others wait: each holds the LLM's keys and values of its whole conversation


class Job:
    """One request's work: an asynchronous iterator of its results. Made in the event loop; `close` drops what is not done yet, as
    does cancelling whoever waits for a result.

    deadline: in time.monotonic's seconds; ApiError 504 if a result has not come by then.
    """

    def __init__(self, deadline: float):
        self.loop, self.results, self.closed = asyncio.get_running_loop(), asyncio.Queue(), False
        self.deadline = deadline

    def close(self) -> None:
        self.closed = True

    def put(self, kind: str, value: Any = None) -> None:
        """From the model's thread. kind: "result", "end" or "error"."""
        try:
            self.loop.call_soon_threadsafe(self.results.put_nowait, (kind, value))
        except RuntimeError:  # the server has stopped, and nobody waits
            self.close()

    def __aiter__(self) -> Job:
        return self

    async def __anext__(self) -> Any:
        try:
            kind, value = await asyncio.wait_for(self.results.get(), max(self.deadline - time.monotonic(), 0))
        except asyncio.TimeoutError:
            self.close()
            raise ApiError(504, "the answer was not ready in time: the server is busy, or too much was asked for") from None
        except asyncio.CancelledError:
            self.close()
            raise
        if kind == "error":
            raise value
        if kind == "end":
            raise StopAsyncIteration
        return value


class Reading(Job):
    """(text, words with their times) of pieces of audio, (N,) float32 at 16 kHz, in order. timed: whether there are words."""

    def __init__(self, pieces: Sequence[np.ndarray], deadline: float, timed: bool):
        super().__init__(deadline)
        self.pieces, self.left, self.timed = deque(pieces), len(pieces), timed

    @property
    def seconds(self) -> float:
        return 0.0 if self.closed else sum(map(len, self.pieces)) / SAMPLE_RATE


class Steps(Job):
    """What an iterator gives, every step of it made in the model's thread; None is a step without a result."""

    def __init__(self, steps: Iterator, deadline: float):
        super().__init__(deadline)
        self.steps = steps


class Batcher:
    """model: a steermoe.SteerMoE; its decode_conf says how much is in a batch. waiting: seconds of audio that may wait."""

    def __init__(self, model, metrics, waiting: float):
        self.model, self.metrics, self.waiting = model, metrics, waiting
        self.readings: deque[Reading] = deque()
        self.chats: deque[Steps] = deque()
        self.calls: deque[Steps] = deque()
        self.wake, self.stopping = threading.Condition(), False
        self.balance = 0.0  # seconds that batches have had more than other work, while there is some
        self.speed = 5.0  # seconds of audio read in a second, of late
        self.thread = threading.Thread(target=self._run, name="model", daemon=True)

    def start(self) -> None:
        self.thread.start()

    def stop(self) -> None:
        """Ends the thread after its step; jobs that wait are told."""
        with self.wake:
            self.stopping = True
            self.wake.notify()
        if self.thread.is_alive():
            self.thread.join()
        for job in [*self.readings, *self.chats, *self.calls]:
            job.put("error", ApiError(503, "the server is being stopped", retry_after=10))

    def read(self, pieces: Sequence[np.ndarray], deadline: float, timed: bool = False) -> Reading:
        """ApiError 429 if too much audio waits already, or more than can be read before the deadline."""
        reading = Reading(pieces, deadline, timed)
        if not pieces:
            reading.put("end")
            return reading
        with self.wake:
            waiting = self._seconds_waiting()
            turns = 2 if self.chats else 1  # chats get half of the time
            late = turns * (waiting + reading.seconds) / self.speed > deadline - time.monotonic()
            if waiting and late or waiting + reading.seconds > self.waiting:
                wait = min(max(turns * waiting / self.speed, 1.0), 60.0)
                raise ApiError(429, f"{waiting:.0f} s of audio are waiting: try again later", code="queue_full", retry_after=wait)
            self._add(self.readings, reading)
        return reading

    def chat(self, steps: Iterator, deadline: float) -> Steps:
        """steps: what writes an answer, an item a token."""
        with self.wake:
            return self._add(self.chats, Steps(steps, deadline))

    async def call(self, function: Callable[[], Any], deadline: float) -> Any:
        """What the function returns, called in the model's thread before any other work."""
        with self.wake:
            job = self._add(self.calls, Steps((function() for _ in range(1)), deadline))
        return await anext(job)

    def _add(self, jobs: deque, job):
        if self.stopping or not self.thread.is_alive():
            raise ApiError(503, "the model's thread is not at work", retry_after=10)
        jobs.append(job)
        self.metrics.waiting.set(self._seconds_waiting())
        self.wake.notify()
        return job

    def _seconds_waiting(self) -> float:
        """Of audio."""
        return sum(reading.seconds for reading in self.readings)

    def _run(self) -> None:
        while True:
            with self.wake:
                while not (self.stopping or self.readings or self.chats or self.calls):
                    self.wake.wait()
                if self.stopping:
                    return
                batch, step = self._next()
                self.metrics.waiting.set(self._seconds_waiting())
            begun = time.monotonic()
            if batch:
                self._read(batch)
            elif step:
                self._step(step)
            spent = time.monotonic() - begun
            self.metrics.busy.inc(spent)
            if self.readings and (self.chats or self.calls):
                self.balance += spent if batch else -spent
            else:
                self.balance = 0.0

    def _next(self) -> tuple[list[tuple[Reading, np.ndarray]], Steps | None]:
        """A batch, or a job of which a step is due; neither, if nobody waits any more."""
        for jobs in (self.readings, self.chats, self.calls):
            for job in [job for job in jobs if job.closed]:
                jobs.remove(job)
        if self.readings and (self.balance <= 0 or not (self.chats or self.calls)):
            return self._batch(), None
        if self.calls:
            return [], self.calls.popleft()
        if not self.chats:
            return [], None
        job = self.chats.popleft()
        self.chats.insert(min(CHATS - 1, len(self.chats)), job)
        return [], job

    def _batch(self) -> list[tuple[Reading, np.ndarray]]:
        """Of every reading its next piece in turn, until a batch is full."""
        conf, batch, longest = self.model.decode_conf, [], 0
        most = max(self.speed * BATCH_S, self._seconds_waiting() * CROWD)  # seconds of audio
        most = min(conf.batch_frames / FRAMES_PER_SECOND, most)
        while self.readings and len(batch) < conf.max_batch:
            longest = max(longest, len(self.readings[0].pieces[0]))
            if batch and longest * (len(batch) + 1) / SAMPLE_RATE > most:
                break
            reading = self.readings.popleft()
            batch.append((reading, reading.pieces.popleft()))
            if reading.pieces:
                self.readings.append(reading)
        return batch

    def _read(self, batch: list[tuple[Reading, np.ndarray]]) -> None:
        begun = time.monotonic()
        try:
            texts = self.model.transcribe([piece for _, piece in batch])
            words = [self._words(piece, text) if reading.timed else [] for (reading, piece), text in zip(batch, texts)]
        except Exception as error:  # one piece may be the reason: the others must not suffer
            if len(batch) > 1:
                for item in batch:
                    self._read([item])
                return
            batch[0][0].put("error", error)
            batch[0][0].close()
            return
        seconds = sum(len(piece) for _, piece in batch) / SAMPLE_RATE
        self.speed = 0.8 * self.speed + 0.2 * seconds / max(time.monotonic() - begun, 1e-3)
        self.metrics.batch(len(batch), seconds)
        for (reading, _), *result in zip(batch, texts, words):
            reading.put("result", result)
            reading.left -= 1
            if not reading.left:
                reading.put("end")

    def _words(self, piece: np.ndarray, text: str) -> list[Segment]:
        from steermoe.serve.words import word_times  # needs torch, which the model has loaded

        return word_times(self.model, piece, text)

    def _step(self, job: Steps) -> None:
        try:
            if (result := next(job.steps)) is not None:
                job.put("result", result)
        except StopIteration:
            job.put("end")
            job.close()
        except Exception as error:
            job.put("error", error)
            job.close()
