"""OpenAI's form of /v1/chat/completions: what is asked, checked before the model sees it; the answer, whole or in chunks."""

from __future__ import annotations

import base64
import binascii
import io
import json
import re
import time
import uuid
from dataclasses import dataclass, field
from typing import Any, AsyncIterator

import numpy as np

from steermoe.data.segment import SAMPLE_RATE
from steermoe.serve.limits import ApiError
from steermoe.serve.uploads import read_audio

MOST_VALUES = 200_000  # commas, colons and brackets of a request: each may become an object of a hundred bytes
MOST_TEXT = 200_000  # characters of all messages and tools
MOST_DEPTH = 32
MOST_TOOLS = 128
NAME = re.compile(r"[\w-]{1,64}", re.ASCII)
UNKNOWN = {"n": 1, "logprobs": False, "audio": None, "functions": None, "prediction": None}  # the one value that is known of each


@dataclass
class Called:
    """A function call that the model made earlier, and what came of it."""

    id: str
    name: str
    arguments: dict
    result: str | None = None


@dataclass
class Said:
    """A turn. parts: text, and audio (N,) float32 at 16 kHz. calls: of the assistant."""

    role: str
    parts: list[str | np.ndarray]
    calls: list[Called] = field(default_factory=list)


@dataclass
class Asked:
    """system: None is the adapter's own. schemas: of functions that may be called; required: and one has to be."""

    turns: list[Said]
    system: str | None
    schemas: list[dict]
    required: bool
    max_tokens: int
    stop: list[str]
    stream: bool
    usage: bool


def read_body(body: bytes, longest: float, max_tokens: int) -> Asked:
    """ApiError 400 names what is wrong. longest: seconds of audio in all. max_tokens: of an answer, where nothing is said.

    Settings of sampling are taken and left: answers are the likeliest token by token.
    """
    if sum(body.count(mark) for mark in (b",", b":", b"[", b"{")) > MOST_VALUES:
        raise ApiError(400, "the request has too many values in it")
    try:
        tree = json.loads(body)
    except (ValueError, RecursionError) as error:
        raise ApiError(400, f"the request is not JSON: {error}") from None
    if not isinstance(tree, dict) or _depth(tree) > MOST_DEPTH:
        raise ApiError(400, "the request must be a JSON object, not nested deeply")
    for key, known in UNKNOWN.items():
        if tree.get(key) not in (None, known):
            raise ApiError(400, f"{key}: this server knows {known!r} alone", key)
    if tree.get("modalities") not in (None, ["text"]) or _kind(tree.get("response_format")) not in (None, "text"):
        raise ApiError(400, "answers are text: modalities ['text'], response_format {'type': 'text'}", "modalities")
    limit = _number(tree, "max_completion_tokens", _number(tree, "max_tokens", max_tokens))
    stop = tree.get("stop") or []
    stop = [stop] if isinstance(stop, str) else stop
    if not isinstance(stop, list) or len(stop) > 4 or not all(isinstance(word, str) and 0 < len(word) <= 100 for word in stop):
        raise ApiError(400, "stop must be a string, or a list of at most 4", "stop")
    options = tree.get("stream_options") or {}
    schemas, required = _tools(tree)
    system, turns = _messages(tree.get("messages"), longest)
    text = sum(len(part) for turn in turns for part in turn.parts if isinstance(part, str)) + len(system or "")
    text += sum(len(call.result or "") + len(str(call.arguments)) for turn in turns for call in turn.calls)
    if text + len(json.dumps(schemas)) > MOST_TEXT:
        raise ApiError(400, f"more than {MOST_TEXT} characters in messages and tools", "messages", "context_length_exceeded")
    stream, usage = tree.get("stream") is True, isinstance(options, dict) and options.get("include_usage") is True
    return Asked(turns, system, schemas, required, limit, stop, stream, usage)


def _number(tree: dict, key: str, default: int) -> int:
    value = tree.get(key)
    if value is None:
        return default
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ApiError(400, f"{key} must be a whole number above 0", key)
    return value


def _kind(value: Any) -> Any:
    return value.get("type") if isinstance(value, dict) else value


def _depth(value: Any) -> int:
    level, depth = [value], 0
    while level and depth <= MOST_DEPTH:
        held = (item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list)))
        level, depth = [child for children in held for child in children], depth + 1
    return depth


def _tools(tree: dict) -> tuple[list[dict], bool]:
    tools, choice = tree.get("tools") or [], tree.get("tool_choice")
    if not isinstance(tools, list) or len(tools) > MOST_TOOLS:
        raise ApiError(400, f"tools must be a list of at most {MOST_TOOLS}", "tools")
    schemas = [_schema(tool) for tool in tools]
    names = [schema["function"]["name"] for schema in schemas]
    if len(set(names)) < len(names):
        raise ApiError(400, "tools: two functions have one name", "tools")
    if isinstance(choice, dict):
        function = choice.get("function")
        name = function.get("name") if isinstance(function, dict) else None
        if name not in names:
            raise ApiError(400, "tool_choice: no tool has this name", "tool_choice")
        return [schemas[names.index(name)]], True
    if choice not in (None, "none", "auto", "required") or choice == "required" and not schemas:
        raise ApiError(400, "tool_choice must be none, auto, required or one of the tools", "tool_choice")
    return ([] if choice == "none" else schemas), choice == "required"


def _schema(tool: Any) -> dict:
    function = tool.get("function") if isinstance(tool, dict) and tool.get("type") == "function" else None
    if not isinstance(function, dict) or not isinstance(function.get("name"), str) or not NAME.fullmatch(function["name"]):
        form = '{"type": "function", "function": {"name": …, "description": …, "parameters": {…}}}'
        raise ApiError(400, f"a tool is {form}", "tools")
    parameters = function.get("parameters") or {"type": "object", "properties": {}}
    description = function.get("description") or ""
    if not isinstance(parameters, dict) or not isinstance(description, str):
        raise ApiError(400, f"tools: {function['name']}: description is text, parameters are a JSON schema", "tools")
    return {"type": "function", "function": {"name": function["name"], "description": description, "parameters": parameters}}


def _messages(messages: Any, longest: float) -> tuple[str | None, list[Said]]:
    """-> the system message, and turns by "user" and "assistant", of which the last is to be answered."""
    if not isinstance(messages, list) or not messages:
        raise ApiError(400, "messages must be a list that is not empty", "messages")
    system, turns, seconds = [], [], longest
    for number, message in enumerate(messages):
        where = f"messages[{number}]"
        role = message.get("role") if isinstance(message, dict) else None
        if role in ("system", "developer") and not turns:
            system += _parts(message.get("content"), where)
        elif role == "user":
            parts = _parts(message.get("content"), where, seconds)
            seconds -= sum(len(part) for part in parts if isinstance(part, np.ndarray)) / SAMPLE_RATE
            if turns and turns[-1].role == "user":
                turns[-1].parts += parts
            else:
                turns.append(Said("user", parts))
        elif role == "assistant" and turns and (turns[-1].role == "user" or turns[-1].calls):
            calls = [_called(call, where) for call in _list(message.get("tool_calls"), where)]
            content = message.get("content")
            parts = _parts(content, where) if content or not calls else []
            turns.append(Said("assistant", parts, calls))
        elif role == "tool" and (open_ := _open_call(turns, message.get("tool_call_id"))):
            open_.result = " ".join(_parts(message.get("content"), where))
        else:
            raise ApiError(400, f"{where}: a message with the role {role!r} has no place here", "messages")
    if not turns or turns[-1].role != "user" and not turns[-1].calls:
        raise ApiError(400, "the last message is not by the user or a tool: there is nothing to answer", "messages")
    if any(call.result is None for turn in turns for call in turn.calls):
        raise ApiError(400, "a call of an assistant's message has no result: a tool's message with its id", "messages")
    return "\n\n".join(system) if system else None, turns


def _open_call(turns: list[Said], number: Any) -> Called | None:
    calls = turns[-1].calls if turns else []
    return next((call for call in calls if call.id == number and call.result is None), None)


def _list(value: Any, where: str) -> list:
    if value is not None and not isinstance(value, list):
        raise ApiError(400, f"{where}: tool_calls must be a list", "messages")
    return value or []


def _called(call: Any, where: str) -> Called:
    function = call.get("function") if isinstance(call, dict) else None
    try:
        arguments = json.loads(function["arguments"] or "{}")
        found = Called(str(call["id"]), str(function["name"]), arguments)
    except (KeyError, TypeError, ValueError, RecursionError):
        raise ApiError(400, f"{where}: a call has an id and a function with name and arguments (JSON)", "messages") from None
    if not isinstance(arguments, dict) or _depth(arguments) > MOST_DEPTH:
        raise ApiError(400, f"{where}: a call's arguments are a JSON object", "messages")
    return found


def _parts(content: Any, where: str, seconds: float = 0.0) -> list:
    """Text and audio of one message. seconds: how much audio it may have; 0: none."""
    if isinstance(content, str):
        return [content]
    if not isinstance(content, list) or not content:
        raise ApiError(400, f"{where}: content must be text, or a list of parts", "messages")
    parts: list[str | np.ndarray] = []
    for part in content:
        kind = _kind(part) if isinstance(part, dict) else None
        if kind == "text" and isinstance(part.get("text"), str):
            parts.append(part["text"])
        elif kind == "input_audio" and seconds > 0:
            parts.append(_audio(part.get("input_audio"), where, seconds))
            seconds = max(seconds - len(parts[-1]) / SAMPLE_RATE, 1e-3)
        else:
            raise ApiError(400, f"{where}: parts are text and, by the user, input_audio; not {str(kind)[:40]!r}", "messages")
    return parts


def _audio(content: Any, where: str, longest: float) -> np.ndarray:
    data = content.get("data") if isinstance(content, dict) else None
    try:
        return read_audio(io.BytesIO(base64.b64decode(data, validate=True)), longest)
    except (TypeError, ValueError, binascii.Error):
        raise ApiError(400, f"{where}: input_audio needs data, a file in base64", "messages", "invalid_audio") from None
    except ApiError as error:
        raise ApiError(error.status, f"{where}: {error}", "messages", error.code) from None


class Completion:
    """One answer in OpenAI's words. Events of `answers.write` go in, the whole or chunks come out."""

    def __init__(self, model: str, asked: Asked):
        self.asked = asked
        self.head = {"id": f"chatcmpl-{uuid.uuid4().hex}", "created": int(time.time()), "model": model}

    async def whole(self, events: AsyncIterator[tuple]) -> dict:
        async for kind, *values in events:
            if kind == "end":
                text, calls, ended, usage = values
        message: dict[str, Any] = {"role": "assistant", "content": text or (None if calls else ""), "refusal": None}
        if calls:
            message["tool_calls"] = [_call(*call) for call in calls]
        choice = {"index": 0, "message": message, "finish_reason": ended, "logprobs": None}
        return {**self.head, "object": "chat.completion", "choices": [choice], "usage": usage}

    async def chunks(self, events: AsyncIterator[tuple]) -> AsyncIterator[dict]:
        begun = False
        async for kind, *values in events:
            if not begun:  # not earlier: what is wrong with the request shows itself before
                yield self.chunk({"role": "assistant", "content": ""})
                begun = True
            if kind == "text":
                yield self.chunk({"content": values[0]})
                continue
            _, calls, ended, usage = values
            if calls:
                yield self.chunk({"tool_calls": [{"index": index} | _call(*call) for index, call in enumerate(calls)]})
            yield self.chunk({}, ended)
            if self.asked.usage:
                yield {**self.head, "object": "chat.completion.chunk", "choices": [], "usage": usage}

    def chunk(self, delta: dict, ended: str | None = None) -> dict:
        choice = {"index": 0, "delta": delta, "finish_reason": ended, "logprobs": None}
        return {**self.head, "object": "chat.completion.chunk", "choices": [choice]}


def _call(name: str, arguments: dict) -> dict:
    function = {"name": name, "arguments": json.dumps(arguments, ensure_ascii=False)}
    return {"id": f"call_{uuid.uuid4().hex[:24]}", "type": "function", "function": function}
