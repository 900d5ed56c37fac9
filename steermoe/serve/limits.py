"""What a client may ask for, and what it is told where it asks for more: OpenAI's form of errors, and the guard at the door.

The guard is a layer around the whole application. It looks at where a request comes from, at its key, at how many are at work
and at how fast and how much it sends, before any of it is read.
"""

from __future__ import annotations

import hmac
import logging
import time
from dataclasses import dataclass
from typing import Sequence
from urllib.parse import urlsplit

import anyio
from starlette.datastructures import Headers
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.responses import JSONResponse

from steermoe.errors import UserError

LOG = logging.getLogger("steermoe.serve")
LOOPBACK = ("localhost", "127.0.0.1", "::1")
SILENCE_S = 20.0  # a client that sends nothing for so long has gone
DRAIN_S = 15.0  # for so long a refused body is read on, so that its sender gets to hear why
GRACE_S = 15.0  # how much longer than its time a request may take to be told that it is over


@dataclass(frozen=True)
class Limits:
    """upload: bytes of a request's body. audio: seconds of one recording. waiting: seconds of audio that wait, of all requests.
    requests: at work at once. timeout: seconds that one may take.
    """

    upload: int = 25 * 2**20
    audio: float = 600.0
    waiting: float = 3600.0
    requests: int = 64
    timeout: float = 300.0


class ApiError(Exception):
    """What a client has done wrong, or cannot have now. retry_after: seconds until it is worth another try."""

    def __init__(self, status: int, message: str, param: str | None = None, code: str | None = None, retry_after: float = 0.0):
        super().__init__(message)
        self.status, self.param, self.code, self.retry_after = status, param, code, retry_after

    def body(self) -> dict:
        kind = {401: "authentication_error", 403: "permission_error", 404: "not_found_error", 429: "rate_limit_error"}.get(
            self.status, "server_error" if self.status >= 500 else "invalid_request_error"
        )
        return {"error": {"message": str(self), "type": kind, "param": self.param, "code": self.code}}

    def response(self) -> JSONResponse:
        headers = {"Retry-After": str(max(1, round(self.retry_after)))} if self.retry_after else {}
        if self.status == 401:
            headers["WWW-Authenticate"] = "Bearer"
        if self.status == 504:  # OpenAI's clients would send it again at once
            headers["x-should-retry"] = "false"
        return JSONResponse(self.body(), self.status, headers)


def as_api_error(error: Exception) -> ApiError:
    """What a client is told of any exception; what was not its fault is in the log."""
    if isinstance(error, ApiError):
        return error
    if isinstance(error, UserError):
        return ApiError(400, str(error))
    if isinstance(error, HTTPException):
        return ApiError(error.status_code, str(error.detail))
    if isinstance(error, ClientDisconnect):
        return ApiError(499, "the client has gone")
    LOG.error("a request failed", exc_info=error)
    return ApiError(500, "the server failed at this request; its log says why")


class Guard:
    """hosts: names that the server is called by; none: any. keys: of which every request has to have one; none: no key needed.

    A request that passes has a scope["state"]["deadline"], in time.monotonic's seconds.
    """

    def __init__(self, app, limits: Limits, metrics, hosts: Sequence[str] = (), keys: Sequence[str] = ()):
        self.app, self.limits, self.metrics, self.hosts, self.keys = app, limits, metrics, hosts, keys
        self.at_work = 0

    async def __call__(self, scope, receive, send) -> None:
        if scope["type"] not in ("http", "websocket"):
            await self.app(scope, receive, send)
            return
        begun = time.monotonic()
        scope.setdefault("state", {})["deadline"] = begun + self.limits.timeout
        answer = Answer(send)
        works = scope["type"] == "websocket" or scope["method"] == "POST"
        try:
            self.check(scope, works)
        except ApiError as error:
            if scope["type"] == "http":
                await drain(receive, self.limits.upload)
            await error.response()(scope, receive, answer)  # a WebSocket is refused by the same answer
            self.metrics.done(scope, answer.status, time.monotonic() - begun)
            return
        self.at_work += works
        self.metrics.at_work.set(self.at_work)
        try:
            if scope["type"] == "websocket":
                await self.app(scope, receive, answer)
            else:
                await self.pass_on(scope, receive, answer)
        finally:
            self.at_work -= works
            self.metrics.at_work.set(self.at_work)
            self.metrics.done(scope, answer.status, time.monotonic() - begun)

    async def pass_on(self, scope, receive, answer: Answer) -> None:
        failed = ApiError(504, "the answer was not ready in time")
        try:
            with anyio.move_on_after(self.limits.timeout + GRACE_S):  # a client may not even read its answer
                await self.app(scope, Body(receive, scope, self.limits), answer)
        except Exception as error:
            failed = as_api_error(error)
        if not answer.begun:
            await failed.response()(scope, receive, answer)

    def check(self, scope, works: bool) -> None:
        """ApiError for a request that is not let in."""
        headers = Headers(scope=scope)
        host, origin = headers.get("host", ""), headers.get("origin")
        # Another site's page in the user's browser may not use the server, nor may a name that was pointed at this machine.
        if self.hosts and hostname(host) not in self.hosts:
            raise ApiError(403, f"this server is not called {hostname(host)!r}; --allowed-host makes a name known")
        if origin and urlsplit(origin).netloc != host and hostname(urlsplit(origin).netloc) not in self.hosts:
            raise ApiError(403, "pages of other sites may not use this server; --allowed-host makes a name known")
        if self.keys and scope["type"] == "http" and needs_key(scope["path"]):
            check_key(self.keys, headers.get("authorization", ""))
        if works and self.at_work >= self.limits.requests:
            raise ApiError(429, f"{self.at_work} requests are at work: try again later", code="too_many_requests", retry_after=2)


class Answer:
    """Passes a response on and remembers its status; 499 is a client that has gone before there was one."""

    def __init__(self, send):
        self.send, self.status, self.begun = send, 499, False

    async def __call__(self, message) -> None:
        self.begun = True
        if message["type"] in ("http.response.start", "websocket.http.response.start"):
            self.status = message["status"]
        elif message["type"] == "websocket.accept":
            self.status = 101
        await self.send(message)


class Body:
    """Receives a request's body within its limits. ApiError 413 for too much, 408 for a client that stops sending."""

    def __init__(self, receive, scope, limits: Limits):
        self.receive, self.limits, self.deadline = receive, limits, scope["state"]["deadline"]
        self.promised = Headers(scope=scope).get("content-length", "0")
        self.read, self.complete = 0, False

    async def __call__(self):
        if self.complete:
            return await self.receive()
        if self.promised.isdecimal() and int(self.promised) > self.limits.upload:
            await self.too_large()
        try:
            with anyio.fail_after(min(SILENCE_S, max(self.deadline - time.monotonic(), 0))):
                message = await self.receive()
        except TimeoutError:
            raise ApiError(408, f"the request's body has not come within {self.limits.timeout:g} s, or stood still") from None
        if message["type"] == "http.request":
            self.read += len(message.get("body", b""))
            self.complete = not message.get("more_body", False)
            if self.read > self.limits.upload:
                await self.too_large()
        return message

    async def too_large(self) -> None:
        self.promised = "0"
        await drain(self.receive, 4 * self.limits.upload)
        raise ApiError(413, f"the request has more than {self.limits.upload / 2**20:g} MiB", code="upload_too_large")


async def drain(receive, most: int) -> None:
    """Reads on for a while and forgets what comes: who is still sending does not listen."""
    read = 0
    with anyio.move_on_after(DRAIN_S):
        while read <= most:
            message = await receive()
            read += len(message.get("body", b""))
            if message["type"] != "http.request" or not message.get("more_body", False):
                return


def check_key(keys: Sequence[str], authorization: str) -> None:
    """authorization: `Bearer KEY`. ApiError if there are keys and it is none of them."""
    scheme, _, given = authorization.partition(" ")
    matches = [hmac.compare_digest(given.strip().encode(), key.encode()) for key in keys]
    if keys and not (scheme.lower() == "bearer" and any(matches)):
        what = "wrong API key" if given else "no API key; send it as `Authorization: Bearer KEY`"
        raise ApiError(401, what, code="invalid_api_key")


def needs_key(path: str) -> bool:
    """The page itself is open to all: it asks for the key."""
    return path.startswith("/v1/") or path == "/metrics"


def hostname(netloc: str) -> str:
    """"[::1]:8000" -> "::1"; "" for what is no host."""
    try:
        return (urlsplit(f"//{netloc}").hostname or "").lower()
    except ValueError:
        return ""
