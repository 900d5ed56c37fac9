"""Function calls in an LLM's answer, in whatever form the LLM has learned. Pure functions on text.

| form          | example                                                                  |
|---------------|--------------------------------------------------------------------------|
| Hermes, Qwen  | <tool_call>{"name": "f", "arguments": {"x": 1}}</tool_call>              |
| Mistral       | [TOOL_CALLS][{"name": "f", "arguments": {"x": 1}}] or [TOOL_CALLS]f{"x": 1} |
| Llama 3       | <|python_tag|>{"name": "f", "parameters": {"x": 1}}, or the JSON alone    |
| Qwen2.5-Coder | the JSON in a Markdown fence or in <tools>…</tools>                      |
"""

from __future__ import annotations

import json
import re
from dataclasses import dataclass, field
from typing import Any


@dataclass
class Call:
    """A call as the LLM has asked for it. name "": it could not be read. error: why it was not run or has failed, else None.
    result: what the function has returned, as text.
    """

    name: str
    arguments: dict[str, Any] = field(default_factory=dict)
    result: str | None = None
    error: str | None = None

    def __str__(self) -> str:
        words = ", ".join(f"{key}={json.dumps(value, ensure_ascii=False)}" for key, value in self.arguments.items())
        outcome = self.result if self.error is None else f"error: {self.error}"
        return f"{self.name or '?'}({words}) -> {outcome}"


MAX_DEPTH = 32
HERMES = re.compile(r"<tool_call>(.*?)(?:</tool_call>|(?=<tool_call>)|\Z)", re.DOTALL)
MISTRAL = "[TOOL_CALLS]"
MISTRAL_NAMED = re.compile(r"\s*([\w.-]+)\s*(?:\[CALL_ID\]\s*\w+\s*)?(?:\[ARGS\])?\s*(\{.*)", re.DOTALL)
LLAMA = "<|python_tag|>"
FENCE = re.compile(r"(?:```[\w-]*[ \t]*\n?|<tools>)\s*([\[{].*?)\s*(?:```|</tools>|\Z)", re.DOTALL)
LOOKS_LIKE_A_CALL = re.compile(r"""[\[{\s]*["'](?:name|function)["']\s*:""")


def parse_calls(text: str) -> tuple[str, list[Call]]:
    """text: an answer with its special tokens. -> (what it says beside the calls, the calls in order; none: a plain answer).

    A call that is announced and cannot be read is a Call with name "" and the reason as its error.
    """
    if "<tool_call>" in text:
        return HERMES.sub("", text).strip(), [call for body in HERMES.findall(text) for call in _read(body)]
    if MISTRAL in text:
        said, *bodies = text.split(MISTRAL)
        return said.strip(), [call for body in bodies for call in _read_mistral(body)]
    if LLAMA in text:
        said, _, body = text.partition(LLAMA)
        return said.strip(), _read(body)
    if LOOKS_LIKE_A_CALL.match(text):
        return "", _read(text)
    fenced = [block for block in FENCE.finditer(text) if LOOKS_LIKE_A_CALL.match(block[1])]
    said = text
    for block in reversed(fenced):
        said = said[: block.start()] + said[block.end() :]
    return said.strip(), [call for block in fenced for call in _read(block[1])]


def _read_mistral(body: str) -> list[Call]:
    if named := MISTRAL_NAMED.fullmatch(body):
        return [_call(named[1], value) for value in _values(named[2])] if _is_json(named[2]) else _read(named[2])
    return _read(body)


def _is_json(text: str) -> bool:
    try:
        return bool(_values(text))
    except ValueError:
        return False


def _read(body: str) -> list[Call]:
    """The calls of one announced body: a JSON object, a list of them, or several one after another."""
    try:
        values = _values(body)
    except ValueError as error:
        return [Call("", error=f"the call is not JSON: {error}")]
    flat = [item for value in values for item in (value if isinstance(value, list) else [value])]
    return [_from_object(item) for item in flat] or [Call("", error="the call is empty")]


def _values(text: str) -> list[Any]:
    """JSON values one after another, parted by white space, `,` or `;`. ValueError if anything else is there.

    Qwen2.5-Coder's chat template shows a call in doubled braces, {{"name": …}}, and the model copies them: one pair counts.
    """
    decoder, values, at = json.JSONDecoder(parse_constant=_no_constant), [], 0
    text, gaps = text.strip(), " \t\r\n,;"
    if text.startswith("{{"):
        text, gaps = text[1:], gaps + "}"
    while at < len(text):
        try:
            value, at = decoder.raw_decode(text, at)
        except RecursionError:
            raise ValueError("nested too deeply") from None
        if _is_deep(value):
            raise ValueError("nested too deeply")
        values.append(value)
        at += len(text[at:]) - len(text[at:].lstrip(gaps))
    return values


def _is_deep(value: Any) -> bool:
    """Whether lists and objects in it are nested so deeply that Python's or Jinja's recursion might end on them."""
    level = [value]
    for _ in range(MAX_DEPTH):
        level = [item.values() if isinstance(item, dict) else item for item in level if isinstance(item, (dict, list))]
        level = [child for children in level for child in children]
    return bool(level)


def _no_constant(word: str) -> None:
    raise ValueError(f"{word} is no JSON number")


def _from_object(item: Any) -> Call:
    if isinstance(item, dict) and isinstance(item.get("function"), dict):
        item = item["function"]
    if not isinstance(item, dict):
        return Call("", error='the call is not an object with "name" and "arguments"')
    name = item.get("name", item.get("function"))
    if not isinstance(name, str) or not name:
        return Call("", error='the call has no "name"')
    return _call(name, item.get("arguments", item.get("parameters", {})))


def _call(name: str, arguments: Any) -> Call:
    if isinstance(arguments, str):  # OpenAI's form: JSON within a string
        try:
            arguments = json.loads(arguments or "{}")
        except (ValueError, RecursionError):
            pass
    if arguments is None:
        arguments = {}
    if not isinstance(arguments, dict) or _is_deep(arguments):
        return Call(name, error='"arguments" is not an object, or is nested too deeply')
    return Call(encodable(name), json.loads(encodable(json.dumps(arguments, ensure_ascii=False))))


def encodable(text: str) -> str:
    """Halves of surrogate pairs, which JSON can spell and no encoding can hold, become question marks."""
    return text.encode("utf-8", "replace").decode("utf-8")
