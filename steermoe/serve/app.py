"""The server's routes. Requests are read and answered here; all that needs the model goes through `Batcher`."""

from __future__ import annotations

import asyncio
import contextlib
import json
import time
from pathlib import Path
from typing import AsyncIterator, Awaitable, Callable, Sequence

import anyio
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import FileResponse, JSONResponse, Response, StreamingResponse
from starlette.routing import Route, WebSocketRoute

from steermoe.errors import UserError
from steermoe.serve import chats, transcriptions
from steermoe.serve.batcher import Batcher, Job
from steermoe.serve.limits import ApiError, Guard, Limits, as_api_error
from steermoe.serve.live import live
from steermoe.serve.metrics import Metrics
from steermoe.serve.uploads import read_audio, read_pieces

PAGE = Path(__file__).with_name("page")
TYPES = {".html": "text/html", ".js": "text/javascript", ".css": "text/css", ".svg": "image/svg+xml", ".png": "image/png"}
HEADERS = {
    "Content-Security-Policy": "default-src 'self'; media-src 'self' blob:; img-src 'self' blob: data:; connect-src 'self'; "
    "worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'none'; frame-ancestors 'none'",
    "Permissions-Policy": "microphone=(self)",
    "Referrer-Policy": "no-referrer",
    "X-Content-Type-Options": "nosniff",
    "Cache-Control": "no-cache",
}
MAX_TOKENS = 512  # of a chat's answer, where the client does not say
READERS = 2  # uploads that are decoded at once: each holds a recording's samples


class Server:
    """model: a steermoe.SteerMoE, which from now on only the batcher's thread uses. name: what it is called. hosts, keys: see
    Guard. talker: another LLM that talks in its place.
    """

    def __init__(
        self,
        model,
        limits: Limits = Limits(),
        *,
        name: str = "steermoe",
        hosts: Sequence[str] = (),
        keys: Sequence[str] = (),
        talker=None,
    ):
        self.model, self.talker, self.limits, self.name, self.keys = model, talker, limits, name, keys
        self.begun = int(time.time())
        routes = [
            Route("/v1/audio/transcriptions", self.transcriptions, methods=["POST"]),
            Route("/v1/chat/completions", self.chat, methods=["POST"]),
            Route("/v1/models", self.models),
            Route("/v1/models/{name:path}", self.one_model),
            Route("/v1/steermoe/experts", self.experts, methods=["POST"]),
            WebSocketRoute("/v1/steermoe/stream", lambda socket: live(self, socket)),
            Route("/health", self.health),
            Route("/metrics", self.show_metrics),
        ]
        self.metrics = Metrics(tuple(route.path for route in routes))
        self.batcher = Batcher(model, self.metrics, limits.waiting)
        files = {file.name: file for file in sorted(PAGE.glob("*")) if file.suffix in TYPES}
        routes += [Route(f"/page/{name}", page(file)) for name, file in files.items()]
        routes += [Route("/", page(files["index.html"]))] if "index.html" in files else []
        self.app = Starlette(
            routes=routes,
            middleware=[Middleware(Guard, limits=limits, metrics=self.metrics, hosts=hosts, keys=keys)],
            exception_handlers={ApiError: told, HTTPException: told, UserError: told},
            lifespan=self.lifespan,
        )

    @contextlib.asynccontextmanager
    async def lifespan(self, app):
        self.readers = anyio.CapacityLimiter(READERS)
        self.batcher.start()
        yield
        await anyio.to_thread.run_sync(self.batcher.stop)

    async def transcriptions(self, request: Request) -> Response:
        async with request.form(max_files=1, max_fields=32, max_part_size=2**16) as form:
            asked = transcriptions.read_form(form)
            seconds, pieces = await self.in_thread(read_pieces, asked.file, self.limits.audio, self.model.limit)
        reading = self.batcher.read([piece.samples_n for piece in pieces], request.state.deadline, asked.words)
        spans, words = [(piece.start, piece.end, piece.overlaps) for piece in pieces], []
        del pieces  # the samples of what has been read are needed no more
        parts = transcriptions.settled(spans, reading, words)
        if asked.stream:
            return await self.stream(request, reading, transcriptions.events(parts, words, seconds, asked))
        transcript = await attended(request, transcriptions.last(parts))
        return transcriptions.answer(transcript, words, seconds, asked)

    async def chat(self, request: Request) -> Response:
        asked = await self.in_thread(chats.read_body, await request.body(), self.limits.audio, MAX_TOKENS)
        from steermoe.serve.answers import write  # as all that needs torch, where it is needed

        completion = chats.Completion(self.name, asked)
        job = self.batcher.chat(write(self.model, asked, self.talker), request.state.deadline)
        if asked.stream:
            return await self.stream(request, job, completion.chunks(job))
        return JSONResponse(await attended(request, completion.whole(job)))

    async def experts(self, request: Request) -> Response:
        from steermoe.serve.experts import hear

        async with request.form(max_files=1, max_fields=32, max_part_size=2**16) as form:
            samples_n = await self.in_thread(read_audio, transcriptions.upload(form), self.limits.audio)
        call = self.batcher.call(lambda: hear(self.model, samples_n), request.state.deadline)
        return JSONResponse(await attended(request, call))

    async def models(self, request: Request) -> Response:
        return JSONResponse({"object": "list", "data": [self.card()]})

    async def one_model(self, request: Request) -> Response:
        if request.path_params["name"] != self.name:
            raise ApiError(404, f"there is one model here, {self.name!r}", "model", "model_not_found")
        return JSONResponse(self.card())

    def card(self) -> dict:
        return {"id": self.name, "object": "model", "created": self.begun, "owned_by": "steermoe"}

    async def health(self, request: Request) -> Response:
        alive = self.batcher.thread.is_alive()
        return JSONResponse({"status": "ok" if alive else "the model's thread has ended"}, 200 if alive else 503)

    async def show_metrics(self, request: Request) -> Response:
        return Response(self.metrics.text(), media_type="text/plain; version=0.0.4")

    async def in_thread(self, function: Callable, *args):
        return await anyio.to_thread.run_sync(function, *args, limiter=self.readers)

    async def stream(self, request: Request, job: Job, events: AsyncIterator[dict]) -> Response:
        """Server-sent events. What goes wrong before the first of them has a status of its own."""
        first = await attended(request, anext(events))
        return Events(first, events, job)


class Events(StreamingResponse):
    """What goes wrong on the way is the last event. The job is dropped however this ends."""

    def __init__(self, first: dict, events: AsyncIterator[dict], job: Job):
        super().__init__(self.lines(first, events), media_type="text/event-stream", headers={"Cache-Control": "no-cache"})
        self.job = job

    async def __call__(self, scope, receive, send) -> None:
        try:
            await super().__call__(scope, receive, send)
        finally:
            self.job.close()

    async def lines(self, first: dict, events: AsyncIterator[dict]) -> AsyncIterator[str]:
        try:
            yield line(first)
            async for content in events:
                yield line(content)
            yield "data: [DONE]\n\n"
        except Exception as error:
            yield line(as_api_error(error).body())


def line(content: dict) -> str:
    return f"data: {json.dumps(content, ensure_ascii=False)}\n\n"


async def attended(request: Request, work: Awaitable):
    """What `work` gives; it is cancelled, and its job dropped, when the client goes."""
    doing, gone = asyncio.ensure_future(work), asyncio.ensure_future(disconnect(request))
    try:
        await asyncio.wait({doing, gone}, return_when=asyncio.FIRST_COMPLETED)
        if not doing.done():
            raise ApiError(499, "the client has gone")
        return doing.result()
    finally:
        doing.cancel()
        gone.cancel()


async def disconnect(request: Request) -> None:
    """Returns when the client has gone; its request has been read."""
    while (await request.receive())["type"] != "http.disconnect":
        pass


async def told(request: Request, error: Exception) -> Response:
    return as_api_error(error).response()


def page(file: Path) -> Callable:
    """The endpoint of one file of the page."""

    async def endpoint(request: Request) -> Response:
        return FileResponse(file, media_type=TYPES[file.suffix], headers=HEADERS)

    return endpoint
