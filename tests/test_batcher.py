"""The thread that owns the model: what it reads together, in turns, and what it cannot read in time."""

from __future__ import annotations

import asyncio
import time

import numpy as np
import pytest
from serving import Listener

from steermoe.serve.batcher import Batcher
from steermoe.serve.limits import ApiError
from steermoe.serve.metrics import Metrics


@pytest.fixture()
def model():
    return Listener()


@pytest.fixture()
def busy(model):
    """busy(speed, act): what act(batcher) does while a batch is being read, at so many seconds of audio in a second of late."""

    def run(speed, act):
        async def within():
            batcher = Batcher(model, Metrics(()), 1000.0)
            model.gate.clear()
            batcher.start()
            try:
                batcher.speed = speed
                batcher.read([np.zeros(16000, np.float32)], time.monotonic() + 60)
                while not model.batches:
                    await asyncio.sleep(0.01)
                await act(batcher)
            finally:
                model.gate.set()
                batcher.stop()

        asyncio.run(within())

    return run


def test_what_cannot_be_read_in_time_is_refused_at_once(busy):
    piece = [np.zeros(4 * 16000, np.float32)]

    async def act(batcher):
        for _ in range(2):
            batcher.read(piece, time.monotonic() + 30)
        with pytest.raises(ApiError, match="8 s of audio are waiting") as error:  # 12 s would be read in 24
            batcher.read(piece, time.monotonic() + 20)
        assert error.value.status == 429 and error.value.retry_after == pytest.approx(16)
        batcher.chat(iter([]), time.monotonic() + 60)  # takes half of the time
        with pytest.raises(ApiError, match="are waiting"):
            batcher.read(piece, time.monotonic() + 30)

    busy(0.5, act)


def test_the_first_that_waits_may_take_long(busy):
    async def act(batcher):
        batcher.read([np.zeros(4 * 16000, np.float32)], time.monotonic() + 3)

    busy(0.5, act)


def test_batches_grow_with_what_waits(busy, model):
    """A quarter of fifteen pieces of 2 s is read at once, though the model is slow."""

    async def act(batcher):
        jobs = [batcher.read([np.zeros(2 * 16000, np.float32)], time.monotonic() + 300) for _ in range(15)]
        await asyncio.sleep(1.0)  # the first batch takes so long
        model.gate.set()
        for job in jobs:
            async for _ in job:
                pass

    busy(0.5, act)
    assert model.batches[:2] == [1, 3]


def test_batches_and_chats_take_turns(model):
    """A chat goes on while batches are read, and neither waits for all of the other."""
    async def both() -> list[str]:
        batcher, order = Batcher(model, Metrics(()), 1000.0), []
        model.decode_conf.max_batch, model.slowness, end = 1, 0.02, time.monotonic() + 60

        async def gather(name: str, job) -> None:
            async for _ in job:
                order.append(name)

        def steps():
            for number in range(10):
                time.sleep(0.02)
                yield number

        batcher.start()
        try:
            pieces = batcher.read([np.zeros(16000, np.float32)] * 10, end)
            await asyncio.gather(gather("piece", pieces), gather("token", batcher.chat(steps(), end)))
            assert await batcher.call(lambda: 7, end) == 7
        finally:
            batcher.stop()
        return order

    order = asyncio.run(both())
    first = order[:10]
    assert sorted(order) == ["piece"] * 10 + ["token"] * 10 and 2 <= first.count("piece") <= 8
